// Guards that whatever becomes of the bytes of an index, a mirror or `control` on the disk, every byte read is right, and nothing
// crashes or hangs: NEARFILE_MUTANTS of them (default 400), each opened, used and opened again within 5 s; in memory, and a twentieth
// where syncs take their time. A word with the right checksum of a wrong page cannot be told from a good one, so index and mirror do not change at once.
#include "nf_test.h"

enum { A = 3, B = 7, PAGE = 1000, SIZE = 30500, PAGES = 31, WORDS = 12288, SESSION = 128, SESSION_END = 256, BEATS = 8192 };

struct bytes {
  unsigned char *at;
  size_t len;
};

// A pair as it was closed, and its names.
struct pair {
  struct bytes index, data;
  char index_path[NF_PATH], data_path[NF_PATH];
};

static struct pair a, b, other_size, own;
static struct bytes control;
static char control_path[NF_PATH], *told;  // what is being tried, for who finds out that it crashed
static uint64_t seed;

static struct bytes load(const char *path) {
  struct stat stat_;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0 && fstat(fd, &stat_) == 0);
  struct bytes bytes = {malloc((size_t)stat_.st_size + 1), (size_t)stat_.st_size};
  MUST(bytes.at != NULL && read(fd, bytes.at, bytes.len) == (ssize_t)bytes.len && close(fd) == 0);
  return bytes;
}

static void store(const char *path, struct bytes bytes) {
  unlink(path);
  int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
  MUST(fd >= 0 && write(fd, bytes.at, bytes.len) == (ssize_t)bytes.len && close(fd) == 0);
}

static struct bytes copy(struct bytes bytes, size_t len) {
  struct bytes made = {calloc(1, len + 1), len};
  MUST(made.at != NULL);
  memcpy(made.at, bytes.at, bytes.len < len ? bytes.len : len);
  return made;
}

static nearfile_file *open_pair(nearfile_cache *cache, far_file *far, const char *key, bool at_paths, uint32_t flags) {
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_options options = {.struct_size = sizeof options, .key = key, .size = far->size, .flags = flags};
  if (at_paths) options.data_path = own.data_path, options.index_path = own.index_path;
  nearfile_file *file = NULL;
  int32_t status = nearfile_open(cache, &source, &options, &file);
  // At paths of its own a program is told what is wrong; in a cache directory there is always a way.
  if (!at_paths) CHECK_EQ(status, 0);
  return file;
}

static struct pair make(nearfile_cache *cache, const char *key, bool at_paths, uint64_t size, uint64_t version) {
  struct pair pair;
  far_file *far = far_new(size, version, PAGE);
  nearfile_file *file = open_pair(cache, far, key, at_paths, 0);
  MUST(file != NULL);
  CHECK_ALL(file, version);
  CHECK_PREAD(file, size / 2, 0, version);  // half of its pages are compared, half are only filled
  MUST(snprintf(pair.index_path, NF_PATH, "%s", nearfile_index_path(file)) < NF_PATH);
  MUST(snprintf(pair.data_path, NF_PATH, "%s", nearfile_data_path(file)) < NF_PATH);
  nearfile_close(file);
  pair.index = load(pair.index_path), pair.data = load(pair.data_path);
  far_free(far);
  return pair;
}

// ---- what becomes of bytes -------------------------------------------------------------------------------------------------------

static void flip(struct bytes bytes, size_t from, size_t end, uint64_t most) {
  if (end > bytes.len) end = bytes.len;
  for (uint64_t n = 1 + nf_below(&seed, most); n > 0; n--) {
    bytes.at[from + nf_below(&seed, end - from)] ^= (unsigned char)(1 << nf_below(&seed, 8));
  }
}

static void fill(struct bytes bytes, size_t from, size_t end, int with) {
  for (size_t at = from; at < end && at < bytes.len; at++) bytes.at[at] = with < 0 ? (unsigned char)nf_random(&seed) : (unsigned char)with;
}

enum mutation {
  TRUNCATED, EXTENDED, OTHER_ORDER, OTHER_FORMAT, ZEROED_PART, FILLED_PART, RANDOM_PART, ALL_RANDOM, FLIPPED_ANYWHERE, FLIPPED_WORDS,
  RANDOM_WORDS, FLIPPED_SESSION, RANDOM_SESSION, FLIPPED_BEATS, FLIPPED_RECENCY, SWAPPED_KEYS, SWAPPED_MIRROR, ANOTHER_SIZE, NONE, MUTATIONS
};
static const char *const mutation_names[] = {
    "truncated", "extended", "other byte order", "other format", "zeroed in part", "filled with ones in part", "random in part", "random",
    "flipped anywhere", "flipped words", "random words", "flipped session", "random session", "flipped beats", "flipped recency",
    "another key's", "with another key's mirror", "of another size", "gone"};

