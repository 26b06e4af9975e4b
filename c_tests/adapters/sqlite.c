// nearfile/sqlite.h: real databases on a server, queried through the near copy by connections of several threads and processes.
#include "../nf_test.h"
#include "far_server.h"

#include <nearfile/sqlite.h>

enum { PAGE = 4096, ROWS = 8000 };

static void execute(sqlite3 *db, const char *sql) {
  char *error = NULL;
  if (sqlite3_exec(db, sql, NULL, NULL, &error) != SQLITE_OK) nf_fail(__FILE__, __LINE__, error);
  sqlite3_free(error);
}

// About 1 MB: rows with an index over a column in another order. Each version has values and a time of its own.
static void publish_database(const char *name, const char *journal_mode, int version) {
  char path[NF_PATH], sql[400];
  sqlite3 *db = NULL;
  unlink(far_path(path, name));
  MUST(sqlite3_open(path, &db) == SQLITE_OK);
  snprintf(sql, sizeof sql, "PRAGMA journal_mode=%s", journal_mode);
  execute(db, sql);
  execute(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, value INTEGER)");
  snprintf(sql, sizeof sql,
           "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) "
           "INSERT INTO t SELECT i, printf('%%064d', i * 7919 %% 1000003), i * %d FROM n",
           ROWS, version);
  execute(db, sql);
  execute(db, "CREATE INDEX t_name ON t(name)");
  MUST(sqlite3_close(db) == SQLITE_OK);
  struct timespec times[2] = {{.tv_sec = 1700000000 + version}, {.tv_sec = 1700000000 + version}};
  MUST(utimensat(AT_FDCWD, path, times, 0) == 0);
}

static sqlite3 *open_database(const char *name, const char *vfs) {
  sqlite3 *db = NULL;
  int code = sqlite3_open_v2(name, &db, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, vfs);
  if (code != SQLITE_OK) fprintf(stderr, "%s: %s: %s\n", name, sqlite3_errmsg(db), nearfile_sqlite_message());
  MUST(code == SQLITE_OK);
  return db;
}

// The number that a query answers with; -1 and the code where it fails.
static int64_t ask(sqlite3 *db, const char *sql, int *out_code) {
  sqlite3_stmt *statement = NULL;
  int64_t answer = -1;
  int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
  if (code == SQLITE_OK) code = sqlite3_step(statement);
  if (code == SQLITE_ROW) answer = sqlite3_column_int64(statement, 0);
  if (out_code != NULL) *out_code = code;
  else if (code != SQLITE_ROW) nf_fail(__FILE__, __LINE__, sqlite3_errmsg(db));
  sqlite3_finalize(statement);
  return answer;
}

static void check_row(sqlite3 *db, int64_t row, int version) {
  char sql[200];
  snprintf(sql, sizeof sql, "SELECT value FROM t WHERE name = printf('%%064d', %lld * 7919 %% 1000003)", (long long)row);
  CHECK_EQ(ask(db, sql, NULL), row * version);
}

static nearfile_sqlite *vfs_of(const char *name, nearfile_file *file) {
  nearfile_sqlite *vfs = NULL;
  MUST(nearfile_sqlite_register("near", NULL, NULL, &vfs) == SQLITE_OK);
  if (file != NULL) CHECK_EQ(nearfile_sqlite_add(vfs, name, file), SQLITE_OK);
  return vfs;
}

// ---- cold, warm, few pages ------------------------------------------------------------------------------------------------

static void read_all(void) {
  nearfile_file *file = far_open_near("all.db", PAGE);
  nearfile_sqlite *vfs = vfs_of("all.db", file);
  nearfile_close(file); // the set has a handle of its own
  sqlite3 *db = open_database("all.db", "near");
  sqlite3_stmt *statement = NULL;
  MUST(sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &statement, NULL) == SQLITE_OK);
  CHECK_EQ(sqlite3_step(statement), SQLITE_ROW);
  CHECK(strcmp((const char *)sqlite3_column_text(statement, 0), "ok") == 0);
  sqlite3_finalize(statement);
  CHECK_EQ(ask(db, "SELECT sum(value) FROM t", NULL), (int64_t)ROWS * (ROWS + 1) / 2);
  CHECK_EQ(sqlite3_close(db), SQLITE_OK);
  nearfile_sqlite_unregister(vfs);
}

static void read_one_row(void) {
  nearfile_file *file = far_open_near("few.db", PAGE);
  nearfile_sqlite *vfs = vfs_of("few.db", file);
  sqlite3 *db = open_database("few.db", "near");
  check_row(db, 777, 1);
  CHECK_EQ(sqlite3_close(db), SQLITE_OK);
  nearfile_sqlite_unregister(vfs);
  nearfile_close(file);
}

