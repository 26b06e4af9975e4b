// Guards that threads read each page of a cold file once and right, over one handle and over many, that a shared position hands
// out parts that follow each other, and that a hit never waits for another page's fetch.
#include "nf_test.h"

enum { VERSION = 5, THREADS = 16 };

struct reader {
  nearfile_cache *cache;
  nearfile_file *file;
  far_file *far;
  pthread_barrier_t *start;
  uint64_t seed;
};

// ---- once ----------------------------------------------------------------------------------------------------------------

static void *read_it_all(void *argument) {
  struct reader *reader = argument;
  pthread_barrier_wait(reader->start);
  bool own = reader->file == NULL;
  if (own) reader->file = nf_open_far(reader->cache, reader->far, FAR_AT_OPEN, "cold");
  uint64_t size = reader->far->size, order = nf_random(&reader->seed) % 3;
  for (uint64_t done = 0, step = 3000; done < size; done += step) {
    uint64_t at = order == 0 ? done : order == 1 ? size - (done + 1) / step * step - 1 : nf_below(&reader->seed, size);
    CHECK_PREAD(reader->file, (size_t)(1 + nf_below(&reader->seed, 9000)), at, VERSION);
  }
  CHECK_PREAD(reader->file, (size_t)size, 0, VERSION);
  if (own) nearfile_close(reader->file);
  return NULL;
}

static void check_once_over_threads(bool one_handle, uint64_t page_size, uint64_t max_fetch) {
  char name[40];
  snprintf(name, sizeof name, "cache-%d-%" PRIu64 "-%" PRIu64, one_handle, page_size, max_fetch);
  nearfile_cache *cache = nf_cache(name, page_size, max_fetch, 0);
  far_file *far = far_new(200000, VERSION, page_size);
  far->delay_us = 500;
  nearfile_file *file = one_handle ? nf_open_far(cache, far, FAR_AT_OPEN, "cold") : NULL;
  pthread_barrier_t start;
  pthread_barrier_init(&start, NULL, THREADS);
  pthread_t threads[THREADS];
  struct reader readers[THREADS];
  for (int i = 0; i < THREADS; i++) {
    readers[i] = (struct reader){cache, file, far, &start, (uint64_t)i};
    threads[i] = nf_thread(read_it_all, &readers[i]);
  }
  for (int i = 0; i < THREADS; i++) nf_join(threads[i]);
  CHECK_ONCE(far);
  if (one_handle) {
    nearfile_stats stats = nf_stats(file);
    CHECK_EQ(stats.pages_fetched, far_pages(far));
    CHECK_EQ(stats.passed_through, 0);
    CHECK_EQ(stats.checksum_failures, 0);
    CHECK_EQ(stats.bytes_asked, stats.bytes_served);
    CHECK(stats.hits > 0 && stats.misses > 0);
  }
  nearfile_close(file);
  CHECK_EQ(far->releases, one_handle ? 1 : THREADS);
  CHECK_EQ(far->opens, far->closes);
  CHECK_EQ(far->offences, 0);
  pthread_barrier_destroy(&start);
  far_free(far);
  nearfile_cache_close(cache);
}

static void once_over_one_handle(void) {
  check_once_over_threads(true, 4096, 0);
  check_once_over_threads(true, 1000, 3000);
  check_once_over_threads(true, 50000, 7000);  // pieces
}

static void once_over_separate_handles(void) {
  check_once_over_threads(false, 4096, 0);
  check_once_over_threads(false, 1000, 3000);
  check_once_over_threads(false, 50000, 7000);
}

// ---- one position --------------------------------------------------------------------------------------------------------

// The word number that nf_word turned into this word.
static uint64_t word_number(uint64_t word, uint64_t version) {
  uint64_t inverse[3] = {0x9E3779B97F4A7C15u, 0xBF58476D1CE4E5B9u, 0x94D049BB133111EBu};
  for (int i = 0; i < 3; i++) {
    uint64_t odd = inverse[i];
    for (int round = 0; round < 6; round++) inverse[i] *= 2 - odd * inverse[i];  // Newton, modulo 2^64
  }
  word ^= word >> 31 ^ word >> 62;
  word *= inverse[2];
  word ^= word >> 27 ^ word >> 54;
  word *= inverse[1];
  word ^= word >> 30 ^ word >> 60;
  return (word - 0x9E3779B97F4A7C15u - version * 0xD1B54A32D192ED03u) * inverse[0];
}

