// Guards that a session may die at any system call: a tracer stops a process before and after each of its calls and kills it at the
// k-th stop, for every k, alone or beside a process that goes on (--beside), or with the power cut at that stop (--cut, an ext4 image).
// What comes after must read every byte right, not hang, find no lock, and a count of bytes that is what the pages hold.
#include "../nf_disk.h"
#include "../nf_state.h"

#include <sys/ptrace.h>
#include <sys/syscall.h>

enum { VERSION = 3, PAGE = 8192, PAGES = 24, SIZE = PAGES * PAGE - 777, OTHER = 7 * PAGE + 5, LIMIT = 20 * PAGE };

static bool beside, cut;
static struct scene {
  atomic_int step;  // how far the victim came, to tell
  atomic_int done;  // by the process beside it
  atomic_int ready;
} *scene;
static far_file *far, *other;
static char victims_dir[NF_PATH];

// ---- the session ---------------------------------------------------------------------------------------------------------------

static nearfile_file *open_far(nearfile_cache *cache, far_file *from, const char *key) {
  return nf_open_far(cache, from, FAR_AT_OPEN, key);
}

static void tell(int step) { atomic_store(&scene->step, step); }

// One whole session, with everything in it that changes a file.
static void session(void) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  tell(1);
  CHECK_EQ(nearfile_cache_remove(cache, "other"), 0);
  tell(2);
  nearfile_file *file = open_far(cache, far, "key");
  tell(3);
  CHECK_PREAD(file, 5 * PAGE, 0, VERSION);  // some are there from the last session
  CHECK_PREAD(file, 5 * PAGE, 100, VERSION);
  tell(4);
  CHECK_EQ(nearfile_discard(file, 2 * PAGE, 4 * PAGE), 0);
  tell(5);
  CHECK_PREAD(file, 100, 3 * PAGE, VERSION);
  tell(6);
  nearfile_file *again = open_far(cache, other, "other");  // made anew
  CHECK_PREAD(again, OTHER, 0, VERSION);
  tell(7);
  CHECK_PREAD(file, SIZE, 0, VERSION);  // more than fits: pages go
  CHECK_PREAD(file, SIZE, 0, VERSION);
  CHECK_PREAD(file, SIZE, 0, VERSION);
  tell(8);
  CHECK_EQ(nearfile_cache_trim(cache, LIMIT / 2), 0);
  tell(9);
  nearfile_close(again);
  tell(10);
  char path[NF_PATH];
  CHECK_EQ(nearfile_preserve(file, nf_path(path, "kept")), 0);
  tell(11);
  nearfile_close(file);
  tell(12);
  nearfile_cache_close(cache);
  tell(13);
}

// What is there before: a clean directory with half of the one file and all of the other.
static void earlier_session(void) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  nearfile_file *file = open_far(cache, far, "key"), *second = open_far(cache, other, "other");
  CHECK_PREAD(file, 10 * PAGE, 0, VERSION);
  CHECK_PREAD(second, OTHER, 0, VERSION);
  nearfile_close(file);
  nearfile_close(second);
  nearfile_cache_close(cache);
}

// ---- the processes around it -----------------------------------------------------------------------------------------------------

static void read_all_right(void) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  nearfile_file *file = open_far(cache, far, "key"), *second = open_far(cache, other, "other");
  for (int i = 0; i < 2; i++) {
    CHECK_ALL(file, VERSION);
    CHECK_ALL(second, VERSION);
  }
  nearfile_file *files[] = {file, second};
  for (int i = 0; i < 2; i++) {
    CHECK(nearfile_data_path(files[i]) != NULL && strncmp(nearfile_data_path(files[i]), "/proc/", 6) != 0);  // shared still
    if (!cut) CHECK_EQ(nf_stats(files[i]).checksum_failures, 0);  // a kill is no power cut: the kernel has all that was written
    if (i == 0) CHECK(nf_stats(files[i]).cached_bytes > 0);
    nearfile_close(files[i]);
  }
  nearfile_cache_close(cache);
}

static pid_t fork_to(void (*run)(void)) {
  pid_t child = nf_fork(30);
  if (child == 0) {
    run();
    nf_child_ends();
  }
  return child;
}

static void in_a_fresh_process(void (*run)(void)) { CHECK_CHILD(fork_to(run)); }

// Has everything open while the other dies, reads right afterwards, and is the one that closes.
static void stay(void) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  nearfile_file *file = open_far(cache, far, "key");
  CHECK_PREAD(file, PAGE, 0, VERSION);
  atomic_store(&scene->ready, 1);
  NF_UNTIL(atomic_load(&scene->done), 25000);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

