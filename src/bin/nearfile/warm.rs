//! `warm`: a file, or ranges of it, fetched before a program needs them.

use crate::copies::Copies;
use crate::curl::{CurlSource, Object};
use crate::listing::printable;
use crate::screen::{Progress, Screen};
use crate::units::{self, Span};
use crate::{Failure, Outcome};
use nearfile::{CacheOptions, Connection, File, Options, Source, SourceError};
use serde_json::json;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What was asked for.
pub struct Wanted {
    pub source: String,
    pub ranges: Vec<Span>,
    pub key: Option<String>,
    pub version: Option<String>,
    pub page_size: Option<u64>,
    pub connections: u32,
    pub headers: Vec<String>,
}

/// A source, and what names it.
struct Found {
    source: Box<dyn Source>,
    key: String,
    version: String,
    size: u64,
}

/// One request of curl's asks for so much: starting it, and the way to the server, are paid for each.
const A_REQUEST: u64 = 32 << 20;

pub fn warm(dir: Option<&Path>, wanted: &Wanted, screen: &Screen) -> Outcome {
    let come = Arc::new(AtomicU64::new(0));
    let is_url = ["http://", "https://"].iter().any(|scheme| wanted.source.to_ascii_lowercase().starts_with(scheme));
    let found = if is_url { over_http(wanted, &come, screen)? } else { at_path(wanted, &come, screen)? };
    let mut limits = CacheOptions::default();
    limits.workers = wanted.connections;
    limits.max_fetch_bytes = if is_url { A_REQUEST } else { 0 };
    if let Some(span) = wanted.ranges.iter().find(|span| span.start > 0 && span.start >= found.size) {
        return Err(Failure::new(format!(
            "the range from {} on begins past the end: the file has {} bytes",
            span.start, found.size
        )));
    }
    let copies = Copies::open_or_make(dir, &limits)?;
    let mut options = Options::new();
    options.key = Some(found.key.clone().into_bytes());
    options.version = found.version.clone().into_bytes();
    options.size = Some(found.size);
    options.page_size = wanted.page_size.unwrap_or(0);
    let file = copies.cache.file(found.source, &options)?;
    if !file.index_path().is_some_and(|index| index.starts_with(copies.cache.path())) {
        return Err(Failure::new(format!("{}: no near copy can be kept in {}", found.key, copies.cache.path().display())));
    }
    let ranges: Vec<Range<u64>> = match wanted.ranges.as_slice() {
        [] => std::iter::once(0..found.size).collect(),
        spans => spans.iter().map(|span| span.within(found.size)).collect(),
    };
    let (all, missing) = (ranges.iter().map(|range| range.end - range.start).sum::<u64>(), absent(&file, &ranges)?);
    let seconds = fetch(&file, &ranges, all, missing, &come, screen)?;
    let lacking = absent(&file, &ranges)?;
    let stats = file.stats();
    drop(file);
    if screen.json {
        screen.value(
            &json!({ "key": found.key, "version": found.version, "size": found.size, "bytes": all, "missing_before": missing,
            "missing_after": lacking, "source_reads": stats.source_reads, "source_bytes": stats.source_bytes, "seconds": seconds }),
        )?;
    } else {
        let rate = units::size((stats.source_bytes as f64 / seconds.max(1e-6)) as u64);
        let (here, read) = (units::size(all - lacking), units::size(stats.source_bytes));
        screen.line(&format!(
            "{}: {here} of {} here; {read} read in {seconds:.1} s ({rate}/s)",
            printable(found.key.as_bytes()),
            units::size(all)
        ))?;
    }
    match lacking {
        0 => Ok(()),
        lacking => Err(Failure::new(format!(
            "{} could not be kept: the directory's limit ({}) or the disk is full; trim it, or warm less",
            units::size(lacking),
            units::size(copies.cache.counters().size_limit)
        ))),
    }
}

fn over_http(wanted: &Wanted, come: &Arc<AtomicU64>, screen: &Screen) -> Result<Found, Failure> {
    let interrupted = screen.interruption();
    let object = Object::probe(&wanted.source, &wanted.headers, &*interrupted)
        .map_err(|sentence| if screen.is_interrupted() { Failure::Interrupted } else { Failure::Failed(sentence) })?;
    let (key, version, size) = (object.key.clone(), object.version.clone(), object.size);
    let source = CurlSource { object, connections: wanted.connections, come: Arc::clone(come), interrupted };
    named(wanted, Box::new(source), key, version, size)
}

