// Guards that two versions of one key never mix, not in one process and not between several, that what names a file is all of key,
// version and size, and that a near copy which exists keeps its own page size.
#include "nf_test.h"

enum { PAGE = 1000, SIZE = 20500 };

static nearfile_file *open_version(nearfile_cache *cache, far_file *far, const char *key, const char *version) {
  nearfile_source source = far_source(far, FAR_AT);
  return nf_open(cache, &source, key, version, far->size, 0);
}

// Eight versions of one key, read in turns, and each found again.
static void versions_do_not_mix(void) {
  enum { VERSIONS = 8 };
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far[VERSIONS];
  nearfile_file *files[VERSIONS];
  static const char *names[VERSIONS] = {NULL, "1", "2", "\"W/etag\"", "0", " ", "11", "\xff\xfe"};
  for (uint64_t i = 0; i < VERSIONS; i++) {
    far[i] = far_new(SIZE, i + 1, PAGE);
    files[i] = open_version(cache, far[i], "key", names[i]);
    for (uint64_t j = 0; j < i; j++) {
      CHECK(strcmp(nearfile_data_path(files[i]), nearfile_data_path(files[j])) != 0);
      CHECK(strcmp(nearfile_index_path(files[i]), nearfile_index_path(files[j])) != 0);
    }
  }
  uint64_t seed = 1;
  for (int n = 0; n < 2000; n++) {
    uint64_t i = nf_below(&seed, VERSIONS);
    CHECK_PREAD(files[i], (size_t)nf_below(&seed, 2500), nf_below(&seed, SIZE), i + 1);
    if (n % 50 == 0) CHECK_EQ(nearfile_discard(files[i], nf_below(&seed, SIZE), 5000), 0);
  }
  for (uint64_t i = 0; i < VERSIONS; i++) {
    CHECK_ALL(files[i], i + 1);
    nearfile_close(files[i]);
    far_forget(far[i]);
  }
  for (uint64_t i = 0; i < VERSIONS; i++) {
    files[i] = open_version(cache, far[i], "key", names[i]);
    CHECK_ALL(files[i], i + 1);
    CHECK_EQ(far[i]->reads, 0);
    nearfile_close(files[i]);
    far_free(far[i]);
  }
  nearfile_cache_close(cache);
}

// No version is the empty version.
static void null_is_the_empty_version(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, 1, PAGE);
  nearfile_file *first = open_version(cache, far, "key", NULL), *second = open_version(cache, far, "key", "");
  CHECK(strcmp(nearfile_index_path(first), nearfile_index_path(second)) == 0);
  CHECK_ALL(first, 1);
  CHECK_ALL(second, 1);
  CHECK_ONCE(far);
  nearfile_close(first);
  nearfile_close(second);
  CHECK_EQ(far->releases, 2);
  far_free(far);
  nearfile_cache_close(cache);
}

// Neighbouring names, whose parts put together would be the same, and names that look like paths.
static void names_are_taken_whole(void) {
  char long_a[4097], long_b[4097];
  memset(long_a, 'k', 4096);
  long_a[4096] = 0;
  memcpy(long_b, long_a, 4097);
  long_b[4095] = 'K';
  const struct { const char *key, *version; } names[] = {
      {"ab", "c"}, {"a", "bc"}, {"abc", ""}, {"a", "b"}, {"a/", "b"}, {"/etc/passwd", ""}, {"../../x", "1"}, {"..", "/1"},
      {"%s%n", "%d"}, {"a\n", "b"}, {"\x01", "b"}, {long_a, "v"}, {long_b, "v"}, {"control", ""}, {"A", "b"}};
  enum { NAMES = sizeof names / sizeof *names };
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far[NAMES];
  for (int warm = 0; warm < 2; warm++) {
    for (uint64_t i = 0; i < NAMES; i++) {
      if (!warm) far[i] = far_new(3 * PAGE + i, i + 1, PAGE);
      far_forget(far[i]);
      far[i]->size = 3 * PAGE;  // the same size for all
      nearfile_file *file = open_version(cache, far[i], names[i].key, names[i].version);
      char path[NF_PATH];
      nf_path(path, "cache/");
      CHECK(strncmp(nearfile_data_path(file), path, strlen(path)) == 0);
      CHECK(strchr(nearfile_index_path(file) + strlen(path), '/') == NULL);
      CHECK_ALL(file, i + 1);
      CHECK_EQ(far[i]->reads, !warm);
      nearfile_close(file);
    }
  }
  for (uint64_t i = 0; i < NAMES; i++) {
    far[i]->size = 3 * PAGE + i;
    far_free(far[i]);
  }
  nearfile_cache_close(cache);
}

// One version, told to have two sizes: whoever is right, their bytes are not shared.
static void another_size_is_another_file(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  static const uint64_t sizes[] = {SIZE, SIZE - 1, SIZE + 1, 0, PAGE, 20 * PAGE, 21 * PAGE};
  enum { SIZES = sizeof sizes / sizeof *sizes };
  far_file *far[SIZES];
  nearfile_file *files[SIZES];
  for (int warm = 0; warm < 2; warm++) {
    for (uint64_t i = 0; i < SIZES; i++) {
      if (!warm) far[i] = far_new(sizes[i], i + 1, PAGE);
      files[i] = open_version(cache, far[i], "key", "v");
    }
    for (uint64_t i = 0; i < SIZES; i++) {
      CHECK_EQ(nearfile_size(files[i]), sizes[i]);
      CHECK_ALL(files[i], i + 1);
      if (sizes[i] > 0) CHECK_ONCE(far[i]);
      nearfile_close(files[i]);
    }
  }
  for (int i = 0; i < SIZES; i++) far_free(far[i]);
  nearfile_cache_close(cache);
}

