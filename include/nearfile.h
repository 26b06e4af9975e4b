/* nearfile: the near copy of a far file.   SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A program hands over callbacks that read a remote file (S3, HDFS, HTTP, anything) and gets a file object back. What was read
 * once is served from a sparse file on the local disk, shared by the threads, processes and forked children of the machine, and
 * kept for the next run.
 *
 *     static int32_t read_at(void *c, uint64_t offset, void *buf, size_t len, size_t *out_len) {
 *       ssize_t n = pread(*(int *)c, buf, len, (off_t)offset);
 *       if (n < 0) return errno;
 *       *out_len = (size_t)n;
 *       return 0;
 *     }
 *     ...
 *     nearfile_source source = {.struct_size = sizeof source, .user_data = &fd, .read_at = read_at};
 *     nearfile_options options = {.struct_size = sizeof options, .key = "s3://bucket/data.zip", .version = etag, .size = size};
 *     nearfile_cache *cache;
 *     nearfile_file *file;
 *     if (nearfile_cache_open("/nvme/cache", NULL, &cache) || nearfile_open(cache, &source, &options, &file)) goto failed;
 *     int64_t n = nearfile_pread(file, buf, sizeof buf, 4096);
 *     nearfile_close(file);
 *     nearfile_cache_close(cache);
 *
 * Results. int32_t: 0 or a negative nearfile_status. int64_t: a count or position >= 0, or a negative nearfile_status.
 *   nearfile_last_error tells this thread's last failure in a sentence. A fault of the cache itself (a full disk, a damaged index, a
 *   stuck process) is no failure: the bytes come from the source.
 * Structs that the caller fills begin with struct_size; set it to sizeof, and everything that is not named to zero.
 * Threads. Every function may be called from any thread; a close must be the handle's last call.
 * Fork. Handles opened before fork() work in the child, whose misses open connections of their own; close them there or not.
 *
 * Hard limits
 *   - Linux, local file systems with hole punching (ext4, xfs, btrfs, tmpfs). A directory on NFS, FUSE or SMB is not shared between processes.
 *   - The remote file must not change under one version: give its ETag or generation as version, and another content is another
 *     near copy. What the source returns under one version is trusted.
 *   - The mirror of a file is never written, renamed or truncated by anyone else; a truncated index kills who has it mapped.
 *   - Files up to 2^63 - 1 bytes, pages of 1 byte to 1 GiB, 2^40 pages a file, keys up to 4,096 bytes, versions up to 1,024.
 *   - A callback must not longjmp, fork or read the same file through nearfile.
 */


#ifndef NEARFILE_H
#define NEARFILE_H

#include <stddef.h>
#include <stdint.h>

// Version of this header: major.
#define NEARFILE_VERSION_MAJOR 0

// Version of this header: minor. While major is 0, another minor may change the ABI.
#define NEARFILE_VERSION_MINOR 1

// Version of this header: patch.
#define NEARFILE_VERSION_PATCH 0

// No lines.
#define NEARFILE_LOG_OFF 0

// A defect of the library.
#define NEARFILE_LOG_ERROR 1

// The cache could not do its work; reads go on from the source.
#define NEARFILE_LOG_WARN 2

// Something worth knowing once.
#define NEARFILE_LOG_INFO 3

// What the library is doing.
#define NEARFILE_LOG_DEBUG 4

// nearfile_source.flags: read_at keeps no state of its own, so a forked child may use the parent's connection.
#define NEARFILE_SOURCE_FORK_SAFE 1

// nearfile_cache_options.when_full: pages of less use are given up, those of outdated versions and of closed files first.
#define NEARFILE_FULL_EVICT 0

// nearfile_cache_options.when_full: what is there stays; nothing more is kept.
#define NEARFILE_FULL_STOP 1

// nearfile_cache_options.when_full: all pages of the file that is read are dropped, and it starts again.
#define NEARFILE_FULL_FLUSH 2

// nearfile_options.size: asked of the source at open.
#define NEARFILE_SIZE_UNKNOWN UINT64_MAX

// nearfile_options.mode: whole pages are fetched and kept.
#define NEARFILE_PAGED 0

// nearfile_options.mode: only the bytes asked for and not there yet are read and kept, to the byte. Private only: no key, no paths. A
// forked child starts its own copy.
#define NEARFILE_EXACT 1

