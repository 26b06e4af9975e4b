// Guards the C API against C++ callbacks that throw: an exception that leaves a callback passes through the library to
// the C++ caller of nearfile_pread or nearfile_open, on its way every lock, connection and page is given back, and the
// next read, in this process or another, works.
// (nearfile.hpp needs none of the first: its callbacks catch what they can.)
#include "nearfile.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpp_test.h"

namespace {

constexpr std::uint64_t length = 10 * 1000 + 3;
constexpr std::uint64_t page = 1000;

unsigned char byte_at(std::uint64_t offset) { return static_cast<unsigned char>((offset * 0x9E3779B97F4A7C15U) >> 56); }

std::size_t far_read(std::uint64_t offset, void* buf, std::size_t len) {
  if (offset >= length) return 0;
  const std::size_t got = static_cast<std::size_t>(std::min<std::uint64_t>(len, length - offset));
  for (std::size_t i = 0; i < got; ++i) static_cast<unsigned char*>(buf)[i] = byte_at(offset + i);
  return got;
}

enum class act { work, read_throws, open_throws, size_throws };

struct far {
  std::atomic<act> does{act::work};
  std::atomic<std::uint64_t> from{0};
  std::atomic<int> reads{0}, opened{0}, closed{0}, released{0};
};

struct broken : std::runtime_error {
  broken() : std::runtime_error("thrown through C") {}
  int number = 77;
};

extern "C" {
static std::int32_t far_open(void* user_data, void** out_connection) {
  far& one = *static_cast<far*>(user_data);
  if (one.does == act::open_throws) throw broken();
  ++one.opened;
  *out_connection = user_data;
  return 0;
}

static std::int32_t far_read_at(void* connection, std::uint64_t offset, void* buf, std::size_t len,
                                std::size_t* out_len) {
  far& one = *static_cast<far*>(connection);
  ++one.reads;
  if (one.does == act::read_throws && offset + len > one.from) {
    std::fill_n(static_cast<char*>(buf), len, '!');
    *out_len = len;
    throw broken();
  }
  *out_len = far_read(offset, buf, len);
  return 0;
}

static std::int32_t far_size(void* connection, std::uint64_t* out_size) {
  if (static_cast<far*>(connection)->does == act::size_throws) throw broken();
  *out_size = length;
  return 0;
}

static void far_close(void* connection) { ++static_cast<far*>(connection)->closed; }
static void far_release(void* user_data) { ++static_cast<far*>(user_data)->released; }
}

nearfile_source source_over(far& one, bool with_open) {
  nearfile_source source{};
  source.struct_size = sizeof source;
  source.user_data = &one;
  if (with_open) {
    source.open = far_open;
    source.close = far_close;
  }
  source.read_at = far_read_at;
  source.size = far_size;
  source.release = far_release;
  return source;
}

nearfile_options keyed(const char* key, std::uint64_t size) {
  nearfile_options how{};
  how.struct_size = sizeof how;
  how.key = key;
  how.page_size = page;
  how.size = size;
  return how;
}

template <class Body>
bool throws_broken(Body body) {
  try {
    body();
  } catch (const broken& same) {
    return same.number == 77 && std::string(same.what()) == "thrown through C";
  }
  return false;
}

bool reads_right(nearfile_file* file) {
  std::vector<unsigned char> bytes(length + 10);
  if (nearfile_pread(file, bytes.data(), bytes.size(), 0) != static_cast<std::int64_t>(length)) return false;
  for (std::uint64_t i = 0; i < length; ++i) {
    if (bytes[static_cast<std::size_t>(i)] != byte_at(i)) return false;
  }
  return true;
}

std::uint64_t passed_through(nearfile_file* file) {
  nearfile_stats numbers{};
  numbers.struct_size = sizeof numbers;
  CHECK(nearfile_get_stats(file, &numbers) == NEARFILE_OK);
  return numbers.passed_through;
}

bool quickly(std::chrono::steady_clock::time_point since) {  // well within the time a stuck lock is waited for: 10 s
  return std::chrono::steady_clock::now() - since < std::chrono::seconds(5);
}

// Reads byte 2500 through another handle in another process: it must get the page's lock.
bool other_process_reads(const std::string& dir, const char* key) {
  const pid_t child = ::fork();
  if (child == 0) {
    far one;
    const nearfile_source source = source_over(one, true);
    const nearfile_options how = keyed(key, length);
    nearfile_cache* cache = nullptr;
    nearfile_file* file = nullptr;
    unsigned char byte = 0;
    const bool good = nearfile_cache_open(dir.c_str(), nullptr, &cache) == NEARFILE_OK &&
                      nearfile_open(cache, &source, &how, &file) == NEARFILE_OK &&
                      nearfile_pread(file, &byte, 1, 2500) == 1 && byte == byte_at(2500) && passed_through(file) == 0;
    nearfile_close(file);
    nearfile_cache_close(cache);
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  return child > 0 && ::waitpid(child, &status, 0) == child && status == 0;
}

void through_pread(const std::string& dir, nearfile_cache* cache, bool with_open, bool ask_child) {
  far one;
  const nearfile_source source = source_over(one, with_open);
  const std::string key = std::string("pread ") + (with_open ? "with open " : "without ") + (ask_child ? "child" : "");
  const nearfile_options how = keyed(key.c_str(), length);
  nearfile_file* file = nullptr;
  CHECK(nearfile_open(cache, &source, &how, &file) == NEARFILE_OK);
  std::vector<unsigned char> bytes(length);
  const auto start = std::chrono::steady_clock::now();

  one.does = act::read_throws;
  CHECK(throws_broken([&] { nearfile_pread(file, bytes.data(), 1, 2500); }));
  CHECK(throws_broken([&] { nearfile_pread(file, bytes.data(), 1, 2500); }));
  nearfile_seek(file, 2500, NEARFILE_SEEK_SET);
  CHECK(throws_broken([&] { nearfile_read(file, bytes.data(), 1); }) && nearfile_tell(file) == 2500);
  one.from = 4 * page;
  CHECK(throws_broken([&] { nearfile_pread(file, bytes.data(), length, 0); }));
  one.from = 0;
  std::uint64_t end = 0;
  std::int32_t cached = 1;
  CHECK(nearfile_extent(file, 4 * page, &end, &cached) == NEARFILE_OK && cached == 0);
  nearfile_discard(file, 0, length);

  if (with_open) {  // the next read of a page whose connection could not be had
    one.does = act::open_throws;
    far fresh;
    const nearfile_source lazy = source_over(fresh, true);
    nearfile_file* unopened = nullptr;
    const nearfile_options other = keyed(nullptr, length);
    CHECK(nearfile_open(cache, &lazy, &other, &unopened) == NEARFILE_OK);
    fresh.does = act::open_throws;
    CHECK(throws_broken([&] { nearfile_pread(unopened, bytes.data(), 1, 2500); }));
    fresh.does = act::work;
    CHECK(reads_right(unopened) && passed_through(unopened) == 0);
    nearfile_close(unopened);
    CHECK(fresh.opened >= 1 && fresh.opened == fresh.closed && fresh.released == 1);
  }

  one.does = act::work;
  if (ask_child) CHECK(other_process_reads(dir, key.c_str()));
  std::thread([&] {
    unsigned char byte = 0;
    CHECK(nearfile_pread(file, &byte, 1, 2500) == 1 && byte == byte_at(2500));
  }).join();
  CHECK(nearfile_read(file, bytes.data(), 1) == 1 && bytes[0] == byte_at(2500));
  CHECK(reads_right(file) && passed_through(file) == 0);
  const int reads = one.reads;
  CHECK(reads_right(file) && one.reads == reads);  // stored
  CHECK(quickly(start));
  nearfile_close(file);
  CHECK(one.released == 1 && one.opened == one.closed);
}

void through_open(nearfile_cache* cache) {
  for (const bool with_open : {true, false}) {
    far one;
    const nearfile_source source = source_over(one, with_open);
    const nearfile_options how = keyed(with_open ? "open with" : "open without", NEARFILE_SIZE_UNKNOWN);
    nearfile_file* file = nullptr;
    one.does = act::size_throws;
    CHECK(throws_broken([&] { nearfile_open(cache, &source, &how, &file); }) && !file);
    if (with_open) {
      one.does = act::open_throws;
      CHECK(throws_broken([&] { nearfile_open(cache, &source, &how, &file); }) && !file);
    }
    CHECK(one.released == 0 && one.opened == one.closed);  // user_data is still the caller's
    one.does = act::work;
    CHECK(nearfile_open(cache, &source, &how, &file) == NEARFILE_OK && reads_right(file));
    nearfile_close(file);
    CHECK(one.released == 1 && one.opened == one.closed);
  }
}

// Threads that meet exceptions while others read the same pages.
void under_load(nearfile_cache* cache) {
  far one;
  const nearfile_source source = source_over(one, true);
  const nearfile_options how = keyed("load", length);
  nearfile_file* file = nullptr;
  CHECK(nearfile_open(cache, &source, &how, &file) == NEARFILE_OK);
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      unsigned char byte = 0;
      for (unsigned i = 0; i < 300; ++i) {
        const std::uint64_t at = std::uint64_t{(i * 7 + t) % 10} * page;
        if (t == 0) {
          one.does = i % 3 == 0 ? act::read_throws : act::work;
          nearfile_discard(file, at, page);
        }
        try {
          const std::int64_t got = nearfile_pread(file, &byte, 1, at);
          CHECK(got == 1 ? byte == byte_at(at) : got == NEARFILE_ERROR_SOURCE);
        } catch (const broken&) {
        }
      }
    });
  }
  for (std::thread& each : threads) each.join();
  one.does = act::work;
  CHECK(reads_right(file) && passed_through(file) == 0 && quickly(start));
  nearfile_close(file);
  CHECK(one.released == 1 && one.opened == one.closed);
}

}  // namespace

int main() {
  try {
    const scratch dir;
    nearfile_cache* cache = nullptr;
    CHECK(nearfile_cache_open(dir.path.c_str(), nullptr, &cache) == NEARFILE_OK);
    for (const bool with_open : {true, false}) {
      through_pread(dir.path, cache, with_open, false);
      through_pread(dir.path, cache, with_open, true);
    }
    through_open(cache);
    under_load(cache);
    nearfile_cache_close(cache);
  } catch (const std::exception& unexpected) {
    std::fprintf(stderr, "%s: unexpected: %s\n", __FILE__, unexpected.what());
    ++failures;
  }
  return failures == 0 ? 0 : 1;
}
