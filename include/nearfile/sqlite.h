/* nearfile/sqlite.h: SQLite databases in nearfile_files, through a read-only VFS.
 *
 * Header only, C11 and C++17; link with -lnearfile -lsqlite3.
 *
 *     nearfile_sqlite *vfs = NULL;
 *     sqlite3 *db = NULL;
 *     if (nearfile_sqlite_register("near", NULL, NULL, &vfs) != SQLITE_OK) return fail();
 *     nearfile_sqlite_add(vfs, "genes.db", file);                              file: any nearfile_file; yours still, and may be closed
 *     if (sqlite3_open_v2("genes.db", &db, SQLITE_OPEN_READONLY, "near") != SQLITE_OK) puts(nearfile_sqlite_message());
 *     sqlite3_exec(db, "SELECT ...", row, NULL, NULL);
 *     sqlite3_close(db);
 *     nearfile_sqlite_unregister(vfs);
 *
 * What it gives. Names are those added, or those that a callback turns into files; both work in ATTACH 'file:NAME?vfs=near' too. The
 *   database is immutable: no locks, no journals, no change counter is looked at, and writing is SQLITE_READONLY. Temporary files
 *   of sorts go to the default VFS. Give nearfile pages of 16 to 64 KiB: a query touches few pages of SQLite, far from each other.
 * What is refused. A database in WAL mode, because what its -wal file holds is not in it: SQLITE_CANTOPEN. Run PRAGMA
 *   journal_mode=DELETE on it before it is published.
 * Ownership. The set holds a nearfile_dup of what was added, and each connection one of its own. A handle that the callback returns is
 *   the connection's, which closes it. A nearfile_sqlite lives until it is unregistered, after the last connection over it was closed.
 * Threads. As SQLite's: connections in several threads read at once. Add, remove and the callback run from any thread.
 * Forks. SQLite's rule: a connection is not carried over fork(). A set is: its files can be opened in children.
 * Errors. What fails to be read is SQLITE_IOERR_READ; nearfile_last_error on the same thread has the reason, and
 *   nearfile_sqlite_message says in words what this VFS last refused on this thread. SQLite's log hears it, too.
 */
#ifndef NEARFILE_SQLITE_H
#define NEARFILE_SQLITE_H

#include <nearfile.h>

#include <sqlite3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A VFS of this header, registered with SQLite. */
typedef struct nearfile_sqlite nearfile_sqlite;

/* Finds the file of a name that was not added: a handle for one connection, which closes it; NULL: there is none. */
typedef nearfile_file *(*nearfile_sqlite_callback)(void *user_data, const char *name);

/* Registers a VFS under a name that is not taken. callback may be NULL. SQLITE_OK, or SQLite's code. */
static inline int nearfile_sqlite_register(const char *vfs_name, nearfile_sqlite_callback callback, void *user_data,
                                           nearfile_sqlite **out_vfs);

/* Takes the VFS away, and the files of its set. */
static inline void nearfile_sqlite_unregister(nearfile_sqlite *vfs);

/* Names a file; what the name meant before is open for those who have it open. SQLITE_OK, SQLITE_NOMEM or SQLITE_MISUSE. */
static inline int nearfile_sqlite_add(nearfile_sqlite *vfs, const char *name, const nearfile_file *file);

/* Forgets a name. Connections keep what they have. */
static inline void nearfile_sqlite_remove(nearfile_sqlite *vfs, const char *name);

/* Why a database was last not opened or not read by this thread; "" where that has not been. Never NULL. */
static inline const char *nearfile_sqlite_message(void);

/* ---- Below: how it is done. ---- */

/* One in a program and thread, whichever of its files include this header. */
__attribute__((weak)) __thread char nearfile_sqlite_said[512];

typedef struct nearfile_sqlite_entry {
  struct nearfile_sqlite_entry *next;
  nearfile_file *file;
  char          *name;
} nearfile_sqlite_entry;

struct nearfile_sqlite {
  sqlite3_vfs              vfs; /* its pAppData is this */
  sqlite3_vfs             *base;
  nearfile_sqlite_callback callback;
  void                    *user_data;
  sqlite3_mutex           *mutex; /* of entries; NULL where SQLite has no threads */
  nearfile_sqlite_entry   *entries;
  char                    *name;
};

typedef struct nearfile_sqlite_file {
  sqlite3_file   base;
  nearfile_file *file;
  char           name[256]; /* of its messages */
} nearfile_sqlite_file;

static inline const char *nearfile_sqlite_message(void) { return nearfile_sqlite_said; }

static inline int nearfile_sqlite_fails(int code, const char *name, const char *why) {
  snprintf(nearfile_sqlite_said, sizeof nearfile_sqlite_said, "%.200s: %s", name, why);
  sqlite3_log(code, "nearfile: %s", nearfile_sqlite_said);
  return code;
}

