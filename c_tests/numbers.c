// Guards the directory's numbers: what processes counted is there after they ended, each thing once, whether they closed their files,
// were killed, or were forked in the middle; what a killed one had told stays, and what it had not told is lost, no more.
#include "nf_test.h"

enum { PAGE = 16 << 10, PAGES = 32, SIZE = PAGES * PAGE, VERSION = 21 };

static nearfile_stats numbers(void) {
  nearfile_stats stats = {.struct_size = sizeof stats};
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  CHECK_EQ(nearfile_cache_get_stats(cache, &stats), 0);
  nearfile_cache_close(cache);
  return stats;
}

static nearfile_file *open_quietly(nearfile_cache *cache, far_file *far, uint64_t size_limit) {
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_options options = {.struct_size = sizeof options, .key = "key", .size = far->size, .size_limit = size_limit,
                              .flags = NEARFILE_READAHEAD_OFF};
  nearfile_file *file = NULL;
  MUST(nearfile_open(cache, &source, &options, &file) == 0);
  return file;
}

// What is counted, one after the other: stats begins with its size, and ends with what is not counted.
enum { COUNTERS = 13 };
static const uint64_t *counters(const nearfile_stats *stats) { return &stats->hits; }

static void check_same(int line, const nearfile_stats *all, const nearfile_stats *sum) {
  for (int i = 0; i < COUNTERS; i++) {
    char what[40];
    snprintf(what, sizeof what, "counter %d of the directory", i);
    nf_equal(__FILE__, line, what, "what its processes counted", (long long)counters(all)[i], (long long)counters(sum)[i]);
  }
}
#define CHECK_SAME(all, sum) check_same(__LINE__, all, sum)

static void add(nearfile_stats *sum, const nearfile_stats *more) {
  uint64_t *into = &sum->hits;
  for (int i = 0; i < COUNTERS; i++) into[i] += counters(more)[i];
}

// ---- all of them, over processes that end well -------------------------------------------------------------------------------

enum { NOBODY, FETCHING, WAITING };

// Until the other is about to read, and long enough for it to wait.
static int32_t fetch_slowly(far_file *far, uint64_t offset, size_t len) {
  atomic_int *how_far = far->hook_data;
  (void)offset, (void)len;
  atomic_store(how_far, FETCHING);
  while (atomic_load(how_far) != WAITING) nf_sleep_us(1000);
  nf_sleep_us(500000);
  return 0;
}

// Misses, and a wait for another's fetch.
static void two_read_one_page(far_file *far, nearfile_stats *told) {
  atomic_int *how_far = nf_shared(sizeof *how_far);
  far->hook = fetch_slowly, far->hook_data = how_far;
  pid_t children[2];
  for (int i = 0; i < 2; i++) {
    if ((children[i] = nf_fork(60)) != 0) continue;
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = open_quietly(cache, far, 0);
    if (i == 1) {
      while (atomic_load(how_far) != FETCHING) nf_sleep_us(1000);
      atomic_store(how_far, WAITING);
    }
    CHECK_PREAD(file, PAGE, 0, VERSION);
    told[i] = nf_stats(file);
    nearfile_close(file);
    nf_child_ends();
  }
  CHECK_CHILD(children[0]);
  CHECK_CHILD(children[1]);
  far->hook = NULL;
}

// Hits, a comparison, a repair, and a source that fails once.
static int32_t fail_once(far_file *far, uint64_t offset, size_t len) {
  (void)offset, (void)len;
  far->hook = NULL;
  return 5;
}

