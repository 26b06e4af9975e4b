// Guards that a near copy which rots on the disk, or whose writes were lies, is found before it is served and fetched again: one bit
// flipped in every page of a closed cache, and a pwrite that reports done what it did not do, did half of in every sector, or did elsewhere.
#include "torture.h"

#include <sys/syscall.h>

enum { VERSION = 61, SECTOR = 512, MOST_PAGES = 64, PROCESSES = 3, THREADS = 2, WATCHDOG_S = 60 };

static _Atomic uint64_t *found_bad;
static uint64_t flipped, lies;

// ---- a pwrite that lies --------------------------------------------------------------------------------------------------

enum lie { HONEST, NOTHING, HALF, ELSEWHERE, LIES };

static enum lie lie;
static _Atomic uint64_t lies_told;

static ssize_t lying_pwrite(int fd, const void *buf, size_t len, off_t at) {
  if (lie != HONEST) atomic_fetch_add(&lies_told, 1);
  switch (lie) {
    case NOTHING: return (ssize_t)len;
    case HALF:
      for (size_t done = 0; done < len; done += SECTOR) {
        size_t half = len - done < SECTOR / 2 ? len - done : SECTOR / 2;
        syscall(SYS_pwrite64, fd, (const char *)buf + done, half, at + (off_t)done);
      }
      return (ssize_t)len;
    case ELSEWHERE: syscall(SYS_pwrite64, fd, (const char *)buf + 1, len - 1, at); return (ssize_t)len;  // a byte before
    default: return (ssize_t)syscall(SYS_pwrite64, fd, buf, len, at);
  }
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t at) { return lying_pwrite(fd, buf, len, at); }
ssize_t pwrite64(int fd, const void *buf, size_t len, off_t at);
ssize_t pwrite64(int fd, const void *buf, size_t len, off_t at) { return lying_pwrite(fd, buf, len, at); }

// ---- readers who start from nothing ----------------------------------------------------------------------------------------

struct reader {
  nearfile_file *file;
  const far_file *far;
  uint64_t seed;
};

static void *read_pages(void *argument) {
  struct reader *reader = argument;
  for (int i = 0; i < MOST_PAGES; i++) {
    uint64_t at = nf_below(&reader->seed, reader->far->size);
    CHECK_PREAD(reader->file, 1 + (size_t)nf_below(&reader->seed, 2 * reader->far->page_size), at, VERSION);
  }
  CHECK_ALL(reader->file, VERSION);
  return NULL;
}

static void read_all(far_file *far, pthread_barrier_t *start, uint64_t seed) {
  nearfile_cache *cache = nf_cache("cache", far->page_size, 0, 0);
  pthread_barrier_wait(start);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  struct reader readers[THREADS];
  pthread_t threads[THREADS];
  for (uint64_t i = 0; i < THREADS; i++) {
    readers[i] = (struct reader){file, far, seed * THREADS + i};
    threads[i] = nf_thread(read_pages, &readers[i]);
  }
  for (int i = 0; i < THREADS; i++) nf_join(threads[i]);
  nearfile_stats stats = nf_stats(file);
  CHECK_EQ(stats.passed_through, 0);
  atomic_fetch_add(found_bad, stats.checksum_failures);
  nearfile_close(file);
  nearfile_cache_close(cache);
  nf_child_ends();
}

// Every page was bad: each is found, and fetched once more.
static void check_all_found(far_file *far, pthread_barrier_t *start) {
  far_forget(far);
  atomic_store(found_bad, 0);
  pid_t children[PROCESSES];
  for (uint64_t i = 0; i < PROCESSES; i++) {
    children[i] = nf_fork(WATCHDOG_S);
    if (children[i] == 0) read_all(far, start, torture.done * PROCESSES + i);
  }
  for (int i = 0; i < PROCESSES; i++) CHECK_CHILD(children[i]);
  CHECK_EQ(*found_bad, far_pages(far));
  CHECK_ONCE(far);
}

// ---- rounds ----------------------------------------------------------------------------------------------------------------

// Makes a whole near copy in a process of its own, which closes it; returns the mirror's path.
static void fill(far_file *far, enum lie how, char path[NF_PATH]) {
  char *shared = nf_shared(NF_PATH);
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) {
    nearfile_cache *cache = nf_cache("cache", far->page_size, 3 * far->page_size, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
    lie = how;
    CHECK_EQ(nearfile_prefetch(file, 0, far->size, 0, NULL, NULL), 0);
    lie = HONEST;
    CHECK((lies_told > 0) == (how != HONEST));
    CHECK_EQ(nf_walk(file), far->size);
    snprintf(shared, NF_PATH, "%s", nearfile_data_path(file));
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  memcpy(path, shared, NF_PATH);
  munmap(shared, NF_PATH);
}

static void flip_a_bit_of_every_page(const char *path, const far_file *far, uint64_t *seed) {
  for (uint64_t page = 0; page < far_pages(far); page++) {
    uint64_t start = page * far->page_size, left = far->size - start;
    uint64_t at = nf_below(seed, left < far->page_size ? left : far->page_size);
    nf_flip(path, start + at, (unsigned char)(1 << nf_below(seed, 8)));
    flipped++;
  }
}

// Lies that the same session meets: what was not written is found by whoever reads it next.
static void same_session(far_file *far, enum lie how) {
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) {
    nearfile_cache *cache = nf_cache("cache", far->page_size, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, NULL);
    lie = how;
    CHECK_ALL(file, VERSION);  // what the source gave
    lie = HONEST;
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).checksum_failures, far_pages(far));
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).checksum_failures, far_pages(far));
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

int main(int argc, char **argv) {
  torture_begin(argc, argv, "bits", 300);
  found_bad = nf_shared(sizeof *found_bad);
  pthread_barrier_t *start = torture_barrier(PROCESSES);
  uint64_t seed = 67;
  while (torture_goes_on()) {
    uint64_t page = SECTOR << nf_below(&seed, 5), pages = 2 + nf_below(&seed, MOST_PAGES - 2);
    far_file *far = far_new((pages - 1) * page + SECTOR - 1 + nf_below(&seed, page - SECTOR + 1), VERSION, page);
    char path[NF_PATH];
    enum lie how = (enum lie)(torture.done % LIES);
    fill(far, how, path);
    if (how == HONEST) flip_a_bit_of_every_page(path, far, &seed);
    if (how != HONEST) lies += far_pages(far);
    check_all_found(far, start);
    if (how != HONEST) same_session(far, how);
    torture_remove("cache");
    far_free(far);
  }
  return torture_report("%" PRIu64 " pages with a flipped bit and %" PRIu64 " that were not written as reported, each found by one of %d"
                        " processes before it was served, and fetched once more",
                        flipped, lies, PROCESSES);
}
