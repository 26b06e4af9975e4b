// Measures how soon the next waiter goes on after the holder of a lock was killed: one that sleeps in the kernel's lock itself, and a
// reader that waits for a page's fetch by the library's beats. Guards only that both do.
#include "torture.h"

enum { VERSION = 59, PAGE = 4096, WATCHDOG_S = 30, MOST = 10000 };

static struct scene {
  atomic_int held, waiting;
  _Atomic int64_t went_on_us;
} *scene;

struct times {
  const char *name;
  int64_t us[MOST];
  size_t count;
};

static int by_size(const void *a, const void *b) {
  int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
  return (left > right) - (left < right);
}

// Kills the holder once the waiter has waited a while, and notes when the waiter went on.
static void hand_over(struct times *times, pid_t holder, pid_t waiter) {
  NF_UNTIL(scene->waiting == 1, 10000);
  MUST(scene->held == 1 && scene->waiting == 1);
  nf_sleep_us(1000 + 1000 * (unsigned)(torture.done % 10));
  CHECK_EQ(scene->went_on_us, 0);
  int64_t killed = torture_now_us();
  nf_kill(holder);
  CHECK_CHILD(waiter);
  CHECK(scene->went_on_us > 0);
  times->us[times->count++ % MOST] = scene->went_on_us - killed;
}

// ---- the kernel's lock ---------------------------------------------------------------------------------------------------

static void lock_file(const char *path, int command) {
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
  MUST(fd >= 0 && fcntl(fd, command, &lock) == 0);
}

static void kernel_waiter(struct times *times) {
  char path[NF_PATH];
  nf_path(path, "lock");
  pid_t holder = nf_fork(WATCHDOG_S);
  if (holder == 0) {
    lock_file(path, F_OFD_SETLK);
    atomic_store(&scene->held, 1);
    for (;;) pause();
  }
  NF_UNTIL(scene->held == 1, 10000);
  pid_t waiter = nf_fork(WATCHDOG_S);
  if (waiter == 0) {
    atomic_store(&scene->waiting, 1);
    lock_file(path, F_OFD_SETLKW);
    atomic_store(&scene->went_on_us, torture_now_us());
    nf_child_ends();
  }
  hand_over(times, holder, waiter);
}

// ---- a page's fetch ------------------------------------------------------------------------------------------------------

// The first to fetch page 0 holds it until it is killed; the next notes when it came to fetch it.
static int32_t hold_or_note(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)len;
  if (offset != 0) return 0;
  if (atomic_exchange(&scene->held, 1) == 0) {
    for (;;) pause();
  }
  atomic_store(&scene->went_on_us, torture_now_us());
  return 0;
}

static void library_reader(far_file *far, const char *key) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, key);
  CHECK_PREAD(file, 10, 2 * PAGE, VERSION);  // what is done once is done before
  if (atomic_load(&scene->held)) atomic_store(&scene->waiting, 1);
  CHECK_PREAD(file, 10, 5, VERSION);
  CHECK_EQ(nf_stats(file).passed_through, 0);
  nf_child_ends();
}

static void library_waiter(struct times *times) {
  far_file *far = far_new(4 * PAGE, VERSION, PAGE);
  far->hook = hold_or_note;
  char key[40];
  snprintf(key, sizeof key, "%" PRIu64, torture.done);
  pid_t holder = nf_fork(WATCHDOG_S);
  if (holder == 0) library_reader(far, key);
  NF_UNTIL(scene->held == 1, 10000);
  pid_t waiter = nf_fork(WATCHDOG_S);
  if (waiter == 0) library_reader(far, key);
  hand_over(times, holder, waiter);
  far_free(far);
}

// ---- rounds ----------------------------------------------------------------------------------------------------------------

static void run(struct times *times, void (*once)(struct times *)) {
  memset(scene, 0, sizeof *scene);
  once(times);
}

static void spread(const struct times *times, char *out, size_t room) {
  size_t count = times->count < MOST ? times->count : MOST;
  if (count == 0) snprintf(out, room, "%s: none", times->name);
  if (count > 0) {
    snprintf(out, room, "%s %lld/%lld/%lld us", times->name, (long long)times->us[0], (long long)times->us[count / 2],
             (long long)times->us[count - 1]);
  }
}

int main(int argc, char **argv) {
  static struct times kernel = {.name = "the kernel's waiter"}, library = {.name = "the library's"};
  torture_begin(argc, argv, "handover", 300);
  scene = nf_shared(sizeof *scene);
  while (torture_goes_on()) {
    run(&kernel, kernel_waiter);
    run(&library, library_waiter);
  }
  char texts[2][100];
  qsort(kernel.us, kernel.count < MOST ? kernel.count : MOST, sizeof *kernel.us, by_size);
  qsort(library.us, library.count < MOST ? library.count : MOST, sizeof *library.us, by_size);
  spread(&kernel, texts[0], sizeof texts[0]);
  spread(&library, texts[1], sizeof texts[1]);
  return torture_report("a holder killed; from the kill to the next, least/median/most: %s, %s", texts[0], texts[1]);
}
