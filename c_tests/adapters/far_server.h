// What the tests of the adapters share: files on the servers of with_servers.sh, and the requests that those counted. Included
// after nf_test.h.
#ifndef FAR_SERVER_H
#define FAR_SERVER_H

#include <nearfile/curl.h>

static inline const char *far_env(const char *name) {
  const char *value = getenv(name);
  if (value == NULL) fprintf(stderr, "%s is not set: run by with_servers.sh\n", name);
  MUST(value != NULL);
  return value;
}

static inline char *far_url(char out[NF_PATH], const char *way, const char *name) {
  MUST(snprintf(out, NF_PATH, "%s/%s/%s", far_env("FAR_URL"), way, name) < NF_PATH);
  return out;
}

static inline char *bad_url(char out[NF_PATH], const char *behaviour, const char *name) {
  MUST(snprintf(out, NF_PATH, "%s/%s/%s", far_env("BAD_URL"), behaviour, name) < NF_PATH);
  return out;
}

static inline char *far_path(char out[NF_PATH], const char *name) {
  MUST(snprintf(out, NF_PATH, "%s/%s", far_env("FAR_ROOT"), name) < NF_PATH);
  return out;
}

// Puts bytes of a version at an offset of a file on the servers, which is replaced as a whole, by a rename. nginx's ETag is made of
// seconds and size, so each version has a time of its own.
static inline void far_publish_at(const char *name, uint64_t offset, uint64_t size, uint64_t version) {
  char path[NF_PATH], next[NF_PATH + 8];
  static unsigned char buf[1 << 16];
  struct timespec times[2] = {{.tv_sec = 1700000000 + (time_t)version}, {.tv_sec = 1700000000 + (time_t)version}};
  snprintf(next, sizeof next, "%s.next", far_path(path, name));
  int fd = open(next, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  MUST(fd >= 0);
  for (uint64_t at = offset; at < size; at += sizeof buf) {
    size_t len = size - at < sizeof buf ? (size_t)(size - at) : sizeof buf;
    nf_fill(buf, len, at, version);
    MUST(pwrite(fd, buf, len, (off_t)at) == (ssize_t)len);
  }
  MUST(ftruncate(fd, (off_t)size) == 0 && futimens(fd, times) == 0 && close(fd) == 0);
  MUST(rename(next, path) == 0);
}

static inline void far_publish(const char *name, uint64_t size, uint64_t version) { far_publish_at(name, 0, size, version); }

// Runs an example, twice, over a file of the server: both say these words, and the second reads no source.
static inline void far_check_example(const char *at, int line, const char *example, const char *file, const char *arguments,
                                     const char *words) {
  static char command[NF_PATH], said[1 << 16];
  MUST(snprintf(command, sizeof command, "'%s/%s' '%s/far/%s' '%s/example' %s 2>&1", far_env("EXAMPLES"), example, far_env("FAR_URL"),
                file, nf_dir, arguments) < (int)sizeof command);
  for (int pass = 0; pass < 2; pass++) {
    FILE *pipe = popen(command, "r");
    MUST(pipe != NULL);
    said[fread(said, 1, sizeof said - 1, pipe)] = '\0';
    bool ended_well = pclose(pipe) == 0, warm = strstr(said, "source_reads=0 ") != NULL;
    if (!ended_well || strstr(said, words) == NULL || warm != (pass == 1)) nf_fail(at, line, said);
  }
}
#define CHECK_EXAMPLE(example, file, arguments, words) far_check_example(__FILE__, __LINE__, example, file, arguments, words)

// Lines of a server's log that contain all of: method, a part of the URL.
static inline unsigned far_lines(const char *log, const char *method, const char *part) {
  FILE *file = fopen(far_env(log), "r");
  char line[NF_PATH];
  unsigned count = 0;
  if (file == NULL) return 0;
  while (fgets(line, sizeof line, file) != NULL) count += strncmp(line, method, strlen(method)) == 0 && strstr(line, part) != NULL;
  fclose(file);
  return count;
}

// GETs of a file that nginx answered. It writes its line after the client has its answer: so until the count stands still.
static inline unsigned far_gets(const char *part) {
  unsigned count = far_lines("FAR_LOG", "GET", part), before;
  do {
    before = count;
    nf_sleep_us(100000);
    count = far_lines("FAR_LOG", "GET", part);
  } while (count != before);
  return count;
}

static inline unsigned bad_gets(const char *part) { return far_lines("BAD_LOG", "GET", part); }

static inline const char *far_why(int64_t result) {
  static char text[1024];
  return nearfile_curl_message(result, text, sizeof text);
}

// flags: NEARFILE_READAHEAD_OFF, so that the requests are those of the reads; 0 where only their sum counts.
static inline nearfile_file *far_open_flags(nearfile_cache *cache, const char *url, const nearfile_curl_settings *settings, uint32_t flags) {
  nearfile_options options = {.struct_size = sizeof options, .flags = flags};
  nearfile_file *file = NULL;
  int32_t code = nearfile_curl_open(cache, url, settings, &options, &file);
  if (code != 0) fprintf(stderr, "%s: %s\n", url, far_why(code));
  MUST(code == 0 && file != NULL);
  return file;
}

static inline nearfile_file *far_open_url(nearfile_cache *cache, const char *url, const nearfile_curl_settings *settings) {
  return far_open_flags(cache, url, settings, NEARFILE_READAHEAD_OFF);
}

// Opens a file of the server in the directory "cache" of this case, each page fetched by itself.
static inline nearfile_file *far_open_near(const char *name, uint64_t page_size) {
  char url[NF_PATH];
  nearfile_cache *cache = nf_cache("cache", page_size, page_size, 0);
  nearfile_file *file = far_open_url(cache, far_url(url, "far", name), NULL);
  nearfile_cache_close(cache);
  return file;
}

// Runs a function in a process of its own, and checks that it found nothing wrong.
static inline void far_in_process(const char *at, int line, void (*run)(void)) {
  pid_t child = nf_fork(60);
  if (child == 0) {
    run();
    nf_child_ends();
  }
  nf_check_child(at, line, child);
}
#define IN_PROCESS(run) far_in_process(__FILE__, __LINE__, run)

// Runs a function in two processes, one after the other: the second asks the server for nothing of the file. Returns what the first
// asked for.
static inline unsigned far_cold_then_warm(const char *at, int line, void (*run)(void), const char *part) {
  unsigned before = far_gets(part);
  far_in_process(at, line, run);
  unsigned cold = far_gets(part) - before;
  far_in_process(at, line, run);
  unsigned warm = far_gets(part) - before - cold;
  printf("  source requests of %s: cold %u, warm %u\n", part, cold, warm);
  if (cold == 0) nf_fail(at, line, "the first process asked for nothing");
  nf_equal(at, line, "requests of the second process", "0", warm, 0);
  return cold;
}
#define COLD_THEN_WARM(run, part) far_cold_then_warm(__FILE__, __LINE__, run, part)

#endif
