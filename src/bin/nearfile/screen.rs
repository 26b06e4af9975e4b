//! Where output goes: text, JSON, colours, a line of progress; and whether the user has had enough.

use crate::args::{Args, Color};
use crate::units;
use crate::{Failure, Outcome};
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub struct Screen {
    pub json: bool,
    /// Colours, and drawing in place.
    pub colour: bool,
    /// A progress line on the standard error.
    pub progress: bool,
    interrupted: Arc<AtomicBool>,
}

impl Screen {
    pub fn new(args: &Args, interrupted: Arc<AtomicBool>) -> Screen {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let when = |is_terminal: bool| match args.color {
            Color::Auto => is_terminal && !plain && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            Color::Always => true,
            Color::Never => false,
        };
        Screen {
            json: args.json,
            colour: !args.json && when(std::io::stdout().is_terminal()),
            progress: when(std::io::stderr().is_terminal()),
            interrupted,
        }
    }

    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The same question, for other threads.
    pub fn interruption(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let interrupted = Arc::clone(&self.interrupted);
        Arc::new(move || interrupted.load(Ordering::Relaxed))
    }

    /// Sleeps, unless interrupted.
    pub fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_interrupted() && Instant::now() < until {
            std::thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
        }
    }

    pub fn text(&self, text: &str) -> Outcome {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    pub fn line(&self, line: &str) -> Outcome {
        self.text(&format!("{line}\n"))
    }

    pub fn value(&self, value: &Value) -> Outcome {
        let shown = serde_json::to_string_pretty(value).map_err(|error| Failure::new(error.to_string()))?;
        self.line(&shown)
    }

    /// A value on one line.
    pub fn record(&self, value: &Value) -> Outcome {
        self.line(&value.to_string())
    }

    /// Characters across.
    pub fn width(&self) -> usize {
        let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let terminal = || terminal_size::terminal_size().map(|(terminal_size::Width(width), _)| usize::from(width));
        asked.or_else(terminal).unwrap_or(80).clamp(20, 500)
    }

    /// Text in a colour (an SGR code), where there are colours.
    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colour && !code.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A bar of `width` characters, filled to eighths.
pub fn bar(part: u64, all: u64, width: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = if all == 0 { 0 } else { (u128::from(part.min(all)) * 8 * width as u128 / u128::from(all)) as usize };
    let mut drawn: String = "█".repeat(eighths / 8);
    if eighths / 8 < width {
        drawn.push(EIGHTHS[eighths % 8]);
        drawn.push_str(&" ".repeat(width - eighths / 8 - 1));
    }
    drawn
}

/// A line on the standard error that is drawn again and again: how far, how fast, how long still.
pub struct Progress {
    shown: bool,
    label: String,
    start: Instant,
    drawn: Option<Instant>,
}

impl Progress {
    pub fn new(screen: &Screen, label: &str) -> Progress {
        Progress { shown: screen.progress, label: label.to_owned(), start: Instant::now(), drawn: None }
    }

    /// `fresh` of the `done` bytes took time.
    pub fn at(&mut self, done: u64, all: u64, fresh: u64) {
        let now = Instant::now();
        if !self.shown || self.drawn.is_some_and(|drawn| now - drawn < Duration::from_millis(100)) {
            return;
        }
        self.drawn = Some(now);
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = fresh as f64 / seconds.max(1e-3);
        let eta = if rate >= 1.0 && seconds > 0.5 {
            units::clock(Duration::from_secs_f64((all.saturating_sub(done) as f64 / rate).min(3.0e8)))
        } else {
            "-:--".into()
        };
        let line = format!(
            "{} {}▏{:>3}%  {} of {}  {}/s  ETA {eta}",
            self.label,
            bar(done, all, 24),
            units::percent(done, all),
            units::size(done),
            units::size(all),
            units::size(rate as u64)
        );
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
