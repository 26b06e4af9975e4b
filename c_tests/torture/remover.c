// Guards that an index never meets another mirror: a remover, openers, closers and trimmers of one key race, with pauses after lock
// calls and after names are taken away, and are killed. Every byte is right, nothing is replaced, and no file of ours is left behind.
#include "torture.h"

#include "../nf_locks.h"

enum { VERSION = 83, PAGE = 4096, PAGES = 12, SIZE = PAGES * PAGE - 5, PROCESSES = 5, ROUND_MS = 250, WATCHDOG_S = 30 };

static struct scene {
  _Atomic uint64_t opened, removed, trimmed;
  atomic_bool over;
} *scene;

// ---- pauses where names go, and a clock that can be put forward ------------------------------------------------------------

static unsigned unlink_pause_us;
static time_t clock_ahead;

static int pause_after(int result) {
  int saved = errno;
  if (unlink_pause_us != 0 && nf_below(&nf_pause_seed, 2)) nf_sleep_us((unsigned)nf_below(&nf_pause_seed, unlink_pause_us));
  errno = saved;
  return result;
}

int unlink(const char *path) { return pause_after((int)syscall(SYS_unlinkat, AT_FDCWD, path, 0)); }
int unlinkat(int dir, const char *path, int flags) { return pause_after((int)syscall(SYS_unlinkat, dir, path, flags)); }

int clock_gettime(clockid_t clock, struct timespec *out) {
  int result = (int)syscall(SYS_clock_gettime, clock, out);
  if (clock == CLOCK_REALTIME) out->tv_sec += clock_ahead;
  return result;
}

// ---- who races ---------------------------------------------------------------------------------------------------------------

static void hear(void *user_data, int32_t level, const char *line) {
  (void)user_data, (void)level;
  if (strstr(line, "replaced") != NULL || strstr(line, "not the one") != NULL) nf_fail(__FILE__, __LINE__, line);
}

static void open_read_close(nearfile_cache *cache, far_file *far, uint64_t *seed) {
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  CHECK(nearfile_data_path(file) != NULL && strncmp(nearfile_data_path(file), "/proc/", 6) != 0);
  for (int i = 0; i < 3; i++) CHECK_PREAD(file, 1 + (size_t)nf_below(seed, 4 * PAGE), nf_below(seed, SIZE), VERSION);
  nearfile_stats stats = nf_stats(file);
  CHECK_EQ(stats.passed_through, 0);
  CHECK_EQ(stats.checksum_failures, 0);
  nearfile_close(file);
  atomic_fetch_add(&scene->opened, 1);
}

static void once(far_file *far, uint64_t *seed) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 3 * PAGE, 0);
  for (uint64_t n = nf_below(seed, 4); n > 0; n--) {
    switch (nf_below(seed, 6)) {
      case 0:
        CHECK_EQ(nearfile_cache_remove(cache, "key"), 0);
        atomic_fetch_add(&scene->removed, 1);
        break;
      case 1:
        CHECK_EQ(nearfile_cache_trim(cache, 0), 0);
        atomic_fetch_add(&scene->trimmed, 1);
        break;
      default: open_read_close(cache, far, seed); break;
    }
  }
  nearfile_cache_close(cache);
}

static void race(far_file *far, uint64_t seed) {
  static const unsigned pauses[][3] = {{0, 0, 0}, {0, 1000, 500}, {1000, 0, 0}, {300, 300, 5000}, {0, 0, 20000}};
  const unsigned *pause = pauses[torture.done % 5];
  nf_pause_locked_us = pause[0], nf_pause_refused_us = pause[1], unlink_pause_us = pause[2];
  nf_pause_seed = seed;
  nf_after_lock = nf_pause_at_random;
  nearfile_set_log(hear, NULL, NEARFILE_LOG_WARN);
  while (!atomic_load(&scene->over) && nf_failures == 0) once(far, &seed);
  nf_child_ends();
}