// What becomes of a file by a mutation that any file can have; an index has more.
static struct bytes mutate(struct bytes was, enum mutation how) {
  size_t from = (size_t)nf_below(&seed, was.len), end = from + (size_t)nf_below(&seed, was.len - from + 1);
  struct bytes now = copy(was, how == TRUNCATED ? from : how == EXTENDED ? was.len + 1 + (size_t)nf_below(&seed, 70000) : was.len);
  switch (how) {
    case EXTENDED: fill(now, was.len, now.len, (int)nf_below(&seed, 2) - 1); break;
    case OTHER_ORDER:
      for (size_t field = 0; field < 64; field += field < 8 ? 8 : 4) {
        for (size_t i = 0, width = field < 8 ? 8 : 4; i < width; i++) now.at[field + i] = was.at[field + width - 1 - i];
      }
      break;
    case OTHER_FORMAT: now.at[8] = (unsigned char)(2 + nf_below(&seed, 250)); break;
    case ZEROED_PART: fill(now, from, end, 0); break;
    case FILLED_PART: fill(now, from, end, 0xFF); break;
    case RANDOM_PART: fill(now, from, end, -1); break;
    case ALL_RANDOM: fill(now, nf_below(&seed, 2) ? 16 : 0, now.len, -1); break;
    case FLIPPED_ANYWHERE: flip(now, 0, now.len, 100); break;
    case FLIPPED_WORDS: flip(now, WORDS, WORDS + 8 * PAGES, 60); break;
    case RANDOM_WORDS: fill(now, WORDS, WORDS + 8 * PAGES, -1); break;
    case FLIPPED_SESSION: flip(now, SESSION, SESSION_END, 20); break;
    case RANDOM_SESSION: fill(now, SESSION, SESSION + 8 * (size_t)nf_below(&seed, 16), -1); break;
    case FLIPPED_BEATS: flip(now, BEATS, WORDS, 200); break;
    case FLIPPED_RECENCY: flip(now, 16384, now.len, 100); break;
    default: break;
  }
  return now;
}

static void put(const char *path, struct bytes bytes) {
  store(path, bytes);
  free(bytes.at);
}

enum target { INDEX, MIRROR, CONTROL, OWN_INDEX, OWN_MIRROR, TARGETS };
static const char *const target_names[] = {"index", "mirror", "control", "index at a path", "mirror at a path"};

static void mutate_file(enum target target, enum mutation how) {
  const char *path = target == CONTROL ? control_path : target == INDEX ? a.index_path : target == MIRROR ? a.data_path
                     : target == OWN_INDEX ? own.index_path : own.data_path;
  struct bytes was = target == CONTROL ? control : target == INDEX ? a.index : target == MIRROR ? a.data
                     : target == OWN_INDEX ? own.index : own.data;
  bool is_index = target == INDEX || target == OWN_INDEX;
  if (how == NONE) MUST(unlink(path) == 0);
  else if (how == SWAPPED_KEYS) store(path, is_index ? b.index : b.data);
  else if (how == ANOTHER_SIZE) store(path, is_index ? other_size.index : other_size.data);
  else if (how == SWAPPED_MIRROR && is_index) store(target == INDEX ? a.data_path : own.data_path, b.data);
  else put(path, mutate(was, how));
}

// ---- one mutant ------------------------------------------------------------------------------------------------------------------

static void restore(void) {
  store(a.index_path, a.index), store(a.data_path, a.data);
  store(b.index_path, b.index), store(b.data_path, b.data);
  store(own.index_path, own.index), store(own.data_path, own.data);
  store(control_path, control);
}

static void use(nearfile_file *file, uint64_t version) {
  if (file == NULL) return;
  CHECK_PREAD(file, 10, 17 * PAGE + 3, version);
  CHECK_ALL(file, version);
  CHECK(nf_walk(file) <= SIZE);
  CHECK_EQ(nearfile_discard(file, 5 * PAGE, 10 * PAGE), 0);
  CHECK_PREAD(file, 12 * PAGE, 4 * PAGE, version);
  nearfile_pin *pin = NULL;
  CHECK_EQ(nearfile_pin_range(file, 900, 3 * PAGE, &pin), 0);
  CHECK_BYTES(nearfile_pin_data(pin), 3 * PAGE, 900, version);
  nearfile_pin_release(pin);
  nf_stats(file);
}

