// What the tests of limits, pins and keeping share: mounts of their own, the disk use of a directory, and a watcher that samples it
// from a process of its own. Included after nf_test.h. These tests mount file systems, so they run as root.
#ifndef NF_BUDGET_H
#define NF_BUDGET_H

#include "nf_test.h"

#include <dirent.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

// ---- mounts ------------------------------------------------------------------------------------------------------------

// Gives this process mounts of its own: whatever ends it, they are gone with it and its children. Called first in main.
static inline void nf_own_mounts(void) {
  if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
    fprintf(stderr, "this test mounts file systems and must run as root: %s\n", strerror(errno));
    exit(1);
  }
}

static inline void nf_mount_tmpfs(const char *at, uint64_t bytes) {
  char size[40];
  snprintf(size, sizeof size, "size=%" PRIu64 ",mode=0700", bytes);
  MUST(mkdir(at, 0700) == 0 || errno == EEXIST);
  MUST(mount("tmpfs", at, "tmpfs", 0, size) == 0);
}

// A small disk: an ext4 or xfs image in memory, on a loop device that goes with the mount.
static inline void nf_mount_image(const char *at, const char *kind, uint64_t bytes) {
  char memory[NF_PATH + 10], command[5 * NF_PATH];
  snprintf(memory, sizeof memory, "%s.memory", at);
  nf_mount_tmpfs(memory, bytes + (16 << 20));
  MUST(mkdir(at, 0700) == 0 || errno == EEXIST);
  // Root has no reserve on it.
  snprintf(command, sizeof command,
           "PATH=$PATH:/usr/sbin:/sbin; cd '%s' && truncate -s %" PRIu64 " image && mkfs.%s -q%s image && "
           "mount -o loop image '%s' && chmod 700 '%s'",
           memory, bytes, kind, strcmp(kind, "ext4") == 0 ? " -m 0" : "", at, at);
  MUST(system(command) == 0);
}

// Puts a file on a disk that leaves about so many bytes free.
static inline void nf_fill_up(const char *at, uint64_t leave) {
  char path[NF_PATH + 10];
  struct statvfs space;
  MUST(statvfs(at, &space) == 0);
  snprintf(path, sizeof path, "%s/filler", at);
  int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  MUST(fd >= 0);
  for (uint64_t free; (free = (uint64_t)space.f_bavail * space.f_frsize) > leave;) {
    struct stat now;
    MUST(fstat(fd, &now) == 0);
    uint64_t more = free - leave > 64 << 10 ? (free - leave) / 2 : free - leave;
    if (posix_fallocate(fd, now.st_size, (off_t)more) != 0) break;
    MUST(statvfs(at, &space) == 0);
  }
  close(fd);
}

static inline void nf_unmount(const char *at) { MUST(umount2(at, MNT_DETACH) == 0); }

// Goes into a directory of nf_dir, made now, for a part of a case. nf_leave goes back.
static inline size_t nf_enter(const char *name) {
  size_t before = strlen(nf_dir);
  MUST(snprintf(nf_dir + before, sizeof nf_dir - before, "/%s", name) < (int)(sizeof nf_dir - before));
  MUST(mkdir(nf_dir, 0700) == 0);
  return before;
}

static inline void nf_leave(size_t before) { nf_dir[before] = 0; }

// ---- disk use ----------------------------------------------------------------------------------------------------------

static inline uint64_t nf_blocks(const char *path) {
  struct stat stat_buf;
  return stat(path, &stat_buf) == 0 ? (uint64_t)stat_buf.st_blocks * 512 : 0;
}

static inline bool nf_ends(const char *name, const char *ending) {
  size_t len = strlen(name), of = strlen(ending);
  return len >= of && strcmp(name + len - of, ending) == 0;
}

// Counts the files of a directory whose name ends so, and their bytes on the disk. Not at one instant.
static inline uint64_t nf_disk_use(const char *dir, const char *ending, int *out_files) {
  uint64_t sum = 0;
  int files = 0;
  DIR *list = opendir(dir);
  for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
    struct stat stat_buf;
    if (!nf_ends(entry->d_name, ending) || fstatat(dirfd(list), entry->d_name, &stat_buf, 0) != 0) continue;
    sum += (uint64_t)stat_buf.st_blocks * 512;
    files++;
  }
  if (list != NULL) closedir(list);
  if (out_files != NULL) *out_files = files;
  return sum;
}

static inline nearfile_stats nf_cache_stats(const nearfile_cache *cache) {
  nearfile_stats stats = {.struct_size = sizeof stats};
  CHECK_EQ(nearfile_cache_get_stats(cache, &stats), 0);
  return stats;
}

static inline nearfile_cache *nf_limited(const char *name, uint64_t page_size, uint64_t limit, uint32_t when_full) {
  nearfile_cache_options options = {.struct_size = sizeof options, .page_size = page_size, .size_limit = limit, .when_full = when_full};
  char path[NF_PATH];
  nearfile_cache *cache = NULL;
  MUST(nearfile_cache_open(nf_path(path, name), &options, &cache) == 0);
  return cache;
}

