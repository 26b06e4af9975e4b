// nearfile's contenders: by pread and by map, through pins, in one batch, at opening.
#define _GNU_SOURCE
#include "side.h"

#include <errno.h>
#include <fcntl.h>
#include <nearfile.h>
#include <nearfile/curl.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct near {
  nearfile_cache *cache;
  nearfile_file *file;
  nearfile_pin *pin;
  nearfile_range *ranges;
  uint64_t size, position, opened;
} near;

static _Noreturn void fail(const char *what) {
  nearfile_error error = {.struct_size = sizeof error};
  nearfile_last_error(&error);
  side_die("%s: %s", what, error.message);
}

// ---- the source: the far file, slow by a sleep ----

typedef struct source {
  const side *side;
  int fd;
} source;

static int32_t source_open(void *user_data, void **out_connection) {
  source *connection = malloc(sizeof *connection);
  *connection = *(source *)user_data;
  connection->fd = open(connection->side->file, O_RDONLY | O_CLOEXEC);
  if (connection->fd < 0) return errno;
  *out_connection = connection;
  return 0;
}

static int32_t source_read_at(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  source *source = connection;
  int64_t n = far_read(source->fd, source->side->delay_us, buf, len, offset);
  if (n < 0) return errno;
  *out_len = (size_t)n;
  return 0;
}

static void source_close(void *connection) {
  close(((source *)connection)->fd);
  free(connection);
}

static nearfile_source sleeping_source(const side *side) {
  source *source = calloc(1, sizeof *source);
  source->side = side;
  return (nearfile_source){.struct_size = sizeof(nearfile_source), .user_data = source, .max_connections = (uint32_t)side->connections,
                           .open = source_open, .read_at = source_read_at, .close = source_close, .release = free};
}

static nearfile_source http_source(const side *side) {
  static nearfile_curl_object object;
  nearfile_source source;
  char why[256];
  int32_t code = nearfile_curl_probe(side->url, NULL, &object);
  if (code == 0) code = nearfile_curl_source(side->url, &object, NULL, &source);
  if (code != 0) side_die("%s: %s", side->url, nearfile_curl_message(code, why, sizeof why));
  return source;
}

// ---- opening ----

static void print_log(void *user_data, int32_t level, const char *message) {
  (void)user_data, (void)level;
  fprintf(stderr, "nearfile: %s\n", message);
}

static near *open_cache(const side *side) {
  near *near = calloc(1, sizeof *near);
  nearfile_cache_options options = {
      .struct_size = sizeof options, .page_size = side->page, .max_fetch_bytes = side->max_fetch, .size_limit = side->limit};
  nearfile_set_log(print_log, NULL, NEARFILE_LOG_WARN);
  if (nearfile_cache_open(side->dir, &options, &near->cache) != 0) fail("nearfile_cache_open");
  near->size = side->size;
  return near;
}

static near *open_with(const side *side, uint32_t flags) {
  near *near = open_cache(side);
  nearfile_source source = side->url != NULL ? http_source(side) : sleeping_source(side);
  nearfile_options options = {.struct_size = sizeof options, .key = "far", .version = "1", .size = side->size, .flags = flags};
  if (nearfile_open(near->cache, &source, &options, &near->file) != 0) fail("nearfile_open");
  return near;
}

static void *near_open(const side *side) { return open_with(side, 0); }
static void *near_map_open(const side *side) { return open_with(side, NEARFILE_MAP); }

static void near_close(void *handle) {
  near *near = handle;
  nearfile_pin_release(near->pin);
  nearfile_close(near->file);
  nearfile_cache_close(near->cache);
  free(near->ranges), free(near);
}

static int64_t near_pread(void *handle, void *buf, size_t len, uint64_t offset) {
  int64_t n = nearfile_pread(((near *)handle)->file, buf, len, offset);
  if (n < 0) fail("nearfile_pread");
  return n;
}

static int64_t near_read(void *handle, void *buf, size_t len) {
  near *near = handle;
  if (near->position + len > near->size) near->position = 0, nearfile_seek(near->file, 0, NEARFILE_SEEK_SET);
  near->position += len;
  return nearfile_read(near->file, buf, len);
}

// Every read made that was not from the near copy: none, where all is warm.
static uint64_t near_passed_through(const side *side, void *handle) {
  (void)side;
  nearfile_stats stats = {.struct_size = sizeof stats};
  if (nearfile_get_stats(((near *)handle)->file, &stats) != 0) fail("nearfile_get_stats");
  return stats.passed_through;
}

