// Threads that use the library in every way at once, as a load under which others fork. Included after nf_test.h.
#ifndef NF_LOAD_H
#define NF_LOAD_H

#include "nf_test.h"

struct nf_load {
  nearfile_cache *cache;
  nearfile_file *file;
  far_file *far;  // what the file is a near copy of
  atomic_bool *stop;
  uint64_t seed;
  _Atomic uint64_t operations;
  int failures;  // when it began
  pthread_t thread;
};

static inline void nf_load_pin(struct nf_load *load, uint64_t at) {
  nearfile_pin *pin = NULL;
  MUST(nearfile_pin_range(load->file, at, (size_t)nf_below(&load->seed, 3 * load->far->page_size), &pin) == 0);
  CHECK_BYTES(nearfile_pin_data(pin), nearfile_pin_size(pin), at, load->far->version);
  nearfile_pin_release(pin);
}

static inline void nf_load_dup(struct nf_load *load, uint64_t at) {
  nearfile_file *other = NULL;
  MUST(nearfile_dup(load->file, &other) == 0);
  CHECK_EQ(nearfile_seek(other, (int64_t)at, NEARFILE_SEEK_SET), at);
  nearfile_close(other);
}

// Another of a few files over the same far file, or a private one.
static inline void nf_load_open(struct nf_load *load, uint64_t at) {
  static const char *const keys[] = {"load a", "load b", NULL};
  nearfile_source source = far_source(load->far, FAR_AT_OPEN);
  char version[24];
  snprintf(version, sizeof version, "%" PRIu64, load->far->version);
  nearfile_file *other = nf_open(load->cache, &source, keys[nf_below(&load->seed, 3)], version, load->far->size, 0);
  CHECK_PREAD(other, (size_t)load->far->page_size, at, load->far->version);
  nearfile_close(other);
}

static inline void nf_load_once(struct nf_load *load) {
  uint64_t page = load->far->page_size, at = nf_below(&load->seed, load->far->size);
  CHECK_PREAD(load->file, (size_t)nf_below(&load->seed, 5 * page), at, load->far->version);
  switch (nf_below(&load->seed, 12)) {
    case 0: CHECK_EQ(nearfile_discard(load->file, at, 6 * page), 0); break;
    case 1: nf_stats(load->file); break;
    case 2: nf_is_cached(load->file, at); break;
    case 3: nf_load_dup(load, at); break;
    case 4: nf_load_pin(load, at); break;
    case 5: CHECK_EQ(nearfile_prefetch(load->file, at, 4 * page, 0, NULL, NULL), 0); break;
    case 6: {
      nearfile_stats stats = {.struct_size = sizeof stats};
      CHECK_EQ(nearfile_cache_get_stats(load->cache, &stats), 0);
      break;
    }
    case 7: nf_load_open(load, at); break;
    default: break;
  }
  atomic_fetch_add(&load->operations, 1);
}

static inline void *nf_load_run(void *argument) {
  struct nf_load *load = argument;
  while (!atomic_load(load->stop) && nf_failures == load->failures) nf_load_once(load);
  return NULL;
}

static inline void nf_load_start(struct nf_load *load, nearfile_cache *cache, nearfile_file *file, far_file *far, atomic_bool *stop) {
  load->cache = cache, load->file = file, load->far = far, load->stop = stop, load->failures = nf_failures;
  load->thread = nf_thread(nf_load_run, load);
}

#endif
