// nearfile.hpp: nearfile for C++17 and later.   SPDX-License-Identifier: MIT OR Apache-2.0
//
// Header only, over nearfile.h; link the same library.
//
// nearfile keeps the near copy of a far file. Give it a way to read a remote file, and it gives back a file object:
// what has been read once is served from a sparse file on the local disk, shared by threads, processes and forked
// children, and kept for the next run.
//
//     #include <nearfile.hpp>
//
//     nearfile::cache cache;                                     // ~/.cache/nearfile
//     nearfile::options options;
//     options.key = "https://example.org/data.bin";              // what the file is
//     options.version = etag;                                    // and which one of it: another version, another copy
//     options.size = 123456789;                                  // bytes; left out, the source is asked
//     nearfile::file file(cache, [&](std::uint64_t offset, void* buf, std::size_t len) -> std::size_t {
//       return http.get(offset, buf, len);                       // bytes written to buf; throws what it likes
//     }, options);
//     char head[64];
//     std::size_t got = file.pread(head, sizeof head, 0);        // the second time, and in the next run: no network
//     nearfile::istream lines(std::move(file));                  // or as a std::istream
//
// Units    Offsets, sizes and lengths are bytes.
// Owning   Every class here owns what it holds and gives it back once. cache, file and source can be moved, not copied;
//          what was moved from may be assigned to and destroyed; a read, an open or a question to it throws error.
// Threads  A cache and a file may be used from several threads at once (a file has one position: dup() gives another);
//          an object may not be moved, assigned to or destroyed while another thread uses it. A streambuf and an
//          istream belong to one thread at a time. What a source has to stand is said at class source.
// Errors   Every failure is an exception. What a source throws arrives at the caller whose read failed, unchanged;
//          everything else is a nearfile::error. After an exception nothing wrong is stored, the position is where it
//          was, and the next call works.
#ifndef NEARFILE_HPP
#define NEARFILE_HPP

#include "nearfile.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <ios>
#include <istream>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <streambuf>
#include <string>
#include <type_traits>
#include <utility>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif
#if __cplusplus >= 202002L
#include <span>
#endif

namespace nearfile {

// A call that failed. what() is the library's sentence about it.
class error : public std::runtime_error {
 public:
  explicit error(std::int32_t status, const std::string& message, std::int32_t os_errno = 0,
                 std::int64_t source_code = 0)
      : std::runtime_error(message), status_(status), os_errno_(os_errno), source_code_(source_code) {}

  std::int32_t status() const noexcept { return status_; }  // a nearfile_status: NEARFILE_ERROR_IO, ...
  const char* status_name() const noexcept { return nearfile_status_name(status_); }
  std::int32_t os_errno() const noexcept { return os_errno_; }  // 0: no system call was to blame
  // What a callback returned; 0: no callback was to blame. A source of this header returns a number that only tells one
  // exception from another: it is seen where the source failed on a thread other than the caller's.
  std::int64_t source_code() const noexcept { return source_code_; }

 private:
  std::int32_t status_;
  std::int32_t os_errno_;
  std::int64_t source_code_;
};

namespace detail {

// What the callbacks threw during one call of the library, on the thread that made the call.
//
// An exception waits here while the status travels through the library. Each gets a number of its own, which is what
// its callback returns: the call rethrows the exception whose number comes back as the failure's source_code, and no
// other. So an exception that the library got over, one of an earlier call and one of another thread are never mistaken
// for this failure. The first and the last are kept, as a call that meets several may report either.
class call_frame {
 public:
  call_frame() noexcept : outer_(current()) { current() = this; }
  ~call_frame() { current() = outer_; }
  call_frame(const call_frame&) = delete;
  call_frame& operator=(const call_frame&) = delete;

  // In a catch block: keeps the exception for the call, if this thread is inside one, and numbers it.
  static std::int32_t keep_current_exception() noexcept {
    const std::int32_t number = next_number();
    if (call_frame* frame = current()) {
      thrown& slot = frame->first_.number == 0 ? frame->first_ : frame->last_;
      slot.number = number;
      slot.exception = std::current_exception();
    }
    return number;
  }

  [[noreturn]] void fail(std::int32_t status) const {
    nearfile_error last{};
    last.struct_size = sizeof last;
    nearfile_last_error(&last);
    if (last.status != status) throw error(status, nearfile_status_message(status));
    if (status == NEARFILE_ERROR_SOURCE) {
      rethrow_if(first_, last.source_code);
      rethrow_if(last_, last.source_code);
    }
    throw error(status, last.message, last.os_errno, last.source_code);
  }

