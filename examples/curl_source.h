/* curl_source.h: a file on an HTTP(S) server as a nearfile source, over libcurl.
 *
 * Header only, for C99 and C++ (gcc or clang); link with -lcurl. In three lines, without the error checks:
 *
 *     curl_source *far = NULL;
 *     curl_source_new(url, &far);                            one request: size, version, does Range work
 *     nearfile_source source = curl_source_callbacks(far);   then nearfile_open, with far->size and far->version
 *
 * Each nearfile connection is one easy handle, so one kept-alive socket; each read_at is one Range request. The server must
 * answer 206 with the range asked for, of the version first seen: everything else is a code, which nearfile hands back in
 * nearfile_error.source_code and curl_source_message turns into a sentence. Bytes past the caller's buffer are never written.
 * A reset, a short body, 408, 429 and 5xx are tried again, a few times, with a growing pause.
 *
 * Threads and forks: a connection serves one call at a time, as nearfile promises; any number of them run in parallel.
 * A forked child opens connections of its own. The file must be opened (curl_source_new) before a second thread starts, or
 * after the program has called curl_global_init itself: older libcurls are not safe to initialise from two threads.
 */
#ifndef NEARFILE_CURL_SOURCE_H
#define NEARFILE_CURL_SOURCE_H

#include <curl/curl.h>
#include <nearfile.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a callback returns: 0; an HTTP status (100-599); CURL_SOURCE_LIBCURL + a CURLcode; or one of these. */
#define CURL_SOURCE_LIBCURL     1000
#define CURL_SOURCE_SHORT_BODY  2001 /* the body ended before the range that its header announced */
#define CURL_SOURCE_LONG_BODY   2002 /* the body went on after it */
#define CURL_SOURCE_WRONG_RANGE 2003 /* 206 with no Content-Range, or with another range than the one asked for */
#define CURL_SOURCE_CHANGED     2004 /* 206 of another version, from a server that does not honour If-Match */
#define CURL_SOURCE_ENCODED     2005 /* compressed in transfer although "identity" was asked for */
#define CURL_SOURCE_NO_SIZE     2006 /* the server does not say how long the file is */
#define CURL_SOURCE_NO_MEMORY   2007

#define CURL_SOURCE_TRIES       4      /* requests for one read_at, the first included */
#define CURL_SOURCE_PAUSE_MS    100    /* before the second try; doubled before each further one */
#define CURL_SOURCE_VALUE_MAX   256    /* an ETag longer than this is taken for none */
#define CURL_SOURCE_DRAIN_MAX   65536  /* the body of an error is read up to here, so that its socket can be used again */

typedef struct curl_source {
  uint64_t size;
  char     version[CURL_SOURCE_VALUE_MAX]; /* the ETag, else Last-Modified, else "": nearfile_options.version */
  int      has_etag;                       /* version is an ETag, strong or weak */
  char    *url;
  /* Read with the functions below: changed atomically by the connections, which may be in several threads. */
  uint64_t requests;
  uint64_t bytes;
} curl_source;

/* Asks for the first byte of url: proves that Range works, learns size and version. 0, or a code; *out_source is then NULL. */
static inline int32_t curl_source_new(const char *url, curl_source **out_source);

/* Frees a source that no nearfile_open has taken; NULL is fine. One that was taken is nearfile's: it goes, and its fields and
 * counts with it, when the last file over it is closed. */
static inline void curl_source_free(curl_source *source);

/* The callbacks for one nearfile_open. */
static inline nearfile_source curl_source_callbacks(curl_source *source);

/* Writes the sentence for a code, always ended by a NUL; returns buf. */
static inline const char *curl_source_message(int64_t code, char *buf, size_t buf_len);

/* Requests sent so far, retries and the first one of curl_source_new included (redirects not), and body bytes received. */
static inline uint64_t curl_source_requests(curl_source *source) { return __atomic_load_n(&source->requests, __ATOMIC_RELAXED); }
static inline uint64_t curl_source_bytes(curl_source *source) { return __atomic_load_n(&source->bytes, __ATOMIC_RELAXED); }

/* ---- Below: how it is done. ---- */

