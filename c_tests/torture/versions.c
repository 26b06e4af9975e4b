// Guards that versions never mix: the remote file changes under eight readers, whose source refuses another version than the one they
// opened (as If-Match does). Each read is wholly the version that its handle was opened with, or the source's refusal.
#include "torture.h"

enum { PAGE = 4096, SIZE = 30 * PAGE + 11, READERS = 8, THREADS = 2, FILES_KEPT = 3, GONE = 412, WATCHDOG_S = 600 };

static struct scene {
  _Atomic uint64_t version;
  atomic_bool over;
  _Atomic uint64_t reads, refused, opened;
} *scene;

// The server: it has one version at a time, and a request names the one it wants.
static int32_t refuse_another(far_file *far, uint64_t offset, size_t len) {
  (void)offset, (void)len;
  return atomic_load(&scene->version) == far->version ? 0 : GONE;
}

struct reader {
  nearfile_file *file;
  uint64_t version, seed;
};

// Reads until the source refuses; what is kept of a version can be read after it is gone.
static void *read_version(void *argument) {
  struct reader *reader = argument;
  static _Thread_local unsigned char buf[6 * PAGE];
  for (int i = 0; i < 12; i++) {
    uint64_t at = nf_below(&reader->seed, SIZE - sizeof buf);
    size_t len = 1 + (size_t)nf_below(&reader->seed, sizeof buf);
    memset(buf, 0, len);
    int64_t got = nearfile_pread(reader->file, buf, len, at);
    if (got == NEARFILE_ERROR_SOURCE) {
      CHECK_EQ(nf_last_error().source_code, GONE);
      CHECK(atomic_load(&scene->version) != reader->version);
      atomic_fetch_add(&scene->refused, 1);
      continue;
    }
    CHECK_EQ(got, len);
    CHECK_BYTES(buf, len, at, reader->version);
    atomic_fetch_add(&scene->reads, 1);
  }
  return NULL;
}

static nearfile_file *open_version(nearfile_cache *cache, far_file *far) {
  char etag[30];
  snprintf(etag, sizeof etag, "\"%" PRIu64 "\"", far->version);
  nearfile_source source = far_source(far, FAR_AT);
  return nf_open(cache, &source, "key", etag, SIZE, 0);
}

static void read_on(nearfile_file *file, uint64_t version, uint64_t *seed) {
  struct reader readers[THREADS];
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++) {
    readers[i] = (struct reader){file, version, nf_random(seed)};
    threads[i] = nf_thread(read_version, &readers[i]);
  }
  for (int i = 0; i < THREADS; i++) nf_join(threads[i]);
}

// Opens the version of the moment each time, and keeps a few old handles that it goes on with.
static void reader_process(uint64_t seed) {
  nearfile_cache_options options = {.struct_size = sizeof options, .page_size = PAGE, .max_fetch_bytes = 4 * PAGE, .size_limit = 4 * SIZE};
  char path[NF_PATH];
  nearfile_cache *cache = NULL;
  MUST(nearfile_cache_open(nf_path(path, "cache"), &options, &cache) == 0);
  nearfile_file *files[FILES_KEPT] = {NULL};
  far_file *far[FILES_KEPT] = {NULL};
  for (uint64_t n = 0; !atomic_load(&scene->over) && nf_failures == 0; n++) {
    uint64_t slot = n % FILES_KEPT;
    nearfile_close(files[slot]);
    if (far[slot] != NULL) far_free(far[slot]);
    far[slot] = far_new(SIZE, atomic_load(&scene->version), PAGE);
    far[slot]->hook = refuse_another;
    far[slot]->delay_us = 100;
    files[slot] = open_version(cache, far[slot]);
    atomic_fetch_add(&scene->opened, 1);
    for (int i = 0; i < FILES_KEPT; i++) {
      if (files[i] != NULL) read_on(files[i], far[i]->version, &seed);
    }
  }
  for (int i = 0; i < FILES_KEPT; i++) nearfile_close(files[i]);
  nearfile_cache_close(cache);
  nf_child_ends();
}

static bool a_child_has_ended(void) {
  siginfo_t info = {0};
  return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
}

int main(int argc, char **argv) {
  torture_begin(argc, argv, "versions", 1000);
  scene = nf_shared(sizeof *scene);
  atomic_store(&scene->version, 1);
  pid_t readers[READERS];
  for (uint64_t i = 0; i < READERS; i++) {
    readers[i] = nf_fork(WATCHDOG_S);
    if (readers[i] == 0) reader_process(i);
  }
  uint64_t seed = 101;
  while (torture_goes_on() && !a_child_has_ended()) {
    nf_sleep_us(5000 + (unsigned)nf_below(&seed, 30000));
    atomic_fetch_add(&scene->version, 1);
  }
  atomic_store(&scene->over, true);
  for (int i = 0; i < READERS; i++) CHECK_CHILD(readers[i]);
  CHECK(scene->reads > 0);
  return torture_report("changes under %d readers of %d threads, who opened %" PRIu64 " times: %" PRIu64 " reads of wholly one version, %" PRIu64
                        " refused by the source",
                        READERS, THREADS, scene->opened, scene->reads, scene->refused);
}
