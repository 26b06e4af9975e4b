// Guards the way of an exception from a source to the caller whose read failed for it: unchanged, on the right thread,
// never a stale one, nothing wrong stored, and the next read works.
#include "nearfile.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <typeinfo>
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

struct too_many_requests : std::exception {  // of the user's own, not a std::runtime_error
  too_many_requests(int s, std::string h) : seconds(s), host(std::move(h)) {}
  const char* what() const noexcept override { return "429"; }
  int seconds;
  std::string host;
};

struct odd {  // no std::exception at all
  long value;
};

enum class how { fine, standard, custom, integer, object, system, library };

void fail(how kind) {
  switch (kind) {
    case how::fine: return;
    case how::standard: throw std::runtime_error("connection reset by example.org");
    case how::custom: throw too_many_requests(30, "example.org");
    case how::integer: throw 42;
    case how::object: throw odd{-7};
    case how::system: throw std::system_error(ECONNRESET, std::generic_category());
    case how::library: throw nearfile::error(NEARFILE_ERROR_FROZEN, "from within", 5, 6);
  }
}

// Runs `body` and tells what came out of it, whole.
template <class Body>
how thrown_by(Body body) {
  try {
    body();
  } catch (const too_many_requests& e) {
    CHECK(e.seconds == 30 && e.host == "example.org");
    return how::custom;
  } catch (const std::system_error& e) {
    CHECK(e.code() == std::errc::connection_reset);
    return how::system;
  } catch (const nearfile::error& e) {
    CHECK(std::string(e.what()) == "from within" && e.status() == NEARFILE_ERROR_FROZEN && e.os_errno() == 5 &&
          e.source_code() == 6);
    return how::library;
  } catch (const std::runtime_error& e) {
    CHECK(std::string(e.what()) == "connection reset by example.org" && typeid(e) == typeid(std::runtime_error));
    return how::standard;
  } catch (int e) {
    CHECK(e == 42);
    return how::integer;
  } catch (const odd& e) {
    CHECK(e.value == -7);
    return how::object;
  }
  return how::fine;
}

// The status of the nearfile::error that `body` throws itself.
template <class Body>
std::int32_t status_of(Body body) {
  try {
    body();
  } catch (const nearfile::error& failed) {
    return failed.status();
  } catch (...) {
    return 1;
  }
  return NEARFILE_OK;
}

nearfile::options sized() {
  nearfile::options given;
  given.page_size = page;
  given.size = length;
  return given;
}

bool reads_right(const nearfile::file& file) {
  std::vector<unsigned char> bytes(length + 10);
  if (file.pread(bytes.data(), bytes.size(), 0) != length) return false;
  for (std::uint64_t i = 0; i < length; ++i) {
    if (bytes[static_cast<std::size_t>(i)] != byte_at(i)) return false;
  }
  return true;
}

// A far file that can be told to fail anywhere.
struct moody {
  how reading = how::fine, opening = how::fine, sizing = how::fine;
  std::uint64_t from = 0;  // reads of what lies before go well

  std::size_t read(std::uint64_t offset, void* buf, std::size_t len) {
    if (reading != how::fine && offset + len > from) {
      std::fill_n(static_cast<char*>(buf), len, '!');  // what came before it broke
      fail(reading);
    }
    return far_read(offset, buf, len);
  }
  std::uint64_t size() {
    fail(sizing);
    return length;
  }
};

struct with_open {
  moody& mood;
  struct connection {
    moody& mood;
    std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) { return mood.read(offset, buf, len); }
    std::uint64_t size() { return mood.size(); }
  };
  connection open() {
    fail(mood.opening);
    return {mood};
  }
};

struct without_open {
  moody& mood;
  std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) { return mood.read(offset, buf, len); }
  std::uint64_t size() { return mood.size(); }
};

constexpr how kinds[] = {how::standard, how::custom, how::integer, how::object, how::system, how::library};

