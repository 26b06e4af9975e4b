// Guards pairs at paths of the program's choice: made if neither file exists, found again by anyone, never written over what is not
// such a pair, and never a reason for wrong bytes.
#include "nf_test.h"

enum { VERSION = 23, PAGE = 1000, SIZE = 30500 };

static char data_path[NF_PATH], index_path[NF_PATH];

static nearfile_options paths_options(const char *key, const char *version) {
  nearfile_options options = {.struct_size = sizeof options, .key = key, .version = version, .size = SIZE, .page_size = PAGE};
  options.data_path = data_path;
  options.index_path = index_path;
  return options;
}

static nearfile_file *open_paths(const nearfile_cache *cache, far_file *far, const char *key, const char *version) {
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_options options = paths_options(key, version);
  nearfile_file *file = NULL;
  MUST(nearfile_open(cache, &source, &options, &file) == 0);
  MUST(file != NULL);
  return file;
}

static void name_paths(const char *data, const char *index) {
  nf_path(data_path, data);
  nf_path(index_path, index);
}

static bool is_there(const char *path) {
  struct stat stat_;
  return lstat(path, &stat_) == 0;
}

static void check_pair_files(void) {
  struct stat data, index;
  MUST(lstat(data_path, &data) == 0 && lstat(index_path, &index) == 0);
  CHECK(S_ISREG(data.st_mode) && S_ISREG(index.st_mode));
  CHECK_EQ(data.st_mode & 07777, 0600);
  CHECK_EQ(index.st_mode & 07777, 0600);
  CHECK_EQ(data.st_size, SIZE);
  CHECK_EQ(data.st_nlink, 1);
  CHECK_EQ(index.st_nlink, 1);
}

static void made_and_found_again(void) {
  for (int with_cache = 0; with_cache < 2; with_cache++) {
    for (int keyed = 0; keyed < 2; keyed++) {
      char name[20], other[20];
      snprintf(name, sizeof name, "data%d%d", with_cache, keyed);
      snprintf(other, sizeof other, "index%d%d", with_cache, keyed);
      name_paths(name, other);
      mode_t before = umask(0);
      nearfile_cache *cache = with_cache ? nf_cache("cache", 4096, 0, 0) : NULL;
      far_file *far = far_new(SIZE, VERSION, PAGE);
      nearfile_file *file = open_paths(cache, far, keyed ? "key" : NULL, keyed ? "v" : NULL);
      umask(before);
      check_pair_files();
      CHECK(strcmp(nearfile_data_path(file), data_path) == 0);
      CHECK(strcmp(nearfile_index_path(file), index_path) == 0);
      CHECK_EQ(nearfile_page_size(file), PAGE);
      CHECK_EQ(far->reads, 0);
      CHECK_ALL(file, VERSION);
      // The same pair while it is open: one near copy, two sources.
      nearfile_file *second = open_paths(cache, far, keyed ? "key" : NULL, keyed ? "v" : NULL);
      CHECK_ALL(second, VERSION);
      CHECK_ONCE(far);
      nearfile_close(file);
      CHECK_EQ(far->releases, 1);
      CHECK_PREAD(second, SIZE, 0, VERSION);
      nearfile_close(second);
      CHECK_EQ(far->releases, 2);
      check_pair_files();

      far_forget(far);
      file = open_paths(with_cache ? NULL : cache, far, keyed ? "key" : NULL, keyed ? "v" : NULL);
      CHECK_EQ(nf_walk(file), SIZE);
      CHECK_ALL(file, VERSION);
      CHECK_EQ(far->reads, 0);
      nearfile_stats stats = {.struct_size = sizeof stats};
      if (cache != NULL) {  // not in the directory's numbers
        CHECK_EQ(nearfile_cache_get_stats(cache, &stats), 0);
        CHECK_EQ(stats.cached_pages, 0);
      }
      CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
      CHECK_ALL(file, VERSION);
      CHECK_ONCE(far);
      nearfile_close(file);
      CHECK_EQ(far->opens, far->closes);
      CHECK_EQ(far->offences, 0);
      far_free(far);
      nearfile_cache_close(cache);
    }
  }
}

