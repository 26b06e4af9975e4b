// Guards that a handle opened before fork works in every child and grandchild, also when other threads of the parent are inside the
// library at that moment, that all of them fetch a page once, and that what the parent opened is closed and released by the parent.
#include "nf_test.h"

#include "nf_load.h"

enum { VERSION = 11, CHILDREN = 8, PAGE = 4096, SIZE = 50 * PAGE + 99 };

// ---- children read everything --------------------------------------------------------------------------------------------

enum child_end { CLOSES, LEAVES, EXITS };  // nearfile_close; _exit; exit, with whatever runs then

static void end_child(nearfile_file *file, nearfile_cache *cache, enum child_end how) {
  if (how == CLOSES) {
    nearfile_close(file);
    nearfile_cache_close(cache);
  }
  fflush(NULL);
  if (how == EXITS) exit(nf_failures != 0);
  _exit(nf_failures != 0);
}

static void child_reads(nearfile_file *file, int64_t position) {
  CHECK_EQ(nearfile_tell(file), position);
  unsigned char buf[100];
  CHECK_EQ(nearfile_read(file, buf, sizeof buf), sizeof buf);
  CHECK_BYTES(buf, sizeof buf, (uint64_t)position, VERSION);
  CHECK_EQ(nearfile_tell(file), position + 100);
  CHECK_ALL(file, VERSION);
  nearfile_file *other = NULL;
  MUST(nearfile_dup(file, &other) == 0);
  CHECK_PREAD(other, SIZE, 0, VERSION);
  nearfile_close(other);
  nearfile_stats stats = nf_stats(file);
  CHECK_EQ(stats.passed_through, 0);
  CHECK_EQ(stats.cached_bytes, SIZE);
}

static void check_children(far_file *far, const nearfile_source *source, const char *key, int warm_pages) {
  static int count;
  char name[20];
  snprintf(name, sizeof name, "cache%d", count++);
  nearfile_cache *cache = nf_cache(name, PAGE, 0, 0);
  nearfile_file *file = nf_open(cache, source, key, NULL, SIZE, 0);
  far->delay_us = 200;
  if (warm_pages > 0) CHECK_PREAD(file, (size_t)warm_pages * PAGE, 0, VERSION);
  uint64_t opens_by_parent = far->opens;
  CHECK_EQ(nearfile_seek(file, 777, NEARFILE_SEEK_SET), 777);
  pid_t children[CHILDREN];
  for (int i = 0; i < CHILDREN; i++) {
    children[i] = nf_fork(30);
    if (children[i] != 0) continue;
    pid_t grandchild = 0;
    if (i % 2 == 1) {  // before or after the child itself has read
      if (i % 4 == 3) child_reads(file, 777);
      int64_t position = nearfile_tell(file);
      grandchild = nf_fork(30);
      if (grandchild == 0) {
        child_reads(file, position);
        end_child(file, cache, (enum child_end)(i / 2 % 3));
      }
    }
    if (i % 4 != 3) child_reads(file, 777);
    if (grandchild != 0) CHECK_CHILD(grandchild);
    end_child(file, cache, (enum child_end)(i % 3));
  }
  if (warm_pages > 0) CHECK_PREAD(file, SIZE, 0, VERSION);  // the parent goes on meanwhile
  for (int i = 0; i < CHILDREN; i++) CHECK_CHILD(children[i]);
  CHECK_EQ(far->releases, 0);
  CHECK_EQ(nearfile_tell(file), 777);  // each process has a position of its own
  CHECK_ALL(file, VERSION);
  CHECK_ONCE(far);
  if (source->open != NULL && warm_pages == 0) CHECK(far->opens > opens_by_parent);
  CHECK_EQ(nf_stats(file).passed_through, 0);
  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  CHECK_EQ(far->offences, 0);
  nearfile_cache_close(cache);

  // A process that starts from nothing finds it all.
  if (key == NULL) return;
  uint64_t reads = far->reads;
  pid_t child = nf_fork(30);
  if (child == 0) {
    cache = nf_cache(name, PAGE, 0, 0);
    file = nf_open(cache, source, key, NULL, SIZE, 0);
    CHECK_ALL(file, VERSION);
    end_child(file, cache, CLOSES);
  }
  CHECK_CHILD(child);
  CHECK_EQ(far->reads, reads);
}