template <class Source>
void everywhere(const nearfile::cache& cache, bool opens) {
  char byte = 0;
  std::vector<char> bytes(length);
  for (const how kind : kinds) {
    moody mood;
    nearfile::options unknown = sized();
    unknown.size.reset();
    mood.sizing = kind;
    CHECK(thrown_by([&] { nearfile::file(cache, Source{mood}, unknown); }) == kind);
    mood.sizing = how::fine;
    if (opens) {
      mood.opening = kind;
      CHECK(thrown_by([&] { nearfile::file(cache, Source{mood}, unknown); }) == kind);
    }
    mood.opening = how::fine;
    nearfile::file file(cache, Source{mood}, unknown);
    CHECK(file.size() == length);

    // One page; twice, as the first failure must leave nothing behind.
    mood.reading = kind;
    file.seek(2500);
    for (int i = 0; i < 2; ++i) {
      CHECK(thrown_by([&] { file.pread(&byte, 1, 2500); }) == kind);
      CHECK(thrown_by([&] { file.read(&byte, 1); }) == kind && file.tell() == 2500);
      CHECK(!file.extent(2500).cached);
    }
    // Several pages, of which the later ones fail.
    mood.from = 4 * page;
    CHECK(thrown_by([&] { file.pread(bytes.data(), length, 0); }) == kind);
    CHECK(!file.extent(4 * page).cached);
    CHECK(thrown_by([&] { file.pread(&byte, 1, 0); }) == how::fine && static_cast<unsigned char>(byte) == byte_at(0));

    mood.reading = how::fine;
    CHECK(file.read(&byte, 1) == 1 && static_cast<unsigned char>(byte) == byte_at(2500));
    CHECK(reads_right(file));

    if (opens) {  // by the first miss, when the size is known
      nearfile::file lazy(cache, Source{mood}, sized());
      mood.opening = kind;
      CHECK(thrown_by([&] { lazy.pread(&byte, 1, 2500); }) == kind);
      CHECK(thrown_by([&] { lazy.pread(&byte, 1, 2500); }) == kind && !lazy.extent(2500).cached);
      mood.opening = how::fine;
      CHECK(reads_right(lazy));
    }
  }
}

// An exception belongs to one failure.
void never_a_stale_one(const nearfile::cache& cache) {
  char byte = 0;
  int act = 0;
  auto source = [&](std::uint64_t offset, void* buf, std::size_t len) -> std::size_t {
    if (act == 1) fail(how::custom);
    if (act == 2) return 0;
    if (act == 3) return len + 1;
    return far_read(offset, buf, len);
  };
  nearfile::file file(cache, source, sized());
  const auto read = [&] { file.pread(&byte, 1, 2500); };

  act = 1;  // nobody picks this one up: the call is the C API's
  CHECK(nearfile_pread(file.get(), &byte, 1, 2500) == NEARFILE_ERROR_SOURCE);
  nearfile_error last{};
  last.struct_size = sizeof last;
  nearfile_last_error(&last);
  CHECK(last.status == NEARFILE_ERROR_SOURCE && last.source_code != 0);
  act = 3;
  CHECK(status_of(read) == NEARFILE_ERROR_SOURCE);
  act = 2;
  CHECK(status_of(read) == NEARFILE_ERROR_SHORT_SOURCE);
  act = 1;
  CHECK(thrown_by(read) == how::custom);
  act = 2;
  CHECK(status_of(read) == NEARFILE_ERROR_SHORT_SOURCE);
  CHECK(status_of([&] { file.seek(-1); }) == NEARFILE_ERROR_ARGUMENT);
  act = 1;
  CHECK(thrown_by(read) == how::custom);
  CHECK(status_of([&] { file.seek(-1); }) == NEARFILE_ERROR_ARGUMENT);
  CHECK(status_of([&] { nearfile::file().pread(&byte, 1, 0); }) == NEARFILE_ERROR_ARGUMENT);
  act = 0;
  CHECK(thrown_by(read) == how::fine && reads_right(file));

  // Not even for a moment is it kept after the call: a caught exception is destroyed.
  auto alive = std::make_shared<int>();
  nearfile::file mortal(cache, [&](std::uint64_t, void*, std::size_t) -> std::size_t { throw alive; }, sized());
  try {
    mortal.pread(&byte, 1, 0);
    CHECK(false && "nothing thrown");
  } catch (const std::shared_ptr<int>& same) {
    CHECK(same == alive && alive.use_count() >= 2);
  }
  CHECK(alive.use_count() == 1);
}

