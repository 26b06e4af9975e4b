// Guards that a disk that is full, goes read only, dies or is taken away never fails a read, gives a wrong byte or kills: 1 MiB of tmpfs,
// 4 MiB of ext4, a full xfs under a working set of 8 MiB, and the same with everything that stores.
#include "nf_test.h"

#include "nf_budget.h"

#include <sys/ioctl.h>

enum { PAGE = 16 << 10, PAGES = 512, SIZE = PAGES * PAGE - 99, VERSION = 51 };

static nearfile_cache *open_cache(uint64_t limit) { return nf_limited("disk/cache", PAGE, limit, NEARFILE_FULL_EVICT); }

// ---- a working set that does not fit ---------------------------------------------------------------------------------------

static void read_everything(const nearfile_file *file, uint64_t seed) {
  for (int i = 0; i < 300; i++) {
    uint64_t at = nf_below(&seed, SIZE);
    CHECK_PREAD(file, 1 + (size_t)nf_below(&seed, 5 * PAGE), at, VERSION);
    if (i % 40 == 7) {  // xfs may need room to make room
      int32_t status = nearfile_discard(file, at, 20 * PAGE);
      CHECK(status == 0 || (status == NEARFILE_ERROR_IO && nf_last_error().os_errno == ENOSPC));
    }
    if (i % 30 == 9) CHECK_EQ(nearfile_prefetch(file, at, 20 * PAGE, 0, NULL, NULL), 0);
    if (i % 30 != 11) continue;
    nearfile_pin *pin = NULL;
    CHECK_EQ(nearfile_pin_range(file, at, 3 * PAGE, &pin), 0);
    CHECK_BYTES(nearfile_pin_data(pin), nearfile_pin_size(pin), at, VERSION);
    nearfile_pin_release(pin);
  }
  CHECK_ALL(file, VERSION);
}

static uint64_t passed_through;

static void use_files(far_file *far, uint64_t limit, uint64_t seed) {
  nearfile_cache *cache = open_cache(limit);
  for (int round = 0; round < 3; round++) {
    nearfile_source source = far_source(far, FAR_AT);
    nearfile_file *keyed = nf_open(cache, &source, "key", NULL, SIZE, round == 1 ? NEARFILE_TRUST_CLEAN : 0);
    nearfile_file *private_file = nf_open(cache, &source, NULL, NULL, SIZE, 0), *exact = NULL;
    nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .mode = NEARFILE_EXACT};
    MUST(nearfile_open(cache, &source, &options, &exact) == 0);
    read_everything(keyed, seed);
    read_everything(private_file, seed + 1);
    read_everything(exact, seed + 2);
    read_everything(keyed, seed + 3);
    passed_through += nf_stats(keyed).passed_through + nf_stats(private_file).passed_through;
    nearfile_close(exact);
    nearfile_close(private_file);
    nearfile_close(keyed);
  }
  nearfile_cache_close(cache);
}

// Two processes at once; then, on a disk that has room, everything is right and kept as ever.
static void overfill(uint64_t limit) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  pid_t child = nf_fork(100);
  if (child == 0) {
    use_files(far, limit, 5);
    nf_child_ends();
  }
  use_files(far, limit, 6);
  CHECK_CHILD(child);
  CHECK_EQ(far->offences, 0);
  far_free(far);
}

static char disk[NF_PATH];

static void tmpfs_of_a_mebibyte(void) {
  nf_mount_tmpfs(nf_path(disk, "disk"), 1 << 20);
  overfill(0);
  CHECK(passed_through > 0);
  nf_unmount(disk);
}

static void tmpfs_without_a_page(void) {
  nf_mount_tmpfs(nf_path(disk, "disk"), 1 << 20);
  nf_fill_up(disk, 0);
  overfill(0);
  nf_unmount(disk);
}

static void ext4_of_4_mebibytes(void) {
  nf_mount_image(nf_path(disk, "disk"), "ext4", 4 << 20);
  overfill(0);
  CHECK(passed_through > 0);
  nf_unmount(disk);
}

// The limit promises more than the disk has.
static void ext4_and_a_limit_that_is_too_large(void) {
  nf_mount_image(nf_path(disk, "disk"), "ext4", 4 << 20);
  overfill(6 << 20);
  nf_unmount(disk);
}

