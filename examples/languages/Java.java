// Reads the end of a far file through nearfile: java -cp jna.jar Java.java URL CACHE_DIR. Run it twice: the second run reads no source.
//
// JNA brings callbacks to Java from any thread, the library's own too: this source keeps no state (NEARFILE_SOURCE_FORK_SAFE), so many
// read it at once, and ahead. No exception leaves a callback: JNA would answer 0, and nearfile refuse a length that nobody set.
import com.sun.jna.*;
import com.sun.jna.Structure.FieldOrder;
import com.sun.jna.ptr.PointerByReference;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.IntStream;

class Java {
    interface Near extends Library {
        Near C = Native.load("libnearfile.so.0", Near.class);

        int nearfile_cache_open(String dir, Pointer options, PointerByReference out);
        void nearfile_cache_close(Pointer cache);
        int nearfile_open(Pointer cache, Source source, Options options, PointerByReference out);
        long nearfile_pread(Pointer file, byte[] buf, SizeT len, long offset);
        int nearfile_prefetch(Pointer file, long offset, long len, int flags, Pointer progress, Pointer userData);
        int nearfile_get_stats(Pointer file, Stats stats);
        int nearfile_last_error(Error error);
        void nearfile_close(Pointer file);
    }

    public static class SizeT extends IntegerType {
        public SizeT() { this(0); }
        public SizeT(long value) { super(Native.SIZE_T_SIZE, value, true); }
    }

    @FieldOrder({"struct_size", "status", "os_errno", "source_code", "message"})
    public static class Error extends Structure {
        public SizeT struct_size = new SizeT();
        public int status, os_errno;
        public long source_code;
        public byte[] message = new byte[256];
    }

    interface ReadAt extends Callback { int call(Pointer connection, long offset, Pointer buf, SizeT len, Pointer outLen); }
    interface Release extends Callback { void call(Pointer userData); }

    @FieldOrder({"struct_size", "flags", "max_connections", "user_data", "open", "read_at", "read", "seek", "close", "release", "size"})
    public static class Source extends Structure {
        public SizeT struct_size = new SizeT();
        public int flags, max_connections;
        public Pointer user_data, open;
        public ReadAt read_at;
        public Pointer read, seek, close;
        public Release release;
        public Pointer size;
    }

    @FieldOrder({"struct_size", "key", "version", "size", "page_size", "size_limit", "mode", "flags", "data_path", "index_path"})
    public static class Options extends Structure {
        public SizeT struct_size = new SizeT();
        public String key, version;
        public long size, page_size, size_limit;
        public int mode, flags;
        public String data_path, index_path;
    }

    @FieldOrder({"struct_size", "numbers"}) // hits, misses, waits, bytes_asked, bytes_served, source_reads, ...
    public static class Stats extends Structure {
        public SizeT struct_size = new SizeT();
        public long[] numbers = new long[16];
    }

    static <S extends Structure> S sized(S made) {
        made.writeField("struct_size", new SizeT(made.size()));
        return made;
    }

    static class Failure extends RuntimeException {
        final int status;
        final long code;

        Failure(Error error) {
            super(Native.toString(error.message, "UTF-8"));
            status = error.status;
            code = error.source_code;
        }
    }

    static long check(long status) {
        if (status >= 0) return status;
        Error error = sized(new Error());
        Near.C.nearfile_last_error(error);
        throw new Failure(error);
    }

    static final HttpClient http = HttpClient.newHttpClient();
    static final Set<Source> open = ConcurrentHashMap.newKeySet(); // what C may call must not be collected

    /** A file over the bytes of a URL. What its server answers, if it is not 206, is the code of the failed read. */
    static Pointer open(Pointer cache, String url, String etag, long size) {
        Source source = sized(new Source());
        source.flags = 1; // NEARFILE_SOURCE_FORK_SAFE
        source.read_at = (connection, offset, buf, len, outLen) -> {
            try {
                var request = HttpRequest.newBuilder(URI.create(url)).header("Range", "bytes=" + offset + "-" + (offset + len.longValue() - 1));
                if (!etag.isEmpty()) request.header("If-Match", etag);
                var answer = http.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
                if (answer.statusCode() != 206) return answer.statusCode();
                byte[] data = answer.body();
                buf.write(0, data, 0, Math.min(data.length, len.intValue()));
                outLen.setLong(0, data.length);
                return 0;
            } catch (Exception failed) {
                return -1;
            }
        };
        source.release = userData -> {
            System.out.println("released");
            open.remove(source);
        };
        Options options = sized(new Options());
        options.key = url;
        options.version = etag;
        options.size = size;
        PointerByReference out = new PointerByReference();
        check(Near.C.nearfile_open(cache, source, options, out));
        open.add(source);
        return out.getValue();
    }

    static byte[] pread(Pointer file, int length, long offset) {
        byte[] buf = new byte[length];
        return java.util.Arrays.copyOf(buf, (int) check(Near.C.nearfile_pread(file, buf, new SizeT(length), offset)));
    }

    public static void main(String[] args) throws Exception {
        String url = args[0];
        var head = http.send(HttpRequest.newBuilder(URI.create(url)).method("HEAD", HttpRequest.BodyPublishers.noBody()).build(),
            HttpResponse.BodyHandlers.discarding()).headers();
        long size = head.firstValueAsLong("Content-Length").getAsLong();
        PointerByReference out = new PointerByReference();
        check(Near.C.nearfile_cache_open(args[1], null, out));
        Pointer cache = out.getValue();
        Pointer file = open(cache, url, head.firstValue("ETag").orElse(""), size);
        System.out.println(size + " bytes, the last of them: " + new String(pread(file, 16, size - 16)));
        Stats stats = sized(new Stats());
        check(Near.C.nearfile_get_stats(file, stats));
        System.out.println(stats.numbers[5] + " source reads, " + stats.numbers[0] + " hits");
        // The library's threads fetch 64 MiB, and some of ours read them meanwhile.
        check(Near.C.nearfile_prefetch(file, 1L << 32, 64 << 20, 1, null, null)); // NEARFILE_PREFETCH_NOWAIT
        boolean zeros = IntStream.range(0, 64).parallel().mapToObj(i -> pread(file, 16, (1L << 32) + (i << 20)))
            .allMatch(got -> java.util.Arrays.equals(got, new byte[16]));
        if (!zeros) throw new AssertionError("not what is at 4 GiB");
        Near.C.nearfile_close(file);

        Pointer missing = open(cache, url + ".missing", "", 100);
        try {
            pread(missing, 16, 0);
        } catch (Failure failure) {
            System.out.println("status " + failure.status + ", source code " + failure.code + ": " + failure.getMessage());
        }
        Near.C.nearfile_close(missing);
        Near.C.nearfile_cache_close(cache);
    }
}
