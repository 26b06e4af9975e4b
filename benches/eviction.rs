//! Hit rates at a limit: nearfile itself, over a real directory, beside LRU, FIFO, SIEVE (Zhang et al., NSDI 2024) and Belady's
//! optimum, computed on the same trace. `cargo bench --bench eviction`.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use nearfile::{Cache, CacheOptions, Connection, File, Options, Source, SourceError};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

const PAGE: u64 = 4096;

struct Zeros;

impl Source for Zeros {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        Ok(Box::new(Zeros))
    }
}

impl Connection for Zeros {
    fn read_at(&mut self, _: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        buf.fill(1);
        Ok(buf.len())
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn shuffled(&mut self, from: usize, to: usize) -> Vec<usize> {
        let mut pages: Vec<usize> = (from..to).collect();
        for at in (1..pages.len()).rev() {
            pages.swap(at, self.below(at + 1));
        }
        pages
    }
}

fn open(dir: &std::path::Path, pages: usize, capacity: usize) -> (Cache, File) {
    let mut options = CacheOptions::default();
    options.size_limit = capacity as u64 * PAGE;
    let cache = Cache::open(Some(dir), &options).unwrap();
    let mut options = Options::new();
    options.key = Some(b"trace".to_vec());
    options.size = Some(pages as u64 * PAGE);
    options.page_size = PAGE;
    let file = cache.file(Box::new(Zeros), &options).unwrap();
    (cache, file)
}

/// The hits of a part of a trace.
fn replay(file: &File, trace: &[usize]) -> f64 {
    let before = file.stats().hits;
    let mut buf = [0; 64];
    for &page in trace {
        file.read_at(&mut buf, page as u64 * PAGE).unwrap();
    }
    (file.stats().hits - before) as f64 / trace.len() as f64
}

fn nearfile(trace: &[usize], capacity: usize) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let pages = trace.iter().max().unwrap() + 1;
    let (_cache, file) = open(dir.path(), pages, capacity);
    replay(&file, trace)
}

fn fifo(trace: &[usize], capacity: usize) -> f64 {
    let (mut there, mut queue, mut hits) = (vec![false; trace.iter().max().unwrap() + 1], VecDeque::new(), 0);
    for &page in trace {
        if there[page] {
            hits += 1;
            continue;
        }
        if queue.len() == capacity {
            there[queue.pop_front().unwrap()] = false;
        }
        queue.push_back(page);
        there[page] = true;
    }
    f64::from(hits) / trace.len() as f64
}

fn lru(trace: &[usize], capacity: usize) -> f64 {
    let (mut used, mut order, mut hits) = (HashMap::new(), BTreeMap::new(), 0);
    for (now, &page) in trace.iter().enumerate() {
        if let Some(before) = used.insert(page, now) {
            order.remove(&before);
            hits += 1;
        } else if order.len() == capacity {
            let (_, oldest) = order.pop_first().unwrap();
            used.remove(&oldest);
        }
        order.insert(now, page);
    }
    f64::from(hits) / trace.len() as f64
}

fn sieve(trace: &[usize], capacity: usize) -> f64 {
    // Newest last; the hand goes from old to new.
    let (mut queue, mut visited, mut hand, mut hits): (Vec<usize>, HashMap<usize, bool>, usize, u32) =
        (Vec::new(), HashMap::new(), 0, 0);
    for &page in trace {
        if let Some(seen) = visited.get_mut(&page) {
            *seen = true;
            hits += 1;
            continue;
        }
        if queue.len() == capacity {
            loop {
                hand = if hand >= queue.len() { 0 } else { hand };
                let seen = visited.get_mut(&queue[hand]).unwrap();
                if !*seen {
                    break;
                }
                *seen = false;
                hand += 1;
            }
            visited.remove(&queue.remove(hand));
        }
        queue.push(page);
        visited.insert(page, false);
    }
    f64::from(hits) / trace.len() as f64
}

