//! `ls`, `stat`, `trim`, `rm`, `preserve`: what is in the directory, and what of it goes or is copied.

use crate::args::Order;
use crate::copies::{Copies, text};
use crate::screen::{Screen, bar};
use crate::units;
use crate::{Failure, Outcome};
use nearfile::{Entry, Stats};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::path::Path;
use std::time::SystemTime;

pub fn ls(copies: &Copies, part: Option<&str>, order: Order, screen: &Screen) -> Outcome {
    let mut entries = copies.all();
    entries.retain(|entry| part.is_none_or(|part| text(&entry.key).contains(part)));
    match order {
        Order::Key => {}
        Order::Used => entries.sort_by_key(|entry| Reverse(entry.used)),
        Order::Held => entries.sort_by_key(|entry| Reverse(entry.held_bytes)),
        Order::Size => entries.sort_by_key(|entry| Reverse(entry.size)),
    }
    if screen.json {
        return screen.value(&Value::Array(entries.iter().map(value_of).collect()));
    }
    if entries.is_empty() {
        return screen.line("no near copies here");
    }
    let mut shown = format!("{:>10} {:>10} {:>4} {:>10}  {:<9} KEY\n", "SIZE", "HERE", "%", "USED", "STATE");
    for entry in &entries {
        let state = match (entry.open, entry.outdated) {
            (true, false) => screen.paint("32", "open     "),
            (true, true) => screen.paint("33", "open old "),
            (false, true) => screen.paint("33", "outdated "),
            (false, false) => "closed   ".into(),
        };
        let cells = [units::size(entry.size), units::size(entry.cached_bytes), ago(entry.used)];
        let part = units::percent(entry.cached_bytes, entry.size);
        shown += &format!("{:>10} {:>10} {part:>3}% {:>10}  {state} {}\n", cells[0], cells[1], cells[2], printable(&entry.key));
    }
    let (size, here) = entries.iter().fold((0_u64, 0_u64), |sum, entry| (sum.0 + entry.size, sum.1 + entry.cached_bytes));
    shown += &format!(
        "{:>10} {:>10} {:>3}%  {} in all\n",
        units::size(size),
        units::size(here),
        units::percent(here, size),
        files_of(entries.len())
    );
    screen.text(&shown)
}

pub fn stat_directory(copies: &Copies, screen: &Screen) -> Outcome {
    let (stats, entries) = (copies.cache.stats(), copies.all());
    let held = copies.cache.counters().cached_bytes;
    let open = entries.iter().filter(|entry| entry.open).count();
    let outdated = entries.iter().filter(|entry| entry.outdated).count();
    if screen.json {
        return screen.value(&json!({
            "directory": copies.cache.path().display().to_string(),
            "files": entries.len(), "open": open, "outdated": outdated,
            "held_bytes": held, "cached_bytes": stats.cached_bytes, "cached_pages": stats.cached_pages,
            "size_limit": stats.size_limit, "counters": counters(&stats),
        }));
    }
    let mut shown = format!("directory        {}\n", copies.cache.path().display());
    shown += &format!("files            {}, {open} open, {outdated} outdated\n", entries.len());
    shown += &match stats.size_limit {
        0 => format!("held             {}, no limit\n", units::size(held)),
        limit => {
            let part = units::percent(held, limit);
            format!("held             {} of {} {}▏{part}%\n", units::size(held), units::size(limit), bar(held, limit, 20))
        }
    };
    shown += &format!("pages            {} here, {}\n", units::count(stats.cached_pages), units::size(stats.cached_bytes));
    shown += "since the directory was made, over all processes\n";
    shown += &saved(&stats);
    for (name, number, is_bytes) in numbers(&stats) {
        let number = if is_bytes { units::size(number) } else { units::count(number) };
        shown += &format!("  {name:<18} {number:>14}\n");
    }
    screen.text(&shown)
}

pub fn stat_key(copies: &Copies, key: &str, screen: &Screen) -> Outcome {
    let versions = copies.of_key(key)?;
    if screen.json {
        return screen.value(&Value::Array(versions.iter().map(value_of).collect()));
    }
    let mut shown = String::new();
    for entry in &versions {
        let pages = entry.size.div_ceil(entry.page_size);
        let (part, held) = (units::percent(entry.cached_bytes, entry.size), units::size(entry.held_bytes));
        shown += &format!("key        {}\n", printable(&entry.key));
        shown += &format!("version    {}{}\n", printable(&entry.version), if entry.outdated { " (outdated)" } else { "" });
        shown += &format!("size       {} ({} bytes)\n", units::size(entry.size), units::count(entry.size));
        let here = (units::count(entry.cached_pages), units::count(pages), units::size(entry.page_size));
        shown += &format!("pages      {} of {}, {} each: {part}%, {held} held\n", here.0, here.1, here.2);
        shown +=
            &format!("used       {}, made {}, {}\n", ago(entry.used), ago(entry.made), if entry.open { "open" } else { "closed" });
        shown += &format!("data       {}\nindex      {}\n", entry.data_path.display(), entry.index_path.display());
    }
    screen.text(&shown)
}

