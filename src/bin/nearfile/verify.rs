//! `verify`: every page that is here beside its checksum.

use crate::copies::{Copies, text};
use crate::listing::{files_of, printable};
use crate::screen::{Progress, Screen};
use crate::units;
use crate::{Failure, Outcome};
use nearfile::{Entry, Verified};
use serde_json::{Value, json};

pub fn verify(copies: &Copies, keys: &[String], repair: bool, screen: &Screen) -> Outcome {
    let entries = match keys {
        [] => copies.all(),
        keys => keys.iter().map(|key| copies.of_key(key)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect(),
    };
    let all: u64 = entries.iter().map(|entry| entry.cached_bytes).sum();
    let mut progress = Progress::new(screen, "verify");
    let (mut total, mut files, mut failed) = (Verified::default(), Vec::new(), Vec::new());
    for entry in &entries {
        let before = total.bytes;
        let so_far = &mut |now: &Verified| {
            progress.at(before + now.bytes, all, before + now.bytes);
            !screen.is_interrupted()
        };
        match copies.cache.verify(entry, repair, so_far) {
            Ok(verified) => {
                total.pages += verified.pages;
                total.bytes += verified.bytes;
                total.repaired += verified.repaired;
                total.damaged.extend(&verified.damaged);
                files.push((entry, verified));
            }
            Err(nearfile::Error::Cancelled) => return Err(Failure::Interrupted),
            // Gone since it was listed: nothing of it is served.
            Err(_) if !entry.index_path.exists() => {}
            Err(error) => failed.push((entry, error.to_string())),
        }
    }
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    if screen.json {
        let damaged: Vec<Value> = files.iter().filter(|(_, verified)| !verified.damaged.is_empty()).map(value_of).collect();
        let errors: Vec<Value> = failed.iter().map(|(entry, error)| json!({ "key": text(&entry.key), "error": error })).collect();
        screen.value(&json!({ "files": files.len(), "pages": total.pages, "bytes": total.bytes, "seconds": seconds,
            "damaged_pages": total.damaged.len(), "repaired_pages": total.repaired, "damaged": damaged, "errors": errors }))?;
    } else {
        for (entry, verified) in files.iter().filter(|(_, verified)| !verified.damaged.is_empty()) {
            screen.line(&describe(entry, verified, repair, screen))?;
        }
        for (_, error) in &failed {
            screen.line(&screen.paint("31", error))?;
        }
        screen.line(&summary(files.len(), &total, seconds))?;
    }
    if total.damaged.is_empty() && failed.is_empty() {
        return Ok(());
    }
    if !repair && !total.damaged.is_empty() && !screen.json {
        screen.line("programs compare pages, too, before they serve them, and fetch these again; `--repair` drops them now")?;
    }
    Err(Failure::Found)
}

fn value_of((entry, verified): &(&Entry, Verified)) -> Value {
    json!({ "key": text(&entry.key), "version": text(&entry.version), "pages": verified.damaged, "repaired": verified.repaired })
}

/// One file's damage: pages as runs, so that much of it stays readable.
fn describe(entry: &Entry, verified: &Verified, repair: bool, screen: &Screen) -> String {
    let runs = runs(&verified.damaged);
    let mut shown: Vec<String> = runs
        .iter()
        .take(8)
        .map(|&(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    if runs.len() > 8 {
        shown.push("…".into());
    }
    let damaged = verified.damaged.len() as u64;
    let repaired = match (repair, verified.repaired) {
        (false, _) => String::new(),
        (true, all) if all == damaged => ", dropped".into(),
        (true, some) => format!(", {some} of them dropped"),
    };
    let what = format!("{} of {} pages damaged{repaired}", units::count(damaged), units::count(verified.pages));
    format!("{}: {} (page {})", printable(&entry.key), screen.paint("31", &what), shown.join(", "))
}

fn runs(pages: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some(last) if last.1 + 1 == page => last.1 = page,
            _ => runs.push((page, page)),
        }
    }
    runs
}

fn summary(files: usize, total: &Verified, seconds: f64) -> String {
    let rate = units::size((total.bytes as f64 / seconds.max(1e-6)) as u64);
    let (pages, bytes) = (units::count(total.pages), units::size(total.bytes));
    format!("{}, {pages} pages, {bytes} compared in {seconds:.1} s ({rate}/s): {} damaged", files_of(files), total.damaged.len())
}
