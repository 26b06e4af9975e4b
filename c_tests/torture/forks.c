// Guards that a handle of any kind opened before fork works in every child and grandchild, at whatever moment of the parent's other
// threads the fork falls: they read, drop, pin, prefetch, open, close and wait for a slow source all the while.
#include "torture.h"

#include "../nf_load.h"

enum { VERSION = 43, PAGE = 4096, SIZE = 50 * PAGE + 99, LOADS = 4, AT_ONCE = 6, WATCHDOG_S = 30 };

// ---- what the parent has open ------------------------------------------------------------------------------------------

static struct {
  nearfile_cache *cache;
  far_file *far, *slow_far;
  nearfile_file *keyed, *private, *exact, *frozen;
  nearfile_file *slow;  // always with a fetch under way in another thread
  nearfile_pin *pin, *copied_pin;
} parent;

static _Atomic uint64_t *grandchildren;

static nearfile_file *open_exact(void) {
  nearfile_source source = far_source(parent.far, FAR_AT_OPEN);
  nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .mode = NEARFILE_EXACT};
  nearfile_file *file = NULL;
  MUST(nearfile_open(parent.cache, &source, &options, &file) == 0);
  return file;
}

static void open_all(void) {
  parent.cache = nf_cache("cache", PAGE, 3 * PAGE, 0);
  parent.far = far_new(SIZE, VERSION, PAGE), parent.slow_far = far_new(SIZE, VERSION + 1, PAGE);
  parent.slow_far->delay_us = 500;
  parent.keyed = nf_open_far(parent.cache, parent.far, FAR_AT_OPEN, "keyed");
  parent.private = nf_open_far(parent.cache, parent.far, FAR_SEEK_OPEN, NULL);
  parent.exact = open_exact();
  parent.slow = nf_open_far(parent.cache, parent.slow_far, FAR_AT_OPEN, "slow");
  parent.frozen = nf_open_far(parent.cache, parent.far, FAR_AT_OPEN, "frozen");
  CHECK_ALL(parent.frozen, VERSION);
  CHECK_EQ(nearfile_freeze(parent.frozen), 0);
  CHECK_PREAD(parent.exact, 3 * PAGE, 100, VERSION);
  MUST(nearfile_pin_range(parent.keyed, 20 * PAGE + 5, 3 * PAGE, &parent.pin) == 0);
  MUST(nearfile_pin_range(parent.exact, 7 * PAGE + 5, 2 * PAGE, &parent.copied_pin) == 0);
}

static void close_all(void) {
  nearfile_pin_release(parent.pin);
  nearfile_pin_release(parent.copied_pin);
  nearfile_close(parent.keyed);
  nearfile_close(parent.private);
  nearfile_close(parent.exact);
  nearfile_close(parent.slow);
  nearfile_close(parent.frozen);
  CHECK_EQ(parent.far->releases, parent.far->sources);
  CHECK_EQ(parent.slow_far->releases, parent.slow_far->sources);
  CHECK_EQ(parent.far->offences + parent.slow_far->offences, 0);
  nearfile_cache_close(parent.cache);
}

// ---- what a child does ---------------------------------------------------------------------------------------------------

struct reader {
  const nearfile_file *file;
  uint64_t version, seed;
};

static void *read_ranges(void *argument) {
  struct reader *reader = argument;
  for (int i = 0; i < 10; i++) {
    CHECK_PREAD(reader->file, (size_t)nf_below(&reader->seed, 4 * PAGE), nf_below(&reader->seed, SIZE), reader->version);
  }
  return NULL;
}

static void read_by_two_threads(const nearfile_file *file, uint64_t seed) {
  struct reader readers[2] = {{file, VERSION, seed}, {file, VERSION, seed + 1}};
  pthread_t thread = nf_thread(read_ranges, &readers[0]);
  read_ranges(&readers[1]);
  nf_join(thread);
}

static void read_what_is_under_way(uint64_t seed) {
  struct reader reader = {parent.slow, VERSION + 1, seed};
  read_ranges(&reader);
}

