// Guards what lies around a process: under limits on files, descriptors and memory, and without /proc, every read is right and no signal
// kills; and a session leaves the process as it was: handlers, masks, umask, environment, directory, threads, descriptors.
#include "nf_test.h"

#include "nf_budget.h"

#include <dirent.h>
#include <sys/resource.h>

enum { PAGE = 16 << 10, PAGES = 40, SIZE = PAGES * PAGE - 99, VERSION = 61 };

// ---- a session -------------------------------------------------------------------------------------------------------------

static void read_file(nearfile_cache *cache, far_file *far, const char *key, uint32_t mode) {
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  // On a busy machine any source is a slow one, which asks for threads unless that is ruled out.
  nearfile_options options = {
      .struct_size = sizeof options, .key = key, .size = SIZE, .mode = mode, .flags = NEARFILE_READAHEAD_OFF};
  nearfile_file *file = NULL;
  nearfile_pin *pin = NULL;
  MUST(nearfile_open(cache, &source, &options, &file) == 0);
  for (int again = 0; again < 2; again++) {
    CHECK_ALL(file, VERSION);
    CHECK_EQ(nearfile_prefetch(file, 0, SIZE, 0, NULL, NULL), 0);
    CHECK_EQ(nearfile_pin_range(file, PAGE, PAGE, &pin), 0);
    CHECK_BYTES(nearfile_pin_data(pin), PAGE, PAGE, VERSION);
    nearfile_pin_release(pin);
  }
  nearfile_close(file);
}

static void whole_session(far_file *far) {
  nearfile_cache *cache = nf_limited("cache", PAGE, SIZE / 2, NEARFILE_FULL_EVICT);
  read_file(cache, far, "key", NEARFILE_PAGED);
  read_file(cache, far, NULL, NEARFILE_PAGED);
  read_file(cache, far, NULL, NEARFILE_EXACT);
  read_file(cache, far, "key", NEARFILE_PAGED);
  int32_t status = nearfile_cache_remove(cache, "key");
  CHECK(status == 0 || (status == NEARFILE_ERROR_IO && nf_last_error().os_errno == EMFILE));
  nearfile_cache_close(cache);
}

// In a process of its own, whose limits or mounts `change` has changed; then in one that is as ever.
static void session_with(void (*change)(uint64_t), uint64_t argument) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  size_t before = nf_enter("with");
  for (int changed = 1; changed >= 0; changed--) {
    pid_t child = nf_fork(60);
    if (child == 0) {
      if (changed) change(argument);
      whole_session(far);
      sigset_t waiting;
      CHECK(sigpending(&waiting) == 0 && sigismember(&waiting, SIGXFSZ) == 0);
      nf_child_ends();
    }
    CHECK_CHILD(child);
  }
  CHECK_EQ(far->offences, 0);
  char command[NF_PATH];
  snprintf(command, sizeof command, "rm -rf '%s'", nf_dir);
  MUST(system(command) == 0);
  nf_leave(before);
  far_free(far);
}

static void limit(int what, uint64_t to) {
  struct rlimit now;
  MUST(getrlimit(what, &now) == 0);
  now.rlim_cur = to;
  MUST(setrlimit(what, &now) == 0);
}

// ---- limits ----------------------------------------------------------------------------------------------------------------

static void limit_file_size(uint64_t bytes) { limit(RLIMIT_FSIZE, bytes); }

static void a_limit_on_file_sizes(void) {
  static const uint64_t limits[] = {0, 1, 100, 4096, 10000, PAGE, SIZE / 2, SIZE - 1, SIZE};
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) session_with(limit_file_size, limits[i]);
}

static void limit_descriptors(uint64_t more) {
  int next = open("/dev/null", O_RDONLY | O_CLOEXEC);
  MUST(next >= 0 && close(next) == 0);
  limit(RLIMIT_NOFILE, (uint64_t)next + more);
}

static void a_limit_on_descriptors(void) {
  for (uint64_t more = 0; more < 24; more++) session_with(limit_descriptors, more);
}

