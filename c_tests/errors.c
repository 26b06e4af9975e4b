// Guards that every function answers every bad argument with the right status and a sentence of its own, that nothing is left
// behind by what failed, and that a failure is told to the thread that met it only.
#include "nf_test.h"

enum { VERSION = 13, PAGE = 1000, SIZE = 10500 };

static nearfile_cache *cache;
static nearfile_file *file;
static far_file *far;
static nearfile_source source;
static int expectations;

// A failure of a kind that no case here has, so that a sentence left over from it would be seen.
static void forget_last_error(char sentence[256]) {
  CHECK_EQ(nearfile_set_log(NULL, NULL, -4242), NEARFILE_ERROR_ARGUMENT);
  nearfile_error error = nf_last_error();
  CHECK(strstr(error.message, "-4242") != NULL);
  memcpy(sentence, error.message, 256);
}

static void expect(int line, const char *call, int64_t got, int64_t status, const char *before) {
  expectations++;
  nf_equal(__FILE__, line, call, "status", got, status);
  nearfile_error error = nf_last_error();
  nf_equal(__FILE__, line, call, "status in nearfile_last_error", error.status, status);
  size_t len = strnlen(error.message, sizeof error.message);
  if (len < 8 || len == sizeof error.message) nf_fail(__FILE__, line, "no sentence, or none that ends");
  if (strcmp(error.message, before) == 0) nf_fail(__FILE__, line, "the sentence of an earlier failure");
  if (status == NEARFILE_ERROR_ARGUMENT || status == NEARFILE_ERROR_UNSUPPORTED) {
    nf_equal(__FILE__, line, "os_errno", "0", error.os_errno, 0);
    nf_equal(__FILE__, line, "source_code", "0", error.source_code, 0);
  }
}

