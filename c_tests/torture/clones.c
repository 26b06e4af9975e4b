// Guards hits in a child made by raw clone or _Fork while other threads were inside malloc and the library: there libc's malloc may
// hang, so not one call of it may be made. The program's own malloc ends a child that calls it.
#include "torture.h"

#include "../nf_load.h"

#include <sys/syscall.h>

enum { VERSION = 47, PAGE = 4096, SIZE = 40 * PAGE + 77, LOADS = 3, MALLOCS = 2, WATCHDOG_S = 20 };

// ---- malloc that can be forbidden ----------------------------------------------------------------------------------------

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *at, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *at);

enum { ALLOCATED = 91 };  // exit code of a child that called it

static volatile sig_atomic_t forbidden;

static void called(const char *what) {
  if (!forbidden) return;
  if (forbidden == 2) _exit(ALLOCATED);  // wanted: a child that shows that this works
  ssize_t ignored = write(2, "a child of clone called ", 24);
  ignored += write(2, what, strlen(what));
  ignored += write(2, "\n", 1);
  (void)ignored;
  abort();
}

void *malloc(size_t size) {
  called("malloc");
  return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
  called("calloc");
  return __libc_calloc(count, size);
}

void *realloc(void *at, size_t size) {
  called("realloc");
  return __libc_realloc(at, size);
}

void free(void *at) {
  called("free");
  __libc_free(at);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
  called("posix_memalign");
  *out = __libc_memalign(alignment, size);
  return *out == NULL ? ENOMEM : 0;
}

void *aligned_alloc(size_t alignment, size_t size) {
  called("aligned_alloc");
  return __libc_memalign(alignment, size);
}

void *memalign(size_t alignment, size_t size);
void *memalign(size_t alignment, size_t size) {
  called("memalign");
  return __libc_memalign(alignment, size);
}

// ---- the child -----------------------------------------------------------------------------------------------------------

static nearfile_file *hot, *hot_private, *always_compared, *mapped;
static nearfile_pin *pin;

enum { RIGHT = 0, SHORT = 81, WRONG = 82, MOVED = 83, ABSENT = 84 };

static int hit(const nearfile_file *file, uint64_t *seed) {
  static unsigned char buf[8 * PAGE];
  uint64_t at = nf_below(seed, SIZE - sizeof buf);
  size_t len = 1 + (size_t)nf_below(seed, sizeof buf);
  if (nearfile_pread(file, buf, len, at) != (int64_t)len) return SHORT;
  if (nf_right(buf, len, at, VERSION) != len) return WRONG;
  if (nearfile_seek(file, (int64_t)at, NEARFILE_SEEK_SET) != (int64_t)at) return MOVED;
  if (nearfile_read(file, buf, 100) != 100 || nearfile_tell(file) != (int64_t)at + 100) return MOVED;
  if (nf_right(buf, 100, at, VERSION) != 100) return WRONG;
  uint64_t end;
  int32_t cached = 0;
  return nearfile_extent(file, at, &end, &cached) == 0 && cached == 1 ? RIGHT : ABSENT;
}

static int hits(uint64_t seed) {
  if (nf_right(nearfile_pin_data(pin), 3 * PAGE, 5, VERSION) != 3 * PAGE) return WRONG;
  for (int i = 0; i < 6; i++) {
    const nearfile_file *files[] = {hot, hot_private, always_compared, mapped};
    int found = hit(files[(seed + (uint64_t)i) % 4], &seed);
    if (found != RIGHT) return found;
  }
  return RIGHT;
}

static pid_t raw_fork(bool by_clone) { return by_clone ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : _Fork(); }

static pid_t start(uint64_t number, int how_forbidden) {
  pid_t child = raw_fork(number % 2);
  MUST(child >= 0);
  if (child == 0) {
    forbidden = how_forbidden;
    alarm(WATCHDOG_S);
    if (how_forbidden == 2) {
      nearfile_close(hot);  // allocates or frees, surely
      _exit(0);
    }
    _exit(hits(number));
  }
  return child;
}

static int end_of(pid_t child) {
  int status = 0;
  MUST(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

// ---- the parent ------------------------------------------------------------------------------------------------------------

static void *hammer_malloc(void *argument) {
  const atomic_bool *stop = argument;
  uint64_t seed = (uint64_t)(uintptr_t)&seed;
  void *kept[64] = {NULL};
  while (!atomic_load(stop)) {
    void **one = &kept[nf_below(&seed, 64)];
    free(*one);
    *one = malloc((size_t)nf_below(&seed, 100000));
  }
  for (int i = 0; i < 64; i++) free(kept[i]);
  return NULL;
}

static nearfile_file *open_hot(nearfile_cache *cache, far_file *far, const char *key, uint32_t flags) {
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_file *file = nf_open(cache, &source, key, NULL, SIZE, flags);
  CHECK_EQ(nearfile_prefetch(file, 0, SIZE, 0, NULL, NULL), 0);  // and not compared yet
  return file;
}

int main(int argc, char **argv) {
  torture_begin(argc, argv, "clones", 1000);
  nearfile_cache *cache = nf_cache("cache", PAGE, 3 * PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  hot = open_hot(cache, far, "hot", 0);
  hot_private = open_hot(cache, far, NULL, 0);
  always_compared = open_hot(cache, far, "hot", NEARFILE_VERIFY_ALWAYS);
  mapped = open_hot(cache, far, "hot", NEARFILE_MAP);
  MUST(nearfile_pin_range(hot, 5, 3 * PAGE, &pin) == 0);
  CHECK_EQ(end_of(start(0, 2)), ALLOCATED);
  CHECK_EQ(end_of(start(1, 2)), ALLOCATED);

  atomic_bool stop = false;
  struct nf_load loads[LOADS] = {{0}};
  pthread_t mallocs[MALLOCS];
  nearfile_file *busy = nf_open_far(cache, far, FAR_AT_OPEN, "busy");
  for (uint64_t i = 0; i < LOADS; i++) {
    loads[i].seed = i;
    nf_load_start(&loads[i], cache, busy, far, &stop);
  }
  for (int i = 0; i < MALLOCS; i++) mallocs[i] = nf_thread(hammer_malloc, &stop);
  uint64_t clones = 0;
  while (torture_goes_on()) {
    clones += torture.done % 2;
    CHECK_EQ(end_of(start(torture.done, 1)), RIGHT);
    nf_sleep_us((unsigned)(torture.done % 7) * 100);
  }
  atomic_store(&stop, true);
  uint64_t operations = 0;
  for (int i = 0; i < LOADS; i++) {
    nf_join(loads[i].thread);
    operations += loads[i].operations;
  }
  for (int i = 0; i < MALLOCS; i++) nf_join(mallocs[i]);
  CHECK_ALL(busy, VERSION);
  nearfile_pin_release(pin);
  nearfile_close(busy);
  nearfile_close(always_compared);
  nearfile_close(mapped);
  nearfile_close(hot_private);
  nearfile_close(hot);
  nearfile_cache_close(cache);
  CHECK_EQ(far->offences, 0);
  return torture_report("%" PRIu64 " raw clones and %" PRIu64 " _Forks of hits only, without an allocation, while %d threads did %" PRIu64
                        " operations and %d hammered malloc",
                        clones, torture.done - clones, LOADS, operations, MALLOCS);
}
