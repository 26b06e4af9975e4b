// Guards that a stopped process slows nobody beyond the bound: it is stopped at a random moment, inside a fetch, or with the lock of
// a page, a pair's gate, a dropper, the directory, its gate or its evictor just got. The others open, read, drop, pin, trim and close
// within their waits, with every byte right; and when it goes on, all is well.
#include "torture.h"

#include "../nf_locks.h"

enum { VERSION = 89, PAGE = 4096, PAGES = 16, SIZE = PAGES * PAGE - 50, WAIT_MS = 100, OTHERS = 2, WATCHDOG_S = 40, LIMIT = 40 * PAGE };

// What a call may take: some waits of WAIT_MS, or of the library's own half a second, on a machine that is busy with other things.
enum { BOUND_MS = 3000 };

enum place { ANYWHERE, IN_A_FETCH, PAGE_LOCK, PAIR_GATE, DROPPER, DIRECTORY, DIRECTORY_GATE, EVICTOR, PLACES };
static const char *const place_names[PLACES] = {"anywhere", "fetch", "page", "gate", "dropper", "directory", "its gate", "evictor"};

static struct scene {
  atomic_int residents;
  atomic_int stopped;  // it has said that it stops now
  atomic_bool over;    // the stopped one has gone on and ends
  _Atomic uint64_t slowest_us[PLACES];
} *scene;

static uint64_t stops[PLACES];
static far_file *far_files[2];
static const char *const keys[2] = {"a", "b"};

static nearfile_cache *open_cache(void) {
  nearfile_cache_options options = {
      .struct_size = sizeof options, .page_size = PAGE, .max_fetch_bytes = 3 * PAGE, .size_limit = LIMIT, .wait_ms = WAIT_MS};
  char path[NF_PATH];
  nearfile_cache *cache = NULL;
  MUST(nearfile_cache_open(nf_path(path, "cache"), &options, &cache) == 0);
  return cache;
}

// ---- who is stopped --------------------------------------------------------------------------------------------------------

static enum place stops_at;
static uint64_t stops_after;  // so many times past it

static void stop_now(void) {
  if (stops_after-- != 0) return;
  stops_at = ANYWHERE;
  atomic_store(&scene->stopped, 1);
  kill(getpid(), SIGSTOP);
}

static bool is_control(int fd) {
  char link[40], path[NF_PATH];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t len = readlink(link, path, sizeof path - 1);
  if (len < 0) return false;
  path[len] = 0;
  return strcmp(path + (len < 8 ? 0 : len - 8), "/control") == 0;
}

static bool is_the_place(int fd, const struct flock *lock) {
  bool control = is_control(fd);
  switch (stops_at) {
    case PAGE_LOCK: return !control && lock->l_start >= NF_LOCK_PAGE_0 && lock->l_type == F_WRLCK;
    case PAIR_GATE: return !control && lock->l_start == NF_LOCK_GATE;
    case DROPPER: return !control && lock->l_start == NF_LOCK_FREEZE && lock->l_type == F_WRLCK;
    case DIRECTORY: return control && lock->l_start == NF_LOCK_DIRECTORY;
    case DIRECTORY_GATE: return control && lock->l_start == NF_LOCK_DIRECTORY_GATE;
    case EVICTOR: return control && lock->l_start == NF_LOCK_EVICTOR;
    default: return false;
  }
}

static void stop_with_the_lock(int fd, const struct flock *lock, bool locked) {
  if (locked && stops_at > IN_A_FETCH && is_the_place(fd, lock)) stop_now();
}

static int32_t stop_in_the_fetch(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  if (stops_at == IN_A_FETCH) stop_now();
  return 0;
}

// ---- what everyone does ----------------------------------------------------------------------------------------------------

static enum place measured;
static bool is_victim;
static int64_t call_began_us;

