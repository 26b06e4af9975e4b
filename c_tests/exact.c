// Guards exact mode: of the source only the bytes are read that were asked for and were not there, to the byte; threads share them, a
// forked child starts with none; limits hold; and a hundred thousand ranges stay fast.
#include "nf_test.h"

#include "nf_budget.h"

enum { VERSION = 8 };

// What the source was asked for, in shared memory; counted byte by byte.
struct asked {
  pthread_mutex_t lock;
  uint64_t bytes, twice;  // twice: bytes that were read although they were there
  uint8_t had[];          // as the model has it
};

static struct asked *asked_new(uint64_t size) {
  struct asked *asked = nf_shared(sizeof *asked + size);
  pthread_mutexattr_t shared;
  MUST(pthread_mutexattr_init(&shared) == 0 && pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED) == 0);
  MUST(pthread_mutex_init(&asked->lock, &shared) == 0);
  return asked;
}

static int32_t log_asked(far_file *far, uint64_t offset, size_t len) {
  struct asked *asked = far->hook_data;
  pthread_mutex_lock(&asked->lock);
  for (uint64_t at = offset; at < offset + len && at < far->size; at++) {
    asked->twice += asked->had[at];
    asked->had[at] = 1;
    asked->bytes++;
  }
  pthread_mutex_unlock(&asked->lock);
  return 0;
}

static nearfile_file *open_exact(nearfile_cache *cache, far_file *far, enum far_kind kind, uint64_t limit) {
  nearfile_source source = far_source(far, kind);
  nearfile_options options = {.struct_size = sizeof options, .size = far->size, .mode = NEARFILE_EXACT, .size_limit = limit};
  nearfile_file *file = NULL;
  MUST(nearfile_open(cache, &source, &options, &file) == 0);
  return file;
}

// ---- against a model ----------------------------------------------------------------------------------------------------------

// Every byte's presence is known; a read asks for what the model misses, in runs of no more than max_fetch_bytes, and nothing else.
static void bytes_are_read_once(void) {
  enum { SIZE = 70001, MAX_FETCH = 900, OPERATIONS = 20000 };
  far_file *far = far_new(SIZE, VERSION, 1);
  struct asked *asked = asked_new(SIZE);
  far->hook = log_asked, far->hook_data = asked;
  nearfile_cache *cache = nf_cache("cache", 0, MAX_FETCH, 0);
  nearfile_file *file = open_exact(cache, far, FAR_AT, 0);
  uint8_t *model = calloc(SIZE, 1);
  MUST(model != NULL);
  uint64_t seed = 2;
  for (int n = 0; n < OPERATIONS && nf_failures == 0; n++) {
    uint64_t offset = nf_below(&seed, SIZE + 100), len = nf_below(&seed, n % 10 == 0 ? 5000 : 60);
    uint64_t end = offset + len < SIZE ? offset + len : SIZE;
    if (offset > end) offset = offset < SIZE ? offset : SIZE + 5;
    if (n % 5 == 4) {
      uint64_t drop = nf_below(&seed, 3) == 0 ? len * 10 : len;
      end = offset + drop < SIZE ? offset + drop : SIZE;
      CHECK_EQ(nearfile_discard(file, offset, drop), 0);
      for (uint64_t at = offset; at < end; at++) model[at] = asked->had[at] = 0;
      continue;
    }
    uint64_t absent = 0, runs = 0, run = 0;
    for (uint64_t at = offset; at < end; at++) {
      run = model[at] ? 0 : run + 1;
      runs += run % MAX_FETCH == 1;
      absent += !model[at];
      model[at] = 1;
    }
    uint64_t bytes = far->bytes, reads = far->reads;
    CHECK_PREAD(file, (size_t)len, offset, VERSION);
    CHECK_EQ(far->bytes - bytes, absent);
    CHECK_EQ(far->reads - reads, runs);
    if (n % 100 == 0) {
      CHECK(memcmp(model, asked->had, SIZE) == 0);
      uint64_t there = 0;
      for (uint64_t at = 0; at < SIZE; at++) there += model[at];
      CHECK_EQ(nf_walk(file), there);
      CHECK_EQ(nf_stats(file).cached_bytes, there);
      for (uint64_t at = 0; at < SIZE;) {
        uint64_t until = 0;
        int32_t cached = -1;
        MUST(nearfile_extent(file, at, &until, &cached) == 0 && until > at);
        for (; at < until; at++) {
          if (model[at] != cached) nf_fail(__FILE__, __LINE__, "an extent differs from the model");
        }
      }
    }
  }
  CHECK_EQ(asked->twice, 0);
  // What is had is not asked for again, and all of it is right.
  CHECK_PREAD(file, SIZE, 0, VERSION);
  uint64_t reads = far->reads;
  CHECK_ALL(file, VERSION);
  CHECK_EQ(far->reads, reads);
  CHECK_EQ(nf_walk(file), SIZE);
  CHECK_EQ(asked->twice, 0);
  CHECK_EQ(far->offences, 0);
  nearfile_stats stats = nf_stats(file);
  CHECK_EQ(stats.source_bytes, far->bytes);
  CHECK_EQ(stats.source_reads, far->reads);
  CHECK_EQ(stats.bytes_asked, stats.bytes_served);
  CHECK_EQ(stats.passed_through, 0);
  free(model);
  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  nearfile_cache_close(cache);
  far_free(far);
}

