/* Reads random members of a zip on an HTTP server through nearfile, and checks each one's CRC32 and size.
 *
 *     http_zip URL CACHE_DIR [MEMBERS [SEED]]
 *
 * libzip reads the near copy (nearfile/libzip.h), and nearfile asks the server (nearfile/curl.h) for what the cache directory has
 * not got. Prints one line of name=value; the time is everything, from the first request
 * to the last checksum. MEMBERS is 100 at first; 0 is every member once. */
#define _POSIX_C_SOURCE 200809L

#include <nearfile/curl.h>
#include <nearfile/libzip.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- Progress and errors, both on stderr ---- */

static bool progress_on_line; /* a terminal's line is unfinished */

/* On a terminal ten times a second; elsewhere a line every 2 s, so that a short run prints nothing. */
static void progress(double start, uint64_t done, uint64_t total, uint64_t bytes) {
  static double last;
  bool terminal = isatty(STDERR_FILENO);
  double now = seconds_now();
  if (now - (last > 0 ? last : start) < (terminal ? 0.1 : 2.0)) return;
  last = now;
  fprintf(stderr, "%s%" PRIu64 " of %" PRIu64 " members, %.1f MB, %.1f s%s", terminal ? "\r" : "", done, total, (double)bytes / 1e6,
          now - start, terminal ? "" : "\n");
  progress_on_line = terminal;
}

static void progress_end(void) {
  if (progress_on_line) fputc('\n', stderr);
  progress_on_line = false;
}

__attribute__((format(printf, 1, 2))) static int fail(const char *format, ...) {
  va_list values;
  progress_end();
  fputs("http_zip: ", stderr);
  va_start(values, format);
  vfprintf(stderr, format, values);
  va_end(values);
  fputc('\n', stderr);
  return 1;
}

/* A cache that cannot be used fails no read, but is worth a line. */
static void print_log(void *user_data, int32_t level, const char *message) {
  (void)user_data;
  (void)level;
  progress_end();
  fprintf(stderr, "nearfile: %s\n", message);
}

/* What a function of nearfile or of its adapters has failed of. */
static const char *reason(int64_t result) {
  static char text[1200];
  return nearfile_curl_message(result, text, sizeof text);
}

/* ---- The members ---- */