// The cache's choices count, and nothing of the pair lies in its directory.
static void a_cache_gives_the_defaults(void) {
  name_paths("data", "index");
  nearfile_cache *cache = nf_cache("cache", 512, 1024, 0);
  far_file *far = far_new(SIZE, VERSION, 512);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_options options = paths_options(NULL, NULL);
  options.page_size = 0;
  nearfile_file *file = NULL;
  MUST(nearfile_open(cache, &source, &options, &file) == 0);
  CHECK_EQ(nearfile_page_size(file), 512);
  CHECK_PREAD(file, 10 * 512, 0, VERSION);
  CHECK_EQ(far->reads, 5);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);

  name_paths("data2", "index2");
  far = far_new(SIZE, VERSION, 1 << 20);
  source = far_source(far, FAR_AT);
  options = paths_options(NULL, NULL);
  options.page_size = 0;
  MUST(nearfile_open(NULL, &source, &options, &file) == 0);
  CHECK_EQ(nearfile_page_size(file), 1 << 20);
  CHECK_ALL(file, VERSION);
  CHECK_ONCE(far);
  nearfile_close(file);
  far_free(far);
}

// Processes that start at the same moment on paths where nothing is yet.
static void processes_share_a_pair(void) {
  enum { PROCESSES = 8, ROUNDS = 8 };
  for (int round = 0; round < ROUNDS; round++) {
    char name[20], other[20];
    snprintf(name, sizeof name, "data%d", round);
    snprintf(other, sizeof other, "index%d", round);
    name_paths(name, other);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    far->delay_us = 200;
    atomic_int *waiting = nf_shared(sizeof *waiting);
    for (int fresh = 0; fresh < 2; fresh++) {
      atomic_store(waiting, PROCESSES);
      pid_t children[PROCESSES];
      for (int i = 0; i < PROCESSES; i++) {
        children[i] = nf_fork(30);
        if (children[i] != 0) continue;
        atomic_fetch_sub(waiting, 1);
        NF_UNTIL(atomic_load(waiting) <= 0, 10000);
        nearfile_file *file = open_paths(NULL, far, round % 2 ? "key" : NULL, NULL);
        CHECK(nearfile_data_path(file) != NULL && strcmp(nearfile_data_path(file), data_path) == 0);
        CHECK_ALL(file, VERSION);
        if (fresh) CHECK_EQ(nf_stats(file).misses, 0);
        CHECK_EQ(nf_stats(file).passed_through, 0);
        nearfile_close(file);
        nf_child_ends();
      }
      for (int i = 0; i < PROCESSES; i++) CHECK_CHILD(children[i]);
      CHECK_ONCE(far);
    }
    check_pair_files();
    munmap(waiting, sizeof *waiting);
    far_free(far);
  }
}

// ---- what is in the way ---------------------------------------------------------------------------------------------------------

static void put_bytes(const char *path, size_t len, uint64_t version) {
  unsigned char *bytes = malloc(len + 1);
  int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
  MUST(bytes != NULL && fd >= 0);
  nf_fill(bytes, len, 0, version);
  MUST(write(fd, bytes, len) == (ssize_t)len && close(fd) == 0);
  free(bytes);
}

static void check_bytes_of(int line, const char *path, size_t len, uint64_t version) {
  unsigned char *bytes = malloc(len + 1);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  MUST(bytes != NULL);
  if (fd < 0 || read(fd, bytes, len + 1) != (ssize_t)len || nf_right(bytes, len, 0, version) != len) {
    nf_fail(__FILE__, line, "a file that is not the library's was changed or is gone");
  }
  close(fd);
  free(bytes);
}
#define CHECK_BYTES_OF(path, len, version) check_bytes_of(__LINE__, path, len, version)

static void check_refused(int line, const char *key, const char *version, uint64_t size, int32_t status) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_options options = paths_options(key, version);
  options.size = size;
  nearfile_file *file = (nearfile_file *)far;
  alarm(20);
  nf_equal(__FILE__, line, "nearfile_open", "status", nearfile_open(NULL, &source, &options, &file), status);
  alarm(0);
  CHECK(file == NULL);
  CHECK(nf_last_error().message[0] != 0);
  CHECK_EQ(far->releases + far->opens, 0);
  if (file != NULL) nearfile_close(file);
  far_free(far);
}
#define CHECK_EXISTS(key, version, size) check_refused(__LINE__, key, version, size, NEARFILE_ERROR_EXISTS)

