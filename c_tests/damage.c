// Guards that a byte which rots on the local disk is found before it is served, in every page, and fetched again; and that after a
// clean close, and only then, NEARFILE_TRUST_CLEAN opens without a comparison.
#include "nf_test.h"

enum { VERSION = 29, PAGE = 4096, PAGES = 40, SIZE = (PAGES - 1) * PAGE + 777 };

static char data_path[NF_PATH], index_path[NF_PATH];

static nearfile_file *open_flags(nearfile_cache *cache, far_file *far, uint32_t flags) {
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_file *file = nf_open(cache, &source, "key", "v", SIZE, flags);
  MUST(nearfile_data_path(file) != NULL && strncmp(nearfile_data_path(file), "/proc", 5) != 0);
  snprintf(data_path, sizeof data_path, "%s", nearfile_data_path(file));
  snprintf(index_path, sizeof index_path, "%s", nearfile_index_path(file));
  return file;
}

// A whole near copy, made in this process and closed.
static void fill(nearfile_cache *cache, far_file *far) {
  nearfile_file *file = open_flags(cache, far, 0);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nf_stats(file).cached_pages, PAGES);
  nearfile_close(file);
  far_forget(far);
}

enum harm { ONE_BIT, FIRST_BYTE, LAST_BYTE, ZEROED, PUNCHED, SWAPPED, TORN, HARMS };

// Does harm to every page of a mirror.
static void do_harm(enum harm harm, uint64_t seed) {
  int fd = open(data_path, O_RDWR | O_CLOEXEC);
  MUST(fd >= 0);
  char page[PAGE], next[PAGE];
  for (uint64_t i = 0; i < PAGES; i++) {
    uint64_t start = i * PAGE, len = i == PAGES - 1 ? SIZE - start : PAGE;
    switch (harm) {
      case ONE_BIT: nf_flip(data_path, start + nf_below(&seed, len), (unsigned char)(1 << nf_below(&seed, 8))); break;
      case FIRST_BYTE: nf_flip(data_path, start, 0x80); break;
      case LAST_BYTE: nf_flip(data_path, start + len - 1, 1); break;
      case ZEROED:
        memset(page, 0, sizeof page);
        MUST(pwrite(fd, page, (size_t)len, (off_t)start) == (ssize_t)len);
        break;
      case PUNCHED:
        MUST(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start, (off_t)len) == 0);
        break;
      case SWAPPED:  // good pages in the wrong places
        if (i % 2 == 0 && i + 1 < PAGES) {
          size_t short_len = i + 2 == PAGES ? (size_t)(SIZE - start - PAGE) : PAGE;
          MUST(pread(fd, page, PAGE, (off_t)start) == PAGE);
          MUST(pread(fd, next, short_len, (off_t)(start + PAGE)) == (ssize_t)short_len);
          MUST(pwrite(fd, next, short_len, (off_t)start) == (ssize_t)short_len);
          MUST(pwrite(fd, page, short_len, (off_t)(start + PAGE)) == (ssize_t)short_len);
        }
        break;
      default:  // the second half of what was written never came to the disk
        memset(page, 0, sizeof page);
        MUST(pwrite(fd, page, (size_t)(len - len / 2), (off_t)(start + len / 2)) == (ssize_t)(len - len / 2));
    }
  }
  MUST(close(fd) == 0);
}

// Every damaged page is found, counted and fetched again, once; what is served is right; afterwards all is well.
static void damage_to_a_closed_cache(void) {
  for (int harm = 0; harm < HARMS; harm++) {
    for (int backwards = 0; backwards < 2; backwards++) {
      char name[20];
      snprintf(name, sizeof name, "cache%d-%d", harm, backwards);
      nearfile_cache *cache = nf_cache(name, PAGE, 0, 0);
      far_file *far = far_new(SIZE, VERSION, PAGE);
      fill(cache, far);
      do_harm((enum harm)harm, (uint64_t)(harm * 2 + backwards + 1));
      nearfile_file *file = open_flags(cache, far, backwards ? NEARFILE_VERIFY_ALWAYS : 0);
      CHECK_EQ(nf_walk(file), SIZE);
      for (uint64_t n = 0; n < PAGES; n++) {
        uint64_t page = backwards ? PAGES - 1 - n : n;
        CHECK_PREAD(file, 10, page * PAGE + 100, VERSION);  // ten bytes that the harm may not even have met
        CHECK_EQ(nf_stats(file).checksum_failures, n + 1);
      }
      CHECK_ALL(file, VERSION);
      CHECK_ONCE(far);
      nearfile_stats stats = nf_stats(file);
      CHECK_EQ(stats.checksum_failures, PAGES);
      CHECK_EQ(stats.pages_fetched, PAGES);
      CHECK_EQ(stats.passed_through, 0);
      CHECK_EQ(nf_walk(file), SIZE);
      nearfile_close(file);

      far_forget(far);
      file = open_flags(cache, far, 0);
      CHECK_ALL(file, VERSION);
      CHECK_EQ(far->reads, 0);
      CHECK_EQ(nf_stats(file).checksum_failures, 0);
      nearfile_close(file);
      far_free(far);
      nearfile_cache_close(cache);
    }
  }
}

