/* Asks a SQLite database on an HTTP server: http_sqlite URL CACHE_DIR SQL. Only the pages that the query touches are fetched, once. */
#include <inttypes.h>
#include <nearfile/curl.h>
#include <nearfile/sqlite.h>

static int fail(const char *what) {
  fprintf(stderr, "http_sqlite: %s\n", what);
  return 1;
}

static int print_row(void *unused, int columns, char **values, char **names) {
  (void)unused, (void)names;
  for (int i = 0; i < columns; i++) printf("%s%s", values[i] != NULL ? values[i] : "NULL", i + 1 < columns ? "|" : "\n");
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 4) return fprintf(stderr, "usage: http_sqlite URL CACHE_DIR SQL\n"), 2;
  char why[1024], *error = NULL;
  nearfile_cache_options small_pages = {.struct_size = sizeof small_pages, .page_size = 32 << 10};
  nearfile_cache *cache;
  nearfile_file *file;
  int32_t status = nearfile_cache_open(argv[2], &small_pages, &cache);
  if (status == 0) status = nearfile_curl_open(cache, argv[1], NULL, NULL, &file);
  if (status != 0) return fail(nearfile_curl_message(status, why, sizeof why));

  nearfile_sqlite *vfs;
  sqlite3 *db;
  if (nearfile_sqlite_register("near", NULL, NULL, &vfs) != SQLITE_OK) return fail("the VFS was not registered");
  if (nearfile_sqlite_add(vfs, "far.db", file) != SQLITE_OK) return fail("out of memory");
  if (sqlite3_open_v2("far.db", &db, SQLITE_OPEN_READONLY, "near") != SQLITE_OK) return fail(nearfile_sqlite_message());
  if (sqlite3_exec(db, argv[3], print_row, NULL, &error) != SQLITE_OK) return fail(error);
  sqlite3_close(db);
  nearfile_sqlite_unregister(vfs);

  nearfile_stats stats = {.struct_size = sizeof stats};
  nearfile_get_stats(file, &stats);
  fprintf(stderr, "source_reads=%" PRIu64 " source_bytes=%" PRIu64 "\n", stats.source_reads, stats.source_bytes);
  nearfile_close(file);
  nearfile_cache_close(cache);
  return 0;
}
