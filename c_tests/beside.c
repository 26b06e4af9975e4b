// Guards what the library's threads owe to the rest: they stop where a handle is frozen, at a source that fails and where they have
// nothing to give, and one that is stuck in a callback holds a reader no longer than any other holder of a page does.
#include "nf_test.h"

enum { PAGE = 64 << 10, PAGES = 128, SIZE = PAGES * PAGE, VERSION = 23, SLOW_US = 4000 };

static nearfile_file *open_slow(nearfile_cache *cache, far_file *far, const char *key) {
  far->delay_us = SLOW_US;
  return nf_open_far(cache, far, FAR_AT_OPEN, key);
}

// Hits of a frozen handle that come into what would be read on ahead: the source is not touched.
static void a_frozen_handle_reads_nothing_ahead(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 8 * PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key");
  uint64_t at = 0;
  for (; far->most_inside < 2 && at < SIZE / 2; at += PAGE) CHECK_PREAD(file, PAGE, at, VERSION);
  CHECK(far->most_inside > 1);
  CHECK_EQ(nearfile_freeze(file), 0);
  NF_UNTIL(far->inside == 0, 20000);
  nf_sleep_us(50000);
  uint64_t reads = far->reads;
  int hits = 0;
  for (; at < SIZE; at += PAGE) {
    if (!nf_is_cached(file, at)) continue;
    CHECK_PREAD(file, PAGE, at, VERSION);
    hits++;
  }
  CHECK(hits > 0);
  nf_sleep_us(50000);
  CHECK_EQ(far->reads, reads);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

static pthread_t reader;
static _Atomic int stuck, let_go;

static int32_t sticks_beside(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  if (!pthread_equal(pthread_self(), reader)) {
    atomic_fetch_add(&stuck, 1);
    while (!let_go) nf_sleep_us(1000);
  }
  return 0;
}

// Threads of the library's whose requests do not come back.
static void a_stuck_thread_is_waited_for_no_longer_than_any_holder(void) {
  for (int whole = 0; whole < 2; whole++) {
    nearfile_cache *cache = nf_cache(whole ? "whole" : "pages", PAGE, 2 * PAGE, 100);
    far_file *far = far_new(16 * PAGE, VERSION, PAGE);
    nearfile_file *file = open_slow(cache, far, "key");
    reader = pthread_self();
    atomic_store(&stuck, 0);
    atomic_store(&let_go, 0);
    far->hook = sticks_beside;
    alarm(60);
    CHECK_PREAD(file, 1, 0, VERSION);
    for (uint64_t at = PAGE; at < 16 * PAGE; at += whole ? 15 * PAGE : PAGE) CHECK_PREAD(file, whole ? 15 * PAGE : PAGE, at, VERSION);
    alarm(0);
    CHECK(stuck > 0);
    let_go = 1;
    nearfile_close(file);
    CHECK_EQ(far->offences, 0);
    nearfile_cache_close(cache);
    far_free(far);
  }
}

static int32_t fails(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  return 5;
}

// Who is not waited for does not ask a source that fails again and again.
static void a_background_prefetch_ends_where_the_source_fails(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key");
  far->hook = fails;
  CHECK_EQ(nearfile_prefetch(file, 0, SIZE, NEARFILE_PREFETCH_NOWAIT, NULL, NULL), 0);
  NF_UNTIL(far->reads > 0, 20000);
  nf_sleep_us(200000);
  CHECK(far->reads > 0 && far->reads <= 16);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

// Pages that come in pieces are fetched by who asks for them: nothing is promised that nobody does.
static void a_background_prefetch_of_pages_larger_than_a_request(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, PAGE / 2, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = open_slow(cache, far, "key");
  int32_t status = nearfile_prefetch(file, 0, 4 * PAGE, NEARFILE_PREFETCH_NOWAIT, NULL, NULL);
  if (status == 0) NF_UNTIL(nf_walk(file) >= 4 * PAGE, 3000);
  CHECK(status == NEARFILE_ERROR_UNSUPPORTED || nf_walk(file) == 4 * PAGE);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(a_frozen_handle_reads_nothing_ahead),
                                         NF_CASE(a_background_prefetch_ends_where_the_source_fails),
                                         NF_CASE(a_background_prefetch_of_pages_larger_than_a_request),
                                         NF_CASE(a_stuck_thread_is_waited_for_no_longer_than_any_holder)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
