//! `nearfile`, the tool: shows and looks after a directory of near copies, over the public API of the library alone. Each command has
//! a file of its own; this one parses, dispatches, and turns what came of it into an exit status.

mod args;
mod copies;
mod curl;
mod listing;
mod map;
mod picture;
mod prometheus;
mod screen;
mod top;
mod units;
mod verify;
mod warm;

use args::{Args, Command};
use clap::Parser;
use copies::Copies;
use screen::Screen;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Why a command ends without having done what it was asked for.
#[derive(Debug)]
pub enum Failure {
    /// The sentence says what, and what to do.
    Failed(String),
    /// It found what it looks for, and has said so.
    Found,
    /// Ctrl-C, or whoever read the output has gone.
    Interrupted,
}

impl Failure {
    fn new(sentence: impl Into<String>) -> Failure {
        Failure::Failed(sentence.into())
    }
}

impl From<nearfile::Error> for Failure {
    fn from(error: nearfile::Error) -> Failure {
        match error {
            nearfile::Error::Cancelled => Failure::Interrupted,
            error => Failure::new(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::Interrupted,
            _ => Failure::new(error.to_string()),
        }
    }
}

type Outcome = Result<(), Failure>;

fn main() -> ExitCode {
    let args = Args::parse();
    let screen = match interruptible() {
        Ok(interrupted) => Screen::new(&args, interrupted),
        Err(error) => return fail(&format!("signals cannot be caught: {error}")),
    };
    match run(args, &screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Found) => ExitCode::from(1),
        Err(Failure::Interrupted) => ExitCode::from(130),
        Err(Failure::Failed(sentence)) => fail(&sentence),
    }
}

fn fail(sentence: &str) -> ExitCode {
    eprintln!("nearfile: {sentence}");
    ExitCode::from(1)
}

/// Set by the first Ctrl-C (or SIGTERM, SIGHUP); the second ends the process at once.
fn interruptible() -> std::io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

fn run(args: Args, screen: &Screen) -> Outcome {
    let dir = args.dir.as_deref();
    match args.command {
        Command::Warm { source, ranges, key, version_of, page_size, connections, header } => {
            let wanted = warm::Wanted { source, ranges, key, version: version_of, page_size, connections, headers: header };
            warm::warm(dir, &wanted, screen)
        }
        Command::Ls { text, sort } => listing::ls(&Copies::open(dir)?, text.as_deref(), sort, screen),
        Command::Stat { key: None } => listing::stat_directory(&Copies::open(dir)?, screen),
        Command::Stat { key: Some(key) } => listing::stat_key(&Copies::open(dir)?, &key, screen),
        Command::Map { key, version_of, png, width } => {
            map::map(&Copies::open(dir)?, &key, version_of.as_deref(), png.as_deref(), width, screen)
        }
        Command::Verify { keys, repair } => verify::verify(&Copies::open(dir)?, &keys, repair, screen),
        Command::Trim { size } => listing::trim(&Copies::open(dir)?, size, screen),
        Command::Rm { keys } => listing::remove(&Copies::open(dir)?, &keys, screen),
        Command::Preserve { key, path, version_of } => {
            listing::preserve(&Copies::open(dir)?, &key, version_of.as_deref(), &path, screen)
        }
        Command::Top { interval, count } => top::top(&Copies::open(dir)?, interval, count, screen),
        Command::Prometheus { out } => prometheus::prometheus(&Copies::open(dir)?, out.as_deref(), screen),
    }
}