#define EXPECT(call, status)                       \
  do {                                             \
    char nf_before[256];                           \
    forget_last_error(nf_before);                  \
    expect(__LINE__, #call, call, status, nf_before); \
  } while (0)
#define EXPECT_ARGUMENT(call) EXPECT(call, NEARFILE_ERROR_ARGUMENT)

// Asking wrongly for the last error is answered, and leaves it as it is.
static void expect_unasked(int line, nearfile_error *out) {
  char before[256];
  expectations++;
  forget_last_error(before);
  nf_equal(__FILE__, line, "nearfile_last_error", "status", nearfile_last_error(out), NEARFILE_ERROR_ARGUMENT);
  if (strcmp(nf_last_error().message, before) != 0) nf_fail(__FILE__, line, "the last error was lost");
}

static void set_up(void) {
  cache = nf_cache("cache", PAGE, 0, 0);
  far = far_new(SIZE, VERSION, PAGE);
  source = far_source(far, FAR_AT_OPEN);
  file = nf_open(cache, &source, "key", "v", SIZE, 0);
  CHECK_PREAD(file, 10, 0, VERSION);
}

static void tear_down(uint64_t releases) {
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(far->releases, releases + 1);
  CHECK_EQ(far->opens, far->closes);
  CHECK_EQ(far->offences, 0);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- handles, pointers, sizes of structs -----------------------------------------------------------------------------------

static int32_t see_none(void *user_data, const nearfile_entry *entry) {
  (void)user_data, (void)entry;
  nf_fail(__FILE__, __LINE__, "a list that was refused shows something");
  return 1;
}

static void null_handles_and_pointers(void) {
  set_up();
  char buf[10];
  uint64_t end;
  int32_t cached;
  nearfile_file *other = NULL;
  nearfile_cache *second = NULL;
  nearfile_stats stats = {.struct_size = sizeof stats};
  nearfile_options options = {.struct_size = sizeof options, .size = SIZE};
  char path[NF_PATH];

  expect_unasked(__LINE__, NULL);
  EXPECT_ARGUMENT(nearfile_cache_open(nf_path(path, "second"), NULL, NULL));
  EXPECT_ARGUMENT(nearfile_cache_get_stats(NULL, &stats));
  EXPECT_ARGUMENT(nearfile_cache_get_stats(cache, NULL));
  EXPECT_ARGUMENT(nearfile_cache_get_stats(NULL, NULL));
  EXPECT_ARGUMENT(nearfile_open(cache, &source, &options, NULL));
  EXPECT_ARGUMENT(nearfile_open(cache, NULL, &options, &other));
  EXPECT_ARGUMENT(nearfile_open(cache, &source, NULL, &other));
  EXPECT_ARGUMENT(nearfile_open(NULL, &source, &options, &other));
  EXPECT_ARGUMENT(nearfile_open(NULL, NULL, NULL, NULL));
  EXPECT_ARGUMENT(nearfile_dup(NULL, &other));
  EXPECT_ARGUMENT(nearfile_dup(file, NULL));
  EXPECT_ARGUMENT(nearfile_size(NULL));
  EXPECT_ARGUMENT(nearfile_page_size(NULL));
  EXPECT_ARGUMENT(nearfile_read(NULL, buf, sizeof buf));
  EXPECT_ARGUMENT(nearfile_read(NULL, NULL, 0));
  EXPECT_ARGUMENT(nearfile_read(file, NULL, 1));
  EXPECT_ARGUMENT(nearfile_pread(NULL, buf, sizeof buf, 0));
  EXPECT_ARGUMENT(nearfile_pread(NULL, NULL, 0, 0));
  EXPECT_ARGUMENT(nearfile_pread(file, NULL, 1, 0));
  EXPECT_ARGUMENT(nearfile_seek(NULL, 0, NEARFILE_SEEK_SET));
  EXPECT_ARGUMENT(nearfile_tell(NULL));
  EXPECT_ARGUMENT(nearfile_extent(NULL, 0, &end, &cached));
  EXPECT_ARGUMENT(nearfile_extent(file, 0, NULL, &cached));
  EXPECT_ARGUMENT(nearfile_extent(file, 0, &end, NULL));
  EXPECT_ARGUMENT(nearfile_extent(file, SIZE, NULL, NULL));
  EXPECT_ARGUMENT(nearfile_discard(NULL, 0, 1));
  EXPECT_ARGUMENT(nearfile_get_stats(NULL, &stats));
  EXPECT_ARGUMENT(nearfile_get_stats(file, NULL));
  nearfile_range range = {.offset = 0, .buf = buf, .len = sizeof buf}, bad = {.offset = 0, .buf = NULL, .len = 5};
  nearfile_pin *pin = (nearfile_pin *)buf;
  EXPECT_ARGUMENT(nearfile_cache_trim(NULL, 0));
  EXPECT_ARGUMENT(nearfile_cache_remove(NULL, "key"));
  EXPECT_ARGUMENT(nearfile_cache_remove(cache, NULL));
  EXPECT_ARGUMENT(nearfile_cache_list(NULL, see_none, NULL));
  EXPECT_ARGUMENT(nearfile_cache_list(cache, NULL, NULL));
  EXPECT_ARGUMENT(nearfile_read_ranges(NULL, &range, 1, sizeof range));
  EXPECT_ARGUMENT(nearfile_read_ranges(NULL, NULL, 0, sizeof range));
  EXPECT_ARGUMENT(nearfile_read_ranges(file, NULL, 1, sizeof range));
  EXPECT_ARGUMENT(nearfile_read_ranges(file, &bad, 1, sizeof bad));
  CHECK(bad.out_status == NEARFILE_ERROR_ARGUMENT && bad.out_len == 0);
  bad.buf = buf, bad.len = SIZE_MAX;
  EXPECT_ARGUMENT(nearfile_read_ranges(file, &bad, 1, sizeof bad));
  CHECK(bad.out_status == NEARFILE_ERROR_ARGUMENT && bad.out_len == 0);
  static const size_t range_sizes[] = {0, 1, 8, sizeof range - 1, sizeof range + 1, sizeof range - 8, SIZE_MAX};
  for (size_t i = 0; i < sizeof range_sizes / sizeof *range_sizes; i++) {
    EXPECT_ARGUMENT(nearfile_read_ranges(file, &range, 1, range_sizes[i]));
  }
  CHECK_EQ(nearfile_read_ranges(file, NULL, 0, sizeof range), 0);
  EXPECT_ARGUMENT(nearfile_prefetch(NULL, 0, 1, 0, NULL, NULL));
  for (uint32_t bit = 2; bit != 0; bit <<= 1) EXPECT_ARGUMENT(nearfile_prefetch(file, 0, 1, bit, NULL, NULL));
  CHECK_EQ(nearfile_prefetch(file, UINT64_MAX, UINT64_MAX, 0, NULL, NULL), 0);
  EXPECT_ARGUMENT(nearfile_freeze(NULL));
  EXPECT_ARGUMENT(nearfile_preserve(NULL, nf_path(path, "copy")));
  EXPECT_ARGUMENT(nearfile_preserve(file, NULL));
  EXPECT_ARGUMENT(nearfile_pin_range(NULL, 0, 1, &pin));
  CHECK(pin == NULL);
  EXPECT_ARGUMENT(nearfile_pin_range(file, 0, 1, NULL));
  pin = (nearfile_pin *)buf;
  CHECK_EQ(nearfile_pin_range(file, 0, SIZE_MAX, &pin), 0);  // no buffer: as far as the file goes
  CHECK_EQ(nearfile_pin_size(pin), SIZE);
  CHECK_BYTES(nearfile_pin_data(pin), SIZE, 0, VERSION);
  nearfile_pin_release(pin);
  CHECK_EQ(nearfile_pin_range(file, UINT64_MAX, SIZE_MAX, &pin), 0);
  CHECK_EQ(nearfile_pin_size(pin), 0);
  nearfile_pin_release(pin);
  CHECK(nearfile_pin_data(NULL) == NULL);
  CHECK_EQ(nearfile_pin_size(NULL), 0);
  nearfile_pin_release(NULL);
  CHECK(nearfile_data_path(NULL) == NULL);
  CHECK(nearfile_index_path(NULL) == NULL);
  nearfile_close(NULL);
  nearfile_cache_close(NULL);
  CHECK_EQ(nearfile_set_log(NULL, NULL, NEARFILE_LOG_DEBUG), 0);
  CHECK_EQ(nearfile_set_log(NULL, NULL, NEARFILE_LOG_OFF), 0);
  CHECK(other == NULL && second == NULL);
  CHECK_EQ(nearfile_tell(file), 0);
  tear_down(0);
}

static void struct_sizes(void) {
  set_up();
  // Larger than any struct, so that even a reader that believed the size would stay inside for most of them.
  static union {
    nearfile_error error;
    nearfile_stats stats;
    nearfile_source source;
    nearfile_options options;
    nearfile_cache_options cache_options;
    size_t struct_size;
    char room[8192];
  } at;
  static const size_t sizes[] = {0, 1, 7, 1 << 20, (size_t)1 << 31, (size_t)1 << 32, SIZE_MAX / 2, SIZE_MAX - 7, SIZE_MAX};
  char path[NF_PATH];
  nf_path(path, "second");
  nearfile_options options = {.struct_size = sizeof options, .size = SIZE};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    nearfile_cache *second = (nearfile_cache *)&at;
    nearfile_file *other = (nearfile_file *)&at;
    memset(&at, 0, sizeof at);
    at.struct_size = sizes[i];
    expect_unasked(__LINE__, &at.error);
    EXPECT_ARGUMENT(nearfile_get_stats(file, &at.stats));
    EXPECT_ARGUMENT(nearfile_cache_get_stats(cache, &at.stats));
    EXPECT_ARGUMENT(nearfile_cache_open(path, &at.cache_options, &second));
    CHECK(second == NULL);
    at.options.size = SIZE;
    EXPECT_ARGUMENT(nearfile_open(cache, &source, &at.options, &other));
    CHECK(other == NULL);
    at.source = source;
    at.struct_size = sizes[i];
    other = (nearfile_file *)&at;
    EXPECT_ARGUMENT(nearfile_open(cache, &at.source, &options, &other));
    CHECK(other == NULL);
  }
  struct stat unmade;
  CHECK(stat(path, &unmade) != 0);  // refused before anything is made
  tear_down(0);
}

// ---- options -----------------------------------------------------------------------------------------------------------------

static void expect_open(int line, const nearfile_options *options, int32_t status) {
  nearfile_file *other = (nearfile_file *)&other;
  char before[256];
  forget_last_error(before);
  expect(line, "nearfile_open", nearfile_open(cache, &source, options, &other), status, before);
  CHECK(other == NULL);
}
#define EXPECT_OPEN(status, ...)                                                                 \
  expect_open(__LINE__, &(nearfile_options){.struct_size = sizeof(nearfile_options), __VA_ARGS__}, status)

static nearfile_file *opens(const nearfile_options *options) {
  nearfile_file *other = NULL;
  CHECK_EQ(nearfile_open(cache, &source, options, &other), 0);
  MUST(other != NULL);
  return other;
}
#define OPENS(...) opens(&(nearfile_options){.struct_size = sizeof(nearfile_options), __VA_ARGS__})

static char *text(char fill, size_t len) {
  static char room[4][5000];
  static int next;
  char *at = room[next++ % 4];
  memset(at, fill, len);
  at[len] = 0;
  return at;
}

static void options_of_a_file(void) {
  set_up();
  uint64_t releases = 0;
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = 1ull << 63);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = (1ull << 63) + 1);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = UINT64_MAX - 1);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = INT64_MAX);                              // too many pages of this size
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = INT64_MAX, .page_size = 1 << 20);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = (1ull << 40) + 1, .page_size = 1);       // 2^40 are allowed
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .page_size = (1ull << 30) + 1);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .page_size = 1ull << 32);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .page_size = 1ull << 63);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .page_size = UINT64_MAX);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .key = "");
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .key = text('k', 4097));
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .key = "k", .version = text('v', 1025));
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .key = NULL, .version = text('v', 1025));
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .data_path = "data");
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .index_path = "index");
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .key = "k", .data_path = "data");
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .key = "k", .mode = NEARFILE_EXACT);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .data_path = "d", .index_path = "i", .mode = NEARFILE_EXACT);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .mode = NEARFILE_EXACT, .flags = NEARFILE_FROZEN);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .mode = 2);
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .mode = UINT32_MAX);
  for (uint32_t bit = 1; bit != 0; bit <<= 1) {
    if (bit == NEARFILE_MAP || bit == NEARFILE_FROZEN || bit == NEARFILE_VERIFY_ALWAYS || bit == NEARFILE_TRUST_CLEAN ||
        bit == NEARFILE_READAHEAD_OFF) {
      continue;
    }
    EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .flags = bit);
    EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .flags = bit | NEARFILE_TRUST_CLEAN);
  }
  EXPECT_OPEN(NEARFILE_ERROR_ARGUMENT, .size = SIZE, .flags = UINT32_MAX);
  CHECK_EQ(far->releases, 0);

  // Just inside of each limit.
  nearfile_file *good[] = {
      OPENS(.size = SIZE, .key = text('k', 4096)),
      OPENS(.size = SIZE, .key = text('k', 4096), .version = text('v', 1024)),
      OPENS(.size = SIZE, .key = "k", .version = text('v', 1024)),
      OPENS(.size = SIZE, .key = "x"),
      OPENS(.size = SIZE, .page_size = 1),
      OPENS(.size = SIZE, .page_size = 1ull << 30),
      OPENS(.size = SIZE, .flags = NEARFILE_VERIFY_ALWAYS | NEARFILE_TRUST_CLEAN)};
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    CHECK_ALL(good[i], VERSION);
    nearfile_close(good[i]);
    CHECK_EQ(far->releases, ++releases);
  }
  tear_down(releases);
}