// A large read over good and bad pages, in many pieces of its own.
static void some_pages_are_damaged(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 3 * PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  uint64_t seed = 77;
  for (int round = 0; round < 20; round++) {
    fill(cache, far);
    bool bad[PAGES] = {false};
    uint64_t count = 0;
    for (int i = 0; i < 10; i++) {
      uint64_t page = nf_below(&seed, PAGES);
      if (!bad[page]) nf_flip(data_path, page * PAGE + nf_below(&seed, 700), 0x10);
      count += !bad[page];
      bad[page] = true;
    }
    nearfile_file *file = open_flags(cache, far, 0);
    CHECK_PREAD(file, SIZE, 0, VERSION);
    CHECK_EQ(nf_stats(file).checksum_failures, count);
    CHECK_EQ(nf_stats(file).pages_verified, PAGES - count);
    for (uint64_t page = 0; page < PAGES; page++) CHECK_EQ(far->page_reads[page], bad[page]);
    nearfile_close(file);
    far_forget(far);
  }
  far_free(far);
  nearfile_cache_close(cache);
}

// The remote is gone: damage is an error, never bytes; and nothing that is good is lost by it.
static int32_t gone(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  return 404;
}

static void damage_without_a_source(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  fill(cache, far);
  nf_flip(data_path, 5 * PAGE + 1, 4);
  far->hook = gone;
  nearfile_file *file = open_flags(cache, far, 0);
  char buf[3 * PAGE];
  CHECK_EQ(nearfile_pread(file, buf, sizeof buf, 4 * PAGE), NEARFILE_ERROR_SOURCE);
  CHECK_EQ(nearfile_pread(file, buf, 10, 5 * PAGE + 50), NEARFILE_ERROR_SOURCE);
  CHECK_PREAD(file, 5 * PAGE, 0, VERSION);
  CHECK_PREAD(file, SIZE, 6 * PAGE, VERSION);
  nearfile_close(file);
  file = open_flags(cache, far, NEARFILE_TRUST_CLEAN);
  CHECK_EQ(nearfile_pread(file, buf, 10, 5 * PAGE + 50), NEARFILE_ERROR_SOURCE);  // nor in the next session
  far->hook = NULL;
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// Once a session by default; at every hit where the disk is not trusted.
static void an_open_session(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  fill(cache, far);
  nearfile_file *file = open_flags(cache, far, 0);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nf_stats(file).pages_verified, PAGES);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nf_stats(file).pages_verified, PAGES);

  nearfile_file *doubtful = open_flags(cache, far, NEARFILE_VERIFY_ALWAYS);
  for (uint64_t round = 0; round < 3; round++) {
    for (uint64_t page = 0; page < PAGES; page++) CHECK_PREAD(doubtful, 50, page * PAGE, VERSION);
    CHECK_EQ(nf_stats(doubtful).pages_verified, PAGES * (round + 1));
  }
  CHECK_EQ(far->reads, 0);
  do_harm(ONE_BIT, 5);
  CHECK_ALL(doubtful, VERSION);
  CHECK_EQ(nf_stats(doubtful).checksum_failures, PAGES);
  CHECK_ONCE(far);
  do_harm(ZEROED, 0);
  CHECK_ALL(doubtful, VERSION);
  CHECK_EQ(nf_stats(doubtful).checksum_failures, 2 * PAGES);
  CHECK_ALL(file, VERSION);  // what the one found is cured for the other
  nearfile_close(doubtful);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- after a clean close, and after another --------------------------------------------------------------------------------------

// Reads all of a near copy in a process of its own; how it ends: closed, or not.
static void in_a_child(uint32_t flags, far_file *far, bool closes, int verified, uint64_t source_bytes) {
  pid_t child = nf_fork(20);
  if (child == 0) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    far_forget(far);
    nearfile_file *file = open_flags(cache, far, flags);
    CHECK_ALL(file, VERSION);
    nearfile_stats stats = nf_stats(file);
    CHECK_EQ(stats.pages_verified, verified);
    CHECK_EQ(stats.checksum_failures, 0);
    CHECK_EQ(far->bytes, source_bytes);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).source_bytes, source_bytes);
    if (closes) nearfile_close(file);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

