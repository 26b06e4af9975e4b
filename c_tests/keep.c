// Guards what is kept and what is dropped on purpose: frozen files, preserved copies, prefetch, batches of reads, and the list, the
// removal and the trimming of a directory's near copies.
#include "nf_test.h"

#include "nf_budget.h"

enum { PAGE = 8192, PAGES = 50, SIZE = PAGES * PAGE + 1001, VERSION = 3 };

static int32_t never(far_file *far, uint64_t offset, size_t len) {
  (void)offset, (void)len;
  far_offence(far, "the source was read, and must not be");
  return 99;
}

static nearfile_file *open_pair(const nearfile_source *source, const char *data, uint64_t size, uint64_t page_size, uint32_t flags,
                                int32_t expected) {
  char index[NF_PATH + 10];
  snprintf(index, sizeof index, "%s.index", data);
  nearfile_options options = {.struct_size = sizeof options,
                              .size = size,
                              .page_size = page_size,
                              .flags = flags,
                              .data_path = data,
                              .index_path = index};
  nearfile_file *file = NULL;
  CHECK_EQ(nearfile_open(NULL, source, &options, &file), expected);
  MUST(expected != 0 || file != NULL);
  return file;
}

static bool exists(const char *path) {
  struct stat stat_buf;
  return lstat(path, &stat_buf) == 0;
}

static int entries_in(const char *dir) {
  int count = 0;
  DIR *list = opendir(dir);
  MUST(list != NULL);
  for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
    count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
  }
  closedir(list);
  return count;
}

static int64_t pread_status(const nearfile_file *file, uint64_t offset, size_t len) {
  char *buf = malloc(len);
  MUST(buf != NULL);
  int64_t got = nearfile_pread(file, buf, len, offset);
  free(buf);
  return got;
}

// Every other page.
static void read_half(const nearfile_file *file) {
  for (uint64_t page = 0; page <= PAGES; page += 2) CHECK_PREAD(file, PAGE, page * PAGE, VERSION);
}

// ---- freeze ----------------------------------------------------------------------------------------------------------------

static void check_frozen_half(const nearfile_file *file) {
  for (uint64_t page = 0; page <= PAGES; page++) {
    if (page % 2 == 0) {
      CHECK_PREAD(file, PAGE, page * PAGE, VERSION);
    } else {
      CHECK_EQ(pread_status(file, page * PAGE, PAGE), NEARFILE_ERROR_FROZEN);
      CHECK_EQ(pread_status(file, page * PAGE + PAGE - 1, 1), NEARFILE_ERROR_FROZEN);
    }
  }
  CHECK_EQ(pread_status(file, 0, SIZE), NEARFILE_ERROR_FROZEN);
  CHECK_EQ(pread_status(file, PAGE - 1, 2), NEARFILE_ERROR_FROZEN);
  CHECK_EQ(pread_status(file, SIZE, 10), 0);
  CHECK_EQ(pread_status(file, 0, 0), 0);
  // The position stays where a read failed.
  char byte[2];
  CHECK_EQ(nearfile_seek(file, PAGE - 1, NEARFILE_SEEK_SET), PAGE - 1);
  CHECK_EQ(nearfile_read(file, byte, 2), NEARFILE_ERROR_FROZEN);
  CHECK_EQ(nearfile_tell(file), PAGE - 1);
  CHECK_EQ(nearfile_read(file, byte, 1), 1);
  CHECK_BYTES(byte, 1, PAGE - 1, VERSION);
}

static void a_frozen_file(void) {
  static const char *const kinds[] = {"keyed", "private", "exact"};
  for (int kind = 0; kind < 3; kind++) {
    size_t before = nf_enter(kinds[kind]);
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_source source = far_source(far, FAR_AT_OPEN);
    nearfile_options options = {.struct_size = sizeof options,
                                .key = kind == 0 ? "file" : NULL,
                                .size = SIZE,
                                .mode = kind == 2 ? NEARFILE_EXACT : NEARFILE_PAGED};
    nearfile_file *file = NULL, *other = NULL;
    MUST(nearfile_open(cache, &source, &options, &file) == 0);
    CHECK_EQ(nearfile_dup(file, &other), 0);
    read_half(file);
    uint64_t there = nf_walk(file), reads = far->reads, opens = far->opens;
    CHECK_EQ(nearfile_freeze(file), 0);
    CHECK_EQ(nearfile_freeze(file), 0);
    check_frozen_half(file);
    CHECK_EQ(far->reads, reads);
    CHECK_EQ(far->opens, opens);
    // Nobody gives up what is there, by whatever handle.
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_EQ(nearfile_discard(other, 0, SIZE), 0);
    CHECK_EQ(nearfile_cache_trim(cache, 0), 0);
    CHECK_EQ(nf_walk(file), there);
    check_frozen_half(file);
    CHECK_EQ(far->reads, reads);
    // A handle beside it that is not frozen reads on, and what it fetches is a hit for the frozen one.
    CHECK_PREAD(other, PAGE, PAGE, VERSION);
    CHECK(far->reads > reads);
    CHECK_PREAD(file, 2 * PAGE, PAGE, VERSION);
    // Once it is closed, pages go again.
    nearfile_close(file);
    CHECK_EQ(nearfile_discard(other, 0, SIZE), 0);
    if (kind != 2) CHECK_EQ(nf_walk(other), 0);
    CHECK_ALL(other, VERSION);
    nearfile_close(other);
    CHECK_EQ(far->offences, 0);
    far_free(far);
    nearfile_cache_close(cache);
    nf_leave(before);
  }
}

// Another process freezes; evictors, removers and droppers of this one leave its pages alone. Killed, it holds nothing.
static void frozen_by_another_process(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE), *other = far_new(4 * SIZE, VERSION + 1, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, SIZE * 2, NEARFILE_FULL_EVICT);
  atomic_int *step = nf_shared(sizeof *step);
  pid_t child = nf_fork(60);
  if (child == 0) {
    nearfile_cache *own = nf_limited("cache", PAGE, 0, NEARFILE_FULL_EVICT);
    nearfile_source source = far_source(far, FAR_AT);
    nearfile_file *file = nf_open(own, &source, "file", NULL, SIZE, 0);
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
    file = nf_open(own, &source, "file", NULL, SIZE, NEARFILE_FROZEN);
    atomic_store(step, 1);
    NF_UNTIL(*step == 2, 30000);
    far->hook = never;
    CHECK_ALL(file, VERSION);
    far->hook = NULL;
    atomic_store(step, nf_failures == 0 ? 3 : 4);
    for (;;) pause();
  }
  NF_UNTIL(*step == 1, 20000);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file"), *cold = nf_open_far(cache, other, FAR_AT, "cold");
  for (int n = 0; n < 5; n++) CHECK_ALL(cold, VERSION + 1);
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_EQ(nearfile_cache_trim(cache, 0), 0);
  CHECK_EQ(nearfile_cache_remove(cache, "file"), 0);
  CHECK_EQ(nf_walk(file), SIZE);
  CHECK(nf_cache_stats(cache).cached_bytes <= SIZE * 2);
  atomic_store(step, 2);
  NF_UNTIL(*step > 2, 20000);
  CHECK_EQ(*step, 3);
  kill(child, SIGKILL);
  int status = 0;
  MUST(waitpid(child, &status, 0) == child);
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_EQ(nf_walk(file), 0);
  CHECK_EQ(far->offences, 0);
  nearfile_close(file);
  nearfile_close(cold);
  nearfile_cache_close(cache);
  munmap(step, sizeof *step);
  far_free(far);
  far_free(other);
}