struct position_reader {
  nearfile_file *file;
  _Atomic uint8_t *taken;  // of each word, how often it was handed out
  uint64_t seed;
};

static void *read_in_turn(void *argument) {
  struct position_reader *reader = argument;
  unsigned char buf[4096];
  for (;;) {
    size_t len = 8 * (size_t)(1 + nf_below(&reader->seed, sizeof buf / 8));
    int64_t got = nearfile_read(reader->file, buf, len);
    MUST(got >= 0 && got <= (int64_t)len && got % 8 == 0);
    if (got == 0) return NULL;
    uint64_t first;
    memcpy(&first, buf, 8);
    uint64_t at = word_number(first, VERSION) * 8;
    MUST(at + (uint64_t)got <= (uint64_t)nearfile_size(reader->file));
    CHECK_BYTES(buf, (size_t)got, at, VERSION);
    CHECK(got == (int64_t)len || at + (uint64_t)got == (uint64_t)nearfile_size(reader->file));
    for (uint64_t word = at / 8; word < (at + (uint64_t)got) / 8; word++) atomic_fetch_add(&reader->taken[word], 1);
  }
}

static void one_position_of_many(void) {
  enum { SIZE = 800000 };
  CHECK_EQ(word_number(nf_word(12345, VERSION), VERSION), 12345);
  nearfile_cache *cache = nf_cache("cache", 4096, 0, 0);
  far_file *far = far_new(SIZE, VERSION, 4096);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, NULL);
  for (int round = 0; round < 2; round++) {  // cold, then warm
    _Atomic uint8_t *taken = calloc(SIZE / 8, 1);
    MUST(taken != NULL);
    CHECK_EQ(nearfile_seek(file, 0, NEARFILE_SEEK_SET), 0);
    pthread_t threads[THREADS];
    struct position_reader readers[THREADS];
    for (int i = 0; i < THREADS; i++) {
      readers[i] = (struct position_reader){file, taken, (uint64_t)(i + 100 * round)};
      threads[i] = nf_thread(read_in_turn, &readers[i]);
    }
    for (int i = 0; i < THREADS; i++) nf_join(threads[i]);
    uint64_t wrong = 0;
    for (size_t word = 0; word < SIZE / 8; word++) wrong += taken[word] != 1;
    CHECK_EQ(wrong, 0);
    CHECK_EQ(nearfile_tell(file), SIZE);
    free((void *)taken);
  }
  CHECK_ONCE(far);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- nobody waits who need not -------------------------------------------------------------------------------------------

enum { PAGE = 4096 };

struct gate {
  atomic_int arrived, open;
  uint64_t page;     // reads of it wait at the gate
  int others;        // reads that must have arrived before any goes on
  atomic_int late;
};

static int32_t wait_at_gate(far_file *far, uint64_t offset, size_t len) {
  struct gate *gate = far->hook_data;
  if (offset > gate->page * PAGE || offset + len <= gate->page * PAGE) return 0;
  atomic_fetch_add(&gate->arrived, 1);
  NF_UNTIL(atomic_load(&gate->open), 20000);
  if (!atomic_load(&gate->open)) atomic_store(&gate->late, 1);
  return 0;
}

static void *read_page_3(void *argument) {
  CHECK_PREAD(argument, 100, 3 * PAGE, VERSION);
  return NULL;
}

