// Guards that whatever a cache directory holds or is, planted, foreign, damaged or forbidden, every byte read is right, nothing that
// is not the library's is followed, opened or written, and what is damaged is replaced. Some cases need a second user: run as root.
#include "nf_test.h"

#include <dirent.h>
#include <grp.h>
#include <sys/sysmacros.h>

enum { VERSION = 19, PAGE = 1000, SIZE = 30500, NOBODY = 65534 };

// ---- what is watched ---------------------------------------------------------------------------------------------------------

static atomic_int lines;
static char last_line[600];

static void count_line(void *user_data, int32_t level, const char *message) {
  (void)user_data;
  CHECK(level >= NEARFILE_LOG_ERROR && level <= NEARFILE_LOG_WARN && message[0] != 0 && strchr(message, '\n') == NULL);
  atomic_fetch_add(&lines, 1);
  snprintf(last_line, sizeof last_line, "%s", message);
}

// A file as it was: who, what, when, and every byte of it.
struct snap {
  char path[NF_PATH];
  struct stat stat;
  uint64_t hash;
};

static struct snap snap(const char *path) {
  struct snap snap = {.hash = 14695981039346656037u};
  snprintf(snap.path, sizeof snap.path, "%s", path);
  MUST(lstat(path, &snap.stat) == 0);
  char buf[8192];
  ssize_t n = 0;
  if (S_ISLNK(snap.stat.st_mode)) {
    n = readlink(path, buf, sizeof buf);
    for (ssize_t i = 0; i < n; i++) snap.hash = (snap.hash ^ (unsigned char)buf[i]) * 1099511628211u;
  } else if (S_ISREG(snap.stat.st_mode)) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    MUST(fd >= 0);
    while ((n = read(fd, buf, sizeof buf)) > 0) {
      for (ssize_t i = 0; i < n; i++) snap.hash = (snap.hash ^ (unsigned char)buf[i]) * 1099511628211u;
    }
    close(fd);
  }
  return snap;
}

static void check_untouched(int line, const struct snap *before) {
  struct stat there;
  if (lstat(before->path, &there) != 0) {
    nf_fail(__FILE__, line, "a file that is not the library's is gone");
    return;
  }
  struct snap now = snap(before->path);
  bool same = now.stat.st_ino == before->stat.st_ino && now.stat.st_dev == before->stat.st_dev &&
              now.stat.st_mode == before->stat.st_mode && now.stat.st_uid == before->stat.st_uid &&
              now.stat.st_gid == before->stat.st_gid && now.stat.st_nlink == before->stat.st_nlink &&
              now.stat.st_size == before->stat.st_size && now.stat.st_rdev == before->stat.st_rdev &&
              now.stat.st_mtim.tv_sec == before->stat.st_mtim.tv_sec &&
              now.stat.st_mtim.tv_nsec == before->stat.st_mtim.tv_nsec && now.hash == before->hash;
  if (!same) {
    fprintf(stderr, "  %s\n", before->path);
    nf_fail(__FILE__, line, "a file that is not the library's was changed");
  }
}
#define CHECK_UNTOUCHED(snap) check_untouched(__LINE__, snap)

// Entries of a directory whose name ends so; all with "".
static int count_entries(const char *path, const char *ending) {
  DIR *dir = opendir(path);
  MUST(dir != NULL);
  int count = 0;
  for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
    size_t name = strlen(entry->d_name), end = strlen(ending);
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    count += name >= end && strcmp(entry->d_name + name - end, ending) == 0;
  }
  closedir(dir);
  return count;
}

static void put_file(const char *path, const void *bytes, size_t len) {
  int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
  MUST(fd >= 0 && write(fd, bytes, len) == (ssize_t)len);
  close(fd);
}

static void put_garbage(const char *path, size_t len) {
  unsigned char *bytes = malloc(len + 1);
  MUST(bytes != NULL);
  nf_fill(bytes, len, 12345, 999);
  put_file(path, bytes, len);
  free(bytes);
}

static void patch(const char *path, off_t at, unsigned char xor) {
  int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  unsigned char byte;
  MUST(fd >= 0 && pread(fd, &byte, 1, at) == 1);
  byte ^= xor;
  MUST(pwrite(fd, &byte, 1, at) == 1);
  close(fd);
}

// ---- using a directory -------------------------------------------------------------------------------------------------------

enum kept { SHARED, PRIVATE, NOTHING };

struct used {
  enum kept kept;
  uint64_t source_reads;
  int lines;
  char data[NF_PATH], index[NF_PATH];
};

