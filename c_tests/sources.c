// Guards that nothing that a source's callback does, short of writing outside of its buffer, leads to a wrong byte, a stored
// page, a hang or a second release; and that callbacks are called when, where and as often as the manual says.
#include "nf_test.h"

enum { VERSION = 3, PAGE = 1000, SIZE = 10500 };

// ---- a source that misbehaves on request -------------------------------------------------------------------------------

enum trick {
  GOOD,
  TOO_MUCH,           // one byte more than asked
  FAR_TOO_MUCH,       // 2^63
  SIZE_MAX_LEN,
  ALMOST_SIZE_MAX,
  LEN_UNTOUCHED,      // returns 0 and forgets *out_len
  NOTHING,            // 0 bytes before the end
  CODE_1,             // codes of its own, with a plausible *out_len and a filled buffer
  CODE_MINUS_5,
  CODE_MIN,
  CODE_MAX,
  FAILS_AFTER_SOME,   // a few good bytes, then a code
  NOTHING_AFTER_SOME,
  TOO_MUCH_AFTER_SOME,
  OPEN_FAILS,
  SEEK_ELSEWHERE,     // and truly goes there
  SEEK_ONE_OFF,
  SEEK_UNTOUCHED,
  SEEK_NEGATIVE,      // a position above 2^63
  SEEK_FAILS,
};

typedef struct hostile {
  far_connection self;  // first: the callbacks of far_file take it for one
  far_file *far;
  enum trick trick;
  size_t most;          // the longest read given, 0: all
  bool random_lengths;
  uint64_t seed;
  int after;            // for ..._AFTER_SOME: how many good reads
} hostile;

static hostile *hostile_of(void *connection) { return ((far_connection *)connection)->far->hook_data; }

static int32_t trick_reply(hostile *host, enum trick trick, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  // Whatever it says, it has put something wrong into the buffer.
  memset(buf, 0xBD, len);
  *out_len = len;
  switch (trick) {
    case TOO_MUCH: *out_len = len + 1; return 0;
    case FAR_TOO_MUCH: *out_len = (size_t)1 << 63; return 0;
    case SIZE_MAX_LEN: *out_len = SIZE_MAX; return 0;
    case ALMOST_SIZE_MAX: *out_len = SIZE_MAX - offset; return 0;
    case NOTHING: *out_len = 0; return 0;
    case CODE_1: return 1;
    case CODE_MINUS_5: return -5;
    case CODE_MIN: return INT32_MIN;
    case CODE_MAX: return INT32_MAX;
    default: host->trick = GOOD; return 12345;
  }
}

static int32_t hostile_give(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  hostile *host = hostile_of(connection);
  switch (host->trick) {
    case GOOD: case OPEN_FAILS: case SEEK_ELSEWHERE: case SEEK_ONE_OFF: case SEEK_UNTOUCHED: case SEEK_NEGATIVE: case SEEK_FAILS:
      break;
    case LEN_UNTOUCHED:
      memset(buf, 0xBD, len);
      return 0;
    case FAILS_AFTER_SOME: case NOTHING_AFTER_SOME: case TOO_MUCH_AFTER_SOME:
      if (host->after-- > 0) break;
      return trick_reply(host, host->trick == FAILS_AFTER_SOME     ? CODE_1
                               : host->trick == NOTHING_AFTER_SOME ? NOTHING
                                                                   : TOO_MUCH, offset, buf, len, out_len);
    default: return trick_reply(host, host->trick, offset, buf, len, out_len);
  }
  if (host->random_lengths) len = 1 + (size_t)nf_below(&host->seed, len);
  else if (host->most != 0 && len > host->most) len = host->most;
  return far_give(connection, offset, buf, len, out_len);
}

static int32_t hostile_read_at(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  return hostile_give(connection, offset, buf, len, out_len);
}

