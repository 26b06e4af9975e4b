// Guards that processes share one near copy: each page is read from the source once over all of them, fresh processes read
// nothing again, a killed fetcher holds nobody up, and a stopped one only as long as wait_ms.
#include "nf_test.h"

enum { VERSION = 9, PROCESSES = 8, PAGE = 4096, SIZE = 60 * PAGE + 1234 };

// The parent never opens anything itself: each child is a process that starts from nothing.

struct reader {
  nearfile_file *file;
  uint64_t seed;
};

static void *read_it_all(void *argument) {
  struct reader *reader = argument;
  uint64_t size = (uint64_t)nearfile_size(reader->file), seed = reader->seed;
  for (int i = 0; i < 40; i++) CHECK_PREAD(reader->file, (size_t)nf_below(&seed, 3 * PAGE), nf_below(&seed, size), VERSION);
  if (seed % 2) {
    CHECK_PREAD(reader->file, (size_t)size, 0, VERSION);
  } else {
    CHECK_ALL(reader->file, VERSION);
  }
  return NULL;
}

static void process(far_file *far, atomic_int *waiting, uint64_t seed, bool must_hit) {
  // All at once.
  atomic_fetch_sub(waiting, 1);
  NF_UNTIL(atomic_load(waiting) <= 0, 10000);
  nearfile_cache *cache = nf_cache("cache", PAGE, 4 * PAGE, 0);
  nearfile_file *file = nf_open_far(cache, far, (enum far_kind)(seed % 4), "shared");
  struct reader readers[2] = {{file, seed * 2}, {file, seed * 2 + 1}};
  pthread_t thread = nf_thread(read_it_all, &readers[0]);
  read_it_all(&readers[1]);
  nf_join(thread);
  nearfile_stats stats = nf_stats(file);
  CHECK_EQ(stats.passed_through, 0);
  CHECK_EQ(stats.checksum_failures, 0);
  CHECK_EQ(stats.cached_bytes, far->size);
  CHECK(strstr(nearfile_data_path(file), "/proc/") == NULL);
  if (must_hit) CHECK_EQ(stats.misses + stats.source_reads + stats.pages_fetched, 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
  nf_child_ends();
}

static void run_processes(far_file *far, uint64_t seed, bool must_hit) {
  atomic_int *waiting = nf_shared(sizeof *waiting);
  atomic_store(waiting, PROCESSES);
  pid_t children[PROCESSES];
  for (int i = 0; i < PROCESSES; i++) {
    children[i] = nf_fork(60);
    if (children[i] == 0) process(far, waiting, seed + (uint64_t)i, must_hit);
  }
  for (int i = 0; i < PROCESSES; i++) CHECK_CHILD(children[i]);
  munmap(waiting, sizeof *waiting);
}

static void once_over_processes(void) {
  for (int round = 0; round < 5; round++) {
    MUST(snprintf(nf_dir + strlen(nf_dir), 10, "/%d", round) < 10 && mkdir(nf_dir, 0700) == 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    far->delay_us = 300;
    run_processes(far, (uint64_t)round * 100, false);
    CHECK_ONCE(far);
    CHECK_EQ(far->releases, PROCESSES);
    far_forget(far);
    run_processes(far, (uint64_t)round * 100 + 50, true);
    CHECK_EQ(far->reads, 0);
    CHECK_EQ(far->opens, far->closes);
    CHECK_EQ(far->offences, 0);
    far_free(far);
  }
}

// The counts of the directory are over all processes.
static void the_directory_counts_them_all(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  run_processes(far, 1, false);
  run_processes(far, 2, true);
  nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
  nearfile_stats stats = {.struct_size = sizeof stats};
  CHECK_EQ(nearfile_cache_get_stats(cache, &stats), 0);
  CHECK_EQ(stats.pages_fetched, far_pages(far));
  CHECK_EQ(stats.source_reads, far->reads);
  CHECK_EQ(stats.source_bytes, far->bytes);
  CHECK_EQ(stats.cached_bytes, SIZE);
  CHECK_EQ(stats.cached_pages, far_pages(far));
  CHECK_EQ(stats.bytes_asked, stats.bytes_served);
  CHECK(stats.hits >= 2 * PROCESSES);
  nearfile_cache_close(cache);
  far_free(far);
}

// ---- a fetcher that is killed or stopped inside the source ---------------------------------------------------------------

struct scene {
  atomic_int held;         // processes inside the read of page 7 that do not come out by themselves
  atomic_int go;
  _Atomic uint64_t passed; // over all others
  atomic_int done;
};

enum { STUCK = 7 };

static int32_t get_stuck(far_file *far, uint64_t offset, size_t len) {
  struct scene *scene = far->hook_data;
  if (offset > STUCK * PAGE || offset + len <= STUCK * PAGE) return 0;
  atomic_fetch_add(&scene->held, 1);
  NF_UNTIL(atomic_load(&scene->go), 50000);
  return 0;
}

static void others(far_file *far, struct scene *scene, uint32_t wait_ms, int64_t most_ms, bool may_pass) {
  pid_t children[3];
  for (int i = 0; i < 3; i++) {
    children[i] = nf_fork(60);
    if (children[i] != 0) continue;
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, wait_ms);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "stuck");
    int64_t began = nf_now_ms();
    CHECK_PREAD(file, 10, STUCK * PAGE + 5, VERSION);
    CHECK(nf_now_ms() - began < most_ms);
    // Once it is known to be stuck, one does not wait as long for it again each time.
    for (int again = 0; again < 20; again++) CHECK_PREAD(file, 10, STUCK * PAGE + 5, VERSION);
    CHECK(nf_now_ms() - began < most_ms);
    CHECK_ALL(file, VERSION);
    CHECK(nf_now_ms() - began < 2 * most_ms);
    nearfile_stats stats = nf_stats(file);
    if (!may_pass) CHECK_EQ(stats.passed_through, 0);
    atomic_fetch_add(&scene->passed, stats.passed_through);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (int i = 0; i < 3; i++) CHECK_CHILD(children[i]);
}

static pid_t start_stuck(far_file *far, struct scene *scene) {
  far->hook_data = scene;
  pid_t stuck = nf_fork(60);
  if (stuck == 0) {
    far->hook = get_stuck;  // in shared memory: cleared again by the parent
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "stuck");
    CHECK_PREAD(file, 10, 0, VERSION);
    CHECK_PREAD(file, 2 * PAGE, (STUCK - 1) * PAGE, VERSION);  // two pages, of which one is in the way
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  NF_UNTIL(scene->held == 1, 10000);
  MUST(scene->held == 1);
  far->hook = NULL;
  return stuck;
}

// Bytes right, all hits, nothing asked of the source.
static void check_warm(far_file *far) {
  uint64_t reads = far->reads;
  pid_t child = nf_fork(30);
  if (child == 0) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "stuck");
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).misses, 0);
    CHECK_EQ(nf_stats(file).checksum_failures, 0);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  CHECK_EQ(far->reads, reads);
}