// The largest files open, or are read through where the file system cannot hold so long a mirror.
static void largest_files(void) {
  static const struct { uint64_t size, page_size; } cases[] = {
      {INT64_MAX, 1 << 30}, {INT64_MAX, 8 << 20}, {1ull << 40, 1}, {(1ull << 60) - 1, 1 << 20}, {(1ull << 50) + 1, 1 << 16}};
  nearfile_cache *large = nf_cache("cache", 0, 4096, 0);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    uint64_t size = cases[i].size;
    far_file *huge = far_new(size, VERSION, 1 << 30);
    nearfile_source over = far_source(huge, FAR_AT);
    nearfile_options options = {.struct_size = sizeof options, .key = "huge", .size = size, .page_size = cases[i].page_size};
    nearfile_file *opened = NULL;
    MUST(nearfile_open(large, &over, &options, &opened) == 0);
    CHECK_EQ(nearfile_size(opened), size);
    char byte;
    CHECK_EQ(nearfile_pread(opened, &byte, 1, size), 0);
    CHECK_EQ(nearfile_seek(opened, 0, NEARFILE_SEEK_END), size);
    CHECK_EQ(nearfile_seek(opened, -1, NEARFILE_SEEK_END), size - 1);
    EXPECT_ARGUMENT(nearfile_seek(opened, INT64_MAX, NEARFILE_SEEK_END));
    if (cases[i].page_size <= 1 << 20) {  // not a GiB for a byte, where it can be cached
      CHECK_PREAD(opened, 100, size - 50, VERSION);
      CHECK_PREAD(opened, 100, size / 2, VERSION);
    }
    uint64_t end = 0;
    int32_t cached = 1;
    CHECK_EQ(nearfile_extent(opened, UINT64_MAX, &end, &cached), 0);
    CHECK(end == size && cached == 0);
    CHECK_EQ(nearfile_discard(opened, 0, UINT64_MAX), 0);
    nearfile_close(opened);
    CHECK_EQ(huge->releases, 1);
    CHECK_EQ(huge->offences, 0);
    far_free(huge);
  }
  nearfile_cache_close(large);
}

