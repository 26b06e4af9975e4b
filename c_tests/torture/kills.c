// Guards that kill -9 at any moment leaves no wrong byte, no hang and no lock: of four processes that open, read, drop, pin, trim and
// close files of a directory with a limit, one to four are killed, and a fresh one reads everything after them; children that the
// killed had forked in the middle of a fetch live on meanwhile.
#include "torture.h"

#include "../nf_locks.h"

enum { VERSION = 53, PAGE = 4096, PAGES = 24, SIZE = PAGES * PAGE - 700, WORKERS = 4, FILES = 3, LIMIT = 40 * PAGE, WATCHDOG_S = 30, HANG_S = 5 };

static far_file *far_files[FILES];
static const char *const keys[FILES] = {"a", "b", "c"};

// Fetches of some pages at once, or of a page in pieces.
static nearfile_cache *open_cache(bool in_pieces) {
  nearfile_cache_options options = {
      .struct_size = sizeof options, .page_size = PAGE, .max_fetch_bytes = in_pieces ? PAGE / 4 : 4 * PAGE, .size_limit = LIMIT, .wait_ms = 10000};
  char path[NF_PATH];
  nearfile_cache *cache = NULL;
  MUST(nearfile_cache_open(nf_path(path, "cache"), &options, &cache) == 0);
  return cache;
}

// ---- syncs that cost less ------------------------------------------------------------------------------------------------

// Of eight syncs one is done: the kernel keeps what the killed wrote, and the disk would be most of the time.
static bool is_done(void) {
  static atomic_uint calls;
  return atomic_fetch_add(&calls, 1) % 8 == 7;
}

int fsync(int fd) { return is_done() ? (int)syscall(SYS_fsync, fd) : 0; }
int fdatasync(int fd) { return is_done() ? (int)syscall(SYS_fdatasync, fd) : 0; }

// ---- children that outlive the killed ------------------------------------------------------------------------------------

enum { MOST_HEIRS = 256 };

static struct heirs {
  _Atomic uint64_t count;
  atomic_int pids[MOST_HEIRS];
} *heirs;

static void leave_an_heir(void) {
  if (fork() != 0) return;
  alarm(WATCHDOG_S);
  atomic_store(&heirs->pids[atomic_fetch_add(&heirs->count, 1) % MOST_HEIRS], getpid());
  for (;;) pause();
}

static void kill_heirs(void) {
  for (int i = 0; i < MOST_HEIRS; i++) {
    pid_t heir = atomic_exchange(&heirs->pids[i], 0);
    if (heir != 0) kill(heir, SIGKILL);
  }
}

// With all their parents dead, they are this process's children.
static void end_heirs(void) {
  pid_t gone;
  while ((gone = waitpid(-1, NULL, WNOHANG)) >= 0) {
    kill_heirs();
    if (gone == 0) nf_sleep_us(200);
  }
}

// ---- who is killed -------------------------------------------------------------------------------------------------------

static void use(nearfile_cache *cache, nearfile_file *file, uint64_t version, uint64_t *seed) {
  uint64_t at = nf_below(seed, SIZE);
  switch (nf_below(seed, 10)) {
    case 0: CHECK_EQ(nearfile_discard(file, at, nf_below(seed, 9 * PAGE)), 0); break;
    case 1: {
      nearfile_pin *pin = NULL;
      MUST(nearfile_pin_range(file, at, (size_t)nf_below(seed, 3 * PAGE), &pin) == 0);
      CHECK_BYTES(nearfile_pin_data(pin), nearfile_pin_size(pin), at, version);
      nearfile_pin_release(pin);
      break;
    }
    case 2: CHECK_EQ(nearfile_cache_trim(cache, nf_below(seed, LIMIT)), 0); break;
    case 3: CHECK_EQ(nearfile_prefetch(file, at, 5 * PAGE, 0, NULL, NULL), 0); break;
    case 4:
      if (nf_below(seed, 8) == 0) CHECK_EQ(nearfile_cache_remove(cache, keys[nf_below(seed, FILES)]), 0);
      break;
    default: CHECK_PREAD(file, (size_t)nf_below(seed, 4 * PAGE), at, version); break;
  }
}

struct thread {
  nearfile_cache *cache;
  nearfile_file *file;
  uint64_t version, seed;
  atomic_bool over;
};

static void *use_on(void *argument) {
  struct thread *thread = argument;
  while (!atomic_load(&thread->over) && nf_failures == 0) use(thread->cache, thread->file, thread->version, &thread->seed);
  return NULL;
}

