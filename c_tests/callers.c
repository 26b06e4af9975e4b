// Guards that no argument, on no kind of file, gives anything but what the manual says: every function that takes an offset, a length,
// a count or a path, with all pairs of extreme values, on files that are kept, private, exact, frozen, empty, not kept at all, or
// copies at paths of their own. Then everything closed from another thread. (errors.c has each bad argument by itself, with its sentence.)
#include "nf_test.h"

enum { VERSION = 91, PAGE = 1000, SIZE = 10500 };

static const uint64_t extremes[] = {0, 1, PAGE - 1, PAGE, SIZE - 1, SIZE, SIZE + 1, (1ull << 31) - 1, 1ull << 31, UINT32_MAX,
                                    1ull << 32, 1ull << 40, 1ull << 62, INT64_MAX - 1, INT64_MAX, 1ull << 63, (1ull << 63) + 1,
                                    UINT64_MAX - SIZE, UINT64_MAX - 1, UINT64_MAX};
enum { EXTREMES = sizeof extremes / sizeof *extremes };

static uint64_t tried, refused;

// ---- kinds of files ----------------------------------------------------------------------------------------------------------

enum kind { KEYED, PRIVATE, EXACT, FROZEN, EMPTY, NOT_KEPT, AT_PATHS, KINDS };
static const char *const kind_names[KINDS] = {"keyed", "private", "exact", "frozen", "empty", "not kept", "at paths"};

static struct {
  nearfile_cache *cache, *nowhere;
  far_file *far, *nothing;
  nearfile_file *files[KINDS];
} all;

static nearfile_file *open_kind(enum kind kind) {
  char data[NF_PATH], index[NF_PATH];
  far_file *far = kind == EMPTY ? all.nothing : all.far;
  nearfile_source source = far_source(far, kind % 2 == 0 ? FAR_AT_OPEN : FAR_SEEK);
  nearfile_options options = {.struct_size = sizeof options, .size = far->size};
  if (kind == KEYED || kind == FROZEN || kind == EMPTY || kind == NOT_KEPT) options.key = kind_names[kind];
  if (kind == EXACT) options.mode = NEARFILE_EXACT;
  if (kind == AT_PATHS) options.data_path = nf_path(data, "data"), options.index_path = nf_path(index, "index");
  nearfile_file *file = NULL;
  MUST(nearfile_open(kind == NOT_KEPT ? all.nowhere : all.cache, &source, &options, &file) == 0);
  if (kind == FROZEN) CHECK_ALL(file, VERSION);
  if (kind == FROZEN) CHECK_EQ(nearfile_freeze(file), 0);
  return file;
}

static void open_all(void) {
  all.cache = nf_cache("cache", PAGE, 0, 0);
  MUST(nearfile_cache_open("/proc/nothing can be made here", NULL, &all.nowhere) == 0);
  all.far = far_new(SIZE, VERSION, PAGE), all.nothing = far_new(0, VERSION, PAGE);
  for (int kind = 0; kind < KINDS; kind++) all.files[kind] = open_kind((enum kind)kind);
}

static void check_all(void) {
  for (int kind = 0; kind < KINDS; kind++) CHECK_ALL(all.files[kind], VERSION);
  CHECK_EQ(all.far->offences + all.nothing->offences, 0);
}

static void close_all(void) {
  check_all();
  for (int kind = 0; kind < KINDS; kind++) nearfile_close(all.files[kind]);
  nearfile_cache_close(all.nowhere);
  nearfile_cache_close(all.cache);
  CHECK_EQ(all.far->opens, all.far->closes);
  far_free(all.far), far_free(all.nothing);
}

// ---- answers --------------------------------------------------------------------------------------------------------------------

// 0, or one of the statuses that are given here as bits: 1 << -status.
static void answered(int line, const char *call, int64_t got, int64_t most, uint32_t may) {
  tried++, refused += got < 0;
  bool known = got < 0 && got > -32 && (may >> -got & 1) != 0;
  if ((got >= 0 && got <= most) || known) return;
  char what[200];
  snprintf(what, sizeof what, "%s answered %lld (%s)", call, (long long)got, nearfile_status_name((int32_t)got));
  nf_fail(__FILE__, line, what);
}
#define MAY(status) (1u << -(status))
#define ANSWERS(call, most, may) answered(__LINE__, #call, call, most, may)

static unsigned char room[3 * SIZE];

static int64_t left_of(enum kind kind, uint64_t offset, uint64_t len) {
  uint64_t size = kind == EMPTY ? 0 : SIZE, left = offset < size ? size - offset : 0;
  return (int64_t)(len < left ? len : left);
}

