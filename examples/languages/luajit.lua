-- Reads the end of a far file through nearfile: luajit luajit.lua FILE CACHE_DIR. Run it twice: the second run reads no source.
--
-- LuaJIT may be called back on its own thread only: NEARFILE_READAHEAD_OFF keeps the callbacks on the thread that reads. A program
-- that wants to read ahead gives a source in C (nearfile/curl.h, in a library of its own). Nothing may leave a callback by error(),
-- and what calls one must not be compiled.
local ffi = require "ffi"

-- The installed header declares everything, once the lines for a preprocessor are out of it.
local pkg_config = io.popen("pkg-config --variable=includedir nearfile")
local header = assert(io.open(pkg_config:read("*l") .. "/nearfile.h")):read("*a")
ffi.cdef((header:gsub("#ifdef __cplusplus.-#endif[^\n]*", ""):gsub("\n#[^\n]*", "\n")))
local near = ffi.load("libnearfile.so.0")

local function check(status)
  if status >= 0 then return tonumber(status) end
  local failure = ffi.new("nearfile_error", {ffi.sizeof("nearfile_error")})
  near.nearfile_last_error(failure)
  error({status = failure.status, code = tonumber(failure.source_code), message = ffi.string(failure.message)})
end

-- A source is a function(offset, length) that returns a string, or nil and a code.
local kept, released = {}, {} -- callbacks: those that C may call, and those that wait for their slot to be freed
local function source_of(read)
  local callbacks = {}
  callbacks.read_at = ffi.cast("int32_t (*)(void *, uint64_t, void *, size_t, size_t *)", function(_, offset, buf, len, out_len)
    local ok, data, code = pcall(read, tonumber(offset), tonumber(len))
    if not ok or data == nil then return code or -1 end
    ffi.copy(buf, data, math.min(#data, tonumber(len)))
    out_len[0] = #data
    return 0
  end)
  callbacks.release = ffi.cast("void (*)(void *)", function()
    kept[callbacks], released[callbacks] = nil, true
    print("released")
  end)
  kept[callbacks] = true
  local source = ffi.new("nearfile_source", {ffi.sizeof("nearfile_source")})
  source.read_at, source.release = callbacks.read_at, callbacks.release
  return source
end

local function open(cache, read, key, version, size)
  local options = ffi.new("nearfile_options", {ffi.sizeof("nearfile_options"), key, version, size})
  options.flags = 16 -- NEARFILE_READAHEAD_OFF
  local out = ffi.new("nearfile_file *[1]")
  check(near.nearfile_open(cache, source_of(read), options, out))
  return out[0]
end

local function pread(file, length, offset)
  local buf = ffi.new("char[?]", length)
  return ffi.string(buf, check(near.nearfile_pread(file, buf, length, offset)))
end

local function close(file)
  near.nearfile_close(file)
  for callbacks in pairs(released) do
    for _, callback in pairs(callbacks) do callback:free() end
    released[callbacks] = nil
  end
end
jit.off(true, true)

-- The far file. Here it is a local one; it can be anything that is read at an offset.
local function reader(path)
  return function(offset, length)
    local file, _, errno = io.open(path, "rb")
    if not file then return nil, errno end
    file:seek("set", offset)
    local data = file:read(length)
    file:close()
    return data
  end
end

local path, dir = arg[1], arg[2]
local size, version = io.popen("stat -c '%s %Y' -- '" .. path:gsub("'", "'\\''") .. "'"):read("*n", "*l")
local out = ffi.new("nearfile_cache *[1]")
check(near.nearfile_cache_open(dir, nil, out))
local cache = out[0]
local file = open(cache, reader(path), path, version, size)
print(string.format("%.0f bytes, the last of them: %s", size, pread(file, 16, size - 16)))
local stats = ffi.new("nearfile_stats", {ffi.sizeof("nearfile_stats")})
check(near.nearfile_get_stats(file, stats))
print(string.format("%d source reads, %d hits", tonumber(stats.source_reads), tonumber(stats.hits)))
close(file)

local missing = open(cache, reader(path .. ".missing"), path .. ".missing", "", 100)
local _, failure = pcall(pread, missing, 16, 0)
print(string.format("status %d, source code %d: %s", failure.status, failure.code, failure.message))
close(missing)
near.nearfile_cache_close(cache)
