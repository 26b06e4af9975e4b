/* What a user's first program does: a source in memory, read through a cache in a fresh directory of $TMPDIR. C and C++. */
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* mkdtemp */
#endif
#include <nearfile.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE 300007u /* not a whole number of pages */

static unsigned char content[SIZE];
static unsigned source_reads; /* max_connections is 1, so calls never overlap */

static int32_t read_memory(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  const unsigned char *bytes = (const unsigned char *)connection;
  size_t left = offset < SIZE ? (size_t)(SIZE - offset) : 0;
  *out_len = len < left ? len : left;
  memcpy(buf, bytes + (SIZE - left), *out_len);
  source_reads++;
  return 0;
}

static int fail(const char *what) {
  nearfile_error error;
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;
  nearfile_last_error(&error);
  fprintf(stderr, "%s: %s: %s\n", what, nearfile_status_name(error.status), error.message);
  return 1;
}

/* The whole file, in pieces that straddle pages. */
static int read_all(nearfile_file *file) {
  static unsigned char buf[10007];
  uint64_t offset = 0;
  for (;;) {
    int64_t got = nearfile_pread(file, buf, sizeof buf, offset);
    if (got < 0)
      return fail("nearfile_pread");
    if (got == 0)
      break;
    if (memcmp(buf, content + offset, (size_t)got) != 0) {
      fprintf(stderr, "nearfile_pread: wrong bytes at %llu\n", (unsigned long long)offset);
      return 1;
    }
    offset += (uint64_t)got;
  }
  if (offset != SIZE) {
    fprintf(stderr, "nearfile_pread: %llu bytes of %u\n", (unsigned long long)offset, SIZE);
    return 1;
  }
  return 0;
}

int main(void) {
  const uint32_t header_version =
      (uint32_t)NEARFILE_VERSION_MAJOR << 16 | (uint32_t)NEARFILE_VERSION_MINOR << 8 | (uint32_t)NEARFILE_VERSION_PATCH;
  const char *tmp = getenv("TMPDIR");
  char dir[4096];
  nearfile_cache *cache = NULL;
  nearfile_file *file = NULL;
  nearfile_source source;
  nearfile_options options;
  unsigned first_pass, i;

  if (nearfile_version() != header_version) {
    fprintf(stderr, "the header is of %x, the library of %x\n", (unsigned)header_version, (unsigned)nearfile_version());
    return 1;
  }
  for (i = 0; i < SIZE; i++)
    content[i] = (unsigned char)(i * 2654435761u >> 24);
  snprintf(dir, sizeof dir, "%s/nearfile-consumer-XXXXXX", tmp != NULL ? tmp : "/tmp");
  if (mkdtemp(dir) == NULL) {
    perror(dir);
    return 1;
  }

  memset(&source, 0, sizeof source);
  source.struct_size = sizeof source;
  source.max_connections = 1;
  source.user_data = content;
  source.read_at = read_memory;

  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  options.key = "memory";
  options.version = "1";
  options.size = SIZE;

  if (nearfile_cache_open(dir, NULL, &cache) != NEARFILE_OK)
    return fail("nearfile_cache_open");
  if (nearfile_open(cache, &source, &options, &file) != NEARFILE_OK)
    return fail("nearfile_open");
  if (read_all(file) != 0)
    return 1;
  first_pass = source_reads;
  if (first_pass == 0) {
    fprintf(stderr, "the first pass did not read the source\n");
    return 1;
  }
  if (read_all(file) != 0)
    return 1;
  if (source_reads != first_pass) {
    fprintf(stderr, "the second pass read the source %u times\n", source_reads - first_pass);
    return 1;
  }
  nearfile_close(file);
  nearfile_cache_close(cache);

  printf("ok %s\n", nearfile_version_string());
  return 0;
}