 private:
  struct thrown {
    std::int32_t number = 0;
    std::exception_ptr exception{};  // null for what is no C++ exception
  };

  static void rethrow_if(const thrown& kept, std::int64_t source_code) {
    if (kept.exception && kept.number == source_code) std::rethrow_exception(kept.exception);
  }

  static std::int32_t next_number() noexcept {
    static std::atomic<std::uint32_t> count{0};
    return static_cast<std::int32_t>(count.fetch_add(1, std::memory_order_relaxed) % 0x7fffffffU) + 1;
  }

  static call_frame*& current() noexcept {
    static thread_local call_frame* innermost = nullptr;
    return innermost;
  }

  call_frame* outer_;  // a source may itself read another nearfile
  thrown first_{};
  thrown last_{};
};

// Makes one call of the library; a negative result is thrown.
template <class Call>
auto checked(Call call) {
  call_frame frame;
  const auto result = call();
  if (result < 0) frame.fail(static_cast<std::int32_t>(result));
  return result;
}

// For the C side, where the first NUL would end it and name another file.
inline const char* c_string(const std::string& text, const char* what) {
  if (text.find('\0') != std::string::npos) {
    throw error(NEARFILE_ERROR_ARGUMENT, std::string(what) + " has a NUL byte in it");
  }
  return text.c_str();
}

inline const char* c_string(const std::optional<std::string>& text, const char* what) {
  return text ? c_string(*text, what) : nullptr;
}

inline std::optional<std::string> optional_string(const char* text) {
  return text ? std::optional<std::string>(text) : std::nullopt;
}

// The body of a callback: no exception leaves it, save the one that ends a cancelled thread, which nobody may stop.
template <class Body>
std::int32_t callback(Body body) {
  try {
    body();
    return 0;
  }
#if defined(__GLIBCXX__)
  catch (abi::__forced_unwind&) {
    throw;
  }
#endif
  catch (...) {
    return call_frame::keep_current_exception();
  }
}

template <class T, class = void>
struct has_read_at : std::false_type {};
template <class T>
struct has_read_at<T, std::void_t<decltype(static_cast<std::size_t>(std::declval<T&>().read_at(
                          std::uint64_t{}, static_cast<void*>(nullptr), std::size_t{})))>> : std::true_type {};

template <class T, class = void>
struct has_open : std::false_type {};
template <class T>
struct has_open<T, std::void_t<decltype(std::declval<T&>().open())>> : std::true_type {};

template <class T, class = void>
struct has_size : std::false_type {};
template <class T>
struct has_size<T, std::void_t<decltype(static_cast<std::uint64_t>(std::declval<T&>().size()))>> : std::true_type {};

template <class T>
inline constexpr bool reads = has_read_at<T>::value ||
                              std::is_invocable_r_v<std::size_t, T&, std::uint64_t, void*, std::size_t>;

// The object that does the work: T itself, or what a smart pointer or a std::reference_wrapper stands for.
template <class T, class = void>
struct target {
  using type = T;
  static T& of(T& object) { return object; }
};
template <class U>
struct target<std::reference_wrapper<U>, std::enable_if_t<!reads<std::reference_wrapper<U>>>> {
  using type = U;
  static U& of(std::reference_wrapper<U>& object) { return object.get(); }
};
template <class T>
struct target<T, std::enable_if_t<!reads<T> && !has_open<T>::value && !std::is_pointer_v<T>,
                                  std::void_t<decltype(*std::declval<T&>())>>> {
  using type = std::remove_reference_t<decltype(*std::declval<T&>())>;
  static type& of(T& object) {
    if (!object) throw std::invalid_argument("nearfile: a null pointer for a source or a connection");
    return *object;
  }
};

template <class T>
using target_t = typename target<T>::type;

template <class T>
inline constexpr bool is_source = reads<target_t<T>> || has_open<target_t<T>>::value;

template <class T>
std::size_t read_from(T& object, std::uint64_t offset, void* buf, std::size_t len) {
  if constexpr (has_read_at<T>::value) {
    return static_cast<std::size_t>(object.read_at(offset, buf, len));
  } else {
    return static_cast<std::size_t>(object(offset, buf, len));
  }
}

// The callbacks of a source without open: its one connection is the object itself.
template <class T>
struct direct {
  using object = target_t<T>;
  static constexpr bool sized = has_size<object>::value;

