//! Any bytes as an index, a header or a `control`: right bytes or an error come of it, never a crash, a hang, a stray load or an
//! allocation without bound (promise 12). Run by cargo-fuzz (`scripts/fuzz`), and over its committed corpus by `cargo test`.
//!
//! The first byte of an input chooses how the rest is used (`Plan`). A checksum is no signature: inputs in which a page that is wrong in
//! the mirror has a word that vouches for it are told apart (`vouched`), and then only the bytes are not compared.
#![allow(clippy::unwrap_used, reason = "a defect of the harness is to be seen")]

use crate::format::{
    AT_BEATS, AT_SESSION_WORD, AT_SLOTS, AT_WORDS, CONTROL_LEN, HEADER_LEN, Header, State, Word, crc32c, epoch_of, index_len,
    reseal, word_offset,
};
use crate::{Cache, CacheOptions, Connection, File, Options, Source, SourceError};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const PAGE: u64 = 4096;
const SIZE: u64 = 5 * PAGE + 100;

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..SIZE).map(|at| (at * 31 + at / 251) as u8 | 1).collect());

struct Far;

impl Source for Far {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        Ok(Box::new(Far))
    }
}

impl Connection for Far {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        buf.copy_from_slice(&CONTENT[offset as usize..][..buf.len()]);
        Ok(buf.len())
    }
}

/// What the first byte says.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// The pair lies at paths of its own, not in a cache directory.
    own: bool,
    /// The rest is the file; else it is changes of a valid one: offset, 2 bytes, how many, 1 byte, and so many.
    whole: bool,
    /// The header's checksum is made right, so that what it says is believed.
    sealed: bool,
    /// The mirror holds zeros.
    zeros: bool,
    trust_clean: bool,
    verify_always: bool,
    frozen: bool,
    /// The file is as long as its header says.
    lengthened: bool,
}

impl Plan {
    fn of(byte: u8) -> Plan {
        let bit = |n: u8| byte >> n & 1 == 1;
        Plan {
            own: bit(0),
            whole: bit(1),
            sealed: bit(2),
            zeros: bit(3),
            trust_clean: bit(4),
            verify_always: bit(5),
            frozen: bit(6),
            lengthened: bit(7),
        }
    }
}

/// A directory of this thread, and the valid files that inputs change.
struct Place {
    dir: PathBuf,
    index_name: String,
    data_name: String,
    index: Vec<u8>,
    control: Vec<u8>,
}

thread_local! {
    static PLACE: Place = Place::new();
}

fn cache_options() -> CacheOptions {
    CacheOptions { page_size: PAGE, wait: Duration::from_millis(20), ..CacheOptions::default() }
}

fn options() -> Options {
    Options { key: Some(b"key".to_vec()), size: Some(SIZE), ..Options::new() }
}

