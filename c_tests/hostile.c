// Guards against callbacks that call back: into the file that they serve, through whichever handle, directly or through another file, a
// clear answer at once and never a deadlock; everything that is no read of the file works in a callback; and callbacks that are slow,
// change errno, lose their connection, or give none. After each of them the bytes are right, for a fresh process, too.
#include "nf_test.h"

enum { VERSION = 71, PAGE = 1000, PAGES = 12, SIZE = PAGES * PAGE - 3, AT_ONCE_MS = 4000 };

static int cases_tried;

// ---- a scene: a file, and what its callback does ------------------------------------------------------------------------------

struct scene {
  nearfile_cache *cache;
  far_file *far, *twin_far, *between_far;
  nearfile_file *file, *dup, *twin, *between;  // twin: the same key, opened again; between: a file whose source reads `file`
  nearfile_file *target;                       // what the callback calls
  int64_t (*call)(struct scene *, uint64_t offset);
  int64_t got;
  int calls;
  bool private_file;
};

static int32_t call_back(far_file *far, uint64_t offset, size_t len) {
  struct scene *scene = far->hook_data;
  (void)len;
  if (scene->calls++ != 0) return 0;
  scene->got = scene->call(scene, offset);
  return 0;
}

static int32_t read_file_of_the_scene(far_file *far, uint64_t offset, size_t len) {
  struct scene *scene = far->hook_data;
  char buf[20];
  (void)len;
  return nearfile_pread(scene->file, buf, sizeof buf, offset) == sizeof buf ? 0 : 78;
}

static void set_scene(struct scene *scene, enum far_kind kind, uint32_t mode, const char *key) {
  *scene = (struct scene){.cache = nf_cache("cache", PAGE, 0, 0), .far = far_new(SIZE, VERSION, PAGE), .private_file = key == NULL};
  scene->twin_far = far_new(SIZE, VERSION, PAGE), scene->between_far = far_new(SIZE, VERSION + 1, PAGE);
  nearfile_source source = far_source(scene->far, kind);
  nearfile_options options = {.struct_size = sizeof options, .key = key, .size = SIZE, .mode = mode};
  MUST(nearfile_open(scene->cache, &source, &options, &scene->file) == 0);
  MUST(nearfile_dup(scene->file, &scene->dup) == 0);
  if (key != NULL) scene->twin = nf_open_far(scene->cache, scene->twin_far, kind, key);
  scene->between = nf_open_far(scene->cache, scene->between_far, kind, NULL);
  scene->between_far->hook = read_file_of_the_scene, scene->between_far->hook_data = scene;
}

// Afterwards everything is right, for this process and, of a key, for another.
static void end_scene(struct scene *scene, const char *key) {
  scene->far->hook = scene->between_far->hook = NULL;
  CHECK_ALL(scene->file, VERSION);
  CHECK_ALL(scene->dup, VERSION);
  CHECK_ALL(scene->between, VERSION + 1);
  if (scene->twin != NULL) CHECK_ALL(scene->twin, VERSION);
  nearfile_close(scene->between);
  nearfile_close(scene->twin);
  nearfile_close(scene->dup);
  nearfile_close(scene->file);
  CHECK_EQ(scene->far->opens, scene->far->closes);
  CHECK_EQ(scene->far->releases, 1);
  CHECK_EQ(scene->far->offences, 0);
  if (key != NULL) {
    pid_t child = nf_fork(20);
    if (child == 0) {
      nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
      nearfile_source source = far_source(scene->twin_far, FAR_AT);
      nearfile_file *file = nf_open(cache, &source, key, NULL, SIZE, NEARFILE_TRUST_CLEAN);
      CHECK_ALL(file, VERSION);
      nearfile_close(file);
      nearfile_cache_close(cache);
      nf_child_ends();
    }
    CHECK_CHILD(child);
    CHECK_EQ(nearfile_cache_remove(scene->cache, key), 0);
  }
  nearfile_cache_close(scene->cache);
  far_free(scene->far), far_free(scene->twin_far), far_free(scene->between_far);
}

// ---- reads that call back into the file ---------------------------------------------------------------------------------------