  static object& of(void* connection) { return target<T>::of(*static_cast<T*>(connection)); }

  static std::int32_t read_at(void* connection, std::uint64_t offset, void* buf, std::size_t len,
                              std::size_t* out_len) {
    return callback([&] { *out_len = read_from(of(connection), offset, buf, len); });
  }

  static std::int32_t size(void* connection, std::uint64_t* out_size) {
    return callback([&] { *out_size = static_cast<std::uint64_t>(of(connection).size()); });
  }
};

// The callbacks of a source with open. A connection may have a size(); else its source's is asked.
template <class T>
struct opening {
  using object = target_t<T>;
  using held = std::decay_t<decltype(std::declval<object&>().open())>;
  using connection = target_t<held>;
  static constexpr bool sized = has_size<connection>::value || has_size<object>::value;

  static_assert(!std::is_pointer_v<held> || reads<held>, "open() gives the connection by value or in a smart pointer");
  static_assert(reads<connection>, "a connection has read_at(std::uint64_t, void*, std::size_t), or is called like it");

  struct opened {
    object& source;
    held value;
  };

  static std::int32_t open(void* user_data, void** out_connection) {
    return callback([&] {
      object& source = target<T>::of(*static_cast<T*>(user_data));
      auto made = std::unique_ptr<opened>(new opened{source, source.open()});
      target<held>::of(made->value);  // a null pointer fails here
      *out_connection = made.release();
    });
  }

  static std::int32_t read_at(void* at, std::uint64_t offset, void* buf, std::size_t len, std::size_t* out_len) {
    return callback([&] { *out_len = read_from(target<held>::of(static_cast<opened*>(at)->value), offset, buf, len); });
  }

  static std::int32_t size(void* at, std::uint64_t* out_size) {
    return callback([&] {
      opened& asked = *static_cast<opened*>(at);
      if constexpr (has_size<connection>::value) {
        *out_size = static_cast<std::uint64_t>(target<held>::of(asked.value).size());
      } else {
        *out_size = static_cast<std::uint64_t>(asked.source.size());
      }
    });
  }

  static void close(void* at) noexcept { delete static_cast<opened*>(at); }
};

template <class T>
void release(void* user_data) noexcept {
  delete static_cast<T*>(user_data);
}

template <class Read, class Size>
struct sized_read {
  Read read;
  Size ask;
  auto read_at(std::uint64_t offset, void* buf, std::size_t len) { return read(offset, buf, len); }
  auto size() { return ask(); }
};

template <class Open>
struct opener {
  Open make;
  auto open() { return make(); }
};

template <class Open, class Size>
struct sized_opener {
  Open make;
  Size ask;
  auto open() { return make(); }
  auto size() { return ask(); }
};

struct cache_closer {
  void operator()(nearfile_cache* handle) const noexcept { nearfile_cache_close(handle); }
};

struct file_closer {
  void operator()(nearfile_file* handle) const noexcept { nearfile_close(handle); }
};

}  // namespace detail

// A way to read the remote file: any object, or a smart pointer or std::ref to one, that has either
//
//     std::size_t read_at(std::uint64_t offset, void* buf, std::size_t len);   // or is a callable of that shape
//
// or, where each use needs a socket or a handle of its own,
//
//     connection open();      // an object with read_at (or a callable), by value or in a smart pointer
//
// and, wanted only where options::size is left out, in the source or in its connections
//
//     std::uint64_t size();   // bytes
//
// read_at writes up to len bytes of the file from offset to buf and returns how many. It may return fewer: the rest is
// asked for. 0 before the end of the file is an error. It throws whatever it likes.
//
// Owning   The object is moved or copied in (std::ref: only referred to) and destroyed when the last file over it is
//          closed; a connection is destroyed before that. Both only in the process that made them, never in a forked
//          child, which opens its own.
// Threads  A connection that open() made is used by one call at a time. open() itself may be called on several threads
//          at once; so may read_at and size() of a source without open(), unless max_connections is 1. Calls come on
//          the threads that read, and may come on the library's own. They must not use the file that they serve, nor
//          fork; another file is fine.
// Errors   What is thrown is rethrown by the call that failed for it. Where the call failed for what happened on
//          another thread, it throws error with NEARFILE_ERROR_SOURCE.
class source {
 public:
  template <class T, class Kept = std::decay_t<T>,
            std::enable_if_t<std::conjunction_v<std::negation<std::is_same<Kept, source>>,
                                                std::bool_constant<detail::is_source<Kept>>>, int> = 0>
  source(T&& object)  // implicit: a lambda can stand where a source is wanted
      : object_(new Kept(std::forward<T>(object)), &detail::release<Kept>) {
    callbacks_.struct_size = sizeof callbacks_;
    if constexpr (detail::has_open<detail::target_t<Kept>>::value) {
      use<detail::opening<Kept>>();
      callbacks_.open = &detail::opening<Kept>::open;
      callbacks_.close = &detail::opening<Kept>::close;
    } else {
      use<detail::direct<Kept>>();
    }
  }