// nearfile_options.flags: copy hits from a map of the near copy: no system call a hit. The one danger: a disk error under the map, or
// a truncation of the near copy by the same user, is then a SIGBUS, which reads survive without this flag. Ignored, with a line in
// the log, on tmpfs; ignored in exact mode.
#define NEARFILE_MAP 1

// nearfile_options.flags: a miss is NEARFILE_ERROR_FROZEN, and nothing is given up while the file is open. With data_path and
// index_path no source is needed, and they may lie where nothing can be written.
#define NEARFILE_FROZEN 2

// nearfile_options.flags: compare a page's checksum at every hit, not at its first of a session; for disks that are not trusted.
#define NEARFILE_VERIFY_ALWAYS 4

// nearfile_options.flags: do not compare pages of a session that was opened after a clean close.
#define NEARFILE_TRUST_CLEAN 8

// nearfile_options.flags: read nothing ahead, and call the source on the thread that reads only.
#define NEARFILE_READAHEAD_OFF 16

// nearfile_prefetch flags: return at once; the library's own threads fetch. What is not done when the file is closed is left.
#define NEARFILE_PREFETCH_NOWAIT 1

// From the start of the file, as SEEK_SET.
#define NEARFILE_SEEK_SET 0

// From the position, as SEEK_CUR.
#define NEARFILE_SEEK_CUR 1

// From the end of the file, as SEEK_END.
#define NEARFILE_SEEK_END 2

// What functions return: 0 or more is success. The numbers never change and are never reused.
typedef enum nearfile_status {
  // Done.
  NEARFILE_OK = 0,
  // An argument is out of its range; nearfile_last_error says which, and what would do.
  NEARFILE_ERROR_ARGUMENT = -1,
  // The operating system refused something that has no way around it; os_errno tells.
  NEARFILE_ERROR_IO = -2,
  // A callback of the source failed (source_code is what it returned) or returned what cannot be.
  NEARFILE_ERROR_SOURCE = -3,
  // The source ended before the size given at open.
  NEARFILE_ERROR_SHORT_SOURCE = -4,
  // A frozen file misses the bytes.
  NEARFILE_ERROR_FROZEN = -5,
  // A forked child needs a connection, and the source has no open.
  NEARFILE_ERROR_FORKED = -6,
  // A path is taken.
  NEARFILE_ERROR_EXISTS = -7,
  // The program's own progress callback ended it.
  NEARFILE_ERROR_CANCELLED = -8,
  // This version does not have it.
  NEARFILE_ERROR_UNSUPPORTED = -9,
  // Not enough memory.
  NEARFILE_ERROR_NO_MEMORY = -10,
  // A defect in nearfile: please report it.
  NEARFILE_ERROR_INTERNAL = -99,
} nearfile_status;

// A cache directory, open. Used from any thread, and in children forked after it was opened.
typedef struct nearfile_cache nearfile_cache;

// An open near copy. Used from any thread and in children forked after it was opened; one position a handle.
typedef struct nearfile_file nearfile_file;

// A range of a file, held in memory. Used from any thread. A forked child holds its parent's pins for itself, until it releases them or
// ends: one that lives long releases those that it does not need.
typedef struct nearfile_pin nearfile_pin;

// This thread's last failure.
typedef struct nearfile_error {
  // sizeof(nearfile_error), set by the caller.
  size_t struct_size;
  // A nearfile_status; 0 where nothing has failed on this thread.
  int32_t status;
  // The system's errno; 0 where it had none.
  int32_t os_errno;
  // What the source's callback returned; 0 where none failed.
  int64_t source_code;
  // One sentence, UTF-8, terminated, cut to fit.
  char message[256];
} nearfile_error;

// Receives lines of the log: a level (NEARFILE_LOG_...) and one line of UTF-8, valid during the call. Called on any thread; must
// not throw, and must not call nearfile.
typedef void (*nearfile_log_callback)(void *user_data, int32_t level, const char *message);

