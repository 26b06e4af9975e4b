// Guards nearfile::cache and nearfile::file: each handle is closed once, positions and offsets mean what POSIX means by
// them, options reach the library, and failures carry the right status.
#include "nearfile.hpp"
#include "nearfile.hpp"  // a second inclusion changes nothing

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpp_test.h"

namespace {

unsigned char byte_at(std::uint64_t offset) { return static_cast<unsigned char>((offset * 0x9E3779B97F4A7C15U) >> 56); }

// The far file. Counts its reads and who holds it.
struct far {
  std::uint64_t length;
  std::atomic<int>* reads = nullptr;
  std::shared_ptr<int> held = {};

  std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) {
    if (reads) ++*reads;
    if (offset >= length) return 0;
    const std::size_t got = static_cast<std::size_t>(std::min<std::uint64_t>(len, length - offset));
    for (std::size_t i = 0; i < got; ++i) static_cast<unsigned char*>(buf)[i] = byte_at(offset + i);
    return got;
  }
  std::uint64_t size() { return length; }
};

bool right(const std::vector<unsigned char>& bytes, std::size_t count, std::uint64_t offset) {
  for (std::size_t i = 0; i < count; ++i) {
    if (bytes[i] != byte_at(offset + i)) return false;
  }
  return true;
}

template <class Body>
std::int32_t status_of(Body body) {
  try {
    body();
  } catch (const nearfile::error& failed) {
    if (std::strlen(failed.what()) == 0) return 1;
    return failed.status();
  }
  return NEARFILE_OK;
}

static_assert(!std::is_copy_constructible_v<nearfile::cache> && std::is_nothrow_move_constructible_v<nearfile::cache>);
static_assert(!std::is_copy_assignable_v<nearfile::cache> && std::is_nothrow_move_assignable_v<nearfile::cache>);
static_assert(!std::is_copy_constructible_v<nearfile::file> && std::is_nothrow_move_constructible_v<nearfile::file>);
static_assert(!std::is_copy_assignable_v<nearfile::file> && std::is_nothrow_move_assignable_v<nearfile::file>);
static_assert(!std::is_copy_constructible_v<nearfile::source> && std::is_move_constructible_v<nearfile::source>);
static_assert(std::is_nothrow_copy_constructible_v<nearfile::error>);
static_assert(!nearfile::detail::is_source<int> && !nearfile::detail::is_source<std::string>);
static_assert(!nearfile::detail::is_source<far*>);  // who would own it? std::ref or a smart pointer says

nearfile::options keyed(const std::string& key, std::uint64_t page_size = 4096) {
  nearfile::options how;
  how.key = key;
  how.page_size = page_size;
  return how;
}

void owning(const nearfile::cache& cache) {
  auto held = std::make_shared<int>();
  {
    nearfile::file first(cache, far{10000, nullptr, held}, keyed("owning"));
    CHECK(held.use_count() == 2 && first);
    nearfile::file second = std::move(first);
    CHECK(!first && second && !first.get());
    CHECK(status_of([&] { first.size(); }) == NEARFILE_ERROR_ARGUMENT);
    char byte = 0;
    CHECK(status_of([&] { first.pread(&byte, 1, 0); }) == NEARFILE_ERROR_ARGUMENT);
    CHECK(status_of([&] { first.dup(); }) == NEARFILE_ERROR_ARGUMENT);
    CHECK(!first.data_path());
    first = std::move(second);
    CHECK(first.pread(&byte, 1, 77) == 1 && static_cast<unsigned char>(byte) == byte_at(77));
    first.seek(123);

    nearfile::file other = first.dup();
    other.seek(5000);
    CHECK(first.tell() == 123 && other.tell() == 5000);
    first.close();
    first.close();
    CHECK(!first && held.use_count() == 2);  // the dup still needs the source
    CHECK(other.pread(&byte, 1, 9999) == 1 && static_cast<unsigned char>(byte) == byte_at(9999));

    nearfile::file taken(other.release());
    CHECK(!other && taken.tell() == 5000);
    nearfile::file replaced(cache, far{10, nullptr, held}, {});
    CHECK(held.use_count() == 3);
    replaced = std::move(taken);  // closes what was there
    CHECK(held.use_count() == 2 && replaced.size() == 10000);
    nearfile::file& same = replaced;
    replaced = std::move(same);
    CHECK(replaced.size() == 10000);
  }
  CHECK(held.use_count() == 1);

  // A failed open gives the source back; so does one that is refused before it reaches the library.
  nearfile::options half = keyed("half");
  half.data_path = "/only/one/of/two";
  CHECK(status_of([&] { nearfile::file(cache, far{10, nullptr, held}, half); }) == NEARFILE_ERROR_ARGUMENT);
  CHECK(held.use_count() == 1);
  CHECK(status_of([&] { nearfile::file(cache, far{10, nullptr, held}, keyed(std::string("a\0b", 3))); }) ==
        NEARFILE_ERROR_ARGUMENT);
  CHECK(held.use_count() == 1);

  // A source serves one file; used up, it is refused.
  nearfile::source source(far{10, nullptr, held});
  nearfile::file file(cache, std::move(source), {});
  CHECK(status_of([&] { nearfile::file(cache, std::move(source), {}); }) == NEARFILE_ERROR_ARGUMENT);
  nearfile::source never(far{10, nullptr, held});
  CHECK(held.use_count() == 3);

  nearfile::file none;
  CHECK(!none && status_of([&] { none.tell(); }) == NEARFILE_ERROR_ARGUMENT);
}