static void clean_close_is_trusted(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  in_a_child(0, far, true, 0, SIZE);
  for (int i = 0; i < 3; i++) in_a_child(NEARFILE_TRUST_CLEAN, far, true, 0, 0);  // again and again
  in_a_child(0, far, true, PAGES, 0);                                              // who does not trust compares
  in_a_child(NEARFILE_TRUST_CLEAN, far, true, 0, 0);
  in_a_child(NEARFILE_TRUST_CLEAN | NEARFILE_VERIFY_ALWAYS, far, true, 2 * PAGES / 2, 0);
  in_a_child(NEARFILE_TRUST_CLEAN, far, true, 0, 0);
  far_free(far);
}

static void unclean_end_is_not_trusted(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  in_a_child(0, far, false, 0, SIZE);
  in_a_child(NEARFILE_TRUST_CLEAN, far, false, PAGES, 0);  // not clean, and again it does not close
  in_a_child(NEARFILE_TRUST_CLEAN, far, true, PAGES, 0);
  in_a_child(NEARFILE_TRUST_CLEAN, far, false, 0, 0);
  in_a_child(NEARFILE_TRUST_CLEAN, far, true, PAGES, 0);   // a session of hits alone that did not close is not clean either
  in_a_child(NEARFILE_TRUST_CLEAN, far, true, 0, 0);
  far_free(far);
}

// Found by comparison after an unclean end, though the program trusts clean ones.
static void damage_after_an_unclean_end(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  in_a_child(0, far, false, 0, SIZE);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_close(open_flags(cache, far, NEARFILE_VERIFY_ALWAYS));  // learns the path; compares nothing
  far_forget(far);
  pid_t child = nf_fork(20);
  if (child == 0) {
    nearfile_file *file = open_flags(cache, far, 0);
    CHECK_PREAD(file, 1, 0, VERSION);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  do_harm(ONE_BIT, 9);
  nearfile_file *file = open_flags(cache, far, NEARFILE_TRUST_CLEAN);
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nf_stats(file).checksum_failures, PAGES);
  CHECK_ONCE(far);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// The last of several closers makes it clean, whoever that is; one that never closes leaves it unclean.
static void the_last_closer_counts(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  in_a_child(0, far, true, 0, SIZE);
  for (int forgetful = 0; forgetful < 2; forgetful++) {
    atomic_int *go = nf_shared(sizeof *go);
    pid_t children[4];
    for (int i = 0; i < 4; i++) {
      children[i] = nf_fork(20);
      if (children[i] != 0) continue;
      nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
      nearfile_file *file = open_flags(cache, far, 0), *other = open_flags(cache, far, 0);
      CHECK_EQ(nearfile_discard(file, (uint64_t)i * 5 * PAGE, 5 * PAGE), 0);  // so that there is something to lose
      CHECK_ALL(file, VERSION);
      nearfile_close(other);
      if (i == 3) NF_UNTIL(atomic_load(go), 10000);  // outlives the others
      if (i != 3 || !forgetful) nearfile_close(file);
      nf_child_ends();
    }
    for (int i = 0; i < 3; i++) CHECK_CHILD(children[i]);
    atomic_store(go, 1);
    CHECK_CHILD(children[3]);
    in_a_child(NEARFILE_TRUST_CLEAN, far, true, forgetful ? PAGES : 0, 0);
    munmap(go, sizeof *go);
  }
  far_free(far);
}

// ---- the index ---------------------------------------------------------------------------------------------------------------------

// Every bit of a page's word, and random bits of the whole index but for what never changes: right bytes.
static void bits_of_the_index(void) {
  enum { WORDS = 12288 };
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  uint64_t seed = 31;
  for (int round = 0; round < 64 + 60; round++) {
    fill(cache, far);
    struct stat stat_;
    MUST(stat(index_path, &stat_) == 0);
    for (uint64_t page = 0; page < PAGES; page++) {
      if (round < 64) nf_flip(index_path, WORDS + 8 * page + (uint64_t)round / 8, (unsigned char)(1 << round % 8));
    }
    for (int i = 0; i < 50 && round >= 64; i++) {
      uint64_t at = nf_below(&seed, 2) ? 128 + nf_below(&seed, 128) : 8192 + nf_below(&seed, (uint64_t)stat_.st_size - 8192);
      nf_flip(index_path, at, (unsigned char)(1 << nf_below(&seed, 8)));
    }
    alarm(20);
    nearfile_file *file = open_flags(cache, far, round % 3 == 0 ? NEARFILE_VERIFY_ALWAYS : 0);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nearfile_discard(file, 0, 10 * PAGE), 0);
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nf_stats(file).cached_bytes, nf_walk(file));
    nearfile_close(file);
    alarm(0);
  }
  far_free(far);
  nearfile_cache_close(cache);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(damage_to_a_closed_cache), NF_CASE(some_pages_are_damaged), NF_CASE(damage_without_a_source), NF_CASE(an_open_session),
      NF_CASE(clean_close_is_trusted), NF_CASE(unclean_end_is_not_trusted), NF_CASE(damage_after_an_unclean_end),
      NF_CASE(the_last_closer_counts), NF_CASE(bits_of_the_index)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