/// Keeps what is needed again soonest; may leave a page out.
fn belady(trace: &[usize], capacity: usize) -> f64 {
    let mut next = vec![usize::MAX; trace.len()];
    let mut last = HashMap::new();
    for (at, &page) in trace.iter().enumerate().rev() {
        next[at] = last.insert(page, at).unwrap_or(usize::MAX);
    }
    let (mut there, mut by_next, mut hits) = (HashMap::new(), BTreeMap::new(), 0);
    for (at, &page) in trace.iter().enumerate() {
        if let Some(key) = there.remove(&page) {
            by_next.remove(&key);
            hits += 1;
        }
        let key = (next[at], page);
        by_next.insert(key, page);
        there.insert(page, key);
        if by_next.len() > capacity {
            let (_, gone) = by_next.pop_last().unwrap();
            there.remove(&gone);
        }
    }
    f64::from(hits) / trace.len() as f64
}

fn compare(name: &str, trace: &[usize], capacity: usize) {
    let rates =
        [nearfile(trace, capacity), lru(trace, capacity), fifo(trace, capacity), sieve(trace, capacity), belady(trace, capacity)];
    println!("{name:<44} {:>9.3} {:>7.3} {:>7.3} {:>7.3} {:>8.3}", rates[0], rates[1], rates[2], rates[3], rates[4]);
}

fn main() {
    let mut random = Random(88_172_645_463_325_252);
    println!("{:<44} {:>9} {:>7} {:>7} {:>7} {:>8}", "hit rate", "nearfile", "LRU", "FIFO", "SIEVE", "Belady");

    let shuffled: Vec<usize> = (0..30).flat_map(|_| random.shuffled(0, 4000)).collect();
    compare("30 passes, each in a new order, half fits", &shuffled, 2000);

    let pages = 20_000;
    let mut cumulative: Vec<f64> = (1..=pages).map(|rank| 1.0 / rank as f64).collect();
    for at in 1..pages {
        cumulative[at] += cumulative[at - 1];
    }
    let place = random.shuffled(0, pages);
    let zipf: Vec<usize> = (0..200_000)
        .map(|_| {
            let at = random.unit() * cumulative[pages - 1];
            place[cumulative.partition_point(|&sum| sum < at).min(pages - 1)]
        })
        .collect();
    compare("Zipf 1.0 over 20,000 pages, 1,000 fit", &zipf, 1000);

    let mut scanned: Vec<usize> = (0..20_000).map(|_| random.below(500)).collect();
    scanned.extend((500..4500).flat_map(|page| [page, random.below(500)]));
    compare("500 hot of 1,000, a scan of 4,000 between", &scanned, 1000);

    let dir = tempfile::tempdir().unwrap();
    let (_cache, file) = open(dir.path(), 4500, 1000);
    replay(&file, &scanned);
    let after: Vec<usize> = (0..5000).map(|_| random.below(500)).collect();
    println!("the hot set after the scan: {:.3}", replay(&file, &after));

    let dir = tempfile::tempdir().unwrap();
    let (_cache, file) = open(dir.path(), 4000, 1000);
    for _ in 0..10 {
        replay(&file, &random.shuffled(0, 800));
    }
    let passes: Vec<String> = (0..10).map(|_| format!("{:.2}", replay(&file, &random.shuffled(2000, 2800)))).collect();
    println!("passes over 800 of 1,000 after another hot set: {}", passes.join(" "));

    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = open(dir.path(), 40_000, 20_000);
    let start = Instant::now();
    replay(&file, &shuffled.iter().map(|page| page * 10).collect::<Vec<_>>()[..40_000]);
    let filling = start.elapsed();
    let before = file.stats().pages_evicted;
    let evicted = {
        let start = Instant::now();
        let trace: Vec<usize> = (0..3).flat_map(|_| (20_000..40_000).collect::<Vec<_>>()).collect();
        replay(&file, &trace);
        (start.elapsed(), cache.stats().pages_evicted - before)
    };
    let (there, evicted_before) = (cache.stats().cached_pages, cache.stats().pages_evicted);
    let start = Instant::now();
    cache.trim(there * PAGE / 2).unwrap();
    let trimming = start.elapsed();
    let trimmed = cache.stats().pages_evicted - evicted_before;
    println!(
        "choosing and punching: {:.2} us a page, over {trimmed} pages given up at once",
        trimming.as_secs_f64() * 1e6 / trimmed as f64
    );
    println!(
        "a miss and its place in the limit: {:.1} us before it is full; {:.1} us a miss when {} of 60,000 made others go",
        filling.as_secs_f64() * 1e6 / 40_000.0,
        evicted.0.as_secs_f64() * 1e6 / 60_000.0,
        evicted.1
    );
}
