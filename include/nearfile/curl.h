/* nearfile/curl.h: an object on an HTTP(S) server (S3 by presigned or public URL too) as a nearfile source, over libcurl.
 *
 * Header only, C11 and C++17, gcc or clang; link with -lnearfile -lcurl.
 *
 *     nearfile_cache *cache = NULL;
 *     nearfile_file *file = NULL;
 *     char why[1024], buf[4096];
 *     nearfile_cache_open(NULL, NULL, &cache);
 *     int32_t status = nearfile_curl_open(cache, "https://example.org/data.bin", NULL, NULL, &file);
 *     int64_t n = status == 0 ? nearfile_pread(file, buf, sizeof buf, 0) : status;
 *     if (n < 0 || status != 0) puts(nearfile_curl_message(n, why, sizeof why));
 *     nearfile_close(file);
 *     nearfile_cache_close(cache);
 *
 * What it gives. nearfile_curl_probe asks the server for an object's key, version and size; nearfile_curl_source makes the
 *   callbacks that read it; nearfile_curl_open is both and nearfile_open. Each nearfile connection is one easy handle, so one
 *   kept-alive socket; each read_at is one Range request.
 * What is refused. Only a 206 with the range asked for, of the version that was probed, is taken: If-Match (If-Unmodified-Since where
 *   there is no strong ETag) asks the server for it, and ETag, Last-Modified and total size of every answer are compared. So a
 *   changed object is an error (412, 416 or NEARFILE_CURL_CHANGED), never a mixture; probe and open it again. (A date tells no two
 *   changes of one second apart, and a server that gives neither ETag nor date is held to the size only.) A server that ignores
 *   Range is an error (200), except where the whole object was asked for in one read, which is what it sends. Compressed transfer
 *   is refused ("identity" is asked for). Bytes past the caller's buffer are never written.
 * What is tried again. Resets, timeouts, short bodies, 408, 429 and 5xx (but 501 and 505), with a pause that doubles and is drawn at
 *   random from its upper half, or as long as Retry-After says. What had come before a reset is kept: the next try asks for the rest.
 *   A Retry-After beyond max_pause_ms is an error at once.
 * Redirects are followed, 5 at most, to http and https only, and anew at each request. Headers of the settings go along; libcurl
 *   keeps only Authorization and Cookie from another host.
 * Ownership. URL, settings and object are copied; hook_data and counts must live as long as the file. The source's state goes to
 *   nearfile with nearfile_open, which frees it at the last close; where nearfile_open fails, call source.release(source.user_data).
 * Threads. Everything may be called from any thread; the hook runs on those that read, nearfile's own among them. A program that
 *   starts threads before its first call here calls curl_global_init itself first, if its libcurl is older than 7.84; if older than
 *   7.87, it ignores SIGPIPE.
 * Forks. Children open connections of their own and never touch the parent's.
 * Errors. Functions return 0, a negative nearfile_status, or a positive code: an HTTP status, NEARFILE_CURL_LIBCURL + a CURLcode, or
 *   a NEARFILE_CURL_... below. A failed read has the code in nearfile_error.source_code. nearfile_curl_message turns any of them
 *   into a sentence, with method, object, tries and libcurl's words where they failed on the thread that asks.
 */
#ifndef NEARFILE_CURL_H
#define NEARFILE_CURL_H

#include <nearfile.h>

#include <curl/curl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Codes, beside HTTP statuses (100-599). */
#define NEARFILE_CURL_LIBCURL      1000 /* plus a CURLcode */
#define NEARFILE_CURL_SHORT_BODY   2001 /* the body ended before the range that its header announced */
#define NEARFILE_CURL_LONG_BODY    2002 /* the body went on after it */
#define NEARFILE_CURL_WRONG_RANGE  2003 /* 206 with no Content-Range, or with another range than the one asked for */
#define NEARFILE_CURL_CHANGED      2004 /* another ETag, Last-Modified or size than when it was probed */
#define NEARFILE_CURL_ENCODED      2005 /* compressed although "identity" was asked for */
#define NEARFILE_CURL_NO_SIZE      2006 /* the server does not say how long the object is */
#define NEARFILE_CURL_NO_MEMORY    2007
#define NEARFILE_CURL_BAD_ARGUMENT 2008 /* struct_size is not set, or the key of the URL is longer than 4,096 bytes */

#define NEARFILE_CURL_NO_RETRIES   UINT32_MAX /* nearfile_curl_settings.max_retries */

#define NEARFILE_CURL_VALUE_MAX    512    /* an ETag or a date this long or longer is taken for none */
#define NEARFILE_CURL_DRAIN_MAX    65536u /* the body of an error is read up to here, so that its socket can be used again */

/* One request, as the hook sees it. */
typedef struct nearfile_curl_request {
  const char *method; /* "GET", "HEAD" */
  const char *url;
  uint64_t    offset; /* of the Range; GET only */
  size_t      len;
  uint32_t    attempt; /* 0 is the first */
} nearfile_curl_request;

