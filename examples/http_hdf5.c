/* Prints the first numbers of a dataset in an HDF5 file on an HTTP server: http_hdf5 URL CACHE_DIR DATASET [COUNT]. */
#include <inttypes.h>
#include <nearfile/curl.h>
#include <nearfile/hdf5.h>

static int fail(const char *what) {
  fprintf(stderr, "http_hdf5: %s\n", what);
  return 1;
}

/* The first `count` elements, in the order in which they lie. */
static int print(hid_t set, hsize_t count) {
  hid_t space = H5Dget_space(set);
  hsize_t size[H5S_MAX_RANK], start[H5S_MAX_RANK] = {0}, block[H5S_MAX_RANK];
  int rank = H5Sget_simple_extent_dims(space, size, NULL);
  if (rank < 1) return fail("the dataset has no dimensions");
  for (int i = 0; i < rank; i++) block[i] = 1;
  block[rank - 1] = count = count < size[rank - 1] ? count : size[rank - 1];
  double *values = malloc((size_t)count * sizeof *values);
  hid_t memory = H5Screate_simple(1, &count, NULL);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, block, NULL);
  if (H5Dread(set, H5T_NATIVE_DOUBLE, memory, space, H5P_DEFAULT, values) < 0) return fail("not read: HDF5 says above why");
  for (hsize_t i = 0; i < count; i++) printf("%g\n", values[i]);
  free(values);
  H5Sclose(memory), H5Sclose(space);
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 4 || argc > 5) return fprintf(stderr, "usage: http_hdf5 URL CACHE_DIR DATASET [COUNT]\n"), 2;
  char why[1024];
  nearfile_cache_options small_pages = {.struct_size = sizeof small_pages, .page_size = 64 << 10};
  nearfile_cache *cache;
  nearfile_file *file;
  int32_t status = nearfile_cache_open(argv[2], &small_pages, &cache);
  if (status == 0) status = nearfile_curl_open(cache, argv[1], NULL, NULL, &file);
  if (status != 0) return fail(nearfile_curl_message(status, why, sizeof why));

  hid_t data = nearfile_hdf5_open(file, argv[1]);
  hid_t set = data < 0 ? data : H5Dopen2(data, argv[3], H5P_DEFAULT);
  if (set < 0) return fail("no such dataset: HDF5 says above why");
  if (print(set, argc > 4 ? strtoull(argv[4], NULL, 10) : 10) != 0) return 1;
  H5Dclose(set);
  H5Fclose(data);

  nearfile_stats stats = {.struct_size = sizeof stats};
  nearfile_get_stats(file, &stats);
  fprintf(stderr, "source_reads=%" PRIu64 " source_bytes=%" PRIu64 "\n", stats.source_reads, stats.source_bytes);
  nearfile_close(file);
  nearfile_cache_close(cache);
  return 0;
}
