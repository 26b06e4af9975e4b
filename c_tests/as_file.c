// Guards that a near copy reads, seeks and tells as a POSIX file does, at every page size, that its extents and its disk use say
// what is really kept, and that dropped pages come back right. Random operations are compared with a plain model.
#include "nf_test.h"

enum { VERSION = 7 };

// ---- one operation at a time -------------------------------------------------------------------------------------------

static void check_read(nearfile_file *file, size_t len, uint64_t at) {
  uint64_t size = (uint64_t)nearfile_size(file), left = at < size ? size - at : 0;
  size_t expected = len < left ? len : (size_t)left;
  unsigned char *buf = malloc(len + 1);
  MUST(buf != NULL);
  buf[len] = 0xEE;
  CHECK_EQ(nearfile_tell(file), at);
  int64_t got = nearfile_read(file, buf, len);
  CHECK_EQ(got, expected);
  if (got == (int64_t)expected) CHECK_BYTES(buf, expected, at, VERSION);
  CHECK_EQ(buf[len], 0xEE);
  CHECK_EQ(nearfile_tell(file), at + expected);
  free(buf);
}

static void check_refused_seek(nearfile_file *file, int64_t offset, int32_t whence) {
  int64_t before = nearfile_tell(file);
  CHECK_EQ(nearfile_seek(file, offset, whence), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_tell(file), before);
}

// A file of every size around its page size, walked over end and edges.
static void check_file(nearfile_cache *cache, uint64_t size, uint64_t page_size, enum far_kind kind, const char *key) {
  far_file *far = far_new(size, VERSION, page_size);
  nearfile_source source = far_source(far, kind);
  nearfile_options options = {.struct_size = sizeof options, .key = key, .version = "edges", .size = size, .page_size = page_size};
  nearfile_file *file = NULL;
  MUST(nearfile_open(cache, &source, &options, &file) == 0);
  CHECK_EQ(nearfile_size(file), size);
  CHECK_EQ(nearfile_page_size(file), page_size);
  CHECK_EQ(nearfile_tell(file), 0);
  CHECK_EQ(far->reads + far->opens, 0);
  CHECK_EQ(nf_walk(file), 0);

  // Past the end: 0, no source, the position stays where it was put and does not wrap.
  unsigned char byte = 0xEE;
  CHECK_EQ(nearfile_pread(file, &byte, 1, size), 0);
  CHECK_EQ(nearfile_pread(file, &byte, 1, size + 1), 0);
  CHECK_EQ(nearfile_pread(file, &byte, 1, UINT64_MAX), 0);
  CHECK_EQ(nearfile_seek(file, 0, NEARFILE_SEEK_END), size);
  CHECK_EQ(nearfile_read(file, &byte, 1), 0);
  CHECK_EQ(nearfile_read(file, &byte, 1), 0);
  CHECK_EQ(nearfile_tell(file), size);
  CHECK_EQ(nearfile_seek(file, 1000, NEARFILE_SEEK_END), size + 1000);
  CHECK_EQ(nearfile_read(file, &byte, 1), 0);
  CHECK_EQ(nearfile_tell(file), size + 1000);
  CHECK_EQ(nearfile_seek(file, INT64_MAX, NEARFILE_SEEK_SET), INT64_MAX);
  CHECK_EQ(nearfile_read(file, &byte, 1), 0);
  CHECK_EQ(nearfile_tell(file), INT64_MAX);
  CHECK_EQ(byte, 0xEE);
  CHECK_EQ(far->reads + far->opens, 0);

  // Refused, and the position stays.
  CHECK_EQ(nearfile_seek(file, 5, NEARFILE_SEEK_SET), 5);
  check_refused_seek(file, -1, NEARFILE_SEEK_SET);
  check_refused_seek(file, INT64_MIN, NEARFILE_SEEK_SET);
  check_refused_seek(file, -6, NEARFILE_SEEK_CUR);
  check_refused_seek(file, INT64_MIN, NEARFILE_SEEK_CUR);
  check_refused_seek(file, INT64_MAX, NEARFILE_SEEK_CUR);
  check_refused_seek(file, -(int64_t)size - 1, NEARFILE_SEEK_END);
  check_refused_seek(file, INT64_MIN, NEARFILE_SEEK_END);
  if (size > 0) check_refused_seek(file, INT64_MAX, NEARFILE_SEEK_END);
  check_refused_seek(file, 0, 3);
  check_refused_seek(file, 0, -1);
  CHECK_EQ(nearfile_seek(file, -5, NEARFILE_SEEK_CUR), 0);
  CHECK_EQ(nearfile_seek(file, -(int64_t)size, NEARFILE_SEEK_END), 0);

  // Nothing asked is nothing read, with or without a buffer.
  CHECK_EQ(nearfile_read(file, NULL, 0), 0);
  CHECK_EQ(nearfile_pread(file, NULL, 0, size / 2), 0);
  CHECK_EQ(far->reads, 0);

  // Edges of pages and of the file; then all of it by a loop that must end.
  uint64_t edges[] = {0, 1, page_size - 1, page_size, page_size + 1, size / 2, size - 1, size, size + 1};
  for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) {
    if (edges[i] > size + 1) continue;
    CHECK_EQ(nearfile_seek(file, (int64_t)edges[i], NEARFILE_SEEK_SET), edges[i]);
    check_read(file, 1, edges[i]);
    CHECK_PREAD(file, 3, edges[i], VERSION);
    CHECK_PREAD(file, (size_t)page_size + 2, edges[i], VERSION);
    CHECK_EQ(nearfile_tell(file), edges[i] + (edges[i] < size));  // pread does not move it
  }
  CHECK_EQ(nearfile_seek(file, 0, NEARFILE_SEEK_SET), 0);
  uint64_t at = 0;
  size_t part = size < 1000 ? 1 : (size_t)(size / 100 + 7);
  int failures = nf_failures;
  while (at < size && nf_failures == failures) {
    check_read(file, part, at);
    at += part < size - at ? part : size - at;
  }
  check_read(file, part, size);

  nearfile_stats stats = nf_stats(file);
  CHECK_EQ(stats.cached_bytes, size);
  CHECK_EQ(stats.cached_pages, far_pages(far));
  CHECK_EQ(stats.pages_fetched, far_pages(far));
  CHECK_EQ(nf_walk(file), size);
  if (size > 0) CHECK_ONCE(far);
  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  CHECK_EQ(far->opens, far->closes);
  CHECK_EQ(far->offences, 0);
  far_free(far);
}