  // From functions: read_at(offset, buf, len) and size().
  template <class Read, class Size>
  static source from(Read read_at, Size size) {
    return source(detail::sized_read<Read, Size>{std::move(read_at), std::move(size)});
  }
  template <class Read>
  static source from(Read read_at) {
    return source(std::move(read_at));
  }

  // From functions, with connections: open() gives an object with read_at, or a function like it.
  template <class Open, class Size>
  static source from_open(Open open, Size size) {
    return source(detail::sized_opener<Open, Size>{std::move(open), std::move(size)});
  }
  template <class Open>
  static source from_open(Open open) {
    return source(detail::opener<Open>{std::move(open)});
  }

  // At most this many connections, and with 1 never two calls at once. 0, the default: with open() as many as the
  // library likes; without it one, whose read_at may run on several threads at once.
  source& max_connections(std::uint32_t count) & {
    callbacks_.max_connections = count;
    return *this;
  }
  source&& max_connections(std::uint32_t count) && { return std::move(max_connections(count)); }

  // A source without open() that holds nothing a fork would break (no socket, no shared position): a forked child may
  // call it for a miss. Without this such a miss is NEARFILE_ERROR_FORKED.
  source& fork_safe() & {
    callbacks_.flags |= NEARFILE_SOURCE_FORK_SAFE;
    return *this;
  }
  source&& fork_safe() && { return std::move(fork_safe()); }

 private:
  friend class file;

  template <class Callbacks>
  void use() {
    callbacks_.read_at = &Callbacks::read_at;
    if constexpr (Callbacks::sized) callbacks_.size = &Callbacks::size;
  }

  nearfile_source callbacks_{};
  std::unique_ptr<void, void (*)(void*)> object_;
};

// How to open a cache directory. 0 is the default everywhere; what this version does not have (see nearfile.h) throws
// NEARFILE_ERROR_UNSUPPORTED if it is not 0.
struct cache_options {
  std::uint64_t size_limit = 0;       // bytes of all files together
  std::uint64_t min_free = 0;         // bytes of the file system to leave free
  std::uint64_t page_size = 0;        // bytes; default 1 MiB
  std::uint64_t max_fetch_bytes = 0;  // bytes of one read of a source, at most; default 8 MiB
  std::uint32_t when_full = 0;
  std::uint32_t flags = 0;
  std::uint32_t wait_ms = 0;          // wait for another's fetch before reading the source oneself; default 10,000
  std::uint32_t workers = 0;          // threads of the library's own
};

// How to open a file.
struct options {
  std::optional<std::string> key{};         // what the file is, such as its URL; none: private, gone at close
  std::string version{};                    // which one of it (an ETag, a time): another version has a copy of its own
  std::optional<std::uint64_t> size{};      // bytes; none: the source is asked when the file is opened
  std::uint64_t page_size = 0;              // bytes; 0: the cache's. A copy that exists keeps its own
  std::uint64_t size_limit = 0;             // bytes of this file in the cache; 0: no limit of its own
  std::uint32_t mode = NEARFILE_PAGED;
  std::uint32_t flags = 0;                  // NEARFILE_MAP | NEARFILE_VERIFY_ALWAYS | NEARFILE_TRUST_CLEAN
  std::optional<std::string> data_path{};   // a pair of files of one's own instead of one in the cache directory:
  std::optional<std::string> index_path{};  // both or neither; made if absent
};

// A directory of cached files. Files that are open stay usable after their cache is gone.
class cache {
 public:
  // $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile. Made if absent. One that cannot be used is no error: files
  // are then read from their sources.
  cache() : cache(cache_options{}) {}
  explicit cache(const cache_options& how) : handle_(open(nullptr, how)) {}
  // The directory `dir` (a std::filesystem::path will do), likewise.
  explicit cache(const std::string& dir, const cache_options& how = {})
      : handle_(open(detail::c_string(dir, "the cache directory"), how)) {}
  // Takes over a handle of the C API.
  explicit cache(nearfile_cache* owned) noexcept : handle_(owned) {}

