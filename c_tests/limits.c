// Guards the limits: of a directory, over all its files and processes, at every instant, under each policy, on ext4 and on tmpfs; of
// one file; of the free space. And what goes first when something must, and that a kill leaks nothing.
#include "nf_test.h"

#include "nf_budget.h"

enum { PAGE = 16 << 10, LIMIT = 1 << 20, PROCESSES = 4, VERSION = 6 };

static const uint32_t policies[] = {NEARFILE_FULL_EVICT, NEARFILE_FULL_STOP, NEARFILE_FULL_FLUSH};
static const char *const policy_names[] = {"evict", "stop", "flush"};
enum { POLICIES = 3 };

static uint64_t pages_cached(const nearfile_file *file) { return nf_stats(file).cached_pages; }

// Reads a page until it is kept: near the limit that takes some reads.
static bool keep_page(const nearfile_file *file, uint64_t page, uint64_t page_size, uint64_t version) {
  for (int n = 0; n < 8 && !nf_is_cached(file, page * page_size); n++) CHECK_PREAD(file, (size_t)page_size, page * page_size, version);
  return nf_is_cached(file, page * page_size);
}

// ---- every policy, shape, number of processes, file system -------------------------------------------------------------------

struct shape {
  const char *name;
  int files;
  uint64_t size;  // of each
};

static const struct shape shapes[] = {
    {"one_file", 1, LIMIT * 3 / 4 + 1234}, {"three_files", 3, LIMIT * 2 / 3 + 777}, {"large_file", 1, LIMIT * 5 / 2 + 4321}};
enum { SHAPES = 3 };

static void open_files(nearfile_cache *cache, far_file **far, int count, nearfile_file **files) {
  for (int i = 0; i < count; i++) {
    char key[20];
    snprintf(key, sizeof key, "file %d", i);
    // Not FAR_SEEK: its position lies in the far file, which the processes share.
    static const enum far_kind kinds[] = {FAR_AT, FAR_AT_OPEN, FAR_SEEK_OPEN};
    files[i] = nf_open_far(cache, far[i], kinds[i % 3], key);
  }
}

// Random and sequential reads, all compared.
static void read_files(nearfile_file **files, int count, uint64_t size, uint64_t page_size, uint64_t seed, int reads) {
  for (int n = 0; n < reads; n++) {
    int i = (int)nf_below(&seed, (uint64_t)count);
    CHECK_PREAD(files[i], (size_t)nf_below(&seed, 3 * page_size), nf_below(&seed, size), VERSION + (uint64_t)i);
  }
  char *buf = malloc(2 * page_size);
  MUST(buf != NULL);
  for (int i = 0; i < count; i++) {
    uint64_t at = 0;
    CHECK_EQ(nearfile_seek(files[i], 0, NEARFILE_SEEK_SET), 0);
    for (int64_t got; (got = nearfile_read(files[i], buf, 2 * page_size - 100)) > 0; at += (uint64_t)got) {
      CHECK_BYTES(buf, (size_t)got, at, VERSION + (uint64_t)i);
    }
    CHECK_EQ(at, size);
  }
  free(buf);
}

