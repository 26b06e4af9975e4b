// Makes libc calls of the finished library fail: the program's own functions take libc's place, and tell the library's calls from all
// others by where they return to. One plan at a time: record what is called, or fail calls of some kinds from the k-th on. Counts lie
// in memory that forked children share. Included after nf_test.h, by one program.
#ifndef NF_FAULTS_H
#define NF_FAULTS_H

#include "nf_test.h"

#include <dirent.h>
#include <dlfcn.h>
#include <link.h>
#include <stdarg.h>
#include <sys/random.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unwind.h>

// ---- what can fail, and how ----------------------------------------------------------------------------------------------

// What is returned instead of an error: half of what was asked for, a byte, nothing.
enum { HALF = -1, ONE_BYTE = -2, NOTHING = -3 };

enum call {
  CALL_OPEN, CALL_OPEN64, CALL_OPENAT, CALL_CLOSE, CALL_PREAD, CALL_PWRITE, CALL_FSTAT, CALL_FSTAT64, CALL_FSTATAT, CALL_FSTATFS,
  CALL_FSTATVFS, CALL_FTRUNCATE, CALL_ALLOCATE, CALL_PUNCH, CALL_FSYNC, CALL_FDATASYNC, CALL_MMAP, CALL_MUNMAP, CALL_MADVISE,
  CALL_SETLK, CALL_UNLCK, CALL_GETLK, CALL_DUPFD, CALL_GETFL, CALL_RENAMEAT2, CALL_FUTEX, CALL_LINKAT, CALL_UNLINKAT, CALL_UNLINK,
  CALL_MKDIR, CALL_LSEEK, CALL_GETRANDOM, CALL_IOCTL, CALL_OPENDIR, CALL_READDIR, CALL_STAT, CALL_REALPATH, CALLS
};

#define FAULTS(...) {__VA_ARGS__, 0}
static const struct {
  const char *name;
  int faults[10];
} nf_calls[CALLS] = {
    [CALL_OPEN] = {"open", FAULTS(EIO, EINTR, EMFILE, ENFILE, ENOMEM, EROFS, EACCES, ENOENT)},
    [CALL_OPEN64] = {"open64", FAULTS(EIO, EINTR, EMFILE, ENOMEM, EACCES)},
    [CALL_OPENAT] = {"openat", FAULTS(EIO, ENOSPC, EDQUOT, EINTR, EMFILE, ENOMEM, EROFS, EACCES, EOPNOTSUPP)},
    [CALL_CLOSE] = {"close", FAULTS(EIO, EINTR, ENOSPC)},
    [CALL_PREAD] = {"pread", FAULTS(EIO, EINTR, ENOMEM, HALF, ONE_BYTE, NOTHING)},
    [CALL_PWRITE] = {"pwrite", FAULTS(EIO, ENOSPC, EDQUOT, EINTR, EFBIG, ENOMEM, HALF, ONE_BYTE, NOTHING)},
    [CALL_FSTAT] = {"fstat", FAULTS(EIO, ENOMEM, EACCES)},
    [CALL_FSTAT64] = {"fstat64", FAULTS(EIO, ENOMEM)},
    [CALL_FSTATAT] = {"fstatat", FAULTS(EIO, ENOMEM, EACCES)},
    [CALL_FSTATFS] = {"fstatfs", FAULTS(EIO, EINTR, ENOSYS)},
    [CALL_FSTATVFS] = {"fstatvfs", FAULTS(EIO, EINTR, ENOSYS)},
    [CALL_FTRUNCATE] = {"ftruncate", FAULTS(EIO, ENOSPC, EDQUOT, EINTR, EFBIG, EROFS)},
    [CALL_ALLOCATE] = {"fallocate", FAULTS(EIO, ENOSPC, EDQUOT, EINTR, EOPNOTSUPP, EFBIG)},
    [CALL_PUNCH] = {"fallocate(PUNCH_HOLE)", FAULTS(EIO, ENOSPC, EINTR, EOPNOTSUPP, EPERM)},
    [CALL_FSYNC] = {"fsync", FAULTS(EIO, ENOSPC, EDQUOT, EINTR, EROFS)},
    [CALL_FDATASYNC] = {"fdatasync", FAULTS(EIO, ENOSPC, EDQUOT, EINTR, EROFS)},
    [CALL_MMAP] = {"mmap", FAULTS(ENOMEM, EACCES, EAGAIN, ENODEV, EPERM)},
    [CALL_MUNMAP] = {"munmap", FAULTS(ENOMEM)},
    [CALL_MADVISE] = {"madvise", FAULTS(EINVAL, ENOMEM)},
    [CALL_SETLK] = {"fcntl(OFD_SETLK)", FAULTS(ENOLCK, EINVAL, EINTR, EIO, EAGAIN)},
    [CALL_UNLCK] = {"fcntl(OFD_SETLK, UNLCK)", FAULTS(ENOLCK, EINVAL, EINTR, EIO)},
    [CALL_GETLK] = {"fcntl(OFD_GETLK)", FAULTS(ENOLCK, EINVAL, EINTR, EIO)},
    [CALL_DUPFD] = {"fcntl(DUPFD)", FAULTS(EMFILE)},
    [CALL_GETFL] = {"fcntl(GETFL)", FAULTS(EIO, EBADF)},
    [CALL_RENAMEAT2] = {"renameat2", FAULTS(EIO, ENOSPC, EDQUOT, EINTR, EROFS, EACCES, EINVAL, ENOSYS)},
    [CALL_FUTEX] = {"futex", FAULTS(EAGAIN, EINTR, ENOSYS, EFAULT)},
    [CALL_LINKAT] = {"linkat", FAULTS(EIO, ENOSPC, EPERM, EMLINK)},
    [CALL_UNLINKAT] = {"unlinkat", FAULTS(EIO, EROFS, EACCES, EINTR)},
    [CALL_UNLINK] = {"unlink", FAULTS(EIO, EROFS, EACCES)},
    [CALL_MKDIR] = {"mkdir", FAULTS(EIO, ENOSPC, EDQUOT, EROFS, EACCES)},
    [CALL_LSEEK] = {"lseek", FAULTS(EIO, EINVAL)},
    [CALL_GETRANDOM] = {"getrandom", FAULTS(EIO, EINTR, ENOSYS, HALF, ONE_BYTE)},
    [CALL_IOCTL] = {"ioctl", FAULTS(EIO, EOPNOTSUPP, EINTR)},
    [CALL_OPENDIR] = {"opendir", FAULTS(EIO, EMFILE, ENOMEM, EACCES)},
    [CALL_READDIR] = {"readdir64", FAULTS(EIO, ENOMEM)},
    [CALL_STAT] = {"stat64", FAULTS(EIO, EACCES)},
    [CALL_REALPATH] = {"realpath", FAULTS(EIO, EACCES, ENOMEM)},
};

