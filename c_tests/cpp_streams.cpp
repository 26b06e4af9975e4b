// Guards nearfile::streambuf and nearfile::istream: they do what a std::istringstream over the same bytes does, and a
// read that fails throws, moves nothing and can be repeated.
#include "nearfile.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cpp_test.h"

namespace {

struct lost_line : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A far text, that fails while `broken` says so for what lies at or after `from`.
struct text {
  const std::string& bytes;
  const std::atomic<bool>* broken = nullptr;
  std::uint64_t from = 0;

  std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len) const {
    if (broken && *broken && offset + len > from) throw lost_line("the line went dead");
    const std::size_t at = static_cast<std::size_t>(std::min<std::uint64_t>(offset, bytes.size()));
    return bytes.copy(static_cast<char*>(buf), len, at);
  }
  std::uint64_t size() const { return bytes.size(); }
};

std::string lines(int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += "line " + std::to_string(i * 7919) + "\n";
  return all;
}

nearfile::file open(const nearfile::cache& cache, text source, std::uint64_t page_size = 100) {
  nearfile::options how;  // no key: private
  how.page_size = page_size;
  return nearfile::file(cache, source, how);
}

void reading(const nearfile::cache& cache) {
  const std::string all = lines(5000);
  nearfile::istream stream(open(cache, {all}));
  CHECK(stream.exceptions() == std::ios_base::badbit && stream.tellg() == 0);
  std::string line;
  int count = 0;
  while (std::getline(stream, line)) {
    if (line != "line " + std::to_string(count * 7919)) break;
    ++count;
  }
  CHECK(count == 5000 && stream.eof() && !stream.bad());

  stream.clear();
  stream.seekg(0, std::ios_base::end);
  CHECK(stream.tellg() == static_cast<std::streamoff>(all.size()));
  stream.seekg(7);
  std::string word;
  int number = 0;
  stream >> word >> number;
  CHECK(word == "line" && number == 7919 && stream.tellg() == 16);
  stream.seekg(0);
  CHECK(std::string(std::istreambuf_iterator<char>(stream), {}) == all);

  stream.clear();
  stream.seekg(3);
  std::vector<char> large(all.size() + 10);
  stream.read(large.data(), static_cast<std::streamsize>(large.size()));
  CHECK(stream.gcount() == static_cast<std::streamsize>(all.size() - 3) && stream.eof());
  CHECK(std::equal(all.begin() + 3, all.end(), large.begin()));

  stream.clear();
  stream.seekg(0);
  std::ostringstream copy;
  copy << stream.rdbuf();
  CHECK(copy.str() == all);

  stream.clear();
  stream.seekg(100000000);
  CHECK(stream && stream.tellg() == 100000000 && stream.get() == std::char_traits<char>::eof() && stream.eof());
  stream.clear();
  stream.seekg(-1, std::ios_base::beg);
  CHECK(stream.fail());
  stream.clear();
  CHECK(stream.rdbuf()->pubseekoff(1, std::ios_base::cur, std::ios_base::out) == std::streampos(std::streamoff(-1)));
  CHECK(stream.rdbuf()->sputc('x') == std::char_traits<char>::eof());  // for reading only
}

void starting_place(const nearfile::cache& cache) {
  const std::string all = lines(10);
  nearfile::file file = open(cache, {all});
  file.seek(7);
  nearfile::istream stream(std::move(file));
  CHECK(stream.tellg() == 7);
  std::string line;
  std::getline(stream, line);
  CHECK(line == "line 7919");
  nearfile::istream moved(std::move(stream));  // in the middle of its buffer
  std::getline(moved, line);
  CHECK(line == "line 15838" && moved.exceptions() == std::ios_base::badbit && moved.rdbuf() != stream.rdbuf());

  const std::string nothing;
  nearfile::istream empty(open(cache, {nothing}));
  CHECK(empty.rdbuf()->in_avail() == -1 && empty.get() == std::char_traits<char>::eof() && empty.eof());
}

// What can be seen of a stream after a step.
std::string seen(std::istream& stream) {
  std::string state = std::to_string(stream.rdstate()) + " count " + std::to_string(stream.gcount());
  stream.clear();
  return state + " at " + std::to_string(stream.tellg());
}

std::string step(std::istream& stream, unsigned what, std::streamoff offset, std::size_t len, char letter) {
  std::string bytes;
  switch (what) {
    case 0: bytes = std::to_string(stream.get()); break;
    case 1: bytes = std::to_string(stream.peek()); break;
    case 2: stream.unget(); break;
    case 3: stream.putback(letter); break;
    case 4: std::getline(stream, bytes); break;
    case 5: stream.ignore(static_cast<std::streamsize>(len)); break;
    case 6: stream.seekg(offset); break;
    case 7: stream.seekg(-offset, std::ios_base::end); break;
    case 8: stream.seekg(offset / 2 - static_cast<std::streamoff>(len), std::ios_base::cur); break;
    case 9: stream >> bytes; break;
    default:
      bytes.resize(len);
      stream.read(bytes.data(), static_cast<std::streamsize>(len));
      bytes.resize(static_cast<std::size_t>(stream.gcount()));
  }
  return bytes + " " + seen(stream);
}