static void reads_clamp_at_the_end(void) {
  static const uint64_t sizes[] = {0, 1, 4095, 4096, 4097, 100000};
  nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
  for (int i = 0; i < 6; i++) {
    far_file *far = far_new(sizes[i], VERSION, 4096);
    nearfile_file *file = open_exact(cache, far, FAR_SEEK_OPEN, 0);
    CHECK_EQ(nearfile_size(file), sizes[i]);
    CHECK_PREAD(file, 10, sizes[i], VERSION);
    CHECK_PREAD(file, 10, sizes[i] + 1, VERSION);
    CHECK_PREAD(file, 10, UINT64_MAX, VERSION);
    CHECK_PREAD(file, 0, 0, VERSION);
    CHECK_EQ(far->reads, 0);
    if (sizes[i] > 0) CHECK_PREAD(file, 100, sizes[i] - 1, VERSION);
    CHECK_EQ(far->bytes, sizes[i] > 0);
    CHECK_PREAD(file, (size_t)sizes[i] + 1000, 0, VERSION);
    CHECK_EQ(far->bytes, sizes[i]);
    char buf[10];
    CHECK_EQ(nearfile_seek(file, 0, NEARFILE_SEEK_END), sizes[i]);
    CHECK_EQ(nearfile_read(file, buf, 10), 0);
    CHECK_EQ(nearfile_seek(file, -(int64_t)(sizes[i] < 4 ? sizes[i] : 4), NEARFILE_SEEK_END), sizes[i] < 4 ? 0 : sizes[i] - 4);
    CHECK_EQ(nearfile_read(file, buf, 10), sizes[i] < 4 ? sizes[i] : 4);
    CHECK_EQ(far->bytes, sizes[i]);
    CHECK_EQ(far->offences, 0);
    nearfile_close(file);
    far_free(far);
  }
  nearfile_cache_close(cache);
}

