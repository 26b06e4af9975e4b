// Guards that no fault of the cache directory's system calls fails a read, gives wrong bytes, hangs or crashes: a day in the life of a
// cache (misses, hits, a limit, pins, discards, a forked child, sessions opened again and trusted) is recorded once; then each place
// that makes a system call fails in each way, once and for ever, and a fresh session must read right afterwards.
// NEARFILE_FAULTS_MINUTES in the environment: all points, at most so long; without it, a spread of a few hundred.
#include "nf_faults.h"

#include "nf_budget.h"

#include <ftw.h>

enum { PAGE = 4096, PAGES = 24, SIZE = PAGES * PAGE - 77, LIMIT = 14 * PAGE, WAIT_MS = 40, DEADLINE_S = 30 };

// Counts over all points, in shared memory.
static struct {
  _Atomic uint64_t reads, failed, wrong, statuses;
} *seen;

// ---- reads that must not fail ----------------------------------------------------------------------------------------------

static void expect_bytes(int line, int64_t got, const void *buf, size_t len, uint64_t offset, uint64_t version) {
  atomic_fetch_add(&seen->reads, 1);
  if (got != (int64_t)len) {
    atomic_fetch_add(&seen->failed, 1);
    nf_equal(__FILE__, line, "a read", "its length", got, (long long)len);
  } else if (nf_right(buf, len, offset, version) != len) {
    atomic_fetch_add(&seen->wrong, 1);
    nf_check_bytes(__FILE__, line, buf, len, offset, version);
  }
}

static void read_part(int line, const nearfile_file *file, uint64_t first, uint64_t pages, uint64_t version) {
  static _Thread_local unsigned char buf[PAGES * PAGE];
  uint64_t at = first * PAGE, end = (first + pages) * PAGE < SIZE ? (first + pages) * PAGE : SIZE;
  expect_bytes(line, nearfile_pread(file, buf, end - at, at), buf, end - at, at, version);
}
#define READ(file, first, pages, version) read_part(__LINE__, file, first, pages, version)

// Calls that may answer a fault with a status, as they change what is kept: only a defect is not an answer.
static bool may_fail(int line, int32_t status) {
  if (status == 0) return true;
  atomic_fetch_add(&seen->statuses, 1);
  if (status == NEARFILE_ERROR_INTERNAL || status == NEARFILE_ERROR_ARGUMENT) nf_fail(__FILE__, line, nearfile_status_name(status));
  return false;
}
#define MAY_FAIL(call) may_fail(__LINE__, call)

// ---- a day in the life of a cache --------------------------------------------------------------------------------------------

static nearfile_cache *open_cache(uint64_t limit) {
  nearfile_cache_options options = {.struct_size = sizeof options, .page_size = PAGE, .size_limit = limit, .min_free = 1,
                                    .max_fetch_bytes = 6 * PAGE, .wait_ms = WAIT_MS};
  char path[NF_PATH];
  nearfile_cache *cache = NULL;
  MUST(nearfile_cache_open(nf_path(path, "cache"), &options, &cache) == 0);
  return cache;
}

static far_file *fars[5];  // by version; made before anything fails

static nearfile_file *open_version(nearfile_cache *cache, uint64_t version, uint32_t flags) {
  nearfile_source source = far_source(fars[version], version % 2 == 0 ? FAR_AT_OPEN : FAR_SEEK_OPEN);
  return nf_open(cache, &source, "key", version % 2 == 0 ? "even" : "odd", SIZE, flags);
}

