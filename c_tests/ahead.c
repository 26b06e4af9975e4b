// Guards what is fetched beside and ahead of a read: who may be called on which thread, that each page is read from the source once, that
// a slow source's requests overlap, that nothing is read ahead of a first or a random read or of a fast source, and that closing waits
// for the library's threads. Times are only compared with what requests one after the other would take at least.
#include "nf_test.h"

#include <dirent.h>
#include <sys/syscall.h>

enum { PAGE = 64 << 10, PAGES = 128, SIZE = PAGES * PAGE - 1000, VERSION = 17, SLOW_US = 4000 };

static nearfile_file *open_slow(nearfile_cache *cache, far_file *far, const char *key, uint32_t flags) {
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  far->delay_us = SLOW_US;
  return nf_open(cache, &source, key, NULL, far->size, flags);
}

static int threads_now(void) {
  int count = 0;
  DIR *tasks = opendir("/proc/self/task");
  MUST(tasks != NULL);
  for (struct dirent *task; (task = readdir(tasks)) != NULL;) count += task->d_name[0] != '.';
  closedir(tasks);
  return count;
}

static void read_through(nearfile_file *file, size_t step) {
  unsigned char *buf = malloc(step);
  for (uint64_t at = 0; at < SIZE; at += step) {
    int64_t n = nearfile_read(file, buf, step);
    CHECK_EQ(n, SIZE - at < step ? SIZE - at : step);
    if (n > 0) CHECK_BYTES(buf, (size_t)n, at, VERSION);
  }
  free(buf);
}

static void sequential_reads_are_read_ahead_of(void) {
  static const size_t steps[] = {100, 4096, PAGE, 3 * PAGE + 17, SIZE};
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
    char key[20];
    snprintf(key, sizeof key, "%zu", steps[i]);
    nearfile_cache *cache = nf_cache("cache", PAGE, 16 * PAGE, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = open_slow(cache, far, key, 0);
    int64_t began = nf_now_ms();
    read_through(file, steps[i]);
    // One request after the other would take as long as this, page by page.
    CHECK(nf_now_ms() - began < PAGES * SLOW_US / 1000 / 2);
    CHECK_ONCE(far);
    CHECK(far->most_inside > 1);
    CHECK_EQ(nf_stats(file).passed_through, 0);
    nearfile_close(file);
    CHECK_EQ(far->inside, 0);
    CHECK_EQ(far->releases, 1);
    CHECK_EQ(far->offences, 0);
    nearfile_cache_close(cache);
    far_free(far);
  }
}

