// Guards that each page is read from the source once: 16 processes of 4 threads and 8 forked children of one handle read one cold
// file at the same moment, each in an order of its own.
#include "torture.h"

enum { VERSION = 41, PAGE = 4096, PAGES = 16, SIZE = PAGES * PAGE - 321, PROCESSES = 16, THREADS = 4, CHILDREN = 8 };

struct reader {
  nearfile_file *file;
  pthread_barrier_t *start;
  uint64_t seed;
};

static void *read_all(void *argument) {
  struct reader *reader = argument;
  pthread_barrier_wait(reader->start);
  for (int i = 0; i < PAGES; i++) {
    CHECK_PREAD(reader->file, (size_t)(1 + nf_below(&reader->seed, 2 * PAGE)), nf_below(&reader->seed, SIZE), VERSION);
  }
  CHECK_PREAD(reader->file, SIZE, 0, VERSION);
  return NULL;
}

static void check_stats(const nearfile_file *file) {
  nearfile_stats stats = nf_stats(file);
  CHECK_EQ(stats.passed_through, 0);
  CHECK_EQ(stats.checksum_failures, 0);
  CHECK_EQ(stats.cached_bytes, SIZE);
}

// Several pages a fetch, one, as many as there are, or each in pieces.
static nearfile_cache *open_cache(const char *name) {
  static const uint64_t max_fetch[] = {3 * PAGE, PAGE, 0, PAGE / 4};
  return nf_cache(name, PAGE, max_fetch[torture.done % 4], 0);
}

static void process(const char *cache_name, far_file *far, pthread_barrier_t *start, uint64_t seed) {
  nearfile_cache *cache = open_cache(cache_name);
  nearfile_file *file = nf_open_far(cache, far, (enum far_kind)(seed % 4), "once");
  struct reader readers[THREADS];
  pthread_t threads[THREADS];
  for (uint64_t i = 0; i < THREADS; i++) {
    readers[i] = (struct reader){file, start, seed * THREADS + i};
    threads[i] = nf_thread(read_all, &readers[i]);
  }
  for (int i = 0; i < THREADS; i++) nf_join(threads[i]);
  check_stats(file);
  nearfile_close(file);
  nearfile_cache_close(cache);
  nf_child_ends();
}

// A process whose one handle is read by eight children, and not by itself.
static void parent(const char *cache_name, far_file *far, pthread_barrier_t *start, uint64_t seed) {
  nearfile_cache *cache = open_cache(cache_name);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "once");
  pid_t children[CHILDREN];
  for (uint64_t i = 0; i < CHILDREN; i++) {
    children[i] = nf_fork(60);
    if (children[i] != 0) continue;
    struct reader reader = {file, start, seed * CHILDREN + i};
    read_all(&reader);
    check_stats(file);
    if (i % 2) nearfile_close(file);
    nf_child_ends();
  }
  for (int i = 0; i < CHILDREN; i++) CHECK_CHILD(children[i]);
  nearfile_close(file);
  nearfile_cache_close(cache);
  nf_child_ends();
}

static uint64_t one_round(far_file *far, pthread_barrier_t *start) {
  char name[40];
  snprintf(name, sizeof name, "cache-%" PRIu64, torture.done);
  uint64_t seed = torture.done * 100;
  pid_t processes[PROCESSES + 1];
  for (uint64_t i = 0; i <= PROCESSES; i++) {
    processes[i] = nf_fork(60);
    if (processes[i] != 0) continue;
    if (i == PROCESSES) parent(name, far, start, seed);
    process(name, far, start, seed + i);
  }
  for (int i = 0; i <= PROCESSES; i++) CHECK_CHILD(processes[i]);
  CHECK_ONCE(far);
  CHECK_EQ(far->offences, 0);
  CHECK_EQ(far->releases, PROCESSES + 1);
  torture_remove(name);
  return far->reads;
}

int main(int argc, char **argv) {
  torture_begin(argc, argv, "once", 1000);
  pthread_barrier_t *start = torture_barrier(PROCESSES * THREADS + CHILDREN);
  uint64_t reads = 0;
  while (torture_goes_on()) {
    far_file *far = far_new(SIZE, VERSION, PAGE);
    far->delay_us = (unsigned)(torture.done % 3) * 200;
    reads += one_round(far, start);
    far_free(far);
  }
  torture_barrier_end(start);
  return torture_report("%d processes of %d threads and %d forked children each, %" PRIu64 " pages in %" PRIu64
                        " reads of the source, each page once",
                        PROCESSES, THREADS, CHILDREN, torture.done * PAGES, reads);
}