/* The headers of one answer that matter here. */
typedef struct curl_source_answer {
  char     etag[CURL_SOURCE_VALUE_MAX];
  char     last_modified[CURL_SOURCE_VALUE_MAX];
  int      encoded;
  int      has_range; /* Content-Range: bytes first-last/... */
  int      has_total; /* Content-Range: .../total */
  uint64_t first, last, total;
} curl_source_answer;

typedef struct curl_source_connection {
  curl_source       *source;
  CURL              *easy;
  struct curl_slist *headers;
  /* Of the request under way: */
  curl_source_answer answer;
  char    *buf;
  uint64_t offset;
  size_t   len;       /* room in buf */
  size_t   got;       /* bytes written to buf */
  size_t   drained;   /* bytes of an error's body, thrown away */
  int32_t  code;      /* why a callback stopped the transfer */
} curl_source_connection;

/* Reads digits at *text and moves past them. 0 where there are none or they do not fit. */
static inline int curl_source_number(const char **text, uint64_t *out) {
  const char *at = *text;
  uint64_t value = 0;
  for (; *at >= '0' && *at <= '9'; at++) {
    unsigned digit = (unsigned)(*at - '0');
    if (value > (UINT64_MAX - digit) / 10) return 0;
    value = value * 10 + digit;
  }
  if (at == *text) return 0;
  *text = at;
  *out = value;
  return 1;
}

/* "bytes 0-99/1234"; a star may stand for the total or, with 416, for the range. */
static inline void curl_source_parse_range(curl_source_answer *answer, const char *value) {
  const char *at = value + 6;
  if (strncasecmp(value, "bytes ", 6) != 0) return;
  if (*at == '*') {
    at++;
  } else {
    if (!curl_source_number(&at, &answer->first) || *at++ != '-' || !curl_source_number(&at, &answer->last)) return;
    answer->has_range = answer->first <= answer->last;
  }
  if (*at++ == '/') answer->has_total = curl_source_number(&at, &answer->total);
}

static inline size_t curl_source_on_header(char *line, size_t size, size_t count, void *connection) {
  curl_source_answer *answer = &((curl_source_connection *)connection)->answer;
  size_t len = size * count, end = len, name;
  char value[CURL_SOURCE_VALUE_MAX];
  const char *colon;
  if (len >= 5 && strncmp(line, "HTTP/", 5) == 0) { /* a redirect or a 1xx came before: only the last answer counts */
    memset(answer, 0, sizeof *answer);
    return len;
  }
  colon = (const char *)memchr(line, ':', len);
  if (colon == NULL) return len;
  name = (size_t)(colon - line);
  while (end > name + 1 && strchr(" \t\r\n", line[end - 1]) != NULL) end--;
  for (colon++; colon < line + end && (*colon == ' ' || *colon == '\t'); colon++) {}
  len = (size_t)(line + end - colon);
  if (len >= sizeof value) return size * count;
  memcpy(value, colon, len);
  value[len] = '\0';
  if (name == 4 && strncasecmp(line, "ETag", name) == 0) memcpy(answer->etag, value, len + 1);
  else if (name == 13 && strncasecmp(line, "Last-Modified", name) == 0) memcpy(answer->last_modified, value, len + 1);
  else if (name == 13 && strncasecmp(line, "Content-Range", name) == 0) curl_source_parse_range(answer, value);
  else if (name == 16 && strncasecmp(line, "Content-Encoding", name) == 0) answer->encoded = strcasecmp(value, "identity") != 0;
  return size * count;
}

/* Is this 206 a part of the right file? It may hold less than asked (RFC 9110 allows it, nearfile reads on), never more. */
static inline int32_t curl_source_judge(const curl_source_connection *connection) {
  const curl_source *source = connection->source;
  const curl_source_answer *answer = &connection->answer;
  const char *now = source->has_etag ? answer->etag : answer->last_modified;
  if (answer->encoded) return CURL_SOURCE_ENCODED;
  if (!answer->has_range || answer->first != connection->offset || answer->last - answer->first >= connection->len) {
    return CURL_SOURCE_WRONG_RANGE;
  }
  if (source->version[0] != '\0' && now[0] != '\0' && strcmp(now, source->version) != 0) return CURL_SOURCE_CHANGED;
  if (source->size != NEARFILE_SIZE_UNKNOWN && answer->has_total && answer->total != source->size) return CURL_SOURCE_CHANGED;
  return 0;
}

