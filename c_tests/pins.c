// Guards pins: their bytes are right for as long as they are held, whatever any process drops, removes, trims or evicts meanwhile; a
// page goes again when the pin is released or its process dies; and where a pin cannot be the mirror's own it is a copy that is right.
#include "nf_test.h"

#include "nf_budget.h"

enum { PAGE = 16 << 10, PAGES = 64, SIZE = PAGES * PAGE + 321, VERSION = 4 };

static nearfile_pin *pin(const nearfile_file *file, uint64_t offset, size_t len) {
  nearfile_pin *made = NULL;
  CHECK_EQ(nearfile_pin_range(file, offset, len, &made), 0);
  MUST(made != NULL);
  return made;
}

static void check_pin(const char *at, int line, const nearfile_pin *held, uint64_t offset, size_t len, uint64_t version) {
  nf_equal(at, line, "nearfile_pin_size", "expected size", (long long)nearfile_pin_size(held), (long long)len);
  if (len == 0) return;
  const void *data = nearfile_pin_data(held);
  MUST(data != NULL);
  nf_check_bytes(at, line, data, len, offset, version);
}
#define CHECK_PIN(held, offset, len) check_pin(__FILE__, __LINE__, held, offset, len, VERSION)

// Whether an address lies in a map of a file whose path has this in it; told by the kernel.
static bool is_map_of(const void *data, const char *part) {
  FILE *maps = fopen("/proc/self/maps", "r");
  MUST(maps != NULL);
  char line[NF_PATH + 200];
  bool found = false;
  while (fgets(line, sizeof line, maps) != NULL) {
    unsigned long long from, to;
    if (sscanf(line, "%llx-%llx", &from, &to) != 2) continue;
    if ((uintptr_t)data >= from && (uintptr_t)data < to) found = strstr(line, part) != NULL;
  }
  fclose(maps);
  return found;
}