static void first_session(nearfile_cache *cache) {
  nearfile_file *file = open_version(cache, 2, 0), *other = NULL;
  READ(file, 0, 3, 2);
  READ(file, 0, 2, 2);
  READ(file, PAGES - 2, 2, 2);
  CHECK_EQ(nearfile_prefetch(file, 4 * PAGE, 5 * PAGE, 0, NULL, NULL), 0);
  READ(file, 3, 8, 2);
  CHECK_EQ(nearfile_dup(file, &other), 0);
  CHECK_EQ(nearfile_seek(other, 5 * PAGE, NEARFILE_SEEK_SET), 5 * PAGE);
  unsigned char buf[3 * PAGE];
  expect_bytes(__LINE__, nearfile_read(other, buf, sizeof buf), buf, sizeof buf, 5 * PAGE, 2);
  nearfile_range ranges[] = {{.offset = 1, .buf = buf, .len = PAGE}, {.offset = 12 * PAGE, .buf = buf + PAGE, .len = 2 * PAGE}};
  CHECK_EQ(nearfile_read_ranges(other, ranges, 2, sizeof *ranges), 0);
  expect_bytes(__LINE__, (int64_t)ranges[0].out_len, buf, PAGE, 1, 2);
  expect_bytes(__LINE__, (int64_t)ranges[1].out_len, buf + PAGE, 2 * PAGE, 12 * PAGE, 2);
  MAY_FAIL(nearfile_discard(file, PAGE, 4 * PAGE));
  READ(file, 0, 6, 2);
  nearfile_pin *pin = NULL;
  CHECK_EQ(nearfile_pin_range(file, 2 * PAGE, 3 * PAGE, &pin), 0);
  MAY_FAIL(nearfile_discard(file, 0, SIZE));
  expect_bytes(__LINE__, (int64_t)nearfile_pin_size(pin), nearfile_pin_data(pin), 3 * PAGE, 2 * PAGE, 2);
  nearfile_pin_release(pin);
  READ(other, 0, PAGES, 2);
  nearfile_close(other);
  nearfile_close(file);
}