fn named(wanted: &Wanted, source: Box<dyn Source>, key: String, version: String, size: u64) -> Result<Found, Failure> {
    let (key, version) = (wanted.key.clone().unwrap_or(key), wanted.version.clone().unwrap_or(version));
    Ok(Found { source, key, version, size })
}

fn at_path(wanted: &Wanted, come: &Arc<AtomicU64>, screen: &Screen) -> Result<Found, Failure> {
    if let Some((scheme, _)) = wanted.source.split_once("://") {
        return Err(Failure::new(format!(
            "{scheme}:// is not read: give a path, or an http:// or https:// URL (a presigned one, say)"
        )));
    }
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", wanted.source));
    let path = std::fs::canonicalize(&wanted.source).map_err(failed)?;
    let meta = path.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(Failure::new(format!("{} is no plain file", wanted.source)));
    }
    let source = PathSource {
        path: path.clone(),
        seen: identity(&meta),
        connections: wanted.connections,
        come: Arc::clone(come),
        interrupted: screen.interruption(),
    };
    let version = format!("{}.{:09} {}", meta.mtime(), meta.mtime_nsec(), meta.len());
    named(wanted, Box::new(source), format!("file://{}", path.display()), version, meta.len())
}

fn identity(meta: &std::fs::Metadata) -> (u64, i64, i64) {
    (meta.len(), meta.mtime(), meta.mtime_nsec())
}

/// A file at a path, which must stay what it was.
struct PathSource {
    path: PathBuf,
    seen: (u64, i64, i64),
    connections: u32,
    come: Arc<AtomicU64>,
    interrupted: Arc<dyn Fn() -> bool + Send + Sync>,
}

struct PathConnection {
    file: std::fs::File,
    seen: (u64, i64, i64),
    come: Arc<AtomicU64>,
    interrupted: Arc<dyn Fn() -> bool + Send + Sync>,
}

fn io_error(error: &std::io::Error) -> SourceError {
    SourceError::new(error.raw_os_error().unwrap_or(0).into(), error.to_string())
}

impl Source for PathSource {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        let file = std::fs::File::open(&self.path).map_err(|error| io_error(&error))?;
        let (come, interrupted) = (Arc::clone(&self.come), Arc::clone(&self.interrupted));
        Ok(Box::new(PathConnection { file, seen: self.seen, come, interrupted }))
    }

    fn max_connections(&self) -> u32 {
        self.connections
    }
}

impl Connection for PathConnection {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        if (self.interrupted)() {
            return Err(SourceError::new(0, "interrupted"));
        }
        let read = self.file.read_at(buf, offset).map_err(|error| io_error(&error))?;
        let now = self.file.metadata().map_err(|error| io_error(&error))?;
        if identity(&now) != self.seen {
            return Err(SourceError::new(0, "the file was changed while it was read: warm it again"));
        }
        self.come.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Bytes of the ranges that are not in the near copy.
fn absent(file: &File, ranges: &[Range<u64>]) -> Result<u64, Failure> {
    let mut absent = 0;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let (end, cached) = file.extent(at)?;
            let end = end.min(range.end);
            absent += if cached { 0 } else { end - at };
            at = end;
        }
    }
    Ok(absent)
}

/// Fetches what is absent, with a line of progress beside it. Returns the seconds that it took.
fn fetch(file: &File, ranges: &[Range<u64>], all: u64, missing: u64, come: &AtomicU64, screen: &Screen) -> Result<f64, Failure> {
    let mut progress = Progress::new(screen, "warm");
    let ended = AtomicBool::new(false);
    let start = std::time::Instant::now();
    let fetched = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let fresh = come.load(Ordering::Relaxed);
                progress.at((all - missing).saturating_add(fresh).min(all), all, fresh);
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        let mut each = ranges.iter();
        let fetched = each.try_for_each(|range| file.prefetch(range.clone(), &mut |_, _| !screen.is_interrupted()));
        ended.store(true, Ordering::Relaxed);
        fetched
    });
    match fetched {
        _ if screen.is_interrupted() => Err(Failure::Interrupted),
        fetched => Ok(fetched.map(|()| start.elapsed().as_secs_f64())?),
    }
}