static int64_t inner_pread(struct scene *scene, uint64_t offset) {
  char buf[20];
  return nearfile_pread(scene->target, buf, sizeof buf, offset);
}

static int64_t inner_read(struct scene *scene, uint64_t offset) {
  char buf[20];
  CHECK_EQ(nearfile_seek(scene->target, (int64_t)offset, NEARFILE_SEEK_SET), (int64_t)offset);
  return nearfile_read(scene->target, buf, sizeof buf);
}

static int64_t inner_ranges(struct scene *scene, uint64_t offset) {
  char buf[20];
  nearfile_range range = {.offset = offset, .buf = buf, .len = sizeof buf};
  int32_t status = nearfile_read_ranges(scene->target, &range, 1, sizeof range);
  CHECK_EQ(range.out_status, status);
  return status;
}

static int64_t inner_prefetch(struct scene *scene, uint64_t offset) {
  return nearfile_prefetch(scene->target, offset, PAGE, 0, NULL, NULL);
}

static int64_t inner_pin(struct scene *scene, uint64_t offset) {
  nearfile_pin *pin = NULL;
  int32_t status = nearfile_pin_range(scene->target, offset, 20, &pin);
  if (status == 0) CHECK_BYTES(nearfile_pin_data(pin), nearfile_pin_size(pin), offset, VERSION);
  nearfile_pin_release(pin);
  return status;
}

enum through { ITSELF, ITS_DUP, ITS_KEY, ANOTHER };

static void check_call_back(enum far_kind kind, uint32_t mode, const char *key, enum through through,
                            int64_t (*call)(struct scene *, uint64_t)) {
  struct scene scene;
  set_scene(&scene, kind, mode, key);
  scene.target = through == ITSELF ? scene.file : through == ITS_DUP ? scene.dup : through == ITS_KEY ? scene.twin : scene.between;
  scene.call = call;
  scene.far->hook = call_back, scene.far->hook_data = &scene;
  int64_t began = nf_now_ms();
  CHECK_PREAD(scene.file, 10, 5 * PAGE, VERSION);
  CHECK_EQ(scene.calls >= 1, true);
  CHECK(nf_now_ms() - began < AT_ONCE_MS);  // less than half of wait_ms
  switch (through) {
    case ITSELF: case ITS_DUP: CHECK_EQ(scene.got, NEARFILE_ERROR_ARGUMENT); break;
    case ITS_KEY: CHECK(scene.got >= 0); break;  // its own source gives the bytes
    case ANOTHER: CHECK_EQ(scene.got, NEARFILE_ERROR_SOURCE); break;
  }
  end_scene(&scene, key);
  cases_tried++;
}

static void into_the_same_file(void) {
  alarm(100);
  static int64_t (*const calls[])(struct scene *, uint64_t) = {inner_pread, inner_read, inner_ranges, inner_prefetch, inner_pin};
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    for (int kind = FAR_AT; kind <= FAR_SEEK_OPEN; kind++) {
      for (int through = ITSELF; through <= ANOTHER; through++) {
        char name[60];
        snprintf(name, sizeof name, "call %zu, kind %d, through %d", i, kind, through);
        nf_case_name = name;
        check_call_back((enum far_kind)kind, NEARFILE_PAGED, "key", (enum through)through, calls[i]);
        if (through == ITS_KEY) continue;
        check_call_back((enum far_kind)kind, NEARFILE_PAGED, NULL, (enum through)through, calls[i]);
        check_call_back((enum far_kind)kind, NEARFILE_EXACT, NULL, (enum through)through, calls[i]);
      }
    }
  }
  alarm(0);
}

// ---- everything else works ------------------------------------------------------------------------------------------------------

static int32_t list_nothing(void *user_data, const nearfile_entry *entry) {
  (void)user_data, (void)entry;
  return 0;
}

