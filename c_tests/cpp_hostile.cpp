// Guards against C++ callbacks that throw, through every function of the C API that calls back, on every kind of file: the exception
// arrives as it was thrown, nothing of the failed fetch is stored, no lock, connection or buffer stays behind, and the next call works.
// And that what the wrapper owns is given back once, however it is moved, reset, swapped and released.
#include "nearfile.hpp"

#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpp_test.h"

namespace {

constexpr std::uint64_t page = 1000, length = 12 * page - 7;

unsigned char byte_at(std::uint64_t offset) { return static_cast<unsigned char>((offset * 0x9E3779B97F4A7C15U) >> 56); }

struct thrown {  // large, with something to destroy, and no std::exception
  std::array<char, 300> weight{};
  std::string text;
};

enum class where { nowhere, open, read, read_after_some, seek, size, progress, list };

struct far {
  where throws = where::nowhere;
  std::uint64_t position = 0;
  int opened = 0, closed = 0, released = 0, reads = 0;
};

[[noreturn]] void throw_it(where at) { throw thrown{{}, "from " + std::to_string(static_cast<int>(at))}; }

void maybe(const far& one, where at) {
  if (one.throws == at) throw_it(at);
}

std::int32_t give(far& one, std::uint64_t offset, void* buf, std::size_t len, std::size_t* out_len) {
  std::memset(buf, '!', len);
  *out_len = len;
  maybe(one, where::read);
  if (one.throws == where::read_after_some && one.reads++ % 2 != 0) throw_it(where::read_after_some);
  len = one.throws == where::read_after_some ? (len + 1) / 2 : len;
  for (std::size_t i = 0; i < len; ++i) static_cast<unsigned char*>(buf)[i] = byte_at(offset + i);
  *out_len = len;
  return 0;
}

far& of(void* at) { return *static_cast<far*>(at); }

extern "C" {
static std::int32_t far_open(void* user_data, void** out_connection) {
  maybe(of(user_data), where::open);
  ++of(user_data).opened;
  *out_connection = user_data;
  return 0;
}
static std::int32_t far_read_at(void* at, std::uint64_t offset, void* buf, std::size_t len, std::size_t* out_len) {
  return give(of(at), offset, buf, len, out_len);
}
static std::int32_t far_read(void* at, void* buf, std::size_t len, std::size_t* out_len) {
  const std::int32_t code = give(of(at), of(at).position, buf, len, out_len);
  of(at).position += *out_len;
  return code;
}
static std::int32_t far_seek(void* at, std::int64_t offset, std::int32_t whence, std::uint64_t* out_position) {
  maybe(of(at), where::seek);
  *out_position = of(at).position = (whence == NEARFILE_SEEK_END ? length : 0) + static_cast<std::uint64_t>(offset);
  return 0;
}
static std::int32_t far_size(void* at, std::uint64_t* out_size) {
  maybe(of(at), where::size);
  *out_size = length;
  return 0;
}
static void far_close(void* at) { ++of(at).closed; }
static void far_release(void* at) { ++of(at).released; }
static std::int32_t far_progress(void* at, std::uint64_t, std::uint64_t) {
  maybe(of(at), where::progress);
  return 0;
}
static std::int32_t far_list(void* at, const nearfile_entry*) {
  maybe(of(at), where::list);
  return 0;
}
}

nearfile_source source_over(far& one, bool seeks) {
  nearfile_source source{};
  source.struct_size = sizeof source;
  source.user_data = &one;
  source.open = far_open;
  source.close = far_close;
  source.release = far_release;
  source.size = far_size;
  if (seeks) {
    source.read = far_read;
    source.seek = far_seek;
  } else {
    source.read_at = far_read_at;
  }
  return source;
}

// The text of what a call throws; "" for nothing, "?" for something else.
std::string thrown_by(const std::function<void()>& call) {
  try {
    call();
  } catch (const thrown& one) {
    return one.text;
  } catch (...) {
    return "?";
  }
  return "";
}

bool reads_right(nearfile_file* file) {
  std::vector<unsigned char> bytes(length);
  if (nearfile_pread(file, bytes.data(), bytes.size(), 0) != static_cast<std::int64_t>(length)) return false;
  for (std::uint64_t i = 0; i < length; ++i) {
    if (bytes[static_cast<std::size_t>(i)] != byte_at(i)) return false;
  }
  return true;
}

int tried = 0;

struct scene {
  nearfile_cache* cache;
  const char* key;
  std::uint32_t mode;
  bool seeks;
  bool kept = true;
};

nearfile_file* open(const scene& in, far& one, std::uint64_t size) {
  const nearfile_source source = source_over(one, in.seeks);
  nearfile_options how{};
  how.struct_size = sizeof how;
  how.key = in.key;
  how.mode = in.mode;
  how.size = size;
  how.page_size = page;
  nearfile_file* file = nullptr;
  if (nearfile_open(in.cache, &source, &how, &file) != NEARFILE_OK) return nullptr;
  return file;
}

// Every call that may read the source.
std::map<std::string, std::function<void(nearfile_file*, far&)>> calls() {
  return {{"pread", [](nearfile_file* file, far&) { char b[2500]; nearfile_pread(file, b, sizeof b, 2500); }},
          {"read", [](nearfile_file* file, far&) { char b[2500]; nearfile_read(file, b, sizeof b); }},
          {"read_ranges", [](nearfile_file* file, far&) {
             char b[300];
             nearfile_range ranges[3] = {{100, b, 100, 0, 0}, {5000, b + 100, 100, 0, 0}, {9000, b + 200, 100, 0, 0}};
             nearfile_read_ranges(file, ranges, 3, sizeof *ranges);
           }},
          {"prefetch", [](nearfile_file* file, far& one) { nearfile_prefetch(file, 0, length, 0, far_progress, &one); }},
          {"pin_range", [](nearfile_file* file, far&) {
             nearfile_pin* pin = nullptr;
             nearfile_pin_range(file, 1500, 3000, &pin);
             nearfile_pin_release(pin);
           }}};
}

void through_every_call(const scene& in) {
  for (const where at : {where::open, where::read, where::read_after_some, where::seek, where::progress}) {
    if (at == where::seek && !in.seeks) continue;
    for (const auto& [name, call] : calls()) {
      if (at == where::progress && name != "prefetch") continue;
      far one;
      nearfile_file* file = open(in, one, length);
      CHECK(file != nullptr);
      one.throws = at;
      const std::string expected = "from " + std::to_string(static_cast<int>(at));
      for (int again = 0; again < 3; ++again) {
        if (thrown_by([&] { call(file, one); }) != expected) {
          std::fprintf(stderr, "%s: %s did not throw what %s did\n", in.key ? in.key : "private", name.c_str(), expected.c_str());
          ++failures;
        }
        CHECK(nearfile_tell(file) == 0);
        std::uint64_t end = 0;
        std::int32_t cached = 1;
        // Progress comes after pages were kept; a failed fetch keeps none.
        if (at != where::progress) CHECK(nearfile_extent(file, 0, &end, &cached) == 0 && cached == 0 && end == length);
        CHECK(nearfile_discard(file, 0, length) == 0);
      }
      one.throws = where::nowhere;
      CHECK(reads_right(file) && reads_right(file));
      nearfile_stats numbers{};
      numbers.struct_size = sizeof numbers;
      CHECK(nearfile_get_stats(file, &numbers) == 0 && (numbers.passed_through == 0) == in.kept);  // no lock was left behind
      nearfile_close(file);
      CHECK(one.opened == one.closed && one.released == 1);
      if (in.key) CHECK(nearfile_cache_remove(in.cache, in.key) == 0);
      ++tried;
    }
  }
  for (const where at : {where::open, where::size, where::seek}) {
    far one;
    one.throws = at;
    const nearfile_source source = source_over(one, true);
    nearfile_source by_seek = source;
    by_seek.size = nullptr;
    nearfile_options how{};
    how.struct_size = sizeof how;
    how.size = NEARFILE_SIZE_UNKNOWN;
    nearfile_file* file = reinterpret_cast<nearfile_file*>(&how);
    CHECK(thrown_by([&] { nearfile_open(in.cache, at == where::seek ? &by_seek : &source, &how, &file); }) ==
          "from " + std::to_string(static_cast<int>(at)));
    CHECK(file == nullptr && one.opened == one.closed && one.released == 0);
    ++tried;
  }
}

void through_list(nearfile_cache* cache) {
  far one;
  nearfile_file* file = open({cache, "listed", NEARFILE_PAGED, false}, one, length);
  CHECK(reads_right(file));
  one.throws = where::list;
  for (int again = 0; again < 3; ++again) {
    CHECK(thrown_by([&] { nearfile_cache_list(cache, far_list, &one); }) == "from " + std::to_string(static_cast<int>(where::list)));
  }
  one.throws = where::nowhere;
  CHECK(nearfile_cache_list(cache, far_list, &one) == 0);
  nearfile_close(file);
  CHECK(nearfile_cache_remove(cache, "listed") == 0);
  ++tried;
}

// ---- given back once --------------------------------------------------------------------------------------------------------

struct counted {
  int& made;
  int& gone;
  counted(int& m, int& g) : made(m), gone(g) { ++made; }
  counted(const counted& other) : made(other.made), gone(other.gone) { ++made; }
  ~counted() { ++gone; }
  std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) {
    const std::size_t got = static_cast<std::size_t>(std::min<std::uint64_t>(len, length - offset));
    for (std::size_t i = 0; i < got; ++i) static_cast<unsigned char*>(buf)[i] = byte_at(offset + i);
    return got;
  }
};