static void children_read_everything(void) {
  static const char *keys[] = {"key", NULL};  // a private file is shared with children too
  for (int k = 0; k < 2; k++) {
    for (int warm = 0; warm <= 20; warm += 10) {
      for (int kind = 0; kind < 3; kind++) {
        far_file *far = far_new(SIZE, VERSION, PAGE);
        nearfile_source source = far_source(far, kind == 0 ? FAR_AT_OPEN : kind == 1 ? FAR_SEEK_OPEN : FAR_AT);
        if (kind == 2) source.flags = NEARFILE_SOURCE_FORK_SAFE;
        check_children(far, &source, keys[k], warm);
        far_free(far);
      }
    }
  }
}

// Without open, and without a promise that read_at keeps no state: what is present is served, the rest is a clear error.
static void without_open(void) {
  for (int kind = FAR_AT; kind <= FAR_SEEK; kind += FAR_SEEK - FAR_AT) {
    nearfile_cache *cache = nf_cache(kind == FAR_AT ? "at" : "seek", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = nf_open_far(cache, far, (enum far_kind)kind, "no open");
    CHECK_PREAD(file, 5 * PAGE, 0, VERSION);
    uint64_t reads = far->reads;
    pid_t child = nf_fork(20);
    if (child == 0) {
      unsigned char buf[2 * PAGE];
      CHECK_PREAD(file, 5 * PAGE, 0, VERSION);
      for (int i = 0; i < 40; i++) {
        CHECK_EQ(nearfile_pread(file, buf, 10, 10 * PAGE), NEARFILE_ERROR_FORKED);
        CHECK_EQ(nf_last_error().status, NEARFILE_ERROR_FORKED);
        CHECK(nf_last_error().message[0] != 0);
        CHECK_EQ(nearfile_pread(file, buf, sizeof buf, 4 * PAGE), NEARFILE_ERROR_FORKED);
      }
      CHECK_EQ(nearfile_pread(file, buf, 10, SIZE), 0);
      CHECK_EQ(nf_walk(file), 5 * PAGE);
      CHECK_PREAD(file, 5 * PAGE, 0, VERSION);
      // Its own source, over the same near copy, does.
      nearfile_file *own = nf_open_far(cache, far, (enum far_kind)kind, "no open");
      CHECK_PREAD(own, 10, 10 * PAGE, VERSION);
      CHECK_PREAD(file, 10, 10 * PAGE, VERSION);  // and now it is present
      nearfile_close(own);
      CHECK_EQ(far->releases, 1);                 // of the child's own source only
      end_child(file, cache, CLOSES);
    }
    CHECK_CHILD(child);
    CHECK_EQ(far->releases, 1);
    CHECK_EQ(far->reads, reads + 1);
    CHECK_ALL(file, VERSION);
    CHECK_ONCE(far);
    nearfile_close(file);
    CHECK_EQ(far->releases, 2);
    CHECK_EQ(far->offences, 0);
    far_free(far);
    nearfile_cache_close(cache);
  }
}

// A cache that was inherited opens files, the same as the parent's and others.
static void a_child_opens_files(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE), *fresh = far_new(SIZE, VERSION + 1, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "one");
  CHECK_PREAD(file, SIZE / 2, 0, VERSION);
  pid_t children[CHILDREN];
  for (int i = 0; i < CHILDREN; i++) {
    children[i] = nf_fork(20);
    if (children[i] != 0) continue;
    nearfile_file *same = nf_open_far(cache, far, FAR_AT_OPEN, "one"), *other = nf_open_far(cache, fresh, FAR_AT_OPEN, "two");
    CHECK_ALL(same, VERSION);
    CHECK_ALL(other, VERSION + 1);
    if (i % 2) CHECK_ALL(file, VERSION);
    nearfile_close(i % 2 ? other : same);
    nearfile_close(i % 2 ? same : other);
    end_child(file, cache, (enum child_end)(i % 3));
  }
  for (int i = 0; i < CHILDREN; i++) CHECK_CHILD(children[i]);
  CHECK_ONCE(fresh);
  CHECK_ALL(file, VERSION);
  CHECK_ONCE(far);
  CHECK_EQ(far->releases, CHILDREN);
  nearfile_close(file);
  CHECK_EQ(far->releases, CHILDREN + 1);
  CHECK_EQ(far->offences + fresh->offences, 0);
  far_free(far);
  far_free(fresh);
  nearfile_cache_close(cache);
}