// ---- the watcher -------------------------------------------------------------------------------------------------------

enum { NF_PRIVATE = 16 };

// In shared memory. Workers tell of their private files here, to be looked at below /proc/PID/fd.
struct nf_watch {
  atomic_int stop;
  uint64_t limit, slack;
  _Atomic uint64_t samples, steady, most_cached, most_disk;
  struct {
    atomic_int pid;
    char path[64];
  } private_files[NF_PRIVATE];
  pid_t process;
};

static inline void nf_watch_private(struct nf_watch *watch, const nearfile_file *file) {
  const char *path = nearfile_data_path(file);
  MUST(path != NULL && strncmp(path, "/proc/self/fd/", 14) == 0);
  for (int i = 0; i < NF_PRIVATE; i++) {
    int nobody = 0;
    if (!atomic_compare_exchange_strong(&watch->private_files[i].pid, &nobody, -1)) continue;
    snprintf(watch->private_files[i].path, sizeof watch->private_files[i].path, "/proc/%d/fd/%s", (int)getpid(), path + 14);
    atomic_store(&watch->private_files[i].pid, (int)getpid());
    return;
  }
  MUST(!"too many private files");
}

// All mirrors and private files at this moment, each by itself, as a sum and as a fingerprint of what each holds.
static inline uint64_t nf_watch_look(struct nf_watch *watch, const char *dir, uint64_t *out_fingerprint) {
  uint64_t sum = 0, fingerprint = 0;
  DIR *list = opendir(dir);
  for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
    struct stat stat_buf;
    if (!nf_ends(entry->d_name, ".data") || fstatat(dirfd(list), entry->d_name, &stat_buf, 0) != 0) continue;
    sum += (uint64_t)stat_buf.st_blocks * 512;
    uint64_t state = (uint64_t)stat_buf.st_ino * 31 + (uint64_t)stat_buf.st_blocks;
    fingerprint += nf_random(&state);
  }
  if (list != NULL) closedir(list);
  for (int i = 0; i < NF_PRIVATE; i++) {
    if (atomic_load(&watch->private_files[i].pid) <= 0) continue;
    uint64_t bytes = nf_blocks(watch->private_files[i].path);
    sum += bytes;
    uint64_t state = (uint64_t)i * 77 + bytes;
    fingerprint += nf_random(&state);
  }
  *out_fingerprint = fingerprint;
  return sum;
}

// Looks every 2 ms. Files are looked at one after the other, so a sum counts only where a second look finds each file as it was: else
// bytes that moved from one file to another meanwhile would be counted twice.
static inline void nf_watch_start(struct nf_watch *watch, const char *name, uint64_t limit, uint64_t slack) {
  watch->limit = limit, watch->slack = slack;
  pid_t child = nf_fork(100);
  if (child != 0) {
    watch->process = child;
    return;
  }
  char dir[NF_PATH];
  nf_path(dir, name);
  nearfile_cache *cache = nf_limited(name, 0, 0, NEARFILE_FULL_EVICT);
  while (atomic_load(&watch->stop) == 0 && nf_failures < 3) {
    uint64_t before, after, sum = nf_watch_look(watch, dir, &before);
    bool steady = nf_watch_look(watch, dir, &after) == sum && before == after;
    for (int again = 0; again < 20 && !steady; again++) {
      before = after;
      sum = nf_watch_look(watch, dir, &after);
      steady = before == after;
    }
    if (steady) {
      atomic_fetch_add(&watch->steady, 1);
      if (sum > watch->most_disk) watch->most_disk = sum;
      if (sum > limit + slack) {
        fprintf(stderr, "disk use %" PRIu64 ", limit %" PRIu64 " and %" PRIu64 " for the pages under way\n", sum, limit, slack);
        nf_fail(__FILE__, __LINE__, "the mirrors hold more than the limit");
      }
    }
    nearfile_stats stats = nf_cache_stats(cache);
    if (stats.cached_bytes > watch->most_cached) watch->most_cached = stats.cached_bytes;
    CHECK_EQ(stats.size_limit, limit);
    CHECK(stats.cached_bytes <= limit);
    atomic_fetch_add(&watch->samples, 1);
    nf_sleep_us(2000);
  }
  nearfile_cache_close(cache);
  nf_child_ends();
}

// Ends the watcher, which must have seen something.
static inline void nf_watch_end(struct nf_watch *watch) {
  // A short run on a loaded machine may be over before the watcher got its turn; what it finds then must hold, too.
  for (int i = 0; i < 5000 && watch->steady < 5 && nf_failures == 0; i++) nf_sleep_us(2000);
  atomic_store(&watch->stop, 1);
  CHECK_CHILD(watch->process);
  CHECK(watch->samples >= 5);
  CHECK(watch->steady >= 5);
}

// ---- children of a test --------------------------------------------------------------------------------------------------

// All of them at once: each calls it when it is ready.
static inline void nf_meet(atomic_int *waiting) {
  atomic_fetch_sub(waiting, 1);
  NF_UNTIL(atomic_load(waiting) <= 0, 20000);
  MUST(atomic_load(waiting) <= 0);
}

#endif