static void ends_and_edges(void) {
  static const uint64_t page_sizes[] = {1, 7, 4096, 1 << 20, 3 << 20};
  nearfile_cache *cache = nf_cache("cache", 0, 64 << 10, 0);  // the two largest come in pieces
  for (size_t p = 0; p < sizeof page_sizes / sizeof *page_sizes; p++) {
    uint64_t page = page_sizes[p];
    uint64_t sizes[] = {0, 1, 2, page - 1, page, page + 1, 3 * page + page / 2, 20000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
      char key[40];
      snprintf(key, sizeof key, "%" PRIu64 "/%" PRIu64, page, sizes[s]);
      if (page < 100 && sizes[s] == 20000) sizes[s] = 500 * page + 1;
      check_file(cache, sizes[s], page, (enum far_kind)((p + s) % 4), s % 2 ? key : NULL);
    }
  }
  nearfile_cache_close(cache);
}

// A page of many pieces, each of max_fetch_bytes at most; and a fetch of many pages, likewise.
static void pieces(void) {
  static const uint64_t max_fetches[] = {1, 100, 4096, 65537};
  for (size_t i = 0; i < sizeof max_fetches / sizeof *max_fetches; i++) {
    char name[20];
    snprintf(name, sizeof name, "cache%zu", i);
    uint64_t size = max_fetches[i] == 1 ? 600 : 300000, page = size / 2 + 11;
    nearfile_cache *cache = nf_cache(name, page, max_fetches[i], 0);
    far_file *far = far_new(size, VERSION, page);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "pieces");
    CHECK_PREAD(file, 5, page + 3, VERSION);
    CHECK(nf_is_cached(file, page) && nf_is_cached(file, size - 1) && !nf_is_cached(file, 0));
    uint64_t second = size - page;
    CHECK_EQ(far->bytes, second);
    CHECK_EQ(far->reads, (second + max_fetches[i] - 1) / max_fetches[i]);
    CHECK_PREAD(file, size, 0, VERSION);
    CHECK_ONCE(far);
    uint64_t reads = far->reads;
    CHECK_PREAD(file, size, 0, VERSION);
    CHECK_EQ(far->reads, reads);
    nearfile_close(file);
    far_free(far);
    nearfile_cache_close(cache);
  }

  nearfile_cache *cache = nf_cache("runs", 1000, 8000, 0);
  far_file *far = far_new(100500, VERSION, 1000);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "runs");
  CHECK_PREAD(file, 100500, 0, VERSION);
  CHECK_ONCE(far);
  CHECK_EQ(far->reads, (101 + 7) / 8);  // neighbours are one read
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