static void one_finds_damage(far_file *far, nearfile_stats *told) {
  pid_t child = nf_fork(60);
  if (child == 0) {
    char byte;
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = open_quietly(cache, far, 0);
    CHECK_PREAD(file, SIZE, 0, VERSION);
    far->hook = fail_once;
    nf_flip(nearfile_data_path(file), 3 * PAGE + 7, 4);
    CHECK_EQ(nearfile_pread(file, &byte, 1, 3 * PAGE), NEARFILE_ERROR_SOURCE);
    CHECK_PREAD(file, 100, 3 * PAGE, VERSION);
    for (int i = 0; i < 10; i++) CHECK_PREAD(file, 100, 5 * PAGE, VERSION);
    *told = nf_stats(file);
    nearfile_close(file);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

// Evictions, and reads that are not kept.
static void one_has_little_room(far_file *far, nearfile_stats *told) {
  pid_t child = nf_fork(60);
  if (child == 0) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = open_quietly(cache, far, 4 * PAGE);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    for (int pass = 0; pass < 4; pass++) CHECK_ALL(file, VERSION);
    *told = nf_stats(file);
    nearfile_close(file);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

static void every_counter_outlives_its_process(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_stats *told = nf_shared(4 * sizeof *told);
  two_read_one_page(far, told);
  one_finds_damage(far, &told[2]);
  one_has_little_room(far, &told[3]);
  nearfile_stats sum = {.struct_size = sizeof sum}, all = numbers();
  for (int i = 0; i < 4; i++) add(&sum, &told[i]);
  CHECK_SAME(&all, &sum);
  for (int i = 0; i < COUNTERS; i++) CHECK(counters(&all)[i] > 0);  // else this test shows nothing of it
  CHECK_EQ(all.source_reads, far->reads);
  CHECK_EQ(all.waits, 1);
  CHECK_EQ(all.checksum_failures, 1);
  CHECK_EQ(all.source_errors, 1);
  far_free(far);
}

// ---- a process that is killed -------------------------------------------------------------------------------------------------

struct killed {
  nearfile_stats at_last_miss;
  atomic_int ready;
};

static void what_a_killed_process_told_stays(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  struct killed *killed = nf_shared(sizeof *killed);
  pid_t child = nf_fork(60);
  if (child == 0) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = open_quietly(cache, far, 0);
    for (int page = 0; page < 10; page++) {
      CHECK_PREAD(file, PAGE, (uint64_t)page * PAGE, VERSION);
      if (page < 9) CHECK_PREAD(file, PAGE, (uint64_t)page * PAGE, VERSION);
    }
    killed->at_last_miss = nf_stats(file);
    for (int hit = 0; hit < 1000; hit++) CHECK_PREAD(file, PAGE, 0, VERSION);
    atomic_store(&killed->ready, nf_failures == 0 ? 1 : 2);
    for (;;) pause();
  }
  while (atomic_load(&killed->ready) == 0) nf_sleep_us(1000);
  CHECK_EQ(killed->ready, 1);
  nf_kill(child);
  nearfile_stats all = numbers();
  CHECK_EQ(all.hits, 9);
  CHECK_EQ(all.misses, 10);
  CHECK_SAME(&all, &killed->at_last_miss);
  CHECK_EQ(all.cached_pages, 10);
  far_free(far);
}

// ---- processes that are forked in the middle ----------------------------------------------------------------------------------

// What the parent has not told yet is its own to tell: no child tells it, too, however it ends.
static void a_forked_child_tells_its_own(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = open_quietly(cache, far, 0);
  CHECK_PREAD(file, PAGE, 0, VERSION);
  for (int hit = 0; hit < 7; hit++) CHECK_PREAD(file, PAGE, 0, VERSION);
  enum { CLOSES, ASKS, EXITS, CHILDREN };
  for (int how = 0; how < CHILDREN; how++) {
    pid_t child = nf_fork(60);
    if (child == 0) {
      nearfile_stats stats = {.struct_size = sizeof stats};
      for (int hit = 0; hit < 100; hit++) CHECK_PREAD(file, PAGE, 0, VERSION);
      CHECK_PREAD(file, PAGE, (uint64_t)(1 + how) * PAGE, VERSION);
      for (int hit = 0; hit < 10; hit++) CHECK_PREAD(file, PAGE, 0, VERSION);
      if (how == CLOSES) nearfile_close(file);
      if (how == ASKS) CHECK_EQ(nearfile_cache_get_stats(cache, &stats), 0);
      nf_child_ends();
    }
    CHECK_CHILD(child);
  }
  // 10 hits of the one that just ended were not told.
  nearfile_stats before = {.struct_size = sizeof before}, mine = nf_stats(file);
  CHECK_EQ(nearfile_cache_get_stats(cache, &before), 0);
  CHECK_EQ(mine.hits, 7);
  CHECK_EQ(before.hits, 7 + 110 + 110 + 100);
  CHECK_EQ(before.misses, 1 + CHILDREN);
  CHECK_EQ(before.source_bytes, far->bytes);
  nearfile_close(file);
  nearfile_cache_close(cache);
  nearfile_stats all = numbers();
  CHECK_SAME(&all, &before);
  far_free(far);
}

// The handle that asks tells what it counted itself, so that its own reads are never missing.
static void who_asks_sees_its_own_reads(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0), *other = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = open_quietly(cache, far, 0);
  nearfile_stats stats = {.struct_size = sizeof stats};
  CHECK_PREAD(file, PAGE, 0, VERSION);
  for (uint64_t hits = 1; hits < 20; hits++) {
    CHECK_PREAD(file, PAGE, 0, VERSION);
    CHECK_EQ(nearfile_cache_get_stats(cache, &stats), 0);
    CHECK_EQ(stats.hits, hits);
  }
  CHECK_EQ(nearfile_cache_get_stats(other, &stats), 0);
  CHECK_EQ(stats.hits, 19);
  nearfile_close(file);
  nearfile_cache_close(cache);
  nearfile_cache_close(other);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(every_counter_outlives_its_process),
      NF_CASE(what_a_killed_process_told_stays),
      NF_CASE(a_forked_child_tells_its_own),
      NF_CASE(who_asks_sees_its_own_reads),
  };
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