// Choices for a cache directory, as this process uses it. Zero means the default.
typedef struct nearfile_cache_options {
  // sizeof(nearfile_cache_options), set by the caller.
  size_t struct_size;
  // The directory's limit, bytes, over all processes and files, held at every instant. It is the directory's from then on; 0 keeps
  // what it has, which at first is no limit. Counted in whole 4 KiB blocks of mirrors; indexes are not counted.
  uint64_t size_limit;
  // Bytes of the file system that are left free; 0: none.
  uint64_t min_free;
  // Bytes a page, 1 to 1 GiB; 0: 1 MiB.
  uint64_t page_size;
  // The most that one source read asks for, bytes, 1 to 1 GiB; 0: 8 MiB. Absent pages side by side become one read up to here.
  uint64_t max_fetch_bytes;
  // What this process does when a page does not fit: NEARFILE_FULL_EVICT, _STOP, _FLUSH.
  uint32_t when_full;
  // No flag in this version: 0.
  uint32_t flags;
  // The longest wait for another's fetch of a page, milliseconds from its last progress; then the read goes to the source itself.
  // 0: 10,000.
  uint32_t wait_ms;
  // Threads of this process that fetch beside the one that reads, at most, up to 1,024; 0: 16. None is started before it has something
  // to do (reading ahead, several requests of one read or batch, a prefetch that is not waited for); idle ones end after two seconds.
  uint32_t workers;
} nearfile_cache_options;

// Numbers of a file (this process's) or of a cache (of all processes, since the directory was made).
typedef struct nearfile_stats {
  // sizeof(nearfile_stats), set by the caller.
  size_t struct_size;
  // Reads of which every page was present.
  uint64_t hits;
  // Reads of which at least one page was not.
  uint64_t misses;
  // Reads that waited for another's fetch.
  uint64_t waits;
  // Bytes asked for, within the file.
  uint64_t bytes_asked;
  // Bytes given.
  uint64_t bytes_served;
  // Calls of the source's read_at or read.
  uint64_t source_reads;
  // Bytes that those gave.
  uint64_t source_bytes;
  // Reads, sizes and opens of the source that failed.
  uint64_t source_errors;
  // Pages stored.
  uint64_t pages_fetched;
  // Pages whose checksum was compared with the mirror and matched.
  uint64_t pages_verified;
  // Pages whose checksum did not match; they were fetched again.
  uint64_t checksum_failures;
  // Reads that went to the source, wholly or in part, without being kept: a local fault or a stuck holder.
  uint64_t passed_through;
  // Pages given up for others.
  uint64_t pages_evicted;
  // Pages present now.
  uint64_t cached_pages;
  // Bytes of those.
  uint64_t cached_bytes;
  // The limit in force, bytes; 0: none.
  uint64_t size_limit;
} nearfile_stats;

// One near copy in a cache directory. The strings are valid during the call that shows it.
typedef struct nearfile_entry {
  // sizeof(nearfile_entry) as the library has it.
  size_t struct_size;
  // What names the remote file.
  const char *key;
  // What names its content.
  const char *version;
  // Where the mirror is.
  const char *data_path;
  // Where the index is.
  const char *index_path;
  // Bytes.
  uint64_t size;
  // Bytes a page.
  uint64_t page_size;
  // Pages present.
  uint64_t cached_pages;
  // Bytes of those.
  uint64_t cached_bytes;
  // 1 if some process has it open, else 0.
  uint32_t open;
  // 1 if a newer near copy of the key is there, else 0.
  uint32_t outdated;
} nearfile_entry;

// Receives one entry; 0 goes on, anything else ends the list.
typedef int32_t (*nearfile_list_callback)(void *user_data, const struct nearfile_entry *entry);