// Opens a cache directory, reads a file of it twice and closes it: no failure, every byte right, and kept if it says so.
static struct used use_at(int line, const char *dir) {
  struct used used = {0};
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_cache_options options = {.struct_size = sizeof options, .page_size = PAGE, .wait_ms = 2000};
  nearfile_cache *cache = NULL;
  nearfile_file *file = NULL;
  atomic_store(&lines, 0);
  last_line[0] = 0;
  nearfile_set_log(count_line, NULL, NEARFILE_LOG_WARN);
  if (nearfile_cache_open(dir, &options, &cache) != 0) nf_fail(__FILE__, line, "the directory does not open");
  MUST(cache != NULL);
  file = nf_open(cache, &source, "key", "v", SIZE, 0);
  int failures = nf_failures;
  nf_check_all(__FILE__, line, file, VERSION);
  used.source_reads = far->reads;
  const char *data = nearfile_data_path(file), *index = nearfile_index_path(file);
  if ((data == NULL) != (index == NULL)) nf_fail(__FILE__, line, "one path without the other");
  used.kept = data == NULL ? NOTHING : strncmp(data, "/proc/self/fd/", 14) == 0 ? PRIVATE : SHARED;
  snprintf(used.data, sizeof used.data, "%s", data ? data : "");
  snprintf(used.index, sizeof used.index, "%s", index ? index : "");
  nf_check_all(__FILE__, line, file, VERSION);
  if (used.kept != NOTHING) nf_equal(__FILE__, line, "source reads of the second time", "0", (long long)(far->reads - used.source_reads), 0);
  nearfile_stats stats = {.struct_size = sizeof stats};
  CHECK_EQ(nearfile_cache_get_stats(cache, &stats), 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
  nearfile_set_log(NULL, NULL, NEARFILE_LOG_OFF);
  used.lines = lines;
  if (used.kept != SHARED && used.lines == 0) nf_fail(__FILE__, line, "it is not shared, and the log does not say why");
  if (far->offences != 0 || far->releases != 1 || far->opens != far->closes) nf_fail(__FILE__, line, "the source was misused");
  if (nf_failures != failures && last_line[0] != 0) fprintf(stderr, "  the log says: %s\n", last_line);
  far_free(far);
  return used;
}
#define USE(dir) use_at(__LINE__, dir)

// Runs a case as another user, in nf_dir, which that user can reach by "." only.
static bool as_nobody(void (*run)(void)) {
  if (geteuid() != 0) {
    nf_fail(__FILE__, __LINE__, "this case needs a second user: run the tests as root");
    return false;
  }
  pid_t child = nf_fork(30);
  if (child == 0) {
    MUST(chdir(nf_dir) == 0);
    MUST(setgroups(0, NULL) == 0 && setgid(NOBODY) == 0 && setuid(NOBODY) == 0);
    MUST(prctl(PR_SET_DUMPABLE, 1) == 0);  // /proc/self belongs to the new user
    run();
    nf_child_ends();
  }
  CHECK_CHILD(child);
  return true;
}

static void make_dir(const char *name, mode_t mode, uid_t owner) {
  char path[NF_PATH];
  nf_path(path, name);
  MUST(mkdir(path, 0700) == 0);
  if (owner != geteuid()) MUST(chown(path, owner, owner) == 0);
  MUST(chmod(path, mode) == 0);
}

// ---- names, modes, descriptors ------------------------------------------------------------------------------------------------

static mode_t mode_of(const char *path) {
  struct stat stat_;
  MUST(lstat(path, &stat_) == 0);
  return stat_.st_mode & 07777;
}

static void modes(void) {
  static const mode_t masks[] = {0, 022, 077, 027};
  for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
    char name[40], path[NF_PATH], control[NF_PATH + 20];
    snprintf(name, sizeof name, "outer%zu/inner/cache", i);
    mode_t before = umask(masks[i]);
    struct used used = USE(nf_path(path, name));
    CHECK_EQ(umask(before), masks[i]);
    CHECK_EQ(used.kept, SHARED);
    CHECK_EQ(used.lines, 0);
    CHECK_EQ(mode_of(path), 0700);
    CHECK_EQ(mode_of(used.data), 0600);
    CHECK_EQ(mode_of(used.index), 0600);
    snprintf(control, sizeof control, "%s/control", path);
    CHECK_EQ(mode_of(control), 0600);
    CHECK_EQ(count_entries(path, ""), 3);  // and nothing else is left there
    snprintf(control, sizeof control, "%s/", path);
    CHECK(strncmp(used.data, control, strlen(control)) == 0 && strncmp(used.index, control, strlen(control)) == 0);
  }
}

static void dir_is_a_file(void) {
  char path[NF_PATH], below[NF_PATH + 20];
  put_garbage(nf_path(path, "file"), 100);
  struct snap before = snap(path);
  nearfile_cache *cache = (nearfile_cache *)&before;
  CHECK_EQ(nearfile_cache_open(path, NULL, &cache), NEARFILE_ERROR_ARGUMENT);
  CHECK(cache == NULL && strstr(nf_last_error().message, "file") != NULL);
  snprintf(below, sizeof below, "%s/a/b", path);
  CHECK_EQ(nearfile_cache_open(below, NULL, &cache), NEARFILE_ERROR_ARGUMENT);
  CHECK(cache == NULL);
  CHECK_UNTOUCHED(&before);
}