/* Called before each request, on the thread that reads: signs it, renews a presigned URL (CURLOPT_URL), sets a proxy or a CA file.
 * Headers are appended to *headers by curl_slist_append. Must leave Range, body and header callbacks alone. Not 0: the request is
 * not sent, and the read fails with this code. */
typedef int32_t (*nearfile_curl_hook)(void *hook_data, CURL *easy, const nearfile_curl_request *request, struct curl_slist **headers);

/* Counted atomically; may lie in memory that processes share. */
typedef struct nearfile_curl_counts {
  uint64_t requests; /* sent, retries included, redirects not */
  uint64_t retries;
  uint64_t bytes;    /* of bodies */
} nearfile_curl_counts;

/* Zero is the default. */
typedef struct nearfile_curl_settings {
  size_t             struct_size;        /* sizeof(nearfile_curl_settings) */
  const char *const *headers;            /* "Name: value", the last followed by NULL */
  const char        *user_agent;         /* NULL: "nearfile/" and the library's version */
  uint32_t           connect_timeout_ms; /* 0: 10,000 */
  uint32_t           stall_timeout_s;    /* no byte for so long is a timeout, which libcurl notices some 5 s late; 0: 15 */
  uint32_t           timeout_ms;         /* of a whole request; 0: none */
  uint32_t           max_retries;        /* of one read; 0: 4. NEARFILE_CURL_NO_RETRIES: none */
  uint32_t           pause_ms;           /* before the first retry; doubled before each further one; 0: 100 */
  uint32_t           max_pause_ms;       /* 0: 10,000 */
  uint32_t           max_connections;    /* of one process; 0: nearfile's default */
  uint32_t           flags;              /* 0 */
  nearfile_curl_hook hook;
  void              *hook_data;
  nearfile_curl_counts *counts;          /* NULL: nobody counts */
} nearfile_curl_settings;

/* What is known of an object. A program that knows it otherwise (from a listing, say) may fill it itself, all else zero. */
typedef struct nearfile_curl_object {
  uint64_t size;
  char key[4097];                              /* nearfile_options.key: the URL without user, fragment and signature */
  char version[NEARFILE_CURL_VALUE_MAX + 32];  /* nearfile_options.version: the strong ETag, else Last-Modified and size */
  char etag[NEARFILE_CURL_VALUE_MAX];          /* "" where there is none; weak ones (W/"...") too */
  char last_modified[NEARFILE_CURL_VALUE_MAX]; /* likewise */
} nearfile_curl_object;

/* Learns key, version and size by HEAD or, where that is refused, as of URLs presigned for GET, by a GET of the first byte.
 * settings NULL: the defaults. 0, or a code. */
static inline int32_t nearfile_curl_probe(const char *url, const nearfile_curl_settings *settings, nearfile_curl_object *out_object);

/* Makes the source of an object that was probed, for one nearfile_open. Sends nothing. 0, or a code. */
static inline int32_t nearfile_curl_source(const char *url, const nearfile_curl_object *object, const nearfile_curl_settings *settings,
                                           nearfile_source *out_source);

/* Probes and opens. options gives page_size, limit, mode, flags, paths, and a key if it has one; version and size are the
 * server's. NULL: the defaults. 0, a code, or a nearfile_status. */
static inline int32_t nearfile_curl_open(const nearfile_cache *cache, const char *url, const nearfile_curl_settings *settings,
                                         const nearfile_options *options, nearfile_file **out_file);

/* Writes the sentence for what a function here or of nearfile has returned on this thread, always terminated; returns buf. */
static inline const char *nearfile_curl_message(int64_t result, char *buf, size_t buf_len);

/* ---- Below: how it is done. ---- */

/* This thread's last failure: one in a program, whichever of its files include this header. */
typedef struct nearfile_curl_failure {
  int32_t code;
  char    text[768];
} nearfile_curl_failure;
__attribute__((weak)) __thread nearfile_curl_failure nearfile_curl_last_failure;

typedef struct nearfile_curl_state {
  nearfile_curl_object   object;
  nearfile_curl_settings settings; /* defaults filled in; strings point into this state */
  int                    probing;  /* nothing is known to compare with */
  char                  *url;
  char                  *user_agent;
  struct curl_slist     *headers;
} nearfile_curl_state;

/* The headers of one answer that matter here. */
typedef struct nearfile_curl_answer {
  char     etag[NEARFILE_CURL_VALUE_MAX];
  char     last_modified[NEARFILE_CURL_VALUE_MAX];
  int      encoded;
  int      has_range;  /* Content-Range: bytes first-last/... */
  int      has_total;  /* Content-Range: .../total */
  int      has_length; /* Content-Length */
  uint64_t first, last, total, length;
} nearfile_curl_answer;

typedef struct nearfile_curl_connection {
  const nearfile_curl_state *state;
  CURL                *easy;
  uint64_t             random;
  char                 libcurl_says[CURL_ERROR_SIZE];
  /* Of the request under way: */
  nearfile_curl_answer answer;
  int                  head;
  char                *buf;
  uint64_t             offset;
  size_t               len;     /* room in buf */
  size_t               got;     /* bytes written to buf */
  size_t               drained; /* bytes of an error's body, thrown away */
  int32_t              code;    /* why a callback stopped the transfer */
} nearfile_curl_connection;