  nearfile_stats stats() const {
    nearfile_stats numbers{};
    numbers.struct_size = sizeof numbers;
    detail::checked([&] { return nearfile_cache_get_stats(get(), &numbers); });
    return numbers;
  }

  explicit operator bool() const noexcept { return handle_ != nullptr; }       // false: moved from
  nearfile_cache* get() const noexcept { return handle_.get(); }               // for the C API; still owned here
  nearfile_cache* release() noexcept { return handle_.release(); }             // the caller's to close from now on

 private:
  static nearfile_cache* open(const char* dir, const cache_options& how) {
    nearfile_cache_options given{};
    given.struct_size = sizeof given;
    given.size_limit = how.size_limit;
    given.min_free = how.min_free;
    given.page_size = how.page_size;
    given.max_fetch_bytes = how.max_fetch_bytes;
    given.when_full = how.when_full;
    given.flags = how.flags;
    given.wait_ms = how.wait_ms;
    given.workers = how.workers;
    nearfile_cache* made = nullptr;
    detail::checked([&] { return nearfile_cache_open(dir, &given, &made); });
    return made;
  }

  std::unique_ptr<nearfile_cache, detail::cache_closer> handle_;
};

// Whether the bytes from an offset on are in the cache, and the first offset where that changes (or the file ends).
struct extent_info {
  std::uint64_t end;
  bool cached;
};

// A cached file. Closed, and the source released, when the last of it and its dups is destroyed.
class file {
 public:
  file() noexcept = default;  // no file: false, to be assigned to
  file(const cache& where, source from, const options& how = {}) : handle_(open(required(where), from, how)) {}
  // A pair of one's own, in no cache directory: options::data_path and index_path are needed.
  file(source from, const options& how) : handle_(open(nullptr, from, how)) {}
  // Takes over a handle of the C API.
  explicit file(nearfile_file* owned) noexcept : handle_(owned) {}

  // The same file, with a position of its own, at 0 first.
  file dup() const {
    nearfile_file* other = nullptr;
    detail::checked([&] { return nearfile_dup(get(), &other); });
    return file(other);
  }

  // Closes it now. Nothing is left to fail: what could not be kept is fetched again another time.
  void close() noexcept { handle_.reset(); }

  // Reads at the position and moves it. Returns how many bytes: len, or fewer at the end of the file, where it is 0.
  std::size_t read(void* buf, std::size_t len) {
    return static_cast<std::size_t>(detail::checked([&] { return nearfile_read(get(), buf, len); }));
  }

  // Reads at an offset and leaves the position alone. Returns as read does.
  std::size_t pread(void* buf, std::size_t len, std::uint64_t offset) const {
    return static_cast<std::size_t>(detail::checked([&] { return nearfile_pread(get(), buf, len, offset); }));
  }

#if __cplusplus >= 202002L
  std::size_t read(std::span<std::byte> buf) { return read(buf.data(), buf.size()); }
  std::size_t pread(std::span<std::byte> buf, std::uint64_t offset) const {
    return pread(buf.data(), buf.size(), offset);
  }
#endif

  // Moves the position, from NEARFILE_SEEK_SET, _CUR or _END, and returns it. Past the end is allowed: reads there
  // give 0. Before the start is an error.
  std::uint64_t seek(std::int64_t offset, std::int32_t whence = NEARFILE_SEEK_SET) {
    return static_cast<std::uint64_t>(detail::checked([&] { return nearfile_seek(get(), offset, whence); }));
  }

  std::uint64_t tell() const {
    return static_cast<std::uint64_t>(detail::checked([&] { return nearfile_tell(get()); }));
  }

  std::uint64_t size() const {
    return static_cast<std::uint64_t>(detail::checked([&] { return nearfile_size(get()); }));
  }

  std::uint64_t page_size() const {
    return static_cast<std::uint64_t>(detail::checked([&] { return nearfile_page_size(get()); }));
  }

