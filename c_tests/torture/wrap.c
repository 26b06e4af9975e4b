// Guards the wrap of epochs and sequences: an index is moved by hand to the end of its epochs, with words of an earlier round that
// look like those of the coming sessions, and pages rot at each unclean end. No page may be trusted that nobody compared since.
#include "torture.h"

enum { VERSION = 73, PAGE = 1024, PAGES = 40, SIZE = PAGES * PAGE - 100, SESSIONS = 9, WATCHDOG_S = 30 };

// ---- the bytes of an index, as src/format.rs draws them ------------------------------------------------------------------

enum { AT_SESSION = 128, AT_OPENED = 136, AT_DURABLE = 144, AT_DIRTY = 152, AT_SOUND_SINCE = 224, AT_WORDS = 12288 };
enum { EPOCHS = (1 << 14) - 1, VERIFIED = 2, MOST_SEQUENCE = 0xffff };

static uint64_t epoch_of(uint64_t count) { return 1 + count % EPOCHS; }

static uint64_t index_word(int fd, off_t at) {
  uint64_t word;
  MUST(pread(fd, &word, sizeof word, at) == sizeof word);
  return word;
}

static void set_index_word(int fd, off_t at, uint64_t word) { MUST(pwrite(fd, &word, sizeof word, at) == sizeof word); }

static struct scene {
  char data[NF_PATH], index[NF_PATH];
  _Atomic uint64_t failures, verified, sweeps;
} *scene;

static uint64_t rotten, wrapped_sequences;

// As if `count` sessions had been, the last of which ended so, and every page was last compared in an early session of the round.
static void move_to(uint64_t count, bool clean, uint64_t *seed) {
  int fd = open(scene->index, O_RDWR | O_CLOEXEC);
  MUST(fd >= 0);
  set_index_word(fd, AT_SESSION, count << 1 | clean);
  set_index_word(fd, AT_OPENED, count << 1);
  set_index_word(fd, AT_DURABLE, count);
  set_index_word(fd, AT_DIRTY, count);
  set_index_word(fd, AT_SOUND_SINCE, count - count % EPOCHS);
  for (int page = 0; page < PAGES; page++) {
    off_t at = AT_WORDS + 8 * page;
    uint64_t crc = index_word(fd, at) >> 32, epoch = epoch_of(nf_below(seed, SESSIONS));
    set_index_word(fd, at, crc << 32 | (uint64_t)MOST_SEQUENCE << 16 | epoch << 2 | VERIFIED);
  }
  close(fd);
}

static void rot(uint64_t *seed) {
  for (uint64_t page = 0; page < PAGES; page++) {
    if (nf_below(seed, 3) != 0) continue;
    uint64_t len = page == PAGES - 1 ? SIZE - page * PAGE : PAGE;
    nf_flip(scene->data, page * PAGE + nf_below(seed, len), (unsigned char)(1 << nf_below(seed, 8)));
    rotten++;
  }
}

// ---- sessions --------------------------------------------------------------------------------------------------------------

static nearfile_file *open_file(nearfile_cache *cache, far_file *far, uint32_t flags) {
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_file *file = nf_open(cache, &source, "key", NULL, SIZE, flags);
  CHECK(strncmp(nearfile_data_path(file), "/proc/", 6) != 0);
  return file;
}

static void fill(far_file *far) {
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = open_file(cache, far, 0);
    CHECK_ALL(file, VERSION);
    CHECK_ALL(file, VERSION);
    snprintf(scene->data, NF_PATH, "%s", nearfile_data_path(file));
    snprintf(scene->index, NF_PATH, "%s", nearfile_index_path(file));
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

// A session that looks at some pages, and drops some.
static void use(nearfile_file *file, uint64_t *seed) {
  for (uint64_t n = nf_below(seed, PAGES); n > 0; n--) {
    uint64_t at = nf_below(seed, SIZE);
    if (nf_below(seed, 10) == 0) CHECK_EQ(nearfile_discard(file, at, 3 * PAGE), 0);
    CHECK_PREAD(file, (size_t)nf_below(seed, 2 * PAGE), at, VERSION);
  }
}

static void session(far_file *far, bool clean, uint64_t seed) {
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = open_file(cache, far, nf_below(&seed, 2) ? NEARFILE_TRUST_CLEAN : 0);
    use(file, &seed);
    nearfile_stats stats = nf_stats(file);
    CHECK_EQ(stats.passed_through, 0);
    atomic_fetch_add(&scene->failures, stats.checksum_failures);
    atomic_fetch_add(&scene->verified, stats.pages_verified);
    fflush(NULL);
    if (nf_failures != 0) _exit(1);
    if (!clean) kill(getpid(), SIGKILL);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  if (clean) {
    CHECK_CHILD(child);
    return;
  }
  int status = 0;
  MUST(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

// The round of epochs that the index is in is another than before, and sequences went on from 0.
static void check_wrapped(uint64_t before) {
  int fd = open(scene->index, O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0);
  uint64_t count = index_word(fd, AT_SESSION) >> 1;
  CHECK_EQ(count, (before + SESSIONS) & (UINT64_MAX >> 1));
  CHECK(count / EPOCHS != before / EPOCHS);
  for (int page = 0; page < PAGES; page++) wrapped_sequences += (index_word(fd, AT_WORDS + 8 * page) >> 16 & 0xffff) < 100;
  close(fd);
}

// ---- rounds ----------------------------------------------------------------------------------------------------------------

static void one_round(far_file *far, uint64_t *seed) {
  fill(far);
  // Some sessions before the end of a round of epochs: of the first, of a later one, or of all numbers.
  uint64_t left = 1 + nf_below(seed, SESSIONS - 2);
  uint64_t ends[] = {EPOCHS, (1 + nf_below(seed, 1000000)) * EPOCHS, UINT64_C(1) << 63};
  uint64_t count = ends[nf_below(seed, 3)] - left;
  bool clean = nf_below(seed, 2);
  move_to(count, clean, seed);
  if (!clean) rot(seed);
  for (int i = 0; i < SESSIONS; i++) {
    clean = nf_below(seed, 2);
    session(far, clean, nf_random(seed));
    if (!clean) rot(seed);
  }
  check_wrapped(count);
}

int main(int argc, char **argv) {
  torture_begin(argc, argv, "wrap", 1000);
  scene = nf_shared(sizeof *scene);
  uint64_t seed = 79;
  far_file *far = far_new(SIZE, VERSION, PAGE);
  while (torture_goes_on()) {
    one_round(far, &seed);
    torture_remove("cache");
  }
  CHECK(torture.done == 0 || (*(_Atomic uint64_t *)&scene->failures > 0 && wrapped_sequences > 0));
  return torture_report("%d sessions each over the end of the epochs, %" PRIu64 " pages rotten at unclean ends, %" PRIu64
                        " found when read, %" PRIu64 " pages compared, %" PRIu64 " sequences wrapped",
                        SESSIONS, rotten, scene->failures, scene->verified, wrapped_sequences);
}
