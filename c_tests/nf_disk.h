// What the tests that cut the power and those that need a real file system share: an ext4 or xfs image behind a loop device, or a
// tmpfs, mounted for this process and its children alone, so that it is gone with them. Included after nf_budget.h.
#ifndef NF_DISK_H
#define NF_DISK_H

#include "nf_budget.h"

#include <sys/ioctl.h>

struct nf_disk {
  char fs[16], image[NF_PATH], at[NF_PATH];
};

static inline void nf_command(const char *command) {
  int status = system(command);
  if (status != 0) {
    fprintf(stderr, "`%s` ended with %#x (scripts/setup test installs what it needs)\n", command, status);
    exit(1);
  }
}

static inline void nf_disk_mount(const struct nf_disk *disk) {
  if (strcmp(disk->fs, "tmpfs") == 0) {
    nf_mount_tmpfs(disk->at, 512u << 20);
    return;
  }
  char command[3 * NF_PATH];
  snprintf(command, sizeof command, "mount -o loop '%s' '%s'", disk->image, disk->at);
  nf_command(command);
}

// Makes the file system below `root` and mounts it. The caller has called nf_own_mounts.
static inline struct nf_disk nf_disk_new(const char *root, const char *fs) {
  struct nf_disk disk;
  snprintf(disk.fs, sizeof disk.fs, "%s", fs);
  MUST(snprintf(disk.image, NF_PATH, "%s/%s.image", root, fs) < NF_PATH);
  MUST(snprintf(disk.at, NF_PATH, "%s/%s", root, fs) < NF_PATH);
  MUST(mkdir(disk.at, 0700) == 0);
  if (strcmp(fs, "tmpfs") != 0) {
    int image = open(disk.image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    MUST(image >= 0 && ftruncate(image, strcmp(fs, "xfs") == 0 ? 400 << 20 : 128 << 20) == 0);
    close(image);
    char command[2 * NF_PATH];
    snprintf(command, sizeof command, "mkfs.%s -q '%s'", fs, disk.image);
    nf_command(command);
  }
  nf_disk_mount(&disk);
  return disk;
}

// What a process that was just killed had open may keep the disk busy a little longer.
static inline void nf_disk_unmount(const struct nf_disk *disk) {
  NF_UNTIL(umount(disk->at) == 0 || errno != EBUSY, 5000);
  CHECK(umount(disk->at) != 0 && errno == EINVAL);  // it is not mounted any more
}

static inline void nf_disk_sync(const struct nf_disk *disk) {
  int root = open(disk->at, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  MUST(root >= 0 && syncfs(root) == 0);
  close(root);
}

// What was not synced is lost. (EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: _IOR('X', 125, uint32_t), here without a flush of the log.)
static inline void nf_disk_cut(const struct nf_disk *disk) {
  uint32_t without_log_flush = 2;
  int root = open(disk->at, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  MUST(root >= 0 && ioctl(root, _IOR('X', 125, uint32_t), &without_log_flush) == 0);
  close(root);
}

static inline void nf_disk_free(const struct nf_disk *disk) {
  nf_disk_unmount(disk);
  if (disk->image[0] != 0) unlink(disk->image);
  MUST(rmdir(disk->at) == 0);
}

#endif
