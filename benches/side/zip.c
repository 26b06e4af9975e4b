// A zip read by libzip, member after member, through nearfile and through pread of the local file.
#define _GNU_SOURCE
#include "side.h"

#include <errno.h>
#include <zip.h>

typedef struct archive {
  const contender *under;
  void *handle;
  uint64_t size, position;
  zip_error_t error;
  zip_t *zip;
} archive;

static zip_int64_t answer(void *state, void *data, zip_uint64_t len, zip_source_cmd_t command) {
  archive *archive = state;
  switch (command) {
    case ZIP_SOURCE_SUPPORTS:
      return ZIP_SOURCE_SUPPORTS_SEEKABLE;
    case ZIP_SOURCE_OPEN:
      archive->position = 0;
      return 0;
    case ZIP_SOURCE_READ: {
      if (archive->position >= archive->size) return 0;
      if (len > archive->size - archive->position) len = archive->size - archive->position;
      int64_t n = archive->under->pread(archive->handle, data, len, archive->position);
      if (n > 0) archive->position += (uint64_t)n;
      return n;
    }
    case ZIP_SOURCE_SEEK: {
      zip_int64_t to = zip_source_seek_compute_offset(archive->position, archive->size, data, len, &archive->error);
      if (to >= 0) archive->position = (uint64_t)to;
      return to < 0 ? -1 : 0;
    }
    case ZIP_SOURCE_TELL:
      return (zip_int64_t)archive->position;
    case ZIP_SOURCE_STAT: {
      zip_stat_t *stat = data;
      zip_stat_init(stat);
      stat->size = archive->size, stat->valid = ZIP_STAT_SIZE;
      return sizeof *stat;
    }
    case ZIP_SOURCE_ERROR:
      return zip_error_to_data(&archive->error, data, len);
    case ZIP_SOURCE_CLOSE:
    case ZIP_SOURCE_FREE:
      return 0;
    default:
      zip_error_set(&archive->error, ZIP_ER_OPNOTSUPP, 0);
      return -1;
  }
}

static const contender *named(const contender *table, const char *name) {
  while (strcmp(table->name, name) != 0) table++;
  return table;
}

static void *open_over(const side *side, const contender *under) {
  archive *archive = calloc(1, sizeof *archive);
  archive->under = under, archive->size = side->size, archive->handle = under->open(side);
  zip_error_init(&archive->error);
  return archive;
}

static void *plain_zip(const side *side) { return open_over(side, named(plain_contenders, "pread")); }
static void *near_zip(const side *side) { return open_over(side, named(our_contenders, "nearfile")); }
static void *map_zip(const side *side) { return open_over(side, named(our_contenders, "nearfile-map")); }

static void read_member(zip_t *zip, uint64_t index) {
  static char buf[65536];
  zip_file_t *member = zip_fopen_index(zip, index, 0);
  zip_int64_t n = 0;
  while (member != NULL && (n = zip_fread(member, buf, sizeof buf)) > 0) {
  }
  if (member == NULL || n < 0) side_die("member %llu: %s", (unsigned long long)index, zip_strerror(zip));
  zip_fclose(member);
}

// Opens the zip and reads its members once, in an order that the seed decides.
static void read_archive(const side *side, void *handle) {
  archive *archive = handle;
  zip_error_t error;
  zip_error_init(&error);
  zip_source_t *source = zip_source_function_create(answer, archive, &error);
  zip_t *zip = source != NULL ? zip_open_from_source(source, ZIP_RDONLY, &error) : NULL;
  if (zip == NULL) side_die("no zip: %s", zip_error_strerror(&error));
  uint64_t members = (uint64_t)zip_get_num_entries(zip, 0), state = side->seed, *order = malloc(members * sizeof *order);
  for (uint64_t i = 0; i < members; i++) {
    uint64_t j = side_random(&state) % (i + 1);
    order[i] = order[j], order[j] = i;
  }
  for (uint64_t i = 0; i < members; i++) read_member(zip, order[i]);
  free(order);
  zip_discard(zip);
}

// What is read in a warm case is there from the round before, the first of which is not timed.
static void *warmed(void *handle, const side *side) {
  if (strcmp(side->mode, "warm") == 0) read_archive(side, handle);
  return handle;
}
static void *plain_zip_warm(const side *side) { return warmed(plain_zip(side), side); }
static void *near_zip_warm(const side *side) { return warmed(near_zip(side), side); }
static void *map_zip_warm(const side *side) { return warmed(map_zip(side), side); }

static void zip_end(void *handle) {
  archive *archive = handle;
  archive->under->close(archive->handle);
  zip_error_fini(&archive->error);
  free(archive);
}

const contender zip_contenders[] = {
    {.name = "zip-pread", .open = plain_zip_warm, .whole = read_archive, .close = zip_end},
    {.name = "zip-nearfile", .open = near_zip_warm, .whole = read_archive, .close = zip_end},
    {.name = "zip-nearfile-map", .open = map_zip_warm, .whole = read_archive, .close = zip_end},
    {.name = NULL},
};