static void options_of_a_cache(void) {
  set_up();
  char path[NF_PATH], taken[NF_PATH + 100];
  nf_path(path, "second");
#define EXPECT_CACHE(status, ...)                                                                                           \
  do {                                                                                                                      \
    nearfile_cache *second = cache;                                                                                         \
    EXPECT(nearfile_cache_open(path, &(nearfile_cache_options){.struct_size = sizeof(nearfile_cache_options), __VA_ARGS__}, \
                               &second), status);                                                                           \
    CHECK(second == NULL);                                                                                                  \
  } while (0)
  EXPECT_CACHE(NEARFILE_ERROR_ARGUMENT, .page_size = (1ull << 30) + 1);
  EXPECT_CACHE(NEARFILE_ERROR_ARGUMENT, .page_size = UINT64_MAX);
  EXPECT_CACHE(NEARFILE_ERROR_ARGUMENT, .max_fetch_bytes = (1ull << 30) + 1);
  EXPECT_CACHE(NEARFILE_ERROR_ARGUMENT, .max_fetch_bytes = UINT64_MAX);
  for (uint32_t bit = 1; bit != 0; bit <<= 1) EXPECT_CACHE(NEARFILE_ERROR_ARGUMENT, .flags = bit);
  EXPECT_CACHE(NEARFILE_ERROR_ARGUMENT, .when_full = 3);
  EXPECT_CACHE(NEARFILE_ERROR_ARGUMENT, .when_full = UINT32_MAX);
  EXPECT_CACHE(NEARFILE_ERROR_ARGUMENT, .workers = 1025);
  EXPECT_CACHE(NEARFILE_ERROR_ARGUMENT, .workers = UINT32_MAX);
  struct stat unmade;
  CHECK(stat(path, &unmade) != 0);

  // A file in the way, as the last or an earlier part of the path, however long.
  int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  MUST(fd >= 0 && write(fd, "mine", 4) == 4 && close(fd) == 0);
  nearfile_cache *second = cache;
  EXPECT_ARGUMENT(nearfile_cache_open(path, NULL, &second));
  CHECK(second == NULL);
  snprintf(taken, sizeof taken, "%s/below", path);
  EXPECT_ARGUMENT(nearfile_cache_open(taken, NULL, &second));
  snprintf(taken, sizeof taken, "%s/%s", path, text('x', 200));
  EXPECT_ARGUMENT(nearfile_cache_open(taken, NULL, &second));
  CHECK(stat(path, &unmade) == 0 && S_ISREG(unmade.st_mode) && unmade.st_size == 4);

  // Just inside of the limits; and a path that no directory can have is no failure.
  nearfile_cache_options most = {
      .struct_size = sizeof most, .page_size = 1 << 30, .max_fetch_bytes = 1 << 30, .wait_ms = UINT32_MAX};
  CHECK_EQ(nearfile_cache_open(nf_path(path, "third"), &most, &second), 0);
  nearfile_cache_close(second);
  CHECK_EQ(nearfile_cache_open(text('x', 4900), NULL, &second), 0);
  nearfile_file *uncached = nf_open(second, &source, "key", NULL, SIZE, 0);
  CHECK_ALL(uncached, VERSION);
  CHECK_ALL(uncached, VERSION);
  CHECK(nf_stats(uncached).passed_through > 0);
  CHECK(nearfile_data_path(uncached) == NULL && nearfile_index_path(uncached) == NULL);
  CHECK_EQ(nf_walk(uncached), 0);
  CHECK_EQ(nearfile_discard(uncached, 0, UINT64_MAX), 0);
  nearfile_close(uncached);
  nearfile_cache_close(second);
  tear_down(1);
}