// Drops what can be dropped, from another process and in every way there is. Several rounds, as a way may find another at it.
static void drop_everything(const char *key, bool remove) {
  pid_t child = nf_fork(60);
  if (child == 0) {
    nearfile_cache *cache = nf_limited("cache", PAGE, 0, NEARFILE_FULL_EVICT);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, key);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_EQ(nearfile_cache_trim(cache, 0), 0);
    if (remove) CHECK_EQ(nearfile_cache_remove(cache, key), 0);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

// ---- what a pin is -------------------------------------------------------------------------------------------------------

static void pins_equal_the_bytes(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  static const struct { uint64_t offset; size_t asked, expected; } ranges[] = {
      {0, PAGE, PAGE}, {0, 1, 1}, {1, 1, 1}, {PAGE - 1, 2, 2}, {5, 10 * PAGE, 10 * PAGE}, {7 * PAGE + 4095, 4098, 4098},
      {SIZE - 1, 1, 1}, {SIZE - 1, 100, 1}, {SIZE - 400, 10000, 400}, {0, SIZE, SIZE}, {0, SIZE_MAX, SIZE}, {3, SIZE_MAX, SIZE - 3},
      {0, 0, 0}, {PAGE, 0, 0}, {SIZE, 0, 0}, {SIZE, 10, 0}, {SIZE + 1, 10, 0}, {UINT64_MAX, 10, 0}, {UINT64_MAX, SIZE_MAX, 0}};
  for (int warm = 0; warm < 2; warm++) {
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
      if (!warm) CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
      if (!warm) CHECK_EQ(nf_walk(file), 0);
      far_forget(far);
      nearfile_pin *held = pin(file, ranges[i].offset, ranges[i].asked);
      CHECK_PIN(held, ranges[i].offset, ranges[i].expected);
      // On ext4 it is the mirror itself.
      if (ranges[i].expected > 0) CHECK(is_map_of(nearfile_pin_data(held), ".data"));
      if (warm || ranges[i].expected == 0) CHECK_EQ(far->reads, 0);
      if (!warm && ranges[i].expected > 0) CHECK(far->reads > 0);
      nearfile_pin_release(held);
      if (!warm && i == sizeof ranges / sizeof *ranges - 1) CHECK_ALL(file, VERSION);
    }
  }
  uint64_t seed = 1;
  for (int n = 0; n < 500; n++) {
    uint64_t offset = nf_below(&seed, SIZE);
    size_t asked = (size_t)nf_below(&seed, 6 * PAGE), left = (size_t)(SIZE - offset);
    if (n % 7 == 0) CHECK_EQ(nearfile_discard(file, nf_below(&seed, SIZE), 9 * PAGE), 0);
    nearfile_pin *held = pin(file, offset, asked);
    CHECK_PIN(held, offset, asked < left ? asked : left);
    nearfile_pin_release(held);
  }
  CHECK_EQ(nf_stats(file).checksum_failures, 0);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

static int32_t gone(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  return 404;
}

static void pins_that_cannot_be(void) {
  CHECK(nearfile_pin_data(NULL) == NULL);
  CHECK_EQ(nearfile_pin_size(NULL), 0);
  nearfile_pin_release(NULL);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  CHECK_PREAD(file, PAGE, 0, VERSION);
  far->hook = gone;
  nearfile_pin *held = (nearfile_pin *)far;
  CHECK_EQ(nearfile_pin_range(file, 0, 2 * PAGE, &held), NEARFILE_ERROR_SOURCE);
  CHECK(held == NULL);
  CHECK_EQ(nf_last_error().source_code, 404);
  held = (nearfile_pin *)far;
  CHECK_EQ(nearfile_pin_range(NULL, 0, 1, &held), NEARFILE_ERROR_ARGUMENT);
  CHECK(held == NULL);
  CHECK_EQ(nearfile_pin_range(file, 0, 1, NULL), NEARFILE_ERROR_ARGUMENT);
  held = pin(file, 5, PAGE - 5);  // what is there can be pinned
  CHECK_PIN(held, 5, PAGE - 5);
  CHECK_EQ(nearfile_freeze(file), 0);
  nearfile_pin *missing = NULL;
  CHECK_EQ(nearfile_pin_range(file, PAGE, 1, &missing), NEARFILE_ERROR_FROZEN);
  CHECK(missing == NULL);
  nearfile_pin *frozen = pin(file, 0, PAGE);
  CHECK_PIN(frozen, 0, PAGE);
  nearfile_pin_release(frozen);
  nearfile_pin_release(held);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- pins against those who drop -------------------------------------------------------------------------------------------

static void a_pin_holds_and_is_released(void) {
  for (int remove = 0; remove < 2; remove++) {
    size_t before = nf_enter(remove ? "remove" : "drop");
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
    CHECK_ALL(file, VERSION);
    nearfile_pin *held = pin(file, 3 * PAGE + 7, 2 * PAGE);  // pages 3 to 5
    CHECK(is_map_of(nearfile_pin_data(held), ".data"));
    drop_everything("file", remove);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);  // this process's own, too
    CHECK_PIN(held, 3 * PAGE + 7, 2 * PAGE);
    CHECK_EQ(nf_walk(file), 3 * PAGE);
    for (uint64_t page = 0; page < PAGES; page++) CHECK_EQ(nf_is_cached(file, page * PAGE), page >= 3 && page <= 5);
    far_forget(far);
    CHECK_PREAD(file, 3 * PAGE, 3 * PAGE, VERSION);
    CHECK_EQ(far->reads, 0);
    nearfile_pin_release(held);
    CHECK_EQ(nf_walk(file), 3 * PAGE);
    drop_everything("file", false);
    CHECK_EQ(nf_walk(file), 0);
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
    far_free(far);
    nearfile_cache_close(cache);
    nf_leave(before);
  }
}

static void overlapping_pins_are_independent(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file"), *other = NULL;
  CHECK_EQ(nearfile_dup(file, &other), 0);
  enum { PINS = 40 };
  struct { nearfile_pin *held; uint64_t offset; size_t len; } pins[PINS] = {0};
  uint64_t seed = 12;
  for (int n = 0; n < 600; n++) {
    int i = (int)nf_below(&seed, PINS);
    if (pins[i].held != NULL) {
      CHECK_PIN(pins[i].held, pins[i].offset, pins[i].len);
      nearfile_pin_release(pins[i].held);
      pins[i].held = NULL;
    } else {
      pins[i].offset = nf_below(&seed, SIZE - 5 * PAGE);
      pins[i].len = 1 + (size_t)nf_below(&seed, 5 * PAGE);
      pins[i].held = pin(n % 2 ? file : other, pins[i].offset, pins[i].len);
    }
    if (n % 3 == 0) CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    if (n % 30 == 0) {
      // Exactly the pages of some pin are left.
      CHECK_EQ(nearfile_discard(other, 0, SIZE), 0);
      for (uint64_t page = 0; page <= PAGES; page++) {
        bool pinned = false;
        for (int p = 0; p < PINS; p++) {
          pinned = pinned || (pins[p].held != NULL && pins[p].offset < (page + 1) * PAGE && pins[p].offset + pins[p].len > page * PAGE);
        }
        CHECK_EQ(nf_is_cached(file, page * PAGE), pinned);
      }
    }
  }
  for (int i = 0; i < PINS; i++) {
    if (pins[i].held != NULL) CHECK_PIN(pins[i].held, pins[i].offset, pins[i].len);
    nearfile_pin_release(pins[i].held);
  }
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_EQ(nf_walk(file), 0);
  nearfile_close(file);
  nearfile_close(other);
  far_free(far);
  nearfile_cache_close(cache);
}

static void a_pin_outlives_its_file(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  for (int private = 0; private < 2; private++) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, private ? NULL : "file");
    nearfile_pin *held = pin(file, PAGE + 5, 3 * PAGE), *other = pin(file, 0, SIZE);
    uint64_t releases = far->releases;
    nearfile_close(file);
    nearfile_cache_close(cache);
    if (!private) drop_everything("file", true);
    CHECK_PIN(held, PAGE + 5, 3 * PAGE);
    CHECK_PIN(other, 0, SIZE);
    nearfile_pin_release(held);
    CHECK_PIN(other, 0, SIZE);
    nearfile_pin_release(other);
    CHECK_EQ(far->releases, releases + 1);
  }
  CHECK_EQ(far->opens, far->closes);
  // Nothing of it stands in a later session's way.
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_EQ(nf_walk(file), 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

static void pins_die_with_their_process(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  for (int inherited = 0; inherited < 2; inherited++) {
    CHECK_ALL(file, VERSION);
    atomic_int *ready = nf_shared(sizeof *ready);
    pid_t child = nf_fork(60);
    if (child == 0) {
      nearfile_cache *own = inherited ? NULL : nf_cache("cache", PAGE, 0, 0);
      nearfile_file *mine = inherited ? file : nf_open_far(own, far, FAR_AT_OPEN, "file");
      nearfile_pin *held = pin(mine, 10 * PAGE, 5 * PAGE);
      CHECK_PIN(held, 10 * PAGE, 5 * PAGE);
      atomic_store(ready, nf_failures == 0 ? 1 : 2);
      for (;;) pause();
    }
    NF_UNTIL(*ready != 0, 20000);
    CHECK_EQ(*ready, 1);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_EQ(nf_walk(file), 5 * PAGE);
    kill(child, SIGKILL);
    int status = 0;
    MUST(waitpid(child, &status, 0) == child);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_EQ(nf_walk(file), 0);
    munmap(ready, sizeof *ready);
  }
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// A child holds its parent's pins for itself until it releases them or ends, whatever the parent does; it pins for itself, too.
static void pins_and_forks(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "file");
  nearfile_pin *held = pin(file, 2 * PAGE, PAGE), *brief = pin(file, 20 * PAGE, PAGE);
  atomic_int *step = nf_shared(sizeof *step);
  pid_t child = nf_fork(60);
  if (child == 0) {
    pid_t grandchild = nf_fork(60);
    if (grandchild == 0) {
      NF_UNTIL(*step == 1, 20000);
      CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
      CHECK_PIN(brief, 20 * PAGE, PAGE);
      nf_child_ends();
    }
    NF_UNTIL(*step == 1, 20000);  // the parent has released `brief`
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_PIN(brief, 20 * PAGE, PAGE);
    CHECK_PIN(held, 2 * PAGE, PAGE);
    CHECK_CHILD(grandchild);
    nearfile_pin_release(brief);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_EQ(nf_is_cached(file, 20 * PAGE), 0);
    nearfile_pin_release(held);  // the parent's own stays
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_EQ(nf_is_cached(file, 2 * PAGE), 1);
    nearfile_pin *own = pin(file, 30 * PAGE + 1, PAGE);
    CHECK_PIN(own, 30 * PAGE + 1, PAGE);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_PIN(own, 30 * PAGE + 1, PAGE);
    CHECK_EQ(nf_walk(file), 3 * PAGE);
    atomic_store(step, 2);
    NF_UNTIL(*step == 3, 20000);
    nearfile_pin_release(own);
    nf_child_ends();
  }
  nearfile_pin_release(brief);
  atomic_store(step, 1);
  NF_UNTIL(*step == 2, 20000);
  CHECK_EQ(*step, 2);
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_EQ(nf_walk(file), 3 * PAGE);  // the child's two pages, and this one's
  atomic_store(step, 3);
  CHECK_CHILD(child);
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_EQ(nf_walk(file), PAGE);
  CHECK_PIN(held, 2 * PAGE, PAGE);
  nearfile_pin_release(held);
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_EQ(nf_walk(file), 0);
  nearfile_close(file);
  munmap(step, sizeof *step);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- churn -----------------------------------------------------------------------------------------------------------------

enum { CHURN_MS = 3000 };

static void pin_and_look(int64_t until, far_file *far, uint64_t seed, _Atomic uint64_t *count) {
  nearfile_cache *cache = nf_limited("cache", PAGE, 40 * PAGE, NEARFILE_FULL_EVICT);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "file");
  enum { PINS = 6 };
  struct { nearfile_pin *held; uint64_t offset; size_t len; } pins[PINS] = {0};
  while (nf_now_ms() < until && nf_failures < 3) {
    for (int i = 0; i < PINS; i++) {
      if (pins[i].held != NULL) {
        CHECK_PIN(pins[i].held, pins[i].offset, pins[i].len);
        if (nf_below(&seed, 3) != 0) continue;
        nearfile_pin_release(pins[i].held);
      }
      pins[i].offset = nf_below(&seed, SIZE - 3 * PAGE);
      pins[i].len = 1 + (size_t)nf_below(&seed, 3 * PAGE);
      pins[i].held = pin(file, pins[i].offset, pins[i].len);
      CHECK_PIN(pins[i].held, pins[i].offset, pins[i].len);
      atomic_fetch_add(count, 1);
    }
  }
  for (int i = 0; i < PINS; i++) {
    if (pins[i].held != NULL) CHECK_PIN(pins[i].held, pins[i].offset, pins[i].len);
    nearfile_pin_release(pins[i].held);
  }
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void churn(int64_t until, far_file *far, far_file *other, uint64_t seed, _Atomic uint64_t *count) {
  nearfile_cache *cache = nf_limited("cache", PAGE, 40 * PAGE, NEARFILE_FULL_EVICT);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "file"), *cold = nf_open_far(cache, other, FAR_AT, "cold");
  while (nf_now_ms() < until && nf_failures < 3) {
    switch (nf_below(&seed, 6)) {
      case 0: CHECK_EQ(nearfile_cache_trim(cache, 0), 0); break;
      case 1: CHECK_EQ(nearfile_cache_remove(cache, "file"), 0); break;
      case 2: CHECK_PREAD(cold, 4 * PAGE, nf_below(&seed, SIZE), VERSION + 1); break;
      case 3: CHECK_PREAD(file, 4 * PAGE, nf_below(&seed, SIZE), VERSION); break;
      default: CHECK_EQ(nearfile_discard(file, nf_below(&seed, SIZE), nf_below(&seed, 20 * PAGE)), 0);
    }
    atomic_fetch_add(count, 1);
  }
  nearfile_close(file);
  nearfile_close(cold);
  nearfile_cache_close(cache);
}

static void pins_under_churn(bool tmpfs) {
  int64_t until = nf_now_ms() + CHURN_MS;
  far_file *far = far_new(SIZE, VERSION, PAGE), *other = far_new(SIZE, VERSION + 1, PAGE);
  _Atomic uint64_t *counts = nf_shared(2 * sizeof *counts);
  if (tmpfs) nf_mount_tmpfs(nf_dir, 16 << 20);
  pid_t children[4];
  for (int p = 0; p < 4; p++) {
    children[p] = nf_fork(60);
    if (children[p] != 0) continue;
    if (p < 2) {
      pin_and_look(until, far, (uint64_t)p, &counts[0]);
    } else {
      churn(until, far, other, (uint64_t)p, &counts[1]);
    }
    nf_child_ends();
  }
  for (int p = 0; p < 4; p++) CHECK_CHILD(children[p]);
  printf("  %" PRIu64 " pins under %" PRIu64 " droppings\n", counts[0], counts[1]);
  CHECK(counts[0] > 100 && counts[1] > 100);
  CHECK_EQ(far->offences + other->offences, 0);
  if (tmpfs) nf_unmount(nf_dir);
  munmap((void *)counts, 2 * sizeof *counts);
  far_free(far);
  far_free(other);
}

static void pins_stay_right_under_churn(void) { pins_under_churn(false); }
static void pins_stay_right_under_churn_on_tmpfs(void) { pins_under_churn(true); }

// All that the limit allows is pinned: others are served all the same, at once.
static void nothing_can_be_evicted(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE), *other = far_new(SIZE, VERSION + 1, PAGE);
  nearfile_cache *cache = nf_limited("cache", PAGE, 20 * PAGE, NEARFILE_FULL_EVICT);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file"), *cold = nf_open_far(cache, other, FAR_AT, "cold");
  CHECK_PREAD(file, 20 * PAGE, 0, VERSION);
  for (uint64_t page = 0; page < 20; page++) {
    for (int n = 0; n < 8 && !nf_is_cached(file, page * PAGE); n++) CHECK_PREAD(file, 1, page * PAGE, VERSION);
  }
  uint64_t there = nf_walk(file);
  CHECK(there >= 18 * PAGE);
  nearfile_pin *held = pin(file, 0, 20 * PAGE);  // mapped, or a copy if a page could not be kept
  CHECK_PIN(held, 0, 20 * PAGE);
  int64_t began = nf_now_ms();
  for (int n = 0; n < 5; n++) CHECK_ALL(cold, VERSION + 1);
  CHECK_ALL(file, VERSION);
  CHECK(nf_now_ms() - began < 5000);
  CHECK_PIN(held, 0, 20 * PAGE);
  CHECK(nf_cache_stats(cache).cached_bytes <= 20 * PAGE);
  if (is_map_of(nearfile_pin_data(held), ".data")) CHECK_EQ(nf_walk(file), 20 * PAGE);
  // More than the limit pinned at once is a copy, and right.
  nearfile_pin *whole = pin(file, 0, SIZE);
  CHECK_PIN(whole, 0, SIZE);
  nearfile_pin_release(whole);
  nearfile_pin_release(held);
  nearfile_close(file);
  nearfile_close(cold);
  nearfile_cache_close(cache);
  far_free(far);
  far_free(other);
}