static void a_killed_fetcher_holds_nobody_up(void) {
  for (int before = 0; before < 2; before++) {  // killed before the others come, and while they wait
    MUST(snprintf(nf_dir + strlen(nf_dir), 10, "/%d", before) < 10 && mkdir(nf_dir, 0700) == 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    struct scene *scene = nf_shared(sizeof *scene);
    pid_t stuck = start_stuck(far, scene);
    if (before) kill(stuck, SIGKILL);
    pid_t killer = before ? 0 : nf_fork(60);
    if (!before && killer == 0) {
      nf_sleep_us(200000);
      kill(stuck, SIGKILL);
      nf_child_ends();
    }
    others(far, scene, 10000, 5000, false);  // half of wait_ms: they do not wait for the dead
    if (!before) CHECK_CHILD(killer);
    int status = 0;
    MUST(waitpid(stuck, &status, 0) == stuck);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    for (uint64_t page = 0; page < far_pages(far); page++) CHECK_EQ(far->page_reads[page], 1);  // the dead one gave none
    check_warm(far);
    CHECK_EQ(far->offences, 0);
    munmap(scene, sizeof *scene);
    far_free(far);
  }
}

static void a_stopped_fetcher_is_passed_by(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  struct scene *scene = nf_shared(sizeof *scene);
  pid_t stuck = start_stuck(far, scene);
  kill(stuck, SIGSTOP);
  others(far, scene, 300, 3000, true);
  CHECK(scene->passed > 0);
  atomic_store(&scene->go, 1);
  kill(stuck, SIGCONT);
  CHECK_CHILD(stuck);  // it goes on as if nothing had happened
  check_warm(far);
  CHECK_EQ(far->offences, 0);
  munmap(scene, sizeof *scene);
  far_free(far);
}

// A slow source is not a stuck one: who waits counts from the holder's last progress.
static int32_t trickle_read_at(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  nf_sleep_us(60000);
  return far_read_at(connection, offset, buf, len < PAGE / 16 ? len : PAGE / 16, out_len);
}

static void a_slow_fetcher_is_waited_for(void) {
  far_file *far = far_new(PAGE, VERSION, PAGE);  // one page in 16 parts: 960 ms, and wait_ms is 500
  pid_t children[3];
  for (int i = 0; i < 3; i++) {
    children[i] = nf_fork(60);
    if (children[i] != 0) continue;
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 500);
    nearfile_source source = far_source(far, FAR_AT);
    source.read_at = trickle_read_at;
    nearfile_file *file = nf_open(cache, &source, "slow", NULL, far->size, 0);
    CHECK_PREAD(file, 10, 100, VERSION);
    CHECK_EQ(nf_stats(file).passed_through, 0);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (int i = 0; i < 3; i++) CHECK_CHILD(children[i]);
  CHECK_ONCE(far);
  far_free(far);
}

// ---- kills at any instant ------------------------------------------------------------------------------------------------

// Readers that open, read, drop and close are killed at random moments, many times: the survivors and the next ones read right.
static void kills_at_random(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  pid_t children[4] = {0};
  uint64_t seed = 4711;
  for (int round = 0; round < 120; round++) {
    int which = (int)nf_below(&seed, 4);
    if (children[which] != 0) nf_kill(children[which]);
    children[which] = nf_fork(60);
    if (children[which] == 0) {
      uint64_t mine = (uint64_t)round;
      for (;;) {
        nearfile_cache *cache = nf_cache("cache", PAGE, 0, 10000);
        nearfile_file *file = nf_open_far(cache, far, FAR_AT, "killed");
        for (int i = 0; i < 10; i++) {
          int64_t began = nf_now_ms();
          CHECK_PREAD(file, (size_t)nf_below(&mine, 4 * PAGE), nf_below(&mine, SIZE), VERSION);
          CHECK(nf_now_ms() - began < 8000);
          if (nf_below(&mine, 4) == 0) CHECK_EQ(nearfile_discard(file, nf_below(&mine, SIZE), nf_below(&mine, 9 * PAGE)), 0);
        }
        CHECK_EQ(nf_stats(file).passed_through, 0);
        CHECK_EQ(nf_stats(file).checksum_failures, 0);
        nearfile_close(file);
        nearfile_cache_close(cache);
        if (nf_failures != 0) nf_child_ends();
      }
    }
    nf_sleep_us((unsigned)nf_below(&seed, 20000));
  }
  for (int i = 0; i < 4; i++) {
    if (children[i] != 0) nf_kill(children[i]);
  }
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "killed");
  CHECK(strstr(nearfile_data_path(file), "/proc/") == NULL);  // still shared
  CHECK_ALL(file, VERSION);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nf_stats(file).cached_bytes, SIZE);
  CHECK_EQ(nf_walk(file), SIZE);
  CHECK_EQ(nf_stats(file).checksum_failures, 0);  // a kill is no power cut: the kernel has all that was written
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(once_over_processes), NF_CASE(the_directory_counts_them_all),
                                         NF_CASE(a_killed_fetcher_holds_nobody_up), NF_CASE(a_stopped_fetcher_is_passed_by),
                                         NF_CASE(a_slow_fetcher_is_waited_for), NF_CASE(kills_at_random)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
