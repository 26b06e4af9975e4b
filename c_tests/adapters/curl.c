// nearfile/curl.h against nginx with a delay and against a server that misbehaves: what is fetched once stays fetched over
// processes and forks; retries end well or in words; whatever changes, compresses, ignores Range or breaks off, no wrong byte is
// returned or stored.
#include "../nf_test.h"
#include "far_server.h"

enum { PAGE = 64 << 10, PAGES = 20, SIZE = PAGE * PAGES - 777 };

static nearfile_curl_settings quick(void) {
  nearfile_curl_settings settings = {.struct_size = sizeof settings, .pause_ms = 5, .stall_timeout_s = 1};
  return settings;
}

static nearfile_cache *small_pages(void) { return nf_cache("cache", PAGE, PAGE, 0); }

// A read from `offset` fails with this code of the source, in a sentence that has these words; and nothing of the page is kept.
static void check_refused(nearfile_file *file, uint64_t offset, int64_t code, const char *words) {
  char buf[100];
  int64_t n = nearfile_pread(file, buf, sizeof buf, offset);
  CHECK_EQ(n, NEARFILE_ERROR_SOURCE);
  if (n < 0) {
    CHECK_EQ(nf_last_error().source_code, code);
    if (strstr(far_why(n), words) == NULL) nf_fail(__FILE__, __LINE__, far_why(n));
  }
  CHECK(!nf_is_cached(file, offset));
}

// ---- cold, warm, processes, forks ---------------------------------------------------------------------------------------

