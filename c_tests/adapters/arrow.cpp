// nearfile/arrow.hpp: a Parquet file on a server, read by Arrow through the near copy.
#include "../cpp_test.h"

#include <nearfile/arrow.hpp>
#include <nearfile/curl.h>

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <arrow/util/config.h>
#include <arrow/util/future.h>
#include <parquet/arrow/reader.h>
#include <parquet/arrow/writer.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr std::uint64_t page = 16384;
constexpr std::int64_t rows = 60000;
constexpr int columns = 6;  // about 480 KB each

std::int64_t value(int column, std::int64_t row) { return static_cast<std::int64_t>((row * 2654435761U + column) * 40503U); }

template <class T>
T must(arrow::Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().ToString());
  return std::move(result).ValueUnsafe();
}

void must(const arrow::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

std::string env(const char* name) {
  const char* given = std::getenv(name);
  if (!given) throw std::runtime_error(std::string(name) + " is not set: run by with_servers.sh");
  return given;
}

void publish(const std::string& name) {
  arrow::FieldVector fields;
  arrow::ArrayVector arrays;
  for (int column = 0; column < columns; column++) {
    arrow::Int64Builder builder;
    for (std::int64_t row = 0; row < rows; row++) must(builder.Append(value(column, row)));
    fields.push_back(arrow::field("column " + std::to_string(column), arrow::int64()));
    arrays.push_back(must(builder.Finish()));
  }
  const auto table = arrow::Table::Make(arrow::schema(fields), arrays);
  auto out = must(arrow::io::FileOutputStream::Open(env("FAR_ROOT") + "/" + name));
  const auto plain = parquet::WriterProperties::Builder().disable_dictionary()->build();
  must(parquet::arrow::WriteTable(*table, arrow::default_memory_pool(), out, rows / 4, plain));
  must(out->Close());
}

// GETs of a file, once the log stands still.
long requests(const std::string& name) {
  long count = -1, before = 0;
  do {
    before = count;
    count = 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    std::ifstream log(env("FAR_LOG"));
    for (std::string line; std::getline(log, line);) {
      count += line.rfind("GET", 0) == 0 && line.find("/far/" + name + " ") != std::string::npos;
    }
  } while (count != before);
  return count;
}

nearfile::file open_far(const std::string& dir, const std::string& name) {
  nearfile::cache_options how;
  how.page_size = how.max_fetch_bytes = page;
  nearfile::cache cache(dir, how);
  nearfile_file* opened = nullptr;
  const std::int32_t code = nearfile_curl_open(cache.get(), (env("FAR_URL") + "/far/" + name).c_str(), nullptr, nullptr, &opened);
  char why[1024];
  if (code != 0) throw std::runtime_error(nearfile_curl_message(code, why, sizeof why));
  return nearfile::file(opened);
}

// Reads these columns, on Arrow's threads, and checks them.
void read_columns(const std::shared_ptr<nearfile::arrow_file>& input, const std::vector<int>& wanted) {
  parquet::arrow::FileReaderBuilder builder;
  must(builder.Open(input));
  parquet::ArrowReaderProperties properties(true);
  properties.set_pre_buffer(true);  // ReadAsync, many at once
  std::unique_ptr<parquet::arrow::FileReader> reader;
  must(builder.properties(properties)->Build(&reader));
  std::shared_ptr<arrow::Table> table;
#if ARROW_VERSION_MAJOR >= 24
  table = must(reader->ReadTable(wanted));
#else
  must(reader->ReadTable(wanted, &table));
#endif
  CHECK(table->num_rows() == rows && table->num_columns() == static_cast<int>(wanted.size()));
  for (std::size_t i = 0; i < wanted.size(); i++) {
    std::int64_t row = 0;
    for (const auto& chunk : table->column(static_cast<int>(i))->chunks()) {
      const auto& numbers = static_cast<const arrow::Int64Array&>(*chunk);
      for (std::int64_t j = 0; j < numbers.length(); j++, row++) {
        if (numbers.Value(j) == value(wanted[i], row)) continue;
        CHECK(!"a value is wrong");
        return;
      }
    }
    CHECK(row == rows);
  }
}

const std::vector<int> all{0, 1, 2, 3, 4, 5};

// A process of its own: this program, told what to read.
int read_in_process(const char* self, const std::string& dir, const std::string& name, const std::string& what) {
  return std::system(("'" + std::string(self) + "' '" + dir + "' " + name + " " + what).c_str());
}

void cold_and_warm(const char* self, const std::string& dir) {
  publish("table.parquet");
  CHECK(read_in_process(self, dir, "table.parquet", "one") == 0);
  const long one = requests("table.parquet");
  CHECK(read_in_process(self, dir, "table.parquet", "all") == 0);
  const long cold = requests("table.parquet");
  CHECK(read_in_process(self, dir, "table.parquet", "all") == 0);
  const long warm = requests("table.parquet") - cold;
  const auto size = std::filesystem::file_size(env("FAR_ROOT") + "/table.parquet");
  const long pages = static_cast<long>((size + page - 1) / page);
  std::printf("  %ld pages; source requests: one column %ld, then all %ld, warm %ld\n", pages, one, cold - one, warm);
  CHECK(one > 0 && one < pages / 3);
  CHECK(cold <= pages);
  CHECK(warm == 0);
}

void reads_and_positions(const std::string& dir) {
  publish("positions.parquet");
  std::ifstream near(env("FAR_ROOT") + "/positions.parquet", std::ios::binary);
  const std::string content((std::istreambuf_iterator<char>(near)), {});
  const auto size = static_cast<std::int64_t>(content.size());
  const auto input = std::make_shared<nearfile::arrow_file>(open_far(dir, "positions.parquet"));
  nearfile::arrow_file& file = *input;
  CHECK(must(file.GetSize()) == size);
  CHECK(must(file.Tell()) == 0);
  CHECK(must(file.Read(4))->ToString() == "PAR1");
  CHECK(must(file.Tell()) == 4);
  must(file.Seek(size - 4));
  CHECK(must(file.Read(1 << 30))->ToString() == "PAR1");  // as much as there is
  CHECK(must(file.Read(10))->size() == 0);
  CHECK(must(file.ReadAt(page - 10, 50000))->ToString() == content.substr(page - 10, 50000));
  CHECK(must(file.ReadAt(size + 5, 10))->size() == 0);
  CHECK(must(file.ReadAsync(arrow::io::default_io_context(), 1000, 2000).result())->ToString() == content.substr(1000, 2000));
  char buf[8];
  CHECK(must(file.Read(0, buf)) == 0);
  CHECK(must(file.ReadAt(size - 4, 8, buf)) == 4 && std::memcmp(buf, "PAR1", 4) == 0);
  CHECK(must(file.ReadAt(size - 4, 8, true, buf)) == 4);
  CHECK(file.ReadAt(size - 4, 8, false, buf).status().IsIOError());
  CHECK(file.ReadAt(size - 4, 8, false).status().IsIOError());
  CHECK(file.ReadAt(-1, 8).status().IsInvalid() && file.ReadAt(0, -8, buf).status().IsInvalid());
  CHECK(file.Seek(-1).IsInvalid() && file.Read(-1).status().IsInvalid());
  CHECK(!file.closed());
  must(file.Close());
  must(file.Close());
  CHECK(file.closed() && file.Read(1).status().IsInvalid() && file.GetSize().status().IsInvalid());
}

void what_will_be_needed_is_fetched(const std::string& dir) {
  publish("needed.parquet");
  const nearfile::file watched = open_far(dir, "needed.parquet");
  nearfile::arrow_file file(watched.dup());
  const auto cached = [&] { return watched.stats().pages_fetched; };
  must(file.WillNeed({{0, 10}, {5 * page, 2 * page}}));
  for (int wait = 0; wait < 1000 && cached() < 3; wait++) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(cached() == 3);
  CHECK(must(file.ReadAt(5 * page, 2 * page))->size() == 2 * page);
  CHECK(watched.stats().misses == 0);
  CHECK(file.WillNeed({{-1, 10}}).IsInvalid());
  must(file.Close());
  CHECK(file.WillNeed({{0, 10}}).IsInvalid());
}

void failures_are_statuses(const std::string& dir) {
  publish("failing.parquet");
  auto input = std::make_shared<nearfile::arrow_file>(open_far(dir, "failing.parquet"));
  std::filesystem::remove(env("FAR_ROOT") + "/failing.parquet");
  const arrow::Status status = input->ReadAt(0, 10).status();
  CHECK(status.IsIOError() && status.message().find("404") != std::string::npos);
  const nearfile::cache cache(dir);
  nearfile::options how;
  how.size = 100;
  nearfile::arrow_file thrower(nearfile::file(
      cache, [](std::uint64_t, void*, std::size_t) -> std::size_t { throw std::runtime_error("no route"); }, how));
  CHECK(thrower.ReadAt(0, 10).status().ToString() == "IOError: nearfile: no route");
}

// http_parquet, twice: the second run reads no source.
void the_example_runs(const std::string& dir) {
  publish("example.parquet");
  for (const char* reads : {"", "source_reads=0 "}) {
    const std::string out = dir + "/said";
    const std::string command = "'" + env("EXAMPLES") + "/http_parquet' '" + env("FAR_URL") + "/far/example.parquet' '" + dir +
                                "/example' 0 >'" + out + "' 2>&1";
    CHECK(std::system(command.c_str()) == 0);
    std::ifstream file(out);
    const std::string said((std::istreambuf_iterator<char>(file)), {});
    CHECK(said.find("60000 values of type int64, first 0\n") == 0);
    CHECK(said.find(*reads != '\0' ? reads : "source_reads=") != std::string::npos);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc == 4) {
    auto input = std::make_shared<nearfile::arrow_file>(open_far(argv[1], argv[2]));
    read_columns(input, argv[3] == std::string("one") ? std::vector<int>{2} : all);
    return failures != 0;
  }
  const scratch dir;
  cold_and_warm(argv[0], dir.path);
  reads_and_positions(dir.path);
  what_will_be_needed_is_fetched(dir.path);
  failures_are_statuses(dir.path);
  the_example_runs(dir.path);
  return failures != 0;
} catch (const std::exception& thrown) {
  std::cerr << thrown.what() << "\n";
  return 1;
}
