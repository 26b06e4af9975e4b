// One contender of a benchmark: reads "prepare", "run" or "check" on stdin and answers each with a line of JSON. Its workers (threads
// or processes) do the same list of reads that every other contender of the case does; the time is from the first to the last of them.
#define _GNU_SOURCE
#include "side.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

counts *far_counts;

void side_die(const char *format, ...) {
  char why[400];
  va_list values;
  va_start(values, format);
  vsnprintf(why, sizeof why, format, values);
  va_end(values);
  for (char *at = why; *at != '\0'; at++) {
    if (*at == '"' || *at == '\\' || *at < ' ') *at = '\'';
  }
  printf("{\"error\": \"%s\"}\n", why);
  fflush(stdout);
  _exit(1);
}

uint64_t side_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

char *side_path(const side *side, const char *name) {
  char *path;
  if (asprintf(&path, "%s/%s", side->dir, name) < 0) side_die("no memory");
  return path;
}

int64_t far_read(int fd, unsigned delay_us, void *buf, size_t len, uint64_t offset) {
  if (delay_us != 0) {
    struct timespec time = {.tv_sec = delay_us / 1000000, .tv_nsec = (long)(delay_us % 1000000) * 1000};
    while (nanosleep(&time, &time) != 0) {
    }
  }
  ssize_t n = pread(fd, buf, len, (off_t)offset);
  if (n > 0) {
    far_counts->requests += 1;
    far_counts->bytes += (uint64_t)n;
  }
  return n;
}

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void *shared(size_t len) {
  void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) side_die("mmap: %s", strerror(errno));
  return at;
}

// ---- the workers ----

typedef struct worker {
  const side *side;
  const contender *contender;
  void *handle;
  uint64_t *offsets;
  unsigned char *buf;
} worker;

typedef struct barriers {
  pthread_barrier_t start, end, closed;
} barriers;

static barriers *gates;

// The list of reads that the Python contenders make, too (contender.py).
static uint64_t *list_of(const side *side, unsigned number) {
  uint64_t *offsets = malloc(side->count * sizeof *offsets);
  uint64_t state = side->seed + number, places = side->size / side->op;
  if (offsets == NULL || places == 0) side_die("a list of %llu reads", (unsigned long long)side->count);
  for (uint64_t i = 0; i < side->count; i++) {
    bool random = strcmp(side->pattern, "random") == 0;
    offsets[i] = (random ? side_random(&state) : i + number * (places / 2)) % places * side->op;
    if (!random && strcmp(side->mode, "cold") == 0) offsets[i] = i % places * side->op;
  }
  return offsets;
}

static void do_reads(worker *worker) {
  const side *side = worker->side;
  const contender *contender = worker->contender;
  if (contender->whole != NULL) {
    contender->whole(side, worker->handle);
    return;
  }
  int64_t (*read_next)(void *, void *, size_t) = strcmp(side->pattern, "stream") == 0 ? contender->read : NULL;
  for (uint64_t i = 0; i < side->count; i++) {
    int64_t n = read_next != NULL ? read_next(worker->handle, worker->buf, side->op)
                                  : contender->pread(worker->handle, worker->buf, side->op, worker->offsets[i]);
    if (n != (int64_t)side->op) side_die("read %lld of %llu bytes: %s", (long long)n, (unsigned long long)side->op, strerror(errno));
  }
}

// Every byte of the reads is the far file's.
static void check_reads(worker *worker, uint64_t most) {
  const side *side = worker->side;
  int fd = open(side->file, O_RDONLY | O_CLOEXEC);
  unsigned char *right = malloc(side->op);
  for (uint64_t i = 0; i < side->count && i < most; i++) {
    uint64_t offset = worker->offsets[i];
    if (worker->contender->pread(worker->handle, worker->buf, side->op, offset) != (int64_t)side->op) {
      side_die("check: short read at %llu", (unsigned long long)offset);
    }
    if (pread(fd, right, side->op, (off_t)offset) != (ssize_t)side->op || memcmp(right, worker->buf, side->op) != 0) {
      side_die("check: wrong bytes at %llu", (unsigned long long)offset);
    }
  }
  free(right);
  close(fd);
}