impl Place {
    fn new() -> Place {
        static PLACES: AtomicU64 = AtomicU64::new(0);
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("nearfile-hostile-{}-{number}", std::process::id()));
        let cache = Cache::open(Some(&dir.join("cache")), &cache_options()).unwrap();
        let file = cache.file(Box::new(Far), &options()).unwrap();
        file.read_at(&mut vec![0; SIZE as usize], 0).unwrap();
        let (index, data) = (file.index_path().unwrap().to_owned(), file.data_path().unwrap().to_owned());
        drop((file, cache));
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let control = fs::read(dir.join("cache/control")).unwrap();
        Place { index_name: name(&index), data_name: name(&data), index: fs::read(&index).unwrap(), control, dir }
    }

    fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// Only what this input puts there is there.
    fn clear(&self) {
        for entry in fs::read_dir(self.cache()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for name in ["own.data", "own.index"] {
            let _ = fs::remove_file(self.dir.join(name));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn write(path: &Path, bytes: &[u8], len: u64) {
    use std::os::unix::fs::OpenOptionsExt;
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.set_len(len).unwrap();
}

/// A valid file with the changes that an input lists.
fn changed(valid: &[u8], mut changes: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    while let [low, high, count, rest @ ..] = changes {
        let at = usize::from(*low) | usize::from(*high) << 8;
        let (new, after) = rest.split_at(rest.len().min(usize::from(*count)));
        for (place, &new) in bytes.iter_mut().skip(at).zip(new) {
            *place = new;
        }
        changes = after;
    }
    bytes
}

/// Whether a word speaks for a page that the mirror has not: with its checksum, or as compared in the coming session.
fn vouched(index: &[u8], mirror: &[u8]) -> bool {
    let word_at =
        |at: u64| index.get(at as usize..at as usize + 8).map_or(0, |bytes| u64::from_ne_bytes(bytes.try_into().unwrap()));
    let epoch = epoch_of((word_at(AT_SESSION_WORD) >> 1).wrapping_add(1) & (u64::MAX >> 1));
    let page_size = Header::decode(&index[..index.len().min(HEADER_LEN)]).map_or(PAGE, |header| header.page_size);
    let page = |at: usize| mirror.chunks(page_size as usize).nth(at).unwrap_or_default();
    (0..SIZE.div_ceil(page_size) as usize).any(|at| {
        let word = Word(word_at(word_offset(at as u64)));
        word.is_present() && (word.crc() == crc32c(page(at)) || (word.state() == State::Verified && word.epoch() == epoch))
    })
}

fn check_reads(file: &File, compare: bool, may_miss: bool) {
    for (offset, len) in [(PAGE + 7, 10), (0, SIZE), (3 * PAGE - 1, 2 * PAGE), (SIZE - 1, 5)] {
        let mut buf = vec![0; len as usize];
        match file.read_at(&mut buf, offset) {
            Ok(n) => {
                assert_eq!(n as u64, len.min(SIZE - offset));
                assert!(!compare || buf[..n] == CONTENT[offset as usize..][..n], "wrong bytes");
            }
            Err(error) => assert!(may_miss, "a read failed: {error}"),
        }
    }
}

/// All that a program does with a file, in short.
fn use_file(file: &File, compare: bool, frozen: bool) {
    check_reads(file, compare, frozen);
    let mut from = 0;
    while from < SIZE {
        let (end, _) = file.extent(from).unwrap();
        assert!(end > from && end <= SIZE);
        from = end;
    }
    let _ = file.stats();
    let _ = file.discard(PAGE..4 * PAGE);
    check_reads(file, compare, frozen);
    if let Ok(pin) = file.pin(PAGE + 1, 2 * PAGE as usize) {
        assert!(!compare || pin.bytes() == &CONTENT[PAGE as usize + 1..3 * PAGE as usize + 1], "wrong bytes in a pin");
    }
}

fn use_directory(cache: &Cache) {
    let _ = (cache.list(), cache.stats());
    let _ = cache.trim(2 * PAGE);
    let _ = cache.remove(b"another");
}

/// Any bytes as the index of a pair.
pub fn index(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else { return };
    PLACE.with(|place| any_index(place, Plan::of(first), rest));
}

fn any_index(place: &Place, plan: Plan, rest: &[u8]) {
    place.clear();
    let mut bytes = if plan.whole { rest.to_vec() } else { changed(&place.index, rest) };
    if plan.sealed {
        reseal(&mut bytes);
    }
    let claimed =
        Header::decode(&bytes[..bytes.len().min(HEADER_LEN)]).map(|header| index_len(header.size.div_ceil(header.page_size)));
    let len = match claimed {
        Ok(len) if plan.lengthened && len < 1 << 42 => len.max(bytes.len() as u64),
        _ => bytes.len() as u64,
    };
    let zeros = vec![0; SIZE as usize];
    let mirror = if plan.zeros { &zeros } else { &*CONTENT };
    let compare = !plan.zeros || !(plan.trust_clean || vouched(&bytes, mirror));
    let (data, index) = if plan.own { ("own.data", "own.index") } else { (&*place.data_name, &*place.index_name) };
    let at = if plan.own { place.dir.clone() } else { place.cache() };
    write(&at.join(data), mirror, SIZE);
    write(&at.join(index), &bytes, len);
    let options = Options {
        trust_clean: plan.trust_clean,
        verify_always: plan.verify_always,
        frozen: plan.frozen,
        paths: plan.own.then(|| (at.join(data), at.join(index))),
        ..options()
    };
    if plan.own {
        if let Ok(file) = File::open(Box::new(Far), &options) {
            use_file(&file, compare, plan.frozen);
        }
        return;
    }
    // And in the place of another: found by list, trim and remove, whatever size it claims.
    write(&at.join("0.index"), &bytes, len);
    let cache = Cache::open(Some(&at), &cache_options()).unwrap();
    let file = cache.file(Box::new(Far), &options).unwrap();
    use_file(&file, compare, plan.frozen);
    use_directory(&cache);
    check_reads(&file, compare, plan.frozen);
}

/// Any bytes as `control`, beside a valid pair.
pub fn control(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else { return };
    PLACE.with(|place| any_control(place, Plan::of(first), rest));
}

fn any_control(place: &Place, plan: Plan, rest: &[u8]) {
    place.clear();
    let bytes = if plan.whole {
        rest.to_vec()
    } else {
        let (low, high) = place.control.split_at(AT_SLOTS as usize);
        // The first slots stand for all.
        [changed(&[low, &high[..64 * 32]].concat(), rest), high[64 * 32..].to_vec()].concat()
    };
    let len = if plan.lengthened { CONTROL_LEN } else { bytes.len() as u64 };
    write(&place.cache().join(&place.data_name), &CONTENT, SIZE);
    write(&place.cache().join(&place.index_name), &place.index, place.index.len() as u64);
    write(&place.cache().join("control"), &bytes, len);
    let size_limit = if plan.sealed { 3 * PAGE } else { 0 };
    let cache = Cache::open(Some(&place.cache()), &CacheOptions { size_limit, ..cache_options() }).unwrap();
    let file = cache.file(Box::new(Far), &options()).unwrap();
    use_file(&file, true, false);
    use_directory(&cache);
    let private = cache.file(Box::new(Far), &Options { key: None, exact: plan.own, ..options() }).unwrap();
    use_file(&private, true, false);
    check_reads(&file, true, false);
}

/// Any bytes as a header: what is believed of them can be computed with, and is what was written.
pub fn header(input: &[u8]) {
    let mut bytes = input.to_vec();
    if bytes.first().is_some_and(|first| first & 1 == 0) {
        bytes.remove(0);
        reseal(&mut bytes);
    }
    let _ = Header::mirror_of_damaged(&bytes);
    let Ok(header) = Header::decode(&bytes) else { return };
    assert!(header.page_size > 0 && i64::try_from(header.size).is_ok());
    let pages = header.size.div_ceil(header.page_size);
    assert!(i64::try_from(index_len(pages)).is_ok() && index_len(pages) >= word_offset(pages));
    assert!(word_offset(0) == AT_WORDS && AT_BEATS < AT_WORDS);
    assert_eq!(Header::decode(&header.encode()), Ok(header));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the fuzzers have found that is worth keeping.
    fn replay(target: &str, run: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut inputs = 0;
        for entry in fs::read_dir(&corpus).unwrap() {
            run(&fs::read(entry.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert!(inputs > 5, "{} is nearly empty", corpus.display());
    }

    #[test]
    fn corpus_of_indexes() {
        replay("index", index);
    }

    #[test]
    fn corpus_of_controls() {
        replay("control", control);
    }

    #[test]
    fn corpus_of_headers() {
        replay("header", header);
    }
}
