// Guards that memory, maps and descriptors are bounded by the handles that are open: tens of thousands of opens, reads, dups, pins,
// errors and forks leave a process as large as the first hundred did.
#include "nf_test.h"

#include "nf_budget.h"

#include <malloc.h>
#include <sys/resource.h>

enum { PAGE = 4096, PAGES = 8, SIZE = PAGES * PAGE - 9, VERSION = 81 };

struct size {
  long resident_kib, descriptors, maps, heap;
};

static long count_lines(const char *path) {
  long lines = 0;
  FILE *file = fopen(path, "r");
  MUST(file != NULL);
  for (int c; (c = getc(file)) != EOF;) lines += c == '\n';
  fclose(file);
  return lines;
}

static struct size measure(void) {
  struct size now = {0};
  long pages = 0;
  FILE *statm = fopen("/proc/self/statm", "r");
  MUST(statm != NULL && fscanf(statm, "%*s %ld", &pages) == 1);
  fclose(statm);
  DIR *list = opendir("/proc/self/fd");
  MUST(list != NULL);
  while (readdir(list) != NULL) now.descriptors++;
  closedir(list);
  now.resident_kib = pages * sysconf(_SC_PAGESIZE) / 1024;
  now.maps = count_lines("/proc/self/maps");
  now.heap = (long)mallinfo2().uordblks;
  return now;
}

static nearfile_cache *cache;
static far_file *far;
static nearfile_file *open_file;

// Does something so often that what is made once is made, measures, and does it `times` times.
static void stays_flat(void (*what)(uint64_t), uint64_t times) {
  cache = nf_cache("cache", PAGE, 0, 0);
  far = far_new(SIZE, VERSION, PAGE);
  open_file = nf_open_far(cache, far, FAR_AT_OPEN, "open all the time");
  CHECK_ALL(open_file, VERSION);
  for (uint64_t i = 0; i < 200; i++) what(i);
  struct size before = measure();
  int failures = nf_failures;
  for (uint64_t i = 200; i < 200 + times && nf_failures == failures; i++) what(i);
  struct size after = measure();
  printf("       %" PRIu64 " times: %ld -> %ld KiB, %ld -> %ld descriptors, %ld -> %ld maps, %ld -> %ld bytes of heap\n", times,
         before.resident_kib, after.resident_kib, before.descriptors, after.descriptors, before.maps, after.maps, before.heap, after.heap);
  CHECK_EQ(after.descriptors, before.descriptors);
  CHECK(after.maps <= before.maps + 2);
  CHECK(after.heap - before.heap < 8 * (long)times);  // the smallest allocation has 24 bytes
  CHECK(after.resident_kib - before.resident_kib < 1024);
  nearfile_close(open_file);
  nearfile_cache_close(cache);
  CHECK_EQ(far->opens, far->closes);
  far_free(far);
}

static void open_and_close(uint64_t i) { nearfile_close(nf_open_far(cache, far, FAR_AT_OPEN, i % 2 == 0 ? "key" : NULL)); }

static void open_read_close(uint64_t i) {
  char key[30];
  snprintf(key, sizeof key, "key %" PRIu64, i);
  nearfile_file *file = nf_open_far(cache, far, i % 2 == 0 ? FAR_AT_OPEN : FAR_SEEK_OPEN, key);
  CHECK_PREAD(file, 100, i % SIZE, VERSION);
  nearfile_close(file);
}

static void open_caches(uint64_t i) {
  nearfile_cache *other = nf_cache(i % 2 == 0 ? "cache" : "other", PAGE, 0, 0);
  nearfile_file *file = nf_open_far(other, far, FAR_AT, "key");
  CHECK_PREAD(file, 10, 0, VERSION);
  nearfile_cache_close(other);
  nearfile_close(file);
}

static void open_exact(uint64_t i) {
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .mode = NEARFILE_EXACT};
  nearfile_file *file = NULL;
  MUST(nearfile_open(cache, &source, &options, &file) == 0);
  CHECK_PREAD(file, 100, i % SIZE, VERSION);
  nearfile_close(file);
}

static void dup_file(uint64_t i) {
  nearfile_file *other = NULL;
  MUST(nearfile_dup(open_file, &other) == 0);
  CHECK_PREAD(other, 10, i % SIZE, VERSION);
  if (i % 2 == 0) CHECK_EQ(nearfile_freeze(other), 0);
  nearfile_close(other);
}

static void pin_range(uint64_t i) {
  nearfile_pin *pin = NULL;
  MUST(nearfile_pin_range(open_file, i % SIZE, 2 * PAGE, &pin) == 0);
  nearfile_pin_release(pin);
}

static void discard_and_fetch(uint64_t i) {
  CHECK_EQ(nearfile_discard(open_file, i % SIZE, 2 * PAGE), 0);
  CHECK_PREAD(open_file, 3 * PAGE, i % SIZE, VERSION);
}

static void fail(uint64_t i) {
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .key = i % 2 == 0 ? "" : "key", .mode = i % 2 == 0 ? 0 : 9};
  nearfile_file *file = NULL;
  CHECK_EQ(nearfile_open(cache, &source, &options, &file), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_seek(open_file, -1, NEARFILE_SEEK_SET), NEARFILE_ERROR_ARGUMENT);
}

