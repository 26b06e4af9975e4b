// What the C tests share: checks that say where and why they failed, a far file of which every byte is known, a source that
// counts what is asked of it (over forks too), and children that do not outlive their test. Included first.
#ifndef NF_TEST_H
#define NF_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <nearfile.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// ---- checks ------------------------------------------------------------------------------------------------------------

static atomic_int nf_failures;
static const char *nf_case_name = "";

static inline void nf_fail(const char *file, int line, const char *what) {
  nearfile_error last = {.struct_size = sizeof last};
  nearfile_last_error(&last);
  fprintf(stderr, "%s:%d: [%s] failed: %s\n", file, line, nf_case_name, what);
  if (last.status != 0) {
    fprintf(stderr, "  last error of this thread: %s, errno %d, source's code %lld: %s\n", nearfile_status_name(last.status),
            last.os_errno, (long long)last.source_code, last.message);
  }
  if (atomic_fetch_add(&nf_failures, 1) >= 30) {
    fprintf(stderr, "too many failures: the rest is left out\n");
    _exit(1);
  }
}

static inline void nf_equal(const char *file, int line, const char *left, const char *right, long long a, long long b) {
  if (a != b) {
    char what[1024];
    snprintf(what, sizeof what, "%s == %s: %lld != %lld", left, right, a, b);
    nf_fail(file, line, what);
  }
}

// CHECK goes on after a failure; MUST ends the process, where nothing sensible could follow.
#define CHECK(what) ((what) ? (void)0 : nf_fail(__FILE__, __LINE__, #what))
#define CHECK_EQ(a, b) nf_equal(__FILE__, __LINE__, #a, #b, (long long)(a), (long long)(b))
#define MUST(what) ((what) ? (void)0 : (nf_fail(__FILE__, __LINE__, #what " (cannot go on)"), _exit(1)))

// ---- time --------------------------------------------------------------------------------------------------------------

static inline int64_t nf_now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static inline void nf_sleep_us(unsigned us) {
  struct timespec time = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};
  while (nanosleep(&time, &time) != 0 && errno == EINTR) {
  }
}

// Waits until a condition holds, but no longer than so many milliseconds.
#define NF_UNTIL(condition, ms)                                               \
  do {                                                                        \
    int64_t nf_deadline = nf_now_ms() + (ms);                                 \
    while (!(condition) && nf_now_ms() < nf_deadline) nf_sleep_us(200);       \
  } while (0)

// ---- cases, and a directory for each -----------------------------------------------------------------------------------

enum { NF_PATH = 4096 };

static char nf_dir[NF_PATH / 2];

static inline char *nf_path(char out[NF_PATH], const char *name) {
  MUST(snprintf(out, NF_PATH, "%s/%s", nf_dir, name) < NF_PATH);
  return out;
}

struct nf_case {
  const char *name;
  void (*run)(void);
};
#define NF_CASE(function) {#function, function}

// Runs all cases, or those named as arguments, each in an empty directory nf_dir. What main returns.
static inline int nf_run(int argc, char **argv, const struct nf_case *cases, size_t count) {
  const char *root = getenv("NEARFILE_TEST_DIR");
  if (root == NULL) {
    fprintf(stderr, "NEARFILE_TEST_DIR is not set: give the tests an empty directory\n");
    return 1;
  }
  size_t ran = 0;
  for (size_t i = 0; i < count; i++) {
    bool wanted = argc < 2;
    for (int a = 1; a < argc; a++) wanted = wanted || strcmp(argv[a], cases[i].name) == 0;
    if (!wanted) continue;
    nf_case_name = cases[i].name;
    MUST(snprintf(nf_dir, sizeof nf_dir, "%s/%s.XXXXXX", root, cases[i].name) < (int)sizeof nf_dir);
    MUST(mkdtemp(nf_dir) != NULL);
    int64_t began = nf_now_ms();
    int before = nf_failures;
    cases[i].run();
    printf("%-6s %5lld ms  %s\n", nf_failures == before ? "ok" : "FAILED", (long long)(nf_now_ms() - began), cases[i].name);
    fflush(stdout);
    ran++;
  }
  if (ran == 0) {
    fprintf(stderr, "no case of that name\n");
    return 1;
  }
  return nf_failures != 0;
}

