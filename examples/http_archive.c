/* Lists an archive (tar, zip, 7z, ...) on an HTTP server: http_archive URL CACHE_DIR. Contents that the format lets it skip are not
 * fetched. */
#include <archive_entry.h>
#include <inttypes.h>
#include <nearfile/curl.h>
#include <nearfile/libarchive.h>

static int fail(const char *what) {
  fprintf(stderr, "http_archive: %s\n", what);
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: http_archive URL CACHE_DIR\n"), 2;
  char why[1024];
  nearfile_cache_options small_pages = {.struct_size = sizeof small_pages, .page_size = 64 << 10};
  nearfile_cache *cache;
  nearfile_file *file;
  int32_t status = nearfile_cache_open(argv[2], &small_pages, &cache);
  if (status == 0) status = nearfile_curl_open(cache, argv[1], NULL, NULL, &file);
  if (status != 0) return fail(nearfile_curl_message(status, why, sizeof why));

  struct archive *archive = archive_read_new();
  struct archive_entry *entry;
  archive_read_support_format_all(archive);
  archive_read_support_filter_all(archive);
  if (nearfile_archive_open(archive, file) != ARCHIVE_OK) return fail(archive_error_string(archive));
  while ((status = archive_read_next_header(archive, &entry)) == ARCHIVE_OK) {
    printf("%12" PRId64 "  %s\n", (int64_t)archive_entry_size(entry), archive_entry_pathname(entry));
  }
  if (status != ARCHIVE_EOF) return fail(archive_error_string(archive));
  archive_read_free(archive);

  nearfile_stats stats = {.struct_size = sizeof stats};
  nearfile_get_stats(file, &stats);
  fprintf(stderr, "source_reads=%" PRIu64 " source_bytes=%" PRIu64 "\n", stats.source_reads, stats.source_bytes);
  nearfile_close(file);
  nearfile_cache_close(cache);
  return 0;
}