static int32_t fails(far_file *of, uint64_t offset, size_t len) {
  (void)of, (void)offset, (void)len;
  return 5;
}

static void fail_in_the_source(uint64_t i) {
  char byte;
  CHECK_EQ(nearfile_discard(open_file, 0, SIZE), 0);
  far->hook = fails;
  CHECK_EQ(nearfile_pread(open_file, &byte, 1, i % SIZE), NEARFILE_ERROR_SOURCE);
  far->hook = NULL;
  CHECK_PREAD(open_file, 10, 0, VERSION);
}

static void fork_and_read(uint64_t i) {
  pid_t child = fork();
  MUST(child >= 0);
  if (child == 0) {
    char byte;
    _exit(nearfile_pread(open_file, &byte, 1, i % SIZE) != 1);
  }
  int status;
  MUST(waitpid(child, &status, 0) == child);
  CHECK_EQ(status, 0);
}

// A line of forks: what a child makes anew for itself does not pile up in its own children.
static void a_line_of_forks(void) {
  cache = nf_cache("cache", PAGE, 0, 0);
  far = far_new(SIZE, VERSION, PAGE);
  open_file = nf_open_far(cache, far, FAR_AT_OPEN, "key");
  CHECK_ALL(open_file, VERSION);
  struct size before = measure();
  for (int depth = 0; depth < 40; depth++) {
    pid_t child = nf_fork(60);
    if (child != 0) {
      int status;
      MUST(waitpid(child, &status, 0) == child);
      CHECK_EQ(status, 0);
      if (depth > 0) _exit(nf_failures != 0);
      break;
    }
    CHECK_ALL(open_file, VERSION);
    CHECK_EQ(nearfile_discard(open_file, 0, PAGE), 0);
    CHECK_PREAD(open_file, 10, 0, VERSION);
    struct size now = measure();
    CHECK(now.descriptors <= before.descriptors + 6);
    CHECK(now.maps <= before.maps + 8 + 6 * depth);  // what was inherited is left alone, a page each
    if (depth == 39) _exit(nf_failures != 0);
  }
  nearfile_close(open_file);
  nearfile_cache_close(cache);
  far_free(far);
}

// As many files as a data loader has shards, under the usual limit on descriptors: all are kept, the second read of each is a hit, and
// the program has descriptors left for itself.
static void a_thousand_files(void) {
  enum { FILES = 1000 };
  static nearfile_file *files[FILES];
  char disk[NF_PATH], key[20];
  nf_mount_tmpfs(nf_path(disk, "cache"), 512 << 20);
  far = far_new(SIZE, VERSION, PAGE);
  pid_t child = nf_fork(100);
  if (child == 0) {
    struct rlimit limit = {.rlim_cur = 1024, .rlim_max = 1024};
    MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    cache = nf_cache("cache", PAGE, 0, 0);
    for (int i = 0; i < FILES; i++) {
      snprintf(key, sizeof key, "key %d", i);
      files[i] = nf_open_far(cache, far, FAR_AT, key);
    }
    for (int again = 0; again < 2; again++) {
      for (uint64_t i = 0; i < FILES; i++) CHECK_PREAD(files[i], 1, i * 31 % SIZE, VERSION);
    }
    int kept = 0;
    for (int i = 0; i < FILES; i++) {
      nearfile_stats stats = nf_stats(files[i]);
      kept += stats.hits == 1 && stats.source_reads == 1 && stats.passed_through == 0;
    }
    CHECK_EQ(kept, FILES);
    FILE *own = fopen("/dev/null", "r");
    CHECK(own != NULL);
    if (own != NULL) fclose(own);
    for (int i = 0; i < FILES; i++) nearfile_close(files[i]);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  far_free(far);
  nf_unmount(disk);
}

static void opens(void) { stays_flat(open_and_close, 10000); }
static void keys(void) {
  char disk[NF_PATH];
  nf_mount_tmpfs(nf_path(disk, "cache"), 512 << 20);  // each close syncs: elsewhere that is half a minute
  stays_flat(open_read_close, 2000);
  nf_unmount(disk);
}
static void caches(void) { stays_flat(open_caches, 1000); }
static void exact_files(void) { stays_flat(open_exact, 3000); }
static void dups(void) { stays_flat(dup_file, 10000); }
static void pins(void) { stays_flat(pin_range, 10000); }
static void fetches(void) { stays_flat(discard_and_fetch, 5000); }
static void errors(void) { stays_flat(fail, 10000); }
static void source_errors(void) { stays_flat(fail_in_the_source, 3000); }
static void forks(void) { stays_flat(fork_and_read, 3000); }

int main(int argc, char **argv) {
  nf_own_mounts();
  static const struct nf_case cases[] = {
      NF_CASE(opens), NF_CASE(keys), NF_CASE(caches), NF_CASE(exact_files), NF_CASE(dups), NF_CASE(pins), NF_CASE(fetches),
      NF_CASE(errors), NF_CASE(source_errors), NF_CASE(forks), NF_CASE(a_line_of_forks),
      NF_CASE(a_thousand_files)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