// ---- copies --------------------------------------------------------------------------------------------------------------

static void a_pin_on_tmpfs_is_a_copy(void) {
  nf_mount_tmpfs(nf_dir, 16 << 20);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  nearfile_pin *held = pin(file, PAGE - 9, 4 * PAGE), *end = pin(file, SIZE - 10, 100);
  CHECK(!is_map_of(nearfile_pin_data(held), ".data"));
  CHECK_PIN(held, PAGE - 9, 4 * PAGE);
  CHECK_PIN(end, SIZE - 10, 10);
  CHECK(nf_walk(file) >= 5 * PAGE);  // what was read for it is kept as ever
  drop_everything("file", true);
  CHECK_PIN(held, PAGE - 9, 4 * PAGE);
  CHECK_PIN(end, SIZE - 10, 10);
  nearfile_close(file);
  nearfile_cache_close(cache);
  CHECK_PIN(held, PAGE - 9, 4 * PAGE);
  nearfile_pin_release(held);
  nearfile_pin_release(end);
  far_free(far);
  nf_unmount(nf_dir);
}

static void a_pin_in_exact_mode_is_a_copy(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .mode = NEARFILE_EXACT};
  nearfile_file *file = NULL;
  MUST(nearfile_open(cache, &source, &options, &file) == 0);
  nearfile_pin *held = pin(file, 1001, 5000), *end = pin(file, SIZE - 10, 100), *none = pin(file, SIZE, 5);
  CHECK_EQ(far->bytes, 5010);
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_PIN(held, 1001, 5000);
  CHECK_PIN(end, SIZE - 10, 10);
  CHECK_PIN(none, SIZE, 0);
  CHECK_EQ(nf_walk(file), 0);
  nearfile_pin *again = pin(file, 1001, 5000);
  CHECK_EQ(far->bytes, 10010);
  nearfile_close(file);
  nearfile_cache_close(cache);
  CHECK_PIN(held, 1001, 5000);
  CHECK_PIN(again, 1001, 5000);
  nearfile_pin_release(held);
  nearfile_pin_release(end);
  nearfile_pin_release(none);
  nearfile_pin_release(again);
  far_free(far);
}