static void sources(void) {
  set_up();
  nearfile_options options = {.struct_size = sizeof options, .size = SIZE};
  nearfile_file *other = file;
#define EXPECT_SOURCE(status, ...)                                                                                     \
  do {                                                                                                                 \
    other = file;                                                                                                      \
    EXPECT(nearfile_open(cache, &(nearfile_source){.struct_size = sizeof(nearfile_source), .user_data = &far->self,    \
                                                   .release = far_release, __VA_ARGS__}, &options, &other), status);   \
    CHECK(other == NULL);                                                                                              \
  } while (0)
  EXPECT_SOURCE(NEARFILE_ERROR_ARGUMENT, .flags = 0);
  EXPECT_SOURCE(NEARFILE_ERROR_ARGUMENT, .read = far_read);
  EXPECT_SOURCE(NEARFILE_ERROR_ARGUMENT, .seek = far_seek);
  EXPECT_SOURCE(NEARFILE_ERROR_ARGUMENT, .open = far_open, .close = far_close, .size = far_size);
  for (uint32_t bit = 1; bit != 0; bit <<= 1) {
    if (bit != NEARFILE_SOURCE_FORK_SAFE) EXPECT_SOURCE(NEARFILE_ERROR_ARGUMENT, .read_at = far_read_at, .flags = bit);
  }
  // The size is not known, and nobody can tell it.
  options.size = NEARFILE_SIZE_UNKNOWN;
  other = file;
  nearfile_source silent = {.struct_size = sizeof silent, .user_data = &far->self, .read_at = far_read_at, .release = far_release};
  int32_t status = nearfile_open(cache, &silent, &options, &other);
  CHECK(status == NEARFILE_ERROR_SOURCE || status == NEARFILE_ERROR_ARGUMENT);
  CHECK(other == NULL);
  CHECK_EQ(far->releases, 0);
  tear_down(0);
}

