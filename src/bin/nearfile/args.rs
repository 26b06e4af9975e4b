//! What the tool understands, for its parser, its man page and its completions (`tests/tool_docs.rs` makes the latter two from this).

use crate::units;
use clap::{Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;
use std::time::Duration;

/// Shows and looks after a directory of near copies: what is in it, what it saved, whether it is whole
///
/// Works beside the programs that use the directory, and stops none of them. Sizes are bytes, or a number with k, M, G, T
/// (powers of 1024), KB, MB, GB, TB (powers of 1000).
#[derive(Debug, Parser)]
#[command(name = "nearfile", version, max_term_width = 100, disable_help_subcommand = true, after_help = EXIT)]
pub struct Args {
    /// The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]
    #[arg(long, short, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// Print JSON, bytes and seconds as plain numbers
    #[arg(long, global = true)]
    pub json: bool,
    /// Colours and progress: `auto` where the output is a terminal
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT: &str = "Exit status: 0 done; 1 failed, or found what it looks for (damage, a missing key); 2 wrong usage; \
130 interrupted: what was done until then is kept.";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// The last used first
    #[default]
    Used,
    /// The largest part of the limit first
    Held,
    /// The largest file first
    Size,
    /// By key
    Key,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the near copies of the directory
    Ls {
        /// Only keys that contain this
        text: Option<String>,
        /// What comes first
        #[arg(long, value_enum, default_value_t)]
        sort: Order,
    },
    /// Show the numbers of the directory, or of the near copies of a key
    Stat {
        /// The key, or a part that no other key has
        key: Option<String>,
    },
    /// Draw which pages of a file are here, verified, hot
    ///
    /// A row shows pages from left to right; where there are more pages than room, each character stands for several and is
    /// filled as far as they are here. Colours: verified green, brighter the more it was used lately; not yet compared yellow; being
    /// fetched or dropped magenta; pinned blue; left over by a dead process or damaged red. Without colours, and with a page a
    /// character, the height of a verified page says how much it was used.
    Map {
        /// The key, or a part that no other key has
        key: String,
        /// The version to show [default: the newest]
        #[arg(long = "version", value_name = "VERSION")]
        version_of: Option<String>,
        /// Write a picture to FILE instead, a square a page
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        png: Option<PathBuf>,
        /// Characters (or, with --png, pixels) across [default: the terminal's, else 80; 960]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=8192))]
        width: Option<u32>,
    },
    /// Compare every page that is here with its checksum
    ///
    /// Exits with 1 if a page does not match, repaired or not.
    Verify {
        /// Only these keys [default: all]
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
        /// Drop what does not match, so that it is fetched again
        #[arg(long)]
        repair: bool,
    },
    /// Fetch a file, or ranges of it, before a program needs it
    ///
    /// A URL is read by the program curl, which knows proxies, certificates and ~/.netrc. Key and version are those of
    /// nearfile/curl.h: the URL without user, fragment and signature; the strong ETag, else the date and size. So programs that open
    /// the URL with curl.h, or with the same key, version and size, find what was warmed. Of a path the key is file:// and the absolute
    /// path, the version its time and size. Stops, with 1, where a limit keeps the rest out.
    Warm {
        /// http:// or https:// URL, or a path
        #[arg(value_hint = ValueHint::AnyPath)]
        source: String,
        /// What of it: START..END, START.., ..END, START+LENGTH, with sizes [default: all]
        #[arg(value_parser = units::parse_range, value_name = "RANGE")]
        ranges: Vec<units::Span>,
        /// The key [default: from the source]
        #[arg(long)]
        key: Option<String>,
        /// The version [default: from the source]
        #[arg(long = "version", value_name = "VERSION")]
        version_of: Option<String>,
        /// Bytes a page of a new near copy [default: 1M]
        #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
        page_size: Option<u64>,
        /// Requests at once
        #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
        connections: u32,
        /// A header for the server, "Name: value", or @FILE with one a line; may be repeated
        #[arg(long, short = 'H', value_name = "HEADER")]
        header: Vec<String>,
    },
    /// Give up the least useful pages until the directory holds no more than SIZE
    Trim {
        /// Bytes to keep, 0 or more
        #[arg(value_parser = units::parse_size)]
        size: u64,
    },
    /// Remove what is kept of keys, every version
    ///
    /// Of a file that is open the pages go at once, and the files when the last process closes it.
    Rm {
        /// The keys, whole
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Copy what is here of a file to PATH and PATH.index, to be opened again by these two
    Preserve {
        /// The key, or a part that no other key has
        key: String,
        /// Where to; nothing is overwritten
        #[arg(value_hint = ValueHint::FilePath)]
        path: PathBuf,
        /// The version to copy [default: the newest]
        #[arg(long = "version", value_name = "VERSION")]
        version_of: Option<String>,
    },
    /// Watch the rates of hits, source bytes and evictions over all processes
    ///
    /// A process tells the directory what it counted when a read misses, when a file is closed and when it asks for numbers itself:
    /// the hits of one that only hits are seen when it closes its file. What a process had not told is lost if it is killed.
    /// Ends with Ctrl-C. Where the output is no terminal, and with --json, each interval is a line.
    Top {
        /// Seconds between two looks
        #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = units::parse_seconds)]
        interval: Duration,
        /// End after so many looks
        #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Write the directory's numbers for Prometheus (text format 0.0.4)
    Prometheus {
        /// Write to FILE, in one step, as a node exporter's textfile collector wants it (a name that ends in .prom)
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        out: Option<PathBuf>,
    },
}