  // The sparse file with the bytes, and the file of page states. None where the file is not cached at all.
  std::optional<std::string> data_path() const { return detail::optional_string(nearfile_data_path(get())); }
  std::optional<std::string> index_path() const { return detail::optional_string(nearfile_index_path(get())); }

  // From `offset` to where is it cached, or not? Reads nothing.
  extent_info extent(std::uint64_t offset) const {
    std::uint64_t end = 0;
    std::int32_t cached = 0;
    detail::checked([&] { return nearfile_extent(get(), offset, &end, &cached); });
    return {end, cached != 0};
  }

  // Drops the pages that lie wholly inside the range; the short last page counts as whole.
  void discard(std::uint64_t offset, std::uint64_t len) {
    detail::checked([&] { return nearfile_discard(get(), offset, len); });
  }

  nearfile_stats stats() const {
    nearfile_stats numbers{};
    numbers.struct_size = sizeof numbers;
    detail::checked([&] { return nearfile_get_stats(get(), &numbers); });
    return numbers;
  }

  explicit operator bool() const noexcept { return handle_ != nullptr; }  // false: moved from, closed, or never opened
  nearfile_file* get() const noexcept { return handle_.get(); }           // for the C API; still owned here
  nearfile_file* release() noexcept { return handle_.release(); }         // the caller's to close from now on

 private:
  static nearfile_cache* required(const cache& where) {
    if (!where) throw error(NEARFILE_ERROR_ARGUMENT, "the cache was moved from");
    return where.get();
  }

  static nearfile_file* open(nearfile_cache* where, source& from, const options& how) {
    if (!from.object_) throw error(NEARFILE_ERROR_ARGUMENT, "the source was moved from");
    nearfile_options given{};
    given.struct_size = sizeof given;
    given.key = detail::c_string(how.key, "the key");
    given.version = detail::c_string(how.version, "the version");
    given.size = how.size.value_or(NEARFILE_SIZE_UNKNOWN);
    given.page_size = how.page_size;
    given.size_limit = how.size_limit;
    given.mode = how.mode;
    given.flags = how.flags;
    given.data_path = detail::c_string(how.data_path, "the data path");
    given.index_path = detail::c_string(how.index_path, "the index path");
    from.callbacks_.user_data = from.object_.get();
    from.callbacks_.release = from.object_.get_deleter();
    nearfile_file* made = nullptr;
    detail::checked([&] { return nearfile_open(where, &from.callbacks_, &given, &made); });
    static_cast<void>(from.object_.release());  // the library's now: it calls the callback release
    return made;
  }

  std::unique_ptr<nearfile_file, detail::file_closer> handle_;
};

// A std::streambuf over a file: for reading only, any seeking. It starts at the file's position and keeps its own.
//
// It throws what the file throws, and is then where it was before the call.
class streambuf : public std::streambuf {
 public:
  static constexpr std::size_t default_buffer_size = 65536;  // large enough that a copy costs more than a hit

  explicit streambuf(nearfile::file opened, std::size_t buffer_size = default_buffer_size)
      : file_(std::move(opened)), size_(std::max<std::size_t>(buffer_size, 1)), buffer_(new char[size_]) {
    place(file_.tell());
  }

  streambuf(streambuf&& other) noexcept
      : std::streambuf(other), file_(std::move(other.file_)), size_(other.size_), buffer_(std::move(other.buffer_)),
        end_(other.end_) {
    other.setg(nullptr, nullptr, nullptr);
  }
  streambuf& operator=(streambuf&&) = delete;

 protected:
  int_type underflow() override {
    if (gptr() == egptr() && !fill(end_)) return traits_type::eof();
    return traits_type::to_int_type(*gptr());
  }

  std::streamsize xsgetn(char* to, std::streamsize count) override {
    const std::uint64_t start = position();
    std::size_t left = count > 0 ? static_cast<std::size_t>(count) : 0;
    const std::size_t wanted = left;
    try {
      while (left > 0) {
        const std::size_t got = left >= size_ && gptr() == egptr() ? read_past_buffer(to, left) : take(to, left);
        if (got == 0) break;
        to += got;
        left -= got;
      }
    } catch (...) {
      place(start);
      throw;
    }
    return static_cast<std::streamsize>(wanted - left);
  }