// ---- pins ----

static void *pinned_open(const side *side) {
  near *near = open_with(side, 0);
  if (nearfile_pin_range(near->file, 0, side->op, &near->pin) != 0) fail("nearfile_pin_range");
  return near;
}

static void *pinning_open(const side *side) {
  near *near = open_with(side, 0);
  if (nearfile_prefetch(near->file, 0, side->size, 0, NULL, NULL) != 0) fail("nearfile_prefetch");
  return near;
}

static void pinning_whole(const side *side, void *handle) {
  near *near = handle;
  uint64_t state = side->seed;
  for (uint64_t i = 0; i < side->count; i++) {
    nearfile_pin *pin;
    uint64_t offset = side_random(&state) % (side->size / side->op) * side->op;
    if (nearfile_pin_range(near->file, offset, side->op, &pin) != 0) fail("nearfile_pin_range");
    (void)*(const volatile unsigned char *)nearfile_pin_data(pin);
    nearfile_pin_release(pin);
  }
}

// The pointer of a range that is pinned, and one byte through it.
static void pinned_whole(const side *side, void *handle) {
  near *near = handle;
  for (uint64_t i = 0; i < side->count; i++) {
    const unsigned char *data = nearfile_pin_data(near->pin);
    (void)*(const volatile unsigned char *)(data + i % 64);
  }
}

// ---- a batch ----

// The caller's memory, touched before the first round that counts.
static unsigned char *batch_bufs(size_t len) {
  static unsigned char *bufs;
  if (bufs == NULL) {
    bufs = malloc(len);
    memset(bufs, 1, len);
  }
  return bufs;
}

static void *batch_open(const side *side) {
  batch_bufs(side->op * side->count);
  return near_open(side);
}

static void batch_whole(const side *side, void *handle) {
  near *near = handle;
  // Ranges apart from each other, in an order that is not that of the file.
  uint64_t stride = side->size / side->count, state = side->seed;
  unsigned char *bufs = batch_bufs(side->op * side->count);
  near->ranges = calloc(side->count, sizeof *near->ranges);
  for (uint64_t i = 0; i < side->count; i++) {
    near->ranges[i] = (nearfile_range){.offset = i * stride, .buf = bufs + i * side->op, .len = side->op};
  }
  for (uint64_t i = side->count - 1; i > 0; i--) {
    uint64_t j = side_random(&state) % (i + 1), swap = near->ranges[i].offset;
    near->ranges[i].offset = near->ranges[j].offset, near->ranges[j].offset = swap;
  }
  if (nearfile_read_ranges(near->file, near->ranges, side->count, sizeof(nearfile_range)) != 0) fail("nearfile_read_ranges");
}

// ---- opening a large file ----

static void *opening_open(const side *side) { return open_cache(side); }

static void opening_whole(const side *side, void *handle) {
  near *near = handle;
  nearfile_source source = sleeping_source(side);
  for (uint64_t i = 0; i < side->count; i++) {
    char key[64];
    snprintf(key, sizeof key, "large %llu", (unsigned long long)near->opened++);
    nearfile_options options = {.struct_size = sizeof options, .key = key, .version = "1", .size = side->size};
    nearfile_close(near->file);
    source.release = NULL;
    if (nearfile_open(near->cache, &source, &options, &near->file) != 0) fail("nearfile_open");
  }
}

static uint64_t opening_allocated(const side *side, void *handle) {
  (void)side;
  near *near = handle;
  struct stat data, index;
  if (stat(nearfile_data_path(near->file), &data) != 0 || stat(nearfile_index_path(near->file), &index) != 0) side_die("no pair");
  return (uint64_t)(data.st_blocks + index.st_blocks) * 512;
}

#define NEAR .read = near_read, .pread = near_pread, .close = near_close, .extra = near_passed_through
const contender our_contenders[] = {
    {.name = "nearfile", .open = near_open, NEAR},
    {.name = "nearfile-map", .open = near_map_open, NEAR},
    {.name = "pinned", .open = pinned_open, .whole = pinned_whole, .close = near_close},
    {.name = "pin+release", .open = pinning_open, .whole = pinning_whole, .close = near_close},
    {.name = "batch", .open = batch_open, .whole = batch_whole, .close = near_close},
    {.name = "opening", .open = opening_open, .whole = opening_whole, .close = near_close, .extra = opening_allocated},
    {.name = NULL},
};