/* ---- Text ---- */

static inline int nearfile_curl_has_prefix(const char *text, size_t len, const char *prefix) {
  size_t n = strlen(prefix);
  return len >= n && strncasecmp(text, prefix, n) == 0;
}

/* Reads digits at *text and moves past them. 0 where there are none or they do not fit. */
static inline int nearfile_curl_number(const char **text, uint64_t *out) {
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

/* Is this parameter of a query part of a signature (of S3, its elders, Google, or, where is_sas, Azure), and not of a name? */
static inline int nearfile_curl_is_signature(const char *parameter, size_t len, int is_sas) {
  static const char *const signed_by[] = {"X-Amz-", "X-Goog-", "AWSAccessKeyId=", "GoogleAccessId=", "Signature=", "Expires=",
                                          "Key-Pair-Id=", "Policy="};
  static const char *const sas[] = {"sig=", "se=",  "sp=",    "sv=",    "sr=",  "st=",  "spr=",
                                    "sip=", "skoid=", "sktid=", "skt=", "ske=", "sks=", "skv="};
  size_t i;
  for (i = 0; i < sizeof signed_by / sizeof *signed_by; i++) {
    if (nearfile_curl_has_prefix(parameter, len, signed_by[i])) return 1;
  }
  for (i = 0; is_sas && i < sizeof sas / sizeof *sas; i++) {
    if (nearfile_curl_has_prefix(parameter, len, sas[i])) return 1;
  }
  return 0;
}

/* The URL as a name that outlives its signature and tells no secret. 0 where it does not fit. */
static inline int nearfile_curl_key(const char *url, char *out, size_t out_size) {
  size_t at = 0, end = strcspn(url, "#"), query = strcspn(url, "?#"), host = 0;
  const char *scheme = strstr(url, "://");
  int is_sas = strstr(url + query, "&sig=") != NULL || strncmp(url + query, "?sig=", 5) == 0;
  char separator = '?';
  if (scheme != NULL && (size_t)(scheme - url) < query) {
    size_t i;
    host = (size_t)(scheme - url) + 3;
    if (host >= out_size) return 0;
    memcpy(out, url, host);
    at = host;
    for (i = host; i < query && url[i] != '/'; i++) {
      if (url[i] == '@') host = i + 1;
    }
  }
  if (query - host >= out_size - at) return 0;
  memcpy(out + at, url + host, query - host);
  at += query - host;
  while (query < end) { /* at a '?' or '&' */
    size_t len = strcspn(url + query + 1, "&#");
    if (!nearfile_curl_is_signature(url + query + 1, len, is_sas)) {
      if (len + 1 >= out_size - at) return 0;
      out[at++] = separator;
      memcpy(out + at, url + query + 1, len);
      at += len;
      separator = '&';
    }
    query += 1 + len;
  }
  out[at] = '\0';
  return at > 0;
}

static inline const char *nearfile_curl_sentence(int32_t code) {
  switch (code) {
    case 0: return "no error";
    case 200: return "the server ignores Range and sends the whole object";
    case 401: case 403: return "the server refuses access";
    case 404: case 410: return "the server has no such object";
    case 412: return "the object has changed since it was probed";
    case 416: return "the object has become shorter since it was probed";
    case 429: return "the server asks for fewer requests";
    case NEARFILE_CURL_SHORT_BODY: return "the answer is shorter than it announced";
    case NEARFILE_CURL_LONG_BODY: return "the answer is longer than it announced";
    case NEARFILE_CURL_WRONG_RANGE: return "the server answered with another range than the one asked for";
    case NEARFILE_CURL_CHANGED: return "the object has changed since it was probed (other ETag, date or size)";
    case NEARFILE_CURL_ENCODED: return "the server compresses the answer, so that its ranges are not the object's";
    case NEARFILE_CURL_NO_SIZE: return "the server does not say how long the object is";
    case NEARFILE_CURL_NO_MEMORY: return "out of memory";
    case NEARFILE_CURL_BAD_ARGUMENT: return "struct_size is not set, or the URL is too long to be a key";
    default: break;
  }
  if (code > NEARFILE_CURL_LIBCURL && code < NEARFILE_CURL_SHORT_BODY) return curl_easy_strerror((CURLcode)(code - NEARFILE_CURL_LIBCURL));
  return "the server did not send what was asked for";
}

/* Appends, as far as there is room. */
static inline void nearfile_curl_put(char *buf, size_t buf_len, const char *text) {
  size_t at = strlen(buf);
  while (*text != '\0' && at + 1 < buf_len) buf[at++] = *text++;
  if (buf_len > 0) buf[at] = '\0';
}

static inline const char *nearfile_curl_message(int64_t result, char *buf, size_t buf_len) {
  nearfile_error near_error;
  int64_t code = result;
  char number[32];
  if (buf_len == 0) return buf;
  buf[0] = '\0';
  if (result < 0) {
    memset(&near_error, 0, sizeof near_error);
    near_error.struct_size = sizeof near_error;
    nearfile_last_error(&near_error);
    code = near_error.source_code;
    nearfile_curl_put(buf, buf_len, near_error.message);
    if (code <= 0 || code > INT32_MAX) return buf;
    nearfile_curl_put(buf, buf_len, ": ");
  }
  if (code != 0 && code == nearfile_curl_last_failure.code) {
    nearfile_curl_put(buf, buf_len, nearfile_curl_last_failure.text);
  } else {
    snprintf(number, sizeof number, code >= 100 && code < 600 ? " (HTTP %d)" : " (%d)", (int)code);
    nearfile_curl_put(buf, buf_len, nearfile_curl_sentence((int32_t)code));
    if (code != 0) nearfile_curl_put(buf, buf_len, number);
  }
  return buf;
}

/* Keeps the sentence of a failure for nearfile_curl_message; returns the code. */
static inline int32_t nearfile_curl_fails(const nearfile_curl_connection *connection, int32_t code, uint32_t attempts) {
  const char *said = code > NEARFILE_CURL_LIBCURL && code < NEARFILE_CURL_SHORT_BODY ? connection->libcurl_says : "";
  char what[64] = "HEAD", number[24];
  if (!connection->head) {
    snprintf(what, sizeof what, "GET %llu-%llu", (unsigned long long)connection->offset,
             (unsigned long long)(connection->offset + connection->len - 1));
  }
  snprintf(number, sizeof number, code >= 100 && code < 600 ? "HTTP %d" : "%d", (int)code);
  nearfile_curl_last_failure.code = code;
  snprintf(nearfile_curl_last_failure.text, sizeof nearfile_curl_last_failure.text, "%s of %.300s: %s (%s, %u %s)", what,
           connection->state->object.key, said[0] != '\0' ? said : nearfile_curl_sentence(code), number, (unsigned)attempts,
           attempts == 1 ? "try" : "tries");
  return code;
}

/* ---- One answer ---- */

/* "bytes 0-99/1234"; a star may stand for the total or, with 416, for the range. */
static inline void nearfile_curl_parse_range(nearfile_curl_answer *answer, const char *value) {
  const char *at = value + 6;
  if (strncasecmp(value, "bytes ", 6) != 0) return;
  if (*at == '*') {
    at++;
  } else {
    if (!nearfile_curl_number(&at, &answer->first) || *at++ != '-' || !nearfile_curl_number(&at, &answer->last)) return;
    answer->has_range = answer->first <= answer->last;
  }
  if (*at++ == '/') answer->has_total = nearfile_curl_number(&at, &answer->total);
}

static inline size_t nearfile_curl_on_header(char *line, size_t size, size_t count, void *connection) {
  nearfile_curl_answer *answer = &((nearfile_curl_connection *)connection)->answer;
  size_t len = size * count, end = len, name;
  char value[NEARFILE_CURL_VALUE_MAX];
  const char *colon, *at = value;
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
  else if (name == 13 && strncasecmp(line, "Content-Range", name) == 0) nearfile_curl_parse_range(answer, value);
  else if (name == 14 && strncasecmp(line, "Content-Length", name) == 0) answer->has_length = nearfile_curl_number(&at, &answer->length);
  else if (name == 16 && strncasecmp(line, "Content-Encoding", name) == 0) answer->encoded = strcasecmp(value, "identity") != 0;
  return size * count;
}

/* Is this of the version that was probed? */
static inline int nearfile_curl_same(const nearfile_curl_connection *connection, int has_size, uint64_t size) {
  const nearfile_curl_object *object = &connection->state->object;
  const nearfile_curl_answer *answer = &connection->answer;
  if (connection->state->probing) return 1;
  if (object->etag[0] != '\0' && answer->etag[0] != '\0') {
    if (strcmp(object->etag, answer->etag) != 0) return 0;
  } else if (object->last_modified[0] != '\0' && answer->last_modified[0] != '\0') {
    if (strcmp(object->last_modified, answer->last_modified) != 0) return 0;
  }
  return !has_size || size == object->size;
}

/* Is this 206 a part of the right object? It may hold less than asked (RFC 9110 allows it, and the rest is asked for), never more. */
static inline int32_t nearfile_curl_judge_part(const nearfile_curl_connection *connection) {
  const nearfile_curl_answer *answer = &connection->answer;
  if (answer->encoded) return NEARFILE_CURL_ENCODED;
  if (!answer->has_range || answer->first != connection->offset || answer->last - answer->first >= connection->len) {
    return NEARFILE_CURL_WRONG_RANGE;
  }
  return nearfile_curl_same(connection, answer->has_total, answer->total) ? 0 : NEARFILE_CURL_CHANGED;
}

/* Is this 200 what was asked for all the same, the whole of the right object? */
static inline int32_t nearfile_curl_judge_whole(const nearfile_curl_connection *connection) {
  const nearfile_curl_answer *answer = &connection->answer;
  if (connection->state->probing || connection->offset != 0 || connection->len != connection->state->object.size) return 200;
  if (answer->encoded) return NEARFILE_CURL_ENCODED;
  return nearfile_curl_same(connection, answer->has_length, answer->length) ? 0 : NEARFILE_CURL_CHANGED;
}

static inline long nearfile_curl_status(const nearfile_curl_connection *connection) {
  long status = 0;
  curl_easy_getinfo(connection->easy, CURLINFO_RESPONSE_CODE, &status);
  return status;
}

static inline int32_t nearfile_curl_judge(const nearfile_curl_connection *connection, long status) {
  return status == 206 ? nearfile_curl_judge_part(connection) : nearfile_curl_judge_whole(connection);
}

static inline size_t nearfile_curl_on_body(char *data, size_t size, size_t count, void *arg) {
  nearfile_curl_connection *connection = (nearfile_curl_connection *)arg;
  nearfile_curl_counts *counts = connection->state->settings.counts;
  size_t len = size * count;
  long status = nearfile_curl_status(connection);
  if (counts != NULL) __atomic_fetch_add(&counts->bytes, (uint64_t)len, __ATOMIC_RELAXED);
  if (status != 206 && status != 200) {
    connection->drained += len;
    return connection->drained > NEARFILE_CURL_DRAIN_MAX ? 0 : len;
  }
  if (connection->got == 0) connection->code = nearfile_curl_judge(connection, status);
  if (connection->code == 0 && len > connection->len - connection->got) connection->code = NEARFILE_CURL_LONG_BODY;
  if (connection->code != 0) return 0; /* the transfer ends here, and its socket with it */
  memcpy(connection->buf + connection->got, data, len);
  connection->got += len;
  return len;
}

/* ---- One request ---- */

static inline int nearfile_curl_append(struct curl_slist **headers, const char *header) {
  struct curl_slist *longer = curl_slist_append(*headers, header);
  if (longer != NULL) *headers = longer;
  return longer != NULL;
}

/* Asks the server to refuse, with 412, any other version. */
static inline int nearfile_curl_append_condition(const nearfile_curl_object *object, struct curl_slist **headers) {
  char condition[NEARFILE_CURL_VALUE_MAX + 32];
  if (object->etag[0] == '"') { /* a weak one never matches an If-Match */
    snprintf(condition, sizeof condition, "If-Match: %s", object->etag);
  } else if (object->last_modified[0] != '\0') {
    snprintf(condition, sizeof condition, "If-Unmodified-Since: %s", object->last_modified);
  } else {
    return 1;
  }
  return nearfile_curl_append(headers, condition);
}

/* identity, the condition, the settings' headers, and what the hook adds. */
static inline int32_t nearfile_curl_headers(nearfile_curl_connection *connection, uint32_t attempt, struct curl_slist **headers) {
  const nearfile_curl_state *state = connection->state;
  const struct curl_slist *each;
  int ok = nearfile_curl_append(headers, "Accept-Encoding: identity");
  if (!state->probing) ok = ok && nearfile_curl_append_condition(&state->object, headers);
  for (each = state->headers; each != NULL; each = each->next) ok = ok && nearfile_curl_append(headers, each->data);
  if (!ok) return NEARFILE_CURL_NO_MEMORY;
  if (state->settings.hook != NULL) {
    nearfile_curl_request request;
    request.method = connection->head ? "HEAD" : "GET";
    request.url = state->url;
    request.offset = connection->offset;
    request.len = connection->len;
    request.attempt = attempt;
    return state->settings.hook(state->settings.hook_data, connection->easy, &request, headers);
  }
  return 0;
}

/* Turns what libcurl and the callbacks say of a transfer that has ended into a code. */
static inline int32_t nearfile_curl_outcome(nearfile_curl_connection *connection, CURLcode result) {
  const nearfile_curl_answer *answer = &connection->answer;
  long status = nearfile_curl_status(connection);
  int32_t code = connection->code;
  uint64_t announced;
  if (code != 0) return code;
  /* CURLE_WRITE_ERROR is our own doing: the status says why. */
  if (result != CURLE_OK && result != CURLE_WRITE_ERROR) return NEARFILE_CURL_LIBCURL + (int32_t)result;
  if (connection->head) return status == 200 ? 0 : (int32_t)status;
  if (status != 206 && status != 200) return (int32_t)status;
  if (connection->got == 0) code = nearfile_curl_judge(connection, status); /* an empty body was not judged yet */
  if (code != 0) return code;
  /* Only a body that no Content-Length announced gets here: libcurl reports the others itself (CURLE_PARTIAL_FILE). */
  announced = status == 206 ? answer->last - answer->first + 1 : connection->len;
  if (connection->got == announced) return 0;
  return connection->got < announced ? NEARFILE_CURL_SHORT_BODY : NEARFILE_CURL_LONG_BODY;
}

static inline int32_t nearfile_curl_send(nearfile_curl_connection *connection, uint32_t attempt) {
  nearfile_curl_counts *counts = connection->state->settings.counts;
  struct curl_slist *headers = NULL;
  char range[48];
  int32_t code;
  memset(&connection->answer, 0, sizeof connection->answer);
  connection->got = 0;
  connection->drained = 0;
  connection->code = 0;
  connection->libcurl_says[0] = '\0';
  snprintf(range, sizeof range, "%llu-%llu", (unsigned long long)connection->offset,
           (unsigned long long)(connection->offset + connection->len - 1));
  curl_easy_setopt(connection->easy, CURLOPT_NOBODY, connection->head ? 1L : 0L);
  if (!connection->head) curl_easy_setopt(connection->easy, CURLOPT_HTTPGET, 1L);
  curl_easy_setopt(connection->easy, CURLOPT_RANGE, connection->head ? NULL : range);
  code = nearfile_curl_headers(connection, attempt, &headers);
  if (code == 0) {
    curl_easy_setopt(connection->easy, CURLOPT_HTTPHEADER, headers);
    if (counts != NULL) {
      __atomic_fetch_add(&counts->requests, (uint64_t)1, __ATOMIC_RELAXED);
      if (attempt > 0) __atomic_fetch_add(&counts->retries, (uint64_t)1, __ATOMIC_RELAXED);
    }
    code = nearfile_curl_outcome(connection, curl_easy_perform(connection->easy));
    curl_easy_setopt(connection->easy, CURLOPT_HTTPHEADER, NULL);
  }
  curl_slist_free_all(headers);
  return code;
}

static inline int nearfile_curl_may_pass(int32_t code) {
  if (code >= 500 && code < 600) return code != 501 && code != 505;
  switch (code) {
    case 408: case 425: case 429:
    case NEARFILE_CURL_SHORT_BODY:
    case NEARFILE_CURL_LIBCURL + CURLE_COULDNT_CONNECT:
    case NEARFILE_CURL_LIBCURL + CURLE_PARTIAL_FILE:
    case NEARFILE_CURL_LIBCURL + CURLE_OPERATION_TIMEDOUT:
    case NEARFILE_CURL_LIBCURL + CURLE_SSL_CONNECT_ERROR:
    case NEARFILE_CURL_LIBCURL + CURLE_GOT_NOTHING:
    case NEARFILE_CURL_LIBCURL + CURLE_SEND_ERROR:
    case NEARFILE_CURL_LIBCURL + CURLE_RECV_ERROR:
    case NEARFILE_CURL_LIBCURL + CURLE_HTTP2:
    case NEARFILE_CURL_LIBCURL + CURLE_HTTP2_STREAM:
      return 1;
    default:
      return 0;
  }
}

/* Sleeps before a retry. 0 where the server wants a longer pause than the settings allow. */
static inline int nearfile_curl_pause(nearfile_curl_connection *connection, int32_t code, uint32_t attempt) {
  const nearfile_curl_settings *settings = &connection->state->settings;
  uint64_t pause = (uint64_t)settings->pause_ms << (attempt < 20 ? attempt : 20);
  curl_off_t after_s = 0;
  if (pause > settings->max_pause_ms) pause = settings->max_pause_ms;
  connection->random = connection->random * 6364136223846793005u + 1442695040888963407u;
  pause -= (pause / 2) * (connection->random >> 40) >> 24;
#if LIBCURL_VERSION_NUM >= 0x074200
  if (code == 429 || code == 503) curl_easy_getinfo(connection->easy, CURLINFO_RETRY_AFTER, &after_s);
#endif
  if (after_s > 0) {
    if ((uint64_t)after_s > settings->max_pause_ms / 1000u) return 0;
    if ((uint64_t)after_s * 1000u > pause) pause = (uint64_t)after_s * 1000u;
  }
  poll(NULL, 0, (int)pause); /* the one sleep that strict C11 headers declare */
  return 1;
}

/* Sends a request until it succeeds, cannot, or was tried often enough. A GET that breaks off goes on where it broke. */
static inline int32_t nearfile_curl_perform(nearfile_curl_connection *connection, int head, uint64_t offset, void *buf, size_t len,
                                            size_t *out_len) {
  uint32_t attempt = 0;
  size_t done = 0;
  int32_t code;
  for (;;) {
    connection->head = head;
    connection->offset = offset + done;
    connection->len = len - done;
    connection->buf = (char *)buf + done;
    code = nearfile_curl_send(connection, attempt);
    if (!head && connection->answer.has_range) done += connection->got;
    if (code == 0) break;
    if (nearfile_curl_may_pass(code) && !head && done == len) break; /* the connection broke after the last byte */
    if (!nearfile_curl_may_pass(code) || attempt >= connection->state->settings.max_retries ||
        !nearfile_curl_pause(connection, code, attempt)) {
      return nearfile_curl_fails(connection, code, attempt + 1);
    }
    attempt++;
  }
  *out_len = done > 0 ? done : connection->got;
  return 0;
}

/* ---- The callbacks ---- */

static inline void nearfile_curl_on_close(void *arg) {
  nearfile_curl_connection *connection = (nearfile_curl_connection *)arg;
  curl_easy_cleanup(connection->easy);
  free(connection);
}

static inline int32_t nearfile_curl_on_open(void *arg, void **out_connection) {
  const nearfile_curl_state *state = (const nearfile_curl_state *)arg;
  nearfile_curl_connection *connection = (nearfile_curl_connection *)calloc(1, sizeof *connection);
  CURL *easy;
  if (connection == NULL) return NEARFILE_CURL_NO_MEMORY;
  connection->state = state;
  connection->random = (uint64_t)(uintptr_t)connection ^ (uint64_t)time(NULL) * 0x9E3779B97F4A7C15u ^ (uint64_t)clock() << 32;
  connection->easy = easy = curl_easy_init();
  if (easy == NULL || curl_easy_setopt(easy, CURLOPT_URL, state->url) != CURLE_OK ||
      curl_easy_setopt(easy, CURLOPT_USERAGENT, state->user_agent) != CURLE_OK) {
    nearfile_curl_on_close(connection);
    return NEARFILE_CURL_NO_MEMORY;
  }
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, connection->libcurl_says);
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, nearfile_curl_on_header);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, connection);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, nearfile_curl_on_body);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, connection);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L); /* no SIGALRM in a library's threads */
  curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(easy, CURLOPT_MAXREDIRS, 5L);