// Hits, and misses of other pages, go on while a page is being fetched, on the same handle and on another.
static void a_hit_does_not_wait_for_a_miss(void) {
  for (int kind = FAR_AT; kind <= FAR_SEEK_OPEN; kind++) {
    nearfile_cache *cache = nf_cache(kind % 2 ? "a" : "b", PAGE, 0, 0);
    far_file *far = far_new(20 * PAGE, VERSION, PAGE);
    struct gate gate = {.page = 3};
    nearfile_file *file = nf_open_far(cache, far, (enum far_kind)kind, "gate"), *twin = nf_open_far(cache, far, FAR_AT, "gate");
    CHECK_EQ(nearfile_discard(file, 0, UINT64_MAX), 0);
    CHECK_PREAD(file, 3 * PAGE, 0, VERSION);
    CHECK_PREAD(file, PAGE, 4 * PAGE, VERSION);
    far->hook = wait_at_gate, far->hook_data = &gate;
    pthread_t fetcher = nf_thread(read_page_3, file);
    NF_UNTIL(gate.arrived == 1, 10000);
    CHECK_EQ(gate.arrived, 1);
    uint64_t seed = 1;
    for (int i = 0; i < 1000; i++) {
      CHECK_PREAD(i % 2 ? file : twin, 64, i % 3 == 0 ? 4 * PAGE + nf_below(&seed, PAGE - 64) : nf_below(&seed, 3 * PAGE - 64), VERSION);
    }
    CHECK(nf_is_cached(file, 0) && !nf_is_cached(file, 3 * PAGE));
    CHECK_EQ(nearfile_discard(file, 0, PAGE), 0);         // as do drops, of pages that nobody fetches
    CHECK_EQ(nearfile_discard(file, 3 * PAGE, PAGE), 0);  // this one is passed by
    CHECK_PREAD(twin, 10, 10 * PAGE, VERSION);            // a miss of another page, with a connection of its own
    CHECK_EQ(nf_stats(file).cached_pages, 4);
    atomic_store(&gate.open, 1);
    nf_join(fetcher);
    CHECK_EQ(gate.late, 0);
    CHECK(nf_is_cached(file, 3 * PAGE));
    CHECK_EQ(gate.arrived, 1);
    nearfile_close(twin);
    nearfile_close(file);
    CHECK_EQ(far->offences, 0);
    far_free(far);
    nearfile_cache_close(cache);
  }
}

static int32_t meet(far_file *far, uint64_t offset, size_t len) {
  struct gate *gate = far->hook_data;
  (void)offset, (void)len;
  atomic_fetch_add(&gate->arrived, 1);
  NF_UNTIL(atomic_load(&gate->arrived) >= gate->others, 20000);
  if (atomic_load(&gate->arrived) < gate->others) atomic_store(&gate->late, 1);
  return 0;
}

struct page_reader {
  nearfile_file *file;
  uint64_t page;
};

static void *read_a_page(void *argument) {
  struct page_reader *reader = argument;
  CHECK_PREAD(reader->file, 50, reader->page * PAGE + 7, VERSION);
  return NULL;
}

// Different pages are fetched in parallel: eight reads of the source that go on only when all eight are there.
static void pages_are_fetched_in_parallel(void) {
  for (int kind = FAR_AT; kind <= FAR_AT_OPEN; kind++) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    far_file *far = far_new(20 * PAGE, VERSION, PAGE);
    struct gate gate = {.others = 8};
    far->hook = meet, far->hook_data = &gate;
    nearfile_file *file = nf_open_far(cache, far, (enum far_kind)kind, NULL);
    pthread_t threads[8];
    struct page_reader readers[8];
    for (uint64_t i = 0; i < 8; i++) {
      readers[i] = (struct page_reader){file, 2 * i};
      threads[i] = nf_thread(read_a_page, &readers[i]);
    }
    for (int i = 0; i < 8; i++) nf_join(threads[i]);
    CHECK_EQ(gate.late, 0);
    CHECK_EQ(far->reads, 8);
    nearfile_close(file);
    far_free(far);
    nearfile_cache_close(cache);
  }
}

// ---- one fails, the others try themselves --------------------------------------------------------------------------------

static int32_t first_fails_late(far_file *far, uint64_t offset, size_t len) {
  struct gate *gate = far->hook_data;
  (void)offset, (void)len;
  if (atomic_fetch_add(&gate->arrived, 1) != 0) return 0;
  NF_UNTIL(atomic_load(&gate->open), 20000);
  nf_sleep_us(20000);  // the others wait by now
  return 500;
}

struct outcome {
  nearfile_file *file;
  atomic_int failed, right;
};