static void only_one_of_both(void) {
  static const size_t lengths[] = {1, SIZE};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    name_paths("data", "index");
    put_bytes(data_path, lengths[i], 1);
    CHECK_EXISTS(i ? "key" : NULL, NULL, SIZE);
    CHECK_BYTES_OF(data_path, lengths[i], 1);
    CHECK(!is_there(index_path));
    MUST(unlink(data_path) == 0);

    put_bytes(index_path, lengths[i], 2);
    CHECK_EXISTS(NULL, NULL, SIZE);
    CHECK_BYTES_OF(index_path, lengths[i], 2);
    CHECK(!is_there(data_path));
    MUST(unlink(index_path) == 0);

    put_bytes(data_path, lengths[i], 1);
    put_bytes(index_path, lengths[i], 2);
    CHECK_EXISTS(NULL, NULL, SIZE);
    CHECK_BYTES_OF(data_path, lengths[i], 1);
    CHECK_BYTES_OF(index_path, lengths[i], 2);
    MUST(unlink(data_path) == 0 && unlink(index_path) == 0);
  }
  // An index whose mirror is lost, and a mirror full of bytes whose index is lost.
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_paths(NULL, far, NULL, NULL);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  char aside[NF_PATH];
  nf_path(aside, "aside");
  MUST(rename(data_path, aside) == 0);
  CHECK_EXISTS(NULL, NULL, SIZE);
  CHECK(!is_there(data_path));
  MUST(rename(aside, data_path) == 0 && rename(index_path, aside) == 0);
  CHECK_EXISTS(NULL, NULL, SIZE);
  CHECK(!is_there(index_path));
  CHECK_BYTES_OF(data_path, SIZE, VERSION);
  MUST(rename(aside, index_path) == 0);
  far_forget(far);
  file = open_paths(NULL, far, NULL, NULL);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(far->reads, 0);
  nearfile_close(file);
  far_free(far);
}