static void one_combination(uint32_t policy, const struct shape *shape, int processes, uint64_t page_size, uint64_t limit, int reads) {
  far_file *far[3];
  for (int i = 0; i < shape->files; i++) far[i] = far_new(shape->size, VERSION + (uint64_t)i, page_size);
  struct nf_watch *watch = nf_shared(sizeof *watch);
  nearfile_cache_close(nf_limited("cache", page_size, limit, policy));
  nf_watch_start(watch, "cache", limit, (uint64_t)processes * page_size);
  pid_t children[PROCESSES];
  for (int p = 0; p < processes; p++) {
    children[p] = nf_fork(60);
    if (children[p] != 0) continue;
    nearfile_cache *cache = nf_limited("cache", page_size, limit, policy);
    nearfile_file *files[3];
    open_files(cache, far, shape->files, files);
    read_files(files, shape->files, shape->size, page_size, (uint64_t)p + 1, reads);
    read_files(files, shape->files, shape->size, page_size, (uint64_t)p + 101, reads);
    for (int i = 0; i < shape->files; i++) nearfile_close(files[i]);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (int p = 0; p < processes; p++) CHECK_CHILD(children[p]);
  nf_watch_end(watch);
  // What is kept is bounded, not nothing; and it is what a later run finds.
  uint64_t total = (uint64_t)shape->files * shape->size;
  CHECK(watch->most_cached > limit / 2);
  nearfile_cache *cache = nf_limited("cache", 0, 0, policy);
  nearfile_stats stats = nf_cache_stats(cache);
  CHECK(stats.cached_bytes <= limit);
  if (policy != NEARFILE_FULL_FLUSH) CHECK(stats.cached_bytes > (total < limit ? total : limit) * 3 / 4);
  nearfile_file *files[3];
  open_files(cache, far, shape->files, files);
  uint64_t walked = 0;
  for (int i = 0; i < shape->files; i++) walked += nf_walk(files[i]);
  CHECK_EQ(walked, stats.cached_bytes);
  if (total < limit) {
    // All fits: nothing was ever given up.
    CHECK_EQ(stats.pages_evicted, 0);
    for (int i = 0; i < shape->files; i++) CHECK_ONCE(far[i]);
  }
  for (int i = 0; i < shape->files; i++) {
    CHECK_ALL(files[i], VERSION + (uint64_t)i);
    nearfile_close(files[i]);
    CHECK_EQ(far[i]->offences, 0);
    far_free(far[i]);
  }
  char path[NF_PATH];
  CHECK(nf_disk_use(nf_path(path, "cache"), ".data", NULL) <= limit + page_size);
  nearfile_cache_close(cache);
  munmap(watch, sizeof *watch);
}

static void matrix(uint32_t policy, bool tmpfs) {
  for (int s = 0; s < SHAPES; s++) {
    for (int processes = 1; processes <= PROCESSES; processes += PROCESSES - 1) {
      char name[60];
      snprintf(name, sizeof name, "%s_%s_%d", policy_names[policy], shapes[s].name, processes);
      size_t before = nf_enter(name);
      if (tmpfs) nf_mount_tmpfs(nf_dir, 64 << 20);
      int failures = nf_failures;
      one_combination(policies[policy], &shapes[s], processes, PAGE, LIMIT, 1200 / processes);
      if (tmpfs) nf_unmount(nf_dir);
      if (nf_failures != failures) fprintf(stderr, "  that was %s on %s\n", name, tmpfs ? "tmpfs" : "the test directory");
      nf_leave(before);
    }
  }
}

static void evict_holds(void) { matrix(0, false); }
static void stop_holds(void) { matrix(1, false); }
static void flush_holds(void) { matrix(2, false); }
static void evict_holds_on_tmpfs(void) { matrix(0, true); }
static void stop_holds_on_tmpfs(void) { matrix(1, true); }
static void flush_holds_on_tmpfs(void) { matrix(2, true); }

// Pages that begin and end within blocks of the file system, and pages of which many lie in one block.
static void odd_pages_hold(void) {
  static const uint64_t page_sizes[] = {1000, 6000, 12289};
  for (int i = 0; i < 3; i++) {
    for (int policy = 0; policy < POLICIES; policy += 2) {
      char name[60];
      snprintf(name, sizeof name, "%s_%d", policy_names[policy], (int)page_sizes[i]);
      size_t before = nf_enter(name);
      int failures = nf_failures;
      far_file *far = far_new(600000, VERSION, page_sizes[i]);
      struct nf_watch *watch = nf_shared(sizeof *watch);
      nearfile_cache_close(nf_limited("cache", page_sizes[i], 200000, policies[policy]));
      nf_watch_start(watch, "cache", 200000, 2 * (page_sizes[i] + 8192));
      pid_t children[2];
      for (int p = 0; p < 2; p++) {
        children[p] = nf_fork(60);
        if (children[p] != 0) continue;
        nearfile_cache *cache = nf_limited("cache", page_sizes[i], 200000, policies[policy]);
        nearfile_file *file = nf_open_far(cache, far, FAR_AT, "odd");
        read_files(&file, 1, 600000, page_sizes[i], (uint64_t)p, 300);
        uint64_t seed = (uint64_t)p;
        for (int n = 0; n < 400; n++) {
          // In no order, page by page.
          CHECK_EQ(nearfile_discard(file, nf_below(&seed, 600000) / page_sizes[i] * page_sizes[i], page_sizes[i]), 0);
          CHECK_PREAD(file, 10, nf_below(&seed, 600000), VERSION);
        }
        nearfile_close(file);
        nearfile_cache_close(cache);
        nf_child_ends();
      }
      for (int p = 0; p < 2; p++) CHECK_CHILD(children[p]);
      nf_watch_end(watch);
      CHECK(watch->most_disk > 50000);
      munmap(watch, sizeof *watch);
      far_free(far);
      if (nf_failures != failures) fprintf(stderr, "  that was %s\n", name);
      nf_leave(before);
    }
  }
}

// Threads of one process, and children of one handle that was opened before they were forked.
struct thread_job {
  nearfile_file *file;
  uint64_t seed;
};

static void *read_in_thread(void *argument) {
  struct thread_job *job = argument;
  uint64_t size = (uint64_t)nearfile_size(job->file);
  for (int n = 0; n < 600; n++) CHECK_PREAD(job->file, (size_t)nf_below(&job->seed, 3 * PAGE), nf_below(&job->seed, size), VERSION);
  return NULL;
}

static void threads_and_forks_hold(void) {
  for (int policy = 0; policy < POLICIES; policy++) {
    size_t before = nf_enter(policy_names[policy]);
    int failures = nf_failures;
    far_file *far = far_new(2 * LIMIT, VERSION, PAGE);
    struct nf_watch *watch = nf_shared(sizeof *watch);
    nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, policies[policy]);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "file");
    CHECK_PREAD(file, 3 * PAGE, PAGE, VERSION);
    nf_watch_start(watch, "cache", LIMIT, PAGE);
    pid_t children[2];
    for (int p = 0; p < 2; p++) {
      children[p] = nf_fork(60);
      if (children[p] != 0) continue;
      struct thread_job job = {file, (uint64_t)p + 10};
      read_in_thread(&job);
      nf_child_ends();
    }
    struct thread_job jobs[4];
    pthread_t threads[4];
    for (int t = 0; t < 4; t++) {
      jobs[t] = (struct thread_job){file, (uint64_t)t};
      threads[t] = nf_thread(read_in_thread, &jobs[t]);
    }
    for (int t = 0; t < 4; t++) nf_join(threads[t]);
    for (int p = 0; p < 2; p++) CHECK_CHILD(children[p]);
    nf_watch_end(watch);
    CHECK(watch->most_cached > LIMIT / 2);
    CHECK_EQ(far->offences, 0);
    nearfile_close(file);
    nearfile_cache_close(cache);
    if (nf_failures != failures) fprintf(stderr, "  that was policy %s\n", policy_names[policy]);
    munmap(watch, sizeof *watch);
    far_free(far);
    nf_leave(before);
  }
}