#if LIBCURL_VERSION_NUM >= 0x075500
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https"); /* also where a redirect leads: no file: */
  curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
#else
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
  curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)state->settings.connect_timeout_ms);
  curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long)state->settings.timeout_ms);
  curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (long)state->settings.stall_timeout_s);
  *out_connection = connection;
  return 0;
}

static inline int32_t nearfile_curl_on_read_at(void *arg, uint64_t offset, void *buf, size_t len, size_t *out_len) {
  nearfile_curl_connection *connection = (nearfile_curl_connection *)arg;
  uint64_t size = connection->state->object.size;
  *out_len = 0;
  if (offset >= size || len == 0) return 0;
  if (len > size - offset) len = (size_t)(size - offset);
  return nearfile_curl_perform(connection, 0, offset, buf, len, out_len);
}

static inline void nearfile_curl_on_release(void *arg) {
  nearfile_curl_state *state = (nearfile_curl_state *)arg;
  if (state == NULL) return;
  curl_slist_free_all(state->headers);
  free(state->url);
  free(state->user_agent);
  free(state);
}

/* ---- Making a source ---- */

static inline char *nearfile_curl_copy(const char *text) {
  size_t size = strlen(text) + 1;
  char *copy = (char *)malloc(size);
  return copy == NULL ? NULL : (char *)memcpy(copy, text, size);
}

