//! foyer as a contender, by the protocol of side.c: pages are values in its hybrid cache, on disk (`foyer`) or all of them in memory, too
//! (`foyer-memory`).

use foyer::{BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder, HybridCachePolicy};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

struct Far {
    file: File,
    size: u64,
    page: u64,
    delay: Duration,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Far {
    async fn page(&self, page: u64) -> std::io::Result<Vec<u8>> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let mut buf = vec![0; self.page.min(self.size - page * self.page) as usize];
        self.file.read_exact_at(&mut buf, page * self.page)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(buf)
    }
}

struct Contender {
    parameters: HashMap<String, String>,
    far: Arc<Far>,
    runtime: tokio::runtime::Runtime,
    offsets: Vec<u64>,
    op: usize,
    cold: bool,
}

impl Contender {
    fn new(parameters: HashMap<String, String>) -> Result<Contender, Failure> {
        let number = |key: &str, otherwise: u64| parameters.get(key).map_or(Ok(otherwise), |value| value.parse());
        let (size, op, count) = (number("size", 0)?, number("op", 4096)?, number("count", 1)?);
        let far = Arc::new(Far {
            file: File::open(&parameters["file"])?,
            size,
            page: number("page", 1 << 20)?,
            delay: Duration::from_micros(number("delay_us", 0)?),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let random = parameters.get("pattern").is_none_or(|pattern| pattern == "random");
        let mut state = number("seed", 1)?;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let offsets = (0..count).map(|at| if random { next() } else { at } % (size / op) * op).collect();
        let cold = parameters.get("mode").is_some_and(|mode| mode == "cold");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Contender { parameters, far, runtime, offsets, op: op as usize, cold })
    }

    fn open(&self) -> Result<HybridCache<u64, Vec<u8>>, Failure> {
        let (dir, size) = (&self.parameters["dir"], self.far.size as usize);
        let memory = if self.parameters["contender"] == "foyer-memory" { size * 2 } else { 4 << 20 };
        Ok(self.runtime.block_on(async {
            let device = FsDeviceBuilder::new(dir).with_capacity(size * 2 + (64 << 20)).build()?;
            HybridCacheBuilder::new()
                .with_policy(HybridCachePolicy::WriteOnInsertion)
                .memory(memory)
                .with_weighter(|_: &u64, page: &Vec<u8>| page.len())
                .storage()
                .with_engine_config(BlockEngineConfig::new(device).with_buffer_pool_size(64 << 20))
                .build()
                .await
        })?)
    }

    fn read(&self, cache: &HybridCache<u64, Vec<u8>>, buf: &mut [u8], offset: u64) -> Result<(), Failure> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (page, within) = (at / self.far.page, (at % self.far.page) as usize);
            let far = Arc::clone(&self.far);
            let entry = self.runtime.block_on(cache.get_or_fetch(&page, || async move { far.page(page).await }))?;
            let bytes = &entry.value()[within..];
            let len = bytes.len().min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&bytes[..len]);
            done += len;
        }
        Ok(())
    }

    fn read_all(&self, cache: &HybridCache<u64, Vec<u8>>) -> Result<(), Failure> {
        let mut buf = vec![1; self.op];
        self.offsets.iter().try_for_each(|&offset| self.read(cache, &mut buf, offset))
    }

    fn check(&self, cache: &HybridCache<u64, Vec<u8>>) -> Result<(), Failure> {
        let (mut buf, mut right) = (vec![1; self.op], vec![0; self.op]);
        for &offset in self.offsets.iter().take(200) {
            self.read(cache, &mut buf, offset)?;
            self.far.file.read_exact_at(&mut right, offset)?;
            if buf != right {
                return Err(format!("wrong bytes at {offset}").into());
            }
        }
        Ok(())
    }

    fn prepare(&self) -> Result<(), Failure> {
        if self.cold {
            let _ = std::fs::remove_dir_all(&self.parameters["dir"]);
            std::fs::create_dir_all(&self.parameters["dir"])?;
        }
        self.far.requests.store(0, Ordering::Relaxed);
        self.far.bytes.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn run(&self, warm: Option<&HybridCache<u64, Vec<u8>>>) -> Result<String, Failure> {
        let start = Instant::now();
        let opened;
        let cache = match warm {
            Some(cache) => cache,
            None => {
                opened = self.open()?;
                &opened
            }
        };
        self.read_all(cache)?;
        if warm.is_none() {
            self.runtime.block_on(cache.close())?; // what it has taken is written then
        }
        let ns = start.elapsed().as_nanos();
        let [requests, bytes] = [&self.far.requests, &self.far.bytes].map(|count| count.load(Ordering::Relaxed));
        let count = self.offsets.len();
        Ok(format!(r#"{{"ns": {ns}, "count": {count}, "requests": {requests}, "bytes": {bytes}, "extra": 0}}"#))
    }
}

fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

fn serve() -> Result<(), Failure> {
    let parameters = std::env::args().skip(1).filter_map(|it| it.split_once('=').map(|(key, value)| (key.into(), value.into())));
    let contender = Contender::new(parameters.collect())?;
    let mut warm = None;
    if !contender.cold {
        let cache = contender.open()?;
        let mut page = vec![0; contender.far.page as usize];
        for at in 0..contender.far.size / contender.far.page {
            contender.read(&cache, &mut page, at * contender.far.page)?;
        }
        contender.read_all(&cache)?;
        warm = Some(cache);
    }
    say(r#"{"ready": true}"#);
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "prepare" => contender.prepare().map(|()| say(r#"{"prepared": true}"#))?,
            "check" => {
                let opened = if contender.cold { Some(contender.open()?) } else { None };
                contender.check(opened.as_ref().or(warm.as_ref()).ok_or("no cache")?)?;
                say(r#"{"checked": true}"#);
            }
            _ => say(&contender.run(warm.as_ref())?),
        }
    }
    Ok(())
}

fn main() {
    if let Err(error) = serve() {
        say(&format!(r#"{{"error": "{}"}}"#, error.to_string().replace(['"', '\\', '\n'], "'")));
        std::process::exit(1);
    }
}