// The default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile; relative ones do not count.
static void default_directory(void) {
  char home[NF_PATH], xdg[NF_PATH], expected[NF_PATH + 40], relative[] = "relative";
  nf_path(home, "home"), nf_path(xdg, "xdg");
  const struct { const char *home, *xdg, *base, *rest; } cases[] = {
      {home, xdg, xdg, "/nearfile/"},          {home, NULL, home, "/.cache/nearfile/"}, {home, "", home, "/.cache/nearfile/"},
      {home, relative, home, "/.cache/nearfile/"}, {NULL, xdg, xdg, "/nearfile/"},      {NULL, NULL, NULL, NULL},
      {"", "", NULL, NULL},                    {relative, NULL, NULL, NULL}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    pid_t child = nf_fork(20);
    if (child == 0) {
      MUST(chdir(nf_dir) == 0);
      if (cases[i].home != NULL) setenv("HOME", cases[i].home, 1);
      else unsetenv("HOME");
      if (cases[i].xdg != NULL) setenv("XDG_CACHE_HOME", cases[i].xdg, 1);
      else unsetenv("XDG_CACHE_HOME");
      if (cases[i].base == NULL) {
        nearfile_cache *cache = (nearfile_cache *)&child;
        CHECK_EQ(nearfile_cache_open(NULL, NULL, &cache), NEARFILE_ERROR_ARGUMENT);
        CHECK(cache == NULL && strstr(nf_last_error().message, "HOME") != NULL);
      } else {
        struct used used = USE(NULL);
        CHECK_EQ(used.kept, SHARED);
        snprintf(expected, sizeof expected, "%s%s", cases[i].base, cases[i].rest);
        CHECK(strncmp(used.data, expected, strlen(expected)) == 0);
        CHECK_EQ(mode_of(expected), 0700);
      }
      struct stat none;
      CHECK(lstat(relative, &none) != 0);
      nf_child_ends();
    }
    CHECK_CHILD(child);
  }
}

static bool standard_taken;

static int32_t look_at_standard(far_file *far, uint64_t offset, size_t len) {
  (void)offset, (void)len;
  int closed = *(int *)far->hook_data;
  for (int fd = 0; fd < 3; fd++) standard_taken = standard_taken || ((closed >> fd & 1) && fcntl(fd, F_GETFD) != -1);
  return 0;
}

// A program that has closed its standard descriptors does not find the cache on them.
static void standard_descriptors(void) {
  for (int closed = 1; closed < 8; closed++) {
    for (int keyed = 0; keyed < 3; keyed++) {
      pid_t child = nf_fork(20);
      if (child == 0) {
        char name[20], data[NF_PATH], index[NF_PATH];
        far_file *far = far_new(SIZE, VERSION, PAGE);
        far->hook = look_at_standard, far->hook_data = &closed;
        nearfile_source source = far_source(far, FAR_AT);
        nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .key = keyed == 0 ? NULL : "key"};
        if (keyed == 2) {
          snprintf(name, sizeof name, "data%d", closed);
          options.data_path = nf_path(data, name);
          snprintf(name, sizeof name, "index%d", closed);
          options.index_path = nf_path(index, name);
        }
        int out = fcntl(2, F_DUPFD_CLOEXEC, 100);
        for (int fd = 0; fd < 3; fd++) {
          if (closed >> fd & 1) close(fd);
        }
        snprintf(name, sizeof name, "cache%d", closed);
        nearfile_cache *cache = nf_cache(name, PAGE, 0, 0);
        look_at_standard(far, 0, 0);
        nearfile_file *file = NULL;
        int32_t status = nearfile_open(cache, &source, &options, &file);
        look_at_standard(far, 0, 0);
        CHECK_ALL(file, VERSION);
        CHECK_EQ(nearfile_discard(file, 0, SIZE / 2), 0);
        CHECK_ALL(file, VERSION);
        look_at_standard(far, 0, 0);
        nearfile_close(file);
        nearfile_cache_close(cache);
        look_at_standard(far, 0, 0);
        dup2(out, 2);
        CHECK_EQ(status, 0);
        CHECK(!standard_taken);
        nf_child_ends();
      }
      CHECK_CHILD(child);
    }
  }
}

static int32_t look_at_all_descriptors(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  DIR *dir = opendir("/proc/self/fd");
  MUST(dir != NULL);
  for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
    int fd = atoi(entry->d_name), flags = fcntl(fd, F_GETFD);
    if (fd > 2 && flags != -1 && !(flags & FD_CLOEXEC)) nf_fail(__FILE__, __LINE__, "a descriptor would be inherited by exec");
  }
  closedir(dir);
  return 0;
}

static int count_descriptors(void) { return count_entries("/proc/self/fd", ""); }

