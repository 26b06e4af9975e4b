//! The remote file: what a program implements ([`Source`], [`Connection`]), and the pool of connections through which it is read.
//! Counts that the source returns are checked here, and nowhere trusted before.

use crate::error::{Error, Result, SourceError};
use crate::stats::{Count, Counters};
use crate::sync::{AtomicU64, Condvar, Mutex, Ordering};
use crate::sys::fork::{self, PerProcess};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// A way to read a remote file.
pub trait Source: Send + Sync {
    /// Opens a connection. Called lazily, in the process that needs it, on the thread that reads.
    fn connect(&self) -> std::result::Result<Box<dyn Connection>, SourceError>;

    /// How many connections may be open at once, at least 1.
    fn max_connections(&self) -> u32 {
        DEFAULT_CONNECTIONS
    }

    /// Whether it may be called on threads of the library beside the one that reads.
    fn runs_on_workers(&self) -> bool {
        true
    }

    /// Whether `connect` makes something that works in a forked child of the process that made the source.
    fn connects_after_fork(&self) -> bool {
        true
    }
}

/// One opened use of a source; used by one call at a time and dropped in the process that opened it.
pub trait Connection: Send {
    /// Reads up to `buf.len()` bytes at `offset`. Fewer is fine and is read on; none is an error, as nothing is asked past the end.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> std::result::Result<usize, SourceError>;

    /// The size of the remote file, bytes. Asked only where the program did not give it.
    fn size(&mut self) -> std::result::Result<u64, SourceError> {
        Err(SourceError::new(0, "this source cannot tell its size: give it at open"))
    }
}

/// Connections to a source that does not say how many it can take.
pub const DEFAULT_CONNECTIONS: u32 = 16;

/// A source and this process's connections to it.
pub(crate) struct Pool {
    // Dropped in this order: connections before the source that made them.
    connections: PerProcess<Connections>,
    source: Box<dyn Source>,
    made_in: u32,
}

#[derive(Default)]
struct Connections {
    state: Mutex<State>,
    freed: Condvar,
    /// What the last four requests cost beside their bytes, 16 bits each, in units of [`PACE_UNIT`], at least 1; 0: no request yet.
    pace: AtomicU64,
}

#[derive(Default)]
struct State {
    idle: Vec<Box<dyn Connection>>,
    open: u32,
    waiting: u32,
}

/// Where a thread is, callback within callback, by address. In fixed room: a thread that ends has no destructor to run.
pub(crate) struct Nest {
    within: Cell<[usize; Nest::DEEPEST]>,
    depth: Cell<usize>,
}

impl Nest {
    const DEEPEST: usize = 8;

    pub(crate) const fn new() -> Nest {
        Nest { within: Cell::new([0; Nest::DEEPEST]), depth: Cell::new(0) }
    }

    /// Whether the thread is in there, at any depth; deeper than can be told: yes.
    pub(crate) fn has(&self, place: usize) -> bool {
        self.depth.get() >= Nest::DEEPEST || self.within.get()[..self.depth.get()].contains(&place)
    }

    pub(crate) fn enter(&self, place: usize) {
        let (mut within, depth) = (self.within.get(), self.depth.get());
        if let Some(innermost) = within.get_mut(depth) {
            *innermost = place;
        }
        self.within.set(within);
        self.depth.set(depth + 1);
    }

    pub(crate) fn leave(&self) {
        self.depth.set(self.depth.get() - 1);
    }
}

thread_local! {
    /// The sources whose callbacks this thread is in.
    static INSIDE: Nest = const { Nest::new() };
}

/// While it lives, this thread is inside a callback of the source.
struct Inside;

impl Inside {
    fn enter(pool: &Pool) -> Inside {
        INSIDE.with(|inside| inside.enter(pool.address()));
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with(Nest::leave);
    }
}

/// A connection in use; goes back to the pool when the use ended well, else it is closed.
struct Lease<'a> {
    connections: &'a Connections,
    connection: Option<Box<dyn Connection>>,
    ended_well: bool,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        match self.connection.take() {
            Some(connection) if self.ended_well => self.connections.change(|state| state.idle.push(connection)),
            gone => {
                // Counted until it is closed, which may take a while, or throw.
                let _counted = Closing(self.connections);
                drop(gone);
            }
        }
    }
}

/// A connection that is being closed.
struct Closing<'a>(&'a Connections);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.open -= 1);
    }
}

/// What moving bytes takes by itself, bytes a microsecond: 2 GB/s.
const BYTES_A_MICRO: u128 = 2000;
const PACE_UNIT: u128 = 4; // microseconds
/// A request that costs more than this beside its bytes is a slow one: 300 microseconds; handing it to another thread costs tens.
const SLOW: u64 = 75;