// ---- offsets and lengths -----------------------------------------------------------------------------------------------------------

static void try_reads(enum kind kind, uint64_t offset, uint64_t len) {
  nearfile_file *file = all.files[kind];
  uint32_t may = len > INT64_MAX ? MAY(NEARFILE_ERROR_ARGUMENT) : 0;
  memset(room, 0xEE, sizeof room);
  int64_t got = nearfile_pread(file, room, (size_t)len, offset);
  answered(__LINE__, "nearfile_pread", got, left_of(kind, offset, len), may);
  if (got > 0) CHECK_BYTES(room, (size_t)got, offset, VERSION);
  CHECK(room[got > 0 ? got : 0] == 0xEE);
  if (len > 0) ANSWERS(nearfile_pread(file, NULL, (size_t)len, offset), -1, MAY(NEARFILE_ERROR_ARGUMENT));
  ANSWERS(nearfile_pread(NULL, room, (size_t)len, offset), -1, MAY(NEARFILE_ERROR_ARGUMENT));

  nearfile_range ranges[3] = {{.offset = offset, .buf = room, .len = (size_t)len}, {.offset = offset, .buf = room, .len = (size_t)len},
                              {.offset = 0, .buf = room + 2 * SIZE, .len = 10}};
  ANSWERS(nearfile_read_ranges(file, ranges, 3, sizeof *ranges), 0, may);
  CHECK(ranges[2].out_status == 0 && (int64_t)ranges[2].out_len == left_of(kind, 0, 10));  // whatever the others were
  CHECK_EQ(ranges[0].out_status, ranges[1].out_status);
  if (ranges[0].out_status == 0) CHECK_EQ(ranges[0].out_len, left_of(kind, offset, len));

  nearfile_pin *pin = (nearfile_pin *)room;
  ANSWERS(nearfile_pin_range(file, offset, (size_t)len, &pin), 0, 0);
  CHECK_EQ(nearfile_pin_size(pin), left_of(kind, offset, len));
  CHECK_BYTES(nearfile_pin_data(pin), nearfile_pin_size(pin), offset, VERSION);
  nearfile_pin_release(pin);
}

static int32_t progress_is_sane(void *user_data, uint64_t done, uint64_t total) {
  (void)user_data;
  CHECK(done <= total && total <= SIZE);
  return 0;
}

static void try_ranges(enum kind kind, uint64_t offset, uint64_t len) {
  nearfile_file *file = all.files[kind];
  ANSWERS(nearfile_prefetch(file, offset, len, 0, progress_is_sane, NULL), 0, 0);
  ANSWERS(nearfile_discard(file, offset, len), 0, 0);
  uint64_t end = 1;
  int32_t cached = 7;
  ANSWERS(nearfile_extent(file, offset, &end, &cached), 0, 0);
  uint64_t size = (uint64_t)nearfile_size(file);
  CHECK(end <= size && (end > offset || offset >= size) && (cached == 0 || cached == 1));
}

static void try_positions(enum kind kind, uint64_t offset, int32_t whence) {
  nearfile_file *file = all.files[kind];
  CHECK_EQ(nearfile_seek(file, 7, NEARFILE_SEEK_SET), 7);
  int64_t by = (int64_t)offset, base = whence == NEARFILE_SEEK_SET ? 0 : whence == NEARFILE_SEEK_CUR ? 7 : nearfile_size(file), to;
  bool good = whence >= 0 && whence <= 2 && !__builtin_add_overflow(base, by, &to) && to >= 0;
  int64_t got = nearfile_seek(file, by, whence);
  answered(__LINE__, "nearfile_seek", got, good ? INT64_MAX : -1, good ? 0 : MAY(NEARFILE_ERROR_ARGUMENT));
  if (good) CHECK_EQ(got, to);
  CHECK_EQ(nearfile_tell(file), good ? to : 7);
  int64_t n = nearfile_read(file, room, 100);
  answered(__LINE__, "nearfile_read", n, left_of(kind, good ? (uint64_t)to : 7, 100), 0);
  CHECK_EQ(nearfile_tell(file), (good ? to : 7) + n);
}