/* ---- A file ---- */

static inline int nearfile_sqlite_close(sqlite3_file *arg) {
  nearfile_close(((nearfile_sqlite_file *)arg)->file);
  return SQLITE_OK;
}

static inline int nearfile_sqlite_read(sqlite3_file *arg, void *buf, int len, sqlite3_int64 offset) {
  nearfile_sqlite_file *mine = (nearfile_sqlite_file *)arg;
  int64_t n = nearfile_pread(mine->file, buf, (size_t)len, (uint64_t)offset);
  if (n < 0) {
    nearfile_error error;
    memset(&error, 0, sizeof error);
    error.struct_size = sizeof error;
    nearfile_last_error(&error);
    return nearfile_sqlite_fails(SQLITE_IOERR_READ, mine->name, error.message);
  }
  if (n == len) return SQLITE_OK;
  memset((char *)buf + n, 0, (size_t)(len - n)); /* SQLite asks for it */
  return SQLITE_IOERR_SHORT_READ;
}

static inline int nearfile_sqlite_write(sqlite3_file *arg, const void *buf, int len, sqlite3_int64 offset) {
  (void)arg, (void)buf, (void)len, (void)offset;
  return SQLITE_READONLY;
}

static inline int nearfile_sqlite_truncate(sqlite3_file *arg, sqlite3_int64 size) {
  (void)arg, (void)size;
  return SQLITE_READONLY;
}

static inline int nearfile_sqlite_nothing(sqlite3_file *arg, int flags) { /* sync, lock, unlock */
  (void)arg, (void)flags;
  return SQLITE_OK;
}

static inline int nearfile_sqlite_size(sqlite3_file *arg, sqlite3_int64 *out_size) {
  *out_size = nearfile_size(((nearfile_sqlite_file *)arg)->file);
  return SQLITE_OK;
}

static inline int nearfile_sqlite_reserved(sqlite3_file *arg, int *out_reserved) {
  (void)arg;
  *out_reserved = 0;
  return SQLITE_OK;
}

static inline int nearfile_sqlite_control(sqlite3_file *arg, int operation, void *value) {
  (void)arg, (void)operation, (void)value;
  return SQLITE_NOTFOUND;
}

static inline int nearfile_sqlite_sector(sqlite3_file *arg) {
  (void)arg;
  return 0; /* SQLite's default */
}

static inline int nearfile_sqlite_characteristics(sqlite3_file *arg) {
  (void)arg;
  return SQLITE_IOCAP_IMMUTABLE;
}

static inline const sqlite3_io_methods *nearfile_sqlite_methods(void) {
  /* Version 1 in SQLite's order: xClose, xRead, xWrite, xTruncate, xSync, xFileSize, xLock, xUnlock, xCheckReservedLock,
   * xFileControl, xSectorSize, xDeviceCharacteristics; no shared memory, no map. */
  static const sqlite3_io_methods methods = {
      1, nearfile_sqlite_close, nearfile_sqlite_read, nearfile_sqlite_write, nearfile_sqlite_truncate, nearfile_sqlite_nothing,
      nearfile_sqlite_size, nearfile_sqlite_nothing, nearfile_sqlite_nothing, nearfile_sqlite_reserved, nearfile_sqlite_control,
      nearfile_sqlite_sector, nearfile_sqlite_characteristics, NULL, NULL, NULL, NULL, NULL, NULL};
  return &methods;
}

/* ---- The set ---- */

/* Where the entry of a name is linked, or the end. */
static inline nearfile_sqlite_entry **nearfile_sqlite_place(nearfile_sqlite *vfs, const char *name) {
  nearfile_sqlite_entry **at = &vfs->entries;
  while (*at != NULL && strcmp((*at)->name, name) != 0) at = &(*at)->next;
  return at;
}

static inline void nearfile_sqlite_free_entry(nearfile_sqlite_entry *entry) {
  if (entry == NULL) return;
  nearfile_close(entry->file);
  free(entry->name);
  free(entry);
}

static inline char *nearfile_sqlite_copy(const char *text) {
  size_t size = strlen(text) + 1;
  char *copy = (char *)malloc(size);
  return copy == NULL ? NULL : (char *)memcpy(copy, text, size);
}

static inline void nearfile_sqlite_remove(nearfile_sqlite *vfs, const char *name) {
  nearfile_sqlite_entry **at, *gone;
  sqlite3_mutex_enter(vfs->mutex);
  at = nearfile_sqlite_place(vfs, name);
  gone = *at;
  if (gone != NULL) *at = gone->next;
  sqlite3_mutex_leave(vfs->mutex);
  nearfile_sqlite_free_entry(gone);
}

