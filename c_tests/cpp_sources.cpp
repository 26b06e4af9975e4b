// Guards nearfile::source: every shape of source that the header allows is understood, it is made and destroyed as
// often as it should be and by whom, and what a source counts wrongly is never stored.
#include "nearfile.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpp_test.h"

namespace {

constexpr std::uint64_t length = 10 * 1000 + 3;

unsigned char byte_at(std::uint64_t offset) { return static_cast<unsigned char>((offset * 0x9E3779B97F4A7C15U) >> 56); }

std::size_t far_read(std::uint64_t offset, void* buf, std::size_t len) {
  if (offset >= length) return 0;
  const std::size_t got = static_cast<std::size_t>(std::min<std::uint64_t>(len, length - offset));
  for (std::size_t i = 0; i < got; ++i) static_cast<unsigned char*>(buf)[i] = byte_at(offset + i);
  return got;
}

nearfile::options paged(std::uint64_t page_size = 1000) {
  nearfile::options how;
  how.page_size = page_size;
  return how;
}

nearfile::options sized(std::uint64_t page_size = 1000) {
  nearfile::options how = paged(page_size);
  how.size = length;
  return how;
}

bool reads_right(const nearfile::file& file) {
  std::vector<unsigned char> bytes(length + 10);
  if (file.size() != length || file.pread(bytes.data(), bytes.size(), 0) != length) return false;
  for (std::uint64_t i = 0; i < length; ++i) {
    if (bytes[static_cast<std::size_t>(i)] != byte_at(i)) return false;
  }
  return true;
}

struct counts {
  std::atomic<int> sources{0}, connections{0}, opened{0}, reads{0};
};

// Counts itself while it lives.
struct counted {
  explicit counted(std::atomic<int>& of) : count(&of) { ++*count; }
  counted(const counted& other) : count(other.count) { ++*count; }
  counted(counted&& other) noexcept : count(other.count) { ++*count; }
  counted& operator=(const counted&) = delete;
  ~counted() { --*count; }
  std::atomic<int>* count;
};

struct plain {  // read_at and size
  counts& all;
  counted self{all.sources};
  std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) {
    ++all.reads;
    return far_read(offset, buf, len);
  }
  std::uint64_t size() const { return length; }
};

struct pinned {  // can be neither moved nor copied
  explicit pinned(counts& c) : all(c), self(c.connections) { ++c.opened; }
  pinned(const pinned&) = delete;
  pinned& operator=(const pinned&) = delete;
  counts& all;
  counted self;
  std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) {
    ++all.reads;
    return far_read(offset, buf, len);
  }
};

struct by_value {  // connections by value, the size in the source
  counts& all;
  counted self{all.sources};
  pinned open() { return pinned(all); }
  std::uint64_t size() { return length; }
};

struct connection {  // an abstract connection with a size of its own
  virtual ~connection() = default;
  virtual std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) = 0;
  virtual std::uint64_t size() = 0;
};

struct socket final : connection {
  explicit socket(counts& c) : inner(c) {}
  pinned inner;
  std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) override {
    return inner.read_at(offset, buf, len);
  }
  std::uint64_t size() override { return length; }
};

struct by_pointer {
  counts& all;
  counted self{all.sources};
  std::unique_ptr<connection> open() { return std::make_unique<socket>(all); }
  std::uint64_t size() { return 1; }  // the connection knows better
};

std::size_t free_function(std::uint64_t offset, void* buf, std::size_t len) { return far_read(offset, buf, len); }

void shapes(const nearfile::cache& cache) {
  counts all;
  CHECK(reads_right(nearfile::file(cache, plain{all}, paged())));
  CHECK(all.sources == 0 && all.reads > 0);
  CHECK(reads_right(nearfile::file(cache, std::make_unique<plain>(plain{all}), paged())));
  CHECK(reads_right(nearfile::file(cache, std::make_shared<plain>(plain{all}), paged())));
  CHECK(all.sources == 0);
  {
    plain mine{all};
    CHECK(reads_right(nearfile::file(cache, std::ref(mine), paged())));
    CHECK(all.sources == 1);
  }

  CHECK(reads_right(nearfile::file(cache, by_value{all}, paged())));
  CHECK(reads_right(nearfile::file(cache, by_pointer{all}, paged())));
  CHECK(reads_right(nearfile::file(cache, std::make_shared<by_pointer>(by_pointer{all}), paged())));
  CHECK(all.sources == 0 && all.connections == 0 && all.opened >= 3);

  CHECK(reads_right(nearfile::file(cache, &free_function, sized())));
  CHECK(reads_right(nearfile::file(cache, free_function, sized())));
  const std::function<std::size_t(std::uint64_t, void*, std::size_t)> function = far_read;
  CHECK(reads_right(nearfile::file(cache, function, sized())));
  CHECK(reads_right(nearfile::file(cache, nearfile::source::from(far_read), sized())));
  CHECK(reads_right(nearfile::file(cache, nearfile::source::from(far_read, [] { return length; }), paged())));
  auto moved_only = [handle = std::make_unique<int>(0)](std::uint64_t offset, void* buf, std::size_t len) mutable {
    ++*handle;
    return far_read(offset, buf, len);
  };
  CHECK(reads_right(nearfile::file(cache, std::move(moved_only), sized())));
  auto like_posix = [](std::uint64_t offset, void* buf, std::size_t len) -> ssize_t {
    return static_cast<ssize_t>(far_read(offset, buf, len));
  };
  CHECK(reads_right(nearfile::file(cache, like_posix, sized())));

  // Connections from a lambda: an object, and a function.
  auto open_object = [&all] { return std::make_unique<pinned>(all); };
  CHECK(reads_right(nearfile::file(cache, nearfile::source::from_open(open_object), sized())));
  CHECK(reads_right(nearfile::file(cache, nearfile::source::from_open(open_object, [] { return length; }), paged())));
  auto open_function = [&all] {
    return [one = counted(all.connections)](std::uint64_t offset, void* buf, std::size_t len) {
      return far_read(offset, buf, len);
    };
  };
  CHECK(reads_right(nearfile::file(cache, nearfile::source::from_open(open_function, [] { return length; }), paged())));
  CHECK(all.sources == 0 && all.connections == 0);
}