// Nothing of the library goes through exec, and nothing stays open when all is closed.
static void descriptors(void) {
  pid_t child = nf_fork(20);
  if (child == 0) {
    closefrom(3);
    int before = count_descriptors();
    for (int round = 0; round < 50; round++) {
      nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
      far_file *far = far_new(SIZE, VERSION, PAGE);
      far->hook = look_at_all_descriptors;
      nearfile_file *file = nf_open_far(cache, far, FAR_AT, round % 2 ? "key" : NULL);
      CHECK_EQ(nearfile_discard(file, 0, SIZE / 2), 0);
      CHECK_PREAD(file, SIZE / 2, 0, VERSION);
      look_at_all_descriptors(far, 0, 0);
      nearfile_close(file);
      nearfile_cache_close(cache);
      far_free(far);
    }
    CHECK_EQ(count_descriptors(), before);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

// ---- directories that are not ours alone ---------------------------------------------------------------------------------------

static void writable_by_others(void) {
  static const mode_t modes[] = {0770, 0720, 0702, 0777, 01777};
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
    char name[20], path[NF_PATH];
    snprintf(name, sizeof name, "mode%o", (unsigned)modes[i]);
    make_dir(name, modes[i], geteuid());
    struct used used = USE(nf_path(path, name));
    CHECK_EQ(used.kept, PRIVATE);
    CHECK_EQ(count_entries(path, ""), 0);
    CHECK_EQ(mode_of(path), modes[i]);
  }
  // Shared once, opened up later: what lies there is not used any more, and not changed.
  char path[NF_PATH];
  struct used used = USE(nf_path(path, "later"));
  CHECK_EQ(used.kept, SHARED);
  struct snap data = snap(used.data), index = snap(used.index);
  MUST(chmod(path, 0770) == 0);
  CHECK_EQ(USE(path).kept, PRIVATE);
  CHECK_UNTOUCHED(&data);
  CHECK_UNTOUCHED(&index);
  MUST(chmod(path, 0755) == 0);  // others may look
  used = USE(path);
  CHECK_EQ(used.kept, SHARED);
  CHECK_EQ(used.source_reads, 0);
}

static void in_others_directories(void) {
  CHECK_EQ(USE("roots").kept, NOTHING);       // root's, 0755
  CHECK_EQ(USE("open").kept, PRIVATE);        // root's, 0777
  CHECK_EQ(USE("sticky").kept, PRIVATE);      // root's, 1777
  CHECK_EQ(USE("closed").kept, NOTHING);      // root's, 0700
  CHECK_EQ(USE("closed/below").kept, NOTHING);
  CHECK_EQ(USE("unwritable").kept, NOTHING);  // own, 0500
  CHECK_EQ(USE("group").kept, PRIVATE);       // own, 0770
  CHECK_EQ(USE("own").kept, SHARED);          // own, 0700
  CHECK_EQ(USE("own/deep/er").kept, SHARED);
}

static void as_a_second_user(void) {
  make_dir("roots", 0755, 0);
  make_dir("open", 0777, 0);
  make_dir("sticky", 01777, 0);
  make_dir("closed", 0700, 0);
  make_dir("unwritable", 0500, NOBODY);
  make_dir("group", 0770, NOBODY);
  make_dir("own", 0700, NOBODY);
  MUST(chmod(nf_dir, 0755) == 0);
  if (!as_nobody(in_others_directories)) return;
  static const char *empty[] = {"roots", "open", "sticky", "closed", "unwritable", "group"};
  for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
    char path[NF_PATH];
    CHECK_EQ(count_entries(nf_path(path, empty[i]), ""), 0);
  }
  // And root in the directory of that user: not root's own.
  char path[NF_PATH];
  struct used used = USE(nf_path(path, "own"));
  CHECK_EQ(used.kept, PRIVATE);
}

static void in_own_directory_with_roots_files(void) {
  CHECK(USE("planted-control").kept != SHARED);
  CHECK(USE("planted-index").kept != SHARED);
}

// Root's files planted in the user's own directory, readable and writable by all: not used, not written.
static void as_a_second_user_with_planted_files(void) {
  char path[NF_PATH], index_name[NF_PATH], planted[NF_PATH * 2];
  struct used used = USE(nf_path(path, "names"));
  snprintf(index_name, sizeof index_name, "%s", strrchr(used.index, '/') + 1);
  make_dir("planted-control", 0700, NOBODY);
  make_dir("planted-index", 0700, NOBODY);
  MUST(chmod(nf_dir, 0755) == 0);
  snprintf(planted, sizeof planted, "%s/planted-control/control", nf_dir);
  put_garbage(planted, 69632);
  MUST(chmod(planted, 0666) == 0);
  struct snap control = snap(planted);
  snprintf(planted, sizeof planted, "%s/planted-index/%s", nf_dir, index_name);
  put_garbage(planted, 20000);
  MUST(chmod(planted, 0666) == 0);
  struct snap index = snap(planted);
  if (!as_nobody(in_own_directory_with_roots_files)) return;
  CHECK_UNTOUCHED(&control);
  CHECK_UNTOUCHED(&index);
}

