/* Reads the first bytes of a far file through nearfile: quick FILE CACHE_DIR. Run it twice: the second run reads no source. */
#include <errno.h>
#include <inttypes.h>
#include <nearfile.h>
#include <stdio.h>
#include <sys/stat.h>

/* The far file. Here it is a FILE *; it can be anything that is opened, read at an offset and closed. */
static int32_t far_open(void *path, void **out_connection) {
  *out_connection = fopen(path, "rb");
  return *out_connection == NULL ? errno : 0;
}
static int32_t far_read_at(void *file, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  if (fseek(file, (long)offset, SEEK_SET) != 0) return errno;
  *out_len = fread(buf, 1, len, file);
  return ferror(file) ? EIO : 0;
}
static void far_close(void *file) { fclose(file); }

static int fail(const char *what) {
  nearfile_error error = {.struct_size = sizeof error};
  nearfile_last_error(&error);
  fprintf(stderr, "%s: %s\n", what, error.message);
  return 1;
}

int main(int argc, char **argv) {
  struct stat now;
  if (argc != 3 || stat(argv[1], &now) != 0) return fprintf(stderr, "usage: quick FILE CACHE_DIR\n"), 2;
  char version[32]; /* what changes when the far file changes: an ETag, a date */
  snprintf(version, sizeof version, "%lld", (long long)now.st_mtime);

  nearfile_source source = {.struct_size = sizeof source, .user_data = argv[1],
                            .open = far_open, .read_at = far_read_at, .close = far_close};
  nearfile_options options = {.struct_size = sizeof options, .key = argv[1], .version = version, .size = (uint64_t)now.st_size};
  nearfile_cache *cache;
  nearfile_file *file;
  if (nearfile_cache_open(argv[2], NULL, &cache) != NEARFILE_OK) return fail(argv[2]);
  if (nearfile_open(cache, &source, &options, &file) != NEARFILE_OK) return fail(argv[1]);

  char buf[4096];
  int64_t n = nearfile_pread(file, buf, sizeof buf, 0);
  if (n < 0) return fail(argv[1]);
  nearfile_stats stats = {.struct_size = sizeof stats};
  nearfile_get_stats(file, &stats);
  printf("%" PRId64 " bytes: %" PRIu64 " source reads, %" PRIu64 " hits, %" PRIu64 " misses\n",
         n, stats.source_reads, stats.hits, stats.misses);
  nearfile_close(file);
  nearfile_cache_close(cache);
}