static inline size_t curl_source_on_body(char *data, size_t size, size_t count, void *arg) {
  curl_source_connection *connection = (curl_source_connection *)arg;
  size_t len = size * count;
  long status = 0;
  __atomic_fetch_add(&connection->source->bytes, (uint64_t)len, __ATOMIC_RELAXED);
  curl_easy_getinfo(connection->easy, CURLINFO_RESPONSE_CODE, &status);
  if (status != 206) { /* 200 would be the whole file: stop at once */
    connection->drained += len;
    return status == 200 || connection->drained > CURL_SOURCE_DRAIN_MAX ? 0 : len;
  }
  if (connection->got == 0) connection->code = curl_source_judge(connection);
  if (connection->code == 0 && len > connection->len - connection->got) connection->code = CURL_SOURCE_LONG_BODY;
  if (connection->code != 0) return 0;
  memcpy(connection->buf + connection->got, data, len);
  connection->got += len;
  return len;
}

/* One request for [offset, offset + len), len > 0. */
static inline int32_t curl_source_request(curl_source_connection *connection, uint64_t offset, void *buf, size_t len) {
  char range[48];
  long status = 0;
  CURLcode result;
  memset(&connection->answer, 0, sizeof connection->answer);
  connection->buf = (char *)buf;
  connection->offset = offset;
  connection->len = len;
  connection->got = 0;
  connection->drained = 0;
  connection->code = 0;
  snprintf(range, sizeof range, "%llu-%llu", (unsigned long long)offset, (unsigned long long)(offset + len - 1));
  curl_easy_setopt(connection->easy, CURLOPT_RANGE, range);
  __atomic_fetch_add(&connection->source->requests, (uint64_t)1, __ATOMIC_RELAXED);
  result = curl_easy_perform(connection->easy);
  if (connection->code != 0) return connection->code;
  /* CURLE_WRITE_ERROR is our own doing: the status says why. */
  if (result != CURLE_OK && result != CURLE_WRITE_ERROR) return CURL_SOURCE_LIBCURL + (int32_t)result;
  curl_easy_getinfo(connection->easy, CURLINFO_RESPONSE_CODE, &status);
  if (status != 206) return (int32_t)status;
  if (connection->got == 0) connection->code = curl_source_judge(connection); /* an empty body was not judged yet */
  if (connection->code != 0) return connection->code;
  /* Only a body that no Content-Length announced gets here: libcurl reports the others itself (CURLE_PARTIAL_FILE). */
  if (connection->got <= connection->answer.last - connection->answer.first) return CURL_SOURCE_SHORT_BODY;
  if (connection->got > connection->answer.last - connection->answer.first + 1) return CURL_SOURCE_LONG_BODY;
  return 0;
}

static inline int curl_source_may_pass(int32_t code) {
  switch (code) {
    case 408: case 429: case 500: case 502: case 503: case 504:
    case CURL_SOURCE_SHORT_BODY:
    case CURL_SOURCE_LIBCURL + CURLE_COULDNT_CONNECT:
    case CURL_SOURCE_LIBCURL + CURLE_PARTIAL_FILE:
    case CURL_SOURCE_LIBCURL + CURLE_OPERATION_TIMEDOUT:
    case CURL_SOURCE_LIBCURL + CURLE_GOT_NOTHING:
    case CURL_SOURCE_LIBCURL + CURLE_SEND_ERROR:
    case CURL_SOURCE_LIBCURL + CURLE_RECV_ERROR:
    case CURL_SOURCE_LIBCURL + CURLE_HTTP2:
    case CURL_SOURCE_LIBCURL + CURLE_HTTP2_STREAM:
      return 1;
    default:
      return 0;
  }
}

static inline int32_t curl_source_request_with_retries(curl_source_connection *connection, uint64_t offset, void *buf, size_t len) {
  int tries = 1, pause_ms = CURL_SOURCE_PAUSE_MS;
  int32_t code = curl_source_request(connection, offset, buf, len);
  for (; curl_source_may_pass(code) && tries < CURL_SOURCE_TRIES; tries++, pause_ms *= 2) {
    poll(NULL, 0, pause_ms); /* the one sleep that strict C99 headers declare */
    code = curl_source_request(connection, offset, buf, len);
  }
  return code;
}