// ---- reads and seeks ---------------------------------------------------------------------------------------------------------

static void lengths_and_offsets(void) {
  set_up();
  char buf[100];
  static const size_t lengths[] = {SIZE_MAX, SIZE_MAX - 1, (size_t)1 << 63, ((size_t)1 << 63) + 1};
  static const uint64_t offsets[] = {0, 5, SIZE - 1, SIZE, UINT64_MAX};
  for (size_t l = 0; l < 4; l++) {
    EXPECT_ARGUMENT(nearfile_read(file, buf, lengths[l]));
    EXPECT_ARGUMENT(nearfile_read(file, NULL, lengths[l]));
    for (size_t o = 0; o < 5; o++) {
      EXPECT_ARGUMENT(nearfile_pread(file, buf, lengths[l], offsets[o]));
      EXPECT_ARGUMENT(nearfile_pread(NULL, buf, lengths[l], offsets[o]));
      EXPECT_ARGUMENT(nearfile_pread(file, NULL, lengths[l], offsets[o]));
    }
  }
  CHECK_EQ(nearfile_tell(file), 0);
  static const uint64_t past[] = {SIZE, SIZE + 1, 1ull << 40, INT64_MAX, 1ull << 63, UINT64_MAX - 1, UINT64_MAX};
  for (size_t i = 0; i < sizeof past / sizeof *past; i++) {
    uint64_t end = 1;
    int32_t cached = 1;
    buf[0] = 0x5A;
    CHECK_EQ(nearfile_pread(file, buf, sizeof buf, past[i]), 0);
    CHECK_EQ(buf[0], 0x5A);
    CHECK_EQ(nearfile_extent(file, past[i], &end, &cached), 0);
    CHECK(end == SIZE && cached == 0);
    for (size_t j = 0; j < sizeof past / sizeof *past; j++) CHECK_EQ(nearfile_discard(file, past[i], past[j]), 0);
  }
  CHECK(nf_is_cached(file, 0));

  static const int32_t whences[] = {-1, 3, 4, 5, 100, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < sizeof whences / sizeof *whences; i++) {
    EXPECT_ARGUMENT(nearfile_seek(file, 0, whences[i]));
    EXPECT_ARGUMENT(nearfile_seek(file, 10, whences[i]));
  }
  CHECK_EQ(nearfile_seek(file, 100, NEARFILE_SEEK_SET), 100);
  EXPECT_ARGUMENT(nearfile_seek(file, -1, NEARFILE_SEEK_SET));
  EXPECT_ARGUMENT(nearfile_seek(file, INT64_MIN, NEARFILE_SEEK_SET));
  EXPECT_ARGUMENT(nearfile_seek(file, -101, NEARFILE_SEEK_CUR));
  EXPECT_ARGUMENT(nearfile_seek(file, INT64_MAX, NEARFILE_SEEK_CUR));
  EXPECT_ARGUMENT(nearfile_seek(file, INT64_MIN, NEARFILE_SEEK_CUR));
  EXPECT_ARGUMENT(nearfile_seek(file, -SIZE - 1, NEARFILE_SEEK_END));
  EXPECT_ARGUMENT(nearfile_seek(file, INT64_MAX, NEARFILE_SEEK_END));
  EXPECT_ARGUMENT(nearfile_seek(file, INT64_MIN, NEARFILE_SEEK_END));
  CHECK_EQ(nearfile_tell(file), 100);

  static const int32_t levels[] = {-1, 5, 6, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) EXPECT_ARGUMENT(nearfile_set_log(NULL, NULL, levels[i]));
  tear_down(0);
}

