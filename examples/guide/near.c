/* Reads an object on an HTTP server from end to end, and prints what it took: near URL CACHE_DIR */
#include <inttypes.h>
#include <nearfile/curl.h>

static int fail(int64_t result) {
  char why[1024];
  fprintf(stderr, "near: %s\n", nearfile_curl_message(result, why, sizeof why));
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: near URL CACHE_DIR\n"), 2;
  nearfile_cache *cache;
  nearfile_file *file;
  int32_t status = nearfile_cache_open(argv[2], NULL, &cache);
  if (status != 0) return fail(status);
  status = nearfile_curl_open(cache, argv[1], NULL, NULL, &file); /* asks for size and ETag */
  if (status != 0) return fail(status);

  static char buf[64 << 10];
  int64_t n, sum = 0;
  while ((n = nearfile_read(file, buf, sizeof buf)) > 0) sum += n;
  if (n < 0) return fail(n);

  nearfile_stats stats = {.struct_size = sizeof stats};
  nearfile_get_stats(file, &stats);
  printf("read            %" PRId64 " bytes\n", sum);
  printf("hits, misses    %" PRIu64 ", %" PRIu64 "\n", stats.hits, stats.misses);
  printf("from the source %" PRIu64 " bytes\n", stats.source_bytes);
  printf("pages fetched   %" PRIu64 "\n", stats.pages_fetched);
  printf("pages verified  %" PRIu64 "\n", stats.pages_verified);
  nearfile_close(file);
  nearfile_cache_close(cache);
}