static int64_t other_calls(struct scene *scene, uint64_t offset) {
  nearfile_file *file = scene->file, *other = NULL;
  nearfile_stats stats = {.struct_size = sizeof stats};
  uint64_t end;
  int32_t cached;
  char path[NF_PATH], byte;
  CHECK_EQ(nearfile_size(file), SIZE);
  CHECK(nearfile_page_size(file) > 0);
  CHECK_EQ(nearfile_tell(file), nearfile_seek(file, 0, NEARFILE_SEEK_CUR));
  CHECK_EQ(nearfile_extent(file, offset, &end, &cached), 0);
  CHECK_EQ(nearfile_get_stats(file, &stats), 0);
  CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
  CHECK_EQ(nearfile_dup(file, &other), 0);
  CHECK_EQ(nearfile_freeze(other), 0);
  CHECK_EQ(nearfile_pread(other, &byte, 1, offset), NEARFILE_ERROR_FROZEN);
  CHECK_EQ(nearfile_preserve(other, nf_path(path, scene->private_file ? "private copy" : "copy")), 0);
  nearfile_close(other);
  CHECK_EQ(nearfile_cache_get_stats(scene->cache, &stats), 0);
  CHECK_EQ(nearfile_cache_list(scene->cache, list_nothing, NULL), 0);
  CHECK_EQ(nearfile_cache_trim(scene->cache, 0), 0);
  CHECK_EQ(nearfile_cache_remove(scene->cache, "key"), 0);
  CHECK_EQ(nearfile_set_log(NULL, NULL, NEARFILE_LOG_OFF), 0);
  CHECK_EQ(nearfile_pread(file, &byte, 1, SIZE), 0);
  far_file *far = far_new(SIZE, VERSION + 2, PAGE);
  nearfile_cache *second = nf_cache("cache", PAGE, 0, 0);
  nearfile_file *fresh = nf_open_far(second, far, FAR_SEEK_OPEN, "another");
  CHECK_ALL(fresh, VERSION + 2);
  nearfile_close(fresh);
  nearfile_cache_close(second);
  far_free(far);
  return 0;
}

static void everything_else_works(void) {
  alarm(60);
  for (int kind = FAR_AT; kind <= FAR_SEEK_OPEN; kind++) {
    for (int keyed = 0; keyed < 2; keyed++) {
      struct scene scene;
      char dir[20];
      snprintf(dir, sizeof dir, "%d %d", kind, keyed);
      size_t before = strlen(nf_dir);
      snprintf(nf_dir + before, sizeof nf_dir - before, "/%s", dir);
      MUST(mkdir(nf_dir, 0700) == 0);
      set_scene(&scene, (enum far_kind)kind, NEARFILE_PAGED, keyed ? "key" : NULL);
      CHECK_PREAD(scene.file, 10, 0, VERSION);
      scene.call = other_calls;
      scene.far->hook = call_back, scene.far->hook_data = &scene;
      int64_t began = nf_now_ms();
      CHECK_PREAD(scene.file, 10, 5 * PAGE, VERSION);
      CHECK(nf_now_ms() - began < AT_ONCE_MS);
      end_scene(&scene, keyed ? "key" : NULL);
      nf_dir[before] = 0;
      cases_tried++;
    }
  }
  alarm(0);
}

// ---- callbacks with habits --------------------------------------------------------------------------------------------------------

static int32_t change_errno(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  errno = EINTR;  // what a library that looks at errno after a success would take for a reason
  return 0;
}

static int32_t be_slow(far_file *far, uint64_t offset, size_t len) {
  (void)far, (void)offset, (void)len;
  nf_sleep_us(700000);
  return 0;
}

static void *read_the_same(void *argument) {
  CHECK_PREAD(argument, 10, 5 * PAGE + 3, VERSION);
  return NULL;
}

static void errno_and_time_do_not_matter(void) {
  for (int slow = 0; slow < 2; slow++) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, slow ? 100 : 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, NULL);
    far->hook = slow ? be_slow : change_errno;
    pthread_t second = nf_thread(read_the_same, file), third = nf_thread(read_the_same, file);  // waits, then passes by
    CHECK_PREAD(file, 10, 5 * PAGE, VERSION);
    nf_join(second), nf_join(third);
    far->hook = NULL;
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
    far_free(far);
    nearfile_cache_close(cache);
    cases_tried++;
  }
}

// A connection that breaks is closed once, by the library, and another is opened.
static int32_t break_connection(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  far_connection *use = connection;
  if (use->position == 1) return EPIPE;  // broken before, and used again
  int32_t code = far_give(use, offset, buf, len, out_len);
  if (offset >= 6 * PAGE && use->far->hook_data != NULL) {
    use->position = 1;
    use->far->hook_data = NULL;
    return ECONNRESET;
  }
  return code;
}