// The parent closes everything while its children go on; the last of them ends the session cleanly.
static void children_outlive_the_parents_handle(void) {
  for (int keyed = 0; keyed < 2; keyed++) {
    nearfile_cache *cache = nf_cache(keyed ? "keyed" : "private", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    atomic_int *go = nf_shared(sizeof *go);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, keyed ? "key" : NULL);
    CHECK_PREAD(file, 10 * PAGE, 0, VERSION);
    pid_t children[4];
    for (int i = 0; i < 4; i++) {
      children[i] = nf_fork(20);
      if (children[i] != 0) continue;
      NF_UNTIL(atomic_load(go), 10000);
      CHECK_ALL(file, VERSION);
      CHECK_EQ(nf_stats(file).passed_through, 0);
      end_child(file, cache, CLOSES);
    }
    nearfile_close(file);
    nearfile_cache_close(cache);
    atomic_store(go, 1);
    for (int i = 0; i < 4; i++) CHECK_CHILD(children[i]);
    CHECK_ONCE(far);
    CHECK_EQ(far->releases, 1);
    if (keyed) {
      cache = nf_cache("keyed", PAGE, 0, 0);
      nearfile_source source = far_source(far, FAR_AT_OPEN);
      file = nf_open(cache, &source, "key", NULL, SIZE, NEARFILE_TRUST_CLEAN);
      CHECK_ALL(file, VERSION);
      CHECK_EQ(nf_stats(file).pages_verified, 0);
      CHECK_EQ(nf_stats(file).source_reads, 0);
      nearfile_close(file);
      nearfile_cache_close(cache);
    }
    CHECK_EQ(far->offences, 0);
    munmap(go, sizeof *go);
    far_free(far);
  }
}

// ---- fork while other threads are inside ---------------------------------------------------------------------------------

struct reader {
  nearfile_file *file;
  uint64_t seed;
};

static void *read_ranges(void *argument) {
  struct reader *reader = argument;
  for (int i = 0; i < 10; i++) {
    CHECK_PREAD(reader->file, (size_t)nf_below(&reader->seed, 4 * PAGE), nf_below(&reader->seed, SIZE), VERSION);
  }
  return NULL;
}

