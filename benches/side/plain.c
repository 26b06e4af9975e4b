// The contenders that are no cache: pread of the local file, a copy from a map of it, cp, a page at a time, the far file itself.
#define _GNU_SOURCE
#include "side.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct plain {
  int fd, copy;
  unsigned delay_us;
  uint64_t page, size, position;
  unsigned char *map, *page_buf;
  bool *there;
  FILE *stream;
} plain;

static void *plain_open(const side *side) {
  plain *plain = calloc(1, sizeof *plain);
  plain->fd = open(side->file, O_RDONLY | O_CLOEXEC);
  if (plain->fd < 0) side_die("%s: %s", side->file, strerror(errno));
  plain->copy = -1, plain->delay_us = side->delay_us, plain->page = side->page, plain->size = side->size;
  return plain;
}

// The local file of a warm case: written as a near copy is, so that the kernel has it in pages as large.
static void *local_open(const side *side) {
  plain *plain = plain_open(side);
  char *path = side_path(side, "local");
  int to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  unsigned char *buf = malloc(1 << 20);
  int64_t n;
  for (uint64_t at = 0; to >= 0 && (n = pread(plain->fd, buf, 1 << 20, (off_t)at)) > 0; at += (uint64_t)n) {
    if (pwrite(to, buf, (size_t)n, (off_t)at) != n) side_die("%s: %s", path, strerror(errno));
  }
  if (to < 0 && (to = open(path, O_RDONLY | O_CLOEXEC)) < 0) side_die("%s: %s", path, strerror(errno));
  close(plain->fd);
  plain->fd = to;
  free(buf), free(path);
  return plain;
}

static void plain_close(void *handle) {
  plain *plain = handle;
  if (plain->map != NULL) munmap(plain->map, plain->size);
  if (plain->stream != NULL) fclose(plain->stream);
  if (plain->copy >= 0) close(plain->copy);
  close(plain->fd);
  free(plain->page_buf), free(plain->there), free(plain);
}

static int64_t raw_pread(void *handle, void *buf, size_t len, uint64_t offset) {
  return pread(((plain *)handle)->fd, buf, len, (off_t)offset);
}

static int64_t raw_read(void *handle, void *buf, size_t len) {
  plain *plain = handle;
  if (plain->position + len > plain->size) plain->position = 0;
  int64_t n = pread(plain->fd, buf, len, (off_t)plain->position);
  if (n > 0) plain->position += (uint64_t)n;
  return n;
}

static void *mmap_open(const side *side) {
  plain *plain = local_open(side);
  plain->map = mmap(NULL, side->size, PROT_READ, MAP_SHARED, plain->fd, 0);
  if (plain->map == MAP_FAILED) side_die("mmap: %s", strerror(errno));
  return plain;
}

static int64_t mmap_pread(void *handle, void *buf, size_t len, uint64_t offset) {
  memcpy(buf, ((plain *)handle)->map + offset, len);
  return (int64_t)len;
}

static void *stdio_open(const side *side) {
  plain *plain = plain_open(side);
  plain->stream = fopen(side->file, "rb");
  if (plain->stream == NULL) side_die("%s: %s", side->file, strerror(errno));
  return plain;
}

static int64_t stdio_read(void *handle, void *buf, size_t len) {
  plain *plain = handle;
  if (plain->position + len > plain->size) rewind(plain->stream), plain->position = 0;
  plain->position += len;
  return (int64_t)fread_unlocked(buf, 1, len, plain->stream);
}

static int64_t stdio_pread(void *handle, void *buf, size_t len, uint64_t offset) { return raw_pread(handle, buf, len, offset); }

// ---- the far file without a cache, and with the simplest one ----

static int64_t uncached_pread(void *handle, void *buf, size_t len, uint64_t offset) {
  plain *plain = handle;
  return far_read(plain->fd, plain->delay_us, buf, len, offset);
}

static void *paged_open(const side *side) {
  plain *plain = plain_open(side);
  char *path = side_path(side, "copy");
  plain->copy = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (plain->copy < 0) side_die("%s: %s", path, strerror(errno));
  free(path);
  plain->there = calloc(side->size / side->page + 1, sizeof *plain->there);
  plain->page_buf = malloc(side->page);
  return plain;
}

// Fetches each page that is not there by a request of its own, as a cache without read-ahead does.
static int64_t paged_pread(void *handle, void *buf, size_t len, uint64_t offset) {
  plain *plain = handle;
  for (uint64_t page = offset / plain->page; page <= (offset + len - 1) / plain->page; page++) {
    if (plain->there[page]) continue;
    int64_t n = far_read(plain->fd, plain->delay_us, plain->page_buf, plain->page, page * plain->page);
    if (n <= 0 || pwrite(plain->copy, plain->page_buf, (size_t)n, (off_t)(page * plain->page)) != n) return -1;
    plain->there[page] = true;
  }
  return pread(plain->copy, buf, len, (off_t)offset);
}

// ---- copies of the whole ----

static void spawn_cp(const side *side, const char *to) {
  char *arguments[] = {"cp", "--", (char *)side->file, (char *)to, NULL};
  extern char **environ;
  pid_t child;
  int status;
  if (posix_spawnp(&child, "cp", NULL, NULL, arguments, environ) != 0 || waitpid(child, &status, 0) < 0 || status != 0) side_die("cp failed");
}

static void cp_whole(const side *side, void *handle) {
  (void)handle;
  char *to = side_path(side, "copy");
  spawn_cp(side, to);
  free(to);
}

static void read_whole(const side *side, int fd) {
  unsigned char *buf = malloc(1 << 20);
  while (read(fd, buf, 1 << 20) > 0) {
  }
  (void)side;
  free(buf);
}

static void cp_read_whole(const side *side, void *handle) {
  (void)handle;
  char *to = side_path(side, "copy");
  spawn_cp(side, to);
  int fd = open(to, O_RDONLY | O_CLOEXEC);
  read_whole(side, fd);
  close(fd);
  free(to);
}

// The far file in requests as long as a fetch may be, each written to a file: what no cache can undercut but by parallel requests.
static void copy_whole(const side *side, void *handle) {
  plain *plain = handle;
  char *path = side_path(side, "copy");
  int to = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  unsigned char *buf = malloc(side->page);
  for (uint64_t at = 0; at < side->size; at += side->page) {
    int64_t n = far_read(plain->fd, side->delay_us, buf, side->page, at);
    if (n <= 0 || pwrite(to, buf, (size_t)n, (off_t)at) != n) side_die("copy: %s", strerror(errno));
  }
  close(to);
  free(buf), free(path);
}

const contender plain_contenders[] = {
    {.name = "pread", .open = local_open, .pread = raw_pread, .read = raw_read, .close = plain_close},
    {.name = "mounted", .open = plain_open, .pread = raw_pread, .read = raw_read, .close = plain_close},
    {.name = "mmap", .open = mmap_open, .pread = mmap_pread, .close = plain_close},
    {.name = "stdio", .per_thread = true, .open = stdio_open, .pread = stdio_pread, .read = stdio_read, .close = plain_close},
    {.name = "uncached", .open = plain_open, .pread = uncached_pread, .close = plain_close},
    {.name = "paged", .per_thread = true, .open = paged_open, .pread = paged_pread, .close = plain_close},
    {.name = "cp", .open = plain_open, .whole = cp_whole, .close = plain_close},
    {.name = "cp+read", .open = plain_open, .whole = cp_read_whole, .close = plain_close},
    {.name = "copy", .open = plain_open, .whole = copy_whole, .close = plain_close},
    {.name = NULL},
};