static void read_all(void) {
  char url[NF_PATH];
  nearfile_cache *cache = small_pages();
  nearfile_file *file = far_open_flags(cache, far_url(url, "far", "file"), NULL, 0);
  CHECK_ALL(file, 1);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void cold_then_warm_in_another_process(void) {
  far_publish("file", SIZE, 1);
  CHECK_EQ(COLD_THEN_WARM(read_all, "/far/file"), PAGES);
}

static void eight_processes_fetch_each_page_once(void) {
  pid_t children[8];
  far_publish("crowd", SIZE, 1);
  nearfile_curl_counts *counts = nf_shared(sizeof *counts);
  for (int i = 0; i < 8; i++) {
    if ((children[i] = nf_fork(60)) != 0) continue;
    char url[NF_PATH];
    uint64_t random = (uint64_t)i;
    nearfile_curl_settings settings = quick();
    settings.counts = counts;
    nearfile_cache *cache = small_pages();
    nearfile_file *file = far_open_flags(cache, far_url(url, "far", "crowd"), &settings, 0);
    for (int read = 0; read < 100; read++) CHECK_PREAD(file, 5000, nf_below(&random, SIZE), 1);
    CHECK_ALL(file, 1);
    nearfile_close(file);
    nearfile_cache_close(cache);
    nf_child_ends();
  }
  for (int i = 0; i < 8; i++) CHECK_CHILD(children[i]);
  CHECK_EQ(far_gets("/far/crowd"), PAGES);
  CHECK_EQ(counts->requests, PAGES + 8); // a HEAD each
  CHECK_EQ(counts->retries, 0);
  CHECK_EQ(counts->bytes, SIZE);
}

static void forked_children_open_connections_of_their_own(void) {
  char url[NF_PATH];
  pid_t children[4];
  far_publish("forked", SIZE, 1);
  nearfile_cache *cache = small_pages();
  nearfile_file *file = far_open_url(cache, far_url(url, "far", "forked"), NULL);
  CHECK_PREAD(file, 100, 0, 1); // the parent has a connection
  for (int i = 0; i < 4; i++) {
    if ((children[i] = nf_fork(60)) != 0) continue;
    for (int page = 0; page < PAGES; page++) CHECK_PREAD(file, 100, (uint64_t)((page + 5 * i) % PAGES) * PAGE, 1);
    nearfile_close(file);
    nf_child_ends();
  }
  CHECK_ALL(file, 1);
  for (int i = 0; i < 4; i++) CHECK_CHILD(children[i]);
  CHECK_EQ(far_gets("/far/forked"), PAGES);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void *read_half(void *file) {
  for (uint64_t at = 0; at < SIZE; at += 30000) CHECK_PREAD(file, 30000, at, 1);
  return NULL;
}

static void threads_share_connections(void) {
  char url[NF_PATH];
  pthread_t threads[8];
  far_publish("threads", SIZE, 1);
  nearfile_curl_settings settings = quick();
  settings.max_connections = 3;
  nearfile_cache *cache = small_pages();
  nearfile_file *file = far_open_flags(cache, far_url(url, "far", "threads"), &settings, 0);
  for (int i = 0; i < 8; i++) threads[i] = nf_thread(read_half, file);
  for (int i = 0; i < 8; i++) nf_join(threads[i]);
  CHECK_EQ(far_gets("/far/threads"), PAGES);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

// ---- what a probe learns -------------------------------------------------------------------------------------------------

static void a_probe_fills_key_version_and_size(void) {
  char url[NF_PATH], signed_url[NF_PATH + 100];
  nearfile_curl_object object;
  far_publish("probed", SIZE, 1);
  far_publish("empty", 0, 1);
  CHECK_EQ(nearfile_curl_probe(far_url(url, "far", "probed"), NULL, &object), 0);
  CHECK_EQ(object.size, SIZE);
  CHECK(object.version[0] == '"' && strcmp(object.version, object.etag) == 0);
  CHECK(strcmp(object.key, url) == 0);
  // HEAD is refused: a GET of one byte tells the same.
  nearfile_curl_object by_get;
  CHECK_EQ(nearfile_curl_probe(far_url(url, "headless", "probed"), NULL, &by_get), 0);
  CHECK_EQ(by_get.size, SIZE);
  CHECK(strcmp(by_get.version, object.version) == 0);
  CHECK_EQ(far_gets("/headless/probed"), 1);
  // No strong ETag: date and size. Nothing at all: the size.
  CHECK_EQ(nearfile_curl_probe(bad_url(url, "dated", "probed"), NULL, &object), 0);
  CHECK(strstr(object.version, "GMT 1309943") != NULL);
  CHECK_EQ(nearfile_curl_probe(bad_url(url, "weak", "probed"), NULL, &by_get), 0);
  CHECK(strcmp(by_get.version, object.version) == 0 && by_get.etag[0] == 'W');
  CHECK_EQ(nearfile_curl_probe(bad_url(url, "undated", "probed"), NULL, &object), 0);
  CHECK(strcmp(object.version, " 1309943") == 0);
  // Empty, by HEAD and by GET (which is answered 200 or 416).
  CHECK(nearfile_curl_probe(far_url(url, "far", "empty"), NULL, &object) == 0 && object.size == 0);
  CHECK(nearfile_curl_probe(far_url(url, "headless", "empty"), NULL, &object) == 0 && object.size == 0);
  CHECK(nearfile_curl_probe(bad_url(url, "headless", "empty"), NULL, &object) == 0 && object.size == 0);
  // Secrets and what passes are not in the key.
  snprintf(signed_url, sizeof signed_url, "%s%s", far_url(url, "far", "probed"),
           "?id=7&X-Amz-Signature=abc&X-Amz-Date=now&versionId=3&Expires=5#part");
  char key[200];
  CHECK(nearfile_curl_key(signed_url, key, sizeof key) && strncmp(key, url, strlen(url)) == 0);
  CHECK(strcmp(key + strlen(url), "?id=7&versionId=3") == 0);
  CHECK(nearfile_curl_key("https://me:secret@host/a@b?sv=1&sig=x&comp=y", key, sizeof key));
  CHECK(strcmp(key, "https://host/a@b?comp=y") == 0);
  CHECK(nearfile_curl_key("https://host/a?sv=1", key, sizeof key) && strcmp(key, "https://host/a?sv=1") == 0);
  CHECK(!nearfile_curl_key("https://host/a?sv=1", key, 10));
}

static void a_probe_fails_in_words(void) {
  char url[NF_PATH];
  nearfile_curl_object object;
  nearfile_curl_settings wrong = {.struct_size = 3};
  nearfile_curl_settings settings = quick();
  far_publish("file", SIZE, 1);
  int32_t code = nearfile_curl_probe(far_url(url, "far", "absent"), &settings, &object);
  CHECK_EQ(code, 404);
  CHECK(strstr(far_why(code), "no such object (HTTP 404") != NULL && strstr(far_why(code), url) != NULL);
  code = nearfile_curl_probe(far_url(url, "forbidden", "file"), &settings, &object);
  CHECK_EQ(code, 403);
  CHECK(strstr(far_why(code), "refuses access (HTTP 403") != NULL);
  code = nearfile_curl_probe(bad_url(url, "no_total", "file"), &settings, &object);
  CHECK_EQ(code, NEARFILE_CURL_NO_SIZE);
  code = nearfile_curl_probe(bad_url(url, "gzip_head", "file"), &settings, &object);
  CHECK_EQ(code, NEARFILE_CURL_ENCODED);
  code = nearfile_curl_probe("http://127.0.0.1:1/nobody", &settings, &object);
  CHECK_EQ(code, NEARFILE_CURL_LIBCURL + CURLE_COULDNT_CONNECT);
  CHECK(strstr(far_why(code), "connect to") != NULL && strstr(far_why(code), "5 tries") != NULL);
  code = nearfile_curl_probe("file:///etc/passwd", &settings, &object);
  CHECK_EQ(code, NEARFILE_CURL_LIBCURL + CURLE_UNSUPPORTED_PROTOCOL);
  CHECK_EQ(nearfile_curl_probe(url, &wrong, &object), NEARFILE_CURL_BAD_ARGUMENT);
}

// ---- servers that misbehave ------------------------------------------------------------------------------------------------

// Opens /behaviour/NAME of the bad server, reads all of it, and returns what was counted.
static nearfile_curl_counts read_all_of(const char *behaviour, const char *name) {
  char url[NF_PATH];
  nearfile_curl_counts counts = {0};
  nearfile_curl_settings settings = quick();
  settings.counts = &counts;
  nearfile_cache *cache = nf_cache("cache", 1 << 21, 1 << 21, 0);
  nearfile_file *file = far_open_url(cache, bad_url(url, behaviour, name), &settings);
  CHECK_ALL(file, 1);
  CHECK_EQ(nf_stats(file).source_errors, 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
  return counts;
}

static void what_passes_is_tried_again(void) {
  far_publish("file", SIZE, 1);
  far_publish("small", 20000, 1);
  nearfile_curl_counts counts = read_all_of("busy", "file"); // 503, twice
  CHECK_EQ(counts.requests, 1 + 3);
  CHECK_EQ(counts.retries, 2);
  int64_t began = nf_now_ms();
  counts = read_all_of("later", "file"); // 429, Retry-After: 1
  CHECK_EQ(counts.retries, 1);
  CHECK(nf_now_ms() - began >= 1000);
  counts = read_all_of("reset", "file"); // half of the body, then a reset: the other half is asked for
  CHECK(counts.retries >= 1 && counts.retries <= 4);
  CHECK(counts.bytes <= SIZE);
  counts = read_all_of("stall", "file"); // half of the body, then silence
  CHECK_EQ(counts.retries, 1);
  counts = read_all_of("short", "file"); // the end of the connection is the end of the body, too early
  CHECK_EQ(counts.retries, 1);
  counts = read_all_of("stingy", "small"); // 1,000 bytes an answer, which is allowed
  CHECK_EQ(counts.requests, 1 + 20);
}

static void retries_are_bounded(void) {
  char url[NF_PATH];
  nearfile_curl_object object;
  nearfile_curl_settings settings = quick();
  far_publish("file", SIZE, 1);
  CHECK_EQ(nearfile_curl_probe(bad_url(url, "good", "file"), &settings, &object), 0);
  struct {
    const char *behaviour;
    int64_t code;
    unsigned requests;
  } cases[] = {{"dead", 503, 3}, {"much_later", 429, 1}};
  settings.max_retries = 2;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    nearfile_source source;
    nearfile_cache *cache = small_pages();
    bad_url(url, cases[i].behaviour, "file?bounded");
    CHECK_EQ(nearfile_curl_source(url, &object, &settings, &source), 0);
    nearfile_file *file = nf_open(cache, &source, cases[i].behaviour, object.version, SIZE, NEARFILE_READAHEAD_OFF);
    check_refused(file, 0, cases[i].code, cases[i].requests == 1 ? "1 try" : "3 tries");
    CHECK_EQ(bad_gets(strchr(url + 7, '/')), cases[i].requests);
    nearfile_close(file);
    nearfile_cache_close(cache);
  }
  settings.max_retries = NEARFILE_CURL_NO_RETRIES;
  nearfile_source source;
  nearfile_cache *cache = small_pages();
  CHECK_EQ(nearfile_curl_source(bad_url(url, "always_reset", "file?"), &object, &settings, &source), 0);
  nearfile_file *file = nf_open(cache, &source, "reset", object.version, SIZE, NEARFILE_READAHEAD_OFF);
  CHECK_EQ(nearfile_pread(file, url, 10, 0), NEARFILE_ERROR_SOURCE);
  CHECK(nf_last_error().source_code > NEARFILE_CURL_LIBCURL);
  CHECK_EQ(nf_stats(file).cached_pages, 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

// One answer that must not be taken: the code, and words of the sentence.
static void check_answer_refused(const char *behaviour, int64_t code, const char *words) {
  char url[NF_PATH];
  nearfile_curl_settings settings = quick();
  nearfile_cache *cache = small_pages();
  nearfile_file *file = far_open_url(cache, bad_url(url, behaviour, "file"), &settings);
  check_refused(file, PAGE, code, words);
  CHECK_EQ(nf_stats(file).source_reads, 1);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void wrong_answers_are_refused(void) {
  far_publish("file", SIZE, 1);
  check_answer_refused("gzip", NEARFILE_CURL_ENCODED, "compresses");
  check_answer_refused("wrong_range", NEARFILE_CURL_WRONG_RANGE, "another range");
  check_answer_refused("long", NEARFILE_CURL_LONG_BODY, "longer");
  check_answer_refused("whole", 200, "ignores Range");
}

static void a_server_that_ignores_range(void) {
  char url[NF_PATH];
  far_publish("whole", SIZE, 1);
  nearfile_cache *cache = small_pages();
  nearfile_file *file = far_open_url(cache, far_url(url, "whole", "whole"), NULL);
  check_refused(file, 0, 200, "ignores Range"); // the first page of many
  check_refused(file, SIZE - 1, 200, "ignores Range");
  nearfile_close(file);
  nearfile_cache_close(cache);
  cache = nf_cache("large", 1 << 21, 0, 0); // all of it in one read: that is what such a server sends
  file = far_open_url(cache, url, NULL);
  CHECK_ALL(file, 1);
  CHECK_EQ(nf_stats(file).source_reads, 1);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void redirects_are_followed(void) {
  char url[NF_PATH];
  far_publish("moved", SIZE, 1);
  nearfile_cache *cache = small_pages();
  nearfile_file *file = far_open_url(cache, far_url(url, "moved", "moved"), NULL);
  CHECK_ALL(file, 1);
  CHECK_EQ(far_gets("/far/moved 206"), PAGES);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static int32_t sign(void *calls, CURL *easy, const nearfile_curl_request *request, struct curl_slist **headers) {
  (void)easy;
  if (atomic_fetch_add((atomic_int *)calls, 1) >= 3) return 77; // the credentials are used up
  CHECK(strcmp(request->method, "HEAD") == 0 || request->len > 0);
  return nearfile_curl_append(headers, "X-Signed: by-hook") ? 0 : NEARFILE_CURL_NO_MEMORY;
}

static void headers_and_a_hook_reach_the_server(void) {
  char url[NF_PATH];
  static const char *const headers[] = {"X-Signed: by-settings", NULL};
  nearfile_curl_settings settings = quick();
  far_publish("file", SIZE, 1);
  nearfile_cache *cache = small_pages();
  settings.headers = headers;
  nearfile_file *file = far_open_url(cache, bad_url(url, "signed", "file?1"), &settings);
  CHECK_PREAD(file, 10, 0, 1);
  CHECK_EQ(far_lines("BAD_LOG", "GET /signed/file?1 ", "by-settings"), 1);
  nearfile_close(file);
  atomic_int calls = 0;
  settings.headers = NULL, settings.hook = sign, settings.hook_data = &calls;
  file = far_open_url(cache, bad_url(url, "signed", "file?2"), &settings);
  CHECK_PREAD(file, 10, 0, 1);
  CHECK_PREAD(file, 10, PAGE, 1);
  check_refused(file, 2 * PAGE, 77, "(77");
  CHECK_EQ(far_lines("BAD_LOG", "GET /signed/file?2 ", "by-hook"), 2);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static int32_t trust(void *certificate, CURL *easy, const nearfile_curl_request *request, struct curl_slist **headers) {
  (void)request, (void)headers;
  return curl_easy_setopt(easy, CURLOPT_CAINFO, (const char *)certificate) == CURLE_OK ? 0 : NEARFILE_CURL_NO_MEMORY;
}

static void https_with_a_certificate_of_ones_own(void) {
  char url[NF_PATH];
  nearfile_curl_object object;
  nearfile_curl_settings settings = quick();
  far_publish("secret", SIZE, 1);
  snprintf(url, sizeof url, "%s/good/secret", far_env("TLS_URL"));
  CHECK_EQ(nearfile_curl_probe(url, &settings, &object), NEARFILE_CURL_LIBCURL + CURLE_PEER_FAILED_VERIFICATION);
  CHECK_EQ(far_lines("BAD_LOG", "", "/good/secret"), 0);
  settings.hook = trust, settings.hook_data = getenv("TLS_CERTIFICATE");
  nearfile_cache *cache = small_pages();
  nearfile_file *file = far_open_url(cache, url, &settings);
  CHECK_ALL(file, 1);
  CHECK_EQ(bad_gets("/good/secret"), PAGES);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

// ---- an object that changes ------------------------------------------------------------------------------------------------

// Page 0 of version 1 is here, then the object becomes version 2: what is here stays, the rest is an error, and the next open reads
// version 2.
static void check_change(char *url, uint64_t new_size, int64_t code) {
  const char *name = strrchr(url, '/') + 1;
  nearfile_curl_settings settings = quick();
  far_publish(name, SIZE, 1);
  nearfile_cache *cache = small_pages();
  nearfile_file *old = far_open_url(cache, url, &settings);
  CHECK_PREAD(old, 100, 0, 1);
  far_publish(name, new_size, 2);
  CHECK_PREAD(old, 100, 1000, 1);
  check_refused(old, PAGE, code, "changed");
  check_refused(old, SIZE - 100, code, "changed");
  nearfile_file *new = far_open_url(cache, url, &settings);
  CHECK_ALL(new, 2);
  CHECK_PREAD(old, 100, 500, 1);
  nearfile_close(old);
  nearfile_close(new);
  nearfile_cache_close(cache);
}

static void a_changed_object_is_an_error_and_no_mixture(void) {
  char url[NF_PATH];
  check_change(far_url(url, "far", "changing"), SIZE, 412);
  check_change(bad_url(url, "good", "changing"), SIZE + 5, 412);
  check_change(bad_url(url, "dated", "changing"), SIZE, 412);
  check_change(bad_url(url, "careless", "changing"), SIZE, NEARFILE_CURL_CHANGED); // ignores If-Match
  check_change(bad_url(url, "weak", "changing"), SIZE, NEARFILE_CURL_CHANGED);
  check_change(bad_url(url, "undated", "changing"), SIZE + 5, NEARFILE_CURL_CHANGED); // the size is all that tells
}

static void a_change_between_probe_and_first_read(void) {
  char url[NF_PATH];
  nearfile_curl_object object;
  nearfile_source source;
  far_publish("early", SIZE, 1);
  nearfile_cache *cache = small_pages();
  CHECK_EQ(nearfile_curl_probe(far_url(url, "far", "early"), NULL, &object), 0);
  far_publish("early", SIZE, 2);
  CHECK_EQ(nearfile_curl_source(url, &object, NULL, &source), 0);
  nearfile_file *file = nf_open(cache, &source, object.key, object.version, object.size, NEARFILE_READAHEAD_OFF);
  check_refused(file, 0, 412, "changed");
  nearfile_close(file);
  nearfile_cache_close(cache);
}

// Half a page comes, the connection is reset, and the other half would be of another version.
static void a_change_in_the_middle_of_an_answer(void) {
  char url[NF_PATH];
  nearfile_curl_settings settings = quick();
  far_publish("file", SIZE, 1);
  nearfile_cache *cache = nf_cache("cache", 1 << 21, 1 << 21, 0);
  nearfile_file *file = far_open_url(cache, bad_url(url, "turn", "file"), &settings);
  check_refused(file, 0, 412, "changed");
  CHECK(bad_gets("/turn/file") >= 2);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

// ---- sizes, sources that are not taken -------------------------------------------------------------------------------------

static void offsets_beyond_4_gib(void) {
  char url[NF_PATH];
  const uint64_t size = (5ull << 30) + 12345, last = size - size % 8 - 2 * PAGE;
  far_publish_at("large", last, size, 1);
  nearfile_cache *cache = small_pages();
  nearfile_file *file = far_open_url(cache, far_url(url, "far", "large"), NULL);
  CHECK_EQ(nearfile_size(file), (int64_t)size);
  CHECK_PREAD(file, 2 * PAGE + 100, last, 1);
  char zero = 1;
  CHECK(nearfile_pread(file, &zero, 1, 1ull << 32) == 1 && zero == 0);
  nearfile_close(file);
  nearfile_cache_close(cache);
}

static void a_source_that_no_one_takes_is_released(void) {
  nearfile_curl_object object = {.size = 10};
  nearfile_source source;
  nearfile_options options = {.struct_size = 1};
  nearfile_file *file = NULL;
  CHECK_EQ(nearfile_curl_source("http://localhost/x", &object, NULL, &source), 0);
  CHECK_EQ(nearfile_open(NULL, &source, &options, &file), NEARFILE_ERROR_ARGUMENT);
  source.release(source.user_data);
  options = (nearfile_options){.struct_size = sizeof options, .flags = 1u << 31};
  char url[NF_PATH];
  far_publish("file", SIZE, 1);
  nearfile_cache *cache = small_pages();
  CHECK_EQ(nearfile_curl_open(cache, far_url(url, "near", "file"), NULL, &options, &file), NEARFILE_ERROR_ARGUMENT);
  CHECK(file == NULL && strcmp(far_why(NEARFILE_ERROR_ARGUMENT), nf_last_error().message) == 0);
  nearfile_cache_close(cache);
}

static void the_example_runs(void) {
  char path[NF_PATH];
  FILE *text = fopen(far_path(path, "example.txt"), "w");
  MUST(text != NULL && fputs("far, far away", text) >= 0 && fclose(text) == 0);
  CHECK_EXAMPLE("http_cat", "example.txt", "5 3", "far");
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(cold_then_warm_in_another_process),
      NF_CASE(eight_processes_fetch_each_page_once),
      NF_CASE(forked_children_open_connections_of_their_own),
      NF_CASE(threads_share_connections),
      NF_CASE(a_probe_fills_key_version_and_size),
      NF_CASE(a_probe_fails_in_words),
      NF_CASE(what_passes_is_tried_again),
      NF_CASE(retries_are_bounded),
      NF_CASE(wrong_answers_are_refused),
      NF_CASE(a_server_that_ignores_range),
      NF_CASE(redirects_are_followed),
      NF_CASE(headers_and_a_hook_reach_the_server),
      NF_CASE(https_with_a_certificate_of_ones_own),
      NF_CASE(a_changed_object_is_an_error_and_no_mixture),
      NF_CASE(a_change_between_probe_and_first_read),
      NF_CASE(a_change_in_the_middle_of_an_answer),
      NF_CASE(offsets_beyond_4_gib),
      NF_CASE(a_source_that_no_one_takes_is_released),
      NF_CASE(the_example_runs),
  };
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