static void unknown_size(void) {
  nearfile_cache *cache = nf_cache("cache", 4096, 0, 0);
  for (int kind = FAR_AT; kind <= FAR_SEEK_OPEN; kind++) {
    for (int by_callback = 0; by_callback < 2; by_callback++) {
      far_file *far = far_new(12345, VERSION, 4096);
      nearfile_source source = far_source(far, (enum far_kind)kind);
      if (by_callback) source.size = far_size;
      else source.seek = far_seek;
      nearfile_file *file = nf_open(cache, &source, NULL, NULL, NEARFILE_SIZE_UNKNOWN, 0);
      CHECK_EQ(nearfile_size(file), 12345);
      CHECK_EQ(far->sizes, by_callback);
      CHECK_EQ(far->reads, 0);
      CHECK_ALL(file, VERSION);
      CHECK_ONCE(far);
      CHECK_EQ(far->sizes, by_callback);
      nearfile_close(file);
      CHECK_EQ(far->opens, far->closes);
      CHECK_EQ(far->releases, 1);
      CHECK_EQ(far->offences, 0);
      far_free(far);
    }
  }
  // Known sizes are not asked for.
  far_file *far = far_new(12345, VERSION, 4096);
  nearfile_source source = far_source(far, FAR_AT);
  source.size = far_size;
  nearfile_file *file = nf_open(cache, &source, NULL, NULL, 12345, 0);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(far->sizes, 0);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// A handle's position is its own; what it caches and the source are shared, and the last handle releases.
static void dup_handles(void) {
  nearfile_cache *cache = nf_cache("cache", 512, 0, 0);
  far_file *far = far_new(10000, VERSION, 512);
  nearfile_file *first = nf_open_far(cache, far, FAR_AT_OPEN, "dup"), *second = NULL, *third = NULL;
  CHECK_EQ(nearfile_seek(first, 5000, NEARFILE_SEEK_SET), 5000);
  MUST(nearfile_dup(first, &second) == 0 && second != NULL);
  CHECK_EQ(nearfile_tell(second), 0);
  check_read(second, 700, 0);
  check_read(first, 900, 5000);
  CHECK_EQ(nearfile_tell(second), 700);
  uint64_t reads = far->reads;
  check_read(second, 300, 700);
  CHECK_PREAD(first, 1000, 0, VERSION);
  CHECK_EQ(far->reads, reads);  // one near copy
  MUST(nearfile_dup(second, &third) == 0);
  nearfile_close(first);
  CHECK_EQ(far->releases, 0);
  CHECK_EQ(nearfile_size(second), 10000);
  check_read(second, 100, 1000);
  nearfile_close(second);
  CHECK_EQ(far->releases, 0);
  CHECK_ALL(third, VERSION);
  CHECK_ONCE(far);
  nearfile_close(third);
  CHECK_EQ(far->releases, 1);
  CHECK_EQ(far->opens, far->closes);
  CHECK_EQ(far->offences, 0);
  far_free(far);
  nearfile_cache_close(cache);
}

// A file outlives the handle of its cache.
static void outlives_its_cache(void) {
  nearfile_cache *cache = nf_cache("cache", 512, 0, 0);
  far_file *far = far_new(10000, VERSION, 512);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "a key"), *other = NULL;
  nearfile_cache_close(cache);
  CHECK_ALL(file, VERSION);
  MUST(nearfile_dup(file, &other) == 0);
  nearfile_close(file);
  CHECK_EQ(nearfile_discard(other, 0, UINT64_MAX), 0);
  CHECK_ALL(other, VERSION);
  nearfile_close(other);
  CHECK_EQ(far->releases, 1);
  far_free(far);
}

// ---- what is kept ------------------------------------------------------------------------------------------------------

static uint64_t disk_use(nearfile_file *file) {
  struct stat stat_;
  const char *path = nearfile_data_path(file);
  MUST(path != NULL);
  MUST(stat(path, &stat_) == 0);
  CHECK_EQ(stat_.st_size, nearfile_size(file));
  return (uint64_t)stat_.st_blocks * 512;
}