// ---- what may be planted in the place of a file ------------------------------------------------------------------------------

enum target { INDEX, DATA, CONTROL };
enum plant {
  LINK_TO_FILE, LINK_TO_NOTHING, LINK_TO_ITSELF, LINK_TO_DIRECTORY, DIRECTORY, FIFO, SOCKET, DEVICE, SECOND_NAME, OTHERS_FILE,
  OTHERS_MAY_WRITE, GROUP_MAY_WRITE, GARBAGE, OTHER_FORMAT, OTHER_ORDER, TRUNCATED, LONGER, ZEROS, EMPTY, MISSING, PLANTS
};
static const char *const plant_names[] = {
    "link to a file", "dangling link", "link to the file itself, moved away", "link to a directory", "directory", "fifo", "socket",
    "device", "second name", "another user's", "writable by others", "writable by a group", "garbage", "another format", "another byte order", "truncated", "longer",
    "zeros", "empty", "missing"};

// What must not be touched, where there is such a thing; and what must not come to be.
struct planted {
  struct snap snaps[2];
  int count;
  char unmade[NF_PATH];
};

static void guard(struct planted *planted, const char *path) { planted->snaps[planted->count++] = snap(path); }

static struct planted plant_it(const char *path, const char *aside, enum plant what) {
  struct planted planted = {0};
  struct stat was;
  MUST(lstat(path, &was) == 0);
  if (what <= DEVICE && what != LINK_TO_ITSELF) MUST(unlink(path) == 0);
  switch (what) {
    case LINK_TO_FILE:
      put_garbage(aside, (size_t)was.st_size);
      MUST(symlink(aside, path) == 0);
      guard(&planted, aside);
      break;
    case LINK_TO_NOTHING:
      MUST(symlink(aside, path) == 0);
      snprintf(planted.unmade, sizeof planted.unmade, "%s", aside);
      break;
    case LINK_TO_ITSELF:
      MUST(rename(path, aside) == 0 && symlink(aside, path) == 0);
      guard(&planted, aside);
      break;
    case LINK_TO_DIRECTORY: MUST(mkdir(aside, 0700) == 0 && symlink(aside, path) == 0); break;
    case DIRECTORY: MUST(mkdir(path, 0700) == 0); break;
    case FIFO: MUST(mkfifo(path, 0600) == 0); break;
    case SOCKET: MUST(mknod(path, S_IFSOCK | 0600, 0) == 0); break;
    case DEVICE:
      if (mknod(path, S_IFCHR | 0600, makedev(1, 5)) != 0) nf_fail(__FILE__, __LINE__, "mknod: run the tests as root");
      break;
    case SECOND_NAME: MUST(link(path, aside) == 0); break;
    case OTHERS_FILE:
      if (chown(path, NOBODY, NOBODY) != 0) nf_fail(__FILE__, __LINE__, "chown: run the tests as root");
      break;
    case OTHERS_MAY_WRITE: MUST(chmod(path, 0606) == 0); break;
    case GROUP_MAY_WRITE: MUST(chmod(path, 0660) == 0); break;
    case GARBAGE: put_garbage(path, (size_t)was.st_size); break;
    case OTHER_FORMAT: patch(path, 8, 0x40); break;
    case OTHER_ORDER:
      for (int at = 12; at < 16; at++) patch(path, at, (unsigned char)((16 - at) ^ (at - 11)));  // 04 03 02 01: 01 02 03 04
      break;
    case TRUNCATED: MUST(truncate(path, was.st_size / 2) == 0); break;
    case LONGER: MUST(truncate(path, was.st_size + 4096) == 0); break;
    case ZEROS: MUST(truncate(path, 0) == 0 && truncate(path, was.st_size) == 0); break;
    case EMPTY: MUST(truncate(path, 0) == 0); break;
    default: MUST(unlink(path) == 0); break;
  }
  struct stat now;
  if (what <= OTHER_ORDER && lstat(path, &now) == 0) guard(&planted, path);
  return planted;
}

// What is the library's own and damaged is made anew, what is not is left alone and the file cached privately.
static bool is_shared_after(enum target target, enum plant what) {
  if (what >= TRUNCATED) return true;
  if (what == GARBAGE || what == OTHER_FORMAT || what == OTHER_ORDER) return target == DATA;  // there, the pages' checksums tell
  return false;
}