// Only opens and closes the directory: if it was left unclean, its bytes are counted.
static void count_anew(void) { nearfile_cache_close(nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT)); }

static void drop_everything(void) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  CHECK_EQ(nearfile_cache_remove(cache, "key"), 0);
  CHECK_EQ(nearfile_cache_remove(cache, "other"), 0);
  nearfile_cache_close(cache);
}

static void open_what_was_kept(void) {
  nearfile_cache *cache = nf_limited("cache", PAGE, LIMIT, NEARFILE_FULL_EVICT);
  char data[NF_PATH], index[NF_PATH];
  nearfile_options options = {.struct_size = sizeof options, .key = "key", .size = SIZE, .flags = NEARFILE_FROZEN,
                              .data_path = nf_path(data, "kept"), .index_path = nf_path(index, "kept.index")};
  nearfile_file *file = NULL;
  if (access(data, F_OK) == 0 && access(index, F_OK) == 0) {
    CHECK_EQ(nearfile_open(cache, NULL, &options, &file), 0);
    for (uint64_t at = 0, end; file != NULL && at < SIZE; at = end) {
      int32_t cached = 0;
      MUST(nearfile_extent(file, at, &end, &cached) == 0);
      if (cached) CHECK_PREAD(file, (size_t)(end - at), at, VERSION);
    }
    nearfile_close(file);
  }
  nearfile_cache_close(cache);
}

// ---- the tracer ------------------------------------------------------------------------------------------------------------------

// Runs the session up to its k-th stop, and kills it there. Returns how many stops it came to.
static uint64_t run_to_stop(uint64_t k, uint64_t *out_call, const struct nf_disk *disk) {
  pid_t child = nf_fork(30);
  if (child == 0) {
    MUST(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0);
    raise(SIGSTOP);
    session();
    nf_child_ends();
  }
  int status = 0;
  MUST(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
  MUST(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) == 0);
  uint64_t stops = 0;
  int pass_on = 0;
  for (;;) {
    MUST(ptrace(PTRACE_SYSCALL, child, 0, pass_on) == 0);
    MUST(waitpid(child, &status, 0) == child);
    if (!WIFSTOPPED(status)) break;
    pass_on = WSTOPSIG(status) == (SIGTRAP | 0x80) ? 0 : WSTOPSIG(status);
    if (pass_on != 0 || ++stops != k) continue;
    struct __ptrace_syscall_info info = {0};
    MUST(ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) > 0);
    *out_call = info.op == PTRACE_SYSCALL_INFO_ENTRY ? info.entry.nr : UINT64_MAX;
    if (disk != NULL) nf_disk_cut(disk);
    kill(child, SIGKILL);
    MUST(waitpid(child, &status, 0) == child);
    return stops;
  }
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return stops;
}

// ---- one death, and all of them ----------------------------------------------------------------------------------------------------

static void check_count(const char *when) {
  struct nf_state state = nf_state_of(victims_dir);
  int before = nf_failures;
  CHECK_EQ(state.used, state.answered);
  CHECK_EQ(state.held, state.answered);
  CHECK(state.disk <= state.answered);
  CHECK(state.stray == 0 || state.damaged > 0 || state.again);  // too young to be swept: not forgotten
  CHECK_EQ(state.locks, 0);
  CHECK(state.used <= LIMIT);
  if (nf_failures != before) nf_state_print(when, &state);
}

