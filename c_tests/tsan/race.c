// A race, so that it is seen that ThreadSanitizer sees into the library: two threads have it write to one buffer at once.
#include "../nf_test.h"

enum { VERSION = 1, PAGE = 4096, SIZE = 64 * PAGE };

static unsigned char buf[PAGE];

static void *read_into_it(void *file) {
  for (uint64_t i = 0; i < 20000; i++) CHECK_EQ(nearfile_pread(file, buf, PAGE, i * PAGE % SIZE), PAGE);
  return NULL;
}

static void two_reads_into_one_buffer(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_cache *cache = nf_cache("cache", PAGE, PAGE, 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  pthread_t thread = nf_thread(read_into_it, file);
  read_into_it(file);
  nf_join(thread);
  nearfile_close(file);
  nearfile_cache_close(cache);
  far_free(far);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(two_reads_into_one_buffer)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
