/* nearfile/libzip.h: a nearfile_file as the source of a zip, for libzip.
 *
 * Header only, C11 and C++17; link with -lnearfile -lzip.
 *
 *     int failed = ZIP_ER_OK;
 *     zip_t *zip = nearfile_zip_open(file, 0, &failed);              file: any nearfile_file; yours still, and may be closed
 *     if (zip == NULL) return fail(failed);
 *     zip_file_t *member = zip_fopen(zip, "a/b.txt", 0);
 *     char buf[4096];
 *     zip_int64_t n = member == NULL ? -1 : zip_fread(member, buf, sizeof buf);
 *     if (n < 0) nearfile_last_error(&error);                        where the bytes did not come, it says why
 *     if (member != NULL) zip_fclose(member);
 *     zip_discard(zip);
 *
 * What it gives. A zip_source_t to read from; the zip is opened read-only.
 * Ownership. The source holds a nearfile_dup of the file, with a position of its own, and closes it when libzip frees the source.
 * Threads. A zip_t belongs to one thread at a time (libzip's rule); threads open one each over the same file.
 * Forks. A zip_t opened before fork() works in the child, since its position is the child's own; it is discarded there or not.
 * Errors. A read that fails is ZIP_ER_READ with EIO; nearfile_last_error on the same thread has the reason.
 */
#ifndef NEARFILE_LIBZIP_H
#define NEARFILE_LIBZIP_H

#include <nearfile.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zip.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Makes a source. NULL: *error (which may be NULL) says why. Freed by zip_source_free, or by the zip that was opened from it. */
static inline zip_source_t *nearfile_zip_source(const nearfile_file *file, zip_error_t *error);

/* Opens a zip; flags are ZIP_CHECKCONS or 0, ZIP_RDONLY is added. NULL: *out_error (which may be NULL) is libzip's ZIP_ER_... */
static inline zip_t *nearfile_zip_open(const nearfile_file *file, int flags, int *out_error);

/* ---- Below: how it is done. ---- */

typedef struct nearfile_zip_state {
  nearfile_file *file;
  zip_error_t    error;
} nearfile_zip_state;

static inline zip_int64_t nearfile_zip_fails(nearfile_zip_state *state, int error, int os_errno) {
  zip_error_set(&state->error, error, os_errno);
  return -1;
}

static inline zip_int64_t nearfile_zip_seek(nearfile_zip_state *state, void *data, zip_uint64_t len) {
  zip_uint64_t here = (zip_uint64_t)nearfile_tell(state->file), size = (zip_uint64_t)nearfile_size(state->file);
  zip_int64_t to = zip_source_seek_compute_offset(here, size, data, len, &state->error);
  if (to < 0) return -1;
  return nearfile_seek(state->file, to, NEARFILE_SEEK_SET) < 0 ? nearfile_zip_fails(state, ZIP_ER_SEEK, EINVAL) : 0;
}

static inline zip_int64_t nearfile_zip_stat(nearfile_zip_state *state, void *data, zip_uint64_t len) {
  zip_stat_t *stat = (zip_stat_t *)data;
  if (len < sizeof *stat) return nearfile_zip_fails(state, ZIP_ER_INVAL, 0);
  zip_stat_init(stat);
  stat->size = (zip_uint64_t)nearfile_size(state->file);
  stat->valid = ZIP_STAT_SIZE;
  return sizeof *stat;
}

static inline zip_int64_t nearfile_zip_callback(void *arg, void *data, zip_uint64_t len, zip_source_cmd_t command) {
  nearfile_zip_state *state = (nearfile_zip_state *)arg;
  zip_int64_t n;
  switch (command) {
    case ZIP_SOURCE_SUPPORTS:
      return ZIP_SOURCE_SUPPORTS_SEEKABLE;
    case ZIP_SOURCE_OPEN:
      return nearfile_seek(state->file, 0, NEARFILE_SEEK_SET) < 0 ? nearfile_zip_fails(state, ZIP_ER_SEEK, EINVAL) : 0;
    case ZIP_SOURCE_READ:
      n = nearfile_read(state->file, data, (size_t)len);
      return n < 0 ? nearfile_zip_fails(state, ZIP_ER_READ, EIO) : n;
    case ZIP_SOURCE_SEEK:
      return nearfile_zip_seek(state, data, len);
    case ZIP_SOURCE_TELL:
      return nearfile_tell(state->file);
    case ZIP_SOURCE_STAT:
      return nearfile_zip_stat(state, data, len);
    case ZIP_SOURCE_ERROR:
      return zip_error_to_data(&state->error, data, len);
    case ZIP_SOURCE_CLOSE:
      return 0;
    case ZIP_SOURCE_FREE:
      nearfile_close(state->file);
      zip_error_fini(&state->error);
      free(state);
      return 0;
    default:
      return nearfile_zip_fails(state, ZIP_ER_OPNOTSUPP, 0);
  }
}

static inline zip_source_t *nearfile_zip_source(const nearfile_file *file, zip_error_t *error) {
  nearfile_zip_state *state = (nearfile_zip_state *)calloc(1, sizeof *state);
  zip_source_t *source = NULL;
  if (state != NULL && nearfile_dup(file, &state->file) == NEARFILE_OK) {
    zip_error_init(&state->error);
    source = zip_source_function_create(nearfile_zip_callback, state, error);
    if (source == NULL) nearfile_close(state->file);
  } else if (error != NULL) {
    zip_error_set(error, state == NULL ? ZIP_ER_MEMORY : ZIP_ER_INVAL, 0);
  }
  if (source == NULL) free(state);
  return source;
}

static inline zip_t *nearfile_zip_open(const nearfile_file *file, int flags, int *out_error) {
  zip_error_t error;
  zip_source_t *source;
  zip_t *zip = NULL;
  zip_error_init(&error);
  source = nearfile_zip_source(file, &error);
  if (source != NULL) zip = zip_open_from_source(source, flags | ZIP_RDONLY, &error);
  if (zip == NULL) zip_source_free(source);
  if (out_error != NULL) *out_error = zip_error_code_zip(&error);
  zip_error_fini(&error);
  return zip;
}

#ifdef __cplusplus
}
#endif
#endif