// Private files are counted beside the others, and given back when they are closed.
static void private_files_count(void) {
  for (int policy = 0; policy < POLICIES; policy++) {
    size_t before = nf_enter(policy_names[policy]);
    int failures = nf_failures;
    far_file *far = far_new(LIMIT, VERSION, PAGE);
    struct nf_watch *watch = nf_shared(sizeof *watch);
    atomic_int *waiting = nf_shared(sizeof *waiting);
    atomic_store(waiting, 3);
    nearfile_cache_close(nf_limited("cache", PAGE, LIMIT, policies[policy]));
    pid_t children[3];
    for (int p = 0; p < 3; p++) {
      children[p] = nf_fork(60);
      if (children[p] != 0) continue;
      nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, policies[policy]);
      nearfile_file *file = nf_open_far(cache, far, FAR_AT, p == 0 ? "shared" : NULL);
      if (p != 0) nf_watch_private(watch, file);
      nf_meet(waiting);
      read_files(&file, 1, far->size, PAGE, (uint64_t)p, 300);
      read_files(&file, 1, far->size, PAGE, (uint64_t)p + 10, 300);
      if (p != 0) {
        for (int i = 0; i < NF_PRIVATE; i++) {
          if (watch->private_files[i].pid == getpid()) atomic_store(&watch->private_files[i].pid, -1);
        }
      }
      nearfile_close(file);
      nearfile_cache_close(cache);
      nf_child_ends();
    }
    nf_watch_start(watch, "cache", LIMIT, 3 * PAGE);
    for (int p = 0; p < 3; p++) CHECK_CHILD(children[p]);
    nf_watch_end(watch);
    CHECK(watch->most_disk > LIMIT / 2);
    // All that the private files held is free again.
    nearfile_cache *cache = nf_limited("cache", PAGE, 0, policies[policy]);
    CHECK_EQ(nearfile_cache_remove(cache, "shared"), 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "another");
    for (uint64_t page = 0; page < LIMIT * 3 / 4 / PAGE; page++) CHECK_PREAD(file, PAGE, page * PAGE, VERSION);
    CHECK_EQ(pages_cached(file), LIMIT * 3 / 4 / PAGE);
    nearfile_close(file);
    nearfile_cache_close(cache);
    if (nf_failures != failures) fprintf(stderr, "  that was policy %s\n", policy_names[policy]);
    munmap(watch, sizeof *watch);
    munmap(waiting, sizeof *waiting);
    far_free(far);
    nf_leave(before);
  }
}

// ---- shapes of a limit ---------------------------------------------------------------------------------------------------

static void a_page_larger_than_the_limit(void) {
  for (int policy = 0; policy < POLICIES; policy++) {
    size_t before = nf_enter(policy_names[policy]);
    far_file *far = far_new(10 * 100000 + 5, VERSION, 100000);
    far_file *small = far_new(20000, VERSION, 4096);
    nearfile_cache *cache = nf_limited("cache", 100000, 65536, policies[policy]);
    nearfile_options options = {.struct_size = sizeof options, .key = "small", .size = 20000, .page_size = 4096};
    nearfile_source source = far_source(small, FAR_AT);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "large"), *other = NULL;
    MUST(nearfile_open(cache, &source, &options, &other) == 0);
    CHECK_ALL(other, VERSION);
    int64_t began = nf_now_ms();
    uint64_t seed = 1;
    for (int n = 0; n < 100; n++) {
      CHECK_PREAD(file, (size_t)nf_below(&seed, 250000), nf_below(&seed, far->size), VERSION);
      CHECK(nf_blocks(nearfile_data_path(file)) <= 65536);
    }
    CHECK_ALL(file, VERSION);
    CHECK(nf_now_ms() - began < 10000);  // it neither waits nor loops
    // The short last page of 5 bytes fits; no other does.
    CHECK(pages_cached(file) <= 1);
    // Nothing of others is given up for what cannot be kept anyway.
    CHECK_EQ(nf_walk(other), 20000);
    CHECK(nf_cache_stats(cache).cached_bytes <= 65536);
    nearfile_close(file);
    nearfile_close(other);
    nearfile_cache_close(cache);
    far_free(far);
    far_free(small);
    nf_leave(before);
  }
}