static inline void nearfile_curl_default(uint32_t *value, uint32_t otherwise) {
  if (*value == 0) *value = otherwise;
}

/* Copies the caller's settings, defaults filled in, into a state. */
static inline int32_t nearfile_curl_take_settings(nearfile_curl_state *state, const nearfile_curl_settings *given) {
  nearfile_curl_settings *mine = &state->settings;
  const char *const *header;
  char agent[64];
  if (given != NULL) {
    if (given->struct_size != sizeof *given || given->flags != 0) return NEARFILE_CURL_BAD_ARGUMENT;
    *mine = *given;
  }
  for (header = mine->headers; header != NULL && *header != NULL; header++) {
    if (!nearfile_curl_append(&state->headers, *header)) return NEARFILE_CURL_NO_MEMORY;
  }
  snprintf(agent, sizeof agent, "nearfile/%s", nearfile_version_string());
  state->user_agent = nearfile_curl_copy(mine->user_agent != NULL ? mine->user_agent : agent);
  if (state->user_agent == NULL) return NEARFILE_CURL_NO_MEMORY;
  mine->headers = NULL; /* the caller's: not used from here on */
  mine->user_agent = NULL;
  nearfile_curl_default(&mine->connect_timeout_ms, 10000);
  nearfile_curl_default(&mine->stall_timeout_s, 15);
  nearfile_curl_default(&mine->max_retries, 4);
  nearfile_curl_default(&mine->pause_ms, 100);
  nearfile_curl_default(&mine->max_pause_ms, 10000);
  if (mine->max_pause_ms > 3600000) mine->max_pause_ms = 3600000;
  if (mine->max_retries == NEARFILE_CURL_NO_RETRIES) mine->max_retries = 0;
  return 0;
}