// All of the file once, then the list itself: what is warm is warm.
static void warm_up(worker *worker) {
  if (worker->contender->pread == NULL) return;
  const side *side = worker->side;
  size_t len = side->size < 1 << 20 ? side->size : 1 << 20;
  unsigned char *buf = malloc(len);
  for (uint64_t at = 0; at + len <= side->size; at += len) {
    if (worker->contender->pread(worker->handle, buf, len, at) != (int64_t)len) side_die("warming: short read at %llu", (unsigned long long)at);
  }
  free(buf);
  check_reads(worker, 1000);
  do_reads(worker);
}

static bool is_cold(const side *side) { return strcmp(side->mode, "cold") == 0; }

static void prepare_worker(worker *worker, const side *side, const contender *contender, unsigned number, void *handle) {
  *worker = (struct worker){.side = side, .contender = contender, .handle = handle, .offsets = list_of(side, number)};
  worker->buf = aligned_alloc(4096, (side->op + 4095) / 4096 * 4096);
  memset(worker->buf, 1, side->op);
  if (is_cold(side)) return;
  if (worker->handle == NULL) worker->handle = contender->open(side);
  warm_up(worker);
}

static void open_if_cold(worker *worker) {
  if (is_cold(worker->side)) worker->handle = worker->contender->open(worker->side);
}

static void close_if_cold(worker *worker) {
  if (is_cold(worker->side)) worker->contender->close(worker->handle), worker->handle = NULL;
}

static _Noreturn void work(worker *worker) {
  for (;;) {
    pthread_barrier_wait(&gates->start);
    open_if_cold(worker);
    do_reads(worker);
    pthread_barrier_wait(&gates->end);
    close_if_cold(worker);
    pthread_barrier_wait(&gates->closed);
  }
}

typedef struct thread_start {
  const side *side;
  const contender *contender;
  unsigned number;
  void *handle;
} thread_start;

static void *thread(void *argument) {
  thread_start *start = argument;
  worker worker;
  prepare_worker(&worker, start->side, start->contender, start->number, start->handle);
  pthread_barrier_wait(&gates->closed);
  work(&worker);
}

static void make_gate(pthread_barrier_t *gate, unsigned count) {
  pthread_barrierattr_t attributes;
  pthread_barrierattr_init(&attributes);
  pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  if (pthread_barrier_init(gate, &attributes, count) != 0) side_die("no barrier");
}

static void start_workers(const side *side, const contender *contender) {
  unsigned count = side->threads > 1 ? side->threads : side->processes;
  gates = shared(sizeof *gates);
  make_gate(&gates->start, count + 1), make_gate(&gates->end, count + 1), make_gate(&gates->closed, count + 1);
  void *handle = side->threads > 1 && !contender->per_thread && !is_cold(side) ? contender->open(side) : NULL;
  if (handle == NULL && !is_cold(side)) contender->close(contender->open(side));  // what a first opener makes is made once
  for (unsigned number = 0; number < count; number++) {
    thread_start *start = malloc(sizeof *start);
    *start = (thread_start){.side = side, .contender = contender, .number = number, .handle = handle};
    if (side->threads > 1) {
      pthread_t id;
      if (pthread_create(&id, NULL, thread, start) != 0) side_die("no thread");
    } else if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      prctl(PR_SET_TIMERSLACK, 1);
      thread(start);
    }
  }
  pthread_barrier_wait(&gates->closed);
}

// ---- the commands ----

static void remove_all(const char *dir) {
  char *command;
  if (asprintf(&command, "rm -rf -- '%s' && mkdir -p -m 700 '%s'", dir, dir) < 0 || system(command) != 0) side_die("cannot empty %s", dir);
  free(command);
}

static void prepare(const side *side) {
  if (is_cold(side)) remove_all(side->dir);
  far_counts->requests = far_counts->bytes = 0;
}

static void print_result(uint64_t ns, const side *side, uint64_t extra) {
  printf("{\"ns\": %llu, \"count\": %llu, \"requests\": %llu, \"bytes\": %llu, \"extra\": %llu}\n", (unsigned long long)ns,
         (unsigned long long)side->count, (unsigned long long)far_counts->requests, (unsigned long long)far_counts->bytes,
         (unsigned long long)extra);
}