static void a_database_cold_and_warm(void) {
  publish_database("all.db", "DELETE", 1);
  COLD_THEN_WARM(read_all, "/far/all.db");
}

static void a_query_of_few_pages_reads_few_pages(void) {
  publish_database("few.db", "DELETE", 1);
  CHECK(COLD_THEN_WARM(read_one_row, "/far/few.db") <= 10); // schema, and two trees of three levels
}

// ---- threads, names -------------------------------------------------------------------------------------------------------

static void *query(void *number) {
  uint64_t random = (uint64_t)(uintptr_t)number;
  sqlite3 *db = open_database("shared.db", "near");
  for (int i = 0; i < 200; i++) check_row(db, 1 + (int64_t)nf_below(&random, ROWS), 1);
  CHECK_EQ(sqlite3_close(db), SQLITE_OK);
  return NULL;
}

static void threads_with_connections_of_their_own(void) {
  pthread_t threads[6];
  publish_database("shared.db", "DELETE", 1);
  nearfile_file *file = far_open_near("shared.db", PAGE);
  uint64_t pages = ((uint64_t)nearfile_size(file) + PAGE - 1) / PAGE;
  nearfile_sqlite *vfs = vfs_of("shared.db", file);
  for (uintptr_t i = 0; i < 6; i++) threads[i] = nf_thread(query, (void *)i);
  for (int i = 0; i < 6; i++) nf_join(threads[i]);
  CHECK_EQ(nf_stats(file).source_reads, nf_stats(file).pages_fetched);
  CHECK(nf_stats(file).pages_fetched <= pages);
  pid_t child = nf_fork(60); // opens its own connection over the set
  if (child == 0) {
    query((void *)7);
    nf_child_ends();
  }
  CHECK_CHILD(child);
  nearfile_sqlite_unregister(vfs);
  nearfile_close(file);
}

static nearfile_file *find(void *asked, const char *name) {
  atomic_fetch_add((atomic_int *)asked, 1);
  return strncmp(name, "found", 5) == 0 ? far_open_near(name, PAGE) : NULL;
}

static void names_from_a_callback_and_attached(void) {
  atomic_int asked = 0;
  nearfile_sqlite *vfs = NULL, *other = NULL;
  publish_database("found-1.db", "DELETE", 1);
  publish_database("found-2.db", "DELETE", 2);
  MUST(nearfile_sqlite_register("near", find, &asked, &vfs) == SQLITE_OK);
  CHECK_EQ(nearfile_sqlite_register("near", find, &asked, &other), SQLITE_MISUSE);
  sqlite3 *db = open_database("file:found-1.db", "near"), *none = NULL;
  execute(db, "ATTACH 'file:found-2.db?vfs=near' AS two");
  CHECK_EQ(ask(db, "SELECT sum(a.value + b.value) FROM main.t a JOIN two.t b USING (id) WHERE id <= 100", NULL), 3 * 5050);
  CHECK_EQ(asked, 2);
  CHECK_EQ(sqlite3_open_v2("absent.db", &none, SQLITE_OPEN_READONLY, "near"), SQLITE_CANTOPEN);
  CHECK(strstr(nearfile_sqlite_message(), "absent.db: no file of this name") != NULL);
  sqlite3_close(none);
  CHECK_EQ(sqlite3_close(db), SQLITE_OK);
  nearfile_sqlite_unregister(vfs);
}

static void names_come_and_go(void) {
  publish_database("one.db", "DELETE", 1);
  publish_database("two.db", "DELETE", 2);
  nearfile_file *one = far_open_near("one.db", PAGE), *two = far_open_near("two.db", PAGE);
  nearfile_sqlite *vfs = vfs_of("name", one);
  sqlite3 *db = open_database("name", "near"), *none = NULL;
  CHECK_EQ(nearfile_sqlite_add(vfs, "name", two), SQLITE_OK);
  check_row(db, 50, 1); // opened before
  sqlite3 *next = open_database("name", "near");
  check_row(next, 50, 2);
  nearfile_sqlite_remove(vfs, "name");
  nearfile_sqlite_remove(vfs, "name");
  check_row(next, 5000, 2);
  CHECK_EQ(sqlite3_open_v2("name", &none, SQLITE_OPEN_READONLY, "near"), SQLITE_CANTOPEN);
  CHECK_EQ(nearfile_sqlite_add(vfs, "name", NULL), SQLITE_MISUSE);
  sqlite3_close(none), sqlite3_close(db), sqlite3_close(next);
  nearfile_sqlite_unregister(vfs);
  nearfile_close(one), nearfile_close(two);
}