// A source may read another nearfile: what is thrown there passes through both, or is dealt with on the way.
void one_inside_another(const nearfile::cache& cache) {
  char byte = 0;
  moody mood;
  nearfile::file inner(cache, without_open{mood}, sized());
  bool deal_with_it = false;
  nearfile::file outer(cache, [&](std::uint64_t offset, void* buf, std::size_t len) -> std::size_t {
    try {
      return inner.pread(buf, len, offset);
    } catch (const too_many_requests&) {
      if (!deal_with_it) throw;
    }
    fail(how::standard);
    return 0;
  }, sized());
  mood.reading = how::custom;
  CHECK(thrown_by([&] { outer.pread(&byte, 1, 2500); }) == how::custom);
  deal_with_it = true;
  CHECK(thrown_by([&] { outer.pread(&byte, 1, 2500); }) == how::standard);
  mood.reading = how::fine;
  CHECK(reads_right(outer) && reads_right(inner));
}

// Two failures inside one call: the one that is reported decides, not the first or the last that was thrown.
struct relay {
  nearfile_file* files[2];
  int pass_on = 0;
};

std::int32_t relay_read_at(void* connection, std::uint64_t offset, void* buf, std::size_t len, std::size_t* out_len) {
  const relay& both = *static_cast<relay*>(connection);
  std::int64_t codes[2] = {0, 0};
  for (int i = 0; i < 2; ++i) {
    const std::int64_t got = nearfile_pread(both.files[i], buf, len, offset);
    if (got >= 0) {
      *out_len = static_cast<std::size_t>(got);
      return 0;
    }
    nearfile_error last{};
    last.struct_size = sizeof last;
    nearfile_last_error(&last);
    codes[i] = last.source_code;
  }
  return both.pass_on < 2 ? static_cast<std::int32_t>(codes[both.pass_on]) : -12345;
}

void the_one_reported(const nearfile::cache& cache) {
  char byte = 0;
  moody moods[2];
  moods[0].reading = how::custom;
  moods[1].reading = how::integer;
  nearfile::file first(cache, without_open{moods[0]}, sized());
  nearfile::file second(cache, with_open{moods[1]}, sized());
  relay both{{first.get(), second.get()}};

  nearfile_source source{};
  source.struct_size = sizeof source;
  source.user_data = &both;
  source.read_at = relay_read_at;
  nearfile_options given{};
  given.struct_size = sizeof given;
  given.size = length;
  given.page_size = page;
  nearfile_file* made = nullptr;
  CHECK(nearfile_open(cache.get(), &source, &given, &made) == NEARFILE_OK);
  nearfile::file file(made);
  const auto read = [&] { file.pread(&byte, 1, 2500); };
  CHECK(thrown_by(read) == how::custom);
  both.pass_on = 1;
  CHECK(thrown_by(read) == how::integer);
  both.pass_on = 2;  // a failure of the relay's own: no exception belongs to it
  try {
    read();
    CHECK(false && "nothing thrown");
  } catch (const nearfile::error& failed) {
    CHECK(failed.status() == NEARFILE_ERROR_SOURCE && failed.source_code() == -12345);
  }

  // The same with a source that throws after it has met another's failure.
  nearfile::file outer(cache, [&](std::uint64_t offset, void* buf, std::size_t len) -> std::size_t {
    if (nearfile_pread(first.get(), buf, len, offset) < 0) fail(how::standard);
    return len;
  }, sized());
  CHECK(thrown_by([&] { outer.pread(&byte, 1, 2500); }) == how::standard);

  moods[0].reading = how::fine;
  CHECK(reads_right(file));
}

