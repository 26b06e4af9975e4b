// Guards what is done about a local disk that fails: after some faults in a row it is not tried for a while, then by one read at a time,
// and used again once it works; a full disk gives up what it holds first; hits and stores are told apart. Also that a directory on FUSE
// is not shared, which the log says. The program's own pread and pwrite take libc's place.
#include "nf_test.h"

#include "nf_budget.h"

#include <sys/syscall.h>

enum { PAGE = 16 << 10, PAGES = 64, SIZE = PAGES * PAGE, VERSION = 33 };

static int fail_pread, fail_pwrite;  // errno, or 0
static _Atomic uint64_t preads, pwrites;

ssize_t pread64(int fd, void *buf, size_t len, off64_t offset) {
  atomic_fetch_add(&preads, 1);
  if (fail_pread != 0) return errno = fail_pread, -1;
  return syscall(SYS_pread64, fd, buf, len, offset);
}
ssize_t pread(int fd, void *buf, size_t len, off_t offset) { return pread64(fd, buf, len, offset); }

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t offset) {
  atomic_fetch_add(&pwrites, 1);
  if (fail_pwrite != 0) return errno = fail_pwrite, -1;
  return syscall(SYS_pwrite64, fd, buf, len, offset);
}
ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset) { return pwrite64(fd, buf, len, offset); }

static _Atomic int opened, works, fuse;

static void listen(void *user_data, int32_t level, const char *message) {
  (void)user_data, (void)level;
  if (strstr(message, "times in a row") != NULL) atomic_fetch_add(&opened, 1);
  if (strstr(message, "works again") != NULL) atomic_fetch_add(&works, 1);
  if (strstr(message, "FUSE") != NULL) atomic_fetch_add(&fuse, 1);
  if (getenv("NEARFILE_TEST_LOG") != NULL) fprintf(stderr, "  log: %s\n", message);
}

static void hear(void) {
  opened = works = fuse = 0;
  CHECK_EQ(nearfile_set_log(listen, NULL, NEARFILE_LOG_WARN), 0);
}

static void read_all_pages(nearfile_file *file, int times) {
  for (int n = 0; n < times * PAGES; n++) CHECK_PREAD(file, 100, (uint64_t)(n % PAGES) * PAGE + 7, VERSION);
}

static void a_disk_that_takes_nothing(void) {
  static const int errors[] = {EIO, ENOSPC, EDQUOT, EROFS, EFBIG};
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
    char name[20];
    snprintf(name, sizeof name, "%d", errors[i]);
    size_t before = nf_enter(name);
    hear();
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
    CHECK_PREAD(file, 10, 0, VERSION);
    fail_pwrite = errors[i], pwrites = 0;
    read_all_pages(file, 10);
    fail_pwrite = 0;
    CHECK(pwrites >= 4 && pwrites <= 40);  // of 630 misses
    CHECK_EQ(opened, 1);
    // The page that was there is read still, or was given up for others where the disk is full.
    if (errors[i] != ENOSPC && errors[i] != EDQUOT) CHECK(nf_stats(file).hits >= 10);
    CHECK(nf_stats(file).passed_through >= 600);
    CHECK(nf_walk(file) <= PAGE);
    for (int n = 0; n < 300 && works == 0; n++) {
      nf_sleep_us(100000);
      CHECK_PREAD(file, 10, 5 * PAGE, VERSION);
    }
    CHECK_EQ(works, 1);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_walk(file), SIZE);
    nearfile_close(file);
    nearfile_cache_close(cache);
    far_free(far);
    nf_leave(before);
  }
}

static void a_disk_that_gives_nothing(void) {
  hear();
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  CHECK_ALL(file, VERSION);
  CHECK_ALL(file, VERSION);
  fail_pread = EIO, preads = 0;
  read_all_pages(file, 10);
  fail_pread = 0;
  CHECK(preads >= 4 && preads <= 60);
  CHECK_EQ(opened, 1);
  for (int n = 0; n < 300 && works == 0; n++) {
    nf_sleep_us(100000);
    CHECK_PREAD(file, 10, 5 * PAGE, VERSION);
  }
  CHECK_EQ(works, 1);
  uint64_t reads = far->reads;
  CHECK_ALL(file, VERSION);
  CHECK_EQ(far->reads, reads);  // all still there
  CHECK_EQ(nf_stats(file).checksum_failures, 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// A disk smaller than the limit: what it holds is given up for what is read, as if it were the limit.
static void a_full_disk_gives_up_what_it_holds(void) {
  char path[NF_PATH];
  nf_mount_tmpfs(nf_path(path, "small"), 700 << 10);
  nearfile_cache *cache = nf_limited("small/cache", PAGE, 0, NEARFILE_FULL_EVICT);
  far_file *old = far_new(SIZE / 2, VERSION + 1, PAGE), *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *closed = nf_open_far(cache, old, FAR_AT, "old");
  CHECK_ALL(closed, VERSION + 1);
  CHECK(nf_walk(closed) > SIZE / 4);
  nearfile_close(closed);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  for (uint64_t page = 0; page < PAGES; page++) {
    CHECK_PREAD(file, PAGE, page * PAGE, VERSION);
    CHECK(nf_is_cached(file, page * PAGE));  // the latest is kept each time
  }
  CHECK(nf_stats(file).passed_through <= 4);
  closed = nf_open_far(cache, old, FAR_AT, "old");
  CHECK_EQ(nf_walk(closed), 0);  // the closed file went first
  nearfile_close(closed);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
  far_free(old);
  nf_unmount(path);
}

// A real FUSE mount, by bindfs.
static void a_directory_on_fuse_is_not_shared(void) {
  hear();
  char below[NF_PATH], mounted[NF_PATH], command[2 * NF_PATH + 40];
  MUST(mkdir(nf_path(below, "below"), 0700) == 0 && mkdir(nf_path(mounted, "mounted"), 0700) == 0);
  snprintf(command, sizeof command, "bindfs '%s' '%s'", below, mounted);
  MUST(system(command) == 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  pid_t children[2];
  for (int i = 0; i < 2; i++) {
    children[i] = nf_fork(60);
    if (children[i] != 0) continue;
    nearfile_cache *cache = nf_cache("mounted/cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
    CHECK_EQ(fuse, 1);
    CHECK_ALL(file, VERSION);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_walk(file), SIZE);  // kept, for this process alone
    CHECK(strncmp(nearfile_data_path(file), "/proc/self/fd/", 14) == 0);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (int i = 0; i < 2; i++) CHECK_CHILD(children[i]);
  for (uint64_t page = 0; page < PAGES; page++) CHECK_EQ(far->page_reads[page], 2);
  nf_unmount(mounted);
  far_free(far);
}

int main(int argc, char **argv) {
  nf_own_mounts();
  static const struct nf_case cases[] = {NF_CASE(a_disk_that_takes_nothing), NF_CASE(a_disk_that_gives_nothing),
                                         NF_CASE(a_full_disk_gives_up_what_it_holds), NF_CASE(a_directory_on_fuse_is_not_shared)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