static void a_lowered_limit(void) {
  far_file *far = far_new(2 << 20, VERSION, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, 4 << 20, NEARFILE_FULL_EVICT);
  nearfile_file *open = nf_open_far(cache, far, FAR_AT, "stays open"), *file = nf_open_far(cache, far, FAR_AT, "closed");
  CHECK_ALL(open, VERSION);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(nf_cache_stats(cache).cached_bytes, 4 << 20);
  char dir[NF_PATH];
  static const uint64_t limits[] = {3 << 20, 9 << 18, 512 << 10, 100 << 10};
  for (int i = 0; i < 4; i++) {
    nearfile_cache *again = nf_limited("cache", PAGE, limits[i], NEARFILE_FULL_EVICT);
    nearfile_stats stats = nf_cache_stats(again);
    CHECK_EQ(stats.size_limit, limits[i]);
    CHECK(stats.cached_bytes <= limits[i]);
    CHECK(stats.cached_bytes + (stats.cached_bytes >> 2) + 4 * PAGE >= limits[i]);  // not all that was there
    CHECK(nf_disk_use(nf_path(dir, "cache"), ".data", NULL) <= limits[i] + PAGE);
    CHECK_EQ(nf_cache_stats(cache).size_limit, limits[i]);  // it is the directory's
    nearfile_cache_close(again);
    if (limits[i] > 2 << 20) CHECK_EQ(nf_walk(open), 2 << 20);  // the closed one went first
    CHECK_ALL(open, VERSION);
    CHECK(nf_cache_stats(cache).cached_bytes <= limits[i]);
  }
  // Zero keeps what it has; a larger one is a larger one.
  nearfile_cache *again = nf_limited("cache", PAGE, 0, NEARFILE_FULL_EVICT);
  CHECK_EQ(nf_cache_stats(again).size_limit, 100 << 10);
  nearfile_cache_close(again);
  again = nf_limited("cache", PAGE, 8 << 20, NEARFILE_FULL_EVICT);
  CHECK_ALL(open, VERSION);
  CHECK_EQ(nf_walk(open), 2 << 20);
  nearfile_cache_close(again);
  nearfile_close(open);
  nearfile_cache_close(cache);
  far_free(far);
}

// Lowered by one process while three others read: from then on it is theirs, too.
static void a_limit_lowered_under_readers(void) {
  far_file *far = far_new(2 * LIMIT, VERSION, PAGE);
  atomic_int *stop = nf_shared(sizeof *stop);
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  pid_t children[3];
  for (int p = 0; p < 3; p++) {
    children[p] = nf_fork(60);
    if (children[p] != 0) continue;
    nearfile_cache *own = nf_limited("cache", PAGE, 0, NEARFILE_FULL_EVICT);
    nearfile_file *file = nf_open_far(own, far, FAR_AT, "file");
    for (uint64_t seed = (uint64_t)p; atomic_load(stop) == 0 && nf_failures < 3;) {
      CHECK_PREAD(file, (size_t)nf_below(&seed, 3 * PAGE), nf_below(&seed, far->size), VERSION);
    }
    nearfile_close(file);
    nearfile_cache_close(own);
    nf_child_ends();
  }
  static const uint64_t limits[] = {LIMIT / 2, LIMIT / 4, LIMIT, LIMIT / 8};
  for (int i = 0; i < 4; i++) {
    nf_sleep_us(60000);
    nearfile_cache *again = nf_limited("cache", PAGE, limits[i], NEARFILE_FULL_EVICT);
    // Within the grace of an evictor's lock at most; then for good.
    NF_UNTIL(nf_cache_stats(cache).cached_bytes <= limits[i], 2000);
    for (int n = 0; n < 30; n++) {
      nearfile_stats stats = nf_cache_stats(cache);
      CHECK(stats.cached_bytes <= limits[i]);
      CHECK_EQ(stats.size_limit, limits[i]);
      nf_sleep_us(1000);
    }
    nearfile_cache_close(again);
  }
  atomic_store(stop, 1);
  for (int p = 0; p < 3; p++) CHECK_CHILD(children[p]);
  char dir[NF_PATH];
  CHECK(nf_disk_use(nf_path(dir, "cache"), ".data", NULL) <= LIMIT / 8 + PAGE);
  nearfile_cache_close(cache);
  munmap(stop, sizeof *stop);
  far_free(far);
}