static void forks_under_load(void) {
  enum { FORKS = 300, AT_ONCE = 6, HAMMERS = 4 };
  nearfile_cache *cache = nf_cache("cache", PAGE, 3 * PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "hammered"), *private = nf_open_far(cache, far, FAR_SEEK_OPEN, NULL);
  atomic_bool stop = false;
  struct nf_load loads[HAMMERS] = {{0}};
  for (int i = 0; i < HAMMERS; i++) {
    loads[i].seed = (uint64_t)i;
    nf_load_start(&loads[i], cache, i == 0 ? private : file, far, &stop);
  }
  pid_t children[AT_ONCE] = {0};
  int failures = nf_failures;
  for (int i = 0; i < FORKS + AT_ONCE; i++) {
    pid_t *child = &children[i % AT_ONCE];
    if (*child != 0) CHECK_CHILD(*child);
    *child = 0;
    if (i >= FORKS || nf_failures != failures) continue;
    *child = nf_fork(20);
    if (*child != 0) continue;
    if (i % 3 == 0) CHECK_EQ(nearfile_discard(file, 10 * PAGE, 10 * PAGE), 0);  // misses are certain
    struct reader readers[2] = {{file, (uint64_t)i}, {i % 5 == 0 ? private : file, (uint64_t)i + 1000}};
    pthread_t thread = nf_thread(read_ranges, &readers[0]);
    read_ranges(&readers[1]);
    nf_join(thread);
    CHECK_PREAD(file, 4 * PAGE, 10 * PAGE, VERSION);
    CHECK_EQ(nf_stats(file).passed_through, 0);
    if (i % 3 == 0) nearfile_close(private);
    end_child(file, cache, (enum child_end)(i % 2));
  }
  atomic_store(&stop, true);
  for (int i = 0; i < HAMMERS; i++) nf_join(loads[i].thread);
  CHECK_EQ(far->releases, far->sources - 2);  // what the threads opened and closed
  CHECK_ALL(file, VERSION);
  CHECK_ALL(private, VERSION);
  CHECK_EQ(nf_stats(file).checksum_failures, 0);
  CHECK_EQ(nf_stats(file).passed_through, 0);
  CHECK_EQ(nf_stats(file).cached_bytes, SIZE);
  nearfile_close(file);
  nearfile_close(private);
  CHECK_EQ(far->releases, far->sources);
  CHECK_EQ(far->offences, 0);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- a parent that is killed with a lock -----------------------------------------------------------------------------------

struct scene {
  atomic_int held, forked, end;
};

static int32_t never_ends(far_file *far, uint64_t offset, size_t len) {
  struct scene *scene = far->hook_data;
  if (offset > 7 * PAGE || offset + len <= 7 * PAGE) return 0;
  atomic_fetch_add(&scene->held, 1);
  NF_UNTIL(atomic_load(&scene->end), 50000);
  return 0;
}

static void *read_page_7(void *argument) {
  char byte;
  nearfile_pread(argument, &byte, 1, 7 * PAGE);
  return NULL;
}

// A fetcher is killed while a child that it forked in the middle of the fetch lives on: the child must not keep the page's lock.
static void a_child_keeps_no_lock_of_its_parent(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  struct scene *scene = nf_shared(sizeof *scene);
  far->hook = never_ends, far->hook_data = scene;
  pid_t parent = nf_fork(60);
  if (parent == 0) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "key");
    nf_thread(read_page_7, file);
    NF_UNTIL(scene->held == 1, 10000);
    if (fork() == 0) {  // outlives its parent
      alarm(60);
      atomic_store(&scene->forked, 1);
      NF_UNTIL(atomic_load(&scene->end), 50000);
      _exit(0);
    }
    pause();
  }
  NF_UNTIL(scene->forked == 1, 10000);
  MUST(scene->forked == 1 && scene->held == 1);
  far->hook = NULL;
  kill(parent, SIGKILL);
  int status = 0;
  MUST(waitpid(parent, &status, 0) == parent);

  pid_t reader = nf_fork(60);
  if (reader == 0) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 10000);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "key");
    int64_t began = nf_now_ms();
    CHECK_PREAD(file, 10, 7 * PAGE, VERSION);
    CHECK(nf_now_ms() - began < 3000);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).passed_through, 0);
    CHECK_EQ(nf_stats(file).cached_bytes, SIZE);
    end_child(file, cache, CLOSES);
  }
  CHECK_CHILD(reader);
  atomic_store(&scene->end, 1);
  CHECK_EQ(far->offences, 0);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(children_read_everything), NF_CASE(without_open), NF_CASE(a_child_opens_files),
                                         NF_CASE(children_outlive_the_parents_handle), NF_CASE(forks_under_load),
                                         NF_CASE(a_child_keeps_no_lock_of_its_parent)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