// A busy disk is none of this: times are those of the locks.
int fsync(int fd) { return fd < 0 ? -1 : 0; }
int fdatasync(int fd) { return fd < 0 ? -1 : 0; }

static void begin_call(void) { call_began_us = torture_now_us(); }

static void end_call(int line, const char *what) {
  int64_t took = torture_now_us() - call_began_us;
  if (is_victim || !atomic_load(&scene->stopped)) return;
  torture_raise(&scene->slowest_us[measured], (uint64_t)took);
  if (took > BOUND_MS * 1000) {
    char text[200];
    snprintf(text, sizeof text, "%s took %lld ms, with one stopped: %s", what, (long long)took / 1000, place_names[measured]);
    nf_fail(__FILE__, line, text);
  }
}

#define BOUNDED(call) (begin_call(), (call), end_call(__LINE__, #call))

static void pin_and_look(const nearfile_file *file, uint64_t at, uint64_t version) {
  nearfile_pin *pin = NULL;
  MUST(nearfile_pin_range(file, at, 2 * PAGE, &pin) == 0);
  CHECK_BYTES(nearfile_pin_data(pin), nearfile_pin_size(pin), at, version);
  nearfile_pin_release(pin);
}

// May fail where the evictor is stopped, and says so in time.
static void trim(const nearfile_cache *cache, uint64_t keep) {
  int32_t status = nearfile_cache_trim(cache, keep);
  CHECK(status == 0 || status == NEARFILE_ERROR_IO);
}

static void use(nearfile_cache *cache, nearfile_file *file, uint64_t version, uint64_t *seed) {
  uint64_t at = nf_below(seed, SIZE);
  switch (nf_below(seed, 6)) {
    case 0: BOUNDED(CHECK_EQ(nearfile_discard(file, at, 6 * PAGE), 0)); break;
    case 1: BOUNDED(pin_and_look(file, at, version)); break;
    case 2: BOUNDED(trim(cache, nf_below(seed, LIMIT))); break;
    default: break;
  }
  BOUNDED(CHECK_PREAD(file, (size_t)nf_below(seed, 3 * PAGE), at, version));
}

static void once(uint64_t *seed, const char *const keys[2]) {
  nearfile_cache *cache = NULL;
  nearfile_file *file = NULL;
  uint64_t which = nf_below(seed, 2);
  BOUNDED(cache = open_cache());
  BOUNDED(file = nf_open_far(cache, far_files[which], FAR_AT, keys[which]));
  for (int i = 0; i < 3; i++) use(cache, file, VERSION + which, seed);
  BOUNDED(CHECK_ALL(file, VERSION + which));
  BOUNDED(nearfile_close(file));
  BOUNDED(nearfile_cache_close(cache));
}

static void victim(enum place place, uint64_t seed) {
  stops_at = place, stops_after = nf_below(&seed, 4), is_victim = true;
  nf_after_lock = stop_with_the_lock;
  for (unsigned n = 0; !atomic_load(&scene->over) && nf_failures == 0; n++) {
    char fresh[2][20];  // files that are not there yet, which takes the directory's lock
    snprintf(fresh[0], sizeof fresh[0], "a%u", n % 100);
    snprintf(fresh[1], sizeof fresh[1], "b%u", n % 100);
    const char *const fresh_keys[2] = {fresh[0], fresh[1]};
    once(&seed, place == DIRECTORY ? fresh_keys : keys);
  }
  nf_child_ends();
}

static void other(enum place place, uint64_t seed) {
  measured = place;
  for (int i = 0; i < 2 && nf_failures == 0; i++) once(&seed, keys);
  nf_child_ends();
}