// Disk use is what is cached, give or take a file-system block at an edge; what is dropped goes back to the file system.
static void disk_use_follows_pages(void) {
  enum { PAGE = 64 << 10, PAGES = 64, SLACK = 32 << 10 };
  for (int keyed = 0; keyed < 2; keyed++) {
    nearfile_cache *cache = nf_cache(keyed ? "keyed" : "private", PAGE, 0, 0);
    far_file *far = far_new((uint64_t)PAGE * PAGES - 100, VERSION, PAGE);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, keyed ? "disk" : NULL);
    CHECK(disk_use(file) <= SLACK);
    CHECK_PREAD(file, 1, 10 * PAGE + 5, VERSION);
    CHECK(disk_use(file) >= PAGE && disk_use(file) <= PAGE + SLACK);
    CHECK_ALL(file, VERSION);
    CHECK(disk_use(file) >= PAGE * (PAGES - 1) && disk_use(file) <= PAGE * PAGES + SLACK);

    // Every second page away, then the rest.
    for (uint64_t page = 0; page < PAGES; page += 2) CHECK_EQ(nearfile_discard(file, page * PAGE, PAGE), 0);
    CHECK(disk_use(file) >= PAGE * (PAGES / 2 - 1) && disk_use(file) <= PAGE * PAGES / 2 + SLACK);
    CHECK_EQ(nf_walk(file), far->size - (uint64_t)PAGE * PAGES / 2);
    CHECK_EQ(nf_stats(file).cached_bytes, nf_walk(file));
    CHECK_EQ(nearfile_discard(file, 0, far->size), 0);
    CHECK(disk_use(file) <= SLACK);
    CHECK_EQ(nf_walk(file), 0);
    CHECK_EQ(nf_stats(file).cached_pages, 0);
    nearfile_close(file);
    far_free(far);
    nearfile_cache_close(cache);
  }
}

// The mirror is a plain file: where the extents say cached, byte n is byte n.
static void mirror_is_the_file(void) {
  nearfile_cache *cache = nf_cache("cache", 1000, 0, 0);
  far_file *far = far_new(50500, VERSION, 1000);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "mirror");
  uint64_t seed = 1;
  for (int i = 0; i < 20; i++) CHECK_PREAD(file, 1500, nf_below(&seed, far->size), VERSION);
  int fd = open(nearfile_data_path(file), O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0);
  uint64_t at = 0, seen = 0;
  while (at < far->size) {
    uint64_t end = 0;
    int32_t cached = 0;
    MUST(nearfile_extent(file, at, &end, &cached) == 0);
    unsigned char *buf = malloc((size_t)(end - at));
    MUST(buf != NULL);
    CHECK_EQ(pread(fd, buf, (size_t)(end - at), (off_t)at), end - at);
    if (cached) CHECK_BYTES(buf, (size_t)(end - at), at, VERSION);
    seen += cached ? end - at : 0;
    free(buf);
    at = end;
  }
  CHECK(seen > 10000);
  close(fd);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// Only what lies wholly in the range goes; a range up to the end takes the short last page.
static void discard_and_refetch(void) {
  enum { PAGE = 100, SIZE = 1050 };
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "discard");
  static const struct { uint64_t offset, len, first, gone; } cases[] = {
      {0, 0, 0, 0},        {0, 99, 0, 0},      {0, 100, 0, 1},     {1, 100, 0, 0},       {1, 199, 1, 1},
      {250, 500, 3, 4},    {1000, 50, 10, 1},  {1000, 49, 0, 0},   {1000, 5000, 10, 1},  {900, UINT64_MAX, 9, 2},
      {1050, 100, 0, 0},   {5000, 10, 0, 0},   {UINT64_MAX, 1, 0, 0}, {UINT64_MAX - 5, UINT64_MAX, 0, 0}, {0, UINT64_MAX, 0, 11}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    CHECK_ALL(file, VERSION);
    far_forget(far);
    CHECK_EQ(nearfile_discard(file, cases[i].offset, cases[i].len), 0);
    for (uint64_t page = 0; page < 11; page++) {
      bool gone = page >= cases[i].first && page < cases[i].first + cases[i].gone;
      CHECK_EQ(nf_is_cached(file, page * PAGE), !gone);
    }
    CHECK_EQ(nf_stats(file).cached_pages, 11 - cases[i].gone);
    CHECK_ALL(file, VERSION);
    for (uint64_t page = 0; page < 11; page++) {
      bool gone = page >= cases[i].first && page < cases[i].first + cases[i].gone;
      CHECK_EQ(far->page_reads[page], gone);
    }
  }
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- random operations against a model ---------------------------------------------------------------------------------

enum { HANDLES = 4, MOST_PAGES = 40000 };

