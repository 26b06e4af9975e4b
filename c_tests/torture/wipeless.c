// Guards forks where the kernel has no MADV_WIPEONFORK (the program's own madvise refuses it): children are told by process id, and
// the log says so, once a process.
#include "torture.h"

#include "../nf_load.h"

#include <sys/syscall.h>

enum { VERSION = 71, PAGE = 4096, SIZE = 30 * PAGE + 9, LOADS = 2, WATCHDOG_S = 30 };

static atomic_int refused, said;

int madvise(void *at, size_t len, int advice) {
  if (advice == MADV_WIPEONFORK) {
    atomic_fetch_add(&refused, 1);
    errno = EINVAL;
    return -1;
  }
  return (int)syscall(SYS_madvise, at, len, advice);
}

static void hear(void *user_data, int32_t level, const char *line) {
  (void)user_data, (void)level;
  if (strstr(line, "MADV_WIPEONFORK") != NULL) atomic_fetch_add(&said, 1);
}

static void child_reads(nearfile_cache *cache, nearfile_file *file, nearfile_file *private, uint64_t seed) {
  CHECK_PREAD(file, 5 * PAGE, nf_below(&seed, SIZE), VERSION);
  CHECK_PREAD(private, 5 * PAGE, nf_below(&seed, SIZE), VERSION);
  CHECK_EQ(nearfile_discard(file, nf_below(&seed, SIZE), 4 * PAGE), 0);
  CHECK_ALL(file, VERSION);
  if (seed % 2) {
    nearfile_close(file);
    nearfile_close(private);
    nearfile_cache_close(cache);
  }
}

int main(int argc, char **argv) {
  torture_begin(argc, argv, "wipeless", 1000);
  CHECK_EQ(nearfile_set_log(hear, NULL, NEARFILE_LOG_WARN), 0);
  nearfile_cache *cache = nf_cache("cache", PAGE, 3 * PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "key"), *private = nf_open_far(cache, far, FAR_AT_OPEN, NULL);
  CHECK(refused > 0);
  CHECK_EQ(said, 1);
  atomic_bool stop = false;
  struct nf_load loads[LOADS] = {{0}};
  for (uint64_t i = 0; i < LOADS; i++) {
    loads[i].seed = i;
    nf_load_start(&loads[i], cache, file, far, &stop);
  }
  while (torture_goes_on()) {
    pid_t child = nf_fork(WATCHDOG_S);
    if (child == 0) {
      pid_t grandchild = nf_fork(WATCHDOG_S);
      child_reads(cache, file, private, torture.done);
      if (grandchild != 0) CHECK_CHILD(grandchild);
      nf_child_ends();
    }
    CHECK_CHILD(child);
  }
  atomic_store(&stop, true);
  for (int i = 0; i < LOADS; i++) nf_join(loads[i].thread);
  CHECK_ALL(file, VERSION);
  CHECK_ALL(private, VERSION);
  nearfile_close(file);
  nearfile_close(private);
  CHECK_EQ(said, 1);
  CHECK_EQ(far->offences, 0);
  CHECK_EQ(far->releases, far->sources);
  nearfile_cache_close(cache);
  return torture_report("a fork and a fork of the child each, MADV_WIPEONFORK refused %d times, which the log said %d times", refused, said);
}