static void a_broken_connection_is_replaced(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  source.read_at = break_connection;
  nearfile_file *file = nf_open(cache, &source, NULL, NULL, SIZE, 0);
  for (int again = 0; again < 5; again++) {
    char byte;
    CHECK_PREAD(file, 10, 0, VERSION);
    far->hook_data = far;
    CHECK_EQ(nearfile_pread(file, &byte, 1, 7 * PAGE), NEARFILE_ERROR_SOURCE);
    CHECK_EQ(nf_last_error().source_code, ECONNRESET);
    CHECK(!nf_is_cached(file, 7 * PAGE));
    CHECK_PREAD(file, 10, 7 * PAGE, VERSION);
    CHECK_EQ(nearfile_discard(file, 0, SIZE), 0);
    CHECK_EQ(far->opens, far->closes + 1);
  }
  nearfile_close(file);
  CHECK_EQ(far->opens, far->closes);
  far_free(far);
  nearfile_cache_close(cache);
  cases_tried++;
}

// open says that it went well and gives NULL: a connection like any other to the library.
static _Atomic int null_opens, null_closes;

static int32_t open_nothing(void *user_data, void **out_connection) {
  (void)user_data, (void)out_connection;
  atomic_fetch_add(&null_opens, 1);
  return 0;
}

static void close_nothing(void *connection) {
  CHECK(connection == NULL);
  atomic_fetch_add(&null_closes, 1);
}

static int32_t read_nothing(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  CHECK(connection == NULL);
  nf_fill(buf, len, offset, VERSION);
  *out_len = len;
  return 0;
}

static void no_connection_is_one(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  nearfile_source source = {.struct_size = sizeof source, .open = open_nothing, .close = close_nothing, .read_at = read_nothing};
  nearfile_file *file = nf_open(cache, &source, NULL, NULL, SIZE, 0);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK(null_opens > 0 && null_opens == null_closes);
  nearfile_cache_close(cache);
  cases_tried++;
}

// ---- sizes that lie -------------------------------------------------------------------------------------------------------------

static int32_t lie_about_size(void *connection, uint64_t *out_size) {
  *out_size = *(const uint64_t *)((far_connection *)connection)->far->hook_data;
  return 0;
}

static int32_t end_at_size(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  far_connection *use = connection;
  *out_len = 0;
  return offset >= SIZE ? 0 : far_give(use, offset, buf, len, out_len);
}

// Too small: only so much is there. Too large: what is missing is an error, and what is there is right. Every lie is another file.
static void a_size_that_lies(void) {
  static const uint64_t sizes[] = {0, 1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE, 1ull << 40, INT64_MAX};
  nearfile_cache *cache = nf_cache("cache", 1 << 30, PAGE, 0);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    far_file *far = far_new(SIZE, VERSION, PAGE);
    uint64_t said = sizes[i];
    far->hook_data = &said;
    nearfile_source source = far_source(far, FAR_AT_OPEN);
    source.size = lie_about_size, source.read_at = end_at_size;
    nearfile_options options = {.struct_size = sizeof options, .key = "key", .size = NEARFILE_SIZE_UNKNOWN,
                                .page_size = said < 1 << 30 ? PAGE : 1 << 30};
    nearfile_file *file = NULL;
    MUST(nearfile_open(cache, &source, &options, &file) == 0);
    CHECK_EQ(nearfile_size(file), said);
    char byte;
    if (said < 1 << 30) CHECK_PREAD(file, said < PAGE ? said : PAGE, 0, VERSION);
    if (said > SIZE) CHECK_EQ(nearfile_pread(file, &byte, 1, said - 1), NEARFILE_ERROR_SHORT_SOURCE);
    if (said > SIZE) CHECK(!nf_is_cached(file, said - 1));
    CHECK_EQ(nearfile_pread(file, &byte, 1, said), 0);
    nearfile_close(file);
    CHECK_EQ(far->opens, far->closes);
    far_free(far);
    cases_tried++;
  }
  nearfile_cache_close(cache);
}