// One that came in before: it must come out, too.
static void resident(enum place place, uint64_t seed) {
  measured = place;
  nearfile_cache *cache = open_cache();
  nearfile_file *files[2] = {nf_open_far(cache, far_files[0], FAR_AT, keys[0]), nf_open_far(cache, far_files[1], FAR_AT, keys[1])};
  atomic_fetch_add(&scene->residents, 1);
  NF_UNTIL(atomic_load(&scene->stopped), 20000);
  for (uint64_t i = 0; i < 2; i++) {
    use(cache, files[i], VERSION + i, &seed);
    BOUNDED(nearfile_close(files[i]));
  }
  BOUNDED(nearfile_cache_close(cache));
  nf_child_ends();
}

// After it went on, and ended: all is in place, shared, and cheap again.
static void check_all_is_well(void) {
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) {
    nearfile_cache *cache = open_cache();
    for (uint64_t i = 0; i < 2; i++) {
      nearfile_file *file = nf_open_far(cache, far_files[i], FAR_AT, keys[i]);
      CHECK(strncmp(nearfile_data_path(file), "/proc/", 6) != 0);
      CHECK_ALL(file, VERSION + i);
      CHECK_ALL(file, VERSION + i);
      CHECK_EQ(nf_stats(file).checksum_failures, 0);
      CHECK_EQ(nf_stats(file).waits, 0);
      CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
      CHECK_EQ(nf_walk(file), 0);
      nearfile_close(file);
    }
    CHECK_EQ(nearfile_cache_trim(cache, 0), 0);
    for (int i = 0; i < 2; i++) CHECK_EQ(nearfile_cache_remove(cache, keys[i]), 0);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

static void one_round(enum place place, uint64_t *seed) {
  memset(scene, 0, offsetof(struct scene, slowest_us));
  pid_t others[OTHERS + 1];
  bool with_resident = nf_below(seed, 2);
  if (with_resident) {
    others[OTHERS] = nf_fork(WATCHDOG_S);
    if (others[OTHERS] == 0) resident(place, nf_random(seed));
    NF_UNTIL(scene->residents == 1, 10000);
  }
  pid_t stopped = nf_fork(WATCHDOG_S);
  if (stopped == 0) victim(place, nf_random(seed));
  if (place == ANYWHERE) {
    nf_sleep_us((unsigned)nf_below(seed, 20000));
    atomic_store(&scene->stopped, 1);
    kill(stopped, SIGSTOP);
  }
  int status = 0;
  MUST(waitpid(stopped, &status, WUNTRACED) == stopped);
  if (!WIFSTOPPED(status)) {
    nf_fail(__FILE__, __LINE__, "the one to be stopped ended before (see above)");
    return;
  }
  stops[place]++;
  for (int i = 0; i < OTHERS; i++) {
    others[i] = nf_fork(WATCHDOG_S);
    if (others[i] == 0) other(place, nf_random(seed) + (uint64_t)i);
  }
  for (int i = 0; i < OTHERS + with_resident; i++) CHECK_CHILD(others[i]);
  atomic_store(&scene->stopped, 0);
  atomic_store(&scene->over, true);
  kill(stopped, SIGCONT);
  CHECK_CHILD(stopped);
  check_all_is_well();
}

int main(int argc, char **argv) {
  torture_begin(argc, argv, "stops", 400);
  scene = nf_shared(sizeof *scene);
  for (uint64_t i = 0; i < 2; i++) {
    far_files[i] = far_new(SIZE, VERSION + i, PAGE);
    far_files[i]->hook = stop_in_the_fetch;
  }
  uint64_t seed = 97;
  while (torture_goes_on()) {
    one_round((enum place)(torture.done % PLACES), &seed);
    if (torture.done % 3 == 0) torture_remove("cache");
  }
  char text[400] = "";
  for (int i = 0; i < PLACES; i++) {
    size_t len = strlen(text);
    snprintf(text + len, sizeof text - len, "%s%s %" PRIu64 " (%.0f ms)", i == 0 ? "" : ", ", place_names[i], stops[i],
             (double)scene->slowest_us[i] / 1000);
  }
  return torture_report("stops, and the slowest call of others, who wait %d ms for a page: %s", WAIT_MS, text);
}