struct model {
  nearfile_file *handles[HANDLES];
  uint64_t positions[HANDLES];
  uint64_t size, page;
  unsigned char touched[MOST_PAGES];  // 1: read since it was dropped last, so it must be there
};

static void model_touch(struct model *model, uint64_t offset, uint64_t count) {
  if (count == 0) return;
  for (uint64_t page = offset / model->page; page <= (offset + count - 1) / model->page; page++) model->touched[page] = 1;
}

static void model_check_cached(struct model *model) {
  uint64_t at = 0, cached_pages = 0;
  while (at < model->size) {
    uint64_t end = 0;
    int32_t cached = -1;
    MUST(nearfile_extent(model->handles[0], at, &end, &cached) == 0);
    for (uint64_t page = at / model->page; page * model->page < end; page++) {
      if (model->touched[page] && !cached) nf_fail(__FILE__, __LINE__, "a page that was read is not called cached");
      cached_pages += (uint64_t)cached;
    }
    at = end;
  }
  nearfile_stats stats = nf_stats(model->handles[0]);
  CHECK_EQ(stats.cached_bytes, nf_walk(model->handles[0]));
  CHECK_EQ(stats.cached_pages, cached_pages);
}

static uint64_t random_offset(struct model *model, uint64_t *seed) {
  switch (nf_below(seed, 4)) {
    case 0: return nf_below(seed, model->size + 20);
    case 1: return nf_below(seed, model->size / model->page + 2) * model->page + nf_below(seed, 3);
    case 2: return model->size - nf_below(seed, model->size < 50 ? model->size : 50);
    default: return nf_below(seed, model->size);
  }
}

static size_t random_len(struct model *model, uint64_t *seed) {
  uint64_t most = model->page * 3 < 3000 ? 3000 : model->page * 3 < 20000 ? model->page * 3 : 20000;
  return (size_t)(nf_below(seed, 3) == 0 ? nf_below(seed, 10) : nf_below(seed, most));
}

static void model_seek(struct model *model, size_t handle, uint64_t *seed) {
  uint64_t bases[] = {0, model->positions[handle], model->size};
  int32_t whence = (int32_t)nf_below(seed, 3);
  int64_t target = (int64_t)random_offset(model, seed) - (nf_below(seed, 10) == 0 ? (int64_t)model->size : 0);
  int64_t offset = target - (int64_t)bases[whence];
  int64_t got = nearfile_seek(model->handles[handle], offset, whence);
  CHECK_EQ(got, target < 0 ? NEARFILE_ERROR_ARGUMENT : target);
  if (target >= 0) model->positions[handle] = (uint64_t)target;
}

static void model_discard(struct model *model, uint64_t *seed) {
  uint64_t from = random_offset(model, seed), len = random_len(model, seed);
  CHECK_EQ(nearfile_discard(model->handles[nf_below(seed, HANDLES)], from, len), 0);
  for (uint64_t page = (from + model->page - 1) / model->page; page * model->page < model->size; page++) {
    uint64_t end = (page + 1) * model->page < model->size ? (page + 1) * model->page : model->size;
    if (end > from + len) break;
    model->touched[page] = 0;
    if (nf_is_cached(model->handles[0], page * model->page)) nf_fail(__FILE__, __LINE__, "a dropped page is called cached");
  }
}

