# Reads the end of a far file through nearfile: ruby ruby.rb URL CACHE_DIR. Run it twice: the second run reads no source.
#
# Ruby may be called back on its own threads only: READAHEAD_OFF keeps the callbacks on the thread that reads. A program that wants
# to read ahead gives a source in C (nearfile/curl.h, in a library of its own). No exception may leave a callback.
require "fiddle/import"
require "net/http"

module Near
  extend Fiddle::Importer
  dlload "libnearfile.so.0"
  Error = struct ["size_t struct_size", "int32_t status", "int32_t os_errno", "int64_t source_code", "char message[256]"]
  Source = struct ["size_t struct_size", "uint32_t flags", "uint32_t max_connections", "void *user_data", "void *open", "void *read_at",
                   "void *read", "void *seek", "void *close", "void *release", "void *size"]
  Options = struct ["size_t struct_size", "char *key", "char *version", "uint64_t size", "uint64_t page_size", "uint64_t size_limit",
                    "uint32_t mode", "uint32_t flags", "char *data_path", "char *index_path"]
  # The numbers in their order: hits, misses, waits, bytes_asked, bytes_served, source_reads, ...
  Stats = struct ["size_t struct_size", "uint64_t numbers[16]"]
  READAHEAD_OFF = 16
  extern "int32_t nearfile_cache_open(char *, void *, void *)"
  extern "void nearfile_cache_close(void *)"
  extern "int32_t nearfile_open(void *, void *, void *, void *)"
  extern "int64_t nearfile_pread(void *, void *, size_t, uint64_t)"
  extern "int32_t nearfile_get_stats(void *, void *)"
  extern "int32_t nearfile_last_error(void *)"
  extern "void nearfile_close(void *)"

  def self.sized(type)
    type.malloc(Fiddle::RUBY_FREE).tap do |made|
      made.to_ptr[0, type.size] = "\0" * type.size
      made.struct_size = type.size
    end
  end

  class Failure < StandardError
    attr_reader :status, :code

    def initialize
      error = Near.sized(Error)
      Near.nearfile_last_error(error)
      @status, @code = error.status, error.source_code
      super(error.message.pack("c*").unpack1("Z*"))
    end
  end

  def self.check(status)
    status.negative? ? raise(Failure) : status
  end

  def self.open(cache, key, version, size, &read)
    read_at = Fiddle::Closure::BlockCaller.new(
      Fiddle::TYPE_INT32_T, [Fiddle::TYPE_VOIDP, Fiddle::TYPE_INT64_T, Fiddle::TYPE_VOIDP, Fiddle::TYPE_SIZE_T, Fiddle::TYPE_VOIDP]
    ) do |_, offset, buf, len, out_len|
      data = read.call(offset, len)
      next data if data.is_a?(Integer) # a code of the source's own
      buf[0, [data.bytesize, len].min] = data
      out_len[0, 8] = [data.bytesize].pack("Q")
      0
    rescue Exception # rubocop:disable Lint/RescueException
      -1
    end
    release = Fiddle::Closure::BlockCaller.new(Fiddle::TYPE_VOID, [Fiddle::TYPE_VOIDP]) { puts "released" }
    source, options, out = sized(Source), sized(Options), Fiddle::Pointer.malloc(8, Fiddle::RUBY_FREE)
    source.max_connections, source.read_at, source.release = 1, read_at, release
    options.key, options.version, options.size, options.flags = key, version, size, READAHEAD_OFF
    check nearfile_open(cache, source, options, out)
    [out.ptr, read_at, release] # C calls the two until the file is closed
  end

  def self.pread(file, length, offset)
    buf = Fiddle::Pointer.malloc(length, Fiddle::RUBY_FREE)
    buf[0, check(nearfile_pread(file, buf, length, offset))]
  end
end

uri, dir = URI(ARGV[0]), ARGV[1]
http = Net::HTTP.start(uri.host, uri.port)
head = http.head(uri.path)
size = Integer(head["Content-Length"])
# Bytes of a file on the server; or the status that it answers.
reader = lambda do |path|
  lambda do |offset, length|
    answer = http.get(path, "Range" => "bytes=#{offset}-#{offset + length - 1}", "Accept-Encoding" => "identity", "If-Match" => head["ETag"])
    answer.is_a?(Net::HTTPPartialContent) ? answer.body : Integer(answer.code)
  end
end

out = Fiddle::Pointer.malloc(8, Fiddle::RUBY_FREE)
Near.check Near.nearfile_cache_open(dir, nil, out)
cache = out.ptr
file, *callbacks = Near.open(cache, uri.to_s, head["ETag"], size, &reader.call(uri.path))
puts "#{size} bytes, the last of them: #{Near.pread(file, 16, size - 16)}"
stats = Near.sized(Near::Stats)
Near.check Near.nearfile_get_stats(file, stats)
puts "#{stats.numbers[5]} source reads, #{stats.numbers[0]} hits"
Near.nearfile_close(file)

missing, *callbacks = Near.open(cache, "#{uri}.missing", "", 100, &reader.call("#{uri.path}.missing"))
begin
  Near.pread(missing, 16, 0)
rescue Near::Failure => e
  puts "status #{e.status}, source code #{e.code}: #{e.message}"
end
Near.nearfile_close(missing)
Near.nearfile_cache_close(cache)
callbacks.clear