void caches(const std::string& dir) {
  nearfile::file outlives;
  {
    nearfile::cache first(std::filesystem::path(dir) / "moved");
    nearfile::cache second = std::move(first);
    CHECK(!first && second);
    CHECK(status_of([&] { first.stats(); }) == NEARFILE_ERROR_ARGUMENT);
    CHECK(status_of([&] { nearfile::file(first, far{10}); }) == NEARFILE_ERROR_ARGUMENT);
    second.stats();
    outlives = nearfile::file(second, far{10000}, keyed("outlives"));
    nearfile::cache taken(second.release());
    CHECK(!second && taken);
  }
  std::vector<unsigned char> bytes(10000);
  CHECK(outlives.read(bytes.data(), bytes.size()) == 10000 && right(bytes, 10000, 0));

  ::setenv("XDG_CACHE_HOME", (dir + "/xdg").c_str(), 1);
  std::filesystem::create_directories(dir + "/xdg");
  nearfile::cache standard;
  CHECK(std::filesystem::is_directory(dir + "/xdg/nearfile"));
  CHECK(status_of([&] { nearfile::cache(std::string("a\0b", 3)); }) == NEARFILE_ERROR_ARGUMENT);
}

void reading(const nearfile::cache& cache) {
  const std::uint64_t length = 100 * 1000 + 7;
  std::atomic<int> reads{0};
  nearfile::file file(cache, far{length, &reads}, keyed("reading"));
  CHECK(file.size() == length && file.page_size() == 4096 && file.tell() == 0);

  std::vector<unsigned char> bytes(200 * 1000);
  CHECK(file.read(bytes.data(), 10) == 10 && right(bytes, 10, 0) && file.tell() == 10);
  CHECK(file.pread(bytes.data(), 5000, 50 * 1000) == 5000 && right(bytes, 5000, 50 * 1000) && file.tell() == 10);
  CHECK(file.read(bytes.data(), 0) == 0 && file.tell() == 10);
  CHECK(file.seek(-7, NEARFILE_SEEK_END) == length - 7);
  CHECK(file.read(bytes.data(), 100) == 7 && right(bytes, 7, length - 7) && file.tell() == length);
  CHECK(file.read(bytes.data(), 100) == 0 && file.tell() == length);
  CHECK(file.seek(-17, NEARFILE_SEEK_CUR) == length - 17);
  CHECK(file.seek(1000 * 1000) == 1000 * 1000 && file.read(bytes.data(), 1) == 0 && file.tell() == 1000 * 1000);
  CHECK(file.pread(bytes.data(), 1, length) == 0 && file.pread(bytes.data(), 1, UINT64_MAX) == 0);
  CHECK(status_of([&] { file.seek(-1); }) == NEARFILE_ERROR_ARGUMENT);
  CHECK(status_of([&] { file.seek(0, 3); }) == NEARFILE_ERROR_ARGUMENT);
  CHECK(file.tell() == 1000 * 1000);

  file.seek(0);
  CHECK(file.read(bytes.data(), bytes.size()) == length && right(bytes, length, 0));
  const int before = reads;
  CHECK(file.pread(bytes.data(), bytes.size(), 0) == length && right(bytes, length, 0) && reads == before);

#if __cplusplus >= 202002L
  std::vector<std::byte> span_of(300);
  CHECK(file.pread(std::span<std::byte>(span_of), 4000) == 300 && std::to_integer<int>(span_of[299]) == byte_at(4299));
  file.seek(7);
  CHECK(file.read(span_of) == 300 && file.tell() == 307 && std::to_integer<int>(span_of[0]) == byte_at(7));
#endif
}

