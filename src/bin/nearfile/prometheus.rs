//! `prometheus`: the directory's numbers as Prometheus reads them, to the standard output or, in one step, to a file.

use crate::copies::Copies;
use crate::screen::Screen;
use crate::{Failure, Outcome};
use nearfile::{Entry, Stats};
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Name, what it says, value.
type Metric = (&'static str, &'static str, u64);

pub fn prometheus(copies: &Copies, out: Option<&Path>, screen: &Screen) -> Outcome {
    let (stats, entries) = (copies.cache.stats(), copies.cache.list());
    let held = copies.cache.counters().cached_bytes;
    let text = exposition(copies.cache.path(), &counted(&stats), &gauges(&stats, &entries, held));
    let Some(path) = out else { return screen.text(&text) };
    replace(path, &text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    if screen.json { screen.value(&json!({ "out": path.display().to_string(), "bytes": text.len() })) } else { Ok(()) }
}

/// Counters since the directory was made. Names never change.
fn counted(stats: &Stats) -> [Metric; 13] {
    [
        ("nearfile_hits_total", "Reads of which every page was present.", stats.hits),
        ("nearfile_misses_total", "Reads of which at least one page was not present.", stats.misses),
        ("nearfile_waits_total", "Reads that waited for another's fetch.", stats.waits),
        ("nearfile_asked_bytes_total", "Bytes asked for, within files.", stats.bytes_asked),
        ("nearfile_served_bytes_total", "Bytes given to readers.", stats.bytes_served),
        ("nearfile_source_reads_total", "Reads of sources.", stats.source_reads),
        ("nearfile_source_bytes_total", "Bytes that sources gave.", stats.source_bytes),
        ("nearfile_source_errors_total", "Reads and opens of sources that failed.", stats.source_errors),
        ("nearfile_pages_fetched_total", "Pages stored.", stats.pages_fetched),
        ("nearfile_pages_verified_total", "Pages whose checksum was compared and matched.", stats.pages_verified),
        ("nearfile_checksum_failures_total", "Pages whose checksum did not match: fetched again.", stats.checksum_failures),
        ("nearfile_passed_through_total", "Reads that went to the source without being kept.", stats.passed_through),
        ("nearfile_pages_evicted_total", "Pages given up for others.", stats.pages_evicted),
    ]
}

/// What there is now.
fn gauges(stats: &Stats, entries: &[Entry], held: u64) -> [Metric; 7] {
    let how_many = |is: fn(&Entry) -> bool| entries.iter().filter(|entry| is(entry)).count() as u64;
    [
        ("nearfile_files", "Near copies in the directory.", entries.len() as u64),
        ("nearfile_open_files", "Near copies that some process has open.", how_many(|entry| entry.open)),
        ("nearfile_outdated_files", "Near copies of which there is a newer version.", how_many(|entry| entry.outdated)),
        ("nearfile_cached_pages", "Pages present.", stats.cached_pages),
        ("nearfile_cached_bytes", "Bytes present.", stats.cached_bytes),
        ("nearfile_held_bytes", "Bytes that the limit is held against.", held),
        ("nearfile_size_limit_bytes", "The limit; 0: none.", stats.size_limit),
    ]
}

fn exposition(directory: &Path, counted: &[Metric], gauges: &[Metric]) -> String {
    let label = escaped(&directory.display().to_string());
    let lines = |kind: &str, metrics: &[Metric]| -> String {
        let one = |(name, help, value): &Metric| {
            format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{directory=\"{label}\"}} {value}\n")
        };
        metrics.iter().map(one).collect()
    };
    lines("counter", counted) + &lines("gauge", gauges)
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Writes beside the file, under a name that no collector reads, and renames: who reads it finds the old text or the new.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let written =
        std::fs::File::create(&beside).and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    let replaced = written.and_then(|()| std::fs::rename(&beside, path));
    replaced.inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_any_name_is_one_label() {
        let text = exposition(Path::new("/a \"b\"\\c\nd"), &[("x_total", "X.", 7)], &[]);
        assert_eq!(text, "# HELP x_total X.\n# TYPE x_total counter\nx_total{directory=\"/a \\\"b\\\"\\\\c\\nd\"} 7\n");
    }
}