static void check_plant(enum target target, enum plant what) {
  static int count;
  char name[40], dir[NF_PATH], path[NF_PATH * 2], aside[NF_PATH], other[4][NF_PATH * 2];
  char title[100];
  const char *outer = nf_case_name;
  snprintf(title, sizeof title, "%s: %s is %s", outer, target == INDEX ? "index" : target == DATA ? "mirror" : "control", plant_names[what]);
  nf_case_name = title;
  alarm(20);  // a FIFO must not be waited for
  snprintf(name, sizeof name, "cache%d", count);
  nf_path(dir, name);
  snprintf(name, sizeof name, "aside%d", count++);
  nf_path(aside, name);
  struct used used = USE(dir);
  CHECK_EQ(used.kept, SHARED);

  // Bystanders.
  static const char *const bystanders[] = {"notes.txt", "0123456789abcdef0123456789abcdef.data", "x.index", "y.tmp"};
  struct snap snaps[4];
  for (int i = 0; i < 4; i++) {
    snprintf(other[i], sizeof other[i], "%s/%s", dir, bystanders[i]);
    put_garbage(other[i], 5000);
    snaps[i] = snap(other[i]);
  }
  snprintf(path, sizeof path, "%s", target == INDEX ? used.index : used.data);
  if (target == CONTROL) snprintf(path, sizeof path, "%s/control", dir);
  struct planted planted = plant_it(path, aside, what);

  struct used after = USE(dir);
  CHECK_EQ(after.kept == SHARED, is_shared_after(target, what));
  for (int i = 0; i < planted.count && !(what >= GARBAGE && after.kept == SHARED); i++) CHECK_UNTOUCHED(&planted.snaps[i]);
  for (int i = 0; i < 4; i++) CHECK_UNTOUCHED(&snaps[i]);
  struct stat none;
  if (planted.unmade[0] != 0) CHECK(lstat(planted.unmade, &none) != 0);
  if (what == LINK_TO_DIRECTORY) CHECK_EQ(count_entries(aside, ""), 0);
  CHECK_EQ(count_entries(dir, ".tmp"), 1);  // the bystander

  if (after.kept == SHARED) {
    // It was made good for good: the next one finds it whole, and of what it replaced nothing is left.
    struct used again = USE(dir);
    CHECK_EQ(again.kept, SHARED);
    CHECK_EQ(again.source_reads, 0);
    CHECK_EQ(again.lines, 0);
    CHECK_EQ(mode_of(again.data), 0600);
    CHECK_EQ(mode_of(again.index), 0600);
    bool name_is_lost = target == INDEX && (what == ZEROS || what == EMPTY || what == MISSING);
    if (!name_is_lost) CHECK_EQ(count_entries(dir, ".data"), 2);
    CHECK_EQ(count_entries(dir, ".index"), 2);
  } else {
    // When it is taken away, the directory is as good as new.
    CHECK_EQ((what == DIRECTORY ? rmdir(path) : unlink(path)), 0);
    CHECK_EQ(USE(dir).kept, SHARED);
    CHECK_EQ(USE(dir).source_reads, 0);
  }
  alarm(0);
  nf_case_name = outer;
}

static void planted_index(void) {
  for (int what = 0; what < PLANTS; what++) check_plant(INDEX, (enum plant)what);
}

static void planted_mirror(void) {
  for (int what = 0; what < PLANTS; what++) check_plant(DATA, (enum plant)what);
}

static void planted_control(void) {
  for (int what = 0; what < PLANTS; what++) check_plant(CONTROL, (enum plant)what);
}

// ---- two ordinary users ------------------------------------------------------------------------------------------------------
//
// NOBODY caches; OTHER has planted something in the place of each file, or of the directory, or at paths where NOBODY wants a pair.

enum { OTHER = 65533 };

static char tried[NF_PATH];  // relative to nf_dir, as NOBODY may not reach that

static void fill_directory(void) { CHECK_EQ(USE(tried).kept, SHARED); }

static void use_planted_directory(void) { CHECK(USE(tried).kept != SHARED); }

// The first entry of a directory with such an ending.
static void find_entry(const char *dir, const char *ending, char out[NF_PATH * 2]) {
  DIR *stream = opendir(dir);
  MUST(stream != NULL);
  out[0] = 0;
  for (struct dirent *entry = readdir(stream); entry != NULL && out[0] == 0; entry = readdir(stream)) {
    size_t name = strlen(entry->d_name), end = strlen(ending);
    if (name >= end && strcmp(entry->d_name + name - end, ending) == 0) snprintf(out, NF_PATH * 2, "%s/%s", dir, entry->d_name);
  }
  closedir(stream);
  MUST(out[0] != 0);
}

// What is planted is OTHER's, and open to all; but for what is NOBODY's own file with one thing wrong.
static struct planted plant_as_other(const char *path, const char *aside, enum plant what) {
  plant_it(path, aside, what);
  const char *made[] = {path, what == SECOND_NAME ? NULL : aside};
  bool own = what == SECOND_NAME || what == OTHERS_MAY_WRITE || what == GROUP_MAY_WRITE;
  struct planted planted = {0};
  for (int i = 0; i < 2; i++) {
    struct stat there;
    if (made[i] == NULL || lstat(made[i], &there) != 0) continue;
    if (!own) MUST(lchown(made[i], OTHER, OTHER) == 0);
    if (!own && !S_ISLNK(there.st_mode)) MUST(chmod(made[i], S_ISDIR(there.st_mode) ? 0777 : 0666) == 0);
    guard(&planted, made[i]);
  }
  if (what == LINK_TO_NOTHING) snprintf(planted.unmade, sizeof planted.unmade, "%s", aside);
  return planted;
}