static void a_limit_of_one_file(void) {
  enum { FILE_LIMIT = 10 * PAGE };
  for (int policy = 0; policy < POLICIES; policy++) {
    size_t before = nf_enter(policy_names[policy]);
    int failures = nf_failures;
    far_file *far = far_new(40 * PAGE, VERSION, PAGE), *beside = far_new(40 * PAGE, VERSION + 1, PAGE);
    nearfile_cache *cache = nf_limited("cache", PAGE, 0, policies[policy]);
    for (int private = 0; private < 2; private++) {
      nearfile_options options = {
          .struct_size = sizeof options, .key = private ? NULL : "limited", .size = far->size, .size_limit = FILE_LIMIT};
      nearfile_source source = far_source(far, FAR_AT);
      nearfile_file *file = NULL, *other = nf_open_far(cache, beside, FAR_AT, "beside");
      MUST(nearfile_open(cache, &source, &options, &file) == 0);
      CHECK_ALL(other, VERSION + 1);
      CHECK_EQ(nf_stats(file).size_limit, FILE_LIMIT);
      uint64_t seed = 3, most = 0;
      for (int n = 0; n < 300; n++) {
        CHECK_PREAD(file, (size_t)nf_below(&seed, 3 * PAGE), nf_below(&seed, far->size), VERSION);
        uint64_t cached = nf_stats(file).cached_bytes;
        CHECK(cached <= FILE_LIMIT);
        CHECK(nf_blocks(nearfile_data_path(file)) <= FILE_LIMIT);
        if (cached > most) most = cached;
      }
      CHECK_PREAD(file, (size_t)far->size, 0, VERSION);  // in one read, too
      CHECK(nf_stats(file).cached_bytes <= FILE_LIMIT);
      CHECK(most >= FILE_LIMIT * 3 / 4);
      if (policies[policy] == NEARFILE_FULL_STOP) CHECK_EQ(nf_stats(file).pages_evicted, 0);
      if (policies[policy] != NEARFILE_FULL_STOP) CHECK(nf_stats(file).pages_evicted > 0);
      CHECK_EQ(nf_walk(other), beside->size);  // another file is not touched
      nearfile_close(file);
      nearfile_close(other);
    }
    nearfile_cache_close(cache);
    far_free(far);
    far_free(beside);
    if (nf_failures != failures) fprintf(stderr, "  that was policy %s\n", policy_names[policy]);
    nf_leave(before);
  }
}