static void *read_or_fail(void *argument) {
  struct outcome *outcome = argument;
  unsigned char buf[100];
  int64_t got = nearfile_pread(outcome->file, buf, sizeof buf, 5 * PAGE);
  if (got == NEARFILE_ERROR_SOURCE) {
    CHECK_EQ(nf_last_error().source_code, 500);
    atomic_fetch_add(&outcome->failed, 1);
  } else {
    CHECK_EQ(got, sizeof buf);
    CHECK_BYTES(buf, sizeof buf, 5 * PAGE, VERSION);
    atomic_fetch_add(&outcome->right, 1);
  }
  return NULL;
}

static void a_failed_fetch_fails_its_own_read_only(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(20 * PAGE, VERSION, PAGE);
  struct gate gate = {0};
  far->hook = first_fails_late, far->hook_data = &gate;
  struct outcome outcome = {.file = nf_open_far(cache, far, FAR_AT, NULL)};
  pthread_t threads[8];
  threads[0] = nf_thread(read_or_fail, &outcome);
  NF_UNTIL(gate.arrived == 1, 10000);
  for (int i = 1; i < 8; i++) threads[i] = nf_thread(read_or_fail, &outcome);
  atomic_store(&gate.open, 1);
  int64_t began = nf_now_ms();
  for (int i = 0; i < 8; i++) nf_join(threads[i]);
  CHECK(nf_now_ms() - began < 5000);
  CHECK_EQ(outcome.failed, 1);
  CHECK_EQ(outcome.right, 7);
  CHECK_EQ(far->reads, 2);  // the one that failed, and one for all the rest
  CHECK_EQ(nf_stats(outcome.file).passed_through, 0);
  nearfile_close(outcome.file);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- all at once ---------------------------------------------------------------------------------------------------------

struct mixer {
  nearfile_cache *cache;
  nearfile_file *file;
  far_file *far;
  uint64_t seed;
};

static void *mix(void *argument) {
  struct mixer *mixer = argument;
  nearfile_file *mine = NULL;
  MUST(nearfile_dup(mixer->file, &mine) == 0);
  for (int i = 0; i < 300; i++) {
    uint64_t at = nf_below(&mixer->seed, mixer->far->size);
    switch (nf_below(&mixer->seed, 12)) {
      case 0: CHECK_EQ(nearfile_discard(mine, at, nf_below(&mixer->seed, 10 * PAGE)), 0); break;
      case 1: {
        nearfile_file *other = nf_open_far(mixer->cache, mixer->far, FAR_AT_OPEN, "mixed");
        CHECK_PREAD(other, 5000, at, VERSION);
        nearfile_close(other);
        break;
      }
      case 2: nearfile_close(mine); MUST(nearfile_dup(mixer->file, &mine) == 0); break;
      case 3: nf_is_cached(mine, at); nf_stats(mine); break;
      case 4: {
        nearfile_stats stats = {.struct_size = sizeof stats};
        CHECK_EQ(nearfile_cache_get_stats(mixer->cache, &stats), 0);
        break;
      }
      default: CHECK_PREAD(mine, (size_t)nf_below(&mixer->seed, 3 * PAGE), at, VERSION);
    }
  }
  nearfile_close(mine);
  return NULL;
}

// Reads, drops, opens, closes and counts of one file by all threads: every byte right, every handle closed once.
static void everything_at_once(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 3 * PAGE, 0);
  far_file *far = far_new(60 * PAGE + 100, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT_OPEN, "mixed");
  pthread_t threads[THREADS];
  struct mixer mixers[THREADS];
  for (int i = 0; i < THREADS; i++) {
    mixers[i] = (struct mixer){cache, file, far, (uint64_t)i};
    threads[i] = nf_thread(mix, &mixers[i]);
  }
  for (int i = 0; i < THREADS; i++) nf_join(threads[i]);
  CHECK_EQ(nf_stats(file).checksum_failures, 0);
  CHECK_EQ(nf_stats(file).cached_bytes, nf_walk(file));
  nearfile_close(file);
  CHECK_EQ(far->opens, far->closes);
  CHECK_EQ(far->offences, 0);
  far_free(far);
  nearfile_cache_close(cache);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(once_over_one_handle), NF_CASE(once_over_separate_handles),
                                         NF_CASE(one_position_of_many), NF_CASE(a_hit_does_not_wait_for_a_miss),
                                         NF_CASE(pages_are_fetched_in_parallel), NF_CASE(a_failed_fetch_fails_its_own_read_only),
                                         NF_CASE(everything_at_once)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