static void check_planted(const struct planted *planted) {
  struct stat none;
  for (int i = 0; i < planted->count; i++) CHECK_UNTOUCHED(&planted->snaps[i]);
  if (planted->unmade[0] != 0) CHECK(lstat(planted->unmade, &none) != 0);
}

static int planted_cases;

static void plant_for_nobody(enum target target, enum plant what) {
  char name[40], aside[NF_PATH], dir[NF_PATH], path[NF_PATH * 2], title[100];
  const char *outer = nf_case_name;
  snprintf(title, sizeof title, "%s: %s is %s", outer, target == INDEX ? "index" : target == DATA ? "mirror" : "control", plant_names[what]);
  nf_case_name = title;
  snprintf(tried, sizeof tried, "cache%d", planted_cases);
  snprintf(name, sizeof name, "aside%d", planted_cases++);
  make_dir(tried, 0700, NOBODY);
  if (!as_nobody(fill_directory)) return;
  find_entry(nf_path(dir, tried), target == INDEX ? ".index" : target == DATA ? ".data" : "control", path);
  struct planted planted = plant_as_other(path, nf_path(aside, name), what);
  if (as_nobody(use_planted_directory)) check_planted(&planted);
  nf_case_name = outer;
}

static void planted_by_another_user(void) {
  MUST(chmod(nf_dir, 0755) == 0);
  for (int target = INDEX; target <= CONTROL; target++) {
    for (int what = LINK_TO_FILE; what <= GROUP_MAY_WRITE; what++) plant_for_nobody((enum target)target, (enum plant)what);
  }
  printf("%d planted cases\n", planted_cases);
}

// A link of another user's leads to a directory of one's own, or not: that user does not choose where things are kept.
static void the_directory_is_planted(void) {
  char path[NF_PATH], to[NF_PATH];
  MUST(chmod(nf_dir, 0755) == 0);
  make_dir("mine", 0700, NOBODY);
  make_dir("theirs", 0777, OTHER);
  make_dir("sticky", 01777, OTHER);
  make_dir("open", 0777, OTHER);
  static const char *const parents[] = {"sticky", "open"}, *const targets[] = {"mine", "theirs"};
  for (int i = 0; i < 4; i++) {
    snprintf(tried, sizeof tried, "%s/link%d", parents[i / 2], i % 2);
    snprintf(to, sizeof to, "../%s", targets[i % 2]);
    MUST(symlink(to, nf_path(path, tried)) == 0 && lchown(path, OTHER, OTHER) == 0);
    struct snap link = snap(path);
    if (!as_nobody(use_planted_directory)) return;
    CHECK_UNTOUCHED(&link);
    CHECK_EQ(count_entries(nf_path(path, targets[i % 2]), ""), 0);
  }
  for (int i = 0; i < 2; i++) {
    snprintf(tried, sizeof tried, "%s/made-before", parents[i]);
    make_dir(tried, 0777, OTHER);
    as_nobody(use_planted_directory);
    CHECK_EQ(count_entries(nf_path(path, tried), ""), 0);
  }
  // One's own link is one's own choice.
  snprintf(tried, sizeof tried, "own-link");
  MUST(symlink("mine", nf_path(path, tried)) == 0 && lchown(path, NOBODY, NOBODY) == 0);
  as_nobody(fill_directory);
  CHECK_EQ(count_entries(nf_path(path, "mine"), ""), 3);
}

// A pair at paths of its own: opened if it is all one's own, else refused with a word, and every byte right if it opens at all.
static void use_planted_paths(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  char data[NF_PATH], index[NF_PATH + 20];
  snprintf(data, sizeof data, "%s", tried);
  snprintf(index, sizeof index, "%s.index", tried);
  nearfile_options options = {.struct_size = sizeof options, .key = "key", .size = SIZE, .data_path = data, .index_path = index};
  nearfile_file *file = NULL;
  int32_t status = nearfile_open(NULL, &source, &options, &file);
  CHECK(status != 0 || nearfile_data_path(file) == NULL);
  CHECK((status == 0) == (file != NULL));
  if (status != 0) CHECK(nf_last_error().message[0] != 0);
  if (file != NULL) CHECK_ALL(file, VERSION);
  nearfile_close(file);
}

static void make_paths(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  char index[NF_PATH + 20];
  snprintf(index, sizeof index, "%s.index", tried);
  nearfile_options options = {.struct_size = sizeof options, .key = "key", .size = SIZE, .data_path = tried, .index_path = index};
  nearfile_file *file = NULL;
  MUST(nearfile_open(NULL, &source, &options, &file) == 0 && nearfile_data_path(file) != NULL);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
}