// ---- progress, list, log -----------------------------------------------------------------------------------------------------------

static nearfile_file *progress_file;
static int progress_calls;

static int32_t progress_calls_back(void *user_data, uint64_t done, uint64_t total) {
  char byte;
  (void)user_data;
  progress_calls++;
  CHECK(done <= total);
  CHECK_EQ(nearfile_pread(progress_file, &byte, 1, (uint64_t)progress_calls * 333 % SIZE), 1);
  CHECK_EQ(nearfile_prefetch(progress_file, 0, SIZE, 0, NULL, NULL), 0);
  CHECK_EQ(nearfile_discard(progress_file, 0, 2 * PAGE), 0);
  return 0;
}

static int32_t progress_ends(void *user_data, uint64_t done, uint64_t total) {
  (void)done, (void)total;
  return *(int32_t *)user_data;
}

// No callback of the source is under way in a progress callback: it may do anything with the file.
static void progress_that_calls_back(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 2 * PAGE, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  progress_file = nf_open_far(cache, far, FAR_SEEK_OPEN, NULL);
  CHECK_EQ(nearfile_prefetch(progress_file, 0, SIZE, 0, progress_calls_back, NULL), 0);
  CHECK(progress_calls > 1);
  static const int32_t ends[] = {1, -1, NEARFILE_ERROR_INTERNAL, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
    int32_t end = ends[i];
    CHECK_EQ(nearfile_discard(progress_file, 0, SIZE), 0);
    CHECK_EQ(nearfile_prefetch(progress_file, 0, SIZE, 0, progress_ends, &end), NEARFILE_ERROR_CANCELLED);
    cases_tried++;
  }
  CHECK_ALL(progress_file, VERSION);
  nearfile_close(progress_file);
  far_free(far);
  nearfile_cache_close(cache);
}

static int32_t list_changes(void *user_data, const nearfile_entry *entry) {
  nearfile_cache *cache = user_data;
  (void)entry;
  CHECK_EQ(nearfile_cache_list(cache, list_nothing, NULL), 0);
  CHECK_EQ(nearfile_cache_trim(cache, 0), 0);
  CHECK_EQ(nearfile_cache_remove(cache, "key 3"), 0);
  return 0;
}

static nearfile_cache *log_cache;
static _Thread_local int log_depth;
static _Atomic int log_lines;

static void log_calls_back(void *user_data, int32_t level, const char *line) {
  (void)user_data, (void)level, (void)line;
  atomic_fetch_add(&log_lines, 1);
  if (log_depth++ == 0) {
    nearfile_stats stats = {.struct_size = sizeof stats};
    CHECK_EQ(nearfile_cache_get_stats(log_cache, &stats), 0);
    CHECK_EQ(nearfile_cache_trim(log_cache, 0), 0);
  }
  log_depth--;
}

static void list_and_log_that_call_back(void) {
  alarm(30);
  nearfile_cache *cache = log_cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  for (int i = 0; i < 6; i++) {
    char key[20];
    snprintf(key, sizeof key, "key %d", i);
    nearfile_file *file = nf_open_far(cache, far, FAR_AT, key);
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
  }
  CHECK_EQ(nearfile_cache_list(cache, list_changes, cache), 0);
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "key");
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nearfile_set_log(log_calls_back, NULL, NEARFILE_LOG_DEBUG), 0);
  MUST(truncate(nearfile_data_path(file), 0) == 0);  // something to tell
  CHECK_ALL(file, VERSION);
  CHECK(log_lines > 0);
  CHECK_EQ(nearfile_set_log(NULL, NULL, NEARFILE_LOG_OFF), 0);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
  cases_tried += 2;
  alarm(0);
}

static void enough_was_tried(void) {
  printf("       %d hostile callbacks\n", cases_tried);
  CHECK(cases_tried >= 150);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(into_the_same_file), NF_CASE(everything_else_works), NF_CASE(errno_and_time_do_not_matter),
      NF_CASE(a_broken_connection_is_replaced), NF_CASE(no_connection_is_one), NF_CASE(a_size_that_lies),
      NF_CASE(progress_that_calls_back), NF_CASE(list_and_log_that_call_back), NF_CASE(enough_was_tried)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