impl Connections {
    fn note_pace(&self, took: Duration, bytes: usize) {
        let cost = took.as_micros().saturating_sub(bytes as u128 / BYTES_A_MICRO) / PACE_UNIT;
        let before = self.pace.load(Ordering::Relaxed);
        self.pace.store(before << 16 | cost.clamp(1, 0xffff) as u64, Ordering::Relaxed);
    }

    /// Changes the state so that one who waits for a connection may go on.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        if state.waiting > 0 {
            self.freed.notify_one();
        }
    }
}

impl Pool {
    pub(crate) fn new(source: Box<dyn Source>) -> Pool {
        Pool { connections: PerProcess::new(), source, made_in: fork::generation() }
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether this thread is inside a callback of this source.
    pub(crate) fn is_inside(&self) -> bool {
        INSIDE.with(|inside| inside.has(self.address()))
    }

    /// Refuses a call from inside this source's own callback: it would wait for itself.
    pub(crate) fn check_not_inside(&self) -> Result<()> {
        if self.is_inside() {
            return Err(Error::Argument(
                "a source's callback read the file that is being read through it, itself or through other files; read the remote file itself there".into(),
            ));
        }
        Ok(())
    }

    fn lease(&self, counters: &Counters) -> Result<Lease<'_>> {
        self.check_not_inside()?;
        let connections = self.connections.get();
        let mut state = connections.state.lock();
        let idle = loop {
            if let Some(connection) = state.idle.pop() {
                break Some(connection);
            }
            if state.open < self.source.max_connections().max(1) {
                state.open += 1;
                break None;
            }
            state.waiting += 1;
            state = connections.freed.wait(state);
            state.waiting -= 1;
        };
        drop(state);
        let fresh = idle.is_none();
        let mut lease = Lease { connections, connection: idle, ended_well: false };
        if fresh {
            if self.made_in != fork::generation() && !self.source.connects_after_fork() {
                return Err(Error::Forked);
            }
            let _inside = Inside::enter(self);
            match self.source.connect() {
                Ok(connection) => lease.connection = Some(connection),
                Err(error) => {
                    counters.one(Count::SourceErrors);
                    return Err(error.into());
                }
            }
        }
        Ok(lease)
    }

    /// Fills `buf` from `offset`, reading on where the source gives less; `progress` after each part. Not shielded: it calls back.
    pub(crate) fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        size: u64,
        counters: &Counters,
        progress: &mut dyn FnMut(),
    ) -> Result<()> {
        let mut lease = self.lease(counters)?;
        let Some(connection) = lease.connection.as_mut() else {
            return Err(Error::Internal("a lease without a connection".into()));
        };
        let start = Instant::now();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            counters.one(Count::SourceReads);
            let got = {
                let _inside = Inside::enter(self);
                connection.read_at(at, &mut buf[done..])
            };
            let asked = buf.len() - done;
            let failed = match got {
                Ok(0) => Error::ShortSource { at, size },
                Ok(n) if n > asked => Error::Source(SourceError::new(
                    0,
                    format!("the source says that it read {n} bytes at {at}, and {asked} were asked for: its bytes are not used"),
                )),
                Ok(n) => {
                    counters.add(Count::SourceBytes, n as u64);
                    done += n;
                    progress();
                    continue;
                }
                Err(error) => Error::Source(error),
            };
            counters.one(Count::SourceErrors);
            return Err(failed);
        }
        lease.ended_well = true;
        lease.connections.note_pace(start.elapsed(), buf.len());
        Ok(())
    }

    /// How many connections workers may have here beside the reader's own; none in a child that cannot open one.
    pub(crate) fn connections_beside(&self) -> u32 {
        let usable = self.made_in == fork::generation() || self.source.connects_after_fork();
        if usable && self.source.runs_on_workers() { self.source.max_connections().saturating_sub(1) } else { 0 }
    }

    /// Whether a request takes so long that it pays to have others beside it; `None` before the first.
    pub(crate) fn is_slow(&self) -> Option<bool> {
        let pace = self.connections.get().pace.load(Ordering::Relaxed);
        // All of them: one alone may have lost its turn on a busy machine.
        let slow = (0..4).map(|at| pace >> (16 * at) & 0xffff).filter(|&cost| cost != 0).all(|cost| cost > SLOW);
        (pace != 0).then_some(slow)
    }

    /// Asks the source for the size of the remote file.
    pub(crate) fn size(&self, counters: &Counters) -> Result<u64> {
        let mut lease = self.lease(counters)?;
        let Some(connection) = lease.connection.as_mut() else {
            return Err(Error::Internal("a lease without a connection".into()));
        };
        let size = {
            let _inside = Inside::enter(self);
            connection.size()
        };
        match size {
            Ok(size) => {
                lease.ended_well = true;
                Ok(size)
            }
            Err(error) => {
                counters.one(Count::SourceErrors);
                Err(error.into())
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(connections) = self.connections.peek() {
            let idle = std::mem::take(&mut connections.state.lock().idle);
            drop(idle);
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Pool").finish_non_exhaustive()
    }
}