// A second thread that is inside the library when this one forks.
static void fork_while_used(nearfile_cache *cache, nearfile_file *file, uint64_t version, uint64_t *seed) {
  struct thread thread = {.cache = cache, .file = file, .version = version, .seed = nf_random(seed)};
  pthread_t started = nf_thread(use_on, &thread);
  nf_sleep_us((unsigned)nf_below(seed, 1000));
  leave_an_heir();
  nf_sleep_us((unsigned)nf_below(seed, 5000));
  atomic_store(&thread.over, true);
  nf_join(started);
}

static void worker(uint64_t seed) {
  alarm(0);  // killed soon, or by its parent's death
  if (seed % 3 == 0) {  // more often than chance would, right after a lock
    nf_pause_seed = seed, nf_pause_locked_us = 300;
    nf_after_lock = nf_pause_at_random;
  }
  for (;;) {
    nearfile_cache *cache = open_cache(nf_below(&seed, 4) == 0);
    uint64_t which = nf_below(&seed, FILES);
    nearfile_file *files[2];
    for (uint64_t i = 0; i < 2; i++) {
      uint64_t one = (which + i) % FILES;
      nearfile_source source = far_source(far_files[one], FAR_AT);
      files[i] = nf_open(cache, &source, keys[one], NULL, SIZE, nf_below(&seed, 3) == 0 ? NEARFILE_MAP : 0);
    }
    if (nf_below(&seed, 3) == 0) fork_while_used(cache, files[0], VERSION + which, &seed);
    for (int i = 0; i < 10; i++) {
      uint64_t one = nf_below(&seed, 2);
      use(cache, files[one], VERSION + (which + one) % FILES, &seed);
      CHECK_EQ(nf_stats(files[one]).checksum_failures, 0);
    }
    nearfile_close(files[0]);
    nearfile_close(files[1]);
    nearfile_cache_close(cache);
    if (nf_failures != 0) nf_child_ends();
  }
}

// ---- who comes after -----------------------------------------------------------------------------------------------------

static _Atomic uint64_t *longest_us, *over_a_second, *longest_own_us;

static int64_t own_us(void) {
  struct timespec used;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return (int64_t)used.tv_sec * 1000000 + used.tv_nsec / 1000;
}

// Nobody holds a byte of the locks of a file.
static void check_unlocked(const char *path) {
  int fd = open(path, O_RDWR | O_CLOEXEC);
  MUST(fd >= 0);
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  MUST(fcntl(fd, F_OFD_GETLK, &lock) == 0);
  CHECK_EQ(lock.l_type, F_UNLCK);
  close(fd);
}

static void check_all_unlocked(void) {
  char path[NF_PATH];
  DIR *list = opendir(nf_path(path, "cache"));
  for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
    char file[NF_PATH];
    if (entry->d_name[0] == '.') continue;
    MUST(snprintf(file, sizeof file, "%s/%s", path, entry->d_name) < (int)sizeof file);
    check_unlocked(file);
  }
  if (list != NULL) closedir(list);
}

// Reads all in a process that starts from nothing; with nobody else there, what the directory counts is what is there.
static void drain(bool alone) {
  pid_t child = nf_fork(WATCHDOG_S);
  if (child != 0) {
    CHECK_CHILD(child);
    return;
  }
  int64_t began = torture_now_us();
  nearfile_cache *cache = open_cache(false);
  for (uint64_t i = 0; i < FILES; i++) {
    nearfile_file *file = nf_open_far(cache, far_files[i], FAR_AT, keys[i]);
    CHECK(strncmp(nearfile_data_path(file), "/proc/", 6) != 0);  // still shared
    CHECK_ALL(file, VERSION + i);
    CHECK_EQ(nf_stats(file).checksum_failures, 0);  // a kill is no power cut: the kernel has all that was written
    if (alone) CHECK_EQ(nf_walk(file), nf_stats(file).cached_bytes);
    nearfile_close(file);
  }
  nearfile_stats stats = {.struct_size = sizeof stats};
  CHECK_EQ(nearfile_cache_get_stats(cache, &stats), 0);
  CHECK(stats.cached_bytes <= LIMIT);
  nearfile_cache_close(cache);
  int64_t took = torture_now_us() - began;
  torture_raise(longest_us, (uint64_t)took);
  torture_raise(longest_own_us, (uint64_t)own_us());
  if (took > 1000000) atomic_fetch_add(over_a_second, 1);
  CHECK(took < HANG_S * 1000000);
  nf_child_ends();
}

enum { AT_USED = 72, AT_DROPPING = 208, AT_WORDS = 12288, BLOCK = 4096 };  // of `control` and of an index, as src/format.rs draws it