static void run_alone(worker *worker) {
  uint64_t start = now_ns();
  open_if_cold(worker);
  do_reads(worker);
  uint64_t ns = now_ns() - start;
  uint64_t extra = worker->contender->extra != NULL ? worker->contender->extra(worker->side, worker->handle) : 0;
  close_if_cold(worker);
  print_result(ns, worker->side, extra);
}

static void run_many(const side *side) {
  uint64_t start = now_ns();
  pthread_barrier_wait(&gates->start);
  pthread_barrier_wait(&gates->end);
  uint64_t ns = now_ns() - start;
  pthread_barrier_wait(&gates->closed);
  print_result(ns, side, 0);
}

static void check(worker *alone, const side *side, const contender *contender) {
  if (alone != NULL && contender->pread != NULL && is_cold(side)) {
    open_if_cold(alone);
    check_reads(alone, 3);
    close_if_cold(alone);
  }
  printf("{\"checked\": true}\n");
}

static void serve(const side *side, const contender *contender) {
  bool many = side->threads > 1 || side->processes > 1;
  worker alone;
  if (many) start_workers(side, contender);
  else prepare_worker(&alone, side, contender, 0, NULL);
  printf("{\"ready\": true}\n");
  char line[32];
  while (fflush(stdout), fgets(line, sizeof line, stdin) != NULL) {
    if (strcmp(line, "prepare\n") == 0) prepare(side), printf("{\"prepared\": true}\n");
    else if (strcmp(line, "check\n") == 0) check(many ? NULL : &alone, side, contender);
    else if (strcmp(line, "run\n") == 0 && many) run_many(side);
    else if (strcmp(line, "run\n") == 0) run_alone(&alone);
    else side_die("unknown command %s", line);
  }
}

// ---- the parameters ----

static const contender *find(const char *name) {
  const contender *all[] = {plain_contenders, our_contenders, zip_contenders, peer_contenders};
  for (size_t table = 0; table < sizeof all / sizeof all[0]; table++) {
    for (const contender *at = all[table]; at->name != NULL; at++) {
      if (strcmp(at->name, name) == 0) return at;
    }
  }
  side_die("no contender %s in this build", name);
}

static void set(side *side, const char *key, const char *value) {
  const struct { const char *key; const char **to; } texts[] = {
      {"contender", &side->contender}, {"mode", &side->mode}, {"file", &side->file}, {"url", &side->url}, {"dir", &side->dir},
      {"pattern", &side->pattern}};
  const struct { const char *key; uint64_t *to; } numbers[] = {
      {"size", &side->size}, {"page", &side->page}, {"op", &side->op}, {"count", &side->count}, {"seed", &side->seed},
      {"max_fetch", &side->max_fetch}, {"limit", &side->limit}, {"connections", &side->connections}};
  const struct { const char *key; unsigned *to; } small[] = {
      {"delay_us", &side->delay_us}, {"threads", &side->threads}, {"processes", &side->processes}};
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
    if (strcmp(texts[i].key, key) == 0) { *texts[i].to = value; return; }
  }
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
    if (strcmp(numbers[i].key, key) == 0) { *numbers[i].to = strtoull(value, NULL, 10); return; }
  }
  for (size_t i = 0; i < sizeof small / sizeof small[0]; i++) {
    if (strcmp(small[i].key, key) == 0) { *small[i].to = (unsigned)strtoul(value, NULL, 10); return; }
  }
  side_die("unknown parameter %s", key);
}

int main(int argc, char **argv) {
  side side = {.mode = "warm", .pattern = "random", .seed = 1, .threads = 1, .processes = 1, .count = 1, .op = 4096};
  for (int i = 1; i < argc; i++) {
    char *value = strchr(argv[i], '=');
    if (value == NULL) side_die("%s is no key=value", argv[i]);
    *value++ = '\0';
    set(&side, argv[i], value);
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  prctl(PR_SET_TIMERSLACK, 1);
  far_counts = shared(sizeof *far_counts);
  if (side.contender == NULL || side.file == NULL || side.dir == NULL) side_die("contender, file and dir are needed");
  serve(&side, find(side.contender));
  return 0;
}