static int32_t hostile_read(void *connection, void *buf, size_t len, size_t *out_len) {
  far_connection *use = connection;
  int32_t code = hostile_give(connection, use->position, buf, len, out_len);
  if (code == 0 && *out_len <= len) use->position += *out_len;
  return code;
}

static int32_t hostile_seek(void *connection, int64_t offset, int32_t whence, uint64_t *out_position) {
  hostile *host = hostile_of(connection);
  uint64_t untouched = *out_position;
  far_seek(connection, offset, whence, out_position);
  far_connection *use = connection;
  switch (host->trick) {
    case SEEK_ELSEWHERE: *out_position = use->position = use->position / 2 + 10; break;
    case SEEK_ONE_OFF: *out_position = ++use->position; break;
    case SEEK_UNTOUCHED: *out_position = untouched; break;
    case SEEK_NEGATIVE: *out_position = (uint64_t)-7; break;
    case SEEK_FAILS: return 29;
    default: break;
  }
  return 0;
}

static int32_t hostile_open(void *user_data, void **out_connection) {
  if (hostile_of(user_data)->trick == OPEN_FAILS) {
    atomic_fetch_add(&((far_connection *)user_data)->far->opens, 1);
    atomic_fetch_add(&((far_connection *)user_data)->far->closes, 1);  // there is nothing to close
    return 111;
  }
  return far_open(user_data, out_connection);
}

static nearfile_source hostile_source(far_file *far, hostile *host, enum far_kind kind) {
  nearfile_source source = far_source(far, kind);
  memset(host, 0, sizeof *host);
  host->far = far;
  far->hook_data = host;
  if (source.read_at != NULL) source.read_at = hostile_read_at;
  if (source.read != NULL) source.read = hostile_read, source.seek = hostile_seek;
  if (source.open != NULL) source.open = hostile_open;
  return source;
}