static inline void curl_source_close(void *arg) {
  curl_source_connection *connection = (curl_source_connection *)arg;
  curl_easy_cleanup(connection->easy);
  curl_slist_free_all(connection->headers);
  free(connection);
}

static inline int curl_source_add_header(curl_source_connection *connection, const char *header) {
  struct curl_slist *longer = curl_slist_append(connection->headers, header);
  if (longer != NULL) connection->headers = longer;
  return longer != NULL;
}

static inline int32_t curl_source_open(void *arg, void **out_connection) {
  curl_source *source = (curl_source *)arg;
  curl_source_connection *connection = (curl_source_connection *)calloc(1, sizeof *connection);
  char if_match[CURL_SOURCE_VALUE_MAX + 16];
  int ok;
  if (connection == NULL) return CURL_SOURCE_NO_MEMORY;
  connection->source = source;
  connection->easy = curl_easy_init();
  ok = connection->easy != NULL && curl_source_add_header(connection, "Accept-Encoding: identity");
  if (ok && source->has_etag && source->version[0] == '"') { /* a weak ETag (W/"...") never matches an If-Match */
    snprintf(if_match, sizeof if_match, "If-Match: %s", source->version);
    ok = curl_source_add_header(connection, if_match);
  }
  ok = ok && curl_easy_setopt(connection->easy, CURLOPT_URL, source->url) == CURLE_OK;
  if (!ok) {
    curl_source_close(connection);
    return CURL_SOURCE_NO_MEMORY;
  }
  curl_easy_setopt(connection->easy, CURLOPT_HTTPHEADER, connection->headers);
  curl_easy_setopt(connection->easy, CURLOPT_HEADERFUNCTION, curl_source_on_header);
  curl_easy_setopt(connection->easy, CURLOPT_HEADERDATA, connection);
  curl_easy_setopt(connection->easy, CURLOPT_WRITEFUNCTION, curl_source_on_body);
  curl_easy_setopt(connection->easy, CURLOPT_WRITEDATA, connection);
  curl_easy_setopt(connection->easy, CURLOPT_NOSIGNAL, 1L); /* no SIGALRM in a library's threads */
  curl_easy_setopt(connection->easy, CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(connection->easy, CURLOPT_MAXREDIRS, 5L);
#if LIBCURL_VERSION_NUM >= 0x075500
  curl_easy_setopt(connection->easy, CURLOPT_PROTOCOLS_STR, "http,https"); /* also where a redirect leads: no file: */
  curl_easy_setopt(connection->easy, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
#else
  curl_easy_setopt(connection->easy, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
  curl_easy_setopt(connection->easy, CURLOPT_REDIR_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
  curl_easy_setopt(connection->easy, CURLOPT_CONNECTTIMEOUT, 10L);
  curl_easy_setopt(connection->easy, CURLOPT_LOW_SPEED_LIMIT, 1L); /* a silent server is tried again after 15 s */
  curl_easy_setopt(connection->easy, CURLOPT_LOW_SPEED_TIME, 15L);
  *out_connection = connection;
  return 0;
}

static inline int32_t curl_source_read_at(void *arg, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  curl_source_connection *connection = (curl_source_connection *)arg;
  uint64_t size = connection->source->size;
  int32_t code;
  *out_len = 0;
  if (offset >= size || len == 0) return 0;
  if (len > size - offset) len = (size_t)(size - offset);
  code = curl_source_request_with_retries(connection, offset, buf, len);
  if (code == 0) *out_len = connection->got;
  return code;
}

static inline int32_t curl_source_size(void *arg, uint64_t *out_size) {
  *out_size = ((curl_source_connection *)arg)->source->size;
  return 0;
}

static inline void curl_source_free(curl_source *source) {
  if (source == NULL) return;
  free(source->url);
  free(source);
}

static inline void curl_source_release(void *source) { curl_source_free((curl_source *)source); }

/* Learns size and version from one request for the first byte. */
static inline int32_t curl_source_probe(curl_source *source) {
  void *opened = NULL;
  curl_source_connection *connection;
  curl_off_t length = -1;
  char first_byte;
  int32_t code = curl_source_open(source, &opened);
  if (code != 0) return code;
  connection = (curl_source_connection *)opened;
  code = curl_source_request_with_retries(connection, 0, &first_byte, 1);
  curl_easy_getinfo(connection->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
  if (code == 200 && length == 0) { /* an empty file has no first byte: servers answer 200 or 416 */
    code = 0;
    source->size = 0;
  } else if (code == 416 && connection->answer.has_total && connection->answer.total == 0) {
    code = 0;
    source->size = 0;
  } else if (code == 0 && !connection->answer.has_total) {
    code = CURL_SOURCE_NO_SIZE;
  } else if (code == 0) {
    source->size = connection->answer.total;
  }
  source->has_etag = connection->answer.etag[0] != '\0';
  memcpy(source->version, source->has_etag ? connection->answer.etag : connection->answer.last_modified, sizeof source->version);
  curl_source_close(connection);
  return code;
}

static inline int32_t curl_source_new(const char *url, curl_source **out_source) {
  curl_source *source = (curl_source *)calloc(1, sizeof *source);
  size_t url_size = strlen(url) + 1;
  int32_t code;
  *out_source = NULL;
  if (source == NULL) return CURL_SOURCE_NO_MEMORY;
  source->size = NEARFILE_SIZE_UNKNOWN;
  source->url = (char *)malloc(url_size);
  code = source->url == NULL ? CURL_SOURCE_NO_MEMORY : 0;
  if (code == 0) {
    CURLcode result = curl_global_init(CURL_GLOBAL_DEFAULT); /* counted by libcurl: harmless where it was called before */
    memcpy(source->url, url, url_size);
    code = result == CURLE_OK ? curl_source_probe(source) : CURL_SOURCE_LIBCURL + (int32_t)result;
  }
  if (code != 0) curl_source_free(source);
  else *out_source = source;
  return code;
}

static inline nearfile_source curl_source_callbacks(curl_source *source) {
  nearfile_source callbacks;
  memset(&callbacks, 0, sizeof callbacks);
  callbacks.struct_size = sizeof callbacks;
  callbacks.user_data = source;
  callbacks.open = curl_source_open;
  callbacks.read_at = curl_source_read_at;
  callbacks.close = curl_source_close;
  callbacks.release = curl_source_release;
  callbacks.size = curl_source_size;
  return callbacks;
}

static inline const char *curl_source_sentence(int64_t code) {
  switch (code) {
    case 0: return "no error";
    case 200: return "the server ignores Range: it answered 200 with the whole file";
    case 401: case 403: return "the server refuses access";
    case 404: case 410: return "the server has no such file";
    case 412: return "the file on the server has changed since it was opened";
    case 416: return "the file on the server has become shorter since it was opened";
    case CURL_SOURCE_SHORT_BODY: return "the server's answer is shorter than it announced";
    case CURL_SOURCE_LONG_BODY: return "the server's answer is longer than it announced";
    case CURL_SOURCE_WRONG_RANGE: return "the server answered with another range than the one asked for";
    case CURL_SOURCE_CHANGED: return "the file on the server has changed since it was opened (other ETag, date or size)";
    case CURL_SOURCE_ENCODED: return "the server compresses the answer, so that its ranges are not the file's";
    case CURL_SOURCE_NO_SIZE: return "the server does not say how long the file is";
    case CURL_SOURCE_NO_MEMORY: return "out of memory";
    default: return "the server did not send the range";
  }
}

static inline const char *curl_source_message(int64_t code, char *buf, size_t buf_len) {
  if (code > CURL_SOURCE_LIBCURL && code < CURL_SOURCE_SHORT_BODY) {
    int libcurl = (int)(code - CURL_SOURCE_LIBCURL);
    snprintf(buf, buf_len, "%s (libcurl %d)", curl_easy_strerror((CURLcode)libcurl), libcurl);
  } else if (code >= 100 && code < 600) {
    snprintf(buf, buf_len, "%s (HTTP %d)", curl_source_sentence(code), (int)code);
  } else {
    snprintf(buf, buf_len, "%s", curl_source_sentence(code));
  }
  return buf;
}

#ifdef __cplusplus
}
#endif
#endif