// Damage under a pin that is asked for is found before it is given out.
static void a_damaged_page_is_not_pinned(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "file");
  CHECK_ALL(file, VERSION);
  char path[NF_PATH];
  MUST(snprintf(path, sizeof path, "%s", nearfile_data_path(file)) < NF_PATH);
  nearfile_close(file);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  MUST(fd >= 0);
  for (uint64_t page = 0; page < PAGES; page += 3) {
    unsigned char wrong = (unsigned char)~nf_byte(page * PAGE + 77, VERSION);
    MUST(pwrite(fd, &wrong, 1, (off_t)(page * PAGE + 77)) == 1);
  }
  close(fd);
  file = nf_open_far(cache, far, FAR_AT, "file");
  far_forget(far);
  for (uint64_t page = 0; page + 2 <= PAGES; page += 2) {
    nearfile_pin *held = pin(file, page * PAGE, 2 * PAGE);
    CHECK_PIN(held, page * PAGE, 2 * PAGE);
    nearfile_pin_release(held);
  }
  CHECK_EQ(nf_stats(file).checksum_failures, (PAGES + 2) / 3);
  CHECK_EQ(far->bytes, (PAGES + 2) / 3 * PAGE);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

int main(int argc, char **argv) {
  nf_own_mounts();
  static const struct nf_case cases[] = {NF_CASE(pins_equal_the_bytes), NF_CASE(pins_that_cannot_be),
                                         NF_CASE(a_pin_holds_and_is_released), NF_CASE(overlapping_pins_are_independent),
                                         NF_CASE(a_pin_outlives_its_file), NF_CASE(pins_die_with_their_process),
                                         NF_CASE(pins_and_forks), NF_CASE(pins_stay_right_under_churn),
                                         NF_CASE(pins_stay_right_under_churn_on_tmpfs), NF_CASE(nothing_can_be_evicted),
                                         NF_CASE(a_pin_on_tmpfs_is_a_copy), NF_CASE(a_pin_in_exact_mode_is_a_copy),
                                         NF_CASE(a_damaged_page_is_not_pinned)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