template <class T>
void move_to_itself(T& object) {
  T& same = object;
  object = std::move(same);
}

void given_back_once(const nearfile::cache& cache) {
  nearfile::options how;
  how.size = length;
  how.page_size = page;
  for (int way = 0; way < 8; ++way) {
    int made = 0, gone = 0;
    {
      nearfile::file file(cache, counted(made, gone), how), other;
      switch (way) {
        case 0: file.close(); file.close(); break;
        case 1: move_to_itself(file); break;
        case 2: other = std::move(file); file = std::move(other); std::swap(file, other); break;
        case 3: nearfile_close(file.release()); file.close(); break;
        case 4: other = nearfile::file(file.release()); break;
        case 5: { std::vector<nearfile::file> many; for (int i = 0; i < 50; ++i) many.push_back(file.dup()); many.erase(many.begin(), many.begin() + 20); break; }
        case 6: std::thread([taken = std::move(file)]() mutable { taken.close(); }).join(); break;
        default: file = nearfile::file(cache, counted(made, gone), how); break;
      }
      if (file) CHECK(reads_right(file.get()));
      if (other) CHECK(reads_right(other.get()));
      if (!file && !other) CHECK(made == gone);
    }
    CHECK(made > 0 && made == gone);
    ++tried;
  }
  // A source that an open refused is still the caller's object, and goes once.
  int made = 0, gone = 0;
  nearfile::options bad = how;
  bad.mode = 9;
  CHECK(thrown_by([&] { nearfile::file(cache, counted(made, gone), bad); }) == "?");
  CHECK(made > 0 && made == gone);
  nearfile::cache first(cache.get() ? nearfile::cache_options{} : nearfile::cache_options{});
  move_to_itself(first);
  nearfile::cache second = std::move(first);
  first = std::move(second);
  std::swap(first, second);
  nearfile_cache_close(second.release());
  CHECK(!second && !first);
}

}  // namespace

