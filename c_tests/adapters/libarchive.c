// nearfile/libarchive.h: archives on a server, read by libarchive through the near copy.
#include "../nf_test.h"
#include "far_server.h"

#include <nearfile/libarchive.h>

#include <archive_entry.h>

enum { PAGE = 32 << 10, MEMBERS = 12, MEMBER = 200007 };

// MEMBERS files, each of a version of its own, in the archive that `format` makes (pax, zip, gnutar filtered, ...).
static void publish_archive(const char *name, int (*format)(struct archive *), int (*filter)(struct archive *)) {
  char path[NF_PATH];
  struct archive *archive = archive_write_new();
  void *content = malloc(MEMBER);
  MUST(format(archive) == ARCHIVE_OK && filter(archive) == ARCHIVE_OK);
  MUST(archive_write_open_filename(archive, far_path(path, name)) == ARCHIVE_OK);
  for (uint64_t i = 0; i < MEMBERS; i++) {
    char member[32];
    struct archive_entry *entry = archive_entry_new();
    snprintf(member, sizeof member, "member %d", (int)i);
    archive_entry_set_pathname(entry, member);
    archive_entry_set_size(entry, MEMBER);
    archive_entry_set_filetype(entry, AE_IFREG);
    MUST(archive_write_header(archive, entry) == ARCHIVE_OK);
    nf_fill(content, MEMBER, 0, i);
    MUST(archive_write_data(archive, content, MEMBER) == MEMBER);
    archive_entry_free(entry);
  }
  free(content);
  MUST(archive_write_free(archive) == ARCHIVE_OK);
}

static struct archive *new_archive(void) {
  struct archive *archive = archive_read_new();
  MUST(archive_read_support_format_all(archive) == ARCHIVE_OK);
  archive_read_support_filter_all(archive); // warns where a filter is a program of its own
  return archive;
}

static void check_member(struct archive *archive, uint64_t i) {
  unsigned char *buf = malloc(MEMBER + 1);
  la_ssize_t n, got = 0;
  while ((n = archive_read_data(archive, buf + got, (size_t)(MEMBER + 1 - got))) > 0) got += n;
  CHECK_EQ(got, MEMBER);
  CHECK_BYTES(buf, MEMBER, 0, i);
  free(buf);
}

// Reads the members whose number is divisible by `step`, and skips the others.
static void read_archive(const char *name, uint64_t step) {
  struct archive *archive = new_archive();
  struct archive_entry *entry;
  nearfile_file *file = far_open_near(name, PAGE);
  uint64_t i = 0;
  if (nearfile_archive_open(archive, file) != ARCHIVE_OK) nf_fail(__FILE__, __LINE__, archive_error_string(archive));
  nearfile_close(file); // the archive has a handle of its own
  for (; archive_read_next_header(archive, &entry) == ARCHIVE_OK; i++) {
    char member[32];
    snprintf(member, sizeof member, "member %d", (int)i);
    CHECK(strcmp(archive_entry_pathname(entry), member) == 0);
    if (i % step == 0) check_member(archive, i);
  }
  CHECK_EQ(i, MEMBERS);
  CHECK_EQ(archive_read_free(archive), ARCHIVE_OK);
}

static void read_tar(void) { read_archive("a.tar", 1); }
static void read_some_of_tar(void) { read_archive("some.tar", 6); }
static void read_compressed(void) { read_archive("a.tar.gz", 1); }
static void read_zip(void) { read_archive("a.zip", 1); }

static void archives_cold_and_warm(void) {
  publish_archive("a.tar", archive_write_set_format_pax_restricted, archive_write_add_filter_none);
  COLD_THEN_WARM(read_tar, "/far/a.tar ");
  publish_archive("a.tar.gz", archive_write_set_format_gnutar, archive_write_add_filter_gzip);
  COLD_THEN_WARM(read_compressed, "/far/a.tar.gz");
  publish_archive("a.zip", archive_write_set_format_zip, archive_write_add_filter_none); // seeks
  COLD_THEN_WARM(read_zip, "/far/a.zip");
}

static void skipped_members_are_not_fetched(void) {
  publish_archive("some.tar", archive_write_set_format_pax_restricted, archive_write_add_filter_none);
  // Of 74 pages: 2 members of 7, and 3 with each header that is looked at.
  CHECK(COLD_THEN_WARM(read_some_of_tar, "/far/some.tar") < 2 * 8 + 12 * 3);
}

static void a_forked_child_has_a_position_of_its_own(void) {
  struct archive_entry *entry;
  publish_archive("forked.tar", archive_write_set_format_pax_restricted, archive_write_add_filter_none);
  nearfile_file *file = far_open_near("forked.tar", PAGE);
  struct archive *archive = new_archive();
  CHECK_EQ(nearfile_archive_open(archive, file), ARCHIVE_OK);
  CHECK_EQ(archive_read_next_header(archive, &entry), ARCHIVE_OK);
  pid_t child = nf_fork(60);
  check_member(archive, 0);
  CHECK_EQ(archive_read_next_header(archive, &entry), ARCHIVE_OK);
  check_member(archive, 1);
  if (child == 0) nf_child_ends();
  CHECK_CHILD(child);
  archive_read_free(archive);
  nearfile_close(file);
}

static void failures_are_told(void) {
  char path[NF_PATH];
  struct archive_entry *entry;
  publish_archive("failing.tar", archive_write_set_format_pax_restricted, archive_write_add_filter_none);
  nearfile_file *file = far_open_near("failing.tar", PAGE);
  struct archive *archive = new_archive();
  CHECK_EQ(nearfile_archive_open(archive, file), ARCHIVE_OK);
  CHECK_EQ(archive_read_next_header(archive, &entry), ARCHIVE_OK);
  MUST(unlink(far_path(path, "failing.tar")) == 0);
  CHECK_EQ(archive_read_data_skip(archive), ARCHIVE_OK);
  CHECK_EQ(archive_read_next_header(archive, &entry), ARCHIVE_FATAL);
  CHECK_EQ(archive_errno(archive), EIO);
  CHECK(strstr(archive_error_string(archive), "read_at returned 404") != NULL);
  CHECK_EQ(nf_last_error().source_code, 404);
  archive_read_free(archive);
  nearfile_close(file);

  archive = new_archive();
  CHECK_EQ(nearfile_archive_open(archive, NULL), ARCHIVE_FATAL);
  CHECK_EQ(archive_read_free(archive), ARCHIVE_OK);
  far_publish("noise", 100000, 1);
  file = far_open_near("noise", PAGE);
  archive = new_archive();
  CHECK_EQ(nearfile_archive_open(archive, file), ARCHIVE_FATAL);
  CHECK(strstr(archive_error_string(archive), "Unrecognized") != NULL);
  CHECK_EQ(nearfile_archive_open(archive, file), ARCHIVE_FATAL); // it is past being opened: refused, and nothing is leaked
  archive_read_free(archive);
  nearfile_close(file);
}

static void the_example_runs(void) {
  publish_archive("example.tar", archive_write_set_format_pax_restricted, archive_write_add_filter_none);
  CHECK_EXAMPLE("http_archive", "example.tar", "", "200007  member 11\n");
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(archives_cold_and_warm),
      NF_CASE(skipped_members_are_not_fetched),
      NF_CASE(a_forked_child_has_a_position_of_its_own),
      NF_CASE(failures_are_told),
      NF_CASE(the_example_runs),
  };
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