static inline const char *nf_fault_name(int fault) {
  return fault == HALF ? "half" : fault == ONE_BYTE ? "one byte" : fault == NOTHING ? "nothing" : strerrorname_np(fault);
}

// ---- the plan --------------------------------------------------------------------------------------------------------------

enum { MOST_RECORDED = 20000 };

// A call of the library: which, the how manyeth of its kind, from where.
struct nf_call {
  enum call call;
  uint32_t ordinal;
  uint64_t site;        // the library's frames, as a number
  const char *entered;  // the function of the manual that it is in
};

struct nf_plan {
  bool armed, recording, forever;
  uint64_t mask;            // kinds of calls that fail
  int fault;                // how
  uint32_t from, from_step;  // which: the ordinal of a kind, or the step over all kinds
  _Atomic uint32_t ordinals[CALLS], steps, hits;
  uint32_t recorded;
  struct nf_call calls[MOST_RECORDED];
};

static struct nf_plan *nf_plan;  // NULL: nothing fails
static uintptr_t nf_library_start, nf_library_end;

static int nf_find_library(struct dl_phdr_info *info, size_t size, void *unused) {
  (void)size, (void)unused;
  if (strstr(info->dlpi_name, "libnearfile") == NULL) return 0;
  nf_library_start = info->dlpi_addr;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    uintptr_t end = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
    if (info->dlpi_phdr[i].p_type == PT_LOAD && end > nf_library_end) nf_library_end = end;
  }
  return 1;
}

static bool nf_is_library(uintptr_t at) { return at >= nf_library_start && at < nf_library_end; }

static _Unwind_Reason_Code nf_add_frame(struct _Unwind_Context *context, void *argument) {
  struct nf_call *into = argument;
  uintptr_t at = _Unwind_GetIP(context);
  if (!nf_is_library(at)) return into->entered == NULL ? _URC_NO_REASON : _URC_END_OF_STACK;
  into->site = into->site * 0x9E3779B97F4A7C15u + (at - nf_library_start);
  into->entered = "";
  Dl_info found;
  if (dladdr((void *)(at - 1), &found) != 0 && found.dli_sname != NULL) into->entered = found.dli_sname;
  return _URC_NO_REASON;
}

