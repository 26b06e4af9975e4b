//! `top`: what the processes that use the directory do, second by second, from the counters that they tell it.

use crate::copies::Copies;
use crate::listing::{counters, numbers};
use crate::screen::{Screen, bar};
use crate::units;
use crate::{Failure, Outcome};
use nearfile::Stats;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What is shown, in order: a name for people, the counter's, and whether it counts bytes.
const ROWS: [(&str, &str, bool); 10] = [
    ("hits", "hits", false),
    ("misses", "misses", false),
    ("served", "bytes_served", true),
    ("source bytes", "source_bytes", true),
    ("source reads", "source_reads", false),
    ("source errors", "source_errors", false),
    ("waits", "waits", false),
    ("passed through", "passed_through", false),
    ("repairs", "checksum_failures", false),
    ("evictions", "pages_evicted", false),
];

/// Intervals that are drawn.
const DRAWN: usize = 32;

/// Two looks, and the time between them.
struct Interval {
    before: Stats,
    after: Stats,
    seconds: f64,
}

impl Interval {
    /// Of a counter, a second.
    fn rate(&self, name: &str) -> f64 {
        value_of(&self.after, name).saturating_sub(value_of(&self.before, name)) as f64 / self.seconds
    }

    /// Reads that were hits, of all that were told in the interval.
    fn hit_percent(&self) -> Option<u64> {
        let of = |name| value_of(&self.after, name).saturating_sub(value_of(&self.before, name));
        let (hits, misses) = (of("hits"), of("misses"));
        (hits + misses > 0).then(|| units::percent(hits, hits + misses))
    }
}

fn value_of(stats: &Stats, name: &str) -> u64 {
    numbers(stats).iter().find(|(known, ..)| *known == name).map_or(0, |(_, number, _)| *number)
}

pub fn top(copies: &Copies, every: Duration, count: Option<u64>, screen: &Screen) -> Outcome {
    let mut before = (copies.cache.counters(), Instant::now());
    let mut history: VecDeque<Vec<f64>> = VecDeque::new();
    let mut drawn = 0;
    let mut looks = 0;
    while count.is_none_or(|count| looks < count) {
        screen.sleep(every);
        if screen.is_interrupted() {
            break;
        }
        let after = (copies.cache.counters(), Instant::now());
        let interval = Interval { before: before.0, after: after.0, seconds: (after.1 - before.1).as_secs_f64().max(1e-3) };
        history.push_back(ROWS.iter().map(|(_, name, _)| interval.rate(name)).collect());
        if history.len() > DRAWN {
            history.pop_front();
        }
        let shown = if screen.json {
            screen.record(&record(&interval))
        } else if screen.colour {
            let panel = panel(copies, &interval, &history, screen);
            // Up to where the last one began, and over it.
            let again = if drawn == 0 { String::new() } else { format!("\x1b[{drawn}A\r") };
            drawn = panel.lines().count();
            screen.text(&format!("{again}{}", panel.replace('\n', "\x1b[K\n")))
        } else {
            screen.text(&lines(&interval, looks))
        };
        match shown {
            Err(Failure::Interrupted) => return Ok(()), // who read it has gone
            shown => shown?,
        }
        before = after;
        looks += 1;
    }
    Ok(())
}

fn record(interval: &Interval) -> Value {
    let rates: serde_json::Map<String, Value> =
        numbers(&interval.after).iter().map(|(name, ..)| ((*name).to_owned(), interval.rate(name).into())).collect();
    json!({
        "seconds": interval.seconds, "rates": rates, "counters": counters(&interval.after),
        "held_bytes": interval.after.cached_bytes, "size_limit": interval.after.size_limit,
    })
}

fn panel(copies: &Copies, interval: &Interval, history: &VecDeque<Vec<f64>>, screen: &Screen) -> String {
    let stats = &interval.after;
    let held = match stats.size_limit {
        0 => format!("{} held, no limit", units::size(stats.cached_bytes)),
        limit => {
            let full = units::percent(stats.cached_bytes, limit);
            let bar = screen.paint(if full >= 95 { "33" } else { "32" }, &bar(stats.cached_bytes, limit, 20));
            format!("{} of {} held {bar}▏{full}%", units::size(stats.cached_bytes), units::size(limit))
        }
    };
    let mut shown = format!("{}   {held}\n", screen.paint("1", &copies.cache.path().display().to_string()));
    let hits = interval.hit_percent().map_or("no reads told".into(), |percent| format!("{percent}% hits"));
    shown += &format!("{hits} in the last {:.1} s\n", interval.seconds);
    shown += &screen.paint("2", &format!("{:<15}{:>14}{:>14}{:>16}", "", "now", "peak", "in all"));
    shown.push('\n');
    for (row, &(label, name, is_bytes)) in ROWS.iter().enumerate() {
        let rates: Vec<f64> = history.iter().map(|rates| rates[row]).collect();
        let peak = rates.iter().copied().fold(0.0, f64::max);
        let total = value_of(stats, name);
        let total = if is_bytes { units::size(total) } else { units::count(total) };
        let trouble = matches!(name, "source_errors" | "checksum_failures") && peak > 0.0;
        let line = sparks(&rates, peak);
        let (now, most) = (rate(interval.rate(name), is_bytes), rate(peak, is_bytes));
        shown +=
            &format!("{label:<15}{now:>14}{most:>14}{total:>16}  {}\n", screen.paint(if trouble { "31" } else { "36" }, &line));
    }
    shown
}

fn rate(each_second: f64, is_bytes: bool) -> String {
    match each_second {
        rate if is_bytes => format!("{}/s", units::size(rate as u64)),
        rate if rate > 0.0 && rate < 10.0 => format!("{rate:.1}/s"),
        rate => format!("{}/s", units::count(rate as u64)),
    }
}

fn sparks(rates: &[f64], peak: f64) -> String {
    const EIGHTHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let spark = |&rate: &f64| if rate <= 0.0 { ' ' } else { EIGHTHS[((rate / peak * 8.0).ceil() as usize).clamp(1, 8) - 1] };
    rates.iter().map(spark).collect()
}

/// For a file or a pipe: the names again every 20 lines.
fn lines(interval: &Interval, looks: u64) -> String {
    let names =
        ["HITS/S", "HIT%", "MISSES/S", "SERVED/S", "SOURCE/S", "READS/S", "WAITS/S", "PASSED/S", "REPAIRS/S", "EVICT/S", "HELD"];
    let row = |cells: &[String]| cells.iter().map(|cell| format!("{cell:>12}")).collect::<String>() + "\n";
    let whole = |name| format!("{:.1}", interval.rate(name));
    let bytes = |name| units::size(interval.rate(name) as u64);
    let cells = [
        whole("hits"),
        interval.hit_percent().map_or("-".into(), |percent| percent.to_string()),
        whole("misses"),
        bytes("bytes_served"),
        bytes("source_bytes"),
        whole("source_reads"),
        whole("waits"),
        whole("passed_through"),
        whole("checksum_failures"),
        whole("pages_evicted"),
        units::size(interval.after.cached_bytes),
    ];
    let header = if looks % 20 == 0 { row(&names.map(String::from)) } else { String::new() };
    header + &row(&cells)
}
