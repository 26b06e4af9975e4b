// Guards the binary interface: where each field lies, what each constant is, what each function takes; and that programs built
// against an older or a newer header than the library's are understood or refused, never misread.
#include "nf_test.h"

#include <stddef.h>

// ---- layout. A field never moves; a new one is appended, and then the struct's size here grows. ----------------------------

_Static_assert(sizeof(void *) == 8 && sizeof(size_t) == 8 && sizeof(int) == 4, "these numbers are for LP64");

#define AT(type, field, offset, size)                                                        \
  _Static_assert(offsetof(type, field) == (offset), #type "." #field " has moved");           \
  _Static_assert(sizeof(((type *)0)->field) == (size), #type "." #field " has another size")

AT(nearfile_error, struct_size, 0, 8);
AT(nearfile_error, status, 8, 4);
AT(nearfile_error, os_errno, 12, 4);
AT(nearfile_error, source_code, 16, 8);
AT(nearfile_error, message, 24, 256);
_Static_assert(sizeof(nearfile_error) == 280, "nearfile_error");

AT(nearfile_cache_options, struct_size, 0, 8);
AT(nearfile_cache_options, size_limit, 8, 8);
AT(nearfile_cache_options, min_free, 16, 8);
AT(nearfile_cache_options, page_size, 24, 8);
AT(nearfile_cache_options, max_fetch_bytes, 32, 8);
AT(nearfile_cache_options, when_full, 40, 4);
AT(nearfile_cache_options, flags, 44, 4);
AT(nearfile_cache_options, wait_ms, 48, 4);
AT(nearfile_cache_options, workers, 52, 4);
_Static_assert(sizeof(nearfile_cache_options) == 56, "nearfile_cache_options");

AT(nearfile_stats, struct_size, 0, 8);
AT(nearfile_stats, hits, 8, 8);
AT(nearfile_stats, misses, 16, 8);
AT(nearfile_stats, waits, 24, 8);
AT(nearfile_stats, bytes_asked, 32, 8);
AT(nearfile_stats, bytes_served, 40, 8);
AT(nearfile_stats, source_reads, 48, 8);
AT(nearfile_stats, source_bytes, 56, 8);
AT(nearfile_stats, source_errors, 64, 8);
AT(nearfile_stats, pages_fetched, 72, 8);
AT(nearfile_stats, pages_verified, 80, 8);
AT(nearfile_stats, checksum_failures, 88, 8);
AT(nearfile_stats, passed_through, 96, 8);
AT(nearfile_stats, pages_evicted, 104, 8);
AT(nearfile_stats, cached_pages, 112, 8);
AT(nearfile_stats, cached_bytes, 120, 8);
AT(nearfile_stats, size_limit, 128, 8);
_Static_assert(sizeof(nearfile_stats) == 136, "nearfile_stats");

AT(nearfile_source, struct_size, 0, 8);
AT(nearfile_source, flags, 8, 4);
AT(nearfile_source, max_connections, 12, 4);
AT(nearfile_source, user_data, 16, 8);
AT(nearfile_source, open, 24, 8);
AT(nearfile_source, read_at, 32, 8);
AT(nearfile_source, read, 40, 8);
AT(nearfile_source, seek, 48, 8);
AT(nearfile_source, close, 56, 8);
AT(nearfile_source, release, 64, 8);
AT(nearfile_source, size, 72, 8);
_Static_assert(sizeof(nearfile_source) == 80, "nearfile_source");

AT(nearfile_options, struct_size, 0, 8);
AT(nearfile_options, key, 8, 8);
AT(nearfile_options, version, 16, 8);
AT(nearfile_options, size, 24, 8);
AT(nearfile_options, page_size, 32, 8);
AT(nearfile_options, size_limit, 40, 8);
AT(nearfile_options, mode, 48, 4);
AT(nearfile_options, flags, 52, 4);
AT(nearfile_options, data_path, 56, 8);
AT(nearfile_options, index_path, 64, 8);
_Static_assert(sizeof(nearfile_options) == 72, "nearfile_options");

AT(nearfile_entry, struct_size, 0, 8);
AT(nearfile_entry, key, 8, 8);
AT(nearfile_entry, version, 16, 8);
AT(nearfile_entry, data_path, 24, 8);
AT(nearfile_entry, index_path, 32, 8);
AT(nearfile_entry, size, 40, 8);
AT(nearfile_entry, page_size, 48, 8);
AT(nearfile_entry, cached_pages, 56, 8);
AT(nearfile_entry, cached_bytes, 64, 8);
AT(nearfile_entry, open, 72, 4);
AT(nearfile_entry, outdated, 76, 4);
_Static_assert(sizeof(nearfile_entry) == 80, "nearfile_entry");

AT(nearfile_range, offset, 0, 8);
AT(nearfile_range, buf, 8, 8);
AT(nearfile_range, len, 16, 8);
AT(nearfile_range, out_len, 24, 8);
AT(nearfile_range, out_status, 32, 4);
_Static_assert(sizeof(nearfile_range) == 40, "nearfile_range");

// ---- numbers, never changed and never reused --------------------------------------------------------------------------------

_Static_assert(NEARFILE_OK == 0, "");
_Static_assert(NEARFILE_ERROR_ARGUMENT == -1, "");
_Static_assert(NEARFILE_ERROR_IO == -2, "");
_Static_assert(NEARFILE_ERROR_SOURCE == -3, "");
_Static_assert(NEARFILE_ERROR_SHORT_SOURCE == -4, "");
_Static_assert(NEARFILE_ERROR_FROZEN == -5, "");
_Static_assert(NEARFILE_ERROR_FORKED == -6, "");
_Static_assert(NEARFILE_ERROR_EXISTS == -7, "");
_Static_assert(NEARFILE_ERROR_CANCELLED == -8, "");
_Static_assert(NEARFILE_ERROR_UNSUPPORTED == -9, "");
_Static_assert(NEARFILE_ERROR_NO_MEMORY == -10, "");
_Static_assert(NEARFILE_ERROR_INTERNAL == -99, "");
_Static_assert(NEARFILE_LOG_OFF == 0 && NEARFILE_LOG_ERROR == 1 && NEARFILE_LOG_WARN == 2, "");
_Static_assert(NEARFILE_LOG_INFO == 3 && NEARFILE_LOG_DEBUG == 4, "");
_Static_assert(NEARFILE_SOURCE_FORK_SAFE == 1, "");
_Static_assert(NEARFILE_SIZE_UNKNOWN == 0xFFFFFFFFFFFFFFFFu, "");
_Static_assert(NEARFILE_FULL_EVICT == 0 && NEARFILE_FULL_STOP == 1 && NEARFILE_FULL_FLUSH == 2, "");
_Static_assert(NEARFILE_PAGED == 0 && NEARFILE_EXACT == 1, "");
_Static_assert(NEARFILE_MAP == 1 && NEARFILE_FROZEN == 2 && NEARFILE_VERIFY_ALWAYS == 4 && NEARFILE_TRUST_CLEAN == 8 && NEARFILE_READAHEAD_OFF == 16, "");
_Static_assert(NEARFILE_PREFETCH_NOWAIT == 1, "");
_Static_assert(NEARFILE_SEEK_SET == SEEK_SET && NEARFILE_SEEK_CUR == SEEK_CUR && NEARFILE_SEEK_END == SEEK_END, "");
_Static_assert(NEARFILE_SEEK_SET == 0 && NEARFILE_SEEK_CUR == 1 && NEARFILE_SEEK_END == 2, "");

// ---- functions: a signature that changes does not compile -------------------------------------------------------------------

struct functions {
  uint32_t (*version)(void);
  const char *(*version_string)(void);
  const char *(*status_name)(int32_t);
  const char *(*status_message)(int32_t);
  int32_t (*last_error)(nearfile_error *);
  int32_t (*set_log)(void (*)(void *, int32_t, const char *), void *, int32_t);
  int32_t (*cache_open)(const char *, const nearfile_cache_options *, nearfile_cache **);
  void (*cache_close)(nearfile_cache *);
  int32_t (*cache_get_stats)(const nearfile_cache *, nearfile_stats *);
  int32_t (*open)(const nearfile_cache *, const nearfile_source *, const nearfile_options *, nearfile_file **);
  int32_t (*dup)(const nearfile_file *, nearfile_file **);
  void (*close)(nearfile_file *);
  int64_t (*size)(const nearfile_file *);
  int64_t (*page_size)(const nearfile_file *);
  const char *(*data_path)(const nearfile_file *);
  const char *(*index_path)(const nearfile_file *);
  int64_t (*read)(const nearfile_file *, void *, size_t);
  int64_t (*seek)(const nearfile_file *, int64_t, int32_t);
  int64_t (*tell)(const nearfile_file *);
  int64_t (*pread)(const nearfile_file *, void *, size_t, uint64_t);
  int32_t (*extent)(const nearfile_file *, uint64_t, uint64_t *, int32_t *);
  int32_t (*discard)(const nearfile_file *, uint64_t, uint64_t);
  int32_t (*get_stats)(const nearfile_file *, nearfile_stats *);
  int32_t (*cache_trim)(const nearfile_cache *, uint64_t);
  int32_t (*cache_remove)(const nearfile_cache *, const char *);
  int32_t (*cache_list)(const nearfile_cache *, int32_t (*)(void *, const nearfile_entry *), void *);
  int32_t (*read_ranges)(const nearfile_file *, nearfile_range *, size_t, size_t);
  int32_t (*prefetch)(const nearfile_file *, uint64_t, uint64_t, uint32_t, int32_t (*)(void *, uint64_t, uint64_t), void *);
  int32_t (*freeze)(const nearfile_file *);
  int32_t (*preserve)(const nearfile_file *, const char *);
  int32_t (*pin_range)(const nearfile_file *, uint64_t, size_t, nearfile_pin **);
  const void *(*pin_data)(const nearfile_pin *);
  size_t (*pin_size)(const nearfile_pin *);
  void (*pin_release)(nearfile_pin *);
};

static const struct functions functions = {
    nearfile_version,   nearfile_version_string, nearfile_status_name, nearfile_status_message,  nearfile_last_error,
    nearfile_set_log,   nearfile_cache_open,     nearfile_cache_close, nearfile_cache_get_stats, nearfile_open,
    nearfile_dup,       nearfile_close,          nearfile_size,        nearfile_page_size,       nearfile_data_path,
    nearfile_index_path, nearfile_read,          nearfile_seek,        nearfile_tell,            nearfile_pread,
    nearfile_extent,    nearfile_discard,        nearfile_get_stats,   nearfile_cache_trim,      nearfile_cache_remove,
    nearfile_cache_list, nearfile_read_ranges,   nearfile_prefetch,    nearfile_freeze,          nearfile_preserve,
    nearfile_pin_range, nearfile_pin_data,       nearfile_pin_size,    nearfile_pin_release};

static void version_is_the_headers(void) {
  CHECK_EQ(functions.version(), NEARFILE_VERSION_MAJOR << 16 | NEARFILE_VERSION_MINOR << 8 | NEARFILE_VERSION_PATCH);
  char expected[40];
  snprintf(expected, sizeof expected, "%d.%d.%d", NEARFILE_VERSION_MAJOR, NEARFILE_VERSION_MINOR, NEARFILE_VERSION_PATCH);
  CHECK(strcmp(functions.version_string(), expected) == 0);
}

// ---- older and newer callers -------------------------------------------------------------------------------------------------

enum { VERSION = 17, SIZE = 30000, MORE = 64 };

// A copy of the first bytes of a struct that ends where memory ends: to look one byte further is to die.
static void *cut(const void *from, size_t len) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  char *room = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(room != MAP_FAILED && len <= page);
  MUST(mprotect(room + page, page, PROT_NONE) == 0);
  char *at = room + page - len;
  memcpy(at, from, len);
  memcpy(at, &len, sizeof len);  // struct_size
  return at;
}

// A copy with more fields than this header has, all zero but one byte.
static void *grown(const void *from, size_t len, size_t nonzero) {
  char room[4096] = {0};
  memcpy(room, from, len);
  char *at = cut(room, len + MORE);
  if (nonzero < MORE) at[len + nonzero] = 1;
  return at;
}

static nearfile_file *open_with(const nearfile_cache *cache, const nearfile_source *source, const nearfile_options *options) {
  nearfile_file *file = NULL;
  CHECK_EQ(nearfile_open(cache, source, options, &file), 0);
  MUST(file != NULL);
  return file;
}

static void an_older_program_works(void) {
  char path[NF_PATH];
  far_file *far = far_new(SIZE, VERSION, 4096);
  nearfile_cache *cache = NULL;
  nearfile_cache_options cache_options = {.struct_size = sizeof cache_options, .page_size = 512, .workers = 9999};
  CHECK_EQ(nearfile_cache_open(nf_path(path, "cache"), cut(&cache_options, offsetof(nearfile_cache_options, max_fetch_bytes)), &cache), 0);
  MUST(cache != NULL);  // `workers` is refused, but was not there yet
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_options options = {.struct_size = sizeof options, .key = "key", .version = "v", .size = SIZE, .flags = UINT32_MAX};

  // Fields that were not there are not looked at, and are zero.
  nearfile_file *file = open_with(cache, &source, cut(&options, offsetof(nearfile_options, page_size)));
  CHECK_EQ(nearfile_size(file), SIZE);
  CHECK_EQ(nearfile_page_size(file), 512);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  file = open_with(cache, cut(&source, offsetof(nearfile_source, release)), cut(&options, offsetof(nearfile_options, size_limit)));
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  CHECK_EQ(far->opens, far->closes);
  file = open_with(cache, &source, cut(&options, offsetof(nearfile_options, size)));
  CHECK_EQ(nearfile_size(file), 0);
  nearfile_close(file);
  nearfile_source bare = {.struct_size = sizeof bare, .user_data = &far->self, .read_at = far_read_at};
  file = open_with(cache, cut(&bare, offsetof(nearfile_source, read)), &(nearfile_options){.struct_size = sizeof options, .size = SIZE});
  CHECK_ALL(file, VERSION);
  // A source cut before its read_at has none.
  nearfile_file *other = file;
  options.flags = 0;
  CHECK_EQ(nearfile_open(cache, cut(&bare, offsetof(nearfile_source, read_at)), &options, &other), NEARFILE_ERROR_ARGUMENT);
  CHECK(other == NULL);
  CHECK_EQ(nearfile_open(cache, cut(&bare, sizeof bare.struct_size), &options, &other), NEARFILE_ERROR_ARGUMENT);

  // What is filled in is filled in as far as it goes.
  nearfile_stats whole = nf_stats(file);
  CHECK(whole.hits + whole.misses > 0 && whole.source_reads > 0);
  for (size_t size = sizeof(size_t); size <= sizeof whole; size += 8) {
    nearfile_stats stats, *part;
    memset(&stats, 0xA5, sizeof stats);
    part = cut(&stats, size);
    CHECK_EQ(nearfile_get_stats(file, part), 0);
    CHECK_EQ(part->struct_size, size);
    CHECK(memcmp((char *)part + 8, (char *)&whole + 8, size - 8) == 0);
    part = cut(&stats, size);
    CHECK_EQ(nearfile_cache_get_stats(cache, part), 0);
    CHECK_EQ(part->struct_size, size);
    stats.struct_size = size;
    CHECK_EQ(nearfile_get_stats(file, &stats), 0);
    for (size_t i = size; i < sizeof stats; i++) CHECK_EQ(((unsigned char *)&stats)[i], 0xA5);
  }
  CHECK_EQ(nearfile_seek(file, 0, 77), NEARFILE_ERROR_ARGUMENT);
  nearfile_error error, *shorter;
  memset(&error, 0xA5, sizeof error);
  shorter = cut(&error, offsetof(nearfile_error, source_code));
  CHECK_EQ(nearfile_last_error(shorter), 0);
  CHECK(shorter->status == NEARFILE_ERROR_ARGUMENT && shorter->os_errno == 0);
  shorter = cut(&error, offsetof(nearfile_error, message));
  CHECK_EQ(nearfile_last_error(shorter), 0);
  CHECK(shorter->status == NEARFILE_ERROR_ARGUMENT && shorter->source_code == 0);

  nearfile_close(file);
  CHECK_EQ(far->offences, 0);
  nearfile_cache_close(cache);
  far_free(far);
}

static void a_newer_program_works_or_is_refused(void) {
  char path[NF_PATH];
  nf_path(path, "cache");
  far_file *far = far_new(SIZE, VERSION, 4096);
  nearfile_cache *cache = NULL;
  nearfile_cache_options cache_options = {.struct_size = sizeof cache_options, .page_size = 4096};
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_options options = {.struct_size = sizeof options, .key = "key", .size = SIZE};
  CHECK_EQ(nearfile_cache_open(path, grown(&cache_options, sizeof cache_options, MORE), &cache), 0);
  MUST(cache != NULL);
  nearfile_file *file = open_with(cache, grown(&source, sizeof source, MORE), grown(&options, sizeof options, MORE));
  CHECK_ALL(file, VERSION);

  // A field that this library does not know asks for something that it cannot do.
  static const size_t places[] = {0, 1, 8, 31, MORE - 1};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    nearfile_file *other = file;
    nearfile_cache *second = cache;
    CHECK_EQ(nearfile_cache_open(path, grown(&cache_options, sizeof cache_options, places[i]), &second), NEARFILE_ERROR_UNSUPPORTED);
    CHECK(second == NULL && nf_last_error().message[0] != 0);
    CHECK_EQ(nearfile_open(cache, &source, grown(&options, sizeof options, places[i]), &other), NEARFILE_ERROR_UNSUPPORTED);
    CHECK(other == NULL && nf_last_error().message[0] != 0);
    other = file;
    CHECK_EQ(nearfile_open(cache, grown(&source, sizeof source, places[i]), &options, &other), NEARFILE_ERROR_UNSUPPORTED);
    CHECK(other == NULL && nf_last_error().message[0] != 0);
  }
  CHECK_EQ(far->releases, 0);

  // What is filled in for a newer program: what is known, with nothing made up after it.
  nearfile_stats whole = nf_stats(file), *stats = grown(&whole, sizeof whole, MORE);
  memset((char *)stats + 8, 0, sizeof whole - 8);
  CHECK_EQ(nearfile_get_stats(file, stats), 0);
  CHECK_EQ(stats->struct_size, sizeof whole + MORE);
  CHECK(memcmp((char *)stats + 8, (char *)&whole + 8, sizeof whole - 8) == 0);
  CHECK_EQ(nearfile_cache_get_stats(cache, stats), 0);
  CHECK_EQ(stats->struct_size, sizeof whole + MORE);
  nearfile_error last = nf_last_error(), *error = grown(&last, sizeof last, MORE);
  memset((char *)error + 8, 0, sizeof last - 8);
  CHECK_EQ(nearfile_last_error(error), 0);
  CHECK_EQ(error->struct_size, sizeof last + MORE);
  CHECK(memcmp((char *)error + 8, (char *)&last + 8, sizeof last - 8) == 0);
  for (size_t i = 0; i < MORE; i++) {
    CHECK_EQ(((char *)stats)[sizeof whole + i], 0);
    CHECK_EQ(((char *)error)[sizeof last + i], 0);
  }

  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  nearfile_cache_close(cache);
  far_free(far);
}