static uint64_t random_next(uint64_t *state) { /* splitmix64: the same members from the same seed, on every machine */
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* Every index once, in an order that the seed decides. NULL: no memory. */
static uint64_t *shuffled(uint64_t count, uint64_t seed) {
  uint64_t *order = malloc((size_t)count * sizeof *order);
  for (uint64_t i = 0; order != NULL && i < count; i++) {
    uint64_t j = random_next(&seed) % (i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  return order;
}

static const char *zip_reason(zip_error_t *error) {
  if (zip_error_code_zip(error) == ZIP_ER_READ) return reason(NEARFILE_ERROR_SOURCE);
  return zip_error_code_zip(error) == ZIP_ER_CRC ? "wrong CRC32" : zip_error_strerror(error);
}

/* Reads one member to its end, which is where libzip compares the CRC32 of what it returned with the directory's. */
static int read_member(zip_t *zip, uint64_t index, uint64_t *bytes) {
  static char buf[65536];
  const zip_uint64_t wanted = ZIP_STAT_NAME | ZIP_STAT_SIZE | ZIP_STAT_CRC;
  zip_stat_t stat;
  if (zip_stat_index(zip, index, 0, &stat) != 0 || (stat.valid & wanted) != wanted) {
    return fail("member %" PRIu64 ": no name, size and CRC32 in the directory", index);
  }
  zip_file_t *member = zip_fopen_index(zip, index, 0);
  if (member == NULL) return fail("%s: %s", stat.name, zip_reason(zip_get_error(zip)));
  uint64_t size = 0;
  zip_int64_t n;
  while ((n = zip_fread(member, buf, sizeof buf)) > 0) size += (uint64_t)n;
  int status = 0;
  if (n < 0) status = fail("%s: %s", stat.name, zip_reason(zip_file_get_error(member)));
  else if (size != stat.size) status = fail("%s: %" PRIu64 " bytes, but %" PRIu64 " in the directory", stat.name, size, stat.size);
  else if (size == 0 && stat.crc != 0) status = fail("%s: wrong CRC32", stat.name); /* libzip does not look at an empty one's */
  zip_fclose(member);
  *bytes += size;
  return status;
}

static int read_members(zip_t *zip, double start, uint64_t *count, uint64_t seed, uint64_t *bytes) {
  uint64_t entries = (uint64_t)zip_get_num_entries(zip, 0);
  if (entries == 0) return fail("the zip is empty");
  uint64_t *order = shuffled(entries, seed);
  if (order == NULL) return fail("out of memory");
  if (*count == 0) *count = entries;
  int status = 0;
  for (uint64_t i = 0; i < *count && status == 0; i++) {
    status = read_member(zip, order[i % entries], bytes);
    progress(start, i + 1, *count, *bytes);
  }
  progress_end();
  free(order);
  return status;
}

/* ---- From the outside in: source, cache, file, zip ---- */

static int read_zip(nearfile_file *file, const nearfile_curl_counts *counts, double start, uint64_t count, uint64_t seed) {
  int failed = ZIP_ER_OK;
  zip_t *zip = nearfile_zip_open(file, 0, &failed);
  if (zip == NULL) {
    zip_error_t error;
    zip_error_init_with_code(&error, failed);
    fail("cannot read the zip's directory: %s", zip_reason(&error));
    zip_error_fini(&error);
    return 1;
  }
  uint64_t bytes = 0;
  int status = read_members(zip, start, &count, seed, &bytes);
  double seconds = seconds_now() - start;
  zip_discard(zip);
  if (status != 0) return status;

  nearfile_stats stats = {.struct_size = sizeof stats};
  int32_t result = nearfile_get_stats(file, &stats);
  if (result != NEARFILE_OK) return fail("%s", reason(result));
  printf("members=%" PRIu64 " bytes=%" PRIu64 " source_reads=%" PRIu64 " source_bytes=%" PRIu64 " seconds=%.6f ms_per_member=%.6f"
         " requests=%" PRIu64 " page_size=%" PRId64 " passed_through=%" PRIu64 "\n",
         count, bytes, stats.source_reads, stats.source_bytes, seconds, seconds * 1e3 / (double)count, counts->requests,
         nearfile_page_size(file), stats.passed_through);
  return 0;
}

static int read_url(const char *url, const char *dir, uint64_t count, uint64_t seed) {
  double start = seconds_now();
  nearfile_curl_counts counts = {0};
  nearfile_curl_settings settings = {.struct_size = sizeof settings, .counts = &counts};
  nearfile_cache *cache = NULL;
  nearfile_file *file = NULL;
  int32_t result = nearfile_cache_open(dir, NULL, &cache);
  if (result != NEARFILE_OK) return fail("%s: %s", dir, reason(result));
  result = nearfile_curl_open(cache, url, &settings, NULL, &file);
  int status = result == 0 ? read_zip(file, &counts, start, count, seed) : fail("%s", reason(result));
  nearfile_close(file);
  nearfile_cache_close(cache);
  return status;
}

static bool parse_number(const char *text, uint64_t *out) {
  char *end = NULL;
  errno = 0;
  *out = strtoull(text, &end, 10);
  return *text >= '0' && *text <= '9' && *end == '\0' && errno == 0;
}

int main(int argc, char **argv) {
  uint64_t count = 100, seed = 1;
  bool ok = argc >= 3 && argc <= 5 && (argc < 4 || parse_number(argv[3], &count)) && (argc < 5 || parse_number(argv[4], &seed));
  if (!ok) {
    fputs("usage: http_zip URL CACHE_DIR [MEMBERS [SEED]]\n", stderr);
    return 2;
  }
  nearfile_set_log(print_log, NULL, NEARFILE_LOG_WARN);
  int status = read_url(argv[1], argv[2], count, seed);
  if (fflush(stdout) != 0) status = fail("stdout: %s", strerror(errno));
  return status;
}