static void offsets_and_lengths(void) {
  static const int32_t whences[] = {INT32_MIN, -1, 0, 1, 2, 3, INT32_MAX};
  open_all();
  for (int kind = 0; kind < KINDS; kind++) {
    for (int i = 0; i < EXTREMES; i++) {
      for (int j = 0; j < EXTREMES; j++) {
        try_reads((enum kind)kind, extremes[i], extremes[j]);
        try_ranges((enum kind)kind, extremes[i], extremes[j]);
      }
      for (size_t w = 0; w < sizeof whences / sizeof *whences; w++) {
        try_positions((enum kind)kind, extremes[i], whences[w]);
        try_positions((enum kind)kind, 0 - extremes[i], whences[w]);
      }
    }
    CHECK_ALL(all.files[kind], VERSION);
  }
  for (int i = 0; i < EXTREMES; i++) {
    ANSWERS(nearfile_cache_trim(all.cache, extremes[i]), 0, 0);
    ANSWERS(nearfile_cache_trim(all.nowhere, extremes[i]), 0, 0);
  }
  close_all();
}

// ---- options: all pairs of extreme values -----------------------------------------------------------------------------------------

static void options(void) {
  open_all();
  nearfile_source source = far_source(all.far, FAR_AT);
  uint64_t opened = 0;
  for (int i = 0; i < EXTREMES; i++) {
    for (int j = 0; j < EXTREMES; j++) {
      nearfile_options file_options[] = {
          {.struct_size = sizeof *file_options, .size = extremes[i], .page_size = extremes[j]},
          {.struct_size = sizeof *file_options, .size = SIZE, .page_size = extremes[i], .size_limit = extremes[j]},
          {.struct_size = sizeof *file_options, .size = extremes[i], .mode = (uint32_t)extremes[j]},
          {.struct_size = sizeof *file_options, .size = extremes[i], .page_size = PAGE, .flags = (uint32_t)extremes[j], .key = "k"}};
      for (size_t k = 0; k < sizeof file_options / sizeof *file_options; k++) {
        nearfile_file *file = all.files[KEYED];
        if (file_options[k].size == NEARFILE_SIZE_UNKNOWN) file_options[k].size--;
        int32_t status = nearfile_open(all.cache, &source, &file_options[k], &file);
        answered(__LINE__, "nearfile_open", status, 0, MAY(NEARFILE_ERROR_ARGUMENT) | MAY(NEARFILE_ERROR_NO_MEMORY));
        CHECK((status == 0) == (file != NULL));
        opened += status == 0;
        nearfile_close(file);
      }
      char path[NF_PATH];
      nearfile_cache *cache = all.cache;
      nearfile_cache_options cache_options = {.struct_size = sizeof cache_options, .size_limit = extremes[i], .min_free = extremes[j]};
      if (i % 2 == 0) cache_options.page_size = extremes[j], cache_options.max_fetch_bytes = extremes[i], cache_options.min_free = 0;
      int32_t status = nearfile_cache_open(nf_path(path, "other cache"), &cache_options, &cache);
      answered(__LINE__, "nearfile_cache_open", status, 0, MAY(NEARFILE_ERROR_ARGUMENT));
      CHECK((status == 0) == (cache != NULL));
      nearfile_cache_close(cache);
    }
  }
  CHECK(opened > 300);
  close_all();
}

// ---- paths and keys ---------------------------------------------------------------------------------------------------------------

static const char *long_text(size_t len) {
  static char texts[4][10000];
  static int next;
  char *at = texts[next++ % 4];
  memset(at, 'p', len);
  at[len] = 0;
  return at;
}

