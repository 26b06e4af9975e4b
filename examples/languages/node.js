// Reads the end of a far file through nearfile: node node.js URL CACHE_DIR (npm install koffi). Run it twice: the second run reads no source.
//
// JavaScript may be called back on its own thread only. Of a synchronous call NEARFILE_READAHEAD_OFF keeps the callbacks there. Of an
// asynchronous one (.async) koffi brings them there, while the event loop runs; so it would those of the library's own threads, and
// a synchronous read that waits for such a thread would wait for ever. A callback must have its answer when it returns: what takes
// promises (fetch) runs in a worker, and the callback sleeps until it is done.
'use strict';
const { Worker, isMainThread, parentPort } = require('node:worker_threads');

if (!isMainThread) {
  parentPort.on('message', async ({ url, etag, offset, length, shared }) => {
    const state = new Int32Array(shared, 0, 3); // done, status, bytes
    try {
      const answer = await fetch(url, { headers: { Range: `bytes=${offset}-${offset + length - 1}`, ...(etag && { 'If-Match': etag }) } });
      const data = new Uint8Array(await answer.arrayBuffer());
      state[1] = answer.status;
      state[2] = data.length;
      if (data.length <= length) new Uint8Array(shared, 12).set(data);
    } catch {
      state[1] = -1;
    }
    Atomics.store(state, 0, 1);
    Atomics.notify(state, 0);
  });
  return;
}

const koffi = require('koffi');
const fetcher = new Worker(__filename);

koffi.struct('nearfile_error', {
  struct_size: 'size_t', status: 'int32_t', os_errno: 'int32_t', source_code: 'int64_t', message: koffi.array('char', 256, 'String'),
});
koffi.proto('int32_t nearfile_read_at(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len)');
koffi.proto('void nearfile_release(void *user_data)');
koffi.struct('nearfile_source', {
  struct_size: 'size_t', flags: 'uint32_t', max_connections: 'uint32_t', user_data: 'void *', open: 'void *',
  read_at: 'nearfile_read_at *', read: 'void *', seek: 'void *', close: 'void *', release: 'nearfile_release *', size: 'void *',
});
koffi.struct('nearfile_options', {
  struct_size: 'size_t', key: 'const char *', version: 'const char *', size: 'uint64_t', page_size: 'uint64_t', size_limit: 'uint64_t',
  mode: 'uint32_t', flags: 'uint32_t', data_path: 'const char *', index_path: 'const char *',
});
// The numbers in their order: hits, misses, waits, bytes_asked, bytes_served, source_reads, ...
koffi.struct('nearfile_stats', { struct_size: 'size_t', numbers: koffi.array('uint64_t', 16, 'Array') });

const READAHEAD_OFF = 16;
const library = koffi.load('libnearfile.so.0');
const near = {
  cacheOpen: library.func('int32_t nearfile_cache_open(const char *dir, void *options, _Out_ void **cache)'),
  cacheClose: library.func('void nearfile_cache_close(void *cache)'),
  open: library.func('int32_t nearfile_open(void *cache, nearfile_source *source, nearfile_options *options, _Out_ void **file)'),
  pread: library.func('int64_t nearfile_pread(void *file, _Out_ uint8_t *buf, size_t len, uint64_t offset)'),
  stats: library.func('int32_t nearfile_get_stats(void *file, _Inout_ nearfile_stats *stats)'),
  lastError: library.func('int32_t nearfile_last_error(_Inout_ nearfile_error *error)'),
  statusMessage: library.func('const char *nearfile_status_message(int32_t status)'),
  close: library.func('void nearfile_close(void *file)'),
};
const memcpy = koffi.load('libc.so.6').func('void *memcpy(void *to, const uint8_t *from, size_t length)');

const sized = (type, fields) => ({ struct_size: koffi.sizeof(type), ...fields });
// The text of a failure belongs to its thread: an asynchronous call, which runs on another, has its status alone.
function check(status) {
  if (status >= 0) return Number(status);
  const failure = sized('nearfile_error', { message: '' });
  near.lastError(failure);
  const text = failure.status === Number(status) ? failure.message : near.statusMessage(Number(status));
  throw Object.assign(new Error(text), { status: Number(status), code: failure.source_code });
}

// A file over the bytes of a URL. What its server answers, if it is not 206, is the code of the failed read.
function open(cache, url, etag, size) {
  const read_at = koffi.register((_, offset, buf, length, outLength) => {
    try {
      const shared = new SharedArrayBuffer(12 + length);
      const state = new Int32Array(shared, 0, 3);
      fetcher.postMessage({ url, etag, offset: Number(offset), length, shared });
      Atomics.wait(state, 0, 0);
      if (state[1] !== 206) return state[1];
      if (state[2] <= length) memcpy(buf, new Uint8Array(shared, 12, state[2]), state[2]);
      koffi.encode(outLength, 'size_t', state[2]);
      return 0;
    } catch {
      return -1;
    }
  }, 'nearfile_read_at *');
  const release = koffi.register(() => {
    console.log('released');
    setImmediate(() => [read_at, release].forEach(koffi.unregister));
  }, 'nearfile_release *');
  const source = sized('nearfile_source', { read_at, release });
  const out = [null];
  check(near.open(cache, source, sized('nearfile_options', { key: url, version: etag, size, flags: READAHEAD_OFF }), out));
  return out[0];
}

function pread(file, length, offset) {
  const buf = new Uint8Array(length);
  return buf.subarray(0, check(near.pread(file, buf, length, offset)));
}

// Lets the event loop run meanwhile.
function preadAsync(file, length, offset) {
  const buf = new Uint8Array(length);
  return new Promise((done, failed) => {
    near.pread.async(file, buf, length, offset, (error, count) => {
      try {
        if (error) throw error;
        done(buf.subarray(0, check(count)));
      } catch (failure) {
        failed(failure);
      }
    });
  });
}

async function main(url, dir) {
  const head = await fetch(url, { method: 'HEAD' });
  const size = Number(head.headers.get('content-length'));
  const out = [null];
  check(near.cacheOpen(dir, null, out));
  const cache = out[0];
  const file = open(cache, url, head.headers.get('etag'), size);
  const last = pread(file, 16, size - 16);
  console.log(`${size} bytes, the last of them: ${Buffer.from(last)}`);
  const stats = sized('nearfile_stats', { numbers: new Array(16).fill(0) });
  check(near.stats(file, stats));
  console.log(`${stats.numbers[5]} source reads, ${stats.numbers[0]} hits`);
  const zeros = await preadAsync(file, 16, 2 ** 32);
  if (zeros.length !== 16 || zeros.some((byte) => byte !== 0)) throw new Error(`not what is at 4 GiB: ${zeros}`);
  near.close(file);

  const missing = open(cache, `${url}.missing`, '', 100);
  try {
    pread(missing, 16, 0);
  } catch (failure) {
    console.log(`status ${failure.status}, source code ${failure.code}: ${failure.message}`);
  }
  near.close(missing);
  near.cacheClose(cache);
  await fetcher.terminate();
}

main(process.argv[2], process.argv[3]);