// In a full cache nothing can be kept: what was fetched ahead is handed over all the same, and fetched once.
static void what_cannot_be_kept_is_handed_over(void) {
  nearfile_cache_options options = {.struct_size = sizeof options, .page_size = PAGE, .max_fetch_bytes = 16 * PAGE,
                                    .size_limit = 4 * PAGE, .when_full = NEARFILE_FULL_STOP};
  char path[NF_PATH];
  nearfile_cache *cache = NULL;
  MUST(nearfile_cache_open(nf_path(path, "cache"), &options, &cache) == 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key", 0);
  int64_t began = nf_now_ms();
  read_through(file, PAGE);
  CHECK(nf_now_ms() - began < PAGES * SLOW_US / 1000 / 2);
  CHECK_ONCE(far);
  CHECK(nf_walk(file) <= 4 * PAGE);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

static void nothing_ahead_of_a_first_or_random_read(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key", 0);
  CHECK_PREAD(file, 100, 0, VERSION);
  for (uint64_t page = PAGES - 1; page > PAGES / 2; page -= 3) CHECK_PREAD(file, 100, page * PAGE, VERSION);  // backwards
  for (uint64_t n = 0; n < 20; n++) CHECK_PREAD(file, 100, (n * 31 % (PAGES / 4) * 2 + 2) * PAGE, VERSION);
  CHECK_EQ(far->bytes, nf_walk(file));
  CHECK_EQ(threads_now(), 1);
  CHECK_EQ(far->most_inside, 1);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// A source that answers at once is read by who reads. On a busy machine it may seem slow now and then.
static void no_threads_for_a_fast_source(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 4 * PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  bool once_without = false;
  for (int i = 0; i < 20 && !once_without; i++) {
    NF_UNTIL(threads_now() == 1, 20000);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, NULL);
    read_through(file, PAGE);
    once_without = threads_now() == 1;
    nearfile_close(file);
  }
  CHECK(once_without);
  nearfile_cache_close(cache);
  far_free(far);
}

// So is one that may not be called on other threads.
static void no_threads_where_they_may_not_be(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 4 * PAGE, 0);
  NF_UNTIL(threads_now() == 1, 20000);
  for (int i = 1; i < 4; i++) {
    char key[20];
    snprintf(key, sizeof key, "%d", i);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_source source = far_source(far, i == 1 ? FAR_AT : i == 2 ? FAR_SEEK_OPEN : FAR_AT_OPEN);
    far->delay_us = 300 + SLOW_US / 10;
    nearfile_file *file = nf_open(cache, &source, key, NULL, SIZE, i == 3 ? NEARFILE_READAHEAD_OFF : 0);
    read_through(file, i % 2 ? PAGE : 9 * PAGE);
    CHECK_EQ(threads_now(), 1);
    CHECK_EQ(far->most_inside, 1);
    CHECK_ONCE(far);
    nearfile_close(file);
    far_free(far);
  }
  nearfile_cache_close(cache);
}

// ---- batches ---------------------------------------------------------------------------------------------------------------------

static void a_batch_is_fetched_together(void) {
  enum { RANGES = 96 };
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key", 0);
  CHECK_PREAD(file, PAGE, 3 * PAGE, VERSION);  // one is there
  nearfile_range ranges[RANGES];
  uint64_t seed = 5;
  for (int i = 0; i < RANGES; i++) {
    // Across pages, doubled, in no order, past the end, empty.
    uint64_t len = i % 10 == 0 ? 0 : 1 + nf_below(&seed, PAGE);
    ranges[i] = (nearfile_range){.offset = nf_below(&seed, SIZE + PAGE / 2), .len = len, .buf = malloc(len + 1)};
  }
  int64_t began = nf_now_ms();
  CHECK_EQ(nearfile_read_ranges(file, ranges, RANGES, sizeof *ranges), 0);
  CHECK(nf_now_ms() - began < (int64_t)far->reads * SLOW_US / 1000 / 2);
  for (int i = 0; i < RANGES; i++) {
    uint64_t left = ranges[i].offset < SIZE ? SIZE - ranges[i].offset : 0;
    CHECK_EQ(ranges[i].out_status, 0);
    CHECK_EQ(ranges[i].out_len, ranges[i].len < left ? ranges[i].len : left);
    CHECK_BYTES(ranges[i].buf, ranges[i].out_len, ranges[i].offset, VERSION);
    free(ranges[i].buf);
  }
  for (uint64_t page = 0; page < PAGES; page++) CHECK(far->page_reads[page] <= 1);
  CHECK(far->most_inside > 4);
  CHECK(far->most_connections <= 16);
  nearfile_close(file);
  CHECK_EQ(far->offences, 0);
  nearfile_cache_close(cache);
  far_free(far);
}

static int32_t fails_on_page_7(far_file *far, uint64_t offset, size_t len) {
  (void)far;
  return offset <= 7 * PAGE && offset + len > 7 * PAGE ? 77 : 0;
}

// A failing range is told from the others, and its failure comes to the thread that reads, whoever met it.
static void a_failing_range_fails_alone(void) {
  enum { RANGES = 12 };
  nearfile_cache *cache = nf_cache("cache", PAGE, PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key", 0);
  CHECK_PREAD(file, 1, 100 * PAGE, VERSION);  // now it is known to be slow
  far->hook = fails_on_page_7;
  nearfile_range ranges[RANGES];
  static unsigned char room[RANGES][100];
  for (int i = 0; i < RANGES; i++) ranges[i] = (nearfile_range){.offset = (uint64_t)i * PAGE, .len = 100, .buf = room[i]};
  CHECK_EQ(nearfile_read_ranges(file, ranges, RANGES, sizeof *ranges), NEARFILE_ERROR_SOURCE);
  CHECK_EQ(nf_last_error().source_code, 77);
  for (int i = 0; i < RANGES; i++) {
    CHECK_EQ(ranges[i].out_status, i == 7 ? NEARFILE_ERROR_SOURCE : 0);
    CHECK_EQ(ranges[i].out_len, i == 7 ? 0 : 100);
    if (i != 7) CHECK_BYTES(room[i], 100, ranges[i].offset, VERSION);
  }
  far->hook = NULL;
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(far->offences, 0);
  nearfile_cache_close(cache);
  far_free(far);
}

// ---- prefetch --------------------------------------------------------------------------------------------------------------------

static int32_t count_progress(void *user_data, uint64_t done, uint64_t total) {
  uint64_t *last = user_data;
  CHECK(done >= *last && done <= total && total == SIZE);
  *last = done;
  return 0;
}

static void a_prefetch_overlaps(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key", 0);
  uint64_t last = 0;
  int64_t began = nf_now_ms();
  CHECK_EQ(nearfile_prefetch(file, 0, SIZE, 0, count_progress, &last), 0);
  CHECK(nf_now_ms() - began < PAGES * SLOW_US / 1000 / 2);
  CHECK_EQ(last, SIZE);
  CHECK_EQ(nf_walk(file), SIZE);
  CHECK_ONCE(far);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

static void a_prefetch_that_is_not_waited_for(void) {
  for (int closed_early = 0; closed_early < 2; closed_early++) {
    nearfile_cache *cache = nf_cache(closed_early ? "early" : "late", PAGE, PAGE, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = open_slow(cache, far, "key", 0);
    CHECK_EQ(nearfile_prefetch(file, 0, SIZE, NEARFILE_PREFETCH_NOWAIT, NULL, NULL), 0);
    if (!closed_early) NF_UNTIL(nf_walk(file) == SIZE, 20000);
    if (!closed_early) CHECK_EQ(nf_walk(file), SIZE);
    nearfile_close(file);  // waits for those that are at it
    CHECK_EQ(far->inside, 0);
    CHECK_EQ(far->releases, 1);
    uint64_t reads = far->reads;
    nf_sleep_us(20000);
    CHECK_EQ(far->reads, reads);
    CHECK(closed_early ? far->bytes < SIZE : far->bytes == SIZE);
    CHECK_EQ(far->offences, 0);
    nearfile_cache_close(cache);
    far_free(far);
  }
  nearfile_cache *cache = nf_cache("none", PAGE, PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_SEEK, "key");
  CHECK_EQ(nearfile_prefetch(file, 0, SIZE, NEARFILE_PREFETCH_NOWAIT, NULL, NULL), NEARFILE_ERROR_UNSUPPORTED);
  CHECK_EQ(nearfile_prefetch(file, SIZE, 1, NEARFILE_PREFETCH_NOWAIT, NULL, NULL), 0);  // nothing to do
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// ---- the library's threads -------------------------------------------------------------------------------------------------------

static _Atomic uint64_t blocked_everything, called_beside;
static pthread_t reader;

static int32_t look_at_the_thread(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  if (pthread_equal(pthread_self(), reader)) return 0;
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  bool all = true;
  for (int signal = 1; signal < 32; signal++) {
    if (signal != SIGKILL && signal != SIGSTOP) all = all && sigismember(&mask, signal) == 1;
  }
  atomic_fetch_add(&called_beside, 1);
  if (all) atomic_fetch_add(&blocked_everything, 1);
  return 0;
}

// No signal handler of the program's runs on them; they go home when there is nothing to do; children start with none and get their own.
static void they_block_signals_and_go_home(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key", 0);
  reader = pthread_self();
  far->hook = look_at_the_thread;
  NF_UNTIL(threads_now() == 1, 20000);  // those of earlier cases
  CHECK_EQ(threads_now(), 1);
  read_through(file, PAGE);
  CHECK(called_beside > 0);
  CHECK_EQ(blocked_everything, called_beside);
  CHECK(threads_now() > 1);
  pid_t child = nf_fork(30);
  if (child == 0) {
    CHECK_EQ(threads_now(), 1);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_EQ(nearfile_seek(file, 0, NEARFILE_SEEK_SET), 0);
    read_through(file, PAGE);
    CHECK(threads_now() > 1);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  NF_UNTIL(threads_now() == 1, 20000);
  CHECK_EQ(threads_now(), 1);
  nearfile_close(file);
  CHECK_EQ(far->offences, 0);
  nearfile_cache_close(cache);
  far_free(far);
}

static int32_t ends_its_thread(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  if (!pthread_equal(pthread_self(), reader) && atomic_fetch_add(&called_beside, 1) % 2 == 0) {
    atomic_fetch_sub(&far->inside, 1);
    pthread_exit(NULL);
  }
  return 0;
}

// As an interpreter does that ends while a worker waits for it: the pages that the thread was fetching come free, and closing goes on.
static void a_callback_that_ends_its_thread(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key", 0);
  reader = pthread_self(), called_beside = 0;
  far->hook = ends_its_thread;
  read_through(file, PAGE);
  CHECK(called_beside > 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// Many readers of one file, each with a handle of its own, over threads and processes: every page once.
static void *reads_all(void *argument) {
  nearfile_file *file = NULL;
  MUST(nearfile_dup(argument, &file) == 0);
  read_through(file, PAGE / 2 + 1);
  nearfile_close(file);
  return NULL;
}

static void many_readers_read_once(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  pid_t children[3];
  for (int i = 0; i < 3; i++) {
    children[i] = nf_fork(60);
    if (children[i] != 0) continue;
    nearfile_cache *cache = nf_cache("cache", PAGE, 8 * PAGE, 0);
    nearfile_file *file = open_slow(cache, far, "key", 0);
    pthread_t threads[3];
    for (int t = 0; t < 3; t++) threads[t] = nf_thread(reads_all, file);
    for (int t = 0; t < 3; t++) nf_join(threads[t]);
    CHECK_EQ(nf_stats(file).passed_through, 0);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (int i = 0; i < 3; i++) CHECK_CHILD(children[i]);
  CHECK_ONCE(far);
  CHECK_EQ(far->offences, 0);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(nothing_ahead_of_a_first_or_random_read), NF_CASE(no_threads_for_a_fast_source),
      NF_CASE(no_threads_where_they_may_not_be),
      NF_CASE(sequential_reads_are_read_ahead_of), NF_CASE(what_cannot_be_kept_is_handed_over), NF_CASE(a_batch_is_fetched_together),
      NF_CASE(a_failing_range_fails_alone), NF_CASE(a_prefetch_overlaps), NF_CASE(a_prefetch_that_is_not_waited_for),
      NF_CASE(they_block_signals_and_go_home), NF_CASE(a_callback_that_ends_its_thread), NF_CASE(many_readers_read_once)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