// ---- what is left ------------------------------------------------------------------------------------------------------------

// Copies `control`, whole or with nothing in it yet, as a maker that was killed leaves it.
static void plant_a_control(const char *name, bool whole) {
  char from[NF_PATH], to[NF_PATH];
  static char bytes[1 << 17];
  int in = open(nf_path(from, "cache/control"), O_RDONLY | O_CLOEXEC);
  int out = open(nf_path(to, name), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  MUST(in >= 0 && out >= 0);
  ssize_t len = read(in, bytes, sizeof bytes);
  if (!whole) memset(bytes, 0, sizeof bytes);
  MUST(len > 0 && write(out, bytes, (size_t)len) == len && close(in) == 0 && close(out) == 0);
}

// Comes and goes: what is young is left, and not forgotten by an end that is clean.
static void come_and_go(void) {
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) {
    for (int i = 0; i < 3; i++) nearfile_cache_close(nf_cache("cache", PAGE, 0, 0));
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

// After all have left: whoever comes and removes the key leaves only `control`. What the killed left behind goes once it is old.
static void check_nothing_left(far_file *far, bool killed) {
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) {
    nearfile_set_log(hear, NULL, NEARFILE_LOG_WARN);
    if (killed) clock_ahead = 100;
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).checksum_failures, 0);
    CHECK_EQ(torture_files("cache", ".index", false), 1);
    CHECK_EQ(torture_files("cache", ".data", false), 1);
    nearfile_close(file);
    CHECK_EQ(nearfile_cache_remove(cache, "key"), 0);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  CHECK_FILES("cache", 1);  // `control`
  uint64_t used = 1;
  char path[NF_PATH];
  int fd = open(nf_path(path, "cache/control"), O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0 && pread(fd, &used, sizeof used, 72) == sizeof used && close(fd) == 0);
  CHECK_EQ(used, 0);
}

static uint64_t kills;

// A directory with a `control`, whose maker was not killed.
static void make_cache(void) {
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) {
    nearfile_cache_close(nf_cache("cache", PAGE, 0, 0));
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

static void one_round(far_file *far, bool kills_them) {
  make_cache();
  pid_t children[PROCESSES];
  int64_t end = nf_now_ms() + ROUND_MS;
  uint64_t seed = torture.done;
  atomic_store(&scene->over, false);
  for (uint64_t i = 0; i < PROCESSES; i++) {
    children[i] = nf_fork(WATCHDOG_S);
    if (children[i] == 0) race(far, torture.done * PROCESSES + i);
  }
  while (kills_them && nf_now_ms() < end) {
    nf_sleep_us((unsigned)nf_below(&seed, 15000));
    uint64_t dies = nf_below(&seed, PROCESSES);
    nf_kill(children[dies]);
    kills++;
    children[dies] = nf_fork(WATCHDOG_S);
    if (children[dies] == 0) race(far, torture.done * 1000 + kills);
  }
  NF_UNTIL(nf_now_ms() >= end, ROUND_MS);
  atomic_store(&scene->over, true);
  for (int i = 0; i < PROCESSES; i++) CHECK_CHILD(children[i]);
  if (kills_them) {
    plant_a_control("cache/00112233445566778899aabbccddeeff.tmp", true);
    plant_a_control("cache/ffeeddccbbaa99887766554433221100.tmp", false);
    come_and_go();
  }
  check_nothing_left(far, kills_them);
}

int main(int argc, char **argv) {
  torture_begin(argc, argv, "remover", 300);
  scene = nf_shared(sizeof *scene);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  while (torture_goes_on()) {
    one_round(far, torture.done % 2);
    torture_remove("cache");
  }
  return torture_report("%d processes each opened one key %" PRIu64 " times, removed it %" PRIu64 " times and trimmed it away %" PRIu64
                        " times; %" PRIu64 " killed; no orphans",
                        PROCESSES, scene->opened, scene->removed, scene->trimmed, kills);
}