void lifetimes(const nearfile::cache& cache) {
  counts all;
  {
    nearfile::file file(cache, by_value{all}, sized());
    CHECK(all.sources == 1 && all.opened == 0);  // opened by the first miss
    char byte = 0;
    file.pread(&byte, 1, 0);
    CHECK(all.opened == 1 && all.connections == 1);
    nearfile::file other = file.dup();
    file.close();
    other.pread(&byte, 1, 5000);
    CHECK(all.sources == 1 && all.opened == 1);  // the connection is kept
  }
  CHECK(all.sources == 0 && all.connections == 0);

  // A page that is there needs no source.
  nearfile::options how = sized();
  how.key = "lifetimes";
  CHECK(reads_right(nearfile::file(cache, by_value{all}, how)));
  all.opened = 0;
  CHECK(reads_right(nearfile::file(cache, by_value{all}, how)) && all.opened == 0);
}

// Whether calls of read_at met each other.
struct lonely {
  std::atomic<int>& inside;
  std::atomic<int>& most;
  std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) {
    const int now = ++inside;
    int before = most;
    while (before < now && !most.compare_exchange_weak(before, now)) {
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    --inside;
    return far_read(offset, buf, len);
  }
};

void one_at_a_time(const nearfile::cache& cache) {
  std::atomic<int> inside{0}, most{0};
  nearfile::file file(cache, nearfile::source(lonely{inside, most}).max_connections(1), sized());
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      char byte = 0;
      for (std::uint64_t i = t; i < 10; i += 4) CHECK(file.pread(&byte, 1, i * 1000) == 1);
    });
  }
  for (std::thread& one : threads) one.join();
  CHECK(most == 1 && reads_right(file));
}

void counts_that_lie(const nearfile::cache& cache) {
  // Fewer than asked: the rest is asked for.
  auto little = [](std::uint64_t offset, void* buf, std::size_t len) {
    return far_read(offset, buf, std::min<std::size_t>(len, 7));
  };
  CHECK(reads_right(nearfile::file(cache, little, sized())));

  for (const int lie : {0, 1, 2, 3}) {
    bool lying = true;
    auto source = [&](std::uint64_t offset, void* buf, std::size_t len) -> long long {
      const std::size_t got = far_read(offset, buf, len);
      if (!lying) return static_cast<long long>(got);
      std::fill_n(static_cast<char*>(buf), len, '!');
      return lie == 0 ? 0 : lie == 1 ? -1 : lie == 2 ? static_cast<long long>(len) + 1 : INT64_MAX;
    };
    nearfile::file file(cache, source, sized());
    char byte = 0;
    try {
      file.pread(&byte, 1, 2500);
      CHECK(false && "a lie was believed");
    } catch (const nearfile::error& failed) {
      CHECK(failed.status() == (lie == 0 ? NEARFILE_ERROR_SHORT_SOURCE : NEARFILE_ERROR_SOURCE));
    }
    CHECK(!file.extent(2500).cached);
    lying = false;
    CHECK(reads_right(file));
  }
}

// Runs `body` in a forked child, which reports what it found by its exit status.
template <class Body>
bool in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    bool good = false;
    try {
      good = body();
    } catch (const std::exception& unexpected) {
      std::fprintf(stderr, "in a child: %s\n", unexpected.what());
    }
    ::_exit(good && failures == 0 ? 0 : 1);
  }
  int status = 0;
  return child > 0 && ::waitpid(child, &status, 0) == child && status == 0;
}

void over_fork(const nearfile::cache& cache) {
  counts all;
  char byte = 0;
  {
    nearfile::file file(cache, by_value{all}, sized());
    file.pread(&byte, 1, 0);
    CHECK(in_child([&] {
      all.opened = 0;
      CHECK(file.pread(&byte, 1, 0) == 1 && all.opened == 0);  // a hit
      CHECK(reads_right(file) && all.opened == 1);             // a miss: a connection of its own
      file.close();
      return all.sources == 1 && all.connections == 1;  // what was inherited is left alone
    }));
    CHECK(reads_right(file));
  }
  CHECK(all.sources == 0 && all.connections == 0);

  // Without open, only a source that says so is used in a child.
  nearfile::file bound(cache, plain{all}, sized());
  nearfile::file stateless(cache, nearfile::source(plain{all}).fork_safe(), sized());
  bound.pread(&byte, 1, 0);
  CHECK(in_child([&] {
    CHECK(bound.pread(&byte, 1, 0) == 1);
    try {
      bound.pread(&byte, 1, 5000);
    } catch (const nearfile::error& failed) {
      return failed.status() == NEARFILE_ERROR_FORKED;
    }
    return false;
  }));
  CHECK(in_child([&] { return reads_right(stateless); }));
  CHECK(reads_right(bound) && reads_right(stateless));
}

}  // namespace

int main() {
  try {
    const scratch dir;
    nearfile::cache cache(dir.path + "/cache");
    shapes(cache);
    lifetimes(cache);
    one_at_a_time(cache);
    counts_that_lie(cache);
    over_fork(cache);
  } catch (const std::exception& unexpected) {
    std::fprintf(stderr, "%s: unexpected: %s\n", __FILE__, unexpected.what());
    ++failures;
  }
  return failures == 0 ? 0 : 1;
}
