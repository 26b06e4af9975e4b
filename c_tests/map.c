// Guards NEARFILE_MAP: hits are copied from a map without a system call, are right in every process whatever others drop meanwhile, and
// the flag is ignored, with a line in the log, where a map is not safe. The program's own pread and lseek take libc's place and count.
#include "nf_test.h"

#include "nf_budget.h"

#include <sys/syscall.h>

enum { VERSION = 21, PAGE = 16 << 10, PAGES = 40, SIZE = PAGES * PAGE - 77 };

static _Atomic uint64_t preads;

ssize_t pread64(int fd, void *buf, size_t len, off64_t offset) {
  atomic_fetch_add(&preads, 1);
  return syscall(SYS_pread64, fd, buf, len, offset);
}

ssize_t pread(int fd, void *buf, size_t len, off_t offset) { return pread64(fd, buf, len, offset); }

static nearfile_file *open_mapped(nearfile_cache *cache, far_file *far, const char *key) {
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  return nf_open(cache, &source, key, NULL, far->size, NEARFILE_MAP);
}

static void check_no_preads(nearfile_file *file, uint64_t seed) {
  uint64_t before = preads, hits = nf_stats(file).hits;
  for (int i = 0; i < 2000; i++) {
    uint64_t at = nf_below(&seed, SIZE);
    CHECK_PREAD(file, (size_t)nf_below(&seed, i % 10 == 0 ? 5 * PAGE : 600), at, VERSION);
  }
  CHECK_EQ(preads, before);
  CHECK(nf_stats(file).hits >= hits + 1900);  // but for reads of nothing
}

static void hits_make_no_system_call(void) {
  static const char *keys[] = {"key", NULL};
  for (int k = 0; k < 2; k++) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = open_mapped(cache, far, keys[k]);
    CHECK_ALL(file, VERSION);
    CHECK_ALL(file, VERSION);  // compared with their checksums
    CHECK_ONCE(far);
    check_no_preads(file, 1);
    pid_t child = nf_fork(30);
    if (child == 0) {
      check_no_preads(file, 2);
      CHECK_EQ(nearfile_discard(file, 0, SIZE / 2), 0);
      CHECK_ALL(file, VERSION);
      nearfile_close(file);
      nf_child_ends();
    }
    CHECK_CHILD(child);
    CHECK_ALL(file, VERSION);
    check_no_preads(file, 3);
    nearfile_close(file);
    nearfile_cache_close(cache);
    far_free(far);
  }
}

// Without the flag another handle of the same near copy reads: it must survive what a map does not.
static void a_handle_without_the_flag_reads(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *mapped = open_mapped(cache, far, "key"), *plain = nf_open_far(cache, far, FAR_AT, "key");
  CHECK_ALL(mapped, VERSION);
  CHECK_ALL(mapped, VERSION);
  uint64_t before = preads;
  CHECK_PREAD(plain, 100, 5 * PAGE, VERSION);
  CHECK_EQ(preads, before + 1);
  nearfile_close(mapped);
  MUST(truncate(nearfile_data_path(plain), PAGE) == 0);
  CHECK_ALL(plain, VERSION);
  nearfile_close(plain);
  nearfile_cache_close(cache);
  far_free(far);
}

static _Atomic int said;

static void listen(void *user_data, int32_t level, const char *message) {
  (void)user_data, (void)level;
  if (strstr(message, "NEARFILE_MAP") != NULL) atomic_fetch_add(&said, 1);
}

static void ignored_in_memory(void) {
  char path[NF_PATH];
  nf_mount_tmpfs(nf_path(path, "memory"), 16 << 20);
  CHECK_EQ(nearfile_set_log(listen, NULL, NEARFILE_LOG_WARN), 0);
  nearfile_cache *cache = nf_cache("memory/cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_mapped(cache, far, "key");
  CHECK_EQ(said, 1);
  CHECK_ALL(file, VERSION);
  uint64_t before = preads;
  CHECK_ALL(file, VERSION);
  CHECK(preads > before);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
  CHECK_EQ(nearfile_set_log(NULL, NULL, 0), 0);
  nf_unmount(path);
}

static void odd_files(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  static const uint64_t sizes[] = {0, 1, 4095, PAGE + 1};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    far_file *far = far_new(sizes[i], VERSION, PAGE);
    nearfile_file *file = open_mapped(cache, far, "odd");
    for (int n = 0; n < 3; n++) CHECK_ALL(file, VERSION);
    char byte;
    CHECK_EQ(nearfile_pread(file, &byte, 1, sizes[i]), 0);
    nearfile_close(file);
    far_free(far);
  }
  // A terabyte and a half of which two pages are there.
  far_file *far = far_new(3ull << 39, VERSION, PAGE);
  nearfile_file *file = open_mapped(cache, far, "huge");
  for (int n = 0; n < 3; n++) {
    CHECK_PREAD(file, 1000, (3ull << 39) - 1000, VERSION);
    CHECK_PREAD(file, 1000, 1ull << 40, VERSION);
  }
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// Others drop and fetch what is being copied.
static void right_while_others_drop(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  pid_t children[3];
  for (int i = 0; i < 3; i++) {
    children[i] = nf_fork(60);
    if (children[i] != 0) continue;
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = open_mapped(cache, far, "key");
    uint64_t seed = (uint64_t)i;
    for (int64_t end = nf_now_ms() + 1500; nf_now_ms() < end && nf_failures == 0;) {
      uint64_t at = nf_below(&seed, SIZE);
      if (i == 0) CHECK_EQ(nearfile_discard(file, at, 4 * PAGE), 0);
      CHECK_PREAD(file, (size_t)nf_below(&seed, 3 * PAGE), at, VERSION);
    }
    CHECK_EQ(nf_stats(file).passed_through, 0);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (int i = 0; i < 3; i++) CHECK_CHILD(children[i]);
  far_free(far);
}

int main(int argc, char **argv) {
  nf_own_mounts();
  static const struct nf_case cases[] = {NF_CASE(hits_make_no_system_call), NF_CASE(a_handle_without_the_flag_reads),
                                         NF_CASE(ignored_in_memory), NF_CASE(odd_files), NF_CASE(right_while_others_drop)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