// Ranges of a newer program lie further apart; what is between them is not the library's.
static void ranges_of_a_newer_program(void) {
  enum { RANGES = 5, FURTHER = sizeof(nearfile_range) + 24 };
  nearfile_cache *cache = nf_cache("cache", 4096, 0, 0);
  far_file *far = far_new(SIZE, VERSION, 4096);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, NULL);
  unsigned char bufs[RANGES][300];
  _Alignas(nearfile_range) char room[RANGES * FURTHER];
  memset(room, 0x5A, sizeof room);
  for (size_t i = 0; i < RANGES; i++) {
    nearfile_range range = {.offset = i * 7000, .buf = bufs[i], .len = sizeof bufs[i], .out_len = 77, .out_status = 77};
    memcpy(room + i * FURTHER, &range, sizeof range);
  }
  CHECK_EQ(nearfile_read_ranges(file, (nearfile_range *)room, RANGES, FURTHER), 0);
  for (size_t i = 0; i < RANGES; i++) {
    nearfile_range range;
    memcpy(&range, room + i * FURTHER, sizeof range);
    CHECK_EQ(range.out_status, 0);
    CHECK_EQ(range.out_len, sizeof bufs[i]);
    CHECK_BYTES(bufs[i], sizeof bufs[i], i * 7000, VERSION);
    for (size_t at = sizeof range; at < FURTHER; at++) CHECK_EQ(room[i * FURTHER + at], 0x5A);
  }
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// Tables and strings are copied at open: a program may reuse them at once.
static void nothing_of_the_callers_is_kept(void) {
  char path[NF_PATH], key[] = "key", version[] = "version";
  far_file *far = far_new(SIZE, VERSION, 4096);
  nearfile_cache *cache = NULL;
  nearfile_cache_options cache_options = {.struct_size = sizeof cache_options, .page_size = 4096};
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_options options = {.struct_size = sizeof options, .key = key, .version = version, .size = SIZE};
  CHECK_EQ(nearfile_cache_open(nf_path(path, "cache"), &cache_options, &cache), 0);
  memset(path, 'x', 20);
  memset(&cache_options, 0xFF, sizeof cache_options);
  nearfile_file *file = open_with(cache, &source, &options);
  memset(&source, 0xFF, sizeof source);
  memset(&options, 0xFF, sizeof options);
  memset(key, 'x', 3);
  memset(version, 'x', 7);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  source = far_source(far, FAR_AT_OPEN);
  file = nf_open(cache, &source, "key", "version", SIZE, 0);
  CHECK_ALL(file, VERSION);
  CHECK_ONCE(far);
  nearfile_close(file);
  CHECK_EQ(far->releases, 2);
  nearfile_cache_close(cache);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(version_is_the_headers), NF_CASE(an_older_program_works),
                                         NF_CASE(a_newer_program_works_or_is_refused),
                                         NF_CASE(ranges_of_a_newer_program), NF_CASE(nothing_of_the_callers_is_kept)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