static void check_pin(const nearfile_pin *pin, uint64_t at, size_t len) {
  MUST(nearfile_pin_size(pin) == len);
  CHECK_BYTES(nearfile_pin_data(pin), len, at, VERSION);
}

static void check_pins(uint64_t seed) {
  check_pin(parent.pin, 20 * PAGE + 5, 3 * PAGE);
  check_pin(parent.copied_pin, 7 * PAGE + 5, 2 * PAGE);
  nearfile_pin *mine = NULL;
  uint64_t at = nf_below(&seed, SIZE - 2 * PAGE);
  MUST(nearfile_pin_range(parent.keyed, at, 2 * PAGE, &mine) == 0);
  check_pin(mine, at, 2 * PAGE);
  nearfile_pin_release(mine);
}

static void open_and_close(uint64_t seed) {
  nearfile_file *same = nf_open_far(parent.cache, parent.far, FAR_AT_OPEN, "keyed");
  nearfile_file *other = nf_open_far(parent.cache, parent.far, FAR_AT_OPEN, seed % 2 ? "frozen" : "child's own");
  CHECK_PREAD(same, 3 * PAGE, nf_below(&seed, SIZE), VERSION);
  CHECK_PREAD(other, 3 * PAGE, nf_below(&seed, SIZE), VERSION);
  if (seed % 3 == 0) nearfile_close(parent.keyed);
  nearfile_close(same);
  nearfile_close(other);
  CHECK_PREAD(parent.private, 3 * PAGE, nf_below(&seed, SIZE), VERSION);
}

static void drop_and_prefetch(uint64_t seed) {
  uint64_t at = nf_below(&seed, SIZE);
  CHECK_EQ(nearfile_discard(parent.keyed, at, 8 * PAGE), 0);
  CHECK_EQ(nearfile_prefetch(parent.keyed, at, 8 * PAGE, 0, NULL, NULL), 0);
  CHECK_PREAD(parent.keyed, 8 * PAGE, at, VERSION);
}

static void read_exact_and_frozen(uint64_t seed) {
  CHECK_PREAD(parent.exact, 2 * PAGE, nf_below(&seed, SIZE), VERSION);
  CHECK_PREAD(parent.frozen, SIZE, 0, VERSION);
  nearfile_file *other = NULL;
  MUST(nearfile_dup(parent.keyed, &other) == 0);
  CHECK_PREAD(other, 2 * PAGE, nf_below(&seed, SIZE), VERSION);
  nearfile_close(other);
}

// A pin of this child's is inherited by its child and grandchild, and holds its pages until the last of the three lets go or ends.
struct heirs {
  atomic_int inherited, released, forked, end;
};

enum { PINNED = 5, PINNED_PAGES = 3 };

static bool is_pinned(const nearfile_file *file) {
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  return nf_walk(file) == PINNED_PAGES * PAGE && nf_is_cached(file, PINNED * PAGE);
}

static void grandchild_holds(struct heirs *heirs, nearfile_pin *pin) {
  atomic_store(&heirs->inherited, 1);
  NF_UNTIL(atomic_load(&heirs->released), 20000);
  check_pin(pin, PINNED * PAGE, PINNED_PAGES * PAGE);
  if (fork() == 0) {  // outlives its parent
    alarm(WATCHDOG_S);
    atomic_store(&heirs->forked, 1);
    NF_UNTIL(atomic_load(&heirs->end), 20000);
    check_pin(pin, PINNED * PAGE, PINNED_PAGES * PAGE);
    _exit(nf_failures != 0);
  }
  NF_UNTIL(atomic_load(&heirs->forked), 20000);
  nearfile_pin_release(pin);
  nf_child_ends();
}

static const char *generation = "child";  // of the same numbers, other keys: nobody else pins or drops there meanwhile

