/* Eight forked workers read one file, each all of it from a place of its own: workers URL CACHE_DIR [SIZE_LIMIT] */
#include <inttypes.h>
#include <nearfile/curl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 8 };

static int work(nearfile_file *file, int worker) {
  static char buf[64 << 10];
  uint64_t size = (uint64_t)nearfile_size(file), start = size / WORKERS * (uint64_t)worker;
  for (uint64_t done = 0; done < size;) {
    int64_t n = nearfile_pread(file, buf, sizeof buf, (start + done) % size);
    if (n <= 0) return 1;
    done += (uint64_t)n;
  }
  nearfile_close(file); /* adds this worker's numbers to the directory's */
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 3 && argc != 4) return fprintf(stderr, "usage: workers URL CACHE_DIR [SIZE_LIMIT]\n"), 2;
  nearfile_cache_options options = {.struct_size = sizeof options};
  if (argc == 4) options.size_limit = strtoull(argv[3], NULL, 10);
  nearfile_cache *cache;
  nearfile_file *file;
  char why[1024];
  int32_t status = nearfile_cache_open(argv[2], &options, &cache);
  if (status == 0) status = nearfile_curl_open(cache, argv[1], NULL, NULL, &file);
  if (status != 0) return fprintf(stderr, "workers: %s\n", nearfile_curl_message(status, why, sizeof why)), 1;

  for (int worker = 0; worker < WORKERS; worker++) {
    if (fork() == 0) _exit(work(file, worker)); /* the handle works in the child; its connections are the child's own */
  }
  int failed = 0, ended;
  while (wait(&ended) > 0) failed += ended != 0;

  nearfile_stats stats = {.struct_size = sizeof stats};
  nearfile_cache_get_stats(cache, &stats); /* of all processes that ever used the directory */
  printf("workers failed  %d\n", failed);
  printf("bytes served    %" PRIu64 "\n", stats.bytes_served);
  printf("from the source %" PRIu64 " bytes\n", stats.source_bytes);
  printf("waited          %" PRIu64 "\n", stats.waits);
  printf("passed through  %" PRIu64 "\n", stats.passed_through);
  printf("evicted         %" PRIu64 " pages\n", stats.pages_evicted);
  printf("kept            %" PRIu64 " bytes\n", stats.cached_bytes);
  nearfile_close(file);
  nearfile_cache_close(cache);
  return failed != 0;
}
