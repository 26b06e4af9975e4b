/* nearfile/libarchive.h: an archive (tar, zip, 7z, cpio, ISO 9660, ...) in a nearfile_file, for libarchive.
 *
 * Header only, C11 and C++17; link with -lnearfile -larchive.
 *
 *     struct archive *archive = archive_read_new();
 *     struct archive_entry *entry;
 *     archive_read_support_format_all(archive);
 *     archive_read_support_filter_all(archive);
 *     if (nearfile_archive_open(archive, file) != ARCHIVE_OK) puts(archive_error_string(archive));
 *     while (archive_read_next_header(archive, &entry) == ARCHIVE_OK)     file: any nearfile_file; yours still, and may be closed
 *       archive_read_data_skip(archive);                                  skipped bytes are not fetched, where the format allows it
 *     archive_read_free(archive);
 *
 * What it gives. read, skip, seek and close over a nearfile_dup with a position of its own, from the start of the file.
 * Ownership. The callbacks' state is freed by archive_read_close or archive_read_free, also after a failure.
 * Threads. An archive belongs to one thread at a time (libarchive's rule); threads open one each over the same file.
 * Forks. An archive opened before fork() works in the child, since its position is the child's own.
 * Errors. ARCHIVE_FATAL with errno EIO, and nearfile's reason as archive_error_string; nearfile_last_error on the same thread has the
 *   source's code.
 */
#ifndef NEARFILE_LIBARCHIVE_H
#define NEARFILE_LIBARCHIVE_H

#include <nearfile.h>

#include <archive.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NEARFILE_ARCHIVE_READ 65536u /* bytes that libarchive is given at a time */

/* Opens an archive whose formats and filters were chosen, in place of archive_read_open. ARCHIVE_OK, or libarchive's code. */
static inline int nearfile_archive_open(struct archive *archive, const nearfile_file *file);

/* ---- Below: how it is done. ---- */

typedef struct nearfile_archive_state {
  nearfile_file *file;
  unsigned char  buf[NEARFILE_ARCHIVE_READ];
} nearfile_archive_state;

static inline int nearfile_archive_fails(struct archive *archive) {
  nearfile_error error;
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;
  nearfile_last_error(&error);
  archive_set_error(archive, EIO, "%s", error.message);
  return ARCHIVE_FATAL;
}

static inline la_ssize_t nearfile_archive_read(struct archive *archive, void *arg, const void **out_buf) {
  nearfile_archive_state *state = (nearfile_archive_state *)arg;
  int64_t n = nearfile_read(state->file, state->buf, sizeof state->buf);
  *out_buf = state->buf;
  return n < 0 ? nearfile_archive_fails(archive) : (la_ssize_t)n;
}

static inline la_int64_t nearfile_archive_seek(struct archive *archive, void *arg, la_int64_t offset, int whence) {
  nearfile_archive_state *state = (nearfile_archive_state *)arg;
  int32_t from = whence == SEEK_END ? NEARFILE_SEEK_END : whence == SEEK_CUR ? NEARFILE_SEEK_CUR : NEARFILE_SEEK_SET;
  int64_t position = nearfile_seek(state->file, offset, from);
  return position < 0 ? nearfile_archive_fails(archive) : position;
}

/* Skips no further than the end, where libarchive must find it. */
static inline la_int64_t nearfile_archive_skip(struct archive *archive, void *arg, la_int64_t request) {
  nearfile_archive_state *state = (nearfile_archive_state *)arg;
  int64_t left = nearfile_size(state->file) - nearfile_tell(state->file);
  (void)archive;
  if (request > left) request = left;
  return request <= 0 || nearfile_seek(state->file, request, NEARFILE_SEEK_CUR) < 0 ? 0 : request;
}

static inline int nearfile_archive_close(struct archive *archive, void *arg) {
  nearfile_archive_state *state = (nearfile_archive_state *)arg;
  (void)archive;
  nearfile_close(state->file);
  free(state);
  return ARCHIVE_OK;
}

static inline int nearfile_archive_open(struct archive *archive, const nearfile_file *file) {
  nearfile_archive_state *state = (nearfile_archive_state *)malloc(sizeof *state);
  if (state == NULL) {
    archive_set_error(archive, ENOMEM, "out of memory");
    return ARCHIVE_FATAL;
  }
  if (nearfile_dup(file, &state->file) != NEARFILE_OK) {
    free(state);
    return nearfile_archive_fails(archive);
  }
  /* Of these only a wrong state of the archive fails, in which the state here would be nobody's. */
  if (archive_read_set_callback_data(archive, state) != ARCHIVE_OK ||
      archive_read_set_read_callback(archive, nearfile_archive_read) != ARCHIVE_OK ||
      archive_read_set_seek_callback(archive, nearfile_archive_seek) != ARCHIVE_OK ||
      archive_read_set_skip_callback(archive, nearfile_archive_skip) != ARCHIVE_OK ||
      archive_read_set_close_callback(archive, nearfile_archive_close) != ARCHIVE_OK) {
    nearfile_archive_close(archive, state);
    return ARCHIVE_FATAL;
  }
  return archive_read_open1(archive);
}

#ifdef __cplusplus
}
#endif
#endif