/* object NULL: for a probe. */
static inline int32_t nearfile_curl_new(const char *url, const nearfile_curl_object *object, const nearfile_curl_settings *settings,
                                        nearfile_curl_state **out_state) {
  nearfile_curl_state *state = (nearfile_curl_state *)calloc(1, sizeof *state);
  CURLcode result;
  int32_t code = 0;
  *out_state = NULL;
  if (state == NULL) return NEARFILE_CURL_NO_MEMORY;
  if (object != NULL) state->object = *object;
  if (state->object.key[0] == '\0' && !nearfile_curl_key(url, state->object.key, sizeof state->object.key)) {
    code = NEARFILE_CURL_BAD_ARGUMENT;
  }
  state->probing = object == NULL;
  state->url = nearfile_curl_copy(url);
  if (state->url == NULL) code = NEARFILE_CURL_NO_MEMORY;
  if (code == 0) code = nearfile_curl_take_settings(state, settings);
  result = curl_global_init(CURL_GLOBAL_DEFAULT); /* counted by libcurl: harmless where it was called before */
  if (code == 0 && result != CURLE_OK) code = NEARFILE_CURL_LIBCURL + (int32_t)result;
  if (code != 0) nearfile_curl_on_release(state);
  else *out_state = state;
  return code;
}