pub fn trim(copies: &Copies, keep: u64, screen: &Screen) -> Outcome {
    let before = copies.cache.counters().cached_bytes;
    copies.cache.trim(keep)?;
    let after = copies.cache.counters().cached_bytes;
    if screen.json {
        screen.value(&json!({ "before_bytes": before, "after_bytes": after, "keep_bytes": keep }))?;
    } else {
        screen.line(&format!("given up {}: {} held", units::size(before.saturating_sub(after)), units::size(after)))?;
    }
    if after <= keep {
        return Ok(());
    }
    let held = units::size(after);
    Err(Failure::new(format!(
        "{held} stay: pages that are pinned, frozen or fetched just now; try again when their programs have let go"
    )))
}

pub fn remove(copies: &Copies, keys: &[String], screen: &Screen) -> Outcome {
    let all = copies.all();
    let (mut missing, mut removed) = (Vec::new(), Vec::new());
    for key in keys {
        let versions: Vec<&Entry> = all.iter().filter(|entry| entry.key == key.as_bytes()).collect();
        if versions.is_empty() {
            missing.push(format!("\"{key}\""));
            continue;
        }
        copies.cache.remove(key.as_bytes())?;
        let bytes: u64 = versions.iter().map(|entry| entry.held_bytes).sum();
        let open = versions.iter().any(|entry| entry.open);
        if !screen.json {
            let later = if open { "; its files go when the last process closes it" } else { "" };
            screen.line(&format!("removed {} ({}){later}", printable(key.as_bytes()), units::size(bytes)))?;
        }
        removed.push(json!({ "key": key, "versions": versions.len(), "held_bytes": bytes, "open": open }));
    }
    if screen.json {
        screen.value(&json!({ "removed": removed, "missing": keys.len() - removed.len() }))?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("no key is {}: `nearfile ls` lists those that are here", missing.join(", "))))
}

pub fn preserve(copies: &Copies, key: &str, version: Option<&str>, path: &Path, screen: &Screen) -> Outcome {
    let entry = copies.one(key, version)?;
    copies.cache.preserve(&entry, path)?;
    let mut index = path.as_os_str().to_owned();
    index.push(".index");
    let index = Path::new(&index).display().to_string();
    if screen.json {
        return screen.value(&json!({ "key": text(&entry.key), "version": text(&entry.version), "size": entry.size,
            "page_size": entry.page_size, "cached_bytes": entry.cached_bytes, "data_path": path.display().to_string(), "index_path": index }));
    }
    let (here, all) = (units::size(entry.cached_bytes), units::size(entry.size));
    screen.line(&format!("{here} of {all} in {}, index in {index}", path.display()))
}

/// What a near copy is, in JSON.
pub fn value_of(entry: &Entry) -> Value {
    json!({
        "key": text(&entry.key), "version": text(&entry.version), "size": entry.size, "page_size": entry.page_size,
        "pages": entry.size.div_ceil(entry.page_size), "cached_pages": entry.cached_pages, "cached_bytes": entry.cached_bytes,
        "held_bytes": entry.held_bytes, "open": entry.open, "outdated": entry.outdated,
        "used": seconds(entry.used), "made": seconds(entry.made),
        "data_path": entry.data_path.display().to_string(), "index_path": entry.index_path.display().to_string(),
    })
}

/// The counters by name, and which are bytes.
pub fn numbers(stats: &Stats) -> [(&'static str, u64, bool); 13] {
    [
        ("hits", stats.hits, false),
        ("misses", stats.misses, false),
        ("waits", stats.waits, false),
        ("bytes_asked", stats.bytes_asked, true),
        ("bytes_served", stats.bytes_served, true),
        ("source_reads", stats.source_reads, false),
        ("source_bytes", stats.source_bytes, true),
        ("source_errors", stats.source_errors, false),
        ("pages_fetched", stats.pages_fetched, false),
        ("pages_verified", stats.pages_verified, false),
        ("checksum_failures", stats.checksum_failures, false),
        ("passed_through", stats.passed_through, false),
        ("pages_evicted", stats.pages_evicted, false),
    ]
}

pub fn counters(stats: &Stats) -> Value {
    numbers(stats).into_iter().map(|(name, number, _)| (name.to_owned(), number.into())).collect::<serde_json::Map<_, _>>().into()
}

/// What the directory saved, in a sentence.
fn saved(stats: &Stats) -> String {
    let reads = stats.hits + stats.misses;
    if reads == 0 {
        return String::new();
    }
    let (served, fetched) = (units::size(stats.bytes_served), units::size(stats.source_bytes));
    format!(
        "  {}% of {} reads were hits; {served} served, {fetched} read from sources\n",
        units::percent(stats.hits, reads),
        units::count(reads)
    )
}

pub fn files_of(count: usize) -> String {
    if count == 1 { "1 file".into() } else { format!("{} files", units::count(count as u64)) }
}

fn ago(time: SystemTime) -> String {
    SystemTime::now().duration_since(time).map_or("now".into(), |passed| format!("{} ago", units::duration(passed)))
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A key on one line: what would move the cursor is shown as what it is.
pub fn printable(key: &[u8]) -> String {
    text(key).chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}