int main() {
  scratch dir;
  ::setenv("XDG_CACHE_HOME", dir.path.c_str(), 1);
  nearfile_cache_options how{};
  how.struct_size = sizeof how;
  how.page_size = page;
  nearfile_cache* cache = nullptr;
  CHECK(nearfile_cache_open((dir.path + "/cache").c_str(), &how, &cache) == NEARFILE_OK);
  for (const bool seeks : {false, true}) {
    through_every_call({cache, nullptr, NEARFILE_PAGED, seeks});
    through_every_call({cache, "key", NEARFILE_PAGED, seeks});
    through_every_call({cache, nullptr, NEARFILE_EXACT, seeks});
    nearfile_cache* small = nullptr;  // pages that come in pieces
    how.max_fetch_bytes = 300;
    CHECK(nearfile_cache_open((dir.path + "/pieces").c_str(), &how, &small) == NEARFILE_OK);
    through_every_call({small, "key", NEARFILE_PAGED, seeks});
    nearfile_cache_close(small);
    nearfile_cache* nowhere = nullptr;  // nothing is kept
    CHECK(nearfile_cache_open("/proc/nothing can be made here", &how, &nowhere) == NEARFILE_OK);
    through_every_call({nowhere, "key", NEARFILE_PAGED, seeks, false});
    nearfile_cache_close(nowhere);
  }
  through_list(cache);
  nearfile_cache_close(cache);
  given_back_once(nearfile::cache(dir.path + "/wrapped"));
  std::printf("%d ways to throw and to end\n", tried);
  CHECK(tried >= 200);
  return failures == 0 ? 0 : 1;
}