static uint64_t used_bytes(void) {
  char path[NF_PATH];
  uint64_t used = 0;
  int fd = open(nf_path(path, "cache/control"), O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0 && pread(fd, &used, sizeof used, AT_USED) == sizeof used && close(fd) == 0);
  return used;
}

// Bytes of a file that are no holes. (st_blocks also counts the blocks in which ext4 lists the parts of a file.)
static uint64_t data_bytes(int fd) {
  uint64_t sum = 0;
  off_t from = 0, to = 0;
  while ((from = lseek(fd, to, SEEK_DATA)) >= 0) {
    to = lseek(fd, from, SEEK_HOLE);
    sum += ((uint64_t)(to - from) + BLOCK - 1) / BLOCK * BLOCK;
  }
  return sum;
}

// What the words of an index call not absent: what is there, and what a dead fetcher had taken and the next one inherits; and what a
// dead dropper had noted, which the next one punches.
static uint64_t counted_bytes(int fd) {
  uint64_t words[PAGES], left, sum = 0;
  MUST(pread(fd, words, sizeof words, AT_WORDS) == sizeof words && pread(fd, &left, sizeof left, AT_DROPPING) == sizeof left);
  uint64_t first = left >> 24, count = left & 0xffffff;
  for (uint64_t i = 0; i < PAGES; i++) sum += (words[i] & 3) != 0 || (i >= first && i < first + count) ? BLOCK : 0;
  return sum;
}

// The sum of something over the files of the cache whose name ends so.
static uint64_t sum_over(const char *ending, uint64_t (*of)(int fd)) {
  char path[NF_PATH];
  uint64_t sum = 0;
  DIR *list = opendir(nf_path(path, "cache"));
  for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
    const char *found = strrchr(entry->d_name, '.');
    if (found == NULL || strcmp(found, ending) != 0) continue;
    int fd = openat(dirfd(list), entry->d_name, O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0);
    sum += of(fd);
    close(fd);
  }
  if (list != NULL) closedir(list);
  return sum;
}

// After everyone has left: once more in and out, so that what the dead left is counted.
static void check_count(void) {
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) {
    nearfile_cache_close(open_cache(false));
    nearfile_cache_close(open_cache(false));
    nf_child_ends();
  }
  CHECK_CHILD(child);
  CHECK_EQ(used_bytes(), sum_over(".index", counted_bytes));
  CHECK(used_bytes() >= sum_over(".data", data_bytes));
  CHECK(used_bytes() <= LIMIT);
}

// ---- rounds ----------------------------------------------------------------------------------------------------------------

int main(int argc, char **argv) {
  torture_begin(argc, argv, "kills", 10000);
  for (uint64_t i = 0; i < FILES; i++) far_files[i] = far_new(SIZE, VERSION + i, PAGE), far_files[i]->delay_us = 100;
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  heirs = nf_shared(sizeof *heirs);
  longest_us = nf_shared(sizeof *longest_us);
  longest_own_us = nf_shared(sizeof *longest_own_us);
  over_a_second = nf_shared(sizeof *over_a_second);
  pid_t workers[WORKERS] = {0};
  uint64_t seed = 4711, kills = 0, all_dead = 0, started = 0;
  while (torture_goes_on()) {
    for (int i = 0; i < WORKERS; i++) {
      if (workers[i] != 0) continue;
      workers[i] = nf_fork(WATCHDOG_S);
      if (workers[i] == 0) worker(started);
      started++;
    }
    nf_sleep_us((unsigned)nf_below(&seed, 12000));
    uint64_t dies = 1 + nf_below(&seed, WORKERS), first = nf_below(&seed, WORKERS);
    for (uint64_t i = 0; i < dies; i++) {
      nf_kill(workers[(first + i) % WORKERS]);
      workers[(first + i) % WORKERS] = 0;
    }
    kills += dies;
    drain(dies == WORKERS);
    kill_heirs();
    if (dies == WORKERS) {
      all_dead++;
      end_heirs();
      check_all_unlocked();
      check_count();
    }
  }
  for (int i = 0; i < WORKERS; i++) {
    if (workers[i] != 0) nf_kill(workers[i]);
  }
  end_heirs();
  return torture_report("%" PRIu64 " processes killed, of whom %" PRIu64 " children lived on; %" PRIu64
                        " times all, and then not one lock was left; the longest drain took %.1f ms"
                        " (%.1f ms of its own), %" PRIu64 " over a second",
                        kills, heirs->count, all_dead, (double)*longest_us / 1000, (double)*longest_own_us / 1000, *over_a_second);
}