static void paths_and_keys(void) {
  open_all();
  char made[NF_PATH], under[NF_PATH + 20];
  MUST(mkdir(nf_path(made, "a directory"), 0700) == 0);
  snprintf(under, sizeof under, "%s/no such/path", made);
  const char *const paths[] = {NULL, "", "/", ".", "..", made, under, "/proc/self/nothing", "/dev/null", "/dev/full",
                               long_text(255), long_text(256), long_text(4095), long_text(4096), long_text(9000), "\xff\xfe\n"};
  enum { PATHS = sizeof paths / sizeof *paths };
  const uint32_t may = MAY(NEARFILE_ERROR_ARGUMENT) | MAY(NEARFILE_ERROR_IO) | MAY(NEARFILE_ERROR_EXISTS) |
                       MAY(NEARFILE_ERROR_UNSUPPORTED);
  MUST(chdir(nf_dir) == 0);
  nearfile_source source = far_source(all.far, FAR_AT);
  for (int i = 0; i < PATHS; i++) {
    for (int kind = 0; kind < KINDS; kind++) {
      nearfile_file *dup = NULL;
      MUST(nearfile_dup(all.files[kind], &dup) == 0);
      ANSWERS(nearfile_preserve(dup, paths[i]), 0, may);
      nearfile_close(dup);
    }
    ANSWERS(nearfile_cache_remove(all.cache, paths[i]), 0, MAY(NEARFILE_ERROR_ARGUMENT));
    ANSWERS(nearfile_cache_remove(all.nowhere, paths[i]), 0, MAY(NEARFILE_ERROR_ARGUMENT));
    for (int j = 0; j < PATHS; j++) {
      nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .data_path = paths[i], .index_path = paths[j]};
      for (uint32_t flags = 0; flags <= NEARFILE_FROZEN; flags += NEARFILE_FROZEN) {
        nearfile_file *file = all.files[KEYED];
        options.flags = flags;
        int32_t status = nearfile_open(i % 2 ? all.cache : NULL, flags != 0 && j % 2 ? NULL : &source, &options, &file);
        answered(__LINE__, "nearfile_open of paths", status, 0, may);
        CHECK((status == 0) == (file != NULL));
        if (status == 0 && flags == 0) CHECK_PREAD(file, 10, 0, VERSION);
        nearfile_close(file);
      }
    }
    nearfile_cache *cache = all.cache;
    if (i == 0 || strcmp(paths[i], "/") == 0) continue;  // the user's own cache; the root of the machine
    ANSWERS(nearfile_cache_open(paths[i], NULL, &cache), 0, MAY(NEARFILE_ERROR_ARGUMENT));
    nearfile_cache_close(cache != all.cache ? cache : NULL);
  }
  struct stat devices[2];
  MUST(stat("/dev/null", &devices[0]) == 0 && stat("/dev/full", &devices[1]) == 0);
  CHECK(S_ISCHR(devices[0].st_mode) && S_ISCHR(devices[1].st_mode));
  CHECK(access("/.index", F_OK) != 0);
  close_all();
}

// ---- ends ---------------------------------------------------------------------------------------------------------------------------

struct ends {
  nearfile_pin *pin;
  nearfile_file *dup;
};

static void *end_elsewhere(void *argument) {
  struct ends *ends = argument;
  nearfile_close(ends->dup);
  for (int kind = 0; kind < KINDS; kind++) nearfile_close(all.files[kind]);
  CHECK_BYTES(nearfile_pin_data(ends->pin), nearfile_pin_size(ends->pin), 100, VERSION);
  nearfile_cache_close(all.cache);
  nearfile_cache_close(all.nowhere);
  nearfile_pin_release(ends->pin);
  return NULL;
}

// Everything is ended on another thread than it was made on, which itself has ended; the cache before its pin.
static void ended_by_another_thread(void) {
  for (int again = 0; again < 20; again++) {
    open_all();
    check_all();
    struct ends ends = {NULL, NULL};
    CHECK_EQ(nearfile_pin_range(all.files[KEYED], 100, 2 * PAGE, &ends.pin), 0);
    CHECK_EQ(nearfile_dup(all.files[PRIVATE], &ends.dup), 0);
    nf_join(nf_thread(end_elsewhere, &ends));
    CHECK_EQ(all.far->opens, all.far->closes);
    CHECK_EQ(all.far->releases + all.nothing->releases, KINDS);
    far_free(all.far), far_free(all.nothing);
  }
}

// Handles and caches in every order of their ends.
static void ends_in_every_order(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  for (int order = 0; order < 24; order++) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, order % 2 ? "key" : NULL), *dup = NULL;
    nearfile_pin *pin = NULL;
    MUST(nearfile_dup(file, &dup) == 0 && nearfile_pin_range(dup, 0, SIZE, &pin) == 0);
    bool ended[4] = {false};
    for (int left = 4, code = order; left > 0; code /= left--) {
      int pick = code % left, at = 0;
      while (ended[at] || pick-- > 0) at++;
      ended[at] = true;
      if (at == 0) nearfile_close(file);
      if (at == 1) nearfile_close(dup);
      if (at == 2) nearfile_pin_release(pin);
      if (at == 3) nearfile_cache_close(cache);
      if (!ended[0]) CHECK_ALL(file, VERSION);
      if (!ended[1]) CHECK_ALL(dup, VERSION);
      if (!ended[2]) CHECK_BYTES(nearfile_pin_data(pin), SIZE, 0, VERSION);
    }
    CHECK_EQ(far->releases, order + 1);
    CHECK_EQ(far->opens, far->closes);
  }
  CHECK_EQ(far->offences, 0);
  far_free(far);
}

static void enough_was_tried(void) {
  printf("       %" PRIu64 " calls with extreme arguments, %" PRIu64 " of them refused\n", tried, refused);
  CHECK(tried >= 10000 && refused >= 300);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(offsets_and_lengths),     NF_CASE(options),             NF_CASE(paths_and_keys),
                                         NF_CASE(ended_by_another_thread), NF_CASE(ends_in_every_order), NF_CASE(enough_was_tried)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