static void frozen_at_open(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_file *file = nf_open(cache, &source, "file", NULL, SIZE, NEARFILE_FROZEN);  // nothing is there yet
  CHECK_EQ(pread_status(file, 0, 1), NEARFILE_ERROR_FROZEN);
  CHECK_EQ(pread_status(file, SIZE - 1, 1), NEARFILE_ERROR_FROZEN);
  CHECK_EQ(far->reads + far->opens, 0);
  CHECK_EQ(nearfile_prefetch(file, 0, SIZE, 0, NULL, NULL), NEARFILE_ERROR_FROZEN);
  nearfile_close(file);
  file = nf_open(cache, &source, "file", NULL, SIZE, 0);
  read_half(file);
  nearfile_close(file);
  far->hook = never;
  file = nf_open(cache, &source, "file", NULL, SIZE, NEARFILE_FROZEN);
  check_frozen_half(file);
  nearfile_close(file);
  CHECK_EQ(far->offences, 0);
  CHECK_EQ(far->releases, 3);
  // Without a source only a pair at two paths, frozen.
  nearfile_options options = {.struct_size = sizeof options, .key = "file", .size = SIZE, .flags = NEARFILE_FROZEN};
  file = (nearfile_file *)far;
  CHECK_EQ(nearfile_open(cache, NULL, &options, &file), NEARFILE_ERROR_ARGUMENT);
  CHECK(file == NULL);
  char path[NF_PATH];
  open_pair(NULL, nf_path(path, "pair"), SIZE, PAGE, 0, NEARFILE_ERROR_ARGUMENT);
  CHECK(!exists(path));
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- preserve --------------------------------------------------------------------------------------------------------------

// In a process that has seen nothing: by the two paths, no source, all or half of the bytes.
static void check_preserved(const char *path, uint64_t page_size, bool half) {
  pid_t child = nf_fork(60);
  if (child == 0) {
    nearfile_file *file = open_pair(NULL, path, SIZE, page_size, NEARFILE_FROZEN, 0);
    CHECK_EQ(nearfile_size(file), SIZE);
    CHECK_EQ(nearfile_page_size(file), page_size);
    if (half) {
      check_frozen_half(file);
    } else {
      CHECK_ALL(file, VERSION);
      CHECK_PREAD(file, SIZE, 0, VERSION);
    }
    CHECK_EQ(nf_stats(file).source_reads, 0);
    nearfile_pin *pin = NULL;
    CHECK_EQ(nearfile_pin_range(file, 10, PAGE - 10, &pin), 0);
    if (pin != NULL) CHECK_BYTES(nearfile_pin_data(pin), PAGE - 10, 10, VERSION);
    nearfile_pin_release(pin);
    nearfile_file *other = NULL;
    CHECK_EQ(nearfile_dup(file, &other), 0);
    nearfile_close(file);
    CHECK_PREAD(other, PAGE, 0, VERSION);
    if (half) CHECK_EQ(pread_status(other, PAGE, 1), NEARFILE_ERROR_FROZEN);
    nearfile_close(other);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

static void preserved_and_opened_again(bool tmpfs) {
  if (tmpfs) nf_mount_tmpfs(nf_dir, 32 << 20);
  for (int half = 0; half < 2; half++) {
    for (int private = 0; private < 2; private++) {
      char name[40], path[NF_PATH], index[NF_PATH + 10];
      snprintf(name, sizeof name, "%s_%s", half ? "half" : "whole", private ? "private" : "keyed");
      size_t before = nf_enter(name);
      nf_enter("out");
      nf_leave(before + 1 + strlen(name));
      far_file *far = far_new(SIZE, VERSION, PAGE);
      nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
      nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, private ? NULL : "file");
      if (half) {
        read_half(file);
      } else {
        CHECK_ALL(file, VERSION);
      }
      far->hook = never;
      CHECK_EQ(nearfile_preserve(file, nf_path(path, "out/copy")), 0);
      snprintf(index, sizeof index, "%s.index", path);
      CHECK(exists(path) && exists(index));
      CHECK_EQ(entries_in(nf_path(index, "out")), 2);  // nothing else is left behind
      // It is frozen now, and reads on.
      if (half) {
        check_frozen_half(file);
      } else {
        CHECK_ALL(file, VERSION);
      }
      // Holes are holes.
      struct stat stat_buf;
      MUST(stat(path, &stat_buf) == 0);
      CHECK_EQ(stat_buf.st_size, SIZE);
      CHECK((uint64_t)stat_buf.st_blocks * 512 <= (half ? SIZE / 2 + 2 * PAGE : SIZE + PAGE));
      CHECK((uint64_t)stat_buf.st_blocks * 512 >= (half ? SIZE / 2 - PAGE : SIZE / 4096 * 4096));
      // And it is no link to the mirror: what the cache does to its own does not matter.
      nearfile_close(file);
      check_preserved(path, PAGE, half);
      far->hook = NULL;
      if (!private) {
        file = nf_open_far(cache, far, FAR_AT, "file");
        CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
        CHECK_EQ(nf_walk(file), 0);
        CHECK_ALL(file, VERSION);
        CHECK_EQ(nearfile_cache_trim(cache, 0), 0);
        CHECK_EQ(nearfile_cache_remove(cache, "file"), 0);
        nearfile_close(file);
      }
      nearfile_cache_close(cache);
      check_preserved(path, PAGE, half);
      // With a source and not frozen: nothing is read again, and misses work.
      far_forget(far);
      nearfile_source source = far_source(far, FAR_AT_OPEN);
      file = open_pair(&source, path, SIZE, 0, 0, 0);
      CHECK_EQ(nearfile_page_size(file), PAGE);
      for (uint64_t page = 0; page <= PAGES; page += 1 + (uint64_t)half) CHECK_PREAD(file, PAGE, page * PAGE, VERSION);
      CHECK_EQ(far->reads, 0);
      CHECK_ALL(file, VERSION);
      CHECK_EQ(far->reads != 0, half);
      CHECK_EQ(nf_stats(file).checksum_failures, 0);
      nearfile_close(file);
      check_preserved(path, PAGE, false);
      CHECK_EQ(far->offences, 0);
      far_free(far);
      nf_leave(before);
    }
  }
  if (tmpfs) nf_unmount(nf_dir);
}

static void preserved_on_the_disk(void) { preserved_and_opened_again(false); }
static void preserved_on_tmpfs(void) { preserved_and_opened_again(true); }

// From one file system to the other, where no blocks can be shared.
static void preserved_across_file_systems(void) {
  char path[NF_PATH], mount_at[NF_PATH];
  nf_mount_tmpfs(nf_path(mount_at, "tmpfs"), 16 << 20);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  for (int to_disk = 0; to_disk < 2; to_disk++) {
    nearfile_cache *cache = nf_cache(to_disk ? "tmpfs/cache" : "cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
    read_half(file);
    CHECK_EQ(nearfile_preserve(file, nf_path(path, to_disk ? "copy" : "tmpfs/copy")), 0);
    CHECK(nf_blocks(path) <= SIZE / 2 + 2 * PAGE);
    nearfile_close(file);
    nearfile_cache_close(cache);
    check_preserved(path, PAGE, true);
  }
  far_free(far);
  nf_unmount(mount_at);
}

static void preserve_never_overwrites(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  CHECK_ALL(file, VERSION);
  nf_leave(nf_enter("out"));
  char path[NF_PATH], index[NF_PATH + 10], out[NF_PATH];
  nf_path(path, "out/copy");
  nf_path(out, "out");
  snprintf(index, sizeof index, "%s.index", path);
  const char *const taken[] = {path, index};
  for (int kind = 0; kind < 3; kind++) {  // a file, a dangling link, a directory
    for (int i = 0; i < 2; i++) {
      if (kind == 0) {
        int fd = open(taken[i], O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
        MUST(fd >= 0 && write(fd, "mine", 4) == 4);
        close(fd);
      } else if (kind == 1) {
        MUST(symlink("nowhere", taken[i]) == 0);
      } else {
        MUST(mkdir(taken[i], 0700) == 0);
      }
      CHECK_EQ(nearfile_preserve(file, path), NEARFILE_ERROR_EXISTS);
      CHECK(!exists(taken[!i]));
      CHECK_EQ(entries_in(out), 1);
      char held[10] = {0};
      if (kind == 0) {
        int fd = open(taken[i], O_RDONLY | O_CLOEXEC);
        MUST(fd >= 0);
        CHECK(read(fd, held, sizeof held) == 4 && memcmp(held, "mine", 4) == 0);
        close(fd);
      }
      if (kind == 1) CHECK(readlink(taken[i], held, sizeof held) == 7 && !exists(nf_path(out, "out/nowhere")));
      nf_path(out, "out");
      MUST(kind == 2 ? rmdir(taken[i]) == 0 : unlink(taken[i]) == 0);
    }
  }
  CHECK_EQ(nearfile_preserve(file, path), 0);
  CHECK_EQ(nearfile_preserve(file, path), NEARFILE_ERROR_EXISTS);
  CHECK_EQ(entries_in(out), 2);
  // Where it cannot be written there is an error, and nothing.
  CHECK_EQ(nearfile_preserve(file, nf_path(index, "no/such/directory")), NEARFILE_ERROR_IO);
  CHECK_EQ(nf_last_error().os_errno, ENOENT);
  CHECK_EQ(nearfile_preserve(file, NULL), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_preserve(NULL, path), NEARFILE_ERROR_ARGUMENT);
  check_preserved(path, PAGE, false);
  // Nor where the disk is full.
  nf_mount_tmpfs(nf_path(out, "small"), 100 << 10);
  CHECK_EQ(nearfile_preserve(file, nf_path(path, "small/copy")), NEARFILE_ERROR_IO);
  CHECK_EQ(nf_last_error().os_errno, ENOSPC);
  CHECK_EQ(entries_in(out), 0);
  nf_unmount(out);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// Six processes preserve to one path at once: one of them does, and it is whole.
static void one_of_many_preserves(void) {
  enum { PROCESSES = 6 };
  far_file *far = far_new(SIZE, VERSION, PAGE);
  atomic_int *state = nf_shared(2 * sizeof *state);
  char path[NF_PATH], out[NF_PATH];
  for (int round = 0; round < 5; round++) {
    char name[20];
    snprintf(name, sizeof name, "%d", round);
    size_t before = nf_enter(name);
    nf_leave(nf_enter("out"));
    nf_path(path, "out/copy");
    atomic_store(&state[0], PROCESSES);
    atomic_store(&state[1], 0);
    pid_t children[PROCESSES];
    for (int p = 0; p < PROCESSES; p++) {
      children[p] = nf_fork(60);
      if (children[p] != 0) continue;
      nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
      nearfile_file *file = nf_open_far(cache, far, FAR_AT, p % 2 ? "file" : NULL);
      CHECK_ALL(file, VERSION);
      nf_meet(&state[0]);
      int32_t status = nearfile_preserve(file, path);
      CHECK(status == 0 || status == NEARFILE_ERROR_EXISTS);
      if (status == 0) {
        atomic_fetch_add(&state[1], 1);
        check_preserved(path, PAGE, false);
      }
      nearfile_close(file);
      nearfile_cache_close(cache);
      nf_child_ends();
    }
    for (int p = 0; p < PROCESSES; p++) CHECK_CHILD(children[p]);
    CHECK_EQ(state[1], 1);
    CHECK_EQ(entries_in(nf_path(out, "out")), 2);
    check_preserved(path, PAGE, false);
    nf_leave(before);
  }
  munmap(state, 2 * sizeof *state);
  far_free(far);
}

static void preserved_from_exact_mode(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_source source = far_source(far, FAR_AT);
  for (int whole = 0; whole < 2; whole++) {
    nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .mode = NEARFILE_EXACT};
    nearfile_file *file = NULL;
    char path[NF_PATH];
    MUST(nearfile_open(cache, &source, &options, &file) == 0);
    if (whole) {
      for (uint64_t at = 0; at < SIZE; at += 1234) CHECK_PREAD(file, 1234, at, VERSION);
    } else {
      CHECK_PREAD(file, 4096, 0, VERSION);              // a page
      CHECK_PREAD(file, 4095, 8192, VERSION);           // a page but one byte
      CHECK_PREAD(file, 10000, 16384 - 10, VERSION);    // two pages and parts of two
      CHECK_PREAD(file, 5000, SIZE - 1001, VERSION);    // the short last page
    }
    CHECK_EQ(nearfile_preserve(file, nf_path(path, whole ? "whole" : "parts")), 0);
    nearfile_close(file);
    if (whole) {
      check_preserved(path, 4096, false);
    } else {
      file = open_pair(NULL, path, SIZE, 4096, NEARFILE_FROZEN, 0);
      CHECK_PREAD(file, 4096, 0, VERSION);
      CHECK_PREAD(file, 8192, 16384, VERSION);
      CHECK_PREAD(file, 1001, SIZE - 1001, VERSION);
      CHECK_EQ(nf_walk(file), 3 * 4096 + 1001);
      for (uint64_t page = 0; page < SIZE / 4096; page++) {
        if (page != 0 && page != 4 && page != 5) CHECK_EQ(pread_status(file, page * 4096, 1), NEARFILE_ERROR_FROZEN);
      }
      nearfile_close(file);
    }
  }
  nearfile_cache_close(cache);
  far_free(far);
}

static void a_preserved_copy_under_churn(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE), *other = far_new(SIZE, VERSION + 1, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, SIZE + PAGE, NEARFILE_FULL_EVICT);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  for (int n = 0; n < 8 && nf_walk(file) < SIZE; n++) CHECK_ALL(file, VERSION);
  CHECK_EQ(nf_walk(file), SIZE);
  char path[NF_PATH];
  CHECK_EQ(nearfile_preserve(file, nf_path(path, "copy")), 0);
  nearfile_close(file);
  atomic_int *stop = nf_shared(sizeof *stop);
  pid_t child = nf_fork(60);
  if (child == 0) {
    uint64_t seed = 4, version = 0;
    while (atomic_load(stop) == 0 && nf_failures < 3) {
      version = !version;
      file = nf_open_far(cache, version ? other : far, FAR_AT, version ? "other" : "file");
      for (int n = 0; n < 100; n++) CHECK_PREAD(file, 3 * PAGE, nf_below(&seed, SIZE), VERSION + version);
      CHECK_EQ(nearfile_discard(file, nf_below(&seed, SIZE), SIZE), 0);
      CHECK_EQ(nearfile_cache_trim(cache, 10 * PAGE), 0);
      nearfile_close(file);
    }
    nf_child_ends();
  }
  nearfile_file *copy = open_pair(NULL, path, SIZE, PAGE, NEARFILE_FROZEN, 0);
  for (int n = 0; n < 100; n++) {
    CHECK_ALL(copy, VERSION);
    nf_sleep_us(5000);
  }
  nearfile_close(copy);
  atomic_store(stop, 1);
  CHECK_CHILD(child);
  check_preserved(path, PAGE, false);
  nearfile_cache_close(cache);
  munmap(stop, sizeof *stop);
  far_free(far);
  far_free(other);
}

static void preserve_here(const char *path, far_file *far) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nearfile_preserve(file, path), 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void preserved_where_nothing_can_be_written(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  char media[NF_PATH], path[NF_PATH];
  for (int tmpfs = 0; tmpfs < 2; tmpfs++) {
    nf_path(media, tmpfs ? "tmpfs" : "bound");
    nf_path(path, tmpfs ? "tmpfs/copy" : "bound/copy");
    if (tmpfs) {
      nf_mount_tmpfs(media, 16 << 20);
      preserve_here(path, far);
      MUST(mount(NULL, media, NULL, MS_REMOUNT | MS_RDONLY, NULL) == 0);
    } else {
      MUST(mkdir(media, 0700) == 0);
      preserve_here(path, far);
      MUST(mount(media, media, NULL, MS_BIND, NULL) == 0);
      MUST(mount(NULL, media, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) == 0);
    }
    CHECK(open(path, O_RDWR | O_CLOEXEC) == -1 && errno == EROFS);
    for (int n = 0; n < 2; n++) check_preserved(path, PAGE, false);
    // Two processes at once, with and without a source.
    nearfile_source source = far_source(far, FAR_AT_OPEN);
    far->hook = never;
    nearfile_file *file = open_pair(&source, path, SIZE, PAGE, NEARFILE_FROZEN, 0);
    check_preserved(path, PAGE, false);
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
    far->hook = NULL;
    nf_unmount(media);
  }
  CHECK_EQ(far->offences, 0);
  far_free(far);
}

// Without a source there is nothing to heal from: an error, never a wrong byte.
static void damage_in_a_preserved_copy(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  char path[NF_PATH], index[NF_PATH + 10];
  preserve_here(nf_path(path, "copy"), far);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  MUST(fd >= 0);
  for (uint64_t page = 0; page <= PAGES; page += 5) {
    unsigned char wrong = (unsigned char)(nf_byte(page * PAGE + 500, VERSION) ^ 1);
    MUST(pwrite(fd, &wrong, 1, (off_t)(page * PAGE + 500)) == 1);
  }
  close(fd);
  for (int again = 0; again < 2; again++) {
    nearfile_file *file = open_pair(NULL, path, SIZE, PAGE, NEARFILE_FROZEN | (again ? NEARFILE_VERIFY_ALWAYS : 0), 0);
    for (uint64_t page = 0; page <= PAGES; page++) {
      if (page % 5 != 0) {
        CHECK_PREAD(file, PAGE, page * PAGE, VERSION);
        continue;
      }
      for (int n = 0; n < 2; n++) {
        int64_t got = pread_status(file, page * PAGE, 1000);
        CHECK(got == NEARFILE_ERROR_FROZEN || got == NEARFILE_ERROR_IO);
        nearfile_pin *pin = NULL;
        CHECK(nearfile_pin_range(file, page * PAGE, 1000, &pin) < 0);
        CHECK(pin == NULL);
      }
    }
    nearfile_close(file);
  }
  // With a source it heals.
  far_forget(far);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_file *file = open_pair(&source, path, SIZE, PAGE, 0, 0);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(far->page_reads[5], 1);
  CHECK_EQ(far->page_reads[6], 0);
  nearfile_close(file);
  check_preserved(path, PAGE, false);
  // Any byte of the index: opened or not, what is read is right.
  snprintf(index, sizeof index, "%s.index", path);
  struct stat stat_buf;
  MUST(stat(index, &stat_buf) == 0);
  uint64_t seed = 2;
  fd = open(index, O_RDWR | O_CLOEXEC);
  MUST(fd >= 0);
  int read_right = 0;
  for (int n = 0; n < 150; n++) {
    unsigned char byte, wrong;
    // The header, its neighbourhood, and the words, which end the file or nearly so.
    uint64_t at = nf_below(&seed, n % 2 ? 256 : (uint64_t)stat_buf.st_size);
    MUST(pread(fd, &byte, 1, (off_t)at) == 1);
    wrong = (unsigned char)(byte ^ (1u << nf_below(&seed, 8)));
    MUST(pwrite(fd, &wrong, 1, (off_t)at) == 1);
    nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .page_size = PAGE, .flags = NEARFILE_FROZEN,
                                .data_path = path, .index_path = index};
    file = NULL;
    if (nearfile_open(NULL, NULL, &options, &file) == 0) {
      char buf[PAGE];
      for (uint64_t page = 0; page < PAGES; page++) {
        if (nearfile_pread(file, buf, PAGE, page * PAGE) == PAGE) CHECK_BYTES(buf, PAGE, page * PAGE, VERSION), read_right++;
      }
      nearfile_close(file);
    }
    MUST(pwrite(fd, &byte, 1, (off_t)at) == 1);
  }
  close(fd);
  CHECK(read_right > 50 * PAGES);
  check_preserved(path, PAGE, false);
  far_free(far);
}

// ---- prefetch --------------------------------------------------------------------------------------------------------------

struct progress {
  uint64_t calls, last, total, cancel_at;
  pthread_t thread;
  bool wrong;
};

static int32_t hear(void *user_data, uint64_t done, uint64_t total) {
  struct progress *heard = user_data;
  heard->wrong = heard->wrong || done < heard->last || done > total || (heard->calls > 0 && total != heard->total) ||
                 !pthread_equal(pthread_self(), heard->thread);
  heard->calls++;
  heard->last = done, heard->total = total;
  return heard->cancel_at != 0 && done >= heard->cancel_at ? 7 : 0;
}

static void prefetch(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_cache("cache", PAGE, 4 * PAGE, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  struct progress heard = {.thread = pthread_self()};
  // A part, not on page boundaries.
  CHECK_EQ(nearfile_prefetch(file, 3 * PAGE + 10, 2 * PAGE, 0, hear, &heard), 0);
  CHECK(heard.calls > 0 && !heard.wrong);
  CHECK_EQ(heard.last, 2 * PAGE);
  CHECK_EQ(heard.total, 2 * PAGE);
  CHECK_EQ(nf_walk(file), 3 * PAGE);
  CHECK_EQ(far->bytes, 3 * PAGE);
  // Cancelled half way; what came is there, and the next read works.
  heard = (struct progress){.thread = pthread_self(), .cancel_at = SIZE / 2};
  CHECK_EQ(nearfile_prefetch(file, 0, SIZE, 0, hear, &heard), NEARFILE_ERROR_CANCELLED);
  CHECK(heard.last >= SIZE / 2 && heard.last < SIZE && !heard.wrong);
  uint64_t there = nf_walk(file);
  CHECK(there >= SIZE / 2 && there < SIZE);
  CHECK_PREAD(file, PAGE, SIZE - PAGE, VERSION);
  // The whole, in no more than max_fetch_bytes a read; further than the end is as far as it goes.
  heard = (struct progress){.thread = pthread_self()};
  CHECK_EQ(nearfile_prefetch(file, 0, UINT64_MAX, 0, hear, &heard), 0);
  CHECK(!heard.wrong && heard.calls > 1);
  CHECK_EQ(heard.last, SIZE);
  CHECK_ONCE(far);
  // What is there costs no source read, with or without anyone who hears of it.
  far_forget(far);
  CHECK_EQ(nearfile_prefetch(file, 0, SIZE, 0, NULL, NULL), 0);
  heard = (struct progress){.thread = pthread_self()};
  CHECK_EQ(nearfile_prefetch(file, 5, SIZE, 0, hear, &heard), 0);
  CHECK_EQ(heard.last, SIZE - 5);
  CHECK_EQ(nearfile_prefetch(file, SIZE, 10, 0, NULL, NULL), 0);
  CHECK_EQ(nearfile_prefetch(file, UINT64_MAX, UINT64_MAX, 0, NULL, NULL), 0);
  CHECK_EQ(nearfile_prefetch(file, 0, 0, 0, NULL, NULL), 0);
  CHECK_EQ(far->reads, 0);
  CHECK_EQ(nearfile_prefetch(file, 0, 10, 2, NULL, NULL), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_prefetch(NULL, 0, 10, 0, NULL, NULL), NEARFILE_ERROR_ARGUMENT);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// All processes prefetch the same: each page comes once.
static void prefetch_is_shared(void) {
  enum { PROCESSES = 4 };
  far_file *far = far_new(SIZE, VERSION, PAGE);
  far->delay_us = 300;
  atomic_int *waiting = nf_shared(sizeof *waiting);
  atomic_store(waiting, PROCESSES);
  pid_t children[PROCESSES];
  for (int p = 0; p < PROCESSES; p++) {
    children[p] = nf_fork(60);
    if (children[p] != 0) continue;
    nearfile_cache *cache = nf_cache("cache", PAGE, 3 * PAGE, 0);
    nearfile_file *file = nf_open_far(cache, far, (enum far_kind)p, "file");
    struct progress heard = {.thread = pthread_self()};
    nf_meet(waiting);
    CHECK_EQ(nearfile_prefetch(file, 0, SIZE, 0, hear, &heard), 0);
    CHECK(heard.last == SIZE && !heard.wrong);
    CHECK_EQ(nf_walk(file), SIZE);
    CHECK_EQ(nearfile_freeze(file), 0);
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (int p = 0; p < PROCESSES; p++) CHECK_CHILD(children[p]);
  CHECK_ONCE(far);
  CHECK_EQ(far->offences, 0);
  munmap(waiting, sizeof *waiting);
  far_free(far);
}

static int32_t gone_late(far_file *far, uint64_t offset, size_t len) {
  (void)far;
  return offset + len > 20 * PAGE ? 404 : 0;
}

static void prefetch_meets_limits_and_failures(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, 20 * PAGE, NEARFILE_FULL_STOP);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  struct progress heard = {.thread = pthread_self()};
  CHECK_EQ(nearfile_prefetch(file, 0, SIZE, 0, hear, &heard), 0);
  CHECK(nf_walk(file) <= 20 * PAGE);
  CHECK(!heard.wrong && heard.last < SIZE);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  nearfile_cache_close(cache);
  cache = nf_cache("other", PAGE, PAGE, 0);
  file = nf_open_far(cache, far, FAR_AT, "file");
  far->hook = gone_late;
  CHECK_EQ(nearfile_prefetch(file, 0, SIZE, 0, NULL, NULL), NEARFILE_ERROR_SOURCE);
  CHECK_EQ(nf_last_error().source_code, 404);
  far->hook = NULL;
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  nearfile_cache_close(cache);
  // In exact mode: the bytes asked for, not one more.
  cache = nf_cache("exact", PAGE, 0, 0);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .mode = NEARFILE_EXACT};
  MUST(nearfile_open(cache, &source, &options, &file) == 0);
  far_forget(far);
  CHECK_EQ(nearfile_prefetch(file, 1003, 30001, 0, NULL, NULL), 0);
  CHECK_EQ(far->bytes, 30001);
  CHECK_EQ(nf_walk(file), 30001);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// ---- batches ---------------------------------------------------------------------------------------------------------------

static int32_t gone_in_the_middle(far_file *far, uint64_t offset, size_t len) {
  (void)far;
  return offset < 30 * PAGE && offset + len > 20 * PAGE ? 404 : 0;
}

// A later version's, larger than this one's.
struct larger_range {
  nearfile_range range;
  char more[24];
};

static void ranges(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  far->hook = gone_in_the_middle;
  nearfile_cache *cache = nf_cache("cache", PAGE, 2 * PAGE, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  static const struct { uint64_t offset; size_t len; int32_t status; } asked[] = {
      {5, 3 * PAGE, 0},   {25 * PAGE, 10, NEARFILE_ERROR_SOURCE}, {SIZE - 10, 100, 0}, {SIZE, 10, 0}, {UINT64_MAX, 10, 0}, {7, 0, 0},
      {19 * PAGE, 2 * PAGE, NEARFILE_ERROR_SOURCE}, {40 * PAGE, PAGE, 0}, {5, 3 * PAGE, 0}, {40 * PAGE + 1, 1, 0}};
  enum { COUNT = sizeof asked / sizeof *asked };
  for (int larger = 0; larger < 2; larger++) {
    size_t step = larger ? sizeof(struct larger_range) : sizeof(nearfile_range);
    unsigned char *all = malloc(COUNT * step);
    MUST(all != NULL);
    memset(all, 0xCC, COUNT * step);
    for (int i = 0; i < COUNT; i++) {
      nearfile_range *range = (nearfile_range *)(void *)(all + (size_t)i * step);
      range->offset = asked[i].offset, range->len = asked[i].len;
      range->buf = malloc(asked[i].len + 1);
      MUST(range->buf != NULL);
      memset(range->buf, 0xEE, asked[i].len + 1);
      range->out_len = 12345, range->out_status = 54321;
    }
    CHECK_EQ(nearfile_read_ranges(file, (nearfile_range *)(void *)all, COUNT, step), NEARFILE_ERROR_SOURCE);
    for (int i = 0; i < COUNT; i++) {
      nearfile_range *range = (nearfile_range *)(void *)(all + (size_t)i * step);
      uint64_t left = asked[i].offset < SIZE ? SIZE - asked[i].offset : 0;
      size_t expected = asked[i].len < left ? asked[i].len : (size_t)left;
      CHECK_EQ(range->out_status, asked[i].status);
      CHECK_EQ(range->out_len, asked[i].status == 0 ? expected : 0);
      if (asked[i].status == 0) CHECK_BYTES(range->buf, expected, asked[i].offset, VERSION);
      CHECK_EQ(((unsigned char *)range->buf)[asked[i].len], 0xEE);
      CHECK(range->offset == asked[i].offset && range->len == asked[i].len);
      free(range->buf);
      for (size_t at = sizeof(nearfile_range); at < step; at++) CHECK_EQ(all[(size_t)i * step + at], 0xCC);
    }
    free(all);
  }
  // Each page that can be read was read once, over both batches.
  for (uint64_t page = 0; page < 4; page++) CHECK_EQ(far->page_reads[page], 1);
  CHECK_EQ(far->page_reads[40], 1);
  far->hook = NULL;
  nearfile_range one = {.offset = 25 * PAGE, .len = 10};
  char buf[10];
  one.buf = buf;
  CHECK_EQ(nearfile_read_ranges(file, &one, 1, sizeof one), 0);
  CHECK_EQ(one.out_len, 10);
  CHECK_BYTES(buf, 10, 25 * PAGE, VERSION);
  CHECK_EQ(nearfile_read_ranges(file, NULL, 0, sizeof one), 0);
  CHECK_EQ(nearfile_read_ranges(file, NULL, 1, sizeof one), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_read_ranges(file, &one, 1, sizeof one - 1), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_read_ranges(file, &one, 1, 0), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_read_ranges(NULL, &one, 1, sizeof one), NEARFILE_ERROR_ARGUMENT);
  // A frozen file: what is there, and a status for what is not.
  CHECK_EQ(nearfile_freeze(file), 0);
  nearfile_range two[2] = {{.offset = 10 * PAGE, .buf = buf, .len = 5}, {.offset = 9, .buf = buf, .len = 10}};
  CHECK_EQ(nearfile_read_ranges(file, two, 2, sizeof *two), NEARFILE_ERROR_FROZEN);
  CHECK_EQ(two[0].out_status, NEARFILE_ERROR_FROZEN);
  CHECK_EQ(two[1].out_status, 0);
  CHECK_BYTES(buf, 10, 9, VERSION);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

static void many_random_ranges(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "file");
  uint64_t seed = 9;
  enum { COUNT = 300, MOST = 3 * PAGE };
  unsigned char *bufs = malloc((size_t)COUNT * MOST);
  nearfile_range *all = calloc(COUNT, sizeof *all);
  MUST(bufs != NULL && all != NULL);
  for (int round = 0; round < 10; round++) {
    for (int i = 0; i < COUNT; i++) {
      all[i] = (nearfile_range){
          .offset = nf_below(&seed, SIZE + 10), .buf = bufs + (size_t)i * MOST, .len = (size_t)nf_below(&seed, MOST)};
    }
    CHECK_EQ(nearfile_read_ranges(file, all, COUNT, sizeof *all), 0);
    for (int i = 0; i < COUNT; i++) {
      uint64_t left = all[i].offset < SIZE ? SIZE - all[i].offset : 0;
      CHECK_EQ(all[i].out_len, all[i].len < left ? all[i].len : left);
      CHECK_EQ(all[i].out_status, 0);
      CHECK_BYTES(all[i].buf, all[i].out_len, all[i].offset, VERSION);
    }
  }
  CHECK_ONCE(far);
  free(bufs);
  free(all);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// ---- the directory's list ------------------------------------------------------------------------------------------------------

struct seen {
  int count, stop_at;
  bool closed[8];
  const nearfile_cache *cache;
  const char *open_key, *open_version;
};

static int32_t look(void *user_data, const nearfile_entry *entry) {
  struct seen *seen = user_data;
  seen->count++;
  CHECK(entry->struct_size >= sizeof *entry);
  CHECK_EQ(entry->size, SIZE);
  CHECK_EQ(entry->page_size, PAGE);
  CHECK(exists(entry->data_path) && exists(entry->index_path));
  char path[NF_PATH];
  nf_path(path, "cache/");
  CHECK(strncmp(entry->data_path, path, strlen(path)) == 0 && nf_ends(entry->data_path, ".data"));
  CHECK(strncmp(entry->index_path, path, strlen(path)) == 0 && nf_ends(entry->index_path, ".index"));
  bool a = strcmp(entry->key, "a") == 0, old = strcmp(entry->version, "1") == 0;
  CHECK(a || strcmp(entry->key, "b \"\xff") == 0);
  CHECK(old || strcmp(entry->version, a ? "2" : "") == 0);
  CHECK_EQ(entry->outdated, a && old);
  CHECK_EQ(entry->cached_pages, a && old ? 1 : a ? 3 : PAGES + 1);
  CHECK_EQ(entry->cached_bytes, a && old ? PAGE : a ? 3 * PAGE : SIZE);
  CHECK_EQ(entry->open, seen->open_key != NULL && strcmp(seen->open_key, entry->key) == 0 &&
                            strcmp(seen->open_version, entry->version) == 0);
  int which = a ? old : 2;
  CHECK(!seen->closed[which]);
  seen->closed[which] = true;
  // The callback may call nearfile.
  CHECK(nf_cache_stats(seen->cache).cached_pages == PAGES + 5);
  return seen->count == seen->stop_at ? 5 : 0;
}

static void the_list(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  struct seen seen = {.cache = cache};
  CHECK_EQ(nearfile_cache_list(cache, look, &seen), 0);
  CHECK_EQ(seen.count, 0);
  nearfile_file *file = nf_open(cache, &source, "a", "1", SIZE, 0);
  CHECK_PREAD(file, PAGE, 0, VERSION);
  nearfile_close(file);
  file = nf_open(cache, &source, "a", "2", SIZE, 0);
  CHECK_PREAD(file, 3 * PAGE, 5 * PAGE, VERSION);
  nearfile_close(file);
  file = nf_open(cache, &source, "b \"\xff", NULL, SIZE, 0);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(nearfile_cache_list(cache, look, &seen), 0);
  CHECK_EQ(seen.count, 3);
  // Open here, and in another process.
  for (int other = 0; other < 2; other++) {
    atomic_int *step = nf_shared(sizeof *step);
    pid_t child = other ? nf_fork(60) : 0;
    if (other && child != 0) {
      NF_UNTIL(*step == 1, 20000);
    } else {
      nearfile_cache *own = other ? nf_cache("cache", PAGE, 0, 0) : cache;
      file = nf_open(own, &source, "a", "2", SIZE, 0);
      if (other) {
        atomic_store(step, 1);
        NF_UNTIL(*step == 2, 20000);
        nearfile_close(file);
        nearfile_cache_close(own);
        nf_child_ends();
      }
    }
    seen = (struct seen){.cache = cache, .open_key = "a", .open_version = "2"};
    CHECK_EQ(nearfile_cache_list(cache, look, &seen), 0);
    CHECK_EQ(seen.count, 3);
    atomic_store(step, 2);
    if (other) {
      CHECK_CHILD(child);
    } else {
      nearfile_close(file);
    }
    munmap(step, sizeof *step);
  }
  // A private file is in nobody's list; a callback that has seen enough ends it.
  file = nf_open(cache, &source, NULL, NULL, SIZE, 0);
  seen = (struct seen){.cache = cache, .stop_at = 2};
  CHECK_EQ(nearfile_cache_list(cache, look, &seen), 0);
  CHECK_EQ(seen.count, 2);
  nearfile_close(file);
  CHECK_EQ(nearfile_cache_list(cache, NULL, NULL), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_cache_list(NULL, look, &seen), NEARFILE_ERROR_ARGUMENT);
  nearfile_cache_close(cache);
  far_free(far);
}

// While others make, fill and remove them.
static int32_t look_closer(void *user_data, const nearfile_entry *entry) {
  int *count = user_data;
  (*count)++;
  CHECK(strncmp(entry->key, "key ", 4) == 0 && strlen(entry->key) == 5);
  CHECK_EQ(entry->size, SIZE);
  CHECK_EQ(entry->page_size, PAGE);
  CHECK(entry->cached_bytes <= SIZE && entry->cached_pages <= PAGES + 1);
  CHECK(entry->open <= 1 && entry->outdated <= 1);
  return 0;
}

static void the_list_under_churn(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  atomic_int *stop = nf_shared(sizeof *stop);
  pid_t children[2];
  for (int p = 0; p < 2; p++) {
    children[p] = nf_fork(60);
    if (children[p] != 0) continue;
    nearfile_cache *own = nf_cache("cache", PAGE, 0, 0);
    uint64_t seed = (uint64_t)p;
    while (atomic_load(stop) == 0 && nf_failures < 3) {
      char key[6] = "key 0";
      key[4] = (char)('0' + nf_below(&seed, 4));
      nearfile_file *file = nf_open_far(own, far, FAR_AT, key);
      CHECK_PREAD(file, 4 * PAGE, nf_below(&seed, SIZE), VERSION);
      if (nf_below(&seed, 2) == 0) CHECK_EQ(nearfile_cache_remove(own, key), 0);
      CHECK_PREAD(file, 4 * PAGE, nf_below(&seed, SIZE), VERSION);
      nearfile_close(file);
      if (nf_below(&seed, 4) == 0) CHECK_EQ(nearfile_cache_remove(own, key), 0);
    }
    nearfile_cache_close(own);
    nf_child_ends();
  }
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  int count = 0;
  for (int64_t until = nf_now_ms() + 1000; nf_now_ms() < until && nf_failures < 3;) {
    CHECK_EQ(nearfile_cache_list(cache, look_closer, &count), 0);
    nf_cache_stats(cache);
  }
  CHECK(count > 20);
  atomic_store(stop, 1);
  for (int p = 0; p < 2; p++) CHECK_CHILD(children[p]);
  // All of it can be removed: nothing stays behind.
  for (int i = 0; i < 4; i++) {
    char key[6] = "key 0";
    key[4] = (char)('0' + i);
    CHECK_EQ(nearfile_cache_remove(cache, key), 0);
  }
  char path[NF_PATH];
  int files = 0;
  nf_disk_use(nf_path(path, "cache"), ".data", &files);
  CHECK_EQ(files, 0);
  nf_disk_use(path, ".index", &files);
  CHECK_EQ(files, 0);
  CHECK_EQ(nf_cache_stats(cache).cached_bytes, 0);
  nearfile_cache_close(cache);
  munmap(stop, sizeof *stop);
  far_free(far);
}

// ---- removal and trimming ------------------------------------------------------------------------------------------------------

static int mirrors(void) {
  char path[NF_PATH];
  int files = 0, indexes = 0;
  nf_disk_use(nf_path(path, "cache"), ".data", &files);
  nf_disk_use(path, ".index", &indexes);
  CHECK_EQ(files, indexes);
  return files;
}

static void removal(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  static const char *const names[][2] = {{"key", "1"}, {"key", "2"}, {"key2", ""}, {"ke", "y1"}};
  for (int i = 0; i < 4; i++) {
    nearfile_file *file = nf_open(cache, &source, names[i][0], names[i][1], SIZE, 0);
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
  }
  CHECK_EQ(mirrors(), 4);
  CHECK_EQ(nearfile_cache_remove(cache, "nobody's"), 0);
  CHECK_EQ(mirrors(), 4);
  // Closed: every version of it at once, and nothing else.
  CHECK_EQ(nearfile_cache_remove(cache, "key"), 0);
  CHECK_EQ(mirrors(), 2);
  CHECK_EQ(nf_cache_stats(cache).cached_bytes, 2 * SIZE);
  far_forget(far);
  nearfile_file *file = nf_open(cache, &source, "key2", "", SIZE, 0);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(far->reads, 0);
  // Open, in two processes: pages at once, files when the last of them closes it.
  atomic_int *step = nf_shared(sizeof *step);
  pid_t child = nf_fork(60);
  if (child == 0) {
    nearfile_cache *own = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *mine = nf_open(own, &source, "key2", "", SIZE, 0);
    atomic_store(step, 1);
    NF_UNTIL(*step == 2, 20000);
    CHECK_EQ(nf_walk(mine), 0);
    CHECK_PREAD(mine, PAGE, 0, VERSION);  // it reads on
    nearfile_close(mine);
    nearfile_cache_close(own);
    nf_child_ends();
  }
  NF_UNTIL(*step == 1, 20000);
  CHECK_EQ(nearfile_cache_remove(cache, "key2"), 0);
  CHECK_EQ(nf_walk(file), 0);
  CHECK_EQ(mirrors(), 2);
  char path[NF_PATH];
  MUST(snprintf(path, sizeof path, "%s", nearfile_data_path(file)) < NF_PATH);
  CHECK_EQ(nf_blocks(path), 0);
  atomic_store(step, 2);
  CHECK_CHILD(child);
  CHECK_EQ(mirrors(), 2);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(mirrors(), 1);
  CHECK_EQ(nf_cache_stats(cache).cached_bytes, SIZE);
  // Opened again before the last close, by another process and by this one: it stays.
  file = nf_open(cache, &source, "ke", "y1", SIZE, 0);
  CHECK_EQ(nearfile_cache_remove(cache, "ke"), 0);
  child = nf_fork(60);
  if (child == 0) {
    nearfile_cache *own = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *mine = nf_open(own, &source, "ke", "y1", SIZE, 0);
    CHECK_ALL(mine, VERSION);
    nearfile_close(mine);
    nearfile_cache_close(own);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  nearfile_close(file);
  CHECK_EQ(mirrors(), 1);
  file = nf_open(cache, &source, "ke", "y1", SIZE, 0);
  CHECK_EQ(nf_walk(file), SIZE);
  CHECK_EQ(nearfile_cache_remove(cache, "ke"), 0);
  CHECK_EQ(nf_walk(file), 0);
  nearfile_file *again = nf_open(cache, &source, "ke", "y1", SIZE, 0);
  CHECK_ALL(again, VERSION);
  nearfile_close(file);
  nearfile_close(again);
  CHECK_EQ(mirrors(), 1);
  far_forget(far);
  file = nf_open(cache, &source, "ke", "y1", SIZE, 0);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(far->reads, 0);
  nearfile_close(file);
  CHECK_EQ(nearfile_cache_remove(cache, NULL), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_cache_remove(NULL, "ke"), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_cache_remove(cache, "ke"), 0);
  CHECK_EQ(mirrors(), 0);
  nearfile_cache_close(cache);
  munmap(step, sizeof *step);
  far_free(far);
}

static void trimming(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *open = nf_open(cache, &source, "open", NULL, SIZE, 0), *file = NULL;
  CHECK_ALL(open, VERSION);
  for (int i = 0; i < 3; i++) {
    static const char *const names[][2] = {{"first", ""}, {"key", "1"}, {"key", "2"}};
    file = nf_open(cache, &source, names[i][0], names[i][1], SIZE, 0);
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
  }
  uint64_t each = (SIZE + 4095) / 4096 * 4096;  // as it is counted
  CHECK_EQ(nearfile_cache_trim(cache, UINT64_MAX), 0);
  CHECK_EQ(nearfile_cache_trim(cache, 4 * each), 0);
  CHECK_EQ(nf_cache_stats(cache).cached_bytes, 4 * SIZE);
  // The outdated one, then the closed ones, then pages of the open one.
  CHECK_EQ(nearfile_cache_trim(cache, 3 * each), 0);
  file = nf_open(cache, &source, "key", "2", SIZE, 0);
  CHECK_EQ(nf_walk(file), SIZE);
  nearfile_close(file);
  file = nf_open(cache, &source, "key", "1", SIZE, 0);
  CHECK_EQ(nf_walk(file), 0);
  nearfile_close(file);
  CHECK_EQ(nearfile_cache_trim(cache, each), 0);
  CHECK_EQ(nf_walk(open), SIZE);
  CHECK_EQ(nf_cache_stats(cache).cached_bytes, SIZE);
  CHECK_EQ(nearfile_cache_trim(cache, 10 * PAGE), 0);
  uint64_t left = nf_walk(open);
  CHECK(left <= 10 * PAGE && left >= 8 * PAGE);
  CHECK_EQ(nearfile_cache_trim(cache, 0), 0);
  CHECK_EQ(nf_walk(open), 0);
  char path[NF_PATH];
  CHECK_EQ(nf_disk_use(nf_path(path, "cache"), ".data", NULL), 0);
  CHECK_EQ(nearfile_cache_trim(cache, 0), 0);
  CHECK_EQ(nearfile_cache_trim(NULL, 0), NEARFILE_ERROR_ARGUMENT);
  CHECK_ALL(open, VERSION);
  nearfile_close(open);
  nearfile_cache_close(cache);
  far_free(far);
}

int main(int argc, char **argv) {
  nf_own_mounts();
  static const struct nf_case cases[] = {NF_CASE(a_frozen_file), NF_CASE(frozen_by_another_process), NF_CASE(frozen_at_open),
                                         NF_CASE(preserved_on_the_disk), NF_CASE(preserved_on_tmpfs),
                                         NF_CASE(preserved_across_file_systems), NF_CASE(preserve_never_overwrites),
                                         NF_CASE(one_of_many_preserves), NF_CASE(preserved_from_exact_mode),
                                         NF_CASE(a_preserved_copy_under_churn), NF_CASE(preserved_where_nothing_can_be_written),
                                         NF_CASE(damage_in_a_preserved_copy), NF_CASE(prefetch), NF_CASE(prefetch_is_shared),
                                         NF_CASE(prefetch_meets_limits_and_failures), NF_CASE(ranges),
                                         NF_CASE(many_random_ranges), NF_CASE(the_list), NF_CASE(the_list_under_churn),
                                         NF_CASE(removal), NF_CASE(trimming)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