// Options drawn from what is good and what is bad: never a crash, and an answer that is one.
static void random_options(void) {
  set_up();
  static const uint64_t numbers[] = {0, 1, 2, PAGE, SIZE, 4096, 1 << 20, 1 << 30, (1ull << 30) + 1, 1ull << 31, 1ull << 32,
                                     1ull << 40, (1ull << 62) + 3, INT64_MAX, 1ull << 63, UINT64_MAX - 1, UINT64_MAX};
  enum { NUMBERS = sizeof numbers / sizeof *numbers };
  const char *strings[] = {NULL, "", "key", "other", text('k', 4096), text('k', 4097), text('v', 1025)};
  uint64_t seed = 3;
  int opened = 0, refused = 0, failures = nf_failures;
  for (int i = 0; i < 1500 && nf_failures == failures; i++) {
    nearfile_options options = {.struct_size = sizeof options, .size = SIZE};
    for (uint64_t n = nf_below(&seed, 3) + 1; n > 0; n--) {
      switch (nf_below(&seed, 8)) {
        case 0: options.key = strings[nf_below(&seed, 7)]; break;
        case 1: options.version = strings[nf_below(&seed, 7)]; break;
        case 2: options.size = numbers[nf_below(&seed, NUMBERS)]; break;
        case 3: options.page_size = numbers[nf_below(&seed, NUMBERS)]; break;
        case 4: options.size_limit = numbers[nf_below(&seed, NUMBERS)]; break;
        case 5: options.mode = (uint32_t)numbers[nf_below(&seed, NUMBERS)]; break;
        case 6: options.flags = (uint32_t)numbers[nf_below(&seed, NUMBERS)] & ~(uint32_t)NEARFILE_FROZEN; break;
        default: options.struct_size = (size_t)numbers[nf_below(&seed, NUMBERS)]; break;
      }
    }
    // What it says that it has on top must be there to be looked at.
    if (options.struct_size > sizeof options && options.struct_size <= 4096) options.struct_size = sizeof options;
    nearfile_file *other = NULL;
    int32_t status = nearfile_open(cache, &source, &options, &other);
    if (status == 0) {
      opened++;
      MUST(other != NULL);
      uint64_t size = (uint64_t)nearfile_size(other);
      if (size <= SIZE) CHECK_PREAD(other, 200, size / 2, VERSION);
      nearfile_close(other);
    } else {
      refused++;
      CHECK(status < 0 && other == NULL);
      CHECK(strcmp(nearfile_status_name(status), "NEARFILE_UNKNOWN_STATUS") != 0 && status != NEARFILE_ERROR_INTERNAL);
      CHECK(nf_last_error().status == status && nf_last_error().message[0] != 0);
    }
  }
  CHECK(opened > 100 && refused > 100);
  CHECK_EQ(far->releases, opened);
  tear_down((uint64_t)opened);
}