// ---- what is refused --------------------------------------------------------------------------------------------------------

static void wal_is_refused_in_words(void) {
  publish_database("wal.db", "WAL", 1);
  nearfile_file *file = far_open_near("wal.db", PAGE);
  nearfile_sqlite *vfs = vfs_of("wal.db", file);
  sqlite3 *db = NULL;
  CHECK_EQ(sqlite3_open_v2("wal.db", &db, SQLITE_OPEN_READONLY, "near"), SQLITE_CANTOPEN);
  CHECK(strstr(nearfile_sqlite_message(), "wal.db: the database is in WAL mode") != NULL);
  sqlite3_close(db);
  nearfile_sqlite_unregister(vfs);
  nearfile_close(file);
}

static void writing_is_refused_and_sorting_is_not(void) {
  publish_database("sorted.db", "DELETE", 1);
  nearfile_file *file = far_open_near("sorted.db", PAGE);
  nearfile_sqlite *vfs = vfs_of("sorted.db", file);
  sqlite3 *db = NULL;
  int code = 0;
  // Without being told that it is read-only.
  MUST(sqlite3_open_v2("sorted.db", &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "near") == SQLITE_OK);
  ask(db, "INSERT INTO t VALUES (-1, 'x', 0)", &code);
  CHECK_EQ(code, SQLITE_READONLY);
  execute(db, "PRAGMA temp_store = FILE; PRAGMA cache_size = 10; CREATE TEMP TABLE sorted AS SELECT * FROM t ORDER BY name || id DESC");
  CHECK_EQ(ask(db, "SELECT count(DISTINCT name) FROM sorted", NULL), ROWS);
  CHECK_EQ(sqlite3_close(db), SQLITE_OK);
  nearfile_sqlite_unregister(vfs);
  nearfile_close(file);
}

static void what_cannot_be_read_is_told(void) {
  int code = 0;
  publish_database("changing.db", "DELETE", 1);
  nearfile_file *file = far_open_near("changing.db", PAGE);
  nearfile_sqlite *vfs = vfs_of("changing.db", file);
  sqlite3 *db = open_database("changing.db", "near");
  check_row(db, 100, 1);
  publish_database("changing.db", "DELETE", 3);
  check_row(db, 100, 1);
  ask(db, "SELECT sum(value) FROM t", &code);
  CHECK_EQ(sqlite3_extended_errcode(db), SQLITE_IOERR_READ);
  CHECK(strstr(nearfile_sqlite_message(), "changing.db: ") != NULL);
  CHECK_EQ(nf_last_error().source_code, 412);
  nearfile_file *next = far_open_near("changing.db", PAGE);
  CHECK_EQ(nearfile_sqlite_add(vfs, "changing.db", next), SQLITE_OK);
  sqlite3 *again = open_database("changing.db", "near");
  check_row(again, 100, 3);
  sqlite3_close(db), sqlite3_close(again);

  sqlite3 *none = NULL;
  nearfile_file *noise;
  far_publish("noise", 100000, 1);
  noise = far_open_near("noise", PAGE);
  CHECK_EQ(nearfile_sqlite_add(vfs, "noise", noise), SQLITE_OK);
  CHECK_EQ(sqlite3_open_v2("noise", &none, SQLITE_OPEN_READONLY, "near"), SQLITE_OK);
  ask(none, "SELECT * FROM t", &code);
  CHECK_EQ(code, SQLITE_NOTADB);
  sqlite3_close(none);
  nearfile_sqlite_unregister(vfs);
  nearfile_close(file), nearfile_close(next), nearfile_close(noise);
}

static void the_example_runs(void) {
  publish_database("example.db", "DELETE", 1);
  CHECK_EXAMPLE("http_sqlite", "example.db", "'SELECT 1 - 2, value FROM t WHERE id = 77'", "-1|77\n");
}

int main(int argc, char **argv) {
  static const struct nf_case cases[] = {
      NF_CASE(a_database_cold_and_warm),
      NF_CASE(a_query_of_few_pages_reads_few_pages),
      NF_CASE(threads_with_connections_of_their_own),
      NF_CASE(names_from_a_callback_and_attached),
      NF_CASE(names_come_and_go),
      NF_CASE(wal_is_refused_in_words),
      NF_CASE(writing_is_refused_and_sorting_is_not),
      NF_CASE(what_cannot_be_read_is_told),
      NF_CASE(the_example_runs),
  };
  return nf_run(argc, argv, cases, sizeof cases / sizeof *cases);
}