void like_a_string_stream(const nearfile::cache& cache) {
  const std::string all = lines(60);
  const std::streamoff size = static_cast<std::streamoff>(all.size());
  for (const std::size_t buffer : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{7}, std::size_t{64},
                                   std::size_t{100000}}) {
    nearfile::istream tested(open(cache, {all}, 13), buffer);
    tested.exceptions(std::ios_base::goodbit);
    std::istringstream model(all);
    std::mt19937 random(static_cast<unsigned>(buffer));
    for (int i = 0; i < 20000; ++i) {
      const unsigned what = static_cast<unsigned>(random() % 12);
      const std::size_t len = random() % 4 == 0 ? random() % all.size() : random() % 20;
      std::streamoff offset = static_cast<std::streamoff>(random() % (all.size() + 20)) - 10;
      // Past the end a string stream refuses and a file does not: stay inside.
      if (what == 6 || what == 7) offset = std::min(offset, size);
      if (what == 7 && offset < 0) offset = 0;
      if (what == 8) {
        const std::streamoff to = model.tellg() + offset / 2 - static_cast<std::streamoff>(len);
        if (to > size) continue;
      }
      const char letter = "line 0123456789\n"[random() % 16];
      const std::string got = step(tested, what, offset, len, letter);
      const std::string expected = step(model, what, offset, len, letter);
      if (got != expected) {
        std::fprintf(stderr, "%s: buffer %zu, step %d, case %u: got \"%s\", a string stream \"%s\"\n", __FILE__, buffer,
                     i, what, got.c_str(), expected.c_str());
        ++failures;
        break;
      }
    }
  }
}

void failing(const nearfile::cache& cache) {
  const std::string all = lines(1000);
  std::atomic<bool> broken{true};
  nearfile::istream stream(open(cache, {all, &broken, 500}), 64);

  // Line by line up to the failure; then the same exception, not an end of file.
  std::string line;
  int count = 0;
  bool thrown = false;
  try {
    while (std::getline(stream, line)) ++count;
  } catch (const lost_line& failed) {
    thrown = std::string(failed.what()) == "the line went dead";
  }
  CHECK(thrown && stream.bad() && !stream.eof() && count > 20 && count < 60);

  // A large read that fails half-way takes nothing.
  stream.clear();
  stream.seekg(333);
  CHECK(stream.get() == all[333]);
  std::vector<char> bytes(5000);
  thrown = false;
  try {
    stream.read(bytes.data(), 5000);
  } catch (const lost_line&) {
    thrown = true;
  }
  CHECK(thrown && stream.bad());
  stream.clear();
  CHECK(stream.tellg() == 334);

  // With exceptions off: badbit.
  stream.exceptions(std::ios_base::goodbit);
  stream.read(bytes.data(), 5000);
  CHECK(stream.bad());
  stream.clear();
  CHECK(stream.tellg() == 334);
  stream.exceptions(std::ios_base::badbit);

  // Putting back what is no longer buffered may fail as well, and moves nothing either.
  stream.seekg(600);
  thrown = false;
  try {
    stream.unget();
  } catch (const lost_line&) {
    thrown = true;
  }
  stream.clear();
  CHECK(thrown && stream.tellg() == 600);

  // A failed refill may have written over what was buffered: that is not served again.
  nearfile::istream refilled(open(cache, {all, &broken, 450}), 300);
  refilled.read(bytes.data(), 299);
  CHECK(refilled.get() == all[299]);
  thrown = false;
  try {
    refilled.get();
  } catch (const lost_line&) {
    thrown = true;
  }
  refilled.clear();
  CHECK(thrown && refilled.tellg() == 300);
  refilled.seekg(50);
  CHECK(refilled.get() == all[50]);

  broken = false;
  stream.seekg(334);
  stream.read(bytes.data(), 5000);
  CHECK(stream.gcount() == 5000 && std::equal(bytes.begin(), bytes.end(), all.begin() + 334));
  stream.seekg(0);
  CHECK(std::string(std::istreambuf_iterator<char>(stream), {}) == all);

  // Of a moved-from stream: an error, no crash.
  nearfile::istream moved(std::move(stream));
  nearfile::streambuf loose(open(cache, {all}));
  nearfile::streambuf kept(std::move(loose));
  thrown = false;
  try {
    static_cast<void>(loose.sgetc());
  } catch (const nearfile::error& failed) {
    thrown = failed.status() == NEARFILE_ERROR_ARGUMENT;
  }
  CHECK(thrown && kept.sgetc() == 'l');
}

}  // namespace

int main() {
  try {
    const scratch dir;
    nearfile::cache cache(dir.path + "/cache");
    reading(cache);
    starting_place(cache);
    like_a_string_stream(cache);
    failing(cache);
  } catch (const std::exception& unexpected) {
    std::fprintf(stderr, "%s: unexpected: %s\n", __FILE__, unexpected.what());
    ++failures;
  }
  return failures == 0 ? 0 : 1;
}
