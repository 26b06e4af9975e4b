/* What a user's program with every adapter in it does without a network: a source in memory, shown to each library. C and C++. */
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* mkdtemp */
#endif
#include <nearfile/curl.h>
#include <nearfile/hdf5.h>
#include <nearfile/libarchive.h>
#include <nearfile/libzip.h>
#include <nearfile/sqlite.h>

#include <archive_entry.h>

static const char content[] = "neither a zip nor a database, and only to libarchive an archive of one member";

static int32_t read_memory(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  size_t left = sizeof content - (size_t)offset;
  *out_len = len < left ? len : left;
  memcpy(buf, (const char *)connection + offset, *out_len);
  return 0;
}

static int failures;

static void check(int ok, const char *what) {
  if (ok) return;
  fprintf(stderr, "failed: %s\n", what);
  failures++;
}

static void try_archive(const nearfile_file *file) {
  struct archive *archive = archive_read_new();
  struct archive_entry *entry;
  char buf[2 * sizeof content];
  archive_read_support_format_raw(archive);
  check(nearfile_archive_open(archive, file) == ARCHIVE_OK, "nearfile_archive_open");
  check(archive_read_next_header(archive, &entry) == ARCHIVE_OK, "archive_read_next_header");
  check(archive_read_data(archive, buf, sizeof buf) == (la_ssize_t)sizeof content, "archive_read_data");
  check(memcmp(buf, content, sizeof content) == 0, "the bytes of the member");
  archive_read_free(archive);
}

static void try_sqlite(const nearfile_file *file) {
  nearfile_sqlite *vfs = NULL;
  sqlite3 *db = NULL;
  check(nearfile_sqlite_register("near", NULL, NULL, &vfs) == SQLITE_OK, "nearfile_sqlite_register");
  check(nearfile_sqlite_add(vfs, "memory", file) == SQLITE_OK, "nearfile_sqlite_add");
  check(sqlite3_open_v2("memory", &db, SQLITE_OPEN_READONLY, "near") == SQLITE_OK, "sqlite3_open_v2");
  check(sqlite3_exec(db, "SELECT * FROM t", NULL, NULL, NULL) == SQLITE_NOTADB, "SQLITE_NOTADB");
  sqlite3_close(db);
  nearfile_sqlite_unregister(vfs);
}

static void try_all(const nearfile_file *file) {
  nearfile_curl_object object;
  char why[512];
  int code = 0;
  check(nearfile_zip_open(file, 0, &code) == NULL && code == ZIP_ER_NOZIP, "ZIP_ER_NOZIP");
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  check(nearfile_hdf5_open(file, "memory") < 0, "nearfile_hdf5_open");
  try_archive(file);
  try_sqlite(file);
  code = nearfile_curl_probe("file:///nothing", NULL, &object);
  check(code == NEARFILE_CURL_LIBCURL + CURLE_UNSUPPORTED_PROTOCOL, nearfile_curl_message(code, why, sizeof why));
}

int main(void) {
  const char *tmp = getenv("TMPDIR");
  char dir[4096];
  nearfile_cache *cache = NULL;
  nearfile_file *file = NULL;
  nearfile_source source;
  nearfile_options options;
  snprintf(dir, sizeof dir, "%s/nearfile-adapters-XXXXXX", tmp != NULL ? tmp : "/tmp");
  if (mkdtemp(dir) == NULL) return 1;
  memset(&source, 0, sizeof source);
  source.struct_size = sizeof source;
  source.user_data = (void *)content;
  source.read_at = read_memory;
  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  options.size = sizeof content;
  check(nearfile_cache_open(dir, NULL, &cache) == NEARFILE_OK, "nearfile_cache_open");
  check(nearfile_open(cache, &source, &options, &file) == NEARFILE_OK, "nearfile_open");
  try_all(file);
  nearfile_close(file);
  nearfile_cache_close(cache);
  if (failures == 0) printf("ok %s\n", nearfile_version_string());
  return failures != 0;
}