static void free_space_is_left(void) {
  enum { ROOM = 12 << 20, FREE = 4 << 20 };
  for (int policy = 0; policy < POLICIES; policy++) {
    size_t before = nf_enter(policy_names[policy]);
    int failures = nf_failures;
    nf_mount_tmpfs(nf_dir, ROOM);
    far_file *far = far_new(16 << 20, VERSION, PAGE);
    nearfile_cache_options options = {
        .struct_size = sizeof options, .page_size = PAGE, .min_free = FREE, .max_fetch_bytes = 4 * PAGE, .when_full = policies[policy]};
    char path[NF_PATH];
    nearfile_cache *cache = NULL;
    MUST(nearfile_cache_open(nf_path(path, "cache"), &options, &cache) == 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
    struct statvfs space;
    uint64_t seed = 8, least = ROOM;
    for (int n = 0; n < 1500; n++) {
      uint64_t at = n < 1024 ? (uint64_t)n * PAGE : nf_below(&seed, far->size);
      CHECK_PREAD(file, PAGE, at, VERSION);
      MUST(statvfs(nf_dir, &space) == 0);
      uint64_t left = (uint64_t)space.f_bavail * space.f_frsize;
      CHECK(left + 64 * 1024 >= FREE);  // a little for the index, which is not counted
      if (left < least) least = left;
    }
    CHECK(least < FREE + (1 << 20));  // it was in force
    CHECK(pages_cached(file) > 0);
    nearfile_close(file);
    nearfile_cache_close(cache);
    far_free(far);
    nf_unmount(nf_dir);
    if (nf_failures != failures) fprintf(stderr, "  that was policy %s\n", policy_names[policy]);
    nf_leave(before);
  }
}

// ---- what goes first -----------------------------------------------------------------------------------------------------

static nearfile_file *open_version(nearfile_cache *cache, far_file *far, const char *key, const char *version) {
  nearfile_source source = far_source(far, FAR_AT);
  return nf_open(cache, &source, key, version, far->size, 0);
}

static void outdated_goes_first(void) {
  enum { PART = LIMIT / 4 };
  far_file *far[4];
  for (uint64_t i = 0; i < 4; i++) far[i] = far_new(PART, VERSION + i, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  nearfile_file *file = open_version(cache, far[0], "other", NULL);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  file = open_version(cache, far[1], "key", "1");
  CHECK_ALL(file, VERSION + 1);
  nearfile_close(file);
  file = open_version(cache, far[2], "key", "2");
  CHECK_ALL(file, VERSION + 2);
  nearfile_close(file);
  // The outdated one is used last of all, and often; it goes all the same.
  file = open_version(cache, far[1], "key", "1");
  for (int n = 0; n < 4; n++) CHECK_ALL(file, VERSION + 1);
  nearfile_close(file);
  nearfile_file *open = open_version(cache, far[3], "new", NULL);
  CHECK_ALL(open, VERSION + 3);
  far_file *more = far_new(PART / 2, 99, PAGE);
  nearfile_file *last = open_version(cache, more, "more", NULL);
  for (uint64_t page = 0; page < far_pages(more); page++) CHECK(keep_page(last, page, PAGE, 99));
  file = open_version(cache, far[1], "key", "1");
  CHECK(nf_walk(file) <= PART / 2);
  nearfile_close(file);
  file = open_version(cache, far[2], "key", "2");
  CHECK_EQ(nf_walk(file), PART);
  nearfile_close(file);
  file = open_version(cache, far[0], "other", NULL);
  CHECK_EQ(nf_walk(file), PART);
  nearfile_close(file);
  CHECK_EQ(nf_walk(open), PART);
  nearfile_close(open);
  nearfile_close(last);
  nearfile_cache_close(cache);
  for (int i = 0; i < 4; i++) far_free(far[i]);
  far_free(more);
}

static void closed_goes_before_open(void) {
  enum { PART = LIMIT / 2 - PAGE };
  far_file *closed = far_new(PART, 1, PAGE), *open = far_new(PART, 2, PAGE), *more = far_new(PART / 2, 3, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  // Another process has the open one open; it was read once, the closed one many times and last.
  int pipes[2];
  char byte;
  MUST(pipe(pipes) == 0);
  atomic_int *ready = nf_shared(sizeof *ready);
  pid_t child = nf_fork(60);
  if (child == 0) {
    close(pipes[1]);
    nearfile_cache *own = nf_limited("cache", PAGE, 0, NEARFILE_FULL_EVICT);
    nearfile_file *file = nf_open_far(own, open, FAR_AT, "open");
    CHECK_ALL(file, 2);
    atomic_store(ready, 1);
    CHECK_EQ(read(pipes[0], &byte, 1), 0);
    CHECK_EQ(nf_walk(file), PART);
    far_forget(open);
    CHECK_ALL(file, 2);
    CHECK_EQ(open->reads, 0);
    nearfile_close(file);
    nearfile_cache_close(own);
    nf_child_ends();
  }
  close(pipes[0]);
  NF_UNTIL(*ready, 20000);
  nearfile_file *file = nf_open_far(cache, closed, FAR_AT, "closed");
  for (int n = 0; n < 5; n++) CHECK_ALL(file, 1);
  CHECK_EQ(nf_walk(file), PART);
  nearfile_close(file);
  nearfile_file *last = nf_open_far(cache, more, FAR_AT, "more");
  for (uint64_t page = 0; page < far_pages(more); page++) CHECK(keep_page(last, page, PAGE, 3));
  file = nf_open_far(cache, closed, FAR_AT, "closed");
  CHECK(nf_walk(file) < PART);
  nearfile_close(file);
  close(pipes[1]);
  CHECK_CHILD(child);
  nearfile_close(last);
  nearfile_cache_close(cache);
  munmap(ready, sizeof *ready);
  far_free(closed);
  far_free(open);
  far_free(more);
}

static void a_hot_set_survives_a_scan(void) {
  for (int same_file = 0; same_file < 2; same_file++) {
    size_t before = nf_enter(same_file ? "same" : "other");
    far_file *far = far_new(16 << 20, 1, PAGE), *big = far_new(16 << 20, 2, PAGE);
    nearfile_cache *cache = nf_limited("cache", PAGE, 2 << 20, NEARFILE_FULL_EVICT);
    nearfile_file *hot = nf_open_far(cache, far, FAR_AT, "hot"), *scan = nf_open_far(cache, big, FAR_AT, "scan");
    enum { HOT = (1 << 20) / PAGE };
    for (int n = 0; n < 5; n++) {
      for (uint64_t page = 0; page < HOT; page++) CHECK_PREAD(hot, 100, page * PAGE, 1);
    }
    for (uint64_t page = HOT; page < far_pages(far); page++) {
      if (same_file) {
        CHECK_PREAD(hot, 100, page * PAGE, 1);
      } else {
        CHECK_PREAD(scan, 100, page * PAGE, 2);
      }
    }
    int still = 0;
    for (uint64_t page = 0; page < HOT; page++) still += nf_is_cached(hot, page * PAGE);
    CHECK(still >= HOT * 8 / 10);
    printf("  %d of %d hot pages are still there\n", still, HOT);
    CHECK(nf_cache_stats(cache).cached_bytes > (2 << 20) * 3 / 4);
    nearfile_close(hot);
    nearfile_close(scan);
    nearfile_cache_close(cache);
    far_free(far);
    far_free(big);
    nf_leave(before);
  }
}

static void stop_keeps_what_is_there(void) {
  far_file *first = far_new(LIMIT, 1, PAGE), *second = far_new(LIMIT, 2, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_STOP);
  nearfile_file *file = nf_open_far(cache, first, FAR_AT, "first"), *other = nf_open_far(cache, second, FAR_AT, "second");
  CHECK_ALL(file, 1);
  CHECK_EQ(nf_walk(file), LIMIT);
  for (int n = 0; n < 3; n++) CHECK_ALL(other, 2);
  CHECK_EQ(nf_walk(other), 0);
  CHECK_EQ(nf_walk(file), LIMIT);
  far_forget(first);
  CHECK_ALL(file, 1);
  CHECK_EQ(first->reads, 0);
  // Room that comes is used.
  CHECK_EQ(nearfile_discard(file, 0, 4 * PAGE), 0);
  CHECK_ALL(other, 2);
  CHECK_EQ(nf_walk(other), 4 * PAGE);
  CHECK_EQ(nf_cache_stats(cache).pages_evicted, 0);
  nearfile_close(file);
  nearfile_close(other);
  nearfile_cache_close(cache);
  far_free(first);
  far_free(second);
}

static void flush_drops_the_file_that_is_read(void) {
  far_file *first = far_new(LIMIT / 2, 1, PAGE), *second = far_new(LIMIT, 2, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_FLUSH);
  nearfile_file *file = nf_open_far(cache, first, FAR_AT, "first"), *other = nf_open_far(cache, second, FAR_AT, "second");
  CHECK_ALL(file, 1);
  for (uint64_t page = 0; page <= LIMIT / 2 / PAGE; page++) CHECK_PREAD(other, 1, page * PAGE, 2);
  CHECK_EQ(nf_walk(file), LIMIT / 2);  // another's pages stay
  CHECK_EQ(nf_walk(other), PAGE);      // it starts again
  CHECK(nf_is_cached(other, LIMIT / 2));
  nearfile_close(file);
  nearfile_close(other);
  nearfile_cache_close(cache);
  far_free(first);
  far_free(second);
}

// ---- kills ---------------------------------------------------------------------------------------------------------------

// What a fresh file can still put into the directory.
static uint64_t fill_up(nearfile_cache *cache, far_file *far, const char *key) {
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, key);
  for (uint64_t page = 0; page < far_pages(far); page++) CHECK_PREAD(file, PAGE, page * PAGE, far->version);
  uint64_t walked = nf_walk(file);
  nearfile_close(file);
  return walked;
}

static void kills_leak_nothing(void) {
  enum { ROUNDS = 60 };
  far_file *far = far_new(LIMIT * 2, VERSION, PAGE), *fresh = far_new(2 * LIMIT, VERSION + 1, PAGE);
  far->delay_us = 50;
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_STOP);
  struct nf_watch *watch = nf_shared(sizeof *watch);
  nf_watch_start(watch, "cache", LIMIT, 3 * 8 * PAGE);
  uint64_t seed = 5;
  for (int round = 0; round < ROUNDS; round++) {
    pid_t children[3];
    for (int p = 0; p < 3; p++) {
      children[p] = nf_fork(60);
      if (children[p] != 0) continue;
      nearfile_cache *own = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
      nearfile_file *shared = nf_open_far(own, far, FAR_AT, "shared"), *private = nf_open_far(own, far, FAR_AT, NULL);
      for (uint64_t n = 0, mine = (uint64_t)(round * 3 + p);; n++) {
        nearfile_file *file = n % 4 == 0 ? private : shared;
        CHECK_PREAD(file, (size_t)nf_below(&mine, 6 * PAGE), nf_below(&mine, far->size), VERSION);
        if (n % 8 == 0) CHECK_EQ(nearfile_discard(file, nf_below(&mine, far->size), 8 * PAGE), 0);
        if (nf_failures != 0) nf_child_ends();
      }
    }
    nf_sleep_us(3000 + (unsigned)nf_below(&seed, 12000));
    for (int p = 0; p < 3; p++) {
      int status = 0;
      kill(children[p], SIGKILL);
      MUST(waitpid(children[p], &status, 0) == children[p]);
      CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
  }
  nf_watch_end(watch);
  // Still in the same session of the directory: no recount helps.
  CHECK_EQ(nearfile_cache_remove(cache, "shared"), 0);
  uint64_t again = fill_up(cache, fresh, "fresh");
  printf("  %" PRIu64 " of %d KiB can be filled after %d kills\n", again >> 10, LIMIT >> 10, 3 * ROUNDS);
  CHECK(again >= LIMIT - LIMIT / 16);
  CHECK(again <= LIMIT);
  nearfile_cache_close(cache);
  // Nobody has it open: the count is what is there.
  cache = nf_limited("cache", PAGE, 0, NEARFILE_FULL_STOP);
  CHECK_EQ(nf_cache_stats(cache).cached_bytes, again);
  CHECK_EQ(nearfile_cache_remove(cache, "fresh"), 0);
  CHECK_EQ(nf_cache_stats(cache).cached_bytes, 0);
  CHECK_EQ(fill_up(cache, fresh, "fresh again"), LIMIT);
  nearfile_cache_close(cache);
  munmap(watch, sizeof *watch);
  far_free(far);
  far_free(fresh);
}

// All are killed, then it is opened anew: counted anew.
static void a_count_is_made_anew(void) {
  far_file *far = far_new(LIMIT * 2, VERSION, PAGE), *fresh = far_new(2 * LIMIT, VERSION + 1, PAGE);
  uint64_t seed = 77;
  for (int round = 0; round < 15; round++) {
    pid_t children[2];
    for (int p = 0; p < 2; p++) {
      children[p] = nf_fork(60);
      if (children[p] != 0) continue;
      nearfile_cache *own = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
      nearfile_file *shared = nf_open_far(own, far, FAR_AT, "shared"), *private = nf_open_far(own, far, FAR_AT, NULL);
      for (uint64_t mine = (uint64_t)(round * 2 + p);;) {
        CHECK_PREAD(shared, (size_t)nf_below(&mine, 6 * PAGE), nf_below(&mine, far->size), VERSION);
        CHECK_PREAD(private, (size_t)nf_below(&mine, 2 * PAGE), nf_below(&mine, far->size), VERSION);
        if (nf_failures != 0) nf_child_ends();
      }
    }
    nf_sleep_us(8000 + (unsigned)nf_below(&seed, 12000));
    for (int p = 0; p < 2; p++) {
      int status = 0;
      kill(children[p], SIGKILL);
      MUST(waitpid(children[p], &status, 0) == children[p]);
      CHECK(WIFSIGNALED(status));
    }
    nearfile_cache *cache = nf_limited("cache", PAGE, 0, NEARFILE_FULL_STOP);
    uint64_t cached = nf_cache_stats(cache).cached_bytes;
    CHECK(cached <= LIMIT);
    uint64_t filled = fill_up(cache, fresh, "fresh");
    // A page that was taken and never filled still counts: at most a few of each killed process.
    CHECK(filled + cached <= LIMIT && filled + cached + 16 * PAGE >= LIMIT);
    CHECK_EQ(nearfile_cache_remove(cache, "fresh"), 0);
    nearfile_cache_close(cache);
  }
  far_free(far);
  far_free(fresh);
}

// ---- readers under an evictor ----------------------------------------------------------------------------------------------

static void readers_under_an_evictor(void) {
  enum { HOT = 24 };
  int64_t until = nf_now_ms() + 4000;
  far_file *far = far_new(HOT * PAGE + 99, VERSION, PAGE), *other = far_new(LIMIT, VERSION + 1, PAGE);
  struct counts {
    _Atomic uint64_t reads, trims;
  } *counts = nf_shared(sizeof *counts);
  pid_t children[6];
  for (int p = 0; p < 6; p++) {
    children[p] = nf_fork(60);
    if (children[p] != 0) continue;
    nearfile_cache *cache = nf_limited("cache", PAGE, 30 * PAGE, NEARFILE_FULL_EVICT);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "hot"), *cold = nf_open_far(cache, other, FAR_AT, "cold");
    uint64_t seed = (uint64_t)p;
    while (nf_now_ms() < until && nf_failures < 3) {
      if (p < 4) {
        for (int n = 0; n < 20; n++) CHECK_PREAD(file, (size_t)nf_below(&seed, 2 * PAGE), nf_below(&seed, far->size), VERSION);
        atomic_fetch_add(&counts->reads, 20);
      } else {
        switch (nf_below(&seed, 4)) {
          case 0: CHECK_EQ(nearfile_cache_trim(cache, nf_below(&seed, 20 * PAGE)), 0); break;
          case 1: CHECK_EQ(nearfile_discard(file, nf_below(&seed, far->size), nf_below(&seed, 8 * PAGE)), 0); break;
          case 2: CHECK_EQ(nearfile_cache_trim(cache, 0), 0); break;
          default: CHECK_PREAD(cold, 8 * PAGE, nf_below(&seed, other->size), VERSION + 1);
        }
        atomic_fetch_add(&counts->trims, 1);
      }
    }
    nearfile_close(file);
    nearfile_close(cold);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (int p = 0; p < 6; p++) CHECK_CHILD(children[p]);
  printf("  %" PRIu64 " reads under %" PRIu64 " evictions\n", counts->reads, counts->trims);
  CHECK(counts->reads > 500 && counts->trims > 50);
  CHECK(far->reads > 100);  // pages did go
  munmap(counts, sizeof *counts);
  far_free(far);
  far_free(other);
}

int main(int argc, char **argv) {
  nf_own_mounts();
  static const struct nf_case cases[] = {NF_CASE(evict_holds), NF_CASE(stop_holds), NF_CASE(flush_holds),
                                         NF_CASE(evict_holds_on_tmpfs), NF_CASE(stop_holds_on_tmpfs),
                                         NF_CASE(flush_holds_on_tmpfs), NF_CASE(odd_pages_hold), NF_CASE(threads_and_forks_hold),
                                         NF_CASE(private_files_count), NF_CASE(a_page_larger_than_the_limit),
                                         NF_CASE(a_lowered_limit), NF_CASE(a_limit_lowered_under_readers),
                                         NF_CASE(a_limit_of_one_file), NF_CASE(free_space_is_left), NF_CASE(outdated_goes_first),
                                         NF_CASE(closed_goes_before_open), NF_CASE(a_hot_set_survives_a_scan),
                                         NF_CASE(stop_keeps_what_is_there), NF_CASE(flush_drops_the_file_that_is_read),
                                         NF_CASE(kills_leak_nothing), NF_CASE(a_count_is_made_anew),
                                         NF_CASE(readers_under_an_evictor)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