// Lets the threads go on together; those that wait in vain go on after a second.
class meeting {
 public:
  explicit meeting(int of) : missing_(of) {}
  void wait() {
    std::unique_lock lock(mutex_);
    if (--missing_ <= 0) all_here_.notify_all();
    all_here_.wait_for(lock, std::chrono::seconds(1), [&] { return missing_ <= 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  int missing_;
};

void each_its_own(const nearfile::cache& cache) {
  for (const bool same_page : {false, true}) {
    for (int round = 0; round < (same_page ? 3 : 20); ++round) {
      meeting inside(2);
      std::atomic<bool> failing{true};
      thread_local how mine = how::fine;
      nearfile::file file(cache, [&](std::uint64_t offset, void* buf, std::size_t len) {
        if (failing) {
          if (!same_page) inside.wait();  // both are inside before either throws
          fail(mine);
        }
        return far_read(offset, buf, len);
      }, sized());
      std::vector<std::thread> threads;
      for (const how kind : {how::custom, how::integer}) {
        threads.emplace_back([&, kind] {
          char byte = 0;
          mine = kind;
          const std::uint64_t at = same_page || kind == how::custom ? 2500 : 7500;
          if (!same_page) {
            CHECK(thrown_by([&] { file.pread(&byte, 1, at); }) == kind);
          } else {
            // Of a failure shared with another's read, the library's word; of one's own, one's own exception.
            try {
              file.pread(&byte, 1, at);
              CHECK(false && "nothing thrown");
            } catch (const nearfile::error& failed) {
              CHECK(failed.status() == NEARFILE_ERROR_SOURCE && failed.source_code() != 0);
            } catch (const too_many_requests&) {
              CHECK(kind == how::custom);
            } catch (int) {
              CHECK(kind == how::integer);
            }
          }
        });
      }
      for (std::thread& one : threads) one.join();
      failing = false;
      CHECK(reads_right(file));
    }
  }
}

// Another thread's success and failure at the same time, at speed.
void under_load(const nearfile::cache& cache) {
  std::atomic<unsigned> calls{0};
  thread_local bool doomed = false;
  nearfile::file file(cache, [&](std::uint64_t offset, void* buf, std::size_t len) {
    ++calls;
    if (doomed) throw std::this_thread::get_id();
    return far_read(offset, buf, len);
  }, sized());
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      unsigned char byte = 0;
      for (unsigned i = 0; i < 500; ++i) {
        const std::uint64_t at = std::uint64_t{(i * 7 + t) % 10} * page;
        doomed = i % 2 == t % 2;
        try {
          if (t == 0) file.discard(at, page);
          CHECK(file.pread(&byte, 1, at) == 1 && byte == byte_at(at));
        } catch (const std::thread::id& who) {
          CHECK(who == std::this_thread::get_id() && doomed);
        } catch (const nearfile::error& shared) {
          CHECK(shared.status() == NEARFILE_ERROR_SOURCE && shared.source_code() != 0);
        }
      }
    });
  }
  for (std::thread& one : threads) one.join();
  CHECK(calls > 0 && reads_right(file));
}

}  // namespace

int main() {
  try {
    const scratch dir;
    nearfile::cache cache(dir.path + "/cache");
    everywhere<with_open>(cache, true);
    everywhere<without_open>(cache, false);
    never_a_stale_one(cache);
    one_inside_another(cache);
    the_one_reported(cache);
    each_its_own(cache);
    under_load(cache);
  } catch (const std::exception& unexpected) {
    std::fprintf(stderr, "%s: unexpected: %s\n", __FILE__, unexpected.what());
    ++failures;
  }
  return failures == 0 ? 0 : 1;
}