// Whether this call of the library fails; then errno is set, or *out_short says what is returned instead.
static bool nf_fails(enum call call, void *returns_to, int *out_short) {
  struct nf_plan *plan = nf_plan;
  if (plan == NULL || !plan->armed || !nf_is_library((uintptr_t)returns_to)) return false;
  uint32_t ordinal = atomic_fetch_add(&plan->ordinals[call], 1) + 1, step = atomic_fetch_add(&plan->steps, 1) + 1;
  if (plan->recording) {
    MUST(plan->recorded < MOST_RECORDED);
    struct nf_call *into = &plan->calls[plan->recorded++];
    *into = (struct nf_call){.call = call, .ordinal = ordinal};
    _Unwind_Backtrace(nf_add_frame, into);
    return false;
  }
  if ((plan->mask >> call & 1) == 0) return false;
  uint32_t now = plan->from != 0 ? ordinal : step, from = plan->from != 0 ? plan->from : plan->from_step;
  if (now < from || (now != from && !plan->forever && plan->from != 0)) return false;
  atomic_fetch_add(&plan->hits, 1);
  if (plan->fault > 0) {
    errno = plan->fault;
    return true;
  }
  if (out_short != NULL) *out_short = plan->fault;
  return false;
}

static inline void nf_faults_begin(void) {
  dl_iterate_phdr(nf_find_library, NULL);
  MUST(nf_library_end != 0);
  nf_plan = nf_shared(sizeof *nf_plan);
}

static inline void nf_faults_reset(void) { memset(nf_plan, 0, offsetof(struct nf_plan, calls)); }

// ---- libc's functions, ours first ------------------------------------------------------------------------------------------