static void use_all(far_file *far_a, far_file *far_b, uint64_t limit, uint32_t flags) {
  nearfile_cache_options options = {.struct_size = sizeof options, .page_size = PAGE, .size_limit = limit, .wait_ms = 200};
  nearfile_cache *cache = NULL;
  char path[NF_PATH];
  MUST(nearfile_cache_open(nf_path(path, "cache"), &options, &cache) == 0);
  nearfile_file *files[] = {open_pair(cache, far_a, "a", false, flags), open_pair(cache, far_b, "b", false, flags),
                            open_pair(cache, far_a, "own", true, flags)};
  for (int i = 0; i < 3; i++) use(files[i], i == 1 ? B : A);
  nearfile_stats stats = {.struct_size = sizeof stats};
  CHECK_EQ(nearfile_cache_get_stats(cache, &stats), 0);
  nearfile_cache_trim(cache, 5 * 4096);
  for (int i = 0; i < 3; i++) nearfile_close(files[i]);
  if (limit != 0) nearfile_cache_remove(cache, "a");
  nearfile_cache_close(cache);
}

static void one_mutant(far_file *far_a, far_file *far_b) {
  static const uint32_t flags[] = {0, NEARFILE_VERIFY_ALWAYS, NEARFILE_MAP, NEARFILE_TRUST_CLEAN};
  enum target target = (enum target)nf_below(&seed, TARGETS);
  enum mutation how = (enum mutation)nf_below(&seed, MUTATIONS);
  // What is wrong in a mirror is found by comparison; who trusts a clean close does not compare.
  bool mirror_is_wrong = target == MIRROR || target == OWN_MIRROR || how == SWAPPED_MIRROR;
  uint32_t flag = flags[nf_below(&seed, mirror_is_wrong ? 3 : 4)];
  uint64_t limit = nf_below(&seed, 3) == 0 ? 20 * 4096 : 0;
  snprintf(told, NF_PATH, "%s %s, flags %u, limit %" PRIu64, target_names[target], mutation_names[how], flag, limit);
  restore();
  mutate_file(target, how);
  int failures = nf_failures;
  alarm(5);
  use_all(far_a, far_b, limit, flag);
  use_all(far_a, far_b, 0, 0);  // and what that left behind
  alarm(0);
  if (nf_failures != failures) fprintf(stderr, "  %s\n", told);
}

static void mutants(long wanted, uint64_t first) {
  told = nf_shared(NF_PATH);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  a = make(cache, "a", false, SIZE, A), b = make(cache, "b", false, SIZE, B);
  other_size = make(cache, "a", false, SIZE / 2, A);
  nf_path(own.index_path, "own.index"), nf_path(own.data_path, "own.data");
  own = make(cache, "own", true, SIZE, A);
  nearfile_cache_close(cache);
  MUST(snprintf(control_path, sizeof control_path, "%s/cache/control", nf_dir) < (int)sizeof control_path);
  control = load(control_path);
  far_file *far_a = far_new(SIZE, A, PAGE), *far_b = far_new(SIZE, B, PAGE);
  long done = 0;
  for (; done < wanted && nf_failures == 0; done += 50) {
    pid_t child = nf_fork(600);
    if (child == 0) {
      seed = first + (uint64_t)done;
      for (int i = 0; i < 50; i++) one_mutant(far_a, far_b);
      nf_child_ends();
    }
    CHECK_CHILD(child);
    if (nf_failures != 0) fprintf(stderr, "  the last: %s\n", told);
  }
  if (nf_failures == 0) printf("%ld mutants: 0 wrong bytes, 0 crashes, 0 hangs\n", done);
  far_free(far_a), far_free(far_b);
}

static long wanted(void) {
  const char *count = getenv("NEARFILE_MUTANTS");
  return count == NULL ? 400 : atol(count);
}

static void on_disk(void) { mutants(wanted() / 20, 0); }

static void in_memory(void) {
  char dir[] = "/dev/shm/nearfile.XXXXXX", command[sizeof dir + 10];
  MUST(mkdtemp(dir) != NULL);
  snprintf(nf_dir, sizeof nf_dir, "%s", dir);
  mutants(wanted(), 1u << 30);
  snprintf(command, sizeof command, "rm -rf %s", dir);
  MUST(system(command) == 0);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(on_disk), NF_CASE(in_memory)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