// A way to read a remote file: read_at, or read and seek; the rest may be NULL.
//
// Callbacks return 0, or a code of their own, which nearfile_error.source_code passes on. They may run on any thread that reads and, where
// there is an open, max_connections is more than 1 or read_at is NEARFILE_SOURCE_FORK_SAFE, on threads of the library's own, unless the
// file was opened with NEARFILE_READAHEAD_OFF. They must not longjmp, fork, or read the same file through nearfile. A C++ exception
// passes through to the C++ caller of the read; on a thread of the library's own nobody catches it, and the process ends. *out_len holds a value that is refused before each call, so a callback that forgets it stores nothing.
typedef struct nearfile_source {
  // sizeof(nearfile_source), set by the caller.
  size_t struct_size;
  // NEARFILE_SOURCE_FORK_SAFE, or 0.
  uint32_t flags;
  // The most connections open at once in one process. 0: 16 for read_at; 1 for read and seek. 1: callbacks never overlap. Read
  // and seek without open have 1 whatever is asked.
  uint32_t max_connections;
  // What open and release are given, and every other callback where there is no open.
  void *user_data;
  // Opens a connection: one socket, one FILE *. Called when first needed, in each process that needs one. A connection is used by
  // one call at a time. NULL: the connection is user_data, on which read_at may run on several threads at once.
  int32_t (*open)(void *user_data, void **out_connection);
  // Reads up to len bytes (at least 1) at offset into buf and sets *out_len. Fewer is fine and is read on; 0 is an error.
  int32_t (*read_at)(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len);
  // Reads up to len bytes where seek went, likewise.
  int32_t (*read)(void *connection, void *buf, size_t len, size_t *out_len);
  // Moves by whence (NEARFILE_SEEK_...) and sets *out_position, bytes from the start.
  int32_t (*seek)(void *connection, int64_t offset, int32_t whence, uint64_t *out_position);
  // Closes a connection that open made, in the process that opened it.
  void (*close)(void *connection);
  // Called once, in the process that gave the source to nearfile_open, when the last file over it is closed. Not called where
  // nearfile_open failed: user_data is the caller's still.
  void (*release)(void *user_data);
  // Sets *out_size, bytes. Asked for NEARFILE_SIZE_UNKNOWN only; NULL: seek to the end is asked instead.
  int32_t (*size)(void *connection, uint64_t *out_size);
} nearfile_source;

// Which file, and how it is read. Zero means the default, but for size.
typedef struct nearfile_options {
  // sizeof(nearfile_options), set by the caller.
  size_t struct_size;
  // What names the remote file, 1 to 4,096 bytes, terminated. NULL: private, gone at close.
  const char *key;
  // What names its content (an ETag, a generation), up to 1,024 bytes. Another version is another near copy. NULL: "".
  const char *version;
  // Bytes, at most 2^63 - 1. 0 is an empty file. NEARFILE_SIZE_UNKNOWN: asked of the source.
  uint64_t size;
  // Bytes a page, 1 to 1 GiB; 0: the cache's. A near copy that exists keeps its own (nearfile_page_size).
  uint64_t page_size;
  // The most bytes kept of this file by reads of this handle; 0: no limit of its own. What happens then is the cache's when_full.
  uint64_t size_limit;
  // NEARFILE_PAGED, NEARFILE_EXACT.
  uint32_t mode;
  // NEARFILE_MAP, NEARFILE_FROZEN, NEARFILE_VERIFY_ALWAYS, NEARFILE_TRUST_CLEAN, NEARFILE_READAHEAD_OFF.
  uint32_t flags;
  // With index_path: the mirror at a path of the program's choice, made if neither exists. Both or neither.
  const char *data_path;
  // With data_path: its index.
  const char *index_path;
} nearfile_options;

// One of a batch of reads.
typedef struct nearfile_range {
  // Where to read, bytes from the start.
  uint64_t offset;
  // Where to put it.
  void *buf;
  // Bytes to read.
  size_t len;
  // Set: the bytes read, as nearfile_pread returns them.
  size_t out_len;
  // Set: 0, or the status of this one.
  int32_t out_status;
} nearfile_range;

// Hears how far a prefetch has come, bytes; 0 goes on, anything else cancels it.
typedef int32_t (*nearfile_progress_callback)(void *user_data, uint64_t done_bytes, uint64_t total_bytes);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library that runs: major << 16 | minor << 8 | patch.
uint32_t nearfile_version(void);

// The version of the library that runs, "major.minor.patch". Never freed.
const char *nearfile_version_string(void);

// The name of a status, "NEARFILE_ERROR_IO"; "NEARFILE_UNKNOWN_STATUS" for a number that is none. Never NULL, never freed.
const char *nearfile_status_name(int32_t status);

// What a status means, in one sentence. Never NULL, never freed. nearfile_last_error says more of one failure.
const char *nearfile_status_message(int32_t status);

// Copies this thread's last failure to *out_error, whose struct_size the caller has set. A success does not clear it.
// Returns 0, or NEARFILE_ERROR_ARGUMENT.
int32_t nearfile_last_error(struct nearfile_error *out_error);

// Sends lines of level 1 to max_level (NEARFILE_LOG_...) to callback, for the whole process; NULL or NEARFILE_LOG_OFF: to nobody,
// as at first. The previous callback may still be running on another thread when this returns. Threads: any.
int32_t nearfile_set_log(nearfile_log_callback callback,
                         void *user_data,
                         int32_t max_level);

