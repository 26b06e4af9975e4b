// Peers with a C interface, loaded where they are installed: FFmpeg's cache: protocol, GDAL's /vsicurl, nbdkit's cache filter by libnbd.
#define _GNU_SOURCE
#include "side.h"

#include <dlfcn.h>
#include <errno.h>

// The runner knows where it lies.
static void *library(void) {
  const char *path = getenv("SIDE_LIBRARY");
  void *at = path != NULL ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
  if (at == NULL) side_die("no library: %s", path != NULL ? dlerror() : "SIDE_LIBRARY is not set");
  return at;
}

// ISO C has no conversion from void * to a function; POSIX has.
static void resolve(void *library, const char *name, void *to) {
  void *found = dlsym(library, name);
  if (found == NULL) side_die("no %s", name);
  memcpy(to, &found, sizeof found);
}

// ---- FFmpeg: a temporary file of its own, for one process ----

typedef struct AVIOContext AVIOContext;
static int (*avio_open2)(AVIOContext **, const char *, int, const void *, void *);
static int64_t (*avio_seek)(AVIOContext *, int64_t, int);
static int (*avio_read)(AVIOContext *, unsigned char *, int);
static int (*avio_close)(AVIOContext *);
enum { AVIO_READ = 1, AVIO_DIRECT = 0x8000 };

static void *ffmpeg_open(const side *side) {
  void *avformat = library();
  resolve(avformat, "avio_open2", &avio_open2), resolve(avformat, "avio_seek", &avio_seek);
  resolve(avformat, "avio_read", &avio_read), resolve(avformat, "avio_close", &avio_close);
  AVIOContext *context = NULL;
  char *url;
  if (asprintf(&url, "cache:%s", side->url != NULL ? side->url : side->file) < 0) side_die("no memory");
  int code = avio_open2(&context, url, AVIO_READ | AVIO_DIRECT, NULL, NULL);
  if (code < 0) side_die("%s: %d", url, code);
  free(url);
  return context;
}

static int64_t ffmpeg_pread(void *handle, void *buf, size_t len, uint64_t offset) {
  if (avio_seek(handle, (int64_t)offset, SEEK_SET) < 0) return -1;
  size_t done = 0;
  while (done < len) {
    int n = avio_read(handle, (unsigned char *)buf + done, (int)(len - done));
    if (n <= 0) break;
    done += (size_t)n;
  }
  return (int64_t)done;
}

static void ffmpeg_close(void *handle) { avio_close(handle); }

// ---- GDAL: memory of the process ----

static void *(*vsi_open)(const char *, const char *);
static int (*vsi_seek)(void *, uint64_t, int);
static size_t (*vsi_read)(void *, size_t, size_t, void *);
static int (*vsi_close)(void *);
static void (*vsi_forget)(void);

static void *gdal_open(const side *side) {
  void (*option)(const char *, const char *);
  void *gdal = library();
  resolve(gdal, "VSIFOpenL", &vsi_open), resolve(gdal, "VSIFSeekL", &vsi_seek), resolve(gdal, "VSIFReadL", &vsi_read);
  resolve(gdal, "VSIFCloseL", &vsi_close), resolve(gdal, "VSICurlClearCache", &vsi_forget), resolve(gdal, "CPLSetConfigOption", &option);
  char bytes[32], *path;
  snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)side->size * 2);
  option("CPL_VSIL_CURL_CACHE_SIZE", bytes);
  snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)side->page);
  option("CPL_VSIL_CURL_CHUNK_SIZE", bytes);
  option("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR");
  if (side->url == NULL) side_die("reads HTTP only");
  if (asprintf(&path, "/vsicurl/%s", side->url) < 0) side_die("no memory");
  vsi_forget();
  void *file = vsi_open(path, "rb");
  if (file == NULL) side_die("%s does not open", path);
  free(path);
  return file;
}

static int64_t gdal_pread(void *handle, void *buf, size_t len, uint64_t offset) {
  if (vsi_seek(handle, offset, SEEK_SET) != 0) return -1;
  return (int64_t)vsi_read(buf, 1, len, handle);
}

static void gdal_close(void *handle) { vsi_close(handle); }

// ---- nbdkit: url is the server's, nbd+unix://... ----

static void *(*nbd_create)(void);
static int (*nbd_connect_uri)(void *, const char *);
static int (*nbd_pread)(void *, void *, size_t, uint64_t, uint32_t);
static void (*nbd_close)(void *);
static const char *(*nbd_get_error)(void);

static void *nbd_open(const side *side) {
  void *nbd = library();
  resolve(nbd, "nbd_create", &nbd_create), resolve(nbd, "nbd_connect_uri", &nbd_connect_uri), resolve(nbd, "nbd_pread", &nbd_pread);
  resolve(nbd, "nbd_close", &nbd_close), resolve(nbd, "nbd_get_error", &nbd_get_error);
  void *handle = nbd_create();
  if (handle == NULL || nbd_connect_uri(handle, side->url) != 0) side_die("nbd: %s", nbd_get_error());
  return handle;
}

static int64_t nbd_read_at(void *handle, void *buf, size_t len, uint64_t offset) {
  return nbd_pread(handle, buf, len, offset, 0) == 0 ? (int64_t)len : -1;
}

static void nbd_end(void *handle) { nbd_close(handle); }

const contender peer_contenders[] = {
    {.name = "ffmpeg", .per_thread = true, .open = ffmpeg_open, .pread = ffmpeg_pread, .close = ffmpeg_close},
    {.name = "gdal", .per_thread = true, .open = gdal_open, .pread = gdal_pread, .close = gdal_close},
    {.name = "nbd", .per_thread = true, .open = nbd_open, .pread = nbd_read_at, .close = nbd_end},
    {.name = NULL},
};