void what_is_cached(const nearfile::cache& cache) {
  std::atomic<int> reads{0};
  nearfile::file file(cache, far{10 * 4096 + 5, &reads}, keyed("extent"));
  CHECK(file.extent(0).end == file.size() && !file.extent(0).cached);
  std::vector<unsigned char> bytes(4096);
  file.pread(bytes.data(), 1, 3 * 4096);
  CHECK(file.extent(3 * 4096 + 9).cached && file.extent(0).end == 3 * 4096 && !file.extent(0).cached);
  const nearfile_stats numbers = file.stats();
  CHECK(numbers.struct_size == sizeof numbers && numbers.misses >= 1 && numbers.source_reads >= 1);

  CHECK(file.data_path() && file.index_path() && *file.data_path() != *file.index_path());
  file.discard(0, file.size());
  CHECK(!file.extent(3 * 4096).cached && file.extent(0).end == file.size());
  const int before = reads;
  CHECK(file.pread(bytes.data(), 4096, 3 * 4096) == 4096 && right(bytes, 4096, 3 * 4096) && reads > before);
  CHECK(nearfile_size(file.get()) == 10 * 4096 + 5);
}

void mapping(const std::string& dir) {
  nearfile::cache_options small;
  small.page_size = 8192;
  nearfile::cache cache(dir + "/mapping", small);
  nearfile::options how;
  how.key = "k";
  how.version = "v1";
  how.size = 50000;
  nearfile::file first(cache, far{1}, how);  // the size given is the size: the source is not asked
  CHECK(first.size() == 50000 && first.page_size() == 8192);
  nearfile::file again(cache, far{50000}, how);
  CHECK(first.data_path() == again.data_path() && first.index_path() == again.index_path());
  how.version = "v2";
  nearfile::file newer(cache, far{50000}, how);
  CHECK(first.data_path() && newer.data_path() && first.data_path() != newer.data_path());
  how.key = "l";
  how.page_size = 100;
  how.flags = NEARFILE_VERIFY_ALWAYS;
  nearfile::file odd(cache, far{50000}, how);
  std::vector<unsigned char> bytes(50000);
  CHECK(odd.page_size() == 100 && odd.read(bytes.data(), 50000) == 50000 && right(bytes, 50000, 0));

  nearfile::options own;
  own.size = 9000;
  own.data_path = dir + "/own.data";
  own.index_path = dir + "/own.index";
  nearfile::file pair(far{9000}, own);
  CHECK(pair.data_path() == own.data_path && pair.index_path() == own.index_path);
  CHECK(pair.read(bytes.data(), 50000) == 9000 && right(bytes, 9000, 0));
  CHECK(std::filesystem::exists(*own.data_path) && std::filesystem::exists(*own.index_path));

  nearfile::options wrong;
  wrong.mode = 77;
  CHECK(status_of([&] { nearfile::file(cache, far{10}, wrong); }) < 0);
  wrong = {};
  wrong.flags = 1U << 31;
  CHECK(status_of([&] { nearfile::file(cache, far{10}, wrong); }) < 0);
  CHECK(status_of([&] { nearfile::file(far{10}, nearfile::options{}); }) == NEARFILE_ERROR_ARGUMENT);
  nearfile::cache_options odd_policy;
  odd_policy.when_full = 77;
  CHECK(status_of([&] { nearfile::cache(dir + "/policy", odd_policy); }) < 0);
}

