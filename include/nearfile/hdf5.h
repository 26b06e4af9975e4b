/* nearfile/hdf5.h: HDF5 files in nearfile_files, through a read-only virtual file driver. HDF5 1.10 to 1.14.
 *
 * Header only, C11 and C++17; link with -lnearfile -lhdf5.
 *
 *     hid_t data = nearfile_hdf5_open(file, "weather.h5");                  file: any nearfile_file; yours still, and may be closed
 *     if (data < 0) return fail();                                         HDF5's error stack has nearfile's reason
 *     hid_t set = H5Dopen2(data, "/temperature", H5P_DEFAULT);
 *     H5Dread(set, H5T_NATIVE_FLOAT, memory, selection, H5P_DEFAULT, out); fetches the pages that it touches
 *     H5Dclose(set);
 *     H5Fclose(data);
 *
 * What it gives. nearfile_hdf5_set puts the driver and a file into a file access property list, for H5Fopen with H5F_ACC_RDONLY, and
 *   with properties of one's own; the name given to H5Fopen is for messages only. nearfile_hdf5_open does both. Each opening is a
 *   file of its own to HDF5. Writing, and links to files of other names, are refused.
 * Ownership. The property list, each copy of it, and each open HDF5 file hold a nearfile_dup, and close it with themselves.
 * Threads. As the HDF5 library's: one at a time, unless it was built thread-safe.
 * Forks. A file opened before fork() can be read in the child.
 * Errors. A read that fails is an HDF5 failure with H5E_READERROR and nearfile's reason on its error stack; nearfile_last_error on the
 *   same thread has the source's code.
 */
#ifndef NEARFILE_HDF5_H
#define NEARFILE_HDF5_H

#include <nearfile.h>

#include <hdf5.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Makes a file access property list open this file. 0 or more, or negative. */
static inline herr_t nearfile_hdf5_set(hid_t access, const nearfile_file *file);

/* Opens it read-only. An HDF5 file for H5Fclose, or negative. */
static inline hid_t nearfile_hdf5_open(const nearfile_file *file, const char *name);

/* ---- Below: how it is done. ---- */

#define NEARFILE_HDF5_VALUE 20306 /* what HDF5 1.14 tells drivers apart by: any above 512 that no other driver of the program has */

/* What a property list holds. */
typedef struct nearfile_hdf5_info {
  nearfile_file *file;
} nearfile_hdf5_info;

typedef struct nearfile_hdf5_file {
  H5FD_t         base;
  nearfile_file *file;
  haddr_t        end; /* of what HDF5 addresses */
} nearfile_hdf5_file;

static inline herr_t nearfile_hdf5_fails(hid_t minor, const char *what) {
  nearfile_error error;
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;
  nearfile_last_error(&error);
  H5Epush2(H5E_DEFAULT, __FILE__, "nearfile", __LINE__, H5E_ERR_CLS, H5E_VFL, minor, "%s: %s", what, error.message);
  return -1;
}

static inline void *nearfile_hdf5_copy(const void *arg) {
  nearfile_hdf5_info *copy = (nearfile_hdf5_info *)calloc(1, sizeof *copy);
  if (copy != NULL && nearfile_dup(((const nearfile_hdf5_info *)arg)->file, &copy->file) != NEARFILE_OK) {
    free(copy);
    copy = NULL;
  }
  return copy;
}

static inline herr_t nearfile_hdf5_free(void *arg) {
  nearfile_close(((nearfile_hdf5_info *)arg)->file);
  free(arg);
  return 0;
}

static inline void *nearfile_hdf5_get(H5FD_t *file) {
  nearfile_hdf5_info info;
  info.file = ((nearfile_hdf5_file *)file)->file;
  return nearfile_hdf5_copy(&info);
}

static inline H5FD_t *nearfile_hdf5_open_file(const char *name, unsigned flags, hid_t access, haddr_t max_address) {
  const nearfile_hdf5_info *info = (const nearfile_hdf5_info *)H5Pget_driver_info(access);
  nearfile_hdf5_file *mine;
  (void)name, (void)max_address;
  if (info == NULL) return NULL;
  if ((flags & (H5F_ACC_RDWR | H5F_ACC_TRUNC | H5F_ACC_CREAT | H5F_ACC_EXCL)) != 0) {
    H5Epush2(H5E_DEFAULT, __FILE__, "nearfile", __LINE__, H5E_ERR_CLS, H5E_VFL, H5E_CANTOPENFILE, "a near copy is opened read-only");
    return NULL;
  }
  mine = (nearfile_hdf5_file *)calloc(1, sizeof *mine);
  if (mine != NULL && nearfile_dup(info->file, &mine->file) != NEARFILE_OK) {
    nearfile_hdf5_fails(H5E_CANTOPENFILE, "nearfile_dup");
    free(mine);
    mine = NULL;
  }
  return (H5FD_t *)mine;
}

static inline herr_t nearfile_hdf5_close(H5FD_t *file) {
  nearfile_close(((nearfile_hdf5_file *)file)->file);
  free(file);
  return 0;
}

static inline int nearfile_hdf5_compare(const H5FD_t *one, const H5FD_t *other) {
  uintptr_t a = (uintptr_t)one, b = (uintptr_t)other;
  return a < b ? -1 : a > b;
}