static void pass_a_pin_on(uint64_t number) {
  struct heirs *heirs = nf_shared(sizeof *heirs);
  char key[40];
  snprintf(key, sizeof key, "pinned %s %" PRIu64, generation, number % 100);
  nearfile_file *file = nf_open_far(parent.cache, parent.far, FAR_AT_OPEN, key);
  nearfile_pin *pin = NULL;
  CHECK_ALL(file, VERSION);
  MUST(nearfile_pin_range(file, PINNED * PAGE, PINNED_PAGES * PAGE, &pin) == 0);
  pid_t child = nf_fork(WATCHDOG_S);
  if (child == 0) grandchild_holds(heirs, pin);
  NF_UNTIL(atomic_load(&heirs->inherited), 20000);
  nearfile_pin_release(pin);
  CHECK(is_pinned(file));
  atomic_store(&heirs->released, 1);
  CHECK_CHILD(child);
  CHECK(is_pinned(file));
  atomic_store(&heirs->end, 1);
  NF_UNTIL(!is_pinned(file), 20000);
  CHECK(!is_pinned(file));
  nearfile_close(file);
  munmap(heirs, sizeof *heirs);
}

static void child_does(uint64_t number) {
  uint64_t seed = number;
  switch (number % 8) {
    case 7: pass_a_pin_on(number); break;
    case 0: read_by_two_threads(parent.keyed, seed); break;
    case 1: read_by_two_threads(parent.private, seed); break;
    case 2: read_what_is_under_way(seed); break;
    case 3: check_pins(seed); break;
    case 4: open_and_close(seed); break;
    case 5: drop_and_prefetch(seed); break;
    default: read_exact_and_frozen(seed); break;
  }
}

static void child(uint64_t number) {
  if (number % 5 == 0) {  // a child of two threads forks as well
    struct reader reader = {parent.keyed, VERSION, number};
    pthread_t thread = nf_thread(read_ranges, &reader);
    pid_t grandchild = nf_fork(WATCHDOG_S);
    if (grandchild == 0) {
      generation = "grandchild";
      child_does(number / 5);
      nf_child_ends();
    }
    atomic_fetch_add(grandchildren, 1);
    nf_join(thread);
    CHECK_CHILD(grandchild);
  }
  child_does(number);
  fflush(NULL);
  if (number % 3 == 0) exit(nf_failures != 0);
  _exit(nf_failures != 0);
}

// ---- the parent ------------------------------------------------------------------------------------------------------------

int main(int argc, char **argv) {
  torture_begin(argc, argv, "forks", 10000);
  grandchildren = nf_shared(sizeof *grandchildren);
  open_all();
  atomic_bool stop = false;
  struct nf_load loads[LOADS] = {{0}};
  for (int i = 0; i < LOADS; i++) {
    loads[i].seed = (uint64_t)i;
    if (i == 0) {
      nf_load_start(&loads[i], parent.cache, parent.slow, parent.slow_far, &stop);
    } else {
      nf_load_start(&loads[i], parent.cache, i == 1 ? parent.private : parent.keyed, parent.far, &stop);
    }
  }
  pid_t children[AT_ONCE] = {0};
  while (torture_goes_on()) {
    pid_t *slot = &children[torture.done % AT_ONCE];
    if (*slot != 0) CHECK_CHILD(*slot);
    *slot = nf_fork(WATCHDOG_S);
    if (*slot == 0) child(torture.done);
  }
  for (int i = 0; i < AT_ONCE; i++) {
    if (children[i] != 0) CHECK_CHILD(children[i]);
  }
  atomic_store(&stop, true);
  uint64_t operations = 0;
  for (int i = 0; i < LOADS; i++) {
    nf_join(loads[i].thread);
    operations += loads[i].operations;
  }
  CHECK_ALL(parent.keyed, VERSION);
  CHECK_ALL(parent.private, VERSION);
  CHECK_ALL(parent.slow, VERSION + 1);
  CHECK_EQ(nf_stats(parent.keyed).checksum_failures, 0);
  CHECK_EQ(nf_stats(parent.keyed).cached_bytes, SIZE);
  close_all();
  return torture_report("a fork each, and %" PRIu64 " children forked again, while %d threads did %" PRIu64
                        " operations; who hangs for %d s is found",
                        *grandchildren, LOADS, operations, WATCHDOG_S);
}