// Who asks for another page size of a near copy that exists gets the one it has, while it is open and later.
static void a_pair_keeps_its_page_size(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0), *other_cache = nf_cache("cache", 4096, 0, 0);
  far_file *far = far_new(SIZE, 1, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_file *first = open_version(cache, far, "key", "v"), *second = NULL;
  CHECK_PREAD(first, 10, 5 * PAGE, 1);
  static const uint64_t asked[] = {1, 999, 1001, 4096, 1 << 20, 1 << 30};
  for (int open = 0; open < 2; open++) {
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
      nearfile_options options = {
          .struct_size = sizeof options, .key = "key", .version = "v", .size = SIZE, .page_size = asked[i]};
      MUST(nearfile_open(i % 2 ? cache : other_cache, &source, &options, &second) == 0);
      CHECK_EQ(nearfile_page_size(second), PAGE);
      CHECK_EQ(nf_walk(second), open == 0 ? PAGE : SIZE);
      CHECK_PREAD(second, 20, 5 * PAGE - 5, 1);
      if (open == 0) CHECK_EQ(nearfile_discard(second, 4 * PAGE, PAGE), 0);
      nearfile_close(second);
    }
    second = open_version(other_cache, far, "key", "v");
    CHECK_EQ(nearfile_page_size(second), PAGE);
    CHECK_ALL(second, 1);
    if (open == 0) nearfile_close(first);
    nearfile_close(second);
  }
  // Another version is a new pair, with the page size asked for.
  nearfile_options options = {.struct_size = sizeof options, .key = "key", .version = "w", .size = SIZE, .page_size = 777};
  MUST(nearfile_open(cache, &source, &options, &second) == 0);
  CHECK_EQ(nearfile_page_size(second), 777);
  CHECK_ALL(second, 1);
  nearfile_close(second);
  far_free(far);
  nearfile_cache_close(cache);
  nearfile_cache_close(other_cache);
}

// An earlier version stays readable from what is kept of it, though the remote file is gone.
static int32_t gone(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  return 404;
}

static void an_old_version_stays_consistent(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *old = far_new(SIZE, 1, PAGE), *new = far_new(SIZE, 2, PAGE);
  nearfile_file *first = open_version(cache, old, "key", "1");
  CHECK_PREAD(first, 10 * PAGE, 0, 1);
  old->hook = gone;
  nearfile_file *second = open_version(cache, new, "key", "2");
  CHECK_ALL(second, 2);
  CHECK_PREAD(first, 10 * PAGE, 0, 1);
  char byte;
  CHECK_EQ(nearfile_pread(first, &byte, 1, 15 * PAGE), NEARFILE_ERROR_SOURCE);  // never the new one's
  CHECK_EQ(nf_last_error().source_code, 404);
  nearfile_close(first);
  nearfile_close(second);
  first = open_version(cache, old, "key", "1");
  CHECK_PREAD(first, 10 * PAGE, 0, 1);
  CHECK_EQ(nearfile_pread(first, &byte, 1, 15 * PAGE), NEARFILE_ERROR_SOURCE);
  nearfile_close(first);
  far_free(old);
  far_free(new);
  nearfile_cache_close(cache);
}

// ---- the remote file changes under readers in several processes ------------------------------------------------------------

struct change {
  _Atomic uint64_t version;
};

static int32_t versioned_read_at(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  nf_sleep_us(100);
  return far_read_at(connection, offset, buf, len, out_len);
}

static void the_source_changes_under_readers(void) {
  enum { READERS = 6, CHANGES = 25 };
  struct change *change = nf_shared(sizeof *change);
  atomic_store(&change->version, 1);
  pid_t children[READERS];
  for (int i = 0; i < READERS; i++) {
    children[i] = nf_fork(60);
    if (children[i] != 0) continue;
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    uint64_t seed = (uint64_t)i, seen = 0;
    while (seen < CHANGES) {
      seen = atomic_load(&change->version);
      char name[20];
      snprintf(name, sizeof name, "etag-%" PRIu64, seen);
      far_file *far = far_new(SIZE, seen, PAGE);
      nearfile_source source = far_source(far, FAR_AT);
      source.read_at = versioned_read_at;
      nearfile_file *file = nf_open(cache, &source, "key", name, SIZE, 0);
      for (int n = 0; n < 8; n++) CHECK_PREAD(file, (size_t)nf_below(&seed, 4 * PAGE), nf_below(&seed, SIZE), seen);
      nearfile_close(file);
      CHECK_EQ(far->offences, 0);
      far_free(far);
    }
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (uint64_t version = 2; version <= CHANGES; version++) {
    nf_sleep_us(20000);
    atomic_store(&change->version, version);
  }
  for (int i = 0; i < READERS; i++) CHECK_CHILD(children[i]);
  munmap(change, sizeof *change);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(versions_do_not_mix), NF_CASE(null_is_the_empty_version),
                                         NF_CASE(names_are_taken_whole), NF_CASE(another_size_is_another_file),
                                         NF_CASE(a_pair_keeps_its_page_size), NF_CASE(an_old_version_stays_consistent),
                                         NF_CASE(the_source_changes_under_readers)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