static inline int nearfile_sqlite_add(nearfile_sqlite *vfs, const char *name, const nearfile_file *file) {
  nearfile_sqlite_entry *entry = (nearfile_sqlite_entry *)calloc(1, sizeof *entry), **at, *gone;
  if (entry == NULL || (entry->name = nearfile_sqlite_copy(name)) == NULL || nearfile_dup(file, &entry->file) != NEARFILE_OK) {
    int code = entry == NULL || entry->name == NULL ? SQLITE_NOMEM : SQLITE_MISUSE;
    nearfile_sqlite_free_entry(entry);
    return code;
  }
  sqlite3_mutex_enter(vfs->mutex);
  at = nearfile_sqlite_place(vfs, name);
  gone = *at;
  entry->next = gone == NULL ? NULL : gone->next;
  *at = entry;
  sqlite3_mutex_leave(vfs->mutex);
  nearfile_sqlite_free_entry(gone);
  return SQLITE_OK;
}

/* A handle of one's own, from the set or from the callback. */
static inline nearfile_file *nearfile_sqlite_find(nearfile_sqlite *vfs, const char *name) {
  nearfile_file *found = NULL;
  nearfile_sqlite_entry *entry;
  sqlite3_mutex_enter(vfs->mutex);
  entry = *nearfile_sqlite_place(vfs, name);
  if (entry != NULL) nearfile_dup(entry->file, &found);
  sqlite3_mutex_leave(vfs->mutex);
  return entry == NULL && vfs->callback != NULL ? vfs->callback(vfs->user_data, name) : found;
}

/* ---- The VFS ---- */

/* Bytes 18 and 19 of a database are 2 in WAL mode (the write and the read version of its format). */
static inline int nearfile_sqlite_check(nearfile_sqlite_file *mine) {
  unsigned char header[20];
  int code = nearfile_sqlite_read(&mine->base, header, sizeof header, 0);
  if (code == SQLITE_IOERR_SHORT_READ) return SQLITE_OK; /* empty, or no database: SQLite says so */
  if (code == SQLITE_OK && (header[18] == 2 || header[19] == 2)) {
    return nearfile_sqlite_fails(SQLITE_CANTOPEN, mine->name,
                                 "the database is in WAL mode: PRAGMA journal_mode=DELETE before it is published");
  }
  return code;
}

static inline int nearfile_sqlite_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *out, int flags, int *out_flags) {
  nearfile_sqlite *self = (nearfile_sqlite *)vfs->pAppData;
  nearfile_sqlite_file *mine = (nearfile_sqlite_file *)(void *)out;
  int code;
  out->pMethods = NULL; /* SQLite does not close what was not opened */
  if ((flags & (SQLITE_OPEN_TEMP_DB | SQLITE_OPEN_TRANSIENT_DB | SQLITE_OPEN_TEMP_JOURNAL | SQLITE_OPEN_SUBJOURNAL)) != 0) {
    return self->base->xOpen(self->base, name, out, flags, out_flags);
  }
  if ((flags & SQLITE_OPEN_MAIN_DB) == 0 || name == NULL) return SQLITE_CANTOPEN;
  mine->file = nearfile_sqlite_find(self, name);
  if (mine->file == NULL) return nearfile_sqlite_fails(SQLITE_CANTOPEN, name, "no file of this name");
  snprintf(mine->name, sizeof mine->name, "%.200s", name);
  code = nearfile_sqlite_check(mine);
  if (code != SQLITE_OK) {
    nearfile_close(mine->file);
    return code;
  }
  out->pMethods = nearfile_sqlite_methods();
  if (out_flags != NULL) *out_flags = (flags & ~(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE)) | SQLITE_OPEN_READONLY;
  return SQLITE_OK;
}

static inline int nearfile_sqlite_delete(sqlite3_vfs *vfs, const char *name, int sync_directory) {
  (void)vfs, (void)name, (void)sync_directory;
  return SQLITE_READONLY;
}

static inline int nearfile_sqlite_access(sqlite3_vfs *vfs, const char *name, int flags, int *out_yes) {
  (void)vfs, (void)name, (void)flags;
  *out_yes = 0; /* asked of journals only, and there are none */
  return SQLITE_OK;
}

static inline int nearfile_sqlite_full_name(sqlite3_vfs *vfs, const char *name, int len, char *out) {
  (void)vfs;
  return snprintf(out, (size_t)len, "%s", name) < len ? SQLITE_OK : SQLITE_CANTOPEN;
}

static inline int nearfile_sqlite_randomness(sqlite3_vfs *vfs, int len, char *out) {
  sqlite3_vfs *base = ((nearfile_sqlite *)vfs->pAppData)->base;
  return base->xRandomness(base, len, out);
}