void sizes(const nearfile::cache& cache) {
  char byte = 0;
  for (const bool given : {true, false}) {
    nearfile::options how = keyed(given ? "empty" : "empty, asked");
    if (given) how.size = 0;
    nearfile::file empty(cache, far{0}, how);
    CHECK(empty.size() == 0 && empty.read(&byte, 1) == 0 && empty.pread(&byte, 1, 0) == 0);
    CHECK(empty.seek(0, NEARFILE_SEEK_END) == 0 && empty.tell() == 0 && !empty.extent(0).cached);
    empty.discard(0, 1);
  }

  nearfile::file asked(cache, far{12345}, keyed("asked"));
  CHECK(asked.size() == 12345);
  auto sizeless = [](std::uint64_t, void*, std::size_t) -> std::size_t { return 0; };
  CHECK(status_of([&] { nearfile::file(cache, sizeless, keyed("sizeless")); }) < 0);

  nearfile::options large = keyed("large", 65536);
  large.size = std::uint64_t{1} << 42;
  nearfile::file file(cache, far{*large.size}, large);
  std::vector<unsigned char> bytes(100);
  CHECK(file.pread(bytes.data(), 100, *large.size - 50) == 50 && right(bytes, 50, *large.size - 50));
}

void errors(const nearfile::cache& cache) {
  nearfile::options how = keyed("errors");
  how.size = 10000;
  nearfile::file file(cache, far{5000}, how);  // ends before its size
  std::vector<unsigned char> bytes(10000);
  try {
    file.pread(bytes.data(), 10000, 0);
    CHECK(false && "a short source went unnoticed");
  } catch (const std::runtime_error& caught) {
    const auto* failed = dynamic_cast<const nearfile::error*>(&caught);
    CHECK(failed && failed->status() == NEARFILE_ERROR_SHORT_SOURCE && failed->source_code() == 0);
    CHECK(failed && std::string(failed->status_name()) == "NEARFILE_ERROR_SHORT_SOURCE");
    const nearfile::error copy = *failed;
    CHECK(std::string(copy.what()) == failed->what() && copy.status() == failed->status());
  }
  CHECK(file.pread(bytes.data(), 4096, 0) == 4096 && right(bytes, 4096, 0));

  // A path of one's own that cannot be opened: the system's errno comes along. And a file is no directory.
  nearfile::options misplaced;
  misplaced.size = 10;
  misplaced.data_path = file.data_path().value() + "/below/a/file";
  misplaced.index_path = *misplaced.data_path + ".index";
  try {
    nearfile::file(far{10}, misplaced);
    CHECK(false && "opened below a file");
  } catch (const nearfile::error& failed) {
    CHECK(failed.status() == NEARFILE_ERROR_IO && failed.os_errno() == ENOTDIR && failed.source_code() == 0);
  }
  CHECK(status_of([&] { nearfile::cache(*file.data_path()); }) == NEARFILE_ERROR_ARGUMENT);
}

void threads(const nearfile::cache& cache) {
  std::atomic<int> reads{0};
  nearfile::file file(cache, far{64 * 4096, &reads}, keyed("threads"));
  std::vector<std::thread> all;
  for (unsigned t = 0; t < 4; ++t) {
    all.emplace_back([&, t] {
      nearfile::file mine = file.dup();
      std::vector<unsigned char> bytes(4096);
      for (unsigned i = 0; i < 64; ++i) {
        const std::uint64_t at = std::uint64_t{(i * 29 + t * 17) % 64} * 4096;
        mine.seek(static_cast<std::int64_t>(at));
        CHECK(mine.read(bytes.data(), 4096) == 4096 && right(bytes, 4096, at));
      }
    });
  }
  for (std::thread& one : all) one.join();
  CHECK(reads == 64);
}

}  // namespace

int main() {
  try {
    const scratch dir;
    CHECK(nearfile_version() >> 16 == NEARFILE_VERSION_MAJOR);
    nearfile::cache cache(dir.path + "/cache");
    owning(cache);
    caches(dir.path);
    reading(cache);
    what_is_cached(cache);
    mapping(dir.path);
    sizes(cache);
    errors(cache);
    threads(cache);
  } catch (const std::exception& unexpected) {
    std::fprintf(stderr, "%s: unexpected: %s\n", __FILE__, unexpected.what());
    ++failures;
  }
  return failures == 0 ? 0 : 1;
}