// Opens a cache directory, making it (0700) if need be, and sets *out_cache; on failure to NULL.
//
// dir NULL: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile. options NULL: the defaults. A directory that cannot be used
// (unwritable, another user's, open to writing by others) is no failure: reads go to the source or to a copy of this process's own,
// and the log says so. A path that names a file is NEARFILE_ERROR_ARGUMENT. Ended by nearfile_cache_close. Threads: any.
int32_t nearfile_cache_open(const char *dir,
                            const struct nearfile_cache_options *options,
                            struct nearfile_cache **out_cache);

// Ends a cache handle. Files opened through it stay usable. NULL does nothing.
void nearfile_cache_close(struct nearfile_cache *cache);

// Fills *out_stats, whose struct_size the caller has set, with the directory's numbers over all processes. Counts the present pages
// in every index: milliseconds a file, not for a hot path. Threads: any.
int32_t nearfile_cache_get_stats(const struct nearfile_cache *cache,
                                 struct nearfile_stats *out_stats);

// Gives up the least useful pages until the directory holds no more than keep_bytes, 0 or more. Pinned, frozen and just fetched pages
// stay. Threads: any.
int32_t nearfile_cache_trim(const struct nearfile_cache *cache,
                            uint64_t keep_bytes);

// Drops what is kept of a key, every version of it. Of a file that some process has open the pages go at once, and its files when
// the last process closes it, unless it is opened again before. Threads: any.
int32_t nearfile_cache_remove(const struct nearfile_cache *cache,
                              const char *key);

// Shows the near copies of the directory to callback, one after the other on this thread, in no order; the callback may call
// nearfile. Counts the pages of each. Returns 0, also when the callback ended it. Threads: any.
int32_t nearfile_cache_list(const struct nearfile_cache *cache,
                            nearfile_list_callback callback,
                            void *user_data);

// Opens the near copy of a remote file and sets *out_file; on failure to NULL, and source->user_data stays the caller's.
//
// source may be NULL with NEARFILE_FROZEN, data_path and index_path. The tables and strings are copied. Nothing is read from the source, but its size if that is unknown. cache may be NULL with
// data_path and index_path. What stands in the way of a near copy (a full disk, a foreign file of the same name) is no failure:
// the file is then cached for this process alone or read from the source, and the log says so. Ended by nearfile_close.
// Threads: any. Calls source->open and size or seek where the size is unknown.
int32_t nearfile_open(const struct nearfile_cache *cache,
                      const struct nearfile_source *source,
                      const struct nearfile_options *options,
                      struct nearfile_file **out_file);

// Opens another handle of the same file, at position 0, and sets *out_file. Ended by nearfile_close of its own. Threads: any.
int32_t nearfile_dup(const struct nearfile_file *file,
                     struct nearfile_file **out_file);

// Closes a handle; NULL does nothing. The last one of a file calls source->close and release, and the last one on the machine makes
// the near copy durable, which takes as long as the disk does. No other call on the handle may be under way.
void nearfile_close(struct nearfile_file *file);

// The size of the remote file, bytes; or NEARFILE_ERROR_ARGUMENT.
int64_t nearfile_size(const struct nearfile_file *file);

// Bytes a page, as the near copy has them; or NEARFILE_ERROR_ARGUMENT.
int64_t nearfile_page_size(const struct nearfile_file *file);

// Where the mirror is: a sparse file of which only what nearfile_extent calls cached may be read. For a private file a path below
// /proc/self/fd that this process can open. The file's, valid until it is closed; NULL where nothing is kept.
const char *nearfile_data_path(const struct nearfile_file *file);

// Where the index is, likewise.
const char *nearfile_index_path(const struct nearfile_file *file);

// Reads len bytes at the position into buf and moves it. Returns the bytes read: len, less only at the end of the file, 0 past it;
// or a status, and the position stays. Threads that share the handle get parts that follow each other. Calls the source for what
// is not present.
int64_t nearfile_read(const struct nearfile_file *file,
                      void *buf,
                      size_t len);

// Moves the position by whence: NEARFILE_SEEK_SET, _CUR or _END. Past the end is fine, and reads there return 0. Returns the
// position, or NEARFILE_ERROR_ARGUMENT, and it stays. Threads: any.
int64_t nearfile_seek(const struct nearfile_file *file,
                      int64_t offset,
                      int32_t whence);

// The position, bytes; or NEARFILE_ERROR_ARGUMENT.
int64_t nearfile_tell(const struct nearfile_file *file);