static void forked_child(const nearfile_cache *cache, nearfile_file *file) {
  pid_t child = nf_fork(DEADLINE_S);
  if (child == 0) {
    READ(file, 0, 4, 3);
    READ(file, 10, 9, 3);
    nearfile_pin *pin = NULL;
    CHECK_EQ(nearfile_pin_range(file, 0, 2 * PAGE, &pin), 0);
    nearfile_pin_release(pin);
    nearfile_file *own = open_version((nearfile_cache *)cache, 2, 0);
    READ(own, 3, 4, 2);
    nearfile_close(own);
    nearfile_close(file);
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

// Another version beside the first: what is kept of the old one goes first.
static void second_session(nearfile_cache *cache) {
  nearfile_file *file = open_version(cache, 3, 0), *old = open_version(cache, 2, NEARFILE_TRUST_CLEAN);
  for (uint64_t first = 0; first < PAGES; first += 8) READ(file, first, 8, 3);
  READ(old, 0, PAGES, 2);
  forked_child(cache, file);
  READ(file, 0, PAGES, 3);
  nearfile_close(old);
  nearfile_close(file);
}

static void private_files(nearfile_cache *cache) {
  nearfile_source source = far_source(fars[4], FAR_AT);
  for (uint32_t mode = NEARFILE_PAGED; mode <= NEARFILE_EXACT; mode++) {
    nearfile_options options = {.struct_size = sizeof options, .size = SIZE, .mode = mode};
    nearfile_file *file = NULL;
    MUST(nearfile_open(cache, &source, &options, &file) == 0);
    READ(file, 1, 5, 4);
    READ(file, 0, 9, 4);
    MAY_FAIL(nearfile_discard(file, 0, 3 * PAGE));
    READ(file, 0, 9, 4);
    nearfile_close(file);
  }
}

static int32_t list_some(void *user_data, const nearfile_entry *entry) {
  (void)user_data;
  return entry->struct_size == 0;
}

static void keep_and_tell(nearfile_cache *cache) {
  char copy[NF_PATH], index[NF_PATH];
  nf_path(copy, "copy");
  nf_path(index, "copy.index");
  nearfile_file *file = open_version(cache, 2, 0), *kept = NULL;
  READ(file, 2, 6, 2);
  nearfile_stats stats = {.struct_size = sizeof stats};
  CHECK_EQ(nearfile_get_stats(file, &stats), 0);
  MAY_FAIL(nearfile_cache_get_stats(cache, &stats));
  bool preserved = MAY_FAIL(nearfile_preserve(file, copy));
  int64_t got = nearfile_pread(file, &(char){0}, 1, 2 * PAGE);  // frozen now: what is not there is its own error
  CHECK(got == 1 || got == NEARFILE_ERROR_FROZEN);
  nearfile_close(file);
  nearfile_source source = far_source(fars[2], FAR_AT);
  nearfile_options options = {.struct_size = sizeof options, .key = "key", .version = "even", .size = SIZE, .data_path = copy,
                              .index_path = index};
  if (preserved && MAY_FAIL(nearfile_open(NULL, &source, &options, &kept))) {
    READ(kept, 0, 9, 2);
    nearfile_close(kept);
  }
  MAY_FAIL(nearfile_cache_list(cache, list_some, NULL));
  MAY_FAIL(nearfile_cache_trim(cache, 3 * PAGE));
  MAY_FAIL(nearfile_cache_remove(cache, "key"));
}

static void live(uint64_t limit) {
  nearfile_cache *cache = open_cache(limit);
  first_session(cache);
  second_session(cache);
  nearfile_cache_close(cache);
  cache = open_cache(0);
  nearfile_file *file = open_version(cache, 2, NEARFILE_TRUST_CLEAN);
  READ(file, 0, PAGES, 2);
  nearfile_close(file);
  private_files(cache);
  keep_and_tell(cache);
  file = open_version(cache, 3, 0);
  READ(file, 0, PAGES, 3);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

// In a process that has seen no fault: with and without trust, and once more.
static void read_afterwards(void) {
  nearfile_cache *cache = open_cache(0);
  for (int again = 0; again < 2; again++) {
    for (uint64_t version = 2; version <= 3; version++) {
      nearfile_file *file = open_version(cache, version, again == 0 ? NEARFILE_TRUST_CLEAN : 0);
      READ(file, 0, PAGES, version);
      READ(file, 0, PAGES, version);
      nearfile_close(file);
    }
  }
  nearfile_cache_close(cache);
}

// ---- points ------------------------------------------------------------------------------------------------------------------

struct point {
  uint64_t mask;
  int fault;
  uint32_t from, from_step;
  bool forever;
};

static struct tally {
  uint64_t points, reached, hits;
} tally;

static uint64_t bit(enum call call) { return (uint64_t)1 << call; }

static void describe(char *to, size_t room, const struct point *point, const char *what) {
  const char *name = what;
  for (int call = 0; what == NULL && call < CALLS; call++) {
    if (point->mask == bit(call)) name = nf_calls[call].name;
  }
  snprintf(to, room, "%s %s: %s %u%s", name, nf_fault_name(point->fault), point->from != 0 ? "call" : "step",
           point->from != 0 ? point->from : point->from_step, point->forever ? " and later" : "");
}

// Runs one part of a point in a process of its own, which its alarm ends.
static void run_child(void (*part)(uint64_t), uint64_t argument) {
  pid_t child = nf_fork(DEADLINE_S);
  if (child == 0) {
    part(argument);
    nf_plan->armed = false;
    nf_child_ends();
  }
  CHECK_CHILD(child);
}

static void afterwards(uint64_t unused) {
  (void)unused;
  read_afterwards();
}

static int remove_one(const char *path, const struct stat *found, int kind, struct FTW *at) {
  (void)found, (void)kind, (void)at;
  return remove(path);
}

static void run_point(const struct point *point, const char *what, uint64_t limit) {
  char description[160], name[40];
  describe(description, sizeof description, point, what);
  nf_case_name = description;
  nf_faults_reset();
  nf_plan->mask = point->mask, nf_plan->fault = point->fault, nf_plan->forever = point->forever;
  nf_plan->from = point->from, nf_plan->from_step = point->from_step;
  snprintf(name, sizeof name, "%" PRIu64, tally.points++);
  size_t before = nf_enter(name);
  nf_plan->armed = true;
  run_child(live, limit);
  nf_plan->armed = false;
  tally.reached += nf_plan->hits != 0, tally.hits += nf_plan->hits;
  run_child(afterwards, 0);
  MUST(nftw(nf_dir, remove_one, 10, FTW_DEPTH | FTW_PHYS) == 0);
  nf_leave(before);
}

// ---- which points ------------------------------------------------------------------------------------------------------------

// Points are taken in passes, each a spread over all of them: the first alone, or as many as there is time for.
enum { PASSES = 80 };

static int64_t ends_at;
static uint64_t turn, pass;

static bool is_wanted(void) { return turn++ % PASSES == pass && (pass == 0 || nf_now_ms() < ends_at); }

static bool can_last(int fault) { return fault != EINTR && fault != EAGAIN && fault != ONE_BYTE; }

// Each place in the library fails at its first call, at its second and at its last, and from the first on.
static void fail_site(const struct nf_call *first, uint32_t second, uint32_t last, uint64_t limit) {
  for (const int *fault = nf_calls[first->call].faults; *fault != 0; fault++) {
    struct point point = {.mask = bit(first->call), .fault = *fault, .from = first->ordinal};
    if (is_wanted()) run_point(&point, NULL, limit);
    point.from = second;
    if (second != 0 && is_wanted()) run_point(&point, NULL, limit);
    point.from = last;
    if (last > second && second != 0 && is_wanted()) run_point(&point, NULL, limit);
    point.from = first->ordinal, point.forever = true;
    if (can_last(*fault) && is_wanted()) run_point(&point, NULL, limit);
  }
}

static uint32_t sites_of[CALLS], calls_of[CALLS];

static void fail_each_site(const struct nf_call *calls, uint32_t count, uint64_t limit) {
  for (uint32_t i = 0; i < count; i++) {
    uint32_t second = 0, last = 0;
    bool is_first = true;
    for (uint32_t j = 0; j < count && is_first; j++) {
      if (calls[j].call != calls[i].call || calls[j].site != calls[i].site) continue;
      is_first = j >= i;
      if (j > i && second == 0) second = calls[j].ordinal;
      last = calls[j].ordinal;
    }
    calls_of[calls[i].call] += pass == 0;
    if (!is_first) continue;
    sites_of[calls[i].call] += pass == 0;
    fail_site(&calls[i], second, last, limit);
  }
}

// What fails together, from some step on and for ever.
static void fail_together(uint32_t steps, uint64_t limit) {
  const uint64_t writes = bit(CALL_PWRITE) | bit(CALL_FTRUNCATE) | bit(CALL_ALLOCATE) | bit(CALL_MKDIR) | bit(CALL_RENAMEAT2) | bit(CALL_LINKAT);
  const uint64_t opens = bit(CALL_OPEN) | bit(CALL_OPEN64) | bit(CALL_OPENAT) | bit(CALL_OPENDIR) | bit(CALL_DUPFD);
  const uint64_t changes = writes | bit(CALL_PUNCH) | bit(CALL_UNLINKAT) | bit(CALL_UNLINK);
  const uint64_t syncs = bit(CALL_FSYNC) | bit(CALL_FDATASYNC), locks = bit(CALL_SETLK) | bit(CALL_GETLK) | bit(CALL_UNLCK);
  const uint64_t maps = bit(CALL_MMAP) | bit(CALL_MADVISE);
  const struct {
    const char *name;
    uint64_t mask;
    int fault;
  } kinds[] = {{"a full disk", writes | syncs, ENOSPC}, {"a quota", writes | syncs, EDQUOT},
               {"read only", changes | bit(CALL_OPENAT), EROFS}, {"no descriptors", opens, EMFILE},
               {"no locks", locks, ENOLCK}, {"no memory", maps | opens, ENOMEM}, {"no syncs", syncs, EIO},
               {"no access", opens | changes, EACCES}, {"a dead disk", ~bit(CALL_FUTEX), EIO}};
  for (uint32_t step = 1; step < steps; step += 1 + steps / 40) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
      struct point point = {.mask = kinds[i].mask, .fault = kinds[i].fault, .from_step = step, .forever = true};
      if (is_wanted()) run_point(&point, kinds[i].name, limit);
    }
  }
}

static void record(uint64_t limit) {
  nf_faults_reset();
  nf_plan->recorded = 0;
  size_t before = nf_enter("recorded");
  nf_plan->recording = nf_plan->armed = true;
  run_child(live, limit);
  nf_plan->armed = false;
  MUST(nf_failures == 0 && nf_plan->recorded > 300);
  nf_leave(before);
}

static void fail_all(uint64_t limit) {
  static struct nf_call calls[MOST_RECORDED];
  const char *name = nf_case_name;
  record(limit);
  uint32_t count = nf_plan->recorded;
  memcpy(calls, nf_plan->calls, count * sizeof *calls);
  memset(sites_of, 0, sizeof sites_of), memset(calls_of, 0, sizeof calls_of);
  tally = (struct tally){0};
  memset(seen, 0, sizeof *seen);
  const char *minutes = getenv("NEARFILE_FAULTS_MINUTES");
  ends_at = nf_now_ms() + (minutes == NULL ? 0 : (int64_t)(atof(minutes) * 60000 / 3));  // of three disks
  uint64_t all = 0;
  for (pass = 0; pass < PASSES && (pass == 0 || nf_now_ms() < ends_at); pass++) {
    turn = 0;
    fail_together(count, limit);
    fail_each_site(calls, count, limit);
    all = turn;
  }
  nf_case_name = name;
  for (int call = 0; call < CALLS; call++) {
    printf("       %-24s %5u calls from %3u places%s\n", nf_calls[call].name, calls_of[call], sites_of[call],
           calls_of[call] == 0 ? ": not called here" : "");
  }
  printf("       %" PRIu64 " points of %" PRIu64 ", %" PRIu64 " reached, %" PRIu64 " calls failed; %" PRIu64 " reads: %" PRIu64 " failed, %" PRIu64
         " wrong; %" PRIu64 " other calls had a status\n",
         tally.points, all, tally.reached, tally.hits, seen->reads, seen->failed, seen->wrong, seen->statuses);
  CHECK(tally.points > 60 && tally.reached * 10 > tally.points * 8);
}

// ---- disks ---------------------------------------------------------------------------------------------------------------------

static void on_ext4(uint64_t limit) {
  char disk[NF_PATH];
  nf_path(disk, "disk");
  nf_mount_image(disk, "ext4", 64 << 20);
  size_t before = strlen(nf_dir);
  strcat(nf_dir, "/disk");
  fail_all(limit);
  nf_leave(before);
  nf_unmount(disk);
}

static void without_a_limit(void) { on_ext4(0); }
static void within_a_limit(void) { on_ext4(LIMIT); }

static void in_memory(void) {
  char disk[NF_PATH];
  nf_mount_tmpfs(nf_path(disk, "disk"), 64 << 20);
  size_t before = strlen(nf_dir);
  strcat(nf_dir, "/disk");
  fail_all(LIMIT);
  nf_leave(before);
  nf_unmount(disk);
}

// The disk fills up in the middle of the day, at each moment of it.
static void fill_up_on(const char *kind, uint64_t bytes, uint64_t least, uint64_t most, uint64_t step) {
  char disk[NF_PATH], filler[NF_PATH + 10], name[40];
  nf_path(disk, kind);
  strcmp(kind, "tmpfs") == 0 ? nf_mount_tmpfs(disk, bytes) : nf_mount_image(disk, kind, bytes);
  snprintf(filler, sizeof filler, "%s/filler", disk);
  size_t outside = strlen(nf_dir);
  strcat(strcat(nf_dir, "/"), kind);
  for (uint64_t leave = least; leave < most; leave += step) {
    snprintf(name, sizeof name, "%" PRIu64 " bytes left", leave);
    nf_case_name = name;
    size_t before = nf_enter("part");
    nf_fill_up(disk, leave);
    run_child(live, 0);
    run_child(afterwards, 0);
    MUST(nftw(nf_dir, remove_one, 10, FTW_DEPTH | FTW_PHYS) == 0);
    nf_leave(before);
    MUST(unlink(filler) == 0);
    int top = open(disk, O_RDONLY | O_CLOEXEC);  // what was removed is free once it is synced
    MUST(top >= 0 && syncfs(top) == 0 && close(top) == 0);
  }
  nf_leave(outside);
  nf_unmount(disk);
}

static void a_disk_fills_up(void) {
  fill_up_on("ext4", 32 << 20, 0, 900 << 10, 16 << 10);
  fill_up_on("tmpfs", 2 << 20, 0, 900 << 10, 32 << 10);
}

// ---- for another injector: a day in a directory that it names, then the day after ---------------------------------------------

static void a_day(void) {
  CHECK(access("/nearfile/the day begins", F_OK) != 0);  // a mark in the trace: what comes after may fail
  live(LIMIT);
}

int main(int argc, char **argv) {
  for (uint64_t version = 0; version < sizeof fars / sizeof *fars; version++) fars[version] = far_new(SIZE, version, PAGE);
  seen = nf_shared(sizeof *seen);
  const char *dir = getenv("NEARFILE_FAULTS_DIR");
  if (dir != NULL && argc == 2) {
    snprintf(nf_dir, sizeof nf_dir, "%s", dir);
    alarm(DEADLINE_S);
    strcmp(argv[1], "the_day_after") == 0 ? read_afterwards() : a_day();
    return nf_failures != 0;
  }
  nf_own_mounts();
  nf_faults_begin();
  static const struct nf_case cases[] = {NF_CASE(a_disk_fills_up), NF_CASE(without_a_limit),
                                         NF_CASE(within_a_limit), NF_CASE(in_memory)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
