// Guards that a process may have more files open than it has descriptors for two a file: those of files that nobody reads just now are
// closed when they run out, and opened again when they are needed; also while threads read, in forked children, and where a mirror was
// taken away meanwhile.
#include "nf_test.h"

#include <sys/resource.h>

enum { PAGE = 4096, SIZE = 3 * PAGE, FILES = 1000, LIMIT = 1024, VERSION = 3 };

static nearfile_file *files[FILES];

static nearfile_file *open_number(nearfile_cache *cache, far_file *far, int n) {
  char key[20];
  snprintf(key, sizeof key, "file %d", n);
  return nf_open_far(cache, far, FAR_AT_OPEN, key);
}

static void limit_descriptors(rlim_t most) {
  struct rlimit limit = {most, most};
  MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static void *read_at_random(void *argument) {
  uint64_t seed = *(uint64_t *)argument;
  for (int n = 0; n < 4000; n++) CHECK_PREAD(files[nf_below(&seed, FILES)], 10, nf_below(&seed, SIZE - 10), VERSION);
  return NULL;
}

static void check_all_hits(uint64_t reads_before, far_file *far) {
  for (int n = 0; n < FILES; n++) {
    CHECK_PREAD(files[n], 100, PAGE, VERSION);
    CHECK_EQ(nf_stats(files[n]).passed_through, 0);
  }
  CHECK_EQ(far->reads, reads_before);
}

static void a_thousand_files(void) {
  pid_t child = nf_fork(100);  // its limit is its own
  if (child == 0) {
    limit_descriptors(LIMIT);
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    for (int n = 0; n < FILES; n++) {
      files[n] = open_number(cache, far, n);
      CHECK_PREAD(files[n], SIZE, 0, VERSION);
    }
    uint64_t reads = far->reads;
    check_all_hits(reads, far);
    uint64_t seeds[2] = {1, 2};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) threads[i] = nf_thread(read_at_random, &seeds[i]);
    for (int i = 0; i < 2; i++) nf_join(threads[i]);
    check_all_hits(reads, far);
    pid_t grandchild = nf_fork(60);
    if (grandchild == 0) {
      check_all_hits(reads, far);
      for (int n = 0; n < FILES; n += 10) CHECK_EQ(nearfile_discard(files[n], 0, SIZE), 0);
      for (int n = 0; n < FILES; n += 10) CHECK_PREAD(files[n], SIZE, 0, VERSION);
      nf_child_ends();
    }
    CHECK_CHILD(grandchild);
    check_all_hits(far->reads, far);
    for (int n = 0; n < FILES; n++) nearfile_close(files[n]);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  // What was closed for others was closed cleanly in the end.
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  for (int n = 0; n < FILES; n += 7) {
    char key[20];
    snprintf(key, sizeof key, "file %d", n);
    nearfile_file *file = nf_open(cache, &source, key, NULL, SIZE, NEARFILE_TRUST_CLEAN);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).pages_verified, 0);
    nearfile_close(file);
  }
  CHECK_EQ(far->reads, 0);
  nearfile_cache_close(cache);
  far_free(far);
}

// A mirror whose descriptor was closed, and whose name stands for another file then: its bytes come from the source.
static void another_file_took_its_name(void) {
  pid_t child = nf_fork(60);
  if (child == 0) {
    limit_descriptors(48);
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    files[0] = open_number(cache, far, 0);
    CHECK_ALL(files[0], VERSION);
    CHECK_ALL(files[0], VERSION);
    for (int n = 1; n < 20; n++) {
      files[n] = open_number(cache, far, n);
      CHECK_ALL(files[n], VERSION);
    }
    const char *path = nearfile_data_path(files[0]);
    MUST(unlink(path) == 0);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    MUST(fd >= 0 && ftruncate(fd, SIZE) == 0);
    close(fd);
    CHECK_ALL(files[0], VERSION);
    CHECK(nf_stats(files[0]).passed_through > 0);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(a_thousand_files), NF_CASE(another_file_took_its_name)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