static void planted_at_paths(void) {
  MUST(chmod(nf_dir, 0755) == 0);
  make_dir("sticky", 01777, OTHER);
  for (int target = INDEX; target <= DATA; target++) {
    for (int what = LINK_TO_FILE; what <= GROUP_MAY_WRITE; what++) {
      char path[NF_PATH], title[100], aside[NF_PATH], name[40];
      const char *outer = nf_case_name;
      snprintf(title, sizeof title, "%s: %s is %s", outer, target == INDEX ? "index" : "mirror", plant_names[what]);
      nf_case_name = title;
      snprintf(tried, sizeof tried, "sticky/own%d-%d", target, what);
      if (!as_nobody(make_paths)) return;
      snprintf(name, sizeof name, "sticky/own%d-%d%s", target, what, target == INDEX ? ".index" : "");
      nf_path(path, name);
      snprintf(name, sizeof name, "aside%d-%d", target, what);
      struct planted planted = plant_as_other(path, nf_path(aside, name), (enum plant)what);
      as_nobody(use_planted_paths);
      check_planted(&planted);
      nf_case_name = outer;
    }
  }
}

// One bit of every byte of an index's header, and of what follows it up to the words: right bytes, and whole again after.
static void every_byte_of_a_header(void) {
  char dir[NF_PATH];
  nf_path(dir, "cache");
  int failures = nf_failures;
  for (int at = 0; at < 270; at++) {
    struct used used = USE(dir);
    CHECK_EQ(used.kept, SHARED);
    patch(used.index, at, (unsigned char)(1 << at % 8));
    struct used after = USE(dir);
    bool magic = at < 16;             // another program's file, by its looks: left alone
    if (!magic) CHECK_EQ(after.kept, SHARED);
    if (after.kept != SHARED) {
      patch(used.index, at, (unsigned char)(1 << at % 8));
    }
    if (nf_failures != failures) {
      fprintf(stderr, "  at byte %d\n", at);
      return;
    }
  }
  CHECK_EQ(count_entries(dir, ".index"), 1);
  CHECK_EQ(count_entries(dir, ".tmp"), 0);
}

// ---- while it is open --------------------------------------------------------------------------------------------------------

static void the_directory_goes_away(void) {
  char dir[NF_PATH], path[NF_PATH * 2];
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  CHECK_PREAD(file, SIZE / 2, 0, VERSION);
  MUST(unlink(nearfile_data_path(file)) == 0 && unlink(nearfile_index_path(file)) == 0);
  snprintf(path, sizeof path, "%s/control", nf_path(dir, "cache"));
  MUST(unlink(path) == 0 && rmdir(dir) == 0);
  CHECK_ALL(file, VERSION);
  nearfile_file *other = nf_open_far(cache, far, FAR_AT, "another key");
  CHECK_ALL(other, VERSION);
  nearfile_close(other);
  nearfile_close(file);
  nearfile_cache_close(cache);
  CHECK_EQ(USE(dir).kept, SHARED);
  far_free(far);
}

// What should never happen to an open mirror, but to the library's default way of reading is no more than missing pages.
static void the_mirror_is_cut_off_while_open(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  for (int round = 0; round < 2; round++) {
    CHECK_ALL(file, VERSION);
    MUST(truncate(nearfile_data_path(file), round == 0 ? SIZE / 2 : 0) == 0);
    CHECK_ALL(file, VERSION);
  }
  nearfile_close(file);
  file = nf_open_far(cache, far, FAR_AT, "key");
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// A pair that is replaced while another process has it open: both read right.
static void replaced_under_a_reader(void) {
  char dir[NF_PATH];
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT);
  nearfile_file *file = nf_open(cache, &source, "key", "v", SIZE, 0);
  CHECK_PREAD(file, SIZE / 2, 0, VERSION);
  MUST(unlink(nearfile_data_path(file)) == 0);
  pid_t child = nf_fork(20);
  if (child == 0) {
    struct used used = USE(nf_path(dir, "cache"));
    CHECK_EQ(used.kept, SHARED);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(USE(nf_path(dir, "cache")).source_reads, 0);
  far_free(far);
  nearfile_cache_close(cache);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(modes), NF_CASE(dir_is_a_file), NF_CASE(default_directory), NF_CASE(standard_descriptors), NF_CASE(descriptors),
      NF_CASE(writable_by_others), NF_CASE(as_a_second_user), NF_CASE(as_a_second_user_with_planted_files),
      NF_CASE(planted_index), NF_CASE(planted_mirror), NF_CASE(planted_control), NF_CASE(planted_by_another_user),
      NF_CASE(the_directory_is_planted), NF_CASE(planted_at_paths), NF_CASE(every_byte_of_a_header),
      NF_CASE(the_directory_goes_away), NF_CASE(the_mirror_is_cut_off_while_open), NF_CASE(replaced_under_a_reader)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
