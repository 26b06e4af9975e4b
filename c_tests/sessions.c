// Guards the beginning and the end of sessions, where openers, closers and the dead meet on the same locks: the program puts a pause
// after every lock call of the library (its own fcntl takes libc's place), so that what else happens once in a thousand happens.
#include "nf_test.h"
#include "nf_locks.h"

enum { VERSION = 31, PAGE = 4096, PAGES = 20, SIZE = PAGES * PAGE - 5 };

// ---- many openers and closers ---------------------------------------------------------------------------------------------------

static void open_read_close(far_file *far, uint64_t *seed, bool drops) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  CHECK(nearfile_data_path(file) != NULL && strncmp(nearfile_data_path(file), "/proc", 5) != 0);
  if (drops) CHECK_EQ(nearfile_discard(file, nf_below(seed, SIZE), 3 * PAGE), 0);
  for (int i = 0; i < 3; i++) CHECK_PREAD(file, 100 + (size_t)nf_below(seed, 2 * PAGE), nf_below(seed, SIZE), VERSION);
  nearfile_stats stats = nf_stats(file);
  CHECK_EQ(stats.passed_through, 0);
  CHECK_EQ(stats.checksum_failures, 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void run_processes(far_file *far, int count, int64_t ms, unsigned locked_us, unsigned refused_us, bool drops, bool kills) {
  enum { MOST = 6 };
  pid_t children[MOST] = {0};
  int64_t end = nf_now_ms() + ms;
  uint64_t seed = (uint64_t)ms;
  for (int round = 0; round == 0 || (kills && nf_now_ms() < end); round++) {
    for (int i = 0; i < count; i++) {
      if (children[i] != 0 && nf_below(&seed, 3) != 0) continue;
      if (children[i] != 0) nf_kill(children[i]);
      children[i] = nf_fork(30);
      if (children[i] != 0) continue;
      uint64_t mine = nf_pause_seed = (uint64_t)(round * 10 + i);
      nf_pause_locked_us = locked_us, nf_pause_refused_us = refused_us;
      nf_after_lock = nf_after_look = nf_pause_at_random;
      while ((kills || nf_now_ms() < end) && nf_failures == 0) open_read_close(far, &mine, drops);
      CHECK(nf_lock_calls > 0);  // the pauses were there
      nf_child_ends();
    }
    if (kills) nf_sleep_us((unsigned)nf_below(&seed, 15000));
  }
  for (int i = 0; i < count; i++) {
    if (kills) {
      nf_kill(children[i]);
    } else {
      CHECK_CHILD(children[i]);
    }
  }
}

static void check_clean(far_file *far) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  for (int i = 0; i < 2; i++) {
    nearfile_source source = far_source(far, FAR_AT);
    nearfile_file *file = nf_open(cache, &source, "key", NULL, SIZE, NEARFILE_TRUST_CLEAN);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).checksum_failures, 0);
    CHECK_EQ(nf_stats(file).passed_through, 0);
    if (i == 1) CHECK_EQ(nf_stats(file).pages_verified, 0);
    nearfile_close(file);
  }
  nearfile_cache_close(cache);
}

// Sessions that begin and end all the time: whoever is in one can store pages, and the end is clean.
static void openers_meet_closers(void) {
  static const unsigned pauses[][2] = {{0, 0}, {0, 2000}, {2000, 0}, {1000, 1000}, {200, 4000}};
  for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
    far_file *far = far_new(SIZE, VERSION, PAGE);
    run_processes(far, 4, 600, pauses[i][0], pauses[i][1], true, false);
    check_clean(far);
    far_free(far);
  }
}

// Without a page to be stored, a session leaves nothing to sync and ends clean all the same.
static void hits_only(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  check_clean(far);
  uint64_t reads = far->reads;
  run_processes(far, 4, 500, 300, 2000, false, false);
  CHECK_EQ(far->reads, reads);
  check_clean(far);
  CHECK_EQ(far->reads, reads);
  far_free(far);
}

static void openers_and_closers_are_killed(void) {
  static const unsigned pauses[][2] = {{0, 0}, {300, 2000}, {3000, 3000}};
  for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
    far_file *far = far_new(SIZE, VERSION, PAGE);
    run_processes(far, 4, 1500, pauses[i][0], pauses[i][1], true, true);
    check_clean(far);
    far_free(far);
  }
}

// ---- an opener that dies between its lock and its first word ----------------------------------------------------------------------

static struct scene {
  atomic_int locked, refused, dead;
} *scene;

static void die_with_the_lock(int fd, const struct flock *lock, bool locked) {
  (void)fd, (void)lock;
  if (!locked) return;
  atomic_store(&scene->locked, 1);
  NF_UNTIL(atomic_load(&scene->refused), 3000);
  kill(getpid(), SIGKILL);
}