// A read that meets a trick fails with this status and code, stores nothing, and the next good read is right.
static void check_trick(enum far_kind kind, enum trick trick, int after, size_t most, uint64_t max_fetch, int32_t status, int64_t code) {
  char name[100];
  snprintf(name, sizeof name, "hostile: kind %d, trick %d, after %d, most %zu, max_fetch %" PRIu64, kind, trick, after, most, max_fetch);
  const char *outer = nf_case_name;
  nf_case_name = name;
  nearfile_cache *cache = nf_cache("cache", PAGE, max_fetch, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  hostile host;
  nearfile_source source = hostile_source(far, &host, kind);
  nearfile_file *file = nf_open(cache, &source, NULL, NULL, SIZE, 0);
  CHECK_PREAD(file, 10, 9 * PAGE, VERSION);  // one good page before
  nearfile_stats before = nf_stats(file);

  host.trick = trick, host.after = after, host.most = most;
  unsigned char buf[3 * PAGE];
  CHECK_EQ(nearfile_pread(file, buf, sizeof buf, PAGE / 2), status);
  nearfile_error error = nf_last_error();
  CHECK_EQ(error.status, status);
  CHECK_EQ(error.source_code, code);
  CHECK(error.message[0] != 0);
  CHECK_EQ(nearfile_seek(file, PAGE / 2, NEARFILE_SEEK_SET), PAGE / 2);
  host.trick = trick, host.after = after;
  CHECK_EQ(nearfile_read(file, buf, sizeof buf), status);
  CHECK_EQ(nearfile_tell(file), PAGE / 2);  // and the position stays

  nearfile_stats stats = nf_stats(file);
  CHECK_EQ(stats.pages_fetched, before.pages_fetched);
  CHECK_EQ(stats.cached_pages, 1);
  CHECK_EQ(nf_walk(file), PAGE);
  CHECK(!nf_is_cached(file, 0) && !nf_is_cached(file, PAGE) && !nf_is_cached(file, 2 * PAGE));
  CHECK(stats.source_errors >= before.source_errors + 2);
  CHECK_PREAD(file, 10, 9 * PAGE, VERSION);  // a hit does not mind

  host.trick = GOOD, host.most = 0;
  CHECK_ALL(file, VERSION);
  CHECK_EQ(nf_stats(file).cached_pages, 11);
  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  CHECK_EQ(far->opens, far->closes);
  CHECK_EQ(far->offences, 0);
  far_free(far);
  nearfile_cache_close(cache);
  nf_case_name = outer;
}

static void hostile_callbacks(void) {
  static const struct { enum trick trick; int32_t status; int64_t code; bool seek_only, open_only; } tricks[] = {
      {TOO_MUCH, NEARFILE_ERROR_SOURCE, 0, false, false},
      {FAR_TOO_MUCH, NEARFILE_ERROR_SOURCE, 0, false, false},
      {SIZE_MAX_LEN, NEARFILE_ERROR_SOURCE, 0, false, false},
      {ALMOST_SIZE_MAX, NEARFILE_ERROR_SOURCE, 0, false, false},
      {LEN_UNTOUCHED, NEARFILE_ERROR_SOURCE, 0, false, false},
      {NOTHING, NEARFILE_ERROR_SHORT_SOURCE, 0, false, false},
      {CODE_1, NEARFILE_ERROR_SOURCE, 1, false, false},
      {CODE_MINUS_5, NEARFILE_ERROR_SOURCE, -5, false, false},
      {CODE_MIN, NEARFILE_ERROR_SOURCE, INT32_MIN, false, false},
      {CODE_MAX, NEARFILE_ERROR_SOURCE, INT32_MAX, false, false},
      {SEEK_ELSEWHERE, NEARFILE_ERROR_SOURCE, 0, true, false},
      {SEEK_ONE_OFF, NEARFILE_ERROR_SOURCE, 0, true, false},
      {SEEK_UNTOUCHED, NEARFILE_ERROR_SOURCE, 0, true, false},
      {SEEK_NEGATIVE, NEARFILE_ERROR_SOURCE, 0, true, false},
      {SEEK_FAILS, NEARFILE_ERROR_SOURCE, 29, true, false},
  };
  for (size_t i = 0; i < sizeof tricks / sizeof *tricks; i++) {
    for (int kind = FAR_AT; kind <= FAR_SEEK_OPEN; kind++) {
      bool seeks = kind == FAR_SEEK || kind == FAR_SEEK_OPEN;
      if (tricks[i].seek_only && !seeks) continue;
      check_trick((enum far_kind)kind, tricks[i].trick, 0, 0, 0, tricks[i].status, tricks[i].code);
    }
  }
}

// The fault comes in the middle: of a page that is read on, of a run of pages, of a page in pieces.
static void faults_in_the_middle(void) {
  static const struct { enum trick trick; int32_t status; int64_t code; } tricks[] = {
      {FAILS_AFTER_SOME, NEARFILE_ERROR_SOURCE, 1},
      {NOTHING_AFTER_SOME, NEARFILE_ERROR_SHORT_SOURCE, 0},
      {TOO_MUCH_AFTER_SOME, NEARFILE_ERROR_SOURCE, 0}};
  for (size_t i = 0; i < 3; i++) {
    for (int kind = FAR_AT; kind <= FAR_SEEK_OPEN; kind++) {
      // 90-byte replies: the third falls into the first page. 300-byte pieces: it is the third of four.
      check_trick((enum far_kind)kind, tricks[i].trick, 2, 90, 0, tricks[i].status, tricks[i].code);
      check_trick((enum far_kind)kind, tricks[i].trick, 2, 0, 300, tricks[i].status, tricks[i].code);
      check_trick((enum far_kind)kind, tricks[i].trick, 3, 170, 300, tricks[i].status, tricks[i].code);
    }
  }
}

// What a page in pieces had taken of the disk before the fault goes back.
static void a_failed_page_takes_no_space(void) {
  enum { MIB = 1 << 20 };
  nearfile_cache *cache = nf_cache("cache", 4 * MIB, MIB, 0);
  far_file *far = far_new(8 * MIB, VERSION, 4 * MIB);
  hostile host;
  nearfile_source source = hostile_source(far, &host, FAR_AT);
  nearfile_file *file = nf_open(cache, &source, "key", NULL, far->size, 0);
  host.trick = FAILS_AFTER_SOME, host.after = 3;
  char byte;
  CHECK_EQ(nearfile_pread(file, &byte, 1, 0), NEARFILE_ERROR_SOURCE);
  struct stat stat_;
  MUST(stat(nearfile_data_path(file), &stat_) == 0);
  CHECK(stat_.st_blocks * 512 <= 64 << 10);
  CHECK_EQ(nf_stats(file).cached_pages, 0);
  host.trick = GOOD;
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// Fewer bytes than asked for are read on.
static void short_reads(void) {
  for (int kind = FAR_AT; kind <= FAR_SEEK_OPEN; kind++) {
    for (int how = 0; how < 4; how++) {
      nearfile_cache *cache = nf_cache("cache", PAGE, how == 3 ? 333 : 0, 0);
      far_file *far = far_new(SIZE, VERSION, PAGE);
      hostile host;
      nearfile_source source = hostile_source(far, &host, (enum far_kind)kind);
      nearfile_file *file = nf_open(cache, &source, NULL, NULL, SIZE, 0);
      host.most = how == 0 ? 1 : how == 1 ? 999 : 0;
      host.random_lengths = how >= 2;
      host.seed = (uint64_t)kind + 1;
      CHECK_ALL(file, VERSION);
      CHECK_ONCE(far);
      if (how == 0) CHECK_EQ(far->reads, SIZE);
      CHECK_EQ(nf_stats(file).source_errors, 0);
      CHECK_EQ(nf_stats(file).cached_bytes, SIZE);
      nearfile_close(file);
      CHECK_EQ(far->offences, 0);
      far_free(far);
      nearfile_cache_close(cache);
    }
  }
}

// The source is shorter than the size that was given: an error where bytes are missing, bytes where they are there.
static void shorter_than_told(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  hostile host;
  nearfile_source source = hostile_source(far, &host, FAR_AT);
  nearfile_file *file = nf_open(cache, &source, NULL, NULL, SIZE + 5000, 0);
  unsigned char buf[PAGE];
  CHECK_PREAD(file, PAGE, 3 * PAGE, VERSION);
  host.trick = NOTHING;
  CHECK_EQ(nearfile_pread(file, buf, 10, SIZE + 100), NEARFILE_ERROR_SHORT_SOURCE);
  CHECK_EQ(nearfile_pread(file, buf, 10, SIZE + 4999), NEARFILE_ERROR_SHORT_SOURCE);
  CHECK(nf_last_error().message[0] != 0);
  CHECK_EQ(nf_walk(file), PAGE);
  CHECK_PREAD(file, PAGE, 3 * PAGE, VERSION);
  nearfile_close(file);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- open, close, release ----------------------------------------------------------------------------------------------

static void open_fails_and_then_works(void) {
  for (int kind = FAR_AT_OPEN; kind <= FAR_SEEK_OPEN; kind += FAR_SEEK_OPEN - FAR_AT_OPEN) {
    nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    hostile host;
    nearfile_source source = hostile_source(far, &host, (enum far_kind)kind);
    host.trick = OPEN_FAILS;
    nearfile_file *file = nf_open(cache, &source, NULL, NULL, SIZE, 0);
    CHECK_EQ(far->opens, 0);
    for (int i = 0; i < 40; i++) {  // more often than there are connections: a failed one is given back
      unsigned char buf[10];
      CHECK_EQ(nearfile_pread(file, buf, sizeof buf, 0), NEARFILE_ERROR_SOURCE);
      CHECK_EQ(nf_last_error().source_code, 111);
      CHECK_EQ(far->opens, i + 1);
    }
    CHECK_EQ(far->reads, 0);
    CHECK_EQ(nf_walk(file), 0);
    CHECK_EQ(nf_stats(file).source_errors, 40);
    host.trick = GOOD;
    CHECK_ALL(file, VERSION);
    CHECK_ONCE(far);
    nearfile_close(file);
    CHECK_EQ(far->releases, 1);
    CHECK_EQ(far->opens, far->closes);
    CHECK(far->opens > 40);
    CHECK_EQ(far->offences, 0);
    far_free(far);
    nearfile_cache_close(cache);
  }
}

// A failed nearfile_open leaves user_data with the caller: nothing is released; what was opened to ask the size is closed.
static int32_t garbage_size(void *connection, uint64_t *out_size) {
  uint64_t *answer = ((far_connection *)connection)->far->hook_data;
  if (answer[0] != 0) return (int32_t)answer[0];
  if (answer[1] != 0) *out_size = answer[2];
  return 0;
}

static void size_fails(void) {
  // Code, whether *out_size is set, to what; then the status and code that must come out.
  static const struct { uint64_t answer[3]; int64_t code; } cases[] = {
      {{44, 0, 0}, 44},
      {{0, 0, 0}, 0},
      {{0, 1, UINT64_MAX}, 0},
      {{0, 1, UINT64_MAX - 1}, 0},
      {{0, 1, 1ull << 63}, 0}};
  nearfile_cache *cache = nf_cache("cache", 1 << 30, 0, 0);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    for (int kind = FAR_AT; kind <= FAR_AT_OPEN; kind++) {
      far_file *far = far_new(SIZE, VERSION, PAGE);
      uint64_t answer[3];
      memcpy(answer, cases[i].answer, sizeof answer);
      far->hook_data = answer;
      nearfile_source source = far_source(far, (enum far_kind)kind);
      source.size = garbage_size;
      nearfile_options options = {.struct_size = sizeof options, .size = NEARFILE_SIZE_UNKNOWN};
      nearfile_file *file = (nearfile_file *)&options;
      CHECK_EQ(nearfile_open(cache, &source, &options, &file), NEARFILE_ERROR_SOURCE);
      CHECK(file == NULL);
      CHECK_EQ(nf_last_error().source_code, cases[i].code);
      CHECK_EQ(far->releases, 0);
      CHECK_EQ(far->opens, far->closes);
      CHECK_EQ(far->opens, kind == FAR_AT_OPEN);
      far_free(far);
    }
  }
  // By seek to the end, likewise.
  enum trick tricks[] = {SEEK_UNTOUCHED, SEEK_NEGATIVE, SEEK_FAILS};
  for (size_t i = 0; i < sizeof tricks / sizeof *tricks; i++) {
    far_file *far = far_new(SIZE, VERSION, PAGE);
    hostile host;
    nearfile_source source = hostile_source(far, &host, FAR_SEEK_OPEN);
    host.trick = tricks[i];
    nearfile_options options = {.struct_size = sizeof options, .size = NEARFILE_SIZE_UNKNOWN};
    nearfile_file *file = NULL;
    CHECK_EQ(nearfile_open(cache, &source, &options, &file), NEARFILE_ERROR_SOURCE);
    CHECK_EQ(nf_last_error().source_code, tricks[i] == SEEK_FAILS ? 29 : 0);
    CHECK_EQ(far->releases, 0);
    CHECK_EQ(far->opens, far->closes);
    far_free(far);
  }
  nearfile_cache_close(cache);
}

static void a_failed_open_releases_nothing(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_source source = far_source(far, FAR_AT_OPEN);
  nearfile_options good = {.struct_size = sizeof good, .size = SIZE}, bad = good;
  nearfile_file *file = NULL;
  bad.size = 1ull << 63;
  CHECK_EQ(nearfile_open(cache, &source, &bad, &file), NEARFILE_ERROR_ARGUMENT);
  bad = good, bad.flags = 1u << 31;
  CHECK(nearfile_open(cache, &source, &bad, &file) < 0);
  bad = good, bad.key = "";
  CHECK_EQ(nearfile_open(cache, &source, &bad, &file), NEARFILE_ERROR_ARGUMENT);
  bad = good, bad.data_path = "x";
  CHECK_EQ(nearfile_open(cache, &source, &bad, &file), NEARFILE_ERROR_ARGUMENT);
  bad = good, bad.mode = 7;
  CHECK_EQ(nearfile_open(cache, &source, &bad, &file), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_open(NULL, &source, &good, &file), NEARFILE_ERROR_ARGUMENT);
  CHECK_EQ(nearfile_open(cache, &source, NULL, &file), NEARFILE_ERROR_ARGUMENT);
  nearfile_source worse = source;
  worse.read_at = NULL;
  CHECK_EQ(nearfile_open(cache, &worse, &good, &file), NEARFILE_ERROR_ARGUMENT);
  worse.read = far_read;
  CHECK_EQ(nearfile_open(cache, &worse, &good, &file), NEARFILE_ERROR_ARGUMENT);
  worse = source, worse.flags = 1u << 31;
  CHECK(nearfile_open(cache, &worse, &good, &file) < 0);
  CHECK(file == NULL);
  CHECK_EQ(far->releases + far->opens + far->closes, 0);
  // The same source then opens.
  CHECK_EQ(nearfile_open(cache, &source, &good, &file), 0);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  CHECK_EQ(far->opens, far->closes);
  far_free(far);
  nearfile_cache_close(cache);
}

// open is first called by the first miss, and not at all where every page is present; release is called anyway.
static void open_is_lazy(void) {
  for (int kind = FAR_AT_OPEN; kind <= FAR_SEEK_OPEN; kind += FAR_SEEK_OPEN - FAR_AT_OPEN) {
    nearfile_cache *cache = nf_cache(kind == FAR_AT_OPEN ? "at" : "seek", PAGE, 0, 0);
    far_file *far = far_new(SIZE, VERSION, PAGE);
    nearfile_file *file = nf_open_far(cache, far, (enum far_kind)kind, "lazy"), *other = NULL;
    CHECK_EQ(nearfile_size(file), SIZE);
    MUST(nearfile_dup(file, &other) == 0);
    char byte;
    CHECK_EQ(nearfile_pread(file, &byte, 1, SIZE), 0);
    CHECK(!nf_is_cached(file, 0));
    CHECK_EQ(far->opens, 0);
    CHECK_PREAD(file, 1, 0, VERSION);
    CHECK_EQ(far->opens, 1);
    CHECK_ALL(other, VERSION);
    nearfile_close(other);
    CHECK_EQ(far->releases, 0);
    nearfile_close(file);
    CHECK_EQ(far->releases, 1);
    CHECK_EQ(far->opens, far->closes);

    uint64_t opens = far->opens;
    file = nf_open_far(cache, far, (enum far_kind)kind, "lazy");
    CHECK_ALL(file, VERSION);
    nearfile_close(file);
    CHECK_EQ(far->opens, opens);
    CHECK_EQ(far->releases, 2);
    CHECK_ONCE(far);
    CHECK_EQ(far->offences, 0);
    far_free(far);
    nearfile_cache_close(cache);
  }
}

// A file that is never read calls nothing but release.
static void never_read(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *far = far_new(SIZE, VERSION, PAGE);
  nearfile_close(nf_open_far(cache, far, FAR_AT_OPEN, NULL));
  CHECK_EQ(far->releases, 1);
  CHECK_EQ(far->opens + far->closes + far->reads, 0);
  // NULL for everything that may be NULL.
  nearfile_source bare = {.struct_size = sizeof bare, .user_data = &far->self, .read_at = far_read_at};
  nearfile_file *file = nf_open(cache, &bare, NULL, NULL, SIZE, 0);
  CHECK_ALL(file, VERSION);
  nearfile_close(file);
  CHECK_EQ(far->releases, 1);
  far_free(far);
  nearfile_cache_close(cache);
}

// ---- how many at once --------------------------------------------------------------------------------------------------

struct reader {
  nearfile_file *file;
  uint64_t seed;
};

static void *read_at_random(void *argument) {
  struct reader *reader = argument;
  for (int i = 0; i < 60; i++) {
    CHECK_PREAD(reader->file, 10, nf_below(&reader->seed, (uint64_t)nearfile_size(reader->file)), VERSION);
  }
  return NULL;
}

static void check_overlap(enum far_kind kind, uint32_t max_connections, int least, int most) {
  enum { THREADS = 8, PAGES = 300 };
  nearfile_cache *cache = nf_cache("cache", 100, 0, 0);
  far_file *far = far_new(100 * PAGES, VERSION, 100);
  far->delay_us = 300;
  far->one_at_a_time = most == 1;
  nearfile_source source = far_source(far, kind);
  source.max_connections = max_connections;
  nearfile_file *file = nf_open(cache, &source, NULL, NULL, far->size, 0);
  pthread_t threads[THREADS];
  struct reader readers[THREADS];
  for (int i = 0; i < THREADS; i++) {
    readers[i] = (struct reader){file, (uint64_t)i};
    threads[i] = nf_thread(read_at_random, &readers[i]);
  }
  for (int i = 0; i < THREADS; i++) nf_join(threads[i]);
  nearfile_close(file);
  int failures = nf_failures;
  CHECK(far->most_inside >= least && far->most_inside <= most);
  CHECK(far->most_connections <= most);
  CHECK_EQ(far->opens, far->closes);
  CHECK_EQ(far->connections, 0);
  CHECK_EQ(far->offences, 0);
  if (nf_failures != failures) fprintf(stderr, "  kind %d, max_connections %u: %d calls at once, %d connections\n", kind, max_connections,
                                (int)far->most_inside, (int)far->most_connections);
  for (uint64_t page = 0; page < PAGES; page++) CHECK(far->page_reads[page] <= 1);
  far_free(far);
  nearfile_cache_close(cache);
}

static void connections_are_counted(void) {
  check_overlap(FAR_AT, 1, 1, 1);
  check_overlap(FAR_AT_OPEN, 1, 1, 1);
  check_overlap(FAR_SEEK, 0, 1, 1);
  check_overlap(FAR_SEEK, 8, 1, 1);        // one position: never at once, whatever is asked
  check_overlap(FAR_SEEK_OPEN, 0, 1, 1);
  check_overlap(FAR_SEEK_OPEN, 3, 2, 3);   // far_give tells if two calls share a connection
  check_overlap(FAR_AT_OPEN, 3, 2, 3);
  check_overlap(FAR_AT, 0, 2, 16);
  check_overlap(FAR_AT_OPEN, 0, 2, 16);
}

// ---- callbacks that read through nearfile ------------------------------------------------------------------------------

struct inner {
  nearfile_file *file;     // what the callback reads
  int64_t got;
  int calls;
};

static int32_t read_another(far_file *far, uint64_t offset, size_t len) {
  struct inner *inner = far->hook_data;
  (void)len;
  unsigned char buf[50];
  inner->calls++;
  inner->got = nearfile_pread(inner->file, buf, sizeof buf, offset);
  if (inner->got != (int64_t)sizeof buf) return 7;
  CHECK_BYTES(buf, sizeof buf, offset, VERSION + 1);
  return 0;
}

// A source over another near copy: two layers.
static void reading_another_file_works(void) {
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
  far_file *below = far_new(SIZE + 50, VERSION + 1, PAGE), *above = far_new(SIZE, VERSION, PAGE);
  struct inner inner = {.file = nf_open_far(cache, below, FAR_AT_OPEN, "below")};
  above->hook = read_another, above->hook_data = &inner;
  nearfile_file *file = nf_open_far(cache, above, FAR_AT, "above");
  CHECK_ALL(file, VERSION);
  CHECK_ONCE(above);
  CHECK(inner.calls > 0 && below->reads > 0);
  nearfile_close(file);
  nearfile_close(inner.file);
  far_free(above);
  far_free(below);
  nearfile_cache_close(cache);
}

static int32_t read_itself(far_file *far, uint64_t offset, size_t len) {
  struct inner *inner = far->hook_data;
  (void)len;
  unsigned char buf[50];
  if (inner->calls++ > 0) return 0;  // the read inside, should it come so far
  inner->got = nearfile_pread(inner->file, buf, sizeof buf, offset);
  return inner->got < 0 ? 77 : 0;
}

// A source that reads the very file: a clear error, at once, and the file is usable after.
static void reading_itself_is_refused(void) {
  alarm(20);
  for (int by_dup = 0; by_dup < 2; by_dup++) {
    for (int kind = FAR_AT; kind <= FAR_SEEK_OPEN; kind++) {
      nearfile_cache *cache = nf_cache("cache", PAGE, 0, 0);
      far_file *far = far_new(SIZE, VERSION, PAGE);
      struct inner inner = {0};
      nearfile_file *file = nf_open_far(cache, far, (enum far_kind)kind, NULL);
      if (by_dup) MUST(nearfile_dup(file, &inner.file) == 0);
      else inner.file = file;
      far->hook = read_itself, far->hook_data = &inner;
      unsigned char buf[10];
      int64_t began = nf_now_ms();
      CHECK_EQ(nearfile_pread(file, buf, sizeof buf, 2 * PAGE), NEARFILE_ERROR_SOURCE);
      CHECK_EQ(nf_last_error().source_code, 77);
      CHECK_EQ(inner.got, NEARFILE_ERROR_ARGUMENT);
      CHECK_EQ(inner.calls, 1);
      CHECK(nf_now_ms() - began < 5000);  // half of wait_ms
      CHECK_EQ(nf_walk(file), 0);
      far->hook = NULL;
      CHECK_ALL(file, VERSION);
      if (by_dup) nearfile_close(inner.file);
      nearfile_close(file);
      far_free(far);
      nearfile_cache_close(cache);
    }
  }
  alarm(0);
}

// The same near copy through a handle of its own, so that the library cannot know: the wait ends all the same.
static void reading_the_same_key_ends(void) {
  alarm(20);
  nearfile_cache *cache = nf_cache("cache", PAGE, 0, 200);
  far_file *far = far_new(SIZE, VERSION, PAGE), *twin = far_new(SIZE, VERSION, PAGE);
  struct inner inner = {.file = nf_open_far(cache, twin, FAR_AT, "twin")};
  nearfile_file *file = nf_open_far(cache, far, FAR_AT, "twin");
  far->hook = read_itself, far->hook_data = &inner;
  int64_t began = nf_now_ms();
  CHECK_PREAD(file, 10, 2 * PAGE, VERSION);
  CHECK(inner.got == 50 || inner.got < 0);
  CHECK(nf_now_ms() - began < 5000);
  far->hook = NULL;
  CHECK_ALL(file, VERSION);
  CHECK_ALL(inner.file, VERSION);
  nearfile_close(file);
  nearfile_close(inner.file);
  far_free(far);
  far_free(twin);
  nearfile_cache_close(cache);
  alarm(0);
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {NF_CASE(hostile_callbacks), NF_CASE(faults_in_the_middle),
                                         NF_CASE(a_failed_page_takes_no_space), NF_CASE(short_reads),
                                         NF_CASE(shorter_than_told), NF_CASE(open_fails_and_then_works), NF_CASE(size_fails),
                                         NF_CASE(a_failed_open_releases_nothing), NF_CASE(open_is_lazy), NF_CASE(never_read),
                                         NF_CASE(connections_are_counted), NF_CASE(reading_another_file_works),
                                         NF_CASE(reading_itself_is_refused), NF_CASE(reading_the_same_key_ends)};
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