// A maker that was killed between the two leaves an empty mirror, which is taken over.
static void an_empty_mirror_is_taken_over(void) {
  name_paths("data", "index");
  int fd = open(data_path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  MUST(fd >= 0 && ftruncate(fd, SIZE) == 0 && close(fd) == 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_paths(NULL, far, NULL, NULL);
  CHECK(strcmp(nearfile_data_path(file), data_path) == 0);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  check_pair_files();
  far_free(far);
}

// A pair of another key, version or size is somebody's: refused, and left as it is.
static void another_content(void) {
  name_paths("data", "index");
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_paths(NULL, far, "key", "v");
  CHECK_ALL(file, VERSION);
  for (int open = 0; open < 2; open++) {
    CHECK_EXISTS("key", "w", SIZE);
    CHECK_EXISTS("key", NULL, SIZE);
    CHECK_EXISTS("other", "v", SIZE);
    CHECK_EXISTS("key", "v", SIZE - 1);
    CHECK_EXISTS("key", "v", SIZE + 1);
    CHECK_EXISTS("key", "v", 0);
    if (open == 0) nearfile_close(file);
  }
  check_pair_files();
  CHECK_BYTES_OF(data_path, SIZE, VERSION);
  far_forget(far);
  file = open_paths(NULL, far, "key", "v");
  CHECK_ALL(file, VERSION);
  CHECK_EQ(far->reads, 0);
  nearfile_close(file);
  far_free(far);
}

// The mirror of one pair with the index of another.
static void crossed_pairs(void) {
  char data2[NF_PATH], index2[NF_PATH];
  far_file *far[2];
  for (int i = 0; i < 2; i++) {
    far[i] = far_new(SIZE, VERSION + (uint64_t)i, PAGE);
    name_paths(i ? "data2" : "data1", i ? "index2" : "index1");
    nearfile_file *file = open_paths(NULL, far[i], "key", i ? "2" : "1");
    CHECK_ALL(file, VERSION + (uint64_t)i);
    nearfile_close(file);
  }
  memcpy(data2, data_path, sizeof data2);
  memcpy(index2, index_path, sizeof index2);
  name_paths("data1", "index1");
  memcpy(data_path, data2, sizeof data2);  // data2 with index1: version 1 by its index
  nearfile_source source = far_source(far[0], FAR_AT);
  nearfile_options options = paths_options("key", "1");
  nearfile_file *file = NULL;
  int32_t status = nearfile_open(NULL, &source, &options, &file);
  if (status == 0) {
    CHECK_ALL(file, VERSION);  // the checksums tell
    nearfile_close(file);
  } else {
    CHECK_EQ(status, NEARFILE_ERROR_EXISTS);
  }
  far_free(far[0]);
  far_free(far[1]);
}

// One path for both, links, directories, FIFOs: an error or bytes, at once; nothing followed.
static void odd_paths(void) {
  char victim[NF_PATH];
  alarm(20);
  name_paths("same", "same");
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_options options = paths_options(NULL, NULL);
  nearfile_file *file = NULL;
  CHECK(nearfile_open(NULL, &source, &options, &file) < 0);
  CHECK(file == NULL && nf_last_error().message[0] != 0);

  put_bytes(nf_path(victim, "victim"), SIZE, 5);
  for (int which = 0; which < 2; which++) {
    for (int what = 0; what < 4; what++) {
      char name[20], other[20];
      snprintf(name, sizeof name, "d%d%d", which, what);
      snprintf(other, sizeof other, "i%d%d", which, what);
      name_paths(name, other);
      const char *path = which ? data_path : index_path;
      char none[NF_PATH];
      nf_path(none, "none");
      MUST((what == 0 ? symlink(victim, path) : what == 1 ? symlink(none, path) : what == 2 ? mkdir(path, 0700) : mkfifo(path, 0600)) == 0);
      int32_t status = nearfile_open(NULL, &source, &options, &file);
      if (status == 0) {
        CHECK_ALL(file, VERSION);
        nearfile_close(file);
      } else {
        CHECK(file == NULL && (status == NEARFILE_ERROR_EXISTS || status == NEARFILE_ERROR_IO));
      }
      CHECK_BYTES_OF(victim, SIZE, 5);
      CHECK(!is_there(none));
    }
  }

  // In a directory that does not exist, nothing can be kept; the reads are right.
  name_paths("no/such/data", "no/such/index");
  CHECK_EQ(nearfile_open(NULL, &source, &options, &file), 0);
  CHECK_ALL(file, VERSION);
  CHECK_ALL(file, VERSION);
  CHECK(nearfile_data_path(file) == NULL && nearfile_index_path(file) == NULL);
  CHECK(nf_stats(file).passed_through > 0);
  nearfile_close(file);
  alarm(0);
  far_free(far);
}

// Paths relative to the working directory, which may change while the file is open.
static void relative_paths(void) {
  pid_t child = nf_fork(20);
  if (child == 0) {
    MUST(chdir(nf_dir) == 0);
    strcpy(data_path, "data");
    strcpy(index_path, "./index");
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = open_paths(NULL, far, NULL, NULL);
    CHECK_PREAD(file, SIZE / 2, 0, VERSION);
    MUST(chdir("/") == 0);
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
    CHECK(!is_there("data"));
    MUST(chdir(nf_dir) == 0);
    far_forget(far);
    file = open_paths(NULL, far, NULL, NULL);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(far->reads, 0);
    nearfile_close(file);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

// A handle of a pair works in forked children too.
static void forked_children_share_a_pair(void) {
  name_paths("data", "index");
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_paths(NULL, far, NULL, NULL);
  pid_t children[6];
  for (int i = 0; i < 6; i++) {
    children[i] = nf_fork(20);
    if (children[i] != 0) continue;
    CHECK_ALL(file, VERSION);
    if (i % 2) nearfile_close(file);
    nf_child_ends();
  }
  for (int i = 0; i < 6; i++) CHECK_CHILD(children[i]);
  CHECK_ALL(file, VERSION);
  CHECK_ONCE(far);
  CHECK_EQ(far->releases, 0);
  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  CHECK_EQ(far->offences, 0);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(made_and_found_again), NF_CASE(a_cache_gives_the_defaults), NF_CASE(processes_share_a_pair),
      NF_CASE(only_one_of_both), NF_CASE(an_empty_mirror_is_taken_over), NF_CASE(another_content), NF_CASE(crossed_pairs),
      NF_CASE(odd_paths), NF_CASE(relative_paths), NF_CASE(forked_children_share_a_pair)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