// Reads len bytes at offset into buf; the position does not matter and does not move. Returns the bytes read: len, less only at the
// end of the file, 0 at or past it; or a status, and what is in buf is undefined. Calls the source for what is not present.
// Threads: any, at once.
int64_t nearfile_pread(const struct nearfile_file *file,
                       void *buf,
                       size_t len,
                       uint64_t offset);

// Sets *out_cached to 1 if the byte at offset is in the near copy, else 0, and *out_end to where that answer ends: a walk from 0 in
// such steps, until out_end is the size, gives the whole picture. At or past the end: the size, and 0. Others may fetch and drop
// pages meanwhile. Never calls the source. Threads: any.
int32_t nearfile_extent(const struct nearfile_file *file,
                        uint64_t offset,
                        uint64_t *out_end,
                        int32_t *out_cached);

// Drops the pages that lie wholly in len bytes from offset (a range up to the end holds the short last page whole) and gives their
// space back, except pages that are pinned, frozen or being fetched just now. Reads of others go on and fetch what they miss. Threads: any.
int32_t nearfile_discard(const struct nearfile_file *file,
                         uint64_t offset,
                         uint64_t len);

// Fills *out_stats, whose struct_size the caller has set, with this process's numbers of the file. Threads: any.
int32_t nearfile_get_stats(const struct nearfile_file *file, struct nearfile_stats *out_stats);

// Reads count ranges, each as nearfile_pread does, and sets out_len and out_status of each; range_size is sizeof(nearfile_range). What
// they miss is fetched together: neighbours as one request, and as many requests at once as there are connections and workers.
// Returns 0, or the first status that is not 0; the others are read all the same. Threads: any.
int32_t nearfile_read_ranges(const struct nearfile_file *file,
                             struct nearfile_range *ranges,
                             size_t count,
                             size_t range_size);

// Reads what is absent of len bytes from offset, so that later reads are hits, and returns when it is there. Stops early, with 0, where a
// limit keeps things out. progress may be NULL; it is called on this thread, and NEARFILE_ERROR_CANCELLED is returned when it ends it.
//
// flags: 0, or NEARFILE_PREFETCH_NOWAIT: returns at once, and the library's own threads fetch; progress is not called, and errors are
// met by who reads. NEARFILE_ERROR_UNSUPPORTED where no thread of the library's may call the source. Threads: any.
int32_t nearfile_prefetch(const struct nearfile_file *file,
                          uint64_t offset,
                          uint64_t len,
                          uint32_t flags,
                          nearfile_progress_callback progress,
                          void *user_data);

// From now on a miss of this handle is NEARFILE_ERROR_FROZEN and the source is not touched; nobody gives up what is there while the
// handle is open. Threads: any.
int32_t nearfile_freeze(const struct nearfile_file *file);

// Freezes the handle and writes what is there to path, holes as holes, and its index to path.index; a file opened with these two as
// data_path and index_path has the same bytes. Both reach the disk before this returns, or neither is there.
// NEARFILE_ERROR_EXISTS where one of them exists: nothing is overwritten. In exact mode, pages of 4 KiB that are there as a whole
// (open the copy with page_size 4096, no key and the same size). Threads: any.
int32_t nearfile_preserve(const struct nearfile_file *file,
                          const char *path);

// Holds len bytes from offset in memory, as far as the file goes, and sets *out_pin; on failure to NULL. What is absent is read first.
//
// The bytes are the near copy's own, mapped, and no process gives them up before nearfile_pin_release, or the end of this process
// (and of its children that inherited the pin). Where that cannot be (tmpfs, exact mode, no near copy) they are a copy. Pins may overlap; each is released by itself, also
// after the file was closed. Threads: any. Calls the source for what is not present.
int32_t nearfile_pin_range(const struct nearfile_file *file,
                           uint64_t offset,
                           size_t len,
                           struct nearfile_pin **out_pin);

// The bytes of a pin, read only, valid until it is released; NULL for NULL.
const void *nearfile_pin_data(const struct nearfile_pin *pin);

// How many bytes a pin holds: as many as were asked for, less only at the end of the file; 0 for NULL.
size_t nearfile_pin_size(const struct nearfile_pin *pin);

// Releases a pin; NULL does nothing. Its bytes must not be used any more.
void nearfile_pin_release(struct nearfile_pin *pin);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* NEARFILE_H */