static void random_run(uint64_t size, uint64_t page, uint64_t max_fetch, enum far_kind kind, bool keyed, int count, uint64_t seed) {
  static struct model model;
  memset(&model, 0, sizeof model);
  model.size = size, model.page = page;
  MUST(size / page + 1 < MOST_PAGES);
  char name[60];
  snprintf(name, sizeof name, "cache-%" PRIu64 "-%" PRIu64 "-%d", size, page, keyed);
  nearfile_cache *cache = nf_cache(name, page, max_fetch, 0);
  far_file *far = far_new(size, VERSION, page);
  model.handles[0] = nf_open_far(cache, far, kind, keyed ? "model" : NULL);
  for (int i = 1; i < HANDLES; i++) MUST(nearfile_dup(model.handles[0], &model.handles[i]) == 0);
  unsigned char *buf = malloc(20001);
  MUST(buf != NULL);

  int failures = nf_failures;
  for (int op = 0; op < count && nf_failures == failures; op++) {
    size_t handle = (size_t)nf_below(&seed, HANDLES);
    nearfile_file *file = model.handles[handle];
    uint64_t *position = &model.positions[handle];
    uint64_t kind_of_op = nf_below(&seed, 100);
    if (kind_of_op < 35) {
      size_t len = random_len(&model, &seed);
      uint64_t left = *position < size ? size - *position : 0, expected = len < left ? len : left;
      int64_t got = nearfile_read(file, buf, len);
      CHECK_EQ(got, expected);
      CHECK_BYTES(buf, (size_t)expected, *position, VERSION);
      model_touch(&model, *position, expected);
      *position += expected;
    } else if (kind_of_op < 65) {
      size_t len = random_len(&model, &seed);
      uint64_t from = random_offset(&model, &seed), left = from < size ? size - from : 0, expected = len < left ? len : left;
      CHECK_EQ(nearfile_pread(file, buf, len, from), expected);
      CHECK_BYTES(buf, (size_t)expected, from, VERSION);
      model_touch(&model, from, expected);
    } else if (kind_of_op < 85) {
      model_seek(&model, handle, &seed);
    } else if (kind_of_op < 93) {
      CHECK_EQ(nearfile_tell(file), *position);
    } else if (kind_of_op < 95) {
      nearfile_file *fresh = NULL;
      MUST(nearfile_dup(file, &fresh) == 0);
      nearfile_close(file);
      model.handles[handle] = fresh;
      *position = 0;
    } else if (kind_of_op < 99) {
      model_discard(&model, &seed);
    } else {
      model_check_cached(&model);
    }
    if (nf_failures != failures) fprintf(stderr, "  at operation %d of size %" PRIu64 ", page %" PRIu64 "\n", op, size, page);
  }
  model_check_cached(&model);
  nearfile_stats stats = nf_stats(model.handles[0]);
  CHECK_EQ(stats.passed_through, 0);
  CHECK_EQ(stats.checksum_failures, 0);
  CHECK_EQ(stats.source_bytes, far->bytes);
  CHECK_EQ(stats.source_reads, far->reads);
  CHECK_EQ(stats.bytes_asked, stats.bytes_served);
  for (int i = 0; i < HANDLES; i++) nearfile_close(model.handles[i]);
  CHECK_EQ(far->releases, 1);
  CHECK_EQ(far->offences, 0);
  free(buf);
  far_free(far);
  nearfile_cache_close(cache);
}

static void random_operations(void) {
  random_run(1, 1, 0, FAR_AT, true, 500, 1);
  random_run(2000, 1, 0, FAR_SEEK, true, 3000, 2);
  random_run(30001, 7, 0, FAR_AT_OPEN, false, 4000, 3);
  random_run(100003, 4096, 0, FAR_AT, true, 6000, 4);
  random_run(100003, 4096, 5000, FAR_SEEK_OPEN, false, 3000, 5);
  random_run(100003, 10000, 777, FAR_AT, true, 3000, 6);      // pieces
  random_run(5000, 1 << 20, 0, FAR_AT_OPEN, true, 1500, 7);   // one page, larger than the file
  random_run(3000000, 1 << 20, 64 << 10, FAR_AT, true, 1500, 8);
}

// A file far larger than the disk costs what is read of it.
static void very_large(void) {
  nearfile_cache *cache = nf_cache("cache", 64 << 10, 0, 0);
  uint64_t size = (1ull << 40) + 12345;
  far_file *far = far_new(size, VERSION, 64 << 10);
  int64_t began = nf_now_ms();
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "large");
  CHECK_EQ(nearfile_size(file), size);
  CHECK_PREAD(file, 100, size - 50, VERSION);
  CHECK_PREAD(file, 70000, 1ull << 39, VERSION);
  CHECK_PREAD(file, 10, 0, VERSION);
  CHECK_EQ(nf_walk(file), nf_stats(file).cached_bytes);
  CHECK(nf_walk(file) <= 5 * (64 << 10));
  CHECK_EQ(nearfile_seek(file, -1, NEARFILE_SEEK_END), size - 1);
  check_read(file, 10, size - 1);
  CHECK(disk_use(file) <= 6 * (64 << 10));
  CHECK_EQ(nearfile_discard(file, 0, UINT64_MAX), 0);
  CHECK_EQ(nf_walk(file), 0);
  nearfile_close(file);
  CHECK(nf_now_ms() - began < 5000);
  far_free(far);
  nearfile_cache_close(cache);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(ends_and_edges),     NF_CASE(pieces),       NF_CASE(unknown_size),       NF_CASE(dup_handles),
      NF_CASE(outlives_its_cache), NF_CASE(disk_use_follows_pages), NF_CASE(mirror_is_the_file),
      NF_CASE(discard_and_refetch), NF_CASE(random_operations), NF_CASE(very_large)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