// ---- random numbers, the same in every run -----------------------------------------------------------------------------

static inline uint64_t nf_random(uint64_t *state) {
  uint64_t x = *state += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

static inline uint64_t nf_below(uint64_t *state, uint64_t limit) { return limit == 0 ? 0 : nf_random(state) % limit; }

// ---- content -----------------------------------------------------------------------------------------------------------

// Eight bytes of a version of the far file; one to one in `word`, so that bytes tell where they are from.
static inline uint64_t nf_word(uint64_t word, uint64_t version) {
  uint64_t state = word * 0x9E3779B97F4A7C15u + version * 0xD1B54A32D192ED03u;
  return nf_random(&state);
}

static inline unsigned char nf_byte(uint64_t offset, uint64_t version) {
  return (unsigned char)(nf_word(offset / 8, version) >> (offset % 8 * 8));
}

static inline void nf_fill(void *buf, size_t len, uint64_t offset, uint64_t version) {
  unsigned char *out = buf;
  while (len > 0) {
    uint64_t word = nf_word(offset / 8, version) >> (offset % 8 * 8);
    size_t here = 8 - offset % 8;
    if (here > len) here = len;
    for (size_t i = 0; i < here; i++) out[i] = (unsigned char)(word >> (8 * i));
    out += here, offset += here, len -= here;
  }
}

// How many bytes from the start are right.
static inline size_t nf_right(const void *buf, size_t len, uint64_t offset, uint64_t version) {
  const unsigned char *in = buf;
  size_t done = 0;
  while (done < len) {
    unsigned char expected[512];
    size_t here = len - done < sizeof expected ? len - done : sizeof expected;
    nf_fill(expected, here, offset + done, version);
    if (memcmp(in + done, expected, here) != 0) {
      while (in[done] == nf_byte(offset + done, version)) done++;
      return done;
    }
    done += here;
  }
  return len;
}

static inline void nf_check_bytes(const char *file, int line, const void *buf, size_t len, uint64_t offset, uint64_t version) {
  size_t right = nf_right(buf, len, offset, version);
  if (right != len) {
    char what[200];
    snprintf(what, sizeof what, "byte %" PRIu64 " of version %" PRIu64 " is %#x, read as %#x (of %zu read from %" PRIu64 ")",
             offset + right, version, nf_byte(offset + right, version), ((const unsigned char *)buf)[right], len, offset);
    nf_fail(file, line, what);
  }
}
#define CHECK_BYTES(buf, len, offset, version) nf_check_bytes(__FILE__, __LINE__, buf, len, offset, version)

// ---- the far file ------------------------------------------------------------------------------------------------------

typedef struct far_file far_file;

// A use of a far file: what open makes, or the one that lies in the far file where the source has no open.
typedef struct far_connection {
  far_file *far;
  pid_t opened_by;
  atomic_int in_use;
  uint64_t position;
} far_connection;

// Lies in memory that forked children share, so its counts are over all of them.
struct far_file {
  uint64_t size, version, page_size;
  unsigned delay_us;
  bool one_at_a_time;                     // callbacks that overlap are an offence
  int32_t (*hook)(far_file *, uint64_t offset, size_t len);  // before a read; not 0: the read fails so
  void *hook_data;
  _Atomic uint64_t reads, bytes, opens, closes, releases, sizes;
  atomic_int sources;                     // made over it
  _Atomic uint64_t offences;              // calls that the manual rules out: overlaps, wrong process, past the end
  atomic_int inside, most_inside, connections, most_connections;
  far_connection self;
  _Atomic uint32_t page_reads[];          // how often the first byte of each page was read
};

static inline uint64_t far_pages(const far_file *far) {
  return far->size / far->page_size + (far->size % far->page_size != 0);
}

// Reads are counted page by page in files of a sensible number of pages only.
static inline bool far_counts(const far_file *far) { return far->size / far->page_size < 1u << 20; }

static inline size_t far_length(uint64_t size, uint64_t page_size) {
  uint64_t pages = size / page_size + 1;
  return sizeof(far_file) + (pages > 1u << 20 ? 0 : (size_t)pages) * sizeof(uint32_t);
}

static inline far_file *far_new(uint64_t size, uint64_t version, uint64_t page_size) {
  far_file *far = mmap(NULL, far_length(size, page_size), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  MUST(far != MAP_FAILED);
  far->size = size, far->version = version, far->page_size = page_size;
  far->self.far = far;
  return far;
}

static inline void far_free(far_file *far) { munmap(far, far_length(far->size, far->page_size)); }

static inline void far_offence(far_file *far, const char *what) {
  atomic_fetch_add(&far->offences, 1);
  fprintf(stderr, "[%s] process %d: the library broke a rule of the source: %s\n", nf_case_name, (int)getpid(), what);
}

static inline void far_raise(atomic_int *most, int now) {
  int seen = atomic_load(most);
  while (seen < now && !atomic_compare_exchange_weak(most, &seen, now)) {
  }
}

static inline int32_t far_give(far_connection *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  far_file *far = connection->far;
  bool shared = connection == &far->self && !far->one_at_a_time;
  if (atomic_fetch_add(&connection->in_use, 1) != 0 && !shared) far_offence(far, "a connection was used by two calls at once");
  int inside = atomic_fetch_add(&far->inside, 1) + 1;
  far_raise(&far->most_inside, inside);
  if (inside > 1 && far->one_at_a_time) far_offence(far, "calls overlap that must not");
  if (connection != &far->self && connection->opened_by != getpid()) far_offence(far, "another process's connection was used");
  if (len == 0 || offset >= far->size) far_offence(far, "nothing, or past the end, was asked for");
  atomic_fetch_add(&far->reads, 1);
  int32_t code = far->hook != NULL ? far->hook(far, offset, len) : 0;
  if (code == 0) {
    if (far->delay_us != 0) nf_sleep_us(far->delay_us);
    uint64_t left = far->size - offset;
    size_t given = len < left ? len : (size_t)left;
    nf_fill(buf, given, offset, far->version);
    atomic_fetch_add(&far->bytes, given);
    if (far_counts(far)) {
      for (uint64_t page = (offset + far->page_size - 1) / far->page_size; page * far->page_size < offset + given; page++) {
        atomic_fetch_add(&far->page_reads[page], 1);
      }
    }
    *out_len = given;
  }
  atomic_fetch_sub(&far->inside, 1);
  atomic_fetch_sub(&connection->in_use, 1);
  return code;
}

static inline int32_t far_read_at(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  return far_give(connection, offset, buf, len, out_len);
}

static inline int32_t far_read(void *connection, void *buf, size_t len, size_t *out_len) {
  far_connection *use = connection;
  int32_t code = far_give(use, use->position, buf, len, out_len);
  if (code == 0) use->position += *out_len;
  return code;
}

static inline int32_t far_seek(void *connection, int64_t offset, int32_t whence, uint64_t *out_position) {
  far_connection *use = connection;
  uint64_t base = whence == NEARFILE_SEEK_END ? use->far->size : whence == NEARFILE_SEEK_CUR ? use->position : 0;
  use->position = base + (uint64_t)offset;
  *out_position = use->position;
  return 0;
}

static inline int32_t far_open(void *user_data, void **out_connection) {
  far_file *far = ((far_connection *)user_data)->far;
  far_connection *use = calloc(1, sizeof *use);
  if (use == NULL) return ENOMEM;
  use->far = far;
  use->opened_by = getpid();
  atomic_fetch_add(&far->opens, 1);
  far_raise(&far->most_connections, atomic_fetch_add(&far->connections, 1) + 1);
  *out_connection = use;
  return 0;
}

static inline void far_close(void *connection) {
  far_connection *use = connection;
  if (use->opened_by != getpid()) far_offence(use->far, "a connection was closed in another process than the one that opened it");
  atomic_fetch_add(&use->far->closes, 1);
  atomic_fetch_sub(&use->far->connections, 1);
  free(use);
}

static inline void far_release(void *user_data) {
  far_file *far = ((far_connection *)user_data)->far;
  if (far->sources == 1 && atomic_load(&far->inside) != 0) far_offence(far, "released while a call is under way");
  atomic_fetch_add(&far->releases, 1);
}

static inline int32_t far_size(void *connection, uint64_t *out_size) {
  far_connection *use = connection;
  atomic_fetch_add(&use->far->sizes, 1);
  *out_size = use->far->size;
  return 0;
}

enum far_kind { FAR_AT, FAR_AT_OPEN, FAR_SEEK, FAR_SEEK_OPEN };

static inline nearfile_source far_source(far_file *far, enum far_kind kind) {
  nearfile_source source = {.struct_size = sizeof source, .user_data = &far->self, .release = far_release};
  atomic_fetch_add(&far->sources, 1);
  if (kind == FAR_AT || kind == FAR_AT_OPEN) source.read_at = far_read_at;
  if (kind == FAR_SEEK || kind == FAR_SEEK_OPEN) source.read = far_read, source.seek = far_seek;
  if (kind == FAR_AT_OPEN || kind == FAR_SEEK_OPEN) source.open = far_open, source.close = far_close;
  return source;
}

// Every page was read exactly once.
static inline void far_check_once(far_file *far, const char *file, int line) {
  for (uint64_t page = 0; page < far_pages(far); page++) {
    uint32_t reads = atomic_load(&far->page_reads[page]);
    if (reads != 1) {
      char what[100];
      snprintf(what, sizeof what, "page %" PRIu64 " was read from the source %" PRIu32 " times, not once", page, reads);
      nf_fail(file, line, what);
      return;
    }
  }
  nf_equal(file, line, "bytes that the source gave", "size", (long long)far->bytes, (long long)far->size);
}
#define CHECK_ONCE(far) far_check_once(far, __FILE__, __LINE__)

static inline void far_forget(far_file *far) {
  atomic_store(&far->reads, 0);
  atomic_store(&far->bytes, 0);
  for (uint64_t page = 0; page < far_pages(far); page++) far->page_reads[page] = 0;
}

// ---- the library -------------------------------------------------------------------------------------------------------

static inline nearfile_cache *nf_cache(const char *name, uint64_t page_size, uint64_t max_fetch, uint32_t wait_ms) {
  nearfile_cache_options options = {
      .struct_size = sizeof options, .page_size = page_size, .max_fetch_bytes = max_fetch, .wait_ms = wait_ms};
  char path[NF_PATH];
  nearfile_cache *cache = NULL;
  MUST(nearfile_cache_open(nf_path(path, name), &options, &cache) == 0);
  MUST(cache != NULL);
  return cache;
}

static inline nearfile_file *nf_open(nearfile_cache *cache, const nearfile_source *source, const char *key, const char *version,
                                     uint64_t size, uint32_t flags) {
  nearfile_options options = {
      .struct_size = sizeof options, .key = key, .version = version, .size = size, .flags = flags};
  nearfile_file *file = NULL;
  MUST(nearfile_open(cache, source, &options, &file) == 0);
  MUST(file != NULL);
  return file;
}

// Opens a far file with its own size.
static inline nearfile_file *nf_open_far(nearfile_cache *cache, far_file *far, enum far_kind kind, const char *key) {
  nearfile_source source = far_source(far, kind);
  return nf_open(cache, &source, key, NULL, far->size, 0);
}

static inline nearfile_stats nf_stats(const nearfile_file *file) {
  nearfile_stats stats = {.struct_size = sizeof stats};
  CHECK_EQ(nearfile_get_stats(file, &stats), 0);
  return stats;
}

static inline nearfile_error nf_last_error(void) {
  nearfile_error error = {.struct_size = sizeof error};
  CHECK_EQ(nearfile_last_error(&error), 0);
  return error;
}

// Reads a range and checks count and bytes.
static inline void nf_check_pread(const char *at, int line, const nearfile_file *file, size_t len, uint64_t offset, uint64_t version) {
  uint64_t size = (uint64_t)nearfile_size(file);
  uint64_t left = offset < size ? size - offset : 0;
  size_t expected = len < left ? len : (size_t)left;
  unsigned char *buf = malloc(len + 1);
  MUST(buf != NULL);
  memset(buf, 0xEE, len + 1);
  int64_t got = nearfile_pread(file, buf, len, offset);
  nf_equal(at, line, "nearfile_pread", "expected count", got, (long long)expected);
  if (got == (int64_t)expected) nf_check_bytes(at, line, buf, expected, offset, version);
  if (buf[len] != 0xEE) nf_fail(at, line, "nearfile_pread wrote past the buffer");
  free(buf);
}
#define CHECK_PREAD(file, len, offset, version) nf_check_pread(__FILE__, __LINE__, file, len, offset, version)

// The whole file, in parts.
static inline void nf_check_all(const char *at, int line, const nearfile_file *file, uint64_t version) {
  uint64_t size = (uint64_t)nearfile_size(file);
  int before = nf_failures;
  for (uint64_t offset = 0; offset < size && nf_failures == before; offset += 64 << 10) {
    nf_check_pread(at, line, file, 64 << 10, offset, version);
  }
}
#define CHECK_ALL(file, version) nf_check_all(__FILE__, __LINE__, file, version)

static inline bool nf_is_cached(const nearfile_file *file, uint64_t offset) {
  uint64_t end = 0;
  int32_t cached = -1;
  CHECK_EQ(nearfile_extent(file, offset, &end, &cached), 0);
  CHECK(cached == 0 || cached == 1);
  return cached == 1;
}

// Bytes that the extents call cached; checks that the walk is one.
static inline uint64_t nf_walk(const nearfile_file *file) {
  uint64_t size = (uint64_t)nearfile_size(file), sum = 0, at = 0;
  int32_t before = -1;
  while (at < size) {
    uint64_t end = 0;
    int32_t cached = -1;
    MUST(nearfile_extent(file, at, &end, &cached) == 0);
    MUST(end > at && end <= size && (cached == 0 || cached == 1));
    CHECK(cached != before);  // an answer goes as far as it holds
    if (cached) sum += end - at;
    before = cached, at = end;
  }
  return sum;
}

// ---- children and threads ----------------------------------------------------------------------------------------------

// Forks a child that dies with its parent and after so many seconds. It must end with nf_child_ends.
static inline pid_t nf_fork(unsigned seconds) {
  fflush(NULL);
  pid_t parent = getpid(), child = fork();
  MUST(child >= 0);
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    alarm(seconds);
    nf_failures = 0;
  }
  return child;
}

static inline void nf_child_ends(void) {
  fflush(NULL);
  _exit(nf_failures != 0);
}

static inline void nf_check_child(const char *file, int line, pid_t child) {
  int status = 0;
  MUST(waitpid(child, &status, 0) == child);
  if (WIFSIGNALED(status)) {
    char what[100];
    int died_of = WTERMSIG(status);
    snprintf(what, sizeof what, "child died of signal %d%s", died_of, died_of == SIGALRM ? " (its watchdog: it hung)" : "");
    nf_fail(file, line, what);
  } else if (WEXITSTATUS(status) != 0) {
    nf_fail(file, line, "child found something wrong (see above)");
  }
}
#define CHECK_CHILD(child) nf_check_child(__FILE__, __LINE__, child)

// Kills a child, which must not have ended by itself before: failed, or hung until its watchdog came.
static inline void nf_kill_child(const char *file, int line, pid_t child) {
  int status = 0;
  kill(child, SIGKILL);
  MUST(waitpid(child, &status, 0) == child);
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) nf_fail(file, line, "a child ended before it was killed (see above)");
}
#define nf_kill(child) nf_kill_child(__FILE__, __LINE__, child)

// Flips bits of one byte of a file.
static inline void nf_flip(const char *path, uint64_t at, unsigned char bits) {
  int fd = open(path, O_RDWR | O_CLOEXEC);
  unsigned char byte;
  MUST(fd >= 0 && pread(fd, &byte, 1, (off_t)at) == 1);
  byte ^= bits;
  MUST(pwrite(fd, &byte, 1, (off_t)at) == 1 && close(fd) == 0);
}

// Zeroed memory that forked children share.
static inline void *nf_shared(size_t len) {
  void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  MUST(at != MAP_FAILED);
  return at;
}

static inline pthread_t nf_thread(void *(*run)(void *), void *argument) {
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, run, argument) == 0);
  return thread;
}

static inline void nf_join(pthread_t thread) { MUST(pthread_join(thread, NULL) == 0); }

#endif
