// nearfile/libzip.h: a zip on a server, read by libzip through the near copy.
#include "../nf_test.h"
#include "far_server.h"

#include <nearfile/libzip.h>

enum { PAGE = 4096, MEMBERS = 40, MEMBER = 10007 };

// MEMBERS files, each of a version of its own; every other one is deflated.
static void publish_zip(const char *name) {
  char path[NF_PATH], member[32];
  int failed = 0;
  zip_t *zip = zip_open(far_path(path, name), ZIP_CREATE | ZIP_TRUNCATE, &failed);
  MUST(zip != NULL);
  for (uint64_t i = 0; i < MEMBERS; i++) {
    void *content = malloc(MEMBER);
    nf_fill(content, MEMBER, 0, i);
    zip_source_t *source = zip_source_buffer(zip, content, MEMBER, 1);
    snprintf(member, sizeof member, "member %d", (int)i);
    zip_int64_t index = zip_file_add(zip, member, source, 0);
    MUST(index == (zip_int64_t)i);
    MUST(zip_set_file_compression(zip, (zip_uint64_t)index, i % 2 ? ZIP_CM_DEFLATE : ZIP_CM_STORE, 1) == 0);
  }
  MUST(zip_close(zip) == 0);
}

static void check_member(zip_t *zip, uint64_t i) {
  unsigned char buf[MEMBER + 1];
  zip_file_t *member = zip_fopen_index(zip, i, 0);
  MUST(member != NULL);
  CHECK_EQ(zip_fread(member, buf, sizeof buf), MEMBER);
  CHECK_EQ(zip_fread(member, buf, 1), 0); // the end: libzip has compared the CRC
  CHECK_BYTES(buf, MEMBER, 0, i);
  CHECK_EQ(zip_fclose(member), 0);
}

static zip_t *open_zip(const nearfile_file *file) {
  int failed = -1;
  zip_t *zip = nearfile_zip_open(file, ZIP_CHECKCONS, &failed);
  MUST(zip != NULL);
  CHECK_EQ(failed, 0);
  CHECK_EQ(zip_get_num_entries(zip, 0), MEMBERS);
  return zip;
}

static void read_all(void) {
  nearfile_file *file = far_open_near("members.zip", PAGE);
  zip_t *zip = open_zip(file);
  nearfile_close(file); // the zip has a handle of its own
  for (uint64_t i = MEMBERS; i-- > 0;) check_member(zip, i);
  zip_discard(zip);
}

static void read_one(void) {
  nearfile_file *file = far_open_near("few.zip", PAGE);
  zip_t *zip = nearfile_zip_open(file, 0, NULL);
  MUST(zip != NULL);
  check_member(zip, 20);
  zip_discard(zip);
  CHECK(nf_stats(file).pages_fetched < 25);
  nearfile_close(file);
}

static void a_zip_cold_and_warm(void) {
  publish_zip("members.zip");
  COLD_THEN_WARM(read_all, "/far/members.zip");
}

static void one_member_reads_few_pages(void) {
  publish_zip("few.zip");
  CHECK(COLD_THEN_WARM(read_one, "/far/few.zip") < 25); // of 99: the last 64 KiB, and its own
}

static void *read_members(void *file) {
  zip_t *zip = open_zip(file);
  for (uint64_t i = 0; i < MEMBERS; i++) check_member(zip, i * 7 % MEMBERS);
  zip_discard(zip);
  return NULL;
}

static void threads_with_a_zip_each_and_a_forked_child(void) {
  pthread_t threads[4];
  publish_zip("threads.zip");
  nearfile_file *file = far_open_near("threads.zip", PAGE);
  for (int i = 0; i < 4; i++) threads[i] = nf_thread(read_members, file);
  for (int i = 0; i < 4; i++) nf_join(threads[i]);
  zip_t *zip = open_zip(file);
  CHECK_EQ(nearfile_discard(file, 0, (uint64_t)nearfile_size(file)), 0); // the child misses
  pid_t child = nf_fork(60);
  for (uint64_t i = 0; i < MEMBERS; i++) check_member(zip, i);
  if (child == 0) nf_child_ends();
  CHECK_CHILD(child);
  zip_discard(zip);
  nearfile_close(file);
}

static void failures_are_told(void) {
  char path[NF_PATH];
  publish_zip("failing.zip");
  nearfile_file *file = far_open_near("failing.zip", PAGE);
  zip_t *zip = open_zip(file);
  CHECK_EQ(nearfile_discard(file, 0, (uint64_t)nearfile_size(file)), 0);
  MUST(unlink(far_path(path, "failing.zip")) == 0);
  zip_file_t *member = zip_fopen_index(zip, 20, 0); // libzip reads a member's header here
  CHECK(member == NULL);
  CHECK_EQ(zip_error_code_zip(zip_get_error(zip)), ZIP_ER_READ);
  CHECK_EQ(nf_last_error().source_code, 404);
  zip_discard(zip);
  nearfile_close(file);

  int failed = 0;
  far_publish("no.zip", 100000, 1);
  file = far_open_near("no.zip", PAGE);
  CHECK(nearfile_zip_open(file, 0, &failed) == NULL);
  CHECK_EQ(failed, ZIP_ER_NOZIP);
  nearfile_close(file);
  CHECK(nearfile_zip_open(NULL, 0, &failed) == NULL);
  CHECK_EQ(failed, ZIP_ER_INVAL);
}

static void the_example_runs(void) {
  publish_zip("example.zip");
  CHECK_EXAMPLE("http_zip", "example.zip", "100 1", "members=100 bytes=1000700 ");
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(a_zip_cold_and_warm),
      NF_CASE(one_member_reads_few_pages),
      NF_CASE(threads_with_a_zip_each_and_a_forked_child),
      NF_CASE(failures_are_told),
      NF_CASE(the_example_runs),
  };
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
