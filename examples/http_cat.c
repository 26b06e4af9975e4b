/* Writes bytes of a URL to stdout, through the near copy: http_cat URL CACHE_DIR [OFFSET [LEN]]. Run it twice: the second run asks
 * the server for size and version only. */
#include <inttypes.h>
#include <nearfile/curl.h>

static int fail(int64_t result) {
  char why[1024];
  fprintf(stderr, "http_cat: %s\n", nearfile_curl_message(result, why, sizeof why));
  return 1;
}

int main(int argc, char **argv) {
  if (argc < 3 || argc > 5) return fprintf(stderr, "usage: http_cat URL CACHE_DIR [OFFSET [LEN]]\n"), 2;
  uint64_t at = argc > 3 ? strtoull(argv[3], NULL, 10) : 0, left = argc > 4 ? strtoull(argv[4], NULL, 10) : UINT64_MAX;
  nearfile_cache *cache;
  nearfile_file *file;
  int32_t status = nearfile_cache_open(argv[2], NULL, &cache);
  if (status != 0) return fail(status);
  if ((status = nearfile_curl_open(cache, argv[1], NULL, NULL, &file)) != 0) return fail(status);

  static char buf[1 << 16];
  while (left > 0) {
    int64_t n = nearfile_pread(file, buf, left < sizeof buf ? (size_t)left : sizeof buf, at);
    if (n < 0) return fail(n);
    if (n == 0 || fwrite(buf, 1, (size_t)n, stdout) != (size_t)n) break;
    at += (uint64_t)n, left -= (uint64_t)n;
  }
  nearfile_stats stats = {.struct_size = sizeof stats};
  nearfile_get_stats(file, &stats);
  fprintf(stderr, "source_reads=%" PRIu64 " source_bytes=%" PRIu64 "\n", stats.source_reads, stats.source_bytes);
  nearfile_close(file);
  nearfile_cache_close(cache);
  return ferror(stdout) != 0;
}
