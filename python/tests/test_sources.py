"""What a file is read from; and sources that misbehave: the exception arrives, nothing wrong is stored, the next read works."""

import _thread
import gc
import io
import os
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time
import traceback

import nearfile
import pytest
from common import noise, open_descriptors, wait_until

DATA = noise(50_000)


def give(offset, size):
    return DATA[offset : offset + size]


class Tool:
    """A source with all methods; counts."""

    def __init__(self, give=give):
        self.give, self.opened, self.closed, self.released = give, 0, 0, 0

    def open(self):
        self.opened += 1
        return Connection(self)

    def close(self):
        self.released += 1


class Connection:
    def __init__(self, tool):
        self.tool = tool

    def read_at(self, offset, size):
        return self.tool.give(offset, size)

    def size(self):
        return len(DATA)

    def close(self):
        self.tool.closed += 1


class Sized:
    size = len(DATA)

    def read_at(self, offset, size):
        return bytearray(give(offset, size))


class Opens:
    def __init__(self, make):
        self.open = make


# ---- kinds ----


def test_every_kind_of_source(cache, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    temporary = tempfile.NamedTemporaryFile()
    temporary.write(DATA)
    temporary.flush()
    kinds = [
        path, str(path), os.fsencode(path), pathlib.PurePosixPath(path), open(path, "rb"), open(path, "rb", buffering=0), open(path, "r+b"),
        temporary, io.BytesIO(DATA), io.BufferedReader(io.BytesIO(DATA)), Sized(), Tool(), Opens(lambda: path), Opens(lambda: open(path, "rb")),
        Opens(lambda: io.BytesIO(DATA)), Opens(Sized), nearfile.open(path),
    ]  # fmt: skip
    for source in kinds:
        with cache.open(source, close_source=not isinstance(source, type(temporary))) as file:
            assert file.size == len(DATA) and file.read() == DATA, source
    temporary.close()
    for reopen in (lambda: open(path, "rb"), lambda: str(path), lambda: give, Sized, Tool().open, lambda: io.BytesIO(DATA)):
        with cache.open(None, reopen=reopen, size=len(DATA)) as file:
            assert file.read() == DATA
    with cache.open(give, size=len(DATA)) as file:
        assert file.read() == DATA
    with pytest.raises(ValueError, match="pass size="):
        cache.open(give)
    for wrong in (7, object()):
        with pytest.raises(TypeError, match="neither read_at nor read and seek"):
            cache.open(wrong)
    with pytest.raises(TypeError, match="no source"):
        cache.open()
    with pytest.raises(FileNotFoundError):
        cache.open(tmp_path / "nothing")
    with cache.open(tmp_path / "nothing", size=10) as file:
        for _ in range(2):
            with pytest.raises(FileNotFoundError) as raised:
                file.read()
            assert raised.value.filename == str(tmp_path / "nothing")


def test_the_programs_file_object_is_left_alone(cache, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    source = open(path, "rb")
    source.seek(17)
    with cache.open(source) as file:
        file.pread(100, 20_000)
        assert source.tell() == 17
        source.close()
        os.unlink(path)
        assert file.read() == DATA
    # What the program has written is read, flushed or not.
    with open(path, "w+b") as both:
        both.write(b"1234567890")
        with cache.open(both) as file:
            assert file.read() == b"1234567890"
    # A subclass may read differently: what it reads is what counts.
    path.write_bytes(b"x" * 10)

    class Other(io.FileIO):
        def read(self, size=-1):
            return super().read(size).upper()

    with cache.open(Other(path), close_source=True) as file:
        assert file.read() == b"X" * 10


def test_connections_are_closed_and_the_source_last(cache):
    tool = Tool()
    file = cache.open(tool, close_source=True)
    assert tool.opened == 1 and file.read() == DATA
    assert (tool.opened, tool.closed, tool.released) == (1, 0, 0)
    file.close()
    assert (tool.opened, tool.closed, tool.released) == (1, 1, 1)
    tool = Tool()
    with cache.open(tool, size=len(DATA)):
        pass
    assert (tool.opened, tool.closed, tool.released) == (0, 0, 0)
    before = len(nearfile._source._sources), open_descriptors()
    with tempfile.TemporaryFile() as ordinary:
        ordinary.write(DATA)
        ordinary.flush()
        for _ in range(10):
            with pytest.raises(ValueError):
                cache.open(ordinary, version="v" * 2000, close_source=True)
        assert not ordinary.closed
    assert (len(nearfile._source._sources), open_descriptors()) == before


def test_a_stream_is_used_by_one_thread_at_a_time(cache):
    inside, most = [], []

    class Stream(io.BytesIO):
        def seek(self, *where):
            inside.append(1)
            most.append(len(inside))
            return super().seek(*where)

        def read(self, size=-1):
            time.sleep(0.001)
            data = super().read(size)
            inside.pop()
            return data

    with cache.open(Stream(DATA), size=len(DATA)) as file:
        threads = [threading.Thread(target=lambda page=page: file.pread(10, page * 4096)) for page in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 1
        assert file.read() == DATA


@pytest.mark.parametrize("most", [0, 3, 1])
def test_a_callable_is_called_by_as_many_as_asked(cache, most):
    inside, seen, lock = [0], [], threading.Lock()

    def read_at(offset, size):
        with lock:
            inside[0] += 1
            seen.append(inside[0])
        time.sleep(0.05)
        with lock:
            inside[0] -= 1
        return give(offset, size)

    with cache.open(read_at, size=len(DATA), max_connections=most) as file:
        threads = [threading.Thread(target=lambda page=page: file.pread(10, page * 4096)) for page in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert file.read() == DATA
    assert 1 < max(seen) if most != 1 else max(seen) == 1
    assert max(seen) <= (most or 16)


# ---- misbehaviour ----


class Mine(Exception):
    pass


def raises(error):
    def read_at(offset, size):
        raise error

    return read_at


HOSTILE = {
    "raises": (raises(Mine("the far side is down")), Mine),
    "raises SystemExit": (raises(SystemExit(3)), SystemExit),
    "raises KeyboardInterrupt": (raises(KeyboardInterrupt()), KeyboardInterrupt),
    "raises GeneratorExit": (raises(GeneratorExit()), GeneratorExit),
    "raises StopIteration": (raises(StopIteration()), StopIteration),
    "recurses": (lambda offset, size: HOSTILE["recurses"][0](offset, size), RecursionError),
    "exhausts memory": (lambda offset, size: bytearray(1 << 62), MemoryError),
    "gives None": (lambda offset, size: None, TypeError),
    "gives str": (lambda offset, size: "x" * size, TypeError),
    "gives int": (lambda offset, size: size, TypeError),
    "gives a list": (lambda offset, size: [0] * size, TypeError),
    "gives one byte too much": (lambda offset, size: give(offset, size) + b"!", ValueError),
    "gives far too much": (lambda offset, size: bytes(1 << 22), ValueError),
    "gives wide items": (lambda offset, size: memoryview(bytes(size * 8)).cast("Q"), ValueError),
    "gives nothing": (lambda offset, size: b"", nearfile.ShortSourceError),
    "takes no arguments": (lambda: b"", TypeError),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("page_size", [4096, 1 << 20])
def test_hostile_callbacks(cache, name, page_size, capfd):
    bad, kind = HOSTILE[name]
    tool = Tool(bad)
    with cache.open(tool, size=len(DATA), page_size=page_size) as file:
        for call in (
            lambda: file.read(10), lambda: file.readall(), lambda: file.pread(10, 5000), lambda: file.pread_into(bytearray(9000), 100),
            lambda: file.readinto(bytearray(10)), lambda: file.readline(),
        ):  # fmt: skip
            with pytest.raises(kind) as raised:
                call()
            assert file.tell() == 0 and file.stats().cached_pages == 0
        if name.startswith("raises"):
            assert raised.value is bad.__closure__[0].cell_contents
            assert any(frame.name == "read_at" for frame in traceback.extract_tb(raised.value.__traceback__))
        tool.give = give
        assert file.read() == DATA
        tool.give = bad
        assert file.pread(len(DATA), 0) == DATA
    del raised
    gc.collect()
    assert capfd.readouterr() == ("", "")
    assert not nearfile._source._raised and not nearfile._source._lost


def test_every_later_call_of_a_fetch_may_fail(cache):
    """A source that gives a little at a time, and fails at the k-th part."""
    for k in range(1, 30):
        calls, error = [0], Mine("now")

        def read_at(offset, size):
            calls[0] += 1
            if calls[0] == k:
                raise error
            return give(offset, min(size, 3000))

        with cache.open(read_at, size=len(DATA), page_size=10_000) as file:
            try:
                assert file.read() == DATA and calls[0] < k
            except Mine as raised:
                assert raised is error
            assert file.pread(len(DATA), 0) == DATA


@pytest.mark.parametrize("part", ["open", "size", "close", "release"])
def test_other_callbacks_that_raise(cache, part, capfd):
    error = Mine(part)

    class Bad(Tool):
        def open(self):
            if part == "open":
                raise error
            connection = Connection(self)
            if part == "size":
                connection.size = raises_now
            if part == "close":
                connection.close = raises_now
            return connection

        def close(self):
            if part == "release":
                raise error
            super().close()

    def raises_now():
        raise error

    if part in ("open", "size"):
        with pytest.raises(Mine) as raised:
            cache.open(Bad())
        assert raised.value is error
    else:
        file = cache.open(Bad(), close_source=True)
        assert file.read() == DATA
        with pytest.raises(Mine) as raised:
            file.close()
        assert raised.value is error and file.closed
    if part == "open":
        with cache.open(Bad(), size=len(DATA)) as file, pytest.raises(Mine):
            file.read()
    for size in (-1, 2**63, 2**64, 2**70, 1.5, None, "x"):
        tool = Sized()
        tool.size = size
        with pytest.raises((ValueError, TypeError)):
            cache.open(tool)
    assert capfd.readouterr() == ("", "")


def test_exceptions_belong_to_the_call_and_the_thread(cache):
    """Threads that fail at once each get their own exception, and a call that does not need the source gets none."""
    barrier = threading.Barrier(8)

    def read_at(offset, size):
        barrier.wait(20)
        raise Mine(threading.get_ident())

    wrong = []
    with cache.open(read_at, size=8 * 4096) as file:

        def work(page):
            for _ in range(20):
                try:
                    file.pread(10, page * 4096)
                except Mine as error:
                    if error.args[0] != threading.get_ident():
                        wrong.append(error)
                else:
                    wrong.append("nothing raised")

        threads = [threading.Thread(target=work, args=(page,)) for page in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong and not nearfile._source._raised
        with pytest.raises(ValueError):
            file.seek(-1)


def test_two_threads_want_a_page_whose_fetch_fails(cache):
    """The second one tries for itself."""
    first, errors = threading.Event(), []

    def read_at(offset, size):
        if not first.is_set():
            first.set()
            time.sleep(0.3)
            raise Mine("first")
        return give(offset, size)

    with cache.open(read_at, size=len(DATA)) as file:

        def work():
            try:
                file.pread(10, 0)
            except Mine as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert first.wait(20)
        assert file.pread(10, 0) == DATA[:10]
        thread.join()
        assert len(errors) == 1


def test_a_callback_that_reads_its_own_file_is_refused(cache):
    holder = []

    def read_at(offset, size):
        return holder[0].pread(size, offset)

    with cache.open(read_at, size=100) as file:
        holder.append(file)
        with pytest.raises(ValueError, match="callback"):
            file.read()


def test_a_file_over_a_file(cache, tmp_path):
    """The inner exception passes both."""
    error, good = Mine("inner"), []

    def read_at(offset, size):
        if not good:
            raise error
        return give(offset, size)

    with cache.open(read_at, size=len(DATA)) as inner, cache.open(Swapped(inner)) as outer:
        with pytest.raises(Mine) as raised:
            outer.read()
        assert raised.value is error
        good.append(True)
        assert outer.read() == DATA


class Swapped:
    def __init__(self, file):
        self.file, self.size = file, file.size

    def read_at(self, offset, size):
        return self.file.pread(size, offset)


# ---- signals ----


def test_keyboard_interrupt_in_a_fetch(cache):
    """From another thread, while the callback sleeps."""
    inside, interrupt = threading.Event(), [True]

    def read_at(offset, size):
        if interrupt:
            inside.set()
            time.sleep(20)
        return give(offset, size)

    def send():
        inside.wait(20)
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with cache.open(read_at, size=len(DATA)) as file:
        thread = threading.Thread(target=send)
        thread.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt) as raised:
            file.read()
        assert time.monotonic() - began < 10
        assert any(frame.name == "read_at" for frame in traceback.extract_tb(raised.value.__traceback__))
        thread.join()
        interrupt.clear()
        assert file.stats().cached_pages == 0
        assert file.read() == DATA


class Alarm(Exception):
    pass


@pytest.mark.parametrize("size", [4096, len(DATA)])
def test_a_signal_that_came_before_the_callback_began(cache, size, capfd):
    """Its handler runs at the callback's first instruction, before any try: ctypes drops such an exception, and we find it."""
    fetching, alarm = threading.Event(), Alarm("the handler's own object")

    def handler(*_):
        raise alarm

    def read_at(offset, size):
        if threading.current_thread() is not threading.main_thread():
            fetching.set()
            time.sleep(0.3)
            raise Mine("the other thread's")
        return give(offset, size)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with cache.open(read_at, size=size) as file:

            def work():
                with pytest.raises(Mine):
                    file.pread(10, 0)

            def send():
                fetching.wait(20)
                time.sleep(0.05)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

            threads = [threading.Thread(target=work), threading.Thread(target=send)]
            for thread in threads:
                thread.start()
            assert fetching.wait(20)
            with pytest.raises(Alarm) as raised:
                file.pread(10, 0)  # waits inside the library, where the signal finds it; then it fetches itself
            assert raised.value is alarm
            for thread in threads:
                thread.join()
            assert file.stats().cached_pages == 0
            assert file.read() == DATA[:size]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert capfd.readouterr() == ("", "")
    assert not nearfile._source._lost


def test_signals_at_any_moment(cache):
    """A timer that raises after some microseconds: the read that is under way ends with this exception."""
    ran = [0]

    def handler(*_):
        ran[0] += 1
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    data, rng, ends = noise(1 << 20), random.Random(1), {"alarm": 0, "right": 0}
    connections = len(nearfile._source._connections)

    def timed(file, page):
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 2e-4))
        try:
            assert file.pread(8000, page * 4096) == data[page * 4096 : page * 4096 + 8000]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def one(file, page):
        try:
            ran[0] = 0
            timed(file, page)
            end = "right"
        except Alarm:
            end = "alarm"
        except nearfile.SourceError:
            assert ran[0] > 1  # CPython up to 3.12 may run a handler late, and then two are too many for one callback
            return
        assert ran[0] == (end == "alarm") or ran[0] > 1
        ends[end] += 1

    try:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            with cache.open(lambda offset, size: data[offset : offset + min(size, 5000)], size=len(data)) as file:
                for page in range(0, 256, 2):
                    one(file, page)
                while True:
                    try:
                        assert file.pread(len(data), 0) == data
                        break
                    except Alarm:
                        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert min(ends.values()) > 50
    assert len(nearfile._source._connections) == connections


def test_other_unraisable_exceptions_go_where_they_went(monkeypatch, cache):
    seen = []
    monkeypatch.setattr(nearfile._source, "_hook_before", seen.append)
    monkeypatch.setattr(sys, "unraisablehook", nearfile._source._unraisable)

    class Bad:
        def __del__(self):
            raise Mine("in a destructor")

    Bad()
    assert [str(one.exc_value) for one in seen] == ["in a destructor"]
    tool = Tool()
    tool_close = Mine("close that nobody waits for")

    class BadConnection(Connection):
        def close(self):
            raise tool_close

    tool.open = lambda: BadConnection(tool)
    file = cache.open(tool)
    file.read()
    handle = file._handle
    file.close()  # the handle lives on, as if a call of another thread were inside
    assert len(seen) == 1
    del handle
    assert seen[1].exc_value is tool_close


# ---- the GIL ----


def test_hits_go_on_while_another_thread_fetches(cache):
    """With a callback that holds nothing, and with threads that wait for its page inside the library."""
    inside, go = threading.Event(), threading.Event()

    def read_at(offset, size):
        if offset >= 4096:
            inside.set()
            assert go.wait(30)
        return give(offset, size)

    with cache.open(read_at, size=len(DATA)) as file:
        assert file.pread(4096, 0) == DATA[:4096]
        threads = [threading.Thread(target=file.pread, args=(10, 8192)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert inside.wait(20)
        time.sleep(0.05)
        began, hits = time.monotonic(), 0
        while time.monotonic() - began < 0.5:
            assert file.pread(100, 5) == DATA[5:105]
            hits += 1
        go.set()
        for thread in threads:
            thread.join()
        assert hits > 5000
        assert file.stats().waits == 2


def test_async_exceptions_of_threads(cache):
    """PyThreadState_SetAsyncExc, as debuggers and task runners use it."""
    import ctypes

    inside, got = threading.Event(), []

    def read_at(offset, size):
        inside.set()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.001)
        return give(offset, size)

    with cache.open(read_at, size=len(DATA)) as file:

        def work():
            try:
                file.pread(10, 0)
            except Mine as error:
                got.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(20)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Mine))
        thread.join(20)
        assert len(got) == 1


def test_interrupt_main(cache):
    def read_at(offset, size):
        if offset == 0:
            _thread.interrupt_main()
        return give(offset, size)

    with cache.open(read_at, size=len(DATA)) as file:
        with pytest.raises(KeyboardInterrupt):
            file.pread(10, 0)
        assert file.pread(10, 8192) == DATA[8192:8202]
    wait_until(lambda: not nearfile._source._raised)
