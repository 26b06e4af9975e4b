// What the C++ tests share: checks that count, and a directory of their own.
#ifndef NEARFILE_CPP_TEST_H
#define NEARFILE_CPP_TEST_H

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>

inline std::atomic<int> failures{0};

#define CHECK(what)                                                        \
  do {                                                                     \
    if (!(what)) {                                                         \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);      \
      ++failures;                                                          \
    }                                                                      \
  } while (false)

struct scratch {
  std::string path;
  scratch() {
    const char* given = std::getenv("NEARFILE_TEST_DIR");
    path = (given ? std::string(given) : std::filesystem::temp_directory_path().string()) + "/cpp.XXXXXX";
    if (!::mkdtemp(path.data())) throw std::runtime_error("no scratch directory at " + path);
  }
  ~scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

#endif