static inline herr_t nearfile_hdf5_query(const H5FD_t *file, unsigned long *out_flags) {
  (void)file; /* HDF5 may ask without a file */
  *out_flags = H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE;
#ifdef H5FD_FEAT_DEFAULT_VFD_COMPATIBLE
  *out_flags |= H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
#endif
  return 0;
}

static inline haddr_t nearfile_hdf5_get_eoa(const H5FD_t *file, H5FD_mem_t type) {
  (void)type;
  return ((const nearfile_hdf5_file *)file)->end;
}

static inline herr_t nearfile_hdf5_set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t end) {
  (void)type;
  ((nearfile_hdf5_file *)file)->end = end;
  return 0;
}

static inline haddr_t nearfile_hdf5_get_eof(const H5FD_t *file, H5FD_mem_t type) {
  (void)type;
  return (haddr_t)nearfile_size(((const nearfile_hdf5_file *)file)->file);
}

static inline herr_t nearfile_hdf5_read(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t offset, size_t len, void *buf) {
  int64_t n = nearfile_pread(((nearfile_hdf5_file *)file)->file, buf, len, offset);
  (void)type, (void)transfer;
  if (n < 0) return nearfile_hdf5_fails(H5E_READERROR, "nearfile_pread");
  memset((char *)buf + n, 0, len - (size_t)n); /* past the end there are zeros, as HDF5's own drivers have it */
  return 0;
}

static inline herr_t nearfile_hdf5_write(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t offset, size_t len, const void *buf) {
  (void)file, (void)type, (void)transfer, (void)offset, (void)len, (void)buf;
  H5Epush2(H5E_DEFAULT, __FILE__, "nearfile", __LINE__, H5E_ERR_CLS, H5E_VFL, H5E_WRITEERROR, "a near copy cannot be written");
  return -1;
}

static inline herr_t nearfile_hdf5_lock(H5FD_t *file, hbool_t write) {
  (void)file, (void)write;
  return 0;
}

static inline herr_t nearfile_hdf5_unlock(H5FD_t *file) {
  (void)file;
  return 0;
}

/* The driver, once it is registered: until HDF5 is closed, since it closes files with a driver that it has just let go of. */
static inline hid_t *nearfile_hdf5_registered(void) {
  static hid_t driver = -1;
  return &driver;
}

static inline herr_t nearfile_hdf5_terminate(void) {
  *nearfile_hdf5_registered() = -1;
  return 0;
}

static inline hid_t nearfile_hdf5_driver(void) {
  H5FD_class_t driver;
  int type;
  if (*nearfile_hdf5_registered() >= 0) return *nearfile_hdf5_registered();
  memset(&driver, 0, sizeof driver);
#if H5_VERSION_GE(1, 13, 0)
  driver.version = H5FD_CLASS_VERSION;
  driver.value = NEARFILE_HDF5_VALUE;
#endif
  driver.name = "nearfile";
  driver.maxaddr = (haddr_t)INT64_MAX;
  driver.fc_degree = H5F_CLOSE_WEAK;
  driver.terminate = nearfile_hdf5_terminate;
  driver.fapl_size = sizeof(nearfile_hdf5_info);
  driver.fapl_get = nearfile_hdf5_get;
  driver.fapl_copy = nearfile_hdf5_copy;
  driver.fapl_free = nearfile_hdf5_free;
  driver.open = nearfile_hdf5_open_file;
  driver.close = nearfile_hdf5_close;
  driver.cmp = nearfile_hdf5_compare;
  driver.query = nearfile_hdf5_query;
  driver.get_eoa = nearfile_hdf5_get_eoa;
  driver.set_eoa = nearfile_hdf5_set_eoa;
  driver.get_eof = nearfile_hdf5_get_eof;
  driver.read = nearfile_hdf5_read;
  driver.write = nearfile_hdf5_write;
  driver.lock = nearfile_hdf5_lock;
  driver.unlock = nearfile_hdf5_unlock;
  for (type = 0; type < (int)H5FD_MEM_NTYPES; type++) driver.fl_map[type] = H5FD_MEM_SUPER; /* one free list: nothing is allocated */
  return *nearfile_hdf5_registered() = H5FDregister(&driver);
}

static inline herr_t nearfile_hdf5_set(hid_t access, const nearfile_file *file) {
  nearfile_hdf5_info info;
  hid_t driver = nearfile_hdf5_driver();
  herr_t result = -1;
  if (driver < 0 || nearfile_dup(file, &info.file) != NEARFILE_OK) return -1;
  result = H5Pset_driver(access, driver, &info);
  nearfile_close(info.file);
  return result;
}

static inline hid_t nearfile_hdf5_open(const nearfile_file *file, const char *name) {
  hid_t access = H5Pcreate(H5P_FILE_ACCESS), opened = -1;
  if (access >= 0 && nearfile_hdf5_set(access, file) >= 0) opened = H5Fopen(name, H5F_ACC_RDONLY, access);
  if (access >= 0) H5Pclose(access);
  return opened;
}

#ifdef __cplusplus
}
#endif
#endif
