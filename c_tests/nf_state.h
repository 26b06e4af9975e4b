// What a cache directory says on the disk, read without the library: its count of bytes, what the page words of its pairs answer for,
// what its mirrors hold, and who has locked what. The offsets are those of src/format.rs, which a test there pins. After nf_budget.h.
#ifndef NF_STATE_H
#define NF_STATE_H

#include "nf_budget.h"

struct nf_state {
  uint64_t used;      // as `control` counts
  uint64_t held;      // as the indexes note
  uint64_t answered;  // by pages that are not absent, or that a dropper left
  uint64_t disk;      // blocks of the mirrors that an index names
  uint64_t stray;     // blocks of mirrors that no index names
  int pairs, damaged, locks;
  bool again;  // the next first opener counts, and sweeps, once more
};

static inline uint64_t nf_u64_at(int fd, uint64_t at) {
  uint64_t value = 0;
  MUST(pread(fd, &value, sizeof value, (off_t)at) == (ssize_t)sizeof value);
  return value;
}

static inline uint64_t nf_blocks_of(int fd) {
  struct stat stat_buf;
  MUST(fstat(fd, &stat_buf) == 0);
  return (uint64_t)stat_buf.st_blocks;
}

static inline bool nf_is_locked(int fd) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  MUST(fcntl(fd, F_OFD_GETLK, &lock) == 0);
  return lock.l_type != F_UNLCK;
}

static inline uint64_t nf_cost(uint64_t start, uint64_t end) { return (end + 4095) / 4096 * 4096 - start / 4096 * 4096; }

static inline void nf_state_of_pair(struct nf_state *state, const char *dir, int index) {
  enum { SIZE_AT = 32, PAGE_SIZE_AT = 40, MIRROR_AT = 48, HELD_AT = 176, DROPPING_AT = 208, WORDS_AT = 12288 };
  if (nf_blocks_of(index) == 0 || nf_u64_at(index, 0) == 0) {  // torn by a power cut before anything of it was counted on
    state->damaged++;
    return;
  }
  uint64_t size = nf_u64_at(index, SIZE_AT), page_size = nf_u64_at(index, PAGE_SIZE_AT);
  MUST(page_size > 0 && size / page_size < 1u << 20);
  uint64_t dropping = nf_u64_at(index, DROPPING_AT);  // first 40 | count 24
  uint64_t left = dropping >> 24, left_end = left + (dropping & 0xFFFFFF);
  state->pairs++;
  state->held += nf_u64_at(index, HELD_AT);
  for (uint64_t page = 0; page * page_size < size; page++) {
    uint64_t end = (page + 1) * page_size < size ? (page + 1) * page_size : size;
    if (nf_u64_at(index, WORDS_AT + 8 * page) & 3 || (page >= left && page < left_end)) state->answered += nf_cost(page * page_size, end);
  }
  unsigned char name[16];
  char path[NF_PATH];
  MUST(pread(index, name, sizeof name, MIRROR_AT) == (ssize_t)sizeof name);
  int len = snprintf(path, sizeof path, "%s/", dir);
  for (int i = 0; i < 16; i++) len += snprintf(path + len, sizeof path - (size_t)len, "%02x", name[i]);
  snprintf(path + len, sizeof path - (size_t)len, ".data");
  state->disk += nf_blocks(path);
}

// To be asked for while nobody changes the directory.
static inline struct nf_state nf_state_of(const char *dir) {
  enum { USED_AT = 72, RECOUNT_AT = 96 };
  struct nf_state state = {0};
  DIR *list = opendir(dir);
  for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
    bool control = strcmp(entry->d_name, "control") == 0, index = nf_ends(entry->d_name, ".index");
    if (!control && !index) continue;
    int fd = openat(dirfd(list), entry->d_name, O_RDWR | O_CLOEXEC);
    MUST(fd >= 0);
    if (control) state.used = nf_u64_at(fd, USED_AT), state.again = nf_u64_at(fd, RECOUNT_AT) != 0;
    if (index) nf_state_of_pair(&state, dir, fd);
    state.locks += nf_is_locked(fd);
    close(fd);
  }
  if (list != NULL) closedir(list);
  state.stray = nf_disk_use(dir, ".data", NULL) - state.disk;
  return state;
}

static inline void nf_state_print(const char *what, const struct nf_state *state) {
  fprintf(stderr, "  %s: used %" PRIu64 ", held %" PRIu64 ", answered for %" PRIu64 ", on the disk %" PRIu64 " and stray %" PRIu64
          ", %d pairs, %d damaged, %d locked files\n", what, state->used, state->held, state->answered, state->disk, state->stray, state->pairs,
          state->damaged, state->locks);
}

#endif