static uint64_t die_at(uint64_t k, const struct nf_disk *disk) {
  char name[40];
  snprintf(name, sizeof name, "%" PRIu64, k);
  size_t outside = nf_enter(name);
  nf_path(victims_dir, "cache");
  atomic_store(&scene->step, 0);
  int before = nf_failures;
  in_a_fresh_process(earlier_session);
  if (disk != NULL) nf_disk_sync(disk);
  atomic_store(&scene->done, 0);
  atomic_store(&scene->ready, 0);
  pid_t by = beside ? fork_to(stay) : 0;
  if (beside) {
    NF_UNTIL(scene->ready, 20000);
    MUST(scene->ready);
  }
  uint64_t call = 0;
  uint64_t stops = run_to_stop(k, &call, disk);
  int step = atomic_load(&scene->step);
  if (disk != NULL) {
    nf_disk_unmount(disk);
    nf_disk_mount(disk);
  }
  if (beside) {
    struct nf_state state = nf_state_of(victims_dir);
    CHECK(state.used >= state.answered);  // what the dead one had may be counted still; nothing may be missing
    CHECK(state.used >= state.disk);
    CHECK(state.used <= LIMIT);
    if (nf_failures != before) nf_state_print("beside the living", &state);
    atomic_store(&scene->done, 1);
    CHECK_CHILD(by);
  }
  if (stops == k) {
    in_a_fresh_process(count_anew);
    check_count("counted anew");
  }
  in_a_fresh_process(read_all_right);
  check_count("after a session that ended well");
  in_a_fresh_process(open_what_was_kept);
  in_a_fresh_process(drop_everything);
  check_count("after everything was removed");
  if (nf_failures != before) {
    fprintf(stderr, "killed at stop %" PRIu64 " (%s %" PRIu64 "), after step %d of the session%s\n", k,
            call == UINT64_MAX ? "after a call," : "before call", call == UINT64_MAX ? 0 : call, step,
            beside ? ", beside another process" : disk != NULL ? ", and the power cut" : "");
  }
  char command[NF_PATH + 20];
  snprintf(command, sizeof command, "rm -rf '%s'", nf_dir);
  nf_command(command);
  nf_leave(outside);
  return stops;
}

static uint64_t common_divisor(uint64_t a, uint64_t b) { return b == 0 ? a : common_divisor(b, a % b); }

int main(int argc, char **argv) {
  uint64_t rounds = UINT64_MAX, only = 0;
  int64_t seconds = 1 << 20;
  const char *fs = NULL, *root = getenv("NEARFILE_TEST_DIR");
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--beside") == 0) beside = true;
    else if (strcmp(argv[i], "--cut") == 0) cut = true, fs = "ext4";
    else if (i + 1 < argc && strcmp(argv[i], "--fs") == 0) fs = argv[++i];
    else if (i + 1 < argc && strcmp(argv[i], "--rounds") == 0) rounds = strtoull(argv[++i], NULL, 10);
    else if (i + 1 < argc && strcmp(argv[i], "--seconds") == 0) seconds = strtoll(argv[++i], NULL, 10);
    else if (i + 1 < argc && strcmp(argv[i], "--stop") == 0) only = strtoull(argv[++i], NULL, 10);
    else return fprintf(stderr, "syscalls [--beside | --cut] [--fs ext4|xfs|tmpfs] [--rounds N] [--seconds S] [--stop K]\n"), 2;
  }
  if (root == NULL || (beside && cut)) return fprintf(stderr, "NEARFILE_TEST_DIR must name an empty directory\n"), 2;
  nf_own_mounts();
  nf_case_name = cut ? "syscalls --cut" : beside ? "syscalls --beside" : "syscalls";
  struct nf_disk disk = {0};
  if (fs != NULL) disk = nf_disk_new(root, fs);
  MUST(snprintf(nf_dir, sizeof nf_dir, "%s", fs != NULL ? disk.at : root) < (int)sizeof nf_dir);
  scene = nf_shared(sizeof *scene);
  far = far_new(SIZE, VERSION, PAGE), other = far_new(OTHER, VERSION, PAGE);

  uint64_t stops = die_at(UINT64_MAX, NULL), tried = 0, died = 0;
  MUST(stops > 200);
  // In steps that come by every stop once, so that a run cut short has looked everywhere a little.
  uint64_t stride = stops * 5 / 8;
  while (common_divisor(stride, stops) != 1) stride++;
  int64_t began = nf_now_ms();
  for (uint64_t i = 0; i < stops && tried < rounds && nf_now_ms() < began + seconds * 1000 && nf_failures < 10; i++) {
    uint64_t k = only != 0 ? only : i * stride % stops + 1;
    died += die_at(k, cut ? &disk : NULL) == k;
    tried++;
    if (tried % 100 == 0 && only == 0) fprintf(stderr, "%s: %" PRIu64 " of %" PRIu64 " stops\n", nf_case_name, tried, stops);
    if (only != 0) break;
  }
  CHECK(died > 0);
  CHECK_EQ(far->offences, 0);
  printf("%s, %s: a session with %" PRIu64 " stops at system calls, died at %" PRIu64 " of them: %s\n", nf_case_name,
         fs == NULL ? "the file system of the tests" : fs, stops, died,
         nf_failures == 0 ? "0 wrong bytes, 0 hangs, 0 locks left, every count right" : "FAILED");
  if (fs != NULL) nf_disk_free(&disk);
  return nf_failures != 0;
}
