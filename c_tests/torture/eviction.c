// Guards that eviction and discard never change what a reader gets: three readers in processes of their own, by pread and by map, and
// beside them one process that discards, one that fills a second file until pages go by the limit, and one that trims. Run with a
// library whose race is widened, it must find nothing; with one that does not look again after its copy, it must find something.
#include "../nf_disk.h"

enum { VERSION = 12, PAGE = 4096, PAGES = 256, SIZE = PAGES * PAGE - 99, READERS = 3, LIMIT = 384 * PAGE };

// Both files hold the same bytes, made once, so that checking costs little.
static unsigned char *content;
static struct counts {
  _Atomic uint64_t reads, hits, wrong, discards, trims, evicted;
  atomic_int stop;
} *counts;

static int32_t give(void *user_data, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  (void)user_data;
  MUST(offset < SIZE && len <= SIZE - offset);
  memcpy(buf, content + offset, len);
  *out_len = len;
  return 0;
}

static nearfile_file *open_content(nearfile_cache *cache, const char *key, uint32_t flags) {
  nearfile_source source = {.struct_size = sizeof source, .flags = NEARFILE_SOURCE_FORK_SAFE, .read_at = give};
  return nf_open(cache, &source, key, NULL, SIZE, flags);
}

static void read_at_random(const nearfile_file *file, uint64_t *seed, uint64_t most) {
  static unsigned char buf[4 * PAGE];
  uint64_t offset = nf_below(seed, SIZE), len = 1 + nf_below(seed, most);
  if (len > SIZE - offset) len = SIZE - offset;
  CHECK_EQ(nearfile_pread(file, buf, len, offset), len);
  atomic_fetch_add(&counts->reads, 1);
  if (memcmp(buf, content + offset, len) != 0) atomic_fetch_add(&counts->wrong, 1);
}

static void reader(uint64_t seed, uint32_t flags) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  nearfile_file *file = open_content(cache, "read", flags);
  while (!atomic_load(&counts->stop)) read_at_random(file, &seed, seed % 4 == 0 ? 4 * PAGE : PAGE / 2);
  atomic_fetch_add(&counts->hits, nf_stats(file).hits);
  CHECK(strncmp(nearfile_data_path(file), "/proc/", 6) != 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void discarder(uint64_t seed, uint32_t flags) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  nearfile_file *file = open_content(cache, "read", flags);
  while (!atomic_load(&counts->stop)) {
    CHECK_EQ(nearfile_discard(file, nf_below(&seed, SIZE), (1 + nf_below(&seed, 16)) * PAGE), 0);
    atomic_fetch_add(&counts->discards, 1);
    nf_sleep_us((unsigned)nf_below(&seed, 300));
  }
  nearfile_close(file);
  nearfile_cache_close(cache);
}

// Its own file and the readers' do not fit together.
static void filler(uint64_t seed, uint32_t flags) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  nearfile_file *file = open_content(cache, "fill", flags);
  while (!atomic_load(&counts->stop)) {
    read_at_random(file, &seed, 4 * PAGE);
    nf_sleep_us((unsigned)nf_below(&seed, 200));
  }
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void trimmer(uint64_t seed, uint32_t flags) {
  (void)flags;
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  while (!atomic_load(&counts->stop)) {
    CHECK_EQ(nearfile_cache_trim(cache, LIMIT / 2 + nf_below(&seed, LIMIT / 2)), 0);
    atomic_fetch_add(&counts->trims, 1);
    nf_sleep_us(1000 + (unsigned)nf_below(&seed, 9000));
  }
  atomic_store(&counts->evicted, nf_cache_stats(cache).pages_evicted);
  nearfile_cache_close(cache);
}

int main(int argc, char **argv) {
  int64_t seconds = 5;
  uint64_t rounds = UINT64_MAX;
  uint32_t flags = 0;
  const char *fs = "ext4", *root = getenv("NEARFILE_TEST_DIR");
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--map") == 0) flags = NEARFILE_MAP;
    else if (i + 1 < argc && strcmp(argv[i], "--fs") == 0) fs = argv[++i];
    else if (i + 1 < argc && strcmp(argv[i], "--seconds") == 0) seconds = strtoll(argv[++i], NULL, 10);
    else if (i + 1 < argc && strcmp(argv[i], "--rounds") == 0) rounds = strtoull(argv[++i], NULL, 10);
    else return fprintf(stderr, "eviction [--map] [--fs ext4|xfs|tmpfs] [--seconds S] [--rounds READS]\n"), 2;
  }
  if (root == NULL) return fprintf(stderr, "NEARFILE_TEST_DIR must name an empty directory\n"), 2;
  nf_own_mounts();
  nf_case_name = "eviction";
  struct nf_disk disk = nf_disk_new(root, fs);
  MUST(snprintf(nf_dir, sizeof nf_dir, "%s", disk.at) < (int)sizeof nf_dir);
  counts = nf_shared(sizeof *counts);
  content = nf_shared(SIZE);
  nf_fill(content, SIZE, 0, VERSION);

  static void (*const all[])(uint64_t seed, uint32_t flags) = {reader, reader, reader, discarder, filler, trimmer};
  enum { COUNT = sizeof all / sizeof *all };
  pid_t children[COUNT];
  for (int i = 0; i < COUNT; i++) {
    children[i] = nf_fork((unsigned)seconds + 60);
    if (children[i] != 0) continue;
    all[i]((uint64_t)i + 1, flags);
    nf_child_ends();
  }
  NF_UNTIL(counts->reads >= rounds, seconds * 1000);
  atomic_store(&counts->stop, 1);
  for (int i = 0; i < COUNT; i++) CHECK_CHILD(children[i]);
  printf("eviction, %s, %s: %" PRIu64 " reads (%" PRIu64 " hits) by %d readers, %" PRIu64 " discards, %" PRIu64 " trims, %" PRIu64
         " pages evicted: %" PRIu64 " wrong reads\n", fs, flags != 0 ? "map" : "pread", counts->reads, counts->hits, READERS,
         counts->discards, counts->trims, counts->evicted, counts->wrong);
  CHECK(counts->hits > 0 && counts->discards > 0 && counts->evicted > 0);  // the race was there
  nf_disk_free(&disk);
  // 3 tells of wrong bytes and nothing else.
  return nf_failures != 0 ? 1 : counts->wrong != 0 ? 3 : 0;
}