static void wait_for_a_death(int fd, const struct flock *lock, bool locked) {
  (void)fd, (void)lock;
  if (locked) return;
  atomic_store(&scene->refused, 1);
  NF_UNTIL(atomic_load(&scene->dead), 10000);
}

// A session whose every page says verified, and which a power cut ended: they are zeros.
static void cut_a_session(const char *name, far_file *far) {
  pid_t child = nf_fork(20);
  if (child == 0) {
    nearfile_cache *cache = nf_cache(name, PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
    CHECK_ALL(file, VERSION);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).pages_verified, PAGES);
    int fd = open(nearfile_data_path(file), O_RDWR | O_CLOEXEC);  // what the cut took away
    MUST(fd >= 0 && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE) == 0);
    nf_child_ends();  // and never closes
  }
  CHECK_CHILD(child);
}

// After a session that a power cut ended, an opener takes the session's lock and is killed
// before it has begun one; whoever comes after, and saw that lock, must not take the cut session for a living one.
static void a_dead_session_is_not_joined(void) {
  for (int openers = 1; openers <= 2; openers++) {
    char name[20];
    snprintf(name, sizeof name, "cache%d", openers);
    scene = nf_shared(sizeof *scene);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    cut_a_session(name, far);

    pid_t victim = nf_fork(20);
    if (victim == 0) {
      nearfile_cache *cache = nf_cache(name, PAGE, 0, 0);
      nf_after_lock = die_with_the_lock;
      nf_open_far(cache, far, FAR_AT, "key");
      nf_child_ends();
    }
    NF_UNTIL(scene->locked, 10000);
    MUST(scene->locked);
    pid_t children[2];
    for (int i = 0; i < openers; i++) {
      children[i] = nf_fork(20);
      if (children[i] != 0) continue;
      nearfile_cache *cache = nf_cache(name, PAGE, 0, 0);
      nf_after_lock = wait_for_a_death;
      nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
      CHECK_ALL(file, VERSION);
      CHECK_EQ(nf_stats(file).passed_through, 0);
      nearfile_close(file);
      nearfile_cache_close(cache);
      CHECK(scene->refused);
      nf_child_ends();
    }
    int status = 0;
    MUST(waitpid(victim, &status, 0) == victim);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(scene->refused);
    nf_sleep_us(20000);  // the second of two has come to its lock too
    atomic_store(&scene->dead, 1);
    for (int i = 0; i < openers; i++) CHECK_CHILD(children[i]);
    munmap(scene, sizeof *scene);
    far_free(far);
  }
}

// ---- children of openers and closers that die ----------------------------------------------------------------------------------

static struct heir {
  atomic_int pid, calls;
} *heir;
static int dies_after;

// Forks a child that lives on, and dies right after a lock was had.
static void fork_and_die(int fd, const struct flock *lock, bool locked) {
  (void)fd, (void)lock;
  if (!locked || atomic_fetch_add(&heir->calls, 1) != dies_after) return;
  pid_t child = fork();
  if (child == 0) {
    alarm(20);
    for (;;) pause();
  }
  atomic_store(&heir->pid, child);
  kill(getpid(), SIGKILL);
}

static void open_read_all_close(const char *name, far_file *far) {
  nearfile_cache *cache = nf_cache(name, PAGE, 0, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  CHECK(strncmp(nearfile_data_path(file), "/proc", 5) != 0);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nearfile_discard(file, 0, 3 * PAGE), 0);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nf_stats(file).passed_through, 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

// At whatever lock an opener, dropper or closer is killed: a child that it had forked there keeps nobody else out, nor a cut session
// alive.
static void children_of_the_dead_keep_nobody_out(void) {
  heir = nf_shared(sizeof *heir);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  bool died = true;
  for (dies_after = 0; died; dies_after++) {
    atomic_store(&heir->pid, 0);
    atomic_store(&heir->calls, 0);
    char name[20];
    snprintf(name, sizeof name, "cache%d", dies_after);
    cut_a_session(name, far);
    pid_t victim = nf_fork(20);
    if (victim == 0) {
      nf_after_lock = fork_and_die;
      open_read_all_close(name, far);
      nf_child_ends();
    }
    int status = 0;
    MUST(waitpid(victim, &status, 0) == victim);
    died = WIFSIGNALED(status);
    CHECK(died || status == 0);
    pid_t other = nf_fork(20);
    if (other == 0) {
      int64_t began = nf_now_ms();
      open_read_all_close(name, far);
      CHECK(nf_now_ms() - began < 5000);
      nf_child_ends();
    }
    CHECK_CHILD(other);
    if (died) kill(heir->pid, SIGKILL);
  }
  CHECK(dies_after > 5);
  munmap(heir, sizeof *heir);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(openers_meet_closers), NF_CASE(hits_only), NF_CASE(openers_and_closers_are_killed),
                                         NF_CASE(a_dead_session_is_not_joined), NF_CASE(children_of_the_dead_keep_nobody_out)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
