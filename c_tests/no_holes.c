// Guards the limit on file systems that cannot give back parts of a file: closed files go as a whole, the log says so, and what does not
// fit is served without being kept. The program's own fallocate takes libc's place and refuses to punch, as vfat does.
#include "nf_test.h"

#include <linux/falloc.h>
#include <sys/syscall.h>

#include "nf_budget.h"

enum { VERSION = 41, PAGE = 4096, PAGES = 20, SIZE = PAGES * PAGE, LIMIT = 3 * SIZE };

static _Atomic uint64_t refused, lines;

static int allocate(int fd, int mode, off_t offset, off_t len) {
  if (mode & FALLOC_FL_PUNCH_HOLE) {
    atomic_fetch_add(&refused, 1);
    errno = EOPNOTSUPP;
    return -1;
  }
  return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

int fallocate(int fd, int mode, off_t offset, off_t len);
int fallocate64(int fd, int mode, off_t offset, off_t len);
int fallocate(int fd, int mode, off_t offset, off_t len) { return allocate(fd, mode, offset, len); }
int fallocate64(int fd, int mode, off_t offset, off_t len) { return allocate(fd, mode, offset, len); }

static void hear(void *user_data, int32_t level, const char *line) {
  (void)user_data, (void)level;
  if (strstr(line, "whole files go") != NULL) atomic_fetch_add(&lines, 1);
}

static void whole_files_go(void) {
  CHECK_EQ(nearfile_set_log(hear, NULL, NEARFILE_LOG_WARN), 0);
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  far_file *far[8];
  uint64_t kept = 0;
  for (uint64_t n = 0; n < 8; n++) {
    char key[20];
    snprintf(key, sizeof key, "file %d", (int)n);
    far[n] = far_new(SIZE, VERSION + n, PAGE);
    nearfile_file *file = nf_open_far(cache, far[n], FAR_AT, key);
    // Often enough that its pages earn their place.
    for (int again = 0; again < 5; again++) CHECK_ALL(file, VERSION + n);
    kept += nf_walk(file) == SIZE;
    nearfile_close(file);
    CHECK(nf_cache_stats(cache).cached_bytes <= LIMIT);
    int files = 0;
    CHECK(nf_disk_use("cache", ".data", &files) <= LIMIT);
    CHECK(files <= 4);
  }
  CHECK(refused > 0 && lines > 0);
  CHECK(kept >= 6);  // room was made for files that came later
  CHECK(nf_cache_stats(cache).pages_evicted >= PAGES);
  nearfile_cache_close(cache);
  CHECK_EQ(nearfile_set_log(NULL, NULL, NEARFILE_LOG_OFF), 0);
  for (int n = 0; n < 8; n++) far_free(far[n]);
}

static void open_files_stay(void) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  far_file *first = far_new(LIMIT, VERSION, PAGE), *second = far_new(SIZE, VERSION + 1, PAGE);
  nearfile_file *file = nf_open_far(cache, first, FAR_AT, "first"), *other = nf_open_far(cache, second, FAR_AT, "second");
  for (int again = 0; again < 5; again++) CHECK_ALL(file, VERSION);
  for (int again = 0; again < 5; again++) CHECK_ALL(other, VERSION + 1);
  CHECK(nf_cache_stats(cache).cached_bytes <= LIMIT);
  CHECK_EQ(nearfile_discard(file, 0, LIMIT), 0);  // nothing can be given back: nothing is dropped
  far_forget(first);
  CHECK_ALL(file, VERSION);
  CHECK(first->reads == 0);
  nearfile_close(file);
  nearfile_close(other);
  nearfile_cache_close(cache);
  far_free(first);
  far_free(second);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(whole_files_go), NF_CASE(open_files_stay)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
