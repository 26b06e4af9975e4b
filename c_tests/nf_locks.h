// Puts a program between the library and its locks: its own fcntl takes libc's place, and a hook runs after each lock call, to pause,
// stop or die there. Included after nf_test.h, by programs of one file.
#ifndef NF_LOCKS_H
#define NF_LOCKS_H

#include "nf_test.h"

#include <stdarg.h>
#include <sys/syscall.h>

// The lock bytes that src/format.rs numbers: of an index, page p is NF_LOCK_PAGE_0 + p; of `control`, the first is the directory's.
#define NF_LOCK_SESSION ((INT64_C(1) << 62) - 1)
#define NF_LOCK_FREEZE ((INT64_C(1) << 62) - 2)
#define NF_LOCK_GATE ((INT64_C(1) << 62) - 3)
#define NF_LOCK_PAGE_0 (INT64_C(1) << 62)
#define NF_LOCK_DIRECTORY (INT64_C(1) << 62)
#define NF_LOCK_EVICTOR (NF_LOCK_DIRECTORY + 1)
#define NF_LOCK_DIRECTORY_GATE (NF_LOCK_DIRECTORY + 3)

static void (*nf_after_lock)(int fd, const struct flock *lock, bool locked);  // after each that locks, had or refused
static void (*nf_after_look)(int fd, const struct flock *lock, bool locked);  // after each that only asks
static _Atomic uint64_t nf_lock_calls;

static int nf_lock_call(int fd, int command, void *argument) {
  int result = (int)syscall(SYS_fcntl, fd, command, argument);
  if (command == F_OFD_SETLK && ((struct flock *)argument)->l_type != F_UNLCK) {
    int saved = errno;
    atomic_fetch_add(&nf_lock_calls, 1);
    if (nf_after_lock != NULL) nf_after_lock(fd, argument, result == 0);
    errno = saved;
  }
  if (command == F_OFD_GETLK && nf_after_look != NULL) nf_after_look(fd, argument, false);
  return result;
}

int fcntl(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void *argument = va_arg(arguments, void *);
  va_end(arguments);
  return nf_lock_call(fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void *argument = va_arg(arguments, void *);
  va_end(arguments);
  return nf_lock_call(fd, command, argument);
}

static uint64_t nf_pause_seed;
static unsigned nf_pause_locked_us, nf_pause_refused_us;

// A hook: every other call is followed by a pause, of up to so many microseconds.
static inline void nf_pause_at_random(int fd, const struct flock *lock, bool locked) {
  (void)fd, (void)lock;
  unsigned most = locked ? nf_pause_locked_us : nf_pause_refused_us;
  if (most != 0 && nf_below(&nf_pause_seed, 2)) nf_sleep_us((unsigned)nf_below(&nf_pause_seed, most));
}

#endif
