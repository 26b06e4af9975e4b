// Reads the end of a far file through nearfile: go run go.go URL CACHE_DIR. Run it twice: the second run reads no source.
//
// cgo brings callbacks to Go from any thread, the library's own too: this source keeps no state (NEARFILE_SOURCE_FORK_SAFE), so many read
// it at once, and ahead. No panic may leave a callback.
package main

/*
#cgo pkg-config: nearfile
#include <nearfile.h>
#include <stdlib.h>

int32_t goReadAt(void *connection, uint64_t offset, void *buf, size_t len, size_t *out_len);
void goRelease(void *user_data);

static inline int32_t open_handle(nearfile_cache *cache, uintptr_t handle, const char *key, const char *version, uint64_t size,
                                  nearfile_file **out) {
  nearfile_source source = {.struct_size = sizeof source, .flags = NEARFILE_SOURCE_FORK_SAFE, .user_data = (void *)handle,
                            .read_at = goReadAt, .release = goRelease};
  nearfile_options options = {.struct_size = sizeof options, .key = key, .version = version, .size = size};
  return nearfile_open(cache, &source, &options, out);
}
*/
import "C"

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/cgo"
	"sync"
	"unsafe"
)

// Failure is a status and what the library says of it.
type Failure struct {
	Status, Code int64
	Message      string
}

func (failure Failure) Error() string {
	return fmt.Sprintf("status %d, source code %d: %s", failure.Status, failure.Code, failure.Message)
}

// call calls the library; the text of a failure belongs to the thread, on which the goroutine stays for it.
func call(function func() int64) (int64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	count := function()
	if count >= 0 {
		return count, nil
	}
	failure := C.nearfile_error{struct_size: C.sizeof_nearfile_error}
	C.nearfile_last_error(&failure)
	return 0, Failure{int64(failure.status), int64(failure.source_code), C.GoString(&failure.message[0])}
}

// Source reads into buf at offset, and returns the count and 0, or a code of its own.
type Source func(buf []byte, offset int64) (count int, code int32)

//export goReadAt
func goReadAt(connection unsafe.Pointer, offset C.uint64_t, buf unsafe.Pointer, length C.size_t, outLen *C.size_t) (code C.int32_t) {
	defer func() {
		if recover() != nil {
			code = -1
		}
	}()
	count, failed := cgo.Handle(connection).Value().(Source)(unsafe.Slice((*byte)(buf), int(length)), int64(offset))
	*outLen = C.size_t(count)
	return C.int32_t(failed)
}

//export goRelease
func goRelease(userData unsafe.Pointer) {
	cgo.Handle(userData).Delete()
	fmt.Println("released")
}

// File is an open near copy, an io.ReaderAt.
type File struct{ c *C.nearfile_file }

func open(cache *C.nearfile_cache, source Source, key, version string, size int64) (file File, err error) {
	handle, cKey, cVersion := cgo.NewHandle(source), C.CString(key), C.CString(version)
	defer C.free(unsafe.Pointer(cKey))
	defer C.free(unsafe.Pointer(cVersion))
	_, err = call(func() int64 {
		return int64(C.open_handle(cache, C.uintptr_t(handle), cKey, cVersion, C.uint64_t(size), &file.c))
	})
	if err != nil {
		handle.Delete()
	}
	return file, err
}

// ReadAt is io.ReaderAt's.
func (file File) ReadAt(buf []byte, offset int64) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	count, err := call(func() int64 {
		return int64(C.nearfile_pread(file.c, unsafe.Pointer(&buf[0]), C.size_t(len(buf)), C.uint64_t(offset)))
	})
	if err == nil && count < int64(len(buf)) {
		err = io.EOF
	}
	return int(count), err
}

// httpSource reads a URL. What its server answers, if it is not 206, is the code of the failed read.
func httpSource(url, etag string) Source {
	return func(buf []byte, offset int64) (int, int32) {
		request, err := http.NewRequest("GET", url, nil)
		if err != nil {
			return 0, -1
		}
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+int64(len(buf))-1))
		if etag != "" {
			request.Header.Set("If-Match", etag)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, -1
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusPartialContent {
			return 0, int32(answer.StatusCode)
		}
		count, err := io.ReadFull(answer.Body, buf)
		if err != nil && err != io.ErrUnexpectedEOF {
			return 0, -1
		}
		return count, 0
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	url, dir := os.Args[1], C.CString(os.Args[2])
	head := must(http.Head(url))
	etag, size := head.Header.Get("ETag"), head.ContentLength
	var cache *C.nearfile_cache
	must(call(func() int64 { return int64(C.nearfile_cache_open(dir, nil, &cache)) }))
	file := must(open(cache, httpSource(url, etag), url, etag, size))
	last := make([]byte, 16)
	must(file.ReadAt(last, size-16))
	fmt.Printf("%d bytes, the last of them: %s\n", size, last)
	stats := C.nearfile_stats{struct_size: C.sizeof_nearfile_stats}
	must(call(func() int64 { return int64(C.nearfile_get_stats(file.c, &stats)) }))
	fmt.Printf("%d source reads, %d hits\n", stats.source_reads, stats.hits)
	// The library's threads fetch 64 MiB, and goroutines read them meanwhile.
	must(call(func() int64 {
		return int64(C.nearfile_prefetch(file.c, 1<<32, 64<<20, C.NEARFILE_PREFETCH_NOWAIT, nil, nil))
	}))
	var readers sync.WaitGroup
	for i := int64(0); i < 64; i++ {
		readers.Add(1)
		go func(offset int64) {
			defer readers.Done()
			zeros := bytes.Repeat([]byte{1}, 16)
			must(file.ReadAt(zeros, offset))
			if !bytes.Equal(zeros, make([]byte, 16)) {
				panic("not what is at 4 GiB")
			}
		}(1<<32 + i<<20)
	}
	readers.Wait()
	C.nearfile_close(file.c)

	missing := must(open(cache, httpSource(url+".missing", ""), url+".missing", "", 100))
	_, err := missing.ReadAt(last, 0)
	fmt.Println(err)
	C.nearfile_close(missing.c)
	C.nearfile_cache_close(cache)
}