static void ext4_without_a_block(void) {
  nf_mount_image(nf_path(disk, "disk"), "ext4", 4 << 20);
  nf_fill_up(disk, 0);
  overfill(0);
  nf_unmount(disk);
}

static void xfs_filled_up(void) {
  nf_mount_image(nf_path(disk, "disk"), "xfs", 300 << 20);  // the smallest that mkfs.xfs makes
  nf_fill_up(disk, 3 << 20);
  overfill(0);
  CHECK(passed_through > 0);
  nf_unmount(disk);
}

// ---- disks that go ------------------------------------------------------------------------------------------------------------

static void remove_directory(void) {
  char command[NF_PATH + 20];
  snprintf(command, sizeof command, "rm -rf '%s/cache'", disk);
  MUST(system(command) == 0);
}

static void stop(const char *options) {
  char command[NF_PATH + 80];
  snprintf(command, sizeof command, "mount -o remount,%s '%s'", options, disk);
  MUST(system(command) == 0);
}

static void must_be_gone(void) {
  char path[NF_PATH + 10];
  snprintf(path, sizeof path, "%s/new", disk);
  MUST(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600) < 0);
}

// What errors=remount-ro does at a broken block.
static void abort_journal(void) {
  stop("abort");
  must_be_gone();
}

static void cut_power(void) {
  uint32_t how = 2;  // EXT4_GOING_FLAGS_NOLOGFLUSH
  int fd = open(disk, O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0 && ioctl(fd, 0x8004587D /* EXT4_IOC_SHUTDOWN */, &how) == 0);
  close(fd);
  must_be_gone();
}

// Half is kept; then the disk goes while the file is open, and again nothing fails: hits, misses, files opened now, and all closes.
static void goes_while_open(void (*go)(void)) {
  nf_mount_image(nf_path(disk, "disk"), "ext4", 32 << 20);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = open_cache(0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "key"), *private_file = nf_open_far(cache, far, FAR_AT_OPEN, NULL);
  for (uint64_t page = 0; page < PAGES; page += 2) {
    CHECK_PREAD(file, PAGE, page * PAGE, VERSION);
    CHECK_PREAD(private_file, PAGE, page * PAGE, VERSION);
  }
  sync();
  go();
  CHECK_ALL(file, VERSION);
  CHECK_ALL(private_file, VERSION);
  nearfile_file *late = nf_open_far(cache, far, FAR_AT_OPEN, "late"), *again = nf_open_far(cache, far, FAR_AT_OPEN, "key");
  CHECK_ALL(late, VERSION);
  CHECK_ALL(again, VERSION);
  nearfile_cache *second = open_cache(0);
  nearfile_file *other = nf_open_far(second, far, FAR_AT_OPEN, "key");
  CHECK_ALL(other, VERSION);
  nearfile_close(other);
  nearfile_cache_close(second);
  nearfile_close(again);
  nearfile_close(late);
  nearfile_close(private_file);
  nearfile_close(file);
  nearfile_cache_close(cache);
  CHECK_EQ(far->offences, 0);
  far_free(far);
  nf_unmount(disk);
}

static void the_directory_is_removed(void) { goes_while_open(remove_directory); }
static void the_journal_is_aborted(void) { goes_while_open(abort_journal); }
static void the_disk_dies(void) { goes_while_open(cut_power); }

// Linux remounts nothing read only that is open for writing: it happens between two sessions.
static void remounted_read_only(void) {
  nf_mount_image(nf_path(disk, "disk"), "ext4", 32 << 20);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  use_files(far, 0, 8);
  stop("ro");
  use_files(far, 0, 9);
  stop("rw");
  far_forget(far);
  use_files(far, 0, 9);
  CHECK_EQ(far->offences, 0);
  far_free(far);
  nf_unmount(disk);
}

int main(int argc, char **argv) {
  nf_own_mounts();
  static const struct nf_case cases[] = {
      NF_CASE(tmpfs_of_a_mebibyte), NF_CASE(tmpfs_without_a_page), NF_CASE(ext4_of_4_mebibytes),
      NF_CASE(ext4_and_a_limit_that_is_too_large), NF_CASE(ext4_without_a_block), NF_CASE(xfs_filled_up),
      NF_CASE(the_directory_is_removed), NF_CASE(the_journal_is_aborted), NF_CASE(the_disk_dies), NF_CASE(remounted_read_only)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
