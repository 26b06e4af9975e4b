// Guards what a dropper leaves that is killed between making its pages absent and punching them: they stay counted, so that the limit is
// above what the disk holds at every instant, and the count is exact again once they are fetched, dropped, removed or counted anew. The
// program's own fallocate takes libc's place.
#include "nf_test.h"

#include "nf_budget.h"

#include <linux/falloc.h>
#include <sys/syscall.h>

enum { PAGE = 16 << 10, PAGES = 40, SIZE = PAGES * PAGE, VERSION = 14, LIMIT = 2 * SIZE };

static enum { PUNCH, DIE_BEFORE, DIE_AFTER } at_punch;

static int allocate(int fd, int mode, off_t offset, off_t len) {
  bool punches = (mode & FALLOC_FL_PUNCH_HOLE) != 0 && offset < SIZE;
  if (punches && at_punch == DIE_BEFORE) kill(getpid(), SIGKILL);
  int result = (int)syscall(SYS_fallocate, fd, mode, offset, len);
  if (punches && at_punch == DIE_AFTER) kill(getpid(), SIGKILL);
  return result;
}

int fallocate(int fd, int mode, off_t offset, off_t len);
int fallocate64(int fd, int mode, off_t offset, off_t len);
int fallocate(int fd, int mode, off_t offset, off_t len) { return allocate(fd, mode, offset, len); }
int fallocate64(int fd, int mode, off_t offset, off_t len) { return allocate(fd, mode, offset, len); }

// What the directory's count says, as format.rs draws `control`.
static uint64_t used(void) {
  char path[NF_PATH];
  uint64_t bytes = UINT64_MAX;
  int fd = open(nf_path(path, "cache/control"), O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0 && pread(fd, &bytes, sizeof bytes, 72) == sizeof bytes);
  close(fd);
  return bytes;
}

static uint64_t on_disk(void) {
  char path[NF_PATH];
  return nf_disk_use(nf_path(path, "cache"), ".data", NULL);
}

static void a_dropper_dies(far_file *far, int when) {
  pid_t child = nf_fork(30);
  if (child == 0) {
    nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
    at_punch = when;
    nearfile_discard(file, 5 * PAGE, 20 * PAGE);
    nf_fail(__FILE__, __LINE__, "it was not killed");
    nf_child_ends();
  }
  int status = 0;
  MUST(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

enum healing { FETCHED, SOME_FETCHED, DROPPED, FETCHED_AND_DROPPED, REMOVED_OPEN, REMOVED, COUNTED_ANEW, HEALINGS };

static void heal(nearfile_cache **cache, nearfile_file **file, far_file *far, enum healing how) {
  switch (how) {
    case FETCHED_AND_DROPPED:
    case FETCHED: CHECK_ALL(*file, VERSION); break;
    case SOME_FETCHED: CHECK_PREAD(*file, 3 * PAGE, 7 * PAGE, VERSION); break;
    case DROPPED: break;
    case REMOVED_OPEN: CHECK_EQ(nearfile_cache_remove(*cache, "key"), 0); return;
    case REMOVED:
      nearfile_close(*file);
      CHECK_EQ(nearfile_cache_remove(*cache, "key"), 0);
      *file = nf_open_far(*cache, far, FAR_AT, "key");
      return;
    default:
      nearfile_close(*file);
      nearfile_cache_close(*cache);
      *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
      *file = nf_open_far(*cache, far, FAR_AT, "key");
      break;
  }
  CHECK(used() >= on_disk());
  if (how == FETCHED) CHECK_EQ(used(), SIZE);
  if (how != FETCHED && how != SOME_FETCHED) CHECK_EQ(nearfile_discard(*file, 0, SIZE), 0);
}

static void the_count_is_never_too_low(void) {
  for (int when = DIE_BEFORE; when <= DIE_AFTER; when++) {
    for (int how = 0; how < HEALINGS; how++) {
      char name[20];
      snprintf(name, sizeof name, "%d-%d", when, how);
      size_t before = nf_enter(name);
      far_file *far = far_new(SIZE, VERSION, PAGE);
      nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
      nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
      CHECK_ALL(file, VERSION);
      CHECK_EQ(used(), SIZE);
      a_dropper_dies(far, when);
      CHECK_EQ(nf_walk(file), SIZE - 20 * PAGE);
      CHECK(used() >= on_disk());
      CHECK_EQ(used(), SIZE);
      heal(&cache, &file, far, (enum healing)how);
      if (how == SOME_FETCHED) CHECK_EQ(used(), SIZE);
      CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
      CHECK_EQ(on_disk(), 0);
      CHECK_EQ(used(), 0);
      CHECK_ALL(file, VERSION);
      CHECK_EQ(used(), SIZE);
      CHECK_EQ(on_disk(), SIZE);
      nearfile_close(file);
      nearfile_cache_close(cache);
      far_free(far);
      nf_leave(before);
    }
  }
}

// Killed again and again, with others that fetch what it left.
static void killed_again_and_again(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  uint64_t seed = 3;
  for (int round = 0; round < 30; round++) {
    CHECK_ALL(file, VERSION);
    CHECK_EQ(used(), SIZE);
    a_dropper_dies(far, round % 2 ? DIE_BEFORE : DIE_AFTER);
    if (nf_below(&seed, 3) == 0) CHECK_PREAD(file, (size_t)nf_below(&seed, 6 * PAGE), nf_below(&seed, SIZE - 6 * PAGE), VERSION);
    CHECK(used() >= on_disk());
    CHECK_EQ(used(), SIZE);
    if (nf_below(&seed, 2) == 0) CHECK_EQ(nearfile_discard(file, nf_below(&seed, SIZE), 6 * PAGE), 0);
  }
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(the_count_is_never_too_low), NF_CASE(killed_again_and_again)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
