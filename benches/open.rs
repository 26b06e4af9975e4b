//! What opening costs: a file of 1 TiB with 64 KiB pages, new and again, beside one of 1 MiB. `cargo bench --bench open`.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use nearfile::{Cache, CacheOptions, Connection, Options, Source, SourceError};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

struct Nothing;

impl Source for Nothing {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        Err(SourceError::new(1, "opening does not touch the source"))
    }
}

const ROUNDS: usize = 101;

fn options(round: usize, size: u64) -> Options {
    let mut options = Options::new();
    options.key = Some(format!("{size} {round}").into_bytes());
    options.size = Some(size);
    options.page_size = 64 << 10;
    options
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(Some(dir.path()), &CacheOptions::default()).unwrap();
    println!(
        "{:>10} {:>12} {:>12} {:>16} {:>18} {:>14}",
        "size", "open new", "open again", "index apparent", "bytes a page", "allocated"
    );
    for size in [1_u64 << 20, 1 << 40] {
        let (mut new, mut again) = (Vec::new(), Vec::new());
        let (mut apparent, mut allocated) = (0, 0);
        for round in 0..ROUNDS {
            for times in [&mut new, &mut again] {
                let start = Instant::now();
                let file = cache.file(Box::new(Nothing), &options(round, size)).unwrap();
                times.push(start.elapsed());
                let index = std::fs::metadata(file.index_path().unwrap()).unwrap();
                let data = std::fs::metadata(file.data_path().unwrap()).unwrap();
                (apparent, allocated) = (index.len(), (index.blocks() + data.blocks()) * 512);
            }
        }
        let pages = size.div_ceil(64 << 10);
        println!(
            "{:>7} MiB {:>9.0} us {:>9.0} us {:>12} KiB {:>18.2} {:>10} KiB",
            size >> 20,
            median(new).as_secs_f64() * 1e6,
            median(again).as_secs_f64() * 1e6,
            apparent >> 10,
            apparent as f64 / pages as f64,
            allocated >> 10
        );
    }
}
