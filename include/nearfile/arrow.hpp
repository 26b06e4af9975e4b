// nearfile/arrow.hpp: a nearfile::file as an arrow::io::RandomAccessFile, for Arrow, Parquet, Feather, ORC and datasets in C++.
// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Header only, C++17 (or what the Arrow at hand asks for); link with -lnearfile -larrow.
//
//     #include <nearfile/arrow.hpp>
//     #include <nearfile/curl.h>
//
//     nearfile::cache cache;
//     nearfile_file* opened = nullptr;
//     if (nearfile_curl_open(cache.get(), url, nullptr, nullptr, &opened) != 0) return fail();
//     auto input = std::make_shared<nearfile::arrow_file>(nearfile::file(opened));
//     ARROW_ASSIGN_OR_RAISE(auto reader, parquet::arrow::OpenFile(input, arrow::default_memory_pool()));
//     std::shared_ptr<arrow::Table> table;
//     ARROW_RETURN_NOT_OK(reader->ReadTable({0, 2}, &table));   // fetches the pages of two columns
//
// What it gives. ReadAt reads at an offset, Read at the position, both into memory of the caller or of Arrow's pool; ReadAsync and
//   ReadManyAsync are Arrow's own, on its I/O threads. Short reads happen at the end of the file only. WillNeed has nearfile's threads
//   fetch the ranges, and does not wait.
// Ownership. It owns the file, and closes it in Close or with itself (file.dup() keeps another). Buffers are Arrow's and outlive it.
// Threads. ReadAt, ReadAsync and GetSize from any thread at once; Read, Seek, Tell and Close from one at a time, Close as the last.
// Forks. Usable in a child; Arrow's thread pools are what Arrow makes of them.
// Errors. What the library or the source's exception says, as arrow::Status::IOError; a closed file or a negative offset is Invalid.
#ifndef NEARFILE_ARROW_HPP
#define NEARFILE_ARROW_HPP

#include <nearfile.hpp>

#include <arrow/buffer.h>
#include <arrow/io/interfaces.h>
#include <arrow/memory_pool.h>
#include <arrow/result.h>
#include <arrow/status.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

namespace nearfile {

class arrow_file : public arrow::io::RandomAccessFile {
 public:
  explicit arrow_file(nearfile::file opened, arrow::MemoryPool* pool = arrow::default_memory_pool())
      : file_(std::move(opened)), pool_(pool) {}

  arrow::Status Close() override {
    file_.close();
    return arrow::Status::OK();
  }

  bool closed() const override { return !file_; }

  arrow::Result<std::int64_t> Tell() const override {
    return result_of([&] { return file_.tell(); });
  }

  arrow::Status Seek(std::int64_t position) override {
    if (position < 0) return negative();
    return result_of([&] { return file_.seek(position); }).status();
  }

  arrow::Result<std::int64_t> GetSize() override {
    return result_of([&] { return file_.size(); });
  }

  // A hint: what cannot be fetched now is met by who reads.
  arrow::Status WillNeed(const std::vector<arrow::io::ReadRange>& ranges) override {
    if (closed()) return is_closed();
    for (const auto& range : ranges) {
      if (range.offset < 0 || range.length < 0) return negative();
      static_cast<void>(nearfile_prefetch(file_.get(), static_cast<std::uint64_t>(range.offset),
                                          static_cast<std::uint64_t>(range.length), NEARFILE_PREFETCH_NOWAIT, nullptr, nullptr));
    }
    return arrow::Status::OK();
  }

  arrow::Result<std::int64_t> Read(std::int64_t nbytes, void* out) override {
    if (nbytes < 0) return negative();
    return result_of([&] { return file_.read(out, static_cast<std::size_t>(nbytes)); });
  }

  arrow::Result<std::shared_ptr<arrow::Buffer>> Read(std::int64_t nbytes) override {
    ARROW_ASSIGN_OR_RAISE(const std::int64_t position, Tell());
    return into_buffer(position, nbytes, [&](std::int64_t len, void* out) { return Read(len, out); });
  }

  using arrow::io::RandomAccessFile::ReadAt;

  arrow::Result<std::int64_t> ReadAt(std::int64_t position, std::int64_t nbytes, void* out) override {
    if (position < 0 || nbytes < 0) return negative();
    return result_of(
        [&] { return file_.pread(out, static_cast<std::size_t>(nbytes), static_cast<std::uint64_t>(position)); });
  }

  arrow::Result<std::shared_ptr<arrow::Buffer>> ReadAt(std::int64_t position, std::int64_t nbytes) override {
    return into_buffer(position, nbytes, [&](std::int64_t len, void* out) { return ReadAt(position, len, out); });
  }

  // Newer Arrows call these, and older ones do not have them: hence no `override`.
  virtual arrow::Result<std::int64_t> ReadAt(std::int64_t position, std::int64_t nbytes, bool allow_short_read, void* out) {
    ARROW_ASSIGN_OR_RAISE(const std::int64_t got, ReadAt(position, nbytes, out));
    if (got < nbytes && !allow_short_read) return too_short(got, nbytes);
    return got;
  }

  virtual arrow::Result<std::shared_ptr<arrow::Buffer>> ReadAt(std::int64_t position, std::int64_t nbytes,
                                                               bool allow_short_read) {
    ARROW_ASSIGN_OR_RAISE(auto buffer, ReadAt(position, nbytes));
    if (buffer->size() < nbytes && !allow_short_read) return too_short(buffer->size(), nbytes);
    return buffer;
  }

 private:
  static arrow::Status negative() { return arrow::Status::Invalid("nearfile: a negative offset or length"); }

  static arrow::Status is_closed() { return arrow::Status::Invalid("nearfile: the file is closed"); }

  static arrow::Status too_short(std::int64_t got, std::int64_t nbytes) {
    return arrow::Status::IOError("nearfile: the file ends after ", got, " of ", nbytes, " bytes");
  }

  // Makes one call of the library; what it throws becomes a status.
  template <class Call>
  arrow::Result<std::int64_t> result_of(Call call) const {
    if (closed()) return is_closed();
    try {
      return static_cast<std::int64_t>(call());
    } catch (const std::exception& thrown) {
      return arrow::Status::IOError("nearfile: ", thrown.what());
    } catch (...) {
      return arrow::Status::IOError("nearfile: the source threw what is no std::exception");
    }
  }

  // Memory for what is left of the file, and no more: callers may ask for anything.
  template <class ReadInto>
  arrow::Result<std::shared_ptr<arrow::Buffer>> into_buffer(std::int64_t position, std::int64_t nbytes, ReadInto read) {
    if (position < 0 || nbytes < 0) return negative();
    ARROW_ASSIGN_OR_RAISE(const std::int64_t size, GetSize());
    const std::int64_t len = std::min(nbytes, std::max<std::int64_t>(size - position, 0));
    ARROW_ASSIGN_OR_RAISE(std::unique_ptr<arrow::ResizableBuffer> buffer, arrow::AllocateResizableBuffer(len, pool_));
    ARROW_ASSIGN_OR_RAISE(const std::int64_t got, read(len, buffer->mutable_data()));
    if (got < len) ARROW_RETURN_NOT_OK(buffer->Resize(got));
    buffer->ZeroPadding();
    return std::shared_ptr<arrow::Buffer>(std::move(buffer));
  }

  nearfile::file file_;
  arrow::MemoryPool* pool_;
};

}  // namespace nearfile

#endif  // NEARFILE_ARROW_HPP