static uint64_t address_space(void) {
  unsigned long pages = 0;
  FILE *statm = fopen("/proc/self/statm", "r");
  MUST(statm != NULL && fscanf(statm, "%lu", &pages) == 1);
  fclose(statm);
  return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void limit_memory(uint64_t more) { limit(RLIMIT_AS, address_space() + more); }

// Maps are refused; what malloc needs for small things must be there, as in any program: it was used before.
static void a_limit_on_memory(void) {
  free(malloc(100 << 10));
  for (uint64_t more = 256 << 10; more <= 4 << 20; more += 256 << 10) session_with(limit_memory, more);
}

// An index too large for the address space is no reason to fail, either.
static void an_index_larger_than_memory(void) {
  far_file *far = far_new((uint64_t)PAGE << 26, VERSION, PAGE);
  pid_t child = nf_fork(30);
  if (child == 0) {
    limit_memory(8 << 20);
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");  // its index has 512 MiB
    CHECK_PREAD(file, 3 * PAGE, 12345, VERSION);
    CHECK_PREAD(file, 3 * PAGE, far->size / 2, VERSION);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  far_free(far);
}

static void take_proc_away(uint64_t unused) {
  (void)unused;
  MUST(unshare(CLONE_NEWNS) == 0 && umount2("/proc", MNT_DETACH) == 0);
  MUST(access("/proc/self", F_OK) != 0);
}

static void without_proc(void) { session_with(take_proc_away, 0); }

// ---- signals -----------------------------------------------------------------------------------------------------------------

static int32_t broken_pipe(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  int ends[2];
  MUST(pipe2(ends, O_CLOEXEC) == 0);
  close(ends[0]);
  ssize_t n = write(ends[1], "x", 1);
  close(ends[1]);
  return n < 0 ? errno : 0;
}

// SIGPIPE is the program's: the library neither ignores it nor meets it.
static void sigpipe_is_the_programs(void) {
  far_file *far = far_new(SIZE, VERSION, PAGE);
  pid_t child = nf_fork(20);
  if (child == 0) {
    signal(SIGPIPE, SIG_IGN);
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, NULL);
    far->hook = broken_pipe;
    char byte;
    CHECK_EQ(nearfile_pread(file, &byte, 1, 0), NEARFILE_ERROR_SOURCE);
    CHECK_EQ(nf_last_error().source_code, EPIPE);
    far->hook = NULL;
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
    nearfile_cache_close(cache);
    CHECK(signal(SIGPIPE, SIG_DFL) == SIG_IGN);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  far_free(far);
}

// ---- a process is left as it was -------------------------------------------------------------------------------------------

struct surroundings {
  struct sigaction actions[65];
  sigset_t mask, pending;
  mode_t mask_of_files;
  char environment[1 << 16], directory[NF_PATH], status[4096], limits[4096];
  stack_t stack;
  int descriptors, threads;
};

static void read_text(const char *path, char *to, size_t room) {
  FILE *file = fopen(path, "r");
  MUST(file != NULL);
  to[fread(to, 1, room - 1, file)] = 0;
  fclose(file);
}

// The lines of /proc/self/status that are not counts of memory and switches.
static void read_status(char *to, size_t room) {
  static const char *const names[] = {"Name:", "Umask:", "State:", "Uid:", "Gid:", "FDSize:", "Groups:", "Threads:", "SigPnd:",
                                      "ShdPnd:", "SigBlk:", "SigIgn:", "SigCgt:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:",
                                      "CapAmb:", "NoNewPrivs:", "Seccomp:", "VmLck:", "VmPin:"};
  char all[1 << 14];
  size_t at = 0;
  read_text("/proc/self/status", all, sizeof all);
  to[0] = 0;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    const char *line = strstr(all, names[i]);
    if (line == NULL) continue;
    at += (size_t)snprintf(to + at, room - at, "%.*s\n", (int)strcspn(line, "\n"), line);
  }
  MUST(at > 200);
}

static int count_entries(const char *path) {
  int count = 0;
  DIR *list = opendir(path);
  MUST(list != NULL);
  while (readdir(list) != NULL) count++;
  closedir(list);
  return count;
}

static void look_around(struct surroundings *now) {
  extern char **environ;
  memset(now, 0, sizeof *now);
  for (int signal = 1; signal <= 64; signal++) {
    if (sigaction(signal, NULL, &now->actions[signal]) != 0) now->actions[signal].sa_flags = -1;
  }
  MUST(pthread_sigmask(SIG_BLOCK, NULL, &now->mask) == 0 && sigpending(&now->pending) == 0 && sigaltstack(NULL, &now->stack) == 0);
  umask(now->mask_of_files = umask(0));
  size_t at = 0;
  for (char **entry = environ; *entry != NULL && at < sizeof now->environment - 1; entry++) {
    at += (size_t)snprintf(now->environment + at, sizeof now->environment - at, "%p %s\n", (void *)*entry, *entry);
  }
  MUST(getcwd(now->directory, sizeof now->directory) != NULL);
  read_status(now->status, sizeof now->status);
  read_text("/proc/self/limits", now->limits, sizeof now->limits);
  now->descriptors = count_entries("/proc/self/fd");
  now->threads = count_entries("/proc/self/task");
}

static void compare(const struct surroundings *was, const struct surroundings *is, bool all_closed) {
  for (int signal = 1; signal <= 64; signal++) {
    CHECK(was->actions[signal].sa_handler == is->actions[signal].sa_handler);
    CHECK_EQ(was->actions[signal].sa_flags, is->actions[signal].sa_flags);
    CHECK_EQ(sigismember(&was->mask, signal), sigismember(&is->mask, signal));
    CHECK_EQ(sigismember(&was->pending, signal), sigismember(&is->pending, signal));
  }
  CHECK_EQ(was->mask_of_files, is->mask_of_files);
  CHECK(was->stack.ss_sp == is->stack.ss_sp && was->stack.ss_flags == is->stack.ss_flags);
  CHECK(strcmp(was->environment, is->environment) == 0);
  CHECK(strcmp(was->directory, is->directory) == 0);
  CHECK(strcmp(was->limits, is->limits) == 0);
  if (strcmp(was->status, is->status) != 0) fprintf(stderr, "before:\n%safter:\n%s", was->status, is->status);
  CHECK(strcmp(was->status, is->status) == 0);
  CHECK_EQ(was->threads, is->threads);
  if (all_closed) CHECK_EQ(was->descriptors, is->descriptors);
}

static struct surroundings first, inside, last;
static int looks;

// In a callback, in the middle of a fetch.
static int32_t look_and_compare(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  if (looks++ % 16 != 0) return 0;
  look_around(&inside);
  compare(&first, &inside, false);
  return 0;
}

static void a_session_changes_nothing(void) {
  for (int masked = 0; masked < 2; masked++) {
    size_t before = nf_enter(masked ? "masked" : "plain");
    pid_t child = nf_fork(60);
    if (child == 0) {
      sigset_t set;
      sigemptyset(&set);
      sigaddset(&set, SIGXFSZ);
      sigaddset(&set, SIGUSR1);
      if (masked) MUST(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0 && raise(SIGUSR1) == 0);
      umask(masked ? 0 : 077);
      far_file *far = far_new(SIZE, VERSION, PAGE);
      far->hook = look_and_compare;
      look_around(&first);
      whole_session(far);
      look_around(&last);
      compare(&first, &last, true);
      CHECK(looks > 32);
      // Files are 0600 whatever the umask is.
      nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
      nearfile_file *file = nf_open_far(cache, far, FAR_AT, "mode");
      struct stat data, index;
      MUST(stat(nearfile_data_path(file), &data) == 0 && stat(nearfile_index_path(file), &index) == 0);
      CHECK_EQ(data.st_mode & 07777, 0600);
      CHECK_EQ(index.st_mode & 07777, 0600);
      nearfile_close(file);
      nearfile_cache_close(cache);
      nf_child_ends();
    }
    CHECK_CHILD(child);
    nf_leave(before);
  }
}

int main(int argc, char **argv) {
  nf_own_mounts();
  static const struct nf_case cases[] = {NF_CASE(a_limit_on_file_sizes),   NF_CASE(a_limit_on_descriptors),
                                         NF_CASE(a_limit_on_memory),       NF_CASE(an_index_larger_than_memory),
                                         NF_CASE(without_proc),            NF_CASE(sigpipe_is_the_programs),
                                         NF_CASE(a_session_changes_nothing)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
