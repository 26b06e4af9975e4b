// What the torture programs share: how long to go on, progress on the way, and the one line that says what was done and found.
// Each guards a promise by many rounds, and ends at the first round in which something is wrong. Included first.
#ifndef TORTURE_H
#define TORTURE_H

#include "../nf_test.h"

#include <dirent.h>
#include <stdarg.h>

static struct {
  const char *name;
  uint64_t full, rounds, done;
  int64_t began, ends, told;
} torture;

static inline uint64_t torture_number(const char *text) {
  char *end;
  uint64_t number = strtoull(text, &end, 10);
  if (*text == 0 || *end != 0) fprintf(stderr, "%s is no number\n", text), exit(2);
  return number;
}

// Reads --rounds N and --seconds S, whichever ends first; without either, the full count. Makes nf_dir.
static inline void torture_begin(int argc, char **argv, const char *name, uint64_t full) {
  torture.name = nf_case_name = name;
  torture.full = torture.rounds = full;
  torture.began = torture.told = nf_now_ms();
  torture.ends = INT64_MAX;
  for (int i = 1; i < argc; i += 2) {
    bool rounds = strcmp(argv[i], "--rounds") == 0;
    if ((!rounds && strcmp(argv[i], "--seconds") != 0) || i + 1 == argc) {
      fprintf(stderr, "usage: torture_%s [--rounds N] [--seconds S]\n", name);
      exit(2);
    }
    uint64_t number = torture_number(argv[i + 1]);
    if (rounds) torture.rounds = number;
    if (!rounds) torture.ends = torture.began + (int64_t)number * 1000;
  }
  const char *root = getenv("NEARFILE_TEST_DIR");
  if (root == NULL) fprintf(stderr, "NEARFILE_TEST_DIR is not set: give the program an empty directory\n"), exit(2);
  MUST(snprintf(nf_dir, sizeof nf_dir, "%s/%s.XXXXXX", root, name) < (int)sizeof nf_dir);
  MUST(mkdtemp(nf_dir) != NULL);
}

// Whether there is another round; called before each. The number of the round is torture.done.
static inline bool torture_goes_on(void) {
  static bool begun;
  if (begun) torture.done++;
  begun = true;
  int64_t now = nf_now_ms();
  if (now - torture.told >= 15000) {
    torture.told = now;
    fprintf(stderr, "  %s: %" PRIu64 " of %" PRIu64 " rounds, %lld s\n", torture.name, torture.done, torture.rounds,
            (long long)(now - torture.began) / 1000);
  }
  return nf_failures == 0 && torture.done < torture.rounds && now < torture.ends;
}

// Prints "DONE of FULL rounds: ...; N found wrong" and returns what main returns: not 0 if anything was, or nothing was done.
static inline __attribute__((format(printf, 1, 2))) int torture_report(const char *what, ...) {
  va_list values;
  va_start(values, what);
  printf("%" PRIu64 " of %" PRIu64 " rounds: ", torture.done, torture.full);
  vprintf(what, values);
  va_end(values);
  int found = atomic_load(&nf_failures);
  printf("; %d found wrong%s\n", found, torture.done == 0 ? "; not one round was done" : "");
  return found > 0 || torture.done == 0;
}

// ---- directories -------------------------------------------------------------------------------------------------------

// Counts the files in a directory of nf_dir whose name ends so; with `removes`, takes them away.
static inline int torture_files(const char *name, const char *ending, bool removes) {
  char path[NF_PATH];
  DIR *list = opendir(nf_path(path, name));
  int count = 0;
  size_t of = strlen(ending);
  for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
    size_t len = strlen(entry->d_name);
    if (entry->d_name[0] == '.' || len < of || strcmp(entry->d_name + len - of, ending) != 0) continue;
    count++;
    if (removes) MUST(unlinkat(dirfd(list), entry->d_name, 0) == 0);
  }
  if (list != NULL) closedir(list);
  return count;
}

// A directory of nf_dir holds so many files; says which, if not.
static inline void torture_check_files(const char *file, int line, const char *name, int count) {
  int found = torture_files(name, "", false);
  if (found == count) return;
  char path[NF_PATH], what[200];
  snprintf(what, sizeof what, "%d files in %s, not %d", found, name, count);
  nf_fail(file, line, what);
  DIR *list = opendir(nf_path(path, name));
  for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
    struct stat of;
    if (entry->d_name[0] == '.' || fstatat(dirfd(list), entry->d_name, &of, 0) != 0) continue;
    fprintf(stderr, "  %s: %lld bytes, %lld on the disk\n", entry->d_name, (long long)of.st_size, (long long)of.st_blocks * 512);
  }
  if (list != NULL) closedir(list);
}
#define CHECK_FILES(name, count) torture_check_files(__FILE__, __LINE__, name, count)

// Takes a directory of nf_dir away.
static inline void torture_remove(const char *name) {
  char path[NF_PATH];
  torture_files(name, "", true);
  MUST(rmdir(nf_path(path, name)) == 0);
}

// ---- processes that start together ---------------------------------------------------------------------------------------

// A barrier in shared memory.
static inline pthread_barrier_t *torture_barrier(unsigned count) {
  pthread_barrier_t *barrier = nf_shared(sizeof *barrier);
  pthread_barrierattr_t shared;
  pthread_barrierattr_init(&shared);
  pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
  MUST(pthread_barrier_init(barrier, &shared, count) == 0);
  return barrier;
}

static inline void torture_barrier_end(pthread_barrier_t *barrier) { munmap(barrier, sizeof *barrier); }

// ---- times ---------------------------------------------------------------------------------------------------------------

static inline int64_t torture_now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static inline void torture_raise(_Atomic uint64_t *most, uint64_t now) {
  uint64_t seen = atomic_load(most);
  while (seen < now && !atomic_compare_exchange_weak(most, &seen, now)) {
  }
}

#endif