/* Asks for the first byte and takes the size from Content-Range. */
static inline int32_t nearfile_curl_probe_by_get(nearfile_curl_connection *connection, uint64_t *out_size) {
  const nearfile_curl_answer *answer = &connection->answer;
  char first_byte;
  size_t got = 0;
  int32_t code = nearfile_curl_perform(connection, 0, 0, &first_byte, 1, &got);
  /* An empty object has no first byte: servers answer 200 or 416. */
  if ((code == 200 && answer->has_length && answer->length == 0) || (code == 416 && answer->has_total && answer->total == 0)) {
    *out_size = 0;
    return 0;
  }
  if (code == 200 && answer->has_length && !answer->encoded) { /* no Range: reads will tell, where it matters */
    *out_size = answer->length;
    return 0;
  }
  if (code == 0 && !answer->has_total) return nearfile_curl_fails(connection, NEARFILE_CURL_NO_SIZE, 1);
  *out_size = answer->total;
  return code;
}

/* HEAD, and GET where HEAD tells too little. */
static inline int32_t nearfile_curl_ask(nearfile_curl_connection *connection, uint64_t *out_size) {
  const nearfile_curl_answer *answer = &connection->answer;
  size_t none = 0;
  int32_t code = nearfile_curl_perform(connection, 1, 0, NULL, 0, &none);
  int refused = code >= 300 && code < 600 && code != 404 && code != 410;
  if (refused || (code == 0 && !answer->has_length)) return nearfile_curl_probe_by_get(connection, out_size);
  if (code != 0) return code;
  if (answer->encoded) return nearfile_curl_fails(connection, NEARFILE_CURL_ENCODED, 1);
  *out_size = answer->length;
  return 0;
}

