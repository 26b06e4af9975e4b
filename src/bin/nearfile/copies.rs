//! The directory that a command works on, and its near copies by key.

use crate::Failure;
use nearfile::{Cache, CacheOptions, Entry, Level, set_log};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// An open directory that processes share.
pub struct Copies {
    pub cache: Cache,
}

impl Copies {
    /// Opens a directory that exists; none is made.
    pub fn open(dir: Option<&Path>) -> Result<Copies, Failure> {
        let path = match dir {
            Some(dir) => dir.to_owned(),
            None => Cache::default_path()?,
        };
        match path.metadata() {
            Ok(there) if there.is_dir() => Copies::open_or_make(Some(&path), &CacheOptions::default()),
            Ok(_) => Err(Failure::new(format!("{} is no directory: name a cache directory with --dir", path.display()))),
            Err(error) => Err(Failure::new(format!(
                "{}: {error}: nothing was cached there yet, or --dir names the wrong directory",
                path.display()
            ))),
        }
    }

    /// Opens a directory, or makes it. One that cannot be shared is refused, with what the library says of it.
    pub fn open_or_make(dir: Option<&Path>, options: &CacheOptions) -> Result<Copies, Failure> {
        let said = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&said);
        set_log(
            Level::Warn,
            Some(Box::new(move |_, line| hears.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned()))),
        );
        let cache = Cache::open(dir, options)?;
        let lines = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
        set_log(Level::Warn, Some(Box::new(|_, line| eprintln!("nearfile: {line}"))));
        if cache.is_shared() {
            lines.iter().for_each(|line| eprintln!("nearfile: {line}"));
            return Ok(Copies { cache });
        }
        Err(Failure::new(if lines.is_empty() { format!("{} cannot be used", cache.path().display()) } else { lines.join("; ") }))
    }

    /// All near copies, keys in order, of each key the newest first.
    pub fn all(&self) -> Vec<Entry> {
        let mut entries = self.cache.list();
        entries.sort_by(|a, b| a.key.cmp(&b.key).then(b.made.cmp(&a.made)));
        entries
    }

    /// Every version of a key, given whole or by a part that no other key has; the newest first.
    pub fn of_key(&self, key: &str) -> Result<Vec<Entry>, Failure> {
        let all = self.all();
        let whole: Vec<Entry> = all.iter().filter(|entry| entry.key == key.as_bytes()).cloned().collect();
        if !whole.is_empty() {
            return Ok(whole);
        }
        let mut found: Vec<Entry> = all.into_iter().filter(|entry| text(&entry.key).contains(key)).collect();
        let Some(first) = found.first().map(|entry| entry.key.clone()) else {
            return Err(Failure::new(format!("no key contains \"{key}\": `nearfile ls` lists those that are here")));
        };
        if found.iter().all(|entry| entry.key == first) {
            return Ok(found);
        }
        found.dedup_by(|a, b| a.key == b.key);
        let some: Vec<_> = found.iter().take(5).map(|entry| text(&entry.key)).collect();
        Err(Failure::new(format!("{} keys contain \"{key}\": name one of them whole: {}", found.len(), some.join(", "))))
    }

    /// One near copy: of that version, else the newest.
    pub fn one(&self, key: &str, version: Option<&str>) -> Result<Entry, Failure> {
        let versions = self.of_key(key)?;
        let found = match version {
            None => versions.first(),
            Some(version) => versions.iter().find(|entry| entry.version == version.as_bytes()),
        };
        found.cloned().ok_or_else(|| {
            let there: Vec<_> = versions.iter().map(|entry| format!("\"{}\"", text(&entry.version))).collect();
            Failure::new(format!("no such version of {key}: there are {}", there.join(", ")))
        })
    }
}

/// A key or version as text; what is not UTF-8 is shown so.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
