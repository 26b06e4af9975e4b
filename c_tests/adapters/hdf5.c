// nearfile/hdf5.h: an HDF5 file on a server, read through the near copy.
#include "../nf_test.h"
#include "far_server.h"

#include <nearfile/hdf5.h>

enum { PAGE = 4096, ROWS = 64, COLUMNS = 4096 }; // a row is a chunk of 16 KiB

static int32_t value(int row, int column, int version) { return row * 1000003 + column * 7 + version; }

static void publish_hdf5(const char *name, int version) {
  char path[NF_PATH];
  hsize_t size[2] = {ROWS, COLUMNS}, chunk[2] = {1, COLUMNS};
  static int32_t values[ROWS][COLUMNS];
  for (int row = 0; row < ROWS; row++) {
    for (int column = 0; column < COLUMNS; column++) values[row][column] = value(row, column, version);
  }
  hid_t file = H5Fcreate(far_path(path, name), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  hid_t group = H5Gcreate2(file, "/weather", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  hid_t space = H5Screate_simple(2, size, NULL), creation = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(creation, 2, chunk);
  H5Pset_shuffle(creation);
  hid_t set = H5Dcreate2(group, "rain", H5T_STD_I32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  MUST(set >= 0 && H5Dwrite(set, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
  H5Dclose(set), H5Pclose(creation), H5Sclose(space), H5Gclose(group);
  MUST(H5Fclose(file) >= 0);
  struct timespec times[2] = {{.tv_sec = 1700000000 + version}, {.tv_sec = 1700000000 + version}};
  MUST(utimensat(AT_FDCWD, path, times, 0) == 0);
}

static herr_t read_row(hid_t file, int row, int32_t out[COLUMNS]) {
  hsize_t start[2] = {(hsize_t)row, 0}, count[2] = {1, COLUMNS};
  hid_t set = H5Dopen2(file, "/weather/rain", H5P_DEFAULT);
  if (set < 0) return -1;
  hid_t space = H5Dget_space(set), memory = H5Screate_simple(2, count, NULL);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL);
  herr_t result = H5Dread(set, H5T_NATIVE_INT32, memory, space, H5P_DEFAULT, out);
  H5Sclose(memory), H5Sclose(space), H5Dclose(set);
  return result;
}

static void check_row(hid_t file, int row, int version) {
  int32_t values[COLUMNS] = {0};
  CHECK(read_row(file, row, values) >= 0);
  for (int column = 0; column < COLUMNS; column++) {
    if (values[column] == value(row, column, version)) continue;
    CHECK_EQ(values[column], value(row, column, version));
    return;
  }
}

static hid_t open_hdf5(const nearfile_file *file, const char *name) {
  hid_t opened = nearfile_hdf5_open(file, name);
  MUST(opened >= 0);
  return opened;
}

static void read_all(void) {
  nearfile_file *file = far_open_near("all.h5", PAGE);
  hid_t data = open_hdf5(file, "all.h5");
  nearfile_close(file); // HDF5 has a handle of its own
  for (int row = 0; row < ROWS; row++) check_row(data, row, 1);
  CHECK(H5Fclose(data) >= 0);
}

static void read_one(void) {
  nearfile_file *file = far_open_near("few.h5", PAGE);
  hid_t data = open_hdf5(file, "few.h5");
  check_row(data, 17, 1);
  CHECK(H5Fclose(data) >= 0);
  nearfile_close(file);
}

static void a_file_cold_and_warm(void) {
  publish_hdf5("all.h5", 1);
  CHECK(COLD_THEN_WARM(read_all, "/far/all.h5") > ROWS * COLUMNS * 4 / PAGE);
}

static void one_row_reads_few_pages(void) {
  publish_hdf5("few.h5", 1);
  CHECK(COLD_THEN_WARM(read_one, "/far/few.h5") < 16); // of 260
}

static void openings_property_lists_and_a_forked_child(void) {
  publish_hdf5("many.h5", 1);
  nearfile_file *file = far_open_near("many.h5", PAGE);
  hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  CHECK(nearfile_hdf5_set(access, file) >= 0);
  hid_t copy = H5Pcopy(access);
  H5Pclose(access);
  nearfile_close(file);
  hid_t one = H5Fopen("one", H5F_ACC_RDONLY, copy), two = H5Fopen("two", H5F_ACC_RDONLY, copy);
  MUST(one >= 0 && two >= 0);
  hid_t of_one = H5Fget_access_plist(one);
  H5Pclose(copy);
  check_row(one, 5, 1);
  CHECK(H5Fclose(one) >= 0);
  check_row(two, 6, 1);
  hid_t three = H5Fopen("three", H5F_ACC_RDONLY, of_one);
  MUST(three >= 0);
  H5Pclose(of_one);
  pid_t child = nf_fork(60);
  for (int row = 20; row < 30; row++) check_row(three, row, 1);
  if (child == 0) nf_child_ends();
  CHECK_CHILD(child);
  CHECK(H5Fclose(two) >= 0);
  CHECK(H5Fclose(three) >= 0);
  // HDF5 closed and begun again: the driver is registered again.
  H5close();
  file = far_open_near("many.h5", PAGE);
  one = open_hdf5(file, "one");
  check_row(one, 40, 1);
  CHECK(H5Fclose(one) >= 0);
  nearfile_close(file);
}

static herr_t find_words(unsigned n, const H5E_error2_t *error, void *found) {
  (void)n;
  if (strstr(error->desc, "read_at returned 412") != NULL) *(bool *)found = true;
  return 0;
}

static void failures_are_told(void) {
  int32_t values[COLUMNS];
  bool found = false;
  publish_hdf5("changing.h5", 1);
  nearfile_file *file = far_open_near("changing.h5", PAGE);
  hid_t data = open_hdf5(file, "changing.h5");
  check_row(data, 3, 1);
  publish_hdf5("changing.h5", 2);
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  check_row(data, 3, 1);
  CHECK(read_row(data, 60, values) < 0);
  CHECK_EQ(nf_last_error().source_code, 412);
  // The stack of the call that failed, and not of those that tidied up after it.
  hid_t set = H5Dopen2(data, "/weather/rain", H5P_DEFAULT);
  static int32_t all[ROWS][COLUMNS];
  CHECK(H5Dread(set, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, all) < 0);
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, find_words, &found);
  CHECK(found);
  H5Dclose(set);
  H5Fclose(data);
  nearfile_file *next = far_open_near("changing.h5", PAGE);
  data = open_hdf5(next, "changing.h5");
  check_row(data, 60, 2);
  CHECK(H5Gcreate2(data, "/new", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT) < 0);
  H5Fclose(data);
  hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  CHECK(nearfile_hdf5_set(access, next) >= 0);
  CHECK(H5Fopen("changing.h5", H5F_ACC_RDWR, access) < 0);
  CHECK(H5Fcreate("changing.h5", H5F_ACC_TRUNC, H5P_DEFAULT, access) < 0);
  CHECK(nearfile_hdf5_set(access, NULL) < 0);
  H5Pclose(access);
  far_publish("noise", 100000, 1);
  nearfile_file *noise = far_open_near("noise", PAGE);
  CHECK(nearfile_hdf5_open(noise, "noise") < 0);
  nearfile_close(file), nearfile_close(next), nearfile_close(noise);
}

static void the_example_runs(void) {
  publish_hdf5("example.h5", 1);
  CHECK_EXAMPLE("http_hdf5", "example.h5", "/weather/rain 3", "1\n8\n15\n");
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(a_file_cold_and_warm),
      NF_CASE(one_row_reads_few_pages),
      NF_CASE(openings_property_lists_and_a_forked_child),
      NF_CASE(failures_are_told),
      NF_CASE(the_example_runs),
  };
  printf("HDF5 %s\n", H5_VERS_INFO);
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