static inline void nearfile_curl_describe(const nearfile_curl_answer *answer, nearfile_curl_object *object) {
  memcpy(object->etag, answer->etag, sizeof object->etag);
  memcpy(object->last_modified, answer->last_modified, sizeof object->last_modified);
  if (object->etag[0] == '"') {
    snprintf(object->version, sizeof object->version, "%s", object->etag);
  } else {
    snprintf(object->version, sizeof object->version, "%s %llu", object->last_modified, (unsigned long long)object->size);
  }
}

static inline int32_t nearfile_curl_probe(const char *url, const nearfile_curl_settings *settings, nearfile_curl_object *out_object) {
  nearfile_curl_state *state = NULL;
  void *opened = NULL;
  int32_t code = nearfile_curl_new(url, NULL, settings, &state);
  memset(out_object, 0, sizeof *out_object);
  if (code != 0) return code;
  code = nearfile_curl_on_open(state, &opened);
  if (code == 0) {
    nearfile_curl_connection *connection = (nearfile_curl_connection *)opened;
    code = nearfile_curl_ask(connection, &out_object->size);
    if (code == 0) {
      memcpy(out_object->key, state->object.key, sizeof out_object->key);
      nearfile_curl_describe(&connection->answer, out_object);
    }
    nearfile_curl_on_close(connection);
  }
  nearfile_curl_on_release(state);
  return code;
}

static inline int32_t nearfile_curl_source(const char *url, const nearfile_curl_object *object, const nearfile_curl_settings *settings,
                                           nearfile_source *out_source) {
  nearfile_curl_state *state = NULL;
  int32_t code = nearfile_curl_new(url, object, settings, &state);
  memset(out_source, 0, sizeof *out_source);
  if (code != 0) return code;
  out_source->struct_size = sizeof *out_source;
  out_source->max_connections = state->settings.max_connections;
  out_source->user_data = state;
  out_source->open = nearfile_curl_on_open;
  out_source->read_at = nearfile_curl_on_read_at;
  out_source->close = nearfile_curl_on_close;
  out_source->release = nearfile_curl_on_release;
  return 0;
}

static inline int32_t nearfile_curl_open(const nearfile_cache *cache, const char *url, const nearfile_curl_settings *settings,
                                         const nearfile_options *options, nearfile_file **out_file) {
  nearfile_curl_object *object = (nearfile_curl_object *)malloc(sizeof *object);
  nearfile_source source;
  nearfile_options mine;
  int32_t code = object == NULL ? NEARFILE_CURL_NO_MEMORY : nearfile_curl_probe(url, settings, object);
  *out_file = NULL;
  memset(&mine, 0, sizeof mine);
  if (options != NULL) memcpy(&mine, options, options->struct_size < sizeof mine ? options->struct_size : sizeof mine);
  if (code == 0) code = nearfile_curl_source(url, object, settings, &source);
  if (code == 0) {
    mine.struct_size = sizeof mine;
    if (mine.key == NULL && mine.data_path == NULL && mine.mode == NEARFILE_PAGED) mine.key = object->key;
    mine.version = object->version;
    mine.size = object->size;
    code = nearfile_open(cache, &source, &mine, out_file);
    if (code != 0) nearfile_curl_on_release(source.user_data);
  }
  free(object);
  return code;
}

#ifdef __cplusplus
}
#endif
#endif