// ---- what is told ------------------------------------------------------------------------------------------------------------

static void *fail_elsewhere(void *argument) {
  nearfile_error error = nf_last_error();
  CHECK_EQ(error.status, 0);  // nothing has failed here
  CHECK_EQ(error.os_errno, 0);
  CHECK_EQ(error.source_code, 0);
  CHECK_EQ(error.message[0], 0);
  CHECK_EQ(nearfile_seek(file, 0, 3333), NEARFILE_ERROR_ARGUMENT);
  CHECK(strstr(nf_last_error().message, "3333") != NULL);
  return argument;
}

static void the_last_error_is_the_threads_own(void) {
  set_up();
  CHECK_EQ(nearfile_seek(file, 0, 2222), NEARFILE_ERROR_ARGUMENT);
  nf_join(nf_thread(fail_elsewhere, NULL));
  CHECK(strstr(nf_last_error().message, "2222") != NULL);
  CHECK_PREAD(file, 10, 0, VERSION);  // a success does not clear it
  CHECK_EQ(nf_last_error().status, NEARFILE_ERROR_ARGUMENT);
  CHECK(strstr(nf_last_error().message, "2222") != NULL);
  tear_down(0);
}

static void statuses_have_names(void) {
  static const struct { int32_t status; const char *name; } known[] = {
      {0, "NEARFILE_OK"}, {-1, "NEARFILE_ERROR_ARGUMENT"}, {-2, "NEARFILE_ERROR_IO"}, {-3, "NEARFILE_ERROR_SOURCE"},
      {-4, "NEARFILE_ERROR_SHORT_SOURCE"}, {-5, "NEARFILE_ERROR_FROZEN"}, {-6, "NEARFILE_ERROR_FORKED"},
      {-7, "NEARFILE_ERROR_EXISTS"}, {-8, "NEARFILE_ERROR_CANCELLED"}, {-9, "NEARFILE_ERROR_UNSUPPORTED"},
      {-10, "NEARFILE_ERROR_NO_MEMORY"}, {-99, "NEARFILE_ERROR_INTERNAL"}};
  enum { KNOWN = sizeof known / sizeof *known };
  for (int i = 0; i < KNOWN; i++) {
    CHECK(strcmp(nearfile_status_name(known[i].status), known[i].name) == 0);
    CHECK(nearfile_status_message(known[i].status)[0] != 0);
    for (int j = 0; j < i; j++) {
      CHECK(strcmp(nearfile_status_message(known[i].status), nearfile_status_message(known[j].status)) != 0);
    }
  }
  static const int32_t unknown[] = {1, 2, -11, -12, -98, -100, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
    CHECK(strcmp(nearfile_status_name(unknown[i]), "NEARFILE_UNKNOWN_STATUS") == 0);
    CHECK(nearfile_status_message(unknown[i])[0] != 0);
  }
}

static void enough_was_tried(void) {
  printf("       %d bad arguments\n", expectations);
  CHECK(expectations >= 300);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(null_handles_and_pointers), NF_CASE(struct_sizes), NF_CASE(options_of_a_file), NF_CASE(largest_files),
      NF_CASE(options_of_a_cache), NF_CASE(sources), NF_CASE(lengths_and_offsets), NF_CASE(random_options),
      NF_CASE(the_last_error_is_the_threads_own), NF_CASE(statuses_have_names), NF_CASE(enough_was_tried)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