static inline int nearfile_sqlite_sleep(sqlite3_vfs *vfs, int us) {
  sqlite3_vfs *base = ((nearfile_sqlite *)vfs->pAppData)->base;
  return base->xSleep(base, us);
}

static inline int nearfile_sqlite_time(sqlite3_vfs *vfs, double *out) {
  sqlite3_vfs *base = ((nearfile_sqlite *)vfs->pAppData)->base;
  return base->xCurrentTime(base, out);
}

static inline void *nearfile_sqlite_dl_open(sqlite3_vfs *vfs, const char *name) {
  sqlite3_vfs *base = ((nearfile_sqlite *)vfs->pAppData)->base;
  return base->xDlOpen(base, name);
}

static inline void nearfile_sqlite_dl_error(sqlite3_vfs *vfs, int len, char *out) {
  sqlite3_vfs *base = ((nearfile_sqlite *)vfs->pAppData)->base;
  base->xDlError(base, len, out);
}

static inline void (*nearfile_sqlite_dl_symbol(sqlite3_vfs *vfs, void *library, const char *name))(void) {
  sqlite3_vfs *base = ((nearfile_sqlite *)vfs->pAppData)->base;
  return base->xDlSym(base, library, name);
}

static inline void nearfile_sqlite_dl_close(sqlite3_vfs *vfs, void *library) {
  sqlite3_vfs *base = ((nearfile_sqlite *)vfs->pAppData)->base;
  base->xDlClose(base, library);
}

static inline int nearfile_sqlite_last_error(sqlite3_vfs *vfs, int len, char *out) {
  (void)vfs;
  if (len > 0) snprintf(out, (size_t)len, "%s", nearfile_sqlite_said);
  return 0;
}

static inline void nearfile_sqlite_free(nearfile_sqlite *vfs) {
  if (vfs == NULL) return;
  while (vfs->entries != NULL) {
    nearfile_sqlite_entry *gone = vfs->entries;
    vfs->entries = gone->next;
    nearfile_sqlite_free_entry(gone);
  }
  sqlite3_mutex_free(vfs->mutex);
  free(vfs->name);
  free(vfs);
}

static inline void nearfile_sqlite_unregister(nearfile_sqlite *vfs) {
  if (vfs != NULL) sqlite3_vfs_unregister(&vfs->vfs);
  nearfile_sqlite_free(vfs);
}

static inline int nearfile_sqlite_register(const char *vfs_name, nearfile_sqlite_callback callback, void *user_data,
                                           nearfile_sqlite **out_vfs) {
  sqlite3_vfs *base = sqlite3_vfs_find(NULL); /* initialises SQLite */
  nearfile_sqlite *made = (nearfile_sqlite *)calloc(1, sizeof *made);
  int code = SQLITE_NOMEM, size = (int)sizeof(nearfile_sqlite_file);
  *out_vfs = NULL;
  if (base == NULL || sqlite3_vfs_find(vfs_name) != NULL) code = SQLITE_MISUSE;
  if (code == SQLITE_MISUSE || made == NULL || (made->name = nearfile_sqlite_copy(vfs_name)) == NULL) {
    nearfile_sqlite_free(made);
    return code;
  }
  made->base = base;
  made->callback = callback;
  made->user_data = user_data;
  made->mutex = sqlite3_mutex_alloc(SQLITE_MUTEX_FAST);
  made->vfs.iVersion = 1;
  made->vfs.szOsFile = base->szOsFile > size ? base->szOsFile : size; /* temporary files are the base's */
  made->vfs.mxPathname = 4096;
  made->vfs.zName = made->name;
  made->vfs.pAppData = made;
  made->vfs.xOpen = nearfile_sqlite_open;
  made->vfs.xDelete = nearfile_sqlite_delete;
  made->vfs.xAccess = nearfile_sqlite_access;
  made->vfs.xFullPathname = nearfile_sqlite_full_name;
  made->vfs.xDlOpen = nearfile_sqlite_dl_open; /* SQLite calls them unasked where extensions are loaded */
  made->vfs.xDlError = nearfile_sqlite_dl_error;
  made->vfs.xDlSym = nearfile_sqlite_dl_symbol;
  made->vfs.xDlClose = nearfile_sqlite_dl_close;
  made->vfs.xRandomness = nearfile_sqlite_randomness;
  made->vfs.xSleep = nearfile_sqlite_sleep;
  made->vfs.xCurrentTime = nearfile_sqlite_time;
  made->vfs.xGetLastError = nearfile_sqlite_last_error;
  code = sqlite3_vfs_register(&made->vfs, 0);
  if (code == SQLITE_OK) *out_vfs = made;
  else nearfile_sqlite_free(made);
  return code;
}

#ifdef __cplusplus
}
#endif
#endif