  pos_type seekoff(off_type offset, std::ios_base::seekdir from,
                   std::ios_base::openmode which = std::ios_base::in | std::ios_base::out) override {
    if ((which & std::ios_base::in) == 0) return refused();
    const std::uint64_t base = from == std::ios_base::beg ? 0 : from == std::ios_base::cur ? position() : file_.size();
    const off_type at = static_cast<off_type>(base);
    if (offset < 0 ? at + offset < 0 : offset > std::numeric_limits<off_type>::max() - at) return refused();
    move_to(static_cast<std::uint64_t>(at + offset));
    return pos_type(at + offset);
  }

  pos_type seekpos(pos_type to, std::ios_base::openmode which = std::ios_base::in | std::ios_base::out) override {
    return seekoff(off_type(to), std::ios_base::beg, which);
  }

  std::streamsize showmanyc() override {
    const std::uint64_t at = position();
    const std::uint64_t size = file_.size();
    if (at >= size) return -1;
    constexpr std::uint64_t most = static_cast<std::uint64_t>(std::numeric_limits<std::streamsize>::max());
    return static_cast<std::streamsize>(std::min(size - at, most));
  }

  // A character put back is read again if it is no longer in the buffer. It must be the one that stands there.
  int_type pbackfail(int_type c = traits_type::eof()) override {
    const std::uint64_t here = position();
    if (here == 0) return traits_type::eof();
    if (gptr() == eback()) {
      try {
        if (!fill(here - 1)) {
          place(here);
          return traits_type::eof();
        }
      } catch (...) {
        place(here);
        throw;
      }
    } else {
      setg(eback(), gptr() - 1, egptr());
    }
    const int_type there = traits_type::to_int_type(*gptr());
    if (traits_type::eq_int_type(c, traits_type::eof()) || traits_type::eq_int_type(c, there)) return there;
    setg(eback(), gptr() + 1, egptr());
    return traits_type::eof();
  }

 private:
  static pos_type refused() { return pos_type(off_type(-1)); }

  static std::uint64_t between(const char* from, const char* to) { return static_cast<std::uint64_t>(to - from); }

  std::uint64_t position() const { return end_ - between(gptr(), egptr()); }

  // Stands at `offset` with nothing buffered.
  void place(std::uint64_t offset) {
    setg(buffer_.get(), buffer_.get(), buffer_.get());
    end_ = offset;
  }

  void move_to(std::uint64_t offset) {
    if (offset > end_ || end_ - offset > between(eback(), egptr())) return place(offset);
    setg(eback(), egptr() - static_cast<std::ptrdiff_t>(end_ - offset), egptr());
  }

  // Buffers what stands at `offset`. The old contents are given up first: a read that fails may have written over them.
  bool fill(std::uint64_t offset) {
    place(offset);
    const std::size_t got = file_.pread(buffer_.get(), size_, offset);
    setg(buffer_.get(), buffer_.get(), buffer_.get() + got);
    end_ = offset + got;
    return got > 0;
  }

  std::size_t take(char* to, std::size_t len) {
    if (gptr() == egptr() && !fill(end_)) return 0;
    const std::size_t count = std::min(len, static_cast<std::size_t>(between(gptr(), egptr())));
    traits_type::copy(to, gptr(), count);
    setg(eback(), gptr() + count, egptr());
    return count;
  }

  std::size_t read_past_buffer(char* to, std::size_t len) {
    const std::size_t got = file_.pread(to, len, end_);
    place(end_ + got);
    return got;
  }

  nearfile::file file_;
  std::size_t size_;
  std::unique_ptr<char[]> buffer_;
  std::uint64_t end_ = 0;  // the offset in the file of egptr()
};

// A std::istream over a file (to keep the file: file.dup()).
//
// Unlike a plain std::istream it throws when a read fails, so that a failure is not taken for the end of the file;
// after clear() it can be read again. exceptions(std::ios_base::goodbit) makes a failure set badbit only.
class istream : public std::istream {
 public:
  explicit istream(nearfile::file opened, std::size_t buffer_size = streambuf::default_buffer_size)
      : std::istream(nullptr), buffer_(std::move(opened), buffer_size) {
    rdbuf(&buffer_);
    exceptions(std::ios_base::badbit);
  }

  istream(istream&& other) : std::istream(std::move(other)), buffer_(std::move(other.buffer_)) { set_rdbuf(&buffer_); }
  istream& operator=(istream&&) = delete;

 private:
  streambuf buffer_;
};

}  // namespace nearfile

#endif  // NEARFILE_HPP