static void private_only(void) {
  nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
  far_file *far = far_new(1000, VERSION, 100);
  nearfile_source source = far_source(far, FAR_AT);
  char data[NF_PATH], index[NF_PATH];
  nf_path(data, "data"), nf_path(index, "index");
  for (int i = 0; i < 3; i++) {
    nearfile_options options = {.struct_size = sizeof options, .size = 1000, .mode = NEARFILE_EXACT};
    if (i == 0) options.key = "key";
    if (i == 1) options.data_path = data, options.index_path = index;
    if (i == 2) options.mode = NEARFILE_EXACT + 1;
    nearfile_file *file = (nearfile_file *)far;
    CHECK_EQ(nearfile_open(cache, &source, &options, &file), NEARFILE_ERROR_ARGUMENT);
    CHECK(file == NULL);
  }
  nearfile_options options = {.struct_size = sizeof options, .size = 1000, .mode = NEARFILE_EXACT};
  nearfile_file *file = NULL;
  CHECK_EQ(nearfile_open(NULL, &source, &options, &file), NEARFILE_ERROR_ARGUMENT);
  struct stat stat_buf;
  CHECK(stat(data, &stat_buf) != 0 && stat(index, &stat_buf) != 0);
  // Nothing of it is in the directory, open or closed.
  file = open_exact(cache, far, FAR_AT, 0);
  CHECK_PREAD(file, 500, 3, VERSION);
  int files = 0;
  CHECK_EQ(nf_disk_use(nf_path(data, "cache"), ".data", &files), 0);
  CHECK_EQ(files, 0);
  nearfile_close(file);
  // Nor is it there for the next.
  far_forget(far);
  file = open_exact(cache, far, FAR_AT, 0);
  CHECK_EQ(nf_walk(file), 0);
  CHECK_PREAD(file, 500, 3, VERSION);
  CHECK_EQ(far->bytes, 500);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

static void the_mirror_opens(void) {
  nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
  far_file *far = far_new(1 << 20, VERSION, 4096);
  nearfile_file *file = open_exact(cache, far, FAR_AT, 0);
  CHECK_PREAD(file, 3000, 5001, VERSION);
  CHECK_PREAD(file, 10, (1 << 20) - 10, VERSION);
  const char *path = nearfile_data_path(file);
  CHECK(path != NULL);
  if (path != NULL) {
    CHECK(strncmp(path, "/proc/self/fd/", 14) == 0);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    char buf[3000];
    CHECK_EQ(pread(fd, buf, 3000, 5001), 3000);
    CHECK_BYTES(buf, 3000, 5001, VERSION);
    CHECK_EQ(pread(fd, buf, 100, (1 << 20) - 10), 10);
    CHECK_BYTES(buf, 10, (1 << 20) - 10, VERSION);
    struct stat stat_buf;
    CHECK(fstat(fd, &stat_buf) == 0 && stat_buf.st_nlink == 0);
    CHECK(stat_buf.st_blocks * 512 <= 3 * 4096);
    close(fd);
  }
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// ---- many ranges ------------------------------------------------------------------------------------------------------------

static void a_hundred_thousand_ranges(void) {
  enum { COUNT = 100000, STEP = 64 };
  const uint64_t size = (uint64_t)COUNT * STEP;
  far_file *far = far_new(size, VERSION, 1 << 20);
  nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
  nearfile_file *file = open_exact(cache, far, FAR_AT, 0);
  // In random order, all apart: an order that visits each once.
  uint64_t order = 0;
  char buf[STEP];
  int64_t began = nf_now_ms();
  for (int n = 0; n < COUNT; n++, order = (order + 61803) % COUNT) {
    CHECK_EQ(nearfile_pread(file, buf, STEP / 2, order * STEP), STEP / 2);
    if (n % 16 == 0) CHECK_BYTES(buf, STEP / 2, order * STEP, VERSION);
  }
  int64_t apart = nf_now_ms() - began;
  CHECK_EQ(far->reads, COUNT);
  CHECK_EQ(nf_stats(file).cached_bytes, size / 2);
  CHECK_EQ(nf_stats(file).cached_pages, COUNT);
  began = nf_now_ms();
  for (int n = 0; n < COUNT; n++, order = (order + 61803) % COUNT) {
    CHECK_EQ(nearfile_pread(file, buf, STEP / 2, order * STEP), STEP / 2);
    if (n % 16 == 0) CHECK_BYTES(buf, STEP / 2, order * STEP, VERSION);
  }
  int64_t again = nf_now_ms() - began;
  CHECK_EQ(far->reads, COUNT);
  // What lies between comes in: they merge into one.
  began = nf_now_ms();
  for (int n = 0; n < COUNT; n++, order = (order + 61803) % COUNT) {
    CHECK_EQ(nearfile_pread(file, buf, STEP, order * STEP), STEP);
    if (n % 16 == 0) CHECK_BYTES(buf, STEP, order * STEP, VERSION);
  }
  int64_t merged = nf_now_ms() - began;
  CHECK_EQ(far->bytes, size);
  CHECK_EQ(far->reads, 2 * COUNT);
  CHECK_EQ(nf_stats(file).cached_pages, 1);
  printf("  us per read: %.2f apart, %.2f hit, %.2f merged\n", (double)apart * 1000 / COUNT, (double)again * 1000 / COUNT,
         (double)merged * 1000 / COUNT);
  CHECK(apart + again + merged < 60000);
  uint64_t end = 0;
  int32_t cached = 0;
  CHECK_EQ(nearfile_extent(file, 0, &end, &cached), 0);
  CHECK(end == size && cached == 1);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// ---- threads and forks ----------------------------------------------------------------------------------------------------------

struct job {
  nearfile_file *file;
  uint64_t seed;
  atomic_int *waiting;
};

static void *read_ranges(void *argument) {
  struct job *job = argument;
  uint64_t size = (uint64_t)nearfile_size(job->file);
  nf_meet(job->waiting);
  for (int n = 0; n < 1500; n++) CHECK_PREAD(job->file, (size_t)nf_below(&job->seed, 700), nf_below(&job->seed, size), VERSION);
  CHECK_ALL(job->file, VERSION);
  return NULL;
}

static void threads_share_it(void) {
  enum { SIZE = 150001, THREADS = 8 };
  for (int round = 0; round < 3; round++) {
    far_file *far = far_new(SIZE, VERSION, 1);
    struct asked *asked = asked_new(SIZE);
    far->hook = log_asked, far->hook_data = asked, far->delay_us = 20;
    nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
    nearfile_file *file = open_exact(cache, far, round == 2 ? FAR_SEEK : FAR_AT_OPEN, 0), *other = NULL;
    CHECK_EQ(nearfile_dup(file, &other), 0);
    atomic_int waiting = THREADS;
    struct job jobs[THREADS];
    pthread_t threads[THREADS];
    for (int t = 0; t < THREADS; t++) {
      jobs[t] = (struct job){t % 2 ? file : other, (uint64_t)(round * 100 + t % 4), &waiting};  // in pairs, on the same way
      threads[t] = nf_thread(read_ranges, &jobs[t]);
    }
    for (int t = 0; t < THREADS; t++) nf_join(threads[t]);
    CHECK_EQ(asked->twice, 0);
    CHECK_EQ(asked->bytes, SIZE);
    CHECK_EQ(nf_walk(file), SIZE);
    CHECK_EQ(far->offences, 0);
    CHECK_EQ(nf_stats(file).passed_through, 0);
    nearfile_close(file);
    nearfile_close(other);
    CHECK_EQ(far->opens, far->closes);
    nearfile_cache_close(cache);
    far_free(far);
  }
}

static void *drop_ranges(void *argument) {
  struct job *job = argument;
  uint64_t size = (uint64_t)nearfile_size(job->file);
  nf_meet(job->waiting);
  for (int n = 0; n < 1500; n++) CHECK_EQ(nearfile_discard(job->file, nf_below(&job->seed, size), nf_below(&job->seed, 9000)), 0);
  return NULL;
}

static void threads_read_while_others_drop(void) {
  enum { THREADS = 6 };
  far_file *far = far_new(100000, VERSION, 4096);
  nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
  nearfile_file *file = open_exact(cache, far, FAR_AT, 0);
  atomic_int waiting = THREADS;
  struct job jobs[THREADS];
  pthread_t threads[THREADS];
  for (int t = 0; t < THREADS; t++) {
    jobs[t] = (struct job){file, (uint64_t)t, &waiting};
    threads[t] = nf_thread(t < 4 ? read_ranges : drop_ranges, &jobs[t]);
  }
  for (int t = 0; t < THREADS; t++) nf_join(threads[t]);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nf_walk(file), 100000);
  CHECK_EQ(nearfile_discard(file, 0, UINT64_MAX), 0);
  CHECK_EQ(nf_walk(file), 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// A failed read stores nothing, and those who wait for it ask for themselves.
static int32_t fail_often(far_file *far, uint64_t offset, size_t len) {
  (void)offset, (void)len;
  return far->reads % 3 == 0 ? 503 : 0;
}

static void failures_store_nothing(void) {
  far_file *far = far_new(50000, VERSION, 4096);
  far->hook = fail_often;
  nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
  nearfile_file *file = open_exact(cache, far, FAR_AT, 0);
  uint64_t seed = 6;
  int failed = 0;
  for (int n = 0; n < 3000; n++) {
    char buf[300];
    uint64_t offset = nf_below(&seed, 49000), there = nf_walk(file);
    int64_t got = nearfile_pread(file, buf, sizeof buf, offset);
    if (got < 0) {
      CHECK_EQ(got, NEARFILE_ERROR_SOURCE);
      CHECK_EQ(nf_last_error().source_code, 503);
      CHECK(nf_walk(file) < there + sizeof buf);
      failed++;
    } else {
      CHECK_EQ(got, sizeof buf);
      CHECK_BYTES(buf, sizeof buf, offset, VERSION);
    }
  }
  CHECK(failed > 10);
  far->hook = NULL;
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

static void a_child_starts_its_own(void) {
  enum { SIZE = 120000, CHILDREN = 4 };
  far_file *far = far_new(SIZE, VERSION, 4096);
  nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
  nearfile_file *file = open_exact(cache, far, FAR_AT_OPEN, 0);
  CHECK_PREAD(file, 60000, 0, VERSION);
  CHECK_EQ(far->bytes, 60000);
  atomic_int *waiting = nf_shared(sizeof *waiting);
  atomic_store(waiting, CHILDREN + 1);
  pid_t children[CHILDREN];
  for (int i = 0; i < CHILDREN; i++) {
    children[i] = nf_fork(60);
    if (children[i] != 0) continue;
    CHECK_EQ(nf_walk(file), 0);
    CHECK_EQ(nf_stats(file).source_bytes, 0);
    nf_meet(waiting);
    uint64_t seed = (uint64_t)i;
    for (int n = 0; n < 500; n++) {
      CHECK_PREAD(file, (size_t)nf_below(&seed, 900), nf_below(&seed, SIZE), VERSION);
      if (n % 10 == 0) CHECK_EQ(nearfile_discard(file, nf_below(&seed, SIZE), 5000), 0);
    }
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_walk(file), SIZE);
    pid_t grandchild = nf_fork(30);
    if (grandchild == 0) {
      CHECK_EQ(nf_walk(file), 0);
      CHECK_PREAD(file, 5000, 5, VERSION);
      CHECK_EQ(nf_stats(file).source_bytes, 5000);
      if (i % 2) nearfile_close(file);
      nf_child_ends();
    }
    CHECK_CHILD(grandchild);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    if (i == 3) raise(SIGKILL);
    if (i % 2) nearfile_close(file);
    nf_child_ends();
  }
  nf_meet(waiting);
  for (int n = 0; n < 30; n++) {
    CHECK_EQ(nf_walk(file), 60000);
    CHECK_PREAD(file, 60000, 0, VERSION);
    nf_sleep_us(1000);
  }
  for (int i = 0; i < CHILDREN; i++) {
    if (i == 3) {
      int status = 0;
      MUST(waitpid(children[i], &status, 0) == children[i]);
      CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    } else {
      CHECK_CHILD(children[i]);
    }
  }
  CHECK_EQ(nf_stats(file).source_bytes, 60000);
  CHECK_EQ(nf_walk(file), 60000);
  far_forget(far);
  CHECK_PREAD(file, 60000, 0, VERSION);
  CHECK_EQ(far->bytes, 0);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(far->bytes, SIZE - 60000);
  CHECK_EQ(far->offences, 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
  munmap(waiting, sizeof *waiting);
  far_free(far);
}

// A child without a connection of its own still has nothing, and says so.
static void a_child_without_a_connection(void) {
  far_file *far = far_new(10000, VERSION, 4096);
  nearfile_cache *cache = nf_cache("cache", 0, 0, 0);
  nearfile_file *file = open_exact(cache, far, FAR_AT, 0);
  CHECK_ALL(file, VERSION);
  pid_t child = nf_fork(30);
  if (child == 0) {
    char byte;
    CHECK_EQ(nearfile_pread(file, &byte, 1, 0), NEARFILE_ERROR_FORKED);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  CHECK_EQ(nf_walk(file), 10000);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// ---- limits -----------------------------------------------------------------------------------------------------------------

static const uint32_t policies[] = {NEARFILE_FULL_EVICT, NEARFILE_FULL_STOP, NEARFILE_FULL_FLUSH};
static const char *const policy_names[] = {"evict", "stop", "flush"};

// What its own mirror takes on the disk; by /proc, whatever nearfile_data_path says.
static uint64_t unnamed_blocks(void) {
  uint64_t sum = 0;
  DIR *list = opendir("/proc/self/fd");
  MUST(list != NULL);
  ino_t seen[64];
  int count = 0;
  for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
    struct stat stat_buf;
    if (entry->d_name[0] == '.' || fstat(atoi(entry->d_name), &stat_buf) != 0) continue;
    if (!S_ISREG(stat_buf.st_mode) || stat_buf.st_nlink != 0) continue;
    bool again = false;
    for (int i = 0; i < count; i++) again = again || seen[i] == stat_buf.st_ino;
    if (again || count == 64) continue;
    seen[count++] = stat_buf.st_ino;
    sum += (uint64_t)stat_buf.st_blocks * 512;
  }
  closedir(list);
  return sum;
}

static void limits_hold(bool of_file, bool discards) {
  enum { LIMIT = 200000, SIZE = 1000000 };
  for (int policy = 0; policy < 3; policy++) {
    size_t before = nf_enter(policy_names[policy]);
    int failures = nf_failures;
    far_file *far = far_new(SIZE, VERSION, 4096);
    nearfile_cache *cache = nf_limited("cache", 0, of_file ? 0 : LIMIT, policies[policy]);
    nearfile_file *file = open_exact(cache, far, FAR_AT, of_file ? LIMIT : 0);
    uint64_t seed = 4, most = 0;
    for (int n = 0; n < 1500 && nf_failures < failures + 3; n++) {
      CHECK_PREAD(file, (size_t)nf_below(&seed, 6000), nf_below(&seed, SIZE), VERSION);
      CHECK(nf_stats(file).cached_bytes <= LIMIT);
      uint64_t blocks = unnamed_blocks();
      CHECK(blocks <= LIMIT + 8192);
      if (blocks > most) most = blocks;
      if (discards && n % 20 == 0) CHECK_EQ(nearfile_discard(file, nf_below(&seed, SIZE), nf_below(&seed, 50000)), 0);
    }
    CHECK_PREAD(file, SIZE, 0, VERSION);
    CHECK(unnamed_blocks() <= LIMIT + 8192);
    CHECK(most > LIMIT / 2);
    nearfile_close(file);
    CHECK_EQ(unnamed_blocks(), 0);
    nearfile_cache_close(cache);
    if (nf_failures != failures) fprintf(stderr, "  that was policy %s\n", policy_names[policy]);
    far_free(far);
    nf_leave(before);
  }
}

static void the_directorys_limit_holds(void) { limits_hold(false, false); }
static void the_files_limit_holds(void) { limits_hold(true, false); }
static void the_directorys_limit_holds_under_discards(void) { limits_hold(false, true); }
static void the_files_limit_holds_under_discards(void) { limits_hold(true, true); }

// Parts of blocks, dropped as they were read: their blocks do not pile up.
static void small_ranges_give_their_blocks_back(void) {
  enum { LIMIT = 20 * 4096 };
  far_file *far = far_new(4 << 20, VERSION, 4096);
  nearfile_cache *cache = nf_limited("cache", 4096, LIMIT, NEARFILE_FULL_STOP);
  nearfile_file *file = open_exact(cache, far, FAR_AT, 0);
  for (uint64_t n = 0; n < 200; n++) {
    CHECK_PREAD(file, 100, n * 4096 + 50, VERSION);
    CHECK_PREAD(file, 100, n * 4096 + 300, VERSION);
    CHECK_EQ(nf_walk(file), 200);
    CHECK_EQ(nearfile_discard(file, n * 4096 + 50, 100), 0);
    CHECK_EQ(nearfile_discard(file, n * 4096 + 300, 100), 0);
    CHECK_EQ(nf_walk(file), 0);
  }
  CHECK(unnamed_blocks() <= LIMIT + 8192);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// Dropping what is not there gives nothing back.
static void dropping_nothing_frees_nothing(void) {
  enum { LIMIT = 100 * 4096 };
  for (int of_file = 0; of_file < 2; of_file++) {
    size_t before = nf_enter(of_file ? "file" : "directory");
    far_file *far = far_new(16 << 20, VERSION, 4096);
    nearfile_cache *cache = nf_limited("cache", 4096, of_file ? 0 : LIMIT, NEARFILE_FULL_STOP);
    nearfile_file *file = open_exact(cache, far, FAR_AT, of_file ? LIMIT : 0);
    for (uint64_t n = 0; n < 20; n++) {
      CHECK_PREAD(file, 90 * 4096, n * 90 * 4096, VERSION);
      CHECK_EQ(nearfile_discard(file, 15 << 20, 1 << 20), 0);
      CHECK_EQ(nearfile_discard(file, (15 << 20) + 1, 5000), 0);
      CHECK(unnamed_blocks() <= LIMIT + 8192);  // two for the file system's own
    }
    CHECK(nf_walk(file) <= LIMIT);
    nearfile_close(file);
    // And all of it comes back in the end.
    file = nf_open_far(cache, far, FAR_AT, "another");
    for (uint64_t page = 0; page < 100; page++) CHECK_PREAD(file, 4096, page * 4096, VERSION);
    CHECK_EQ(nf_walk(file), LIMIT);
    nearfile_close(file);
    nearfile_cache_close(cache);
    far_free(far);
    nf_leave(before);
  }
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(bytes_are_read_once), NF_CASE(reads_clamp_at_the_end), NF_CASE(private_only),
                                         NF_CASE(the_mirror_opens), NF_CASE(a_hundred_thousand_ranges), NF_CASE(threads_share_it),
                                         NF_CASE(threads_read_while_others_drop), NF_CASE(failures_store_nothing),
                                         NF_CASE(a_child_starts_its_own), NF_CASE(a_child_without_a_connection),
                                         NF_CASE(the_directorys_limit_holds), NF_CASE(the_files_limit_holds),
                                         NF_CASE(the_directorys_limit_holds_under_discards),
                                         NF_CASE(the_files_limit_holds_under_discards),
                                         NF_CASE(small_ranges_give_their_blocks_back), NF_CASE(dropping_nothing_frees_nothing)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