#define RETURNS_TO __builtin_return_address(0)
#define NEXT(name)                                                \
  static __typeof__(name) *next;                                  \
  if (next == NULL) {                                             \
    void *nf_found = dlsym(RTLD_NEXT, #name);                     \
    memcpy(&next, &nf_found, sizeof next);                        \
  }
#define INTERPOSE(result, failure, call, name, parameters, arguments)    \
  result name parameters;                                                \
  result name parameters {                                               \
    NEXT(name)                                                           \
    return nf_fails(call, RETURNS_TO, NULL) ? failure : next arguments;  \
  }

INTERPOSE(int, -1, CALL_FSTAT, fstat, (int fd, struct stat *out), (fd, out))
INTERPOSE(int, -1, CALL_FSTAT64, fstat64, (int fd, struct stat64 *out), (fd, out))
INTERPOSE(int, -1, CALL_FSTATAT, fstatat, (int fd, const char *name, struct stat *out, int flags), (fd, name, out, flags))
INTERPOSE(int, -1, CALL_STAT, stat64, (const char *name, struct stat64 *out), (name, out))
INTERPOSE(int, -1, CALL_FSTATFS, fstatfs, (int fd, struct statfs *out), (fd, out))
INTERPOSE(int, -1, CALL_FSTATVFS, fstatvfs, (int fd, struct statvfs *out), (fd, out))
INTERPOSE(int, -1, CALL_FTRUNCATE, ftruncate, (int fd, off_t len), (fd, len))
INTERPOSE(int, -1, (how & FALLOC_FL_PUNCH_HOLE) != 0 ? CALL_PUNCH : CALL_ALLOCATE, fallocate, (int fd, int how, off_t at, off_t len),
          (fd, how, at, len))
INTERPOSE(int, -1, CALL_FSYNC, fsync, (int fd), (fd))
INTERPOSE(int, -1, CALL_FDATASYNC, fdatasync, (int fd), (fd))
INTERPOSE(void *, MAP_FAILED, CALL_MMAP, mmap, (void *at, size_t len, int access, int how, int fd, off_t from),
          (at, len, access, how, fd, from))
INTERPOSE(void *, MAP_FAILED, CALL_MMAP, mmap64, (void *at, size_t len, int access, int how, int fd, off64_t from),
          (at, len, access, how, fd, from))
INTERPOSE(int, -1, CALL_MUNMAP, munmap, (void *at, size_t len), (at, len))
INTERPOSE(int, -1, CALL_MADVISE, madvise, (void *at, size_t len, int advice), (at, len, advice))
INTERPOSE(int, -1, CALL_LINKAT, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
INTERPOSE(int, -1, CALL_UNLINKAT, unlinkat, (int fd, const char *name, int flags), (fd, name, flags))
INTERPOSE(int, -1, CALL_UNLINK, unlink, (const char *name), (name))
INTERPOSE(int, -1, CALL_MKDIR, mkdir, (const char *name, mode_t mode), (name, mode))
INTERPOSE(off_t, -1, CALL_LSEEK, lseek, (int fd, off_t to, int whence), (fd, to, whence))
INTERPOSE(off64_t, -1, CALL_LSEEK, lseek64, (int fd, off64_t to, int whence), (fd, to, whence))
INTERPOSE(DIR *, NULL, CALL_OPENDIR, opendir, (const char *name), (name))
INTERPOSE(struct dirent64 *, NULL, CALL_READDIR, readdir64, (DIR *list), (list))
INTERPOSE(char *, NULL, CALL_REALPATH, realpath, (const char *name, char *out), (name, out))

// The descriptor is closed all the same, as Linux does.
int close(int fd) {
  NEXT(close)
  int result = next(fd);
  return nf_fails(CALL_CLOSE, RETURNS_TO, NULL) ? -1 : result;
}

static size_t nf_shortened(size_t len, int how) { return how == HALF ? (len + 1) / 2 : how == ONE_BYTE && len > 0 ? 1 : len; }

ssize_t pread(int fd, void *buf, size_t len, off_t from) {
  NEXT(pread)
  int how = 0;
  if (nf_fails(CALL_PREAD, RETURNS_TO, &how)) return -1;
  return how == NOTHING ? 0 : next(fd, buf, nf_shortened(len, how), from);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t to) {
  NEXT(pwrite)
  int how = 0;
  if (nf_fails(CALL_PWRITE, RETURNS_TO, &how)) return -1;
  return how == NOTHING ? 0 : next(fd, buf, nf_shortened(len, how), to);
}

ssize_t getrandom(void *buf, size_t len, unsigned flags) {
  NEXT(getrandom)
  int how = 0;
  return nf_fails(CALL_GETRANDOM, RETURNS_TO, &how) ? -1 : next(buf, nf_shortened(len, how), flags);
}

// An int and a pointer are passed alike: the largest that is passed is taken and handed on.
#define THE_REST(last, type)      \
  va_list nf_rest;                \
  va_start(nf_rest, last);        \
  type rest = va_arg(nf_rest, type); \
  va_end(nf_rest)

int open(const char *name, int flags, ...) {
  NEXT(open)
  THE_REST(flags, mode_t);
  return nf_fails(CALL_OPEN, RETURNS_TO, NULL) ? -1 : next(name, flags, rest);
}

int open64(const char *name, int flags, ...) {
  NEXT(open64)
  THE_REST(flags, mode_t);
  return nf_fails(CALL_OPEN64, RETURNS_TO, NULL) ? -1 : next(name, flags, rest);
}

int openat(int dir, const char *name, int flags, ...) {
  NEXT(openat)
  THE_REST(flags, mode_t);
  return nf_fails(CALL_OPENAT, RETURNS_TO, NULL) ? -1 : next(dir, name, flags, rest);
}

static enum call nf_call_of_command(int command, const void *argument) {
  switch (command) {
    case F_OFD_SETLK: return ((const struct flock *)argument)->l_type == F_UNLCK ? CALL_UNLCK : CALL_SETLK;
    case F_OFD_GETLK: return CALL_GETLK;
    case F_DUPFD_CLOEXEC: return CALL_DUPFD;
    default: return CALL_GETFL;
  }
}

int fcntl(int fd, int command, ...) {
  NEXT(fcntl)
  THE_REST(command, void *);
  if (command == F_GETFD) return next(fd, command);  // a debug build's own check of its descriptors, which aborts
  return nf_fails(nf_call_of_command(command, rest), RETURNS_TO, NULL) ? -1 : next(fd, command, rest);
}

int ioctl(int fd, unsigned long request, ...) {
  NEXT(ioctl)
  THE_REST(request, void *);
  return nf_fails(CALL_IOCTL, RETURNS_TO, NULL) ? -1 : next(fd, request, rest);
}

long syscall(long number, ...) {
  NEXT(syscall)
  va_list rest;
  long a[6];
  va_start(rest, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
  va_end(rest);
  bool fails = (number == SYS_renameat2 && nf_fails(CALL_RENAMEAT2, RETURNS_TO, NULL)) ||
               (number == SYS_futex && nf_fails(CALL_FUTEX, RETURNS_TO, NULL));
  return fails ? -1 : next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#endif
