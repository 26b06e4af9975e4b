// Prints rows, columns and one column's chunks of a Parquet file on an HTTP server: http_parquet URL CACHE_DIR COLUMN. Only the pages
// of that column and of the footer are fetched.
#include <nearfile/arrow.hpp>
#include <nearfile/curl.h>

#include <arrow/api.h>
#include <parquet/arrow/reader.h>

#include <iostream>
#include <string>

namespace {

arrow::Status print(const std::shared_ptr<nearfile::arrow_file>& input, int column) {
  parquet::arrow::FileReaderBuilder builder;
  std::unique_ptr<parquet::arrow::FileReader> reader;
  std::shared_ptr<arrow::ChunkedArray> values;
  ARROW_RETURN_NOT_OK(builder.Open(input));
  ARROW_RETURN_NOT_OK(builder.Build(&reader));
  ARROW_RETURN_NOT_OK(reader->ReadColumn(column, &values));
  std::cout << values->length() << " values of type " << values->type()->ToString() << ", first "
            << values->GetScalar(0).ValueOrDie()->ToString() << "\n";
  return arrow::Status::OK();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: http_parquet URL CACHE_DIR COLUMN\n";
    return 2;
  }
  nearfile::cache_options small_pages;
  small_pages.page_size = 64 << 10;
  const nearfile::cache cache(argv[2], small_pages);
  nearfile_file* opened = nullptr;
  char why[1024];
  const std::int32_t code = nearfile_curl_open(cache.get(), argv[1], nullptr, nullptr, &opened);
  if (code != 0) {
    std::cerr << "http_parquet: " << nearfile_curl_message(code, why, sizeof why) << "\n";
    return 1;
  }
  const nearfile::file file(opened);
  const arrow::Status status = print(std::make_shared<nearfile::arrow_file>(file.dup()), std::stoi(argv[3]));
  if (!status.ok()) std::cerr << "http_parquet: " << status.ToString() << "\n";
  std::cerr << "source_reads=" << file.stats().source_reads << " source_bytes=" << file.stats().source_bytes << "\n";
  return status.ok() ? 0 : 1;
}
