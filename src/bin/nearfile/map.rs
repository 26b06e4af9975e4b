//! `map`: which pages of a file are here, compared, hot, held; drawn with characters, as a picture, or as runs in JSON.

use crate::copies::{Copies, text};
use crate::listing::printable;
use crate::picture;
use crate::screen::Screen;
use crate::units;
use crate::{Failure, Outcome};
use nearfile::{Entry, Map, PageState};
use serde_json::{Value, json};
use std::path::Path;

/// What is told apart in a drawing. Of several pages in one place the last of these that is there gives the colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    #[default]
    Absent,
    Filled,
    Verified,
    Pinned,
    Busy,
    Taken,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Verified, Kind::Filled, Kind::Pinned, Kind::Busy, Kind::Taken];

    fn name(self) -> &'static str {
        match self {
            Kind::Absent => "absent",
            Kind::Filled => "filled",
            Kind::Verified => "verified",
            Kind::Pinned => "pinned",
            Kind::Busy => "busy",
            Kind::Taken => "taken",
        }
    }

    /// For the legend: what it means to who looks.
    fn meaning(self) -> &'static str {
        match self {
            Kind::Absent => "not here",
            Kind::Filled => "here, not compared yet",
            Kind::Verified => "verified",
            Kind::Pinned => "pinned",
            Kind::Busy => "fetched or dropped now",
            Kind::Taken => "left over or damaged",
        }
    }
}

/// One page, drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dot {
    pub kind: Kind,
    pub uses: u8,
}

/// Several neighbouring pages in one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cell {
    pub dot: Dot,
    pub here: u64,
    pub pages: u64,
}

/// A file's pages in `cells` places, each of `per_cell` pages (the last may be short).
pub fn cells(map: &Map, pages: u64, per_cell: u64) -> Vec<Cell> {
    let mut cells = vec![Cell::default(); usize::try_from(pages.div_ceil(per_cell)).unwrap_or(0)];
    for (at, cell) in (0_u64..).zip(&mut cells) {
        cell.pages = per_cell.min(pages - at * per_cell);
    }
    let mut merge = |page: u64, kind: Kind, uses: u8, here: u64| {
        if let Some(cell) = cells.get_mut((page / per_cell) as usize) {
            cell.dot = Dot { kind: cell.dot.kind.max(kind), uses: cell.dot.uses.max(uses) };
            cell.here += here;
        }
    };
    for page in &map.pages {
        match page.state {
            PageState::Verified => merge(page.number, Kind::Verified, page.uses, 1),
            PageState::Filled => merge(page.number, Kind::Filled, page.uses, 1),
            _ => merge(page.number, Kind::Taken, page.uses, 0),
        }
    }
    for (held, kind) in [(&map.pinned, Kind::Pinned), (&map.busy, Kind::Busy)] {
        // A page being fetched is taken for an instant only; one that stays so is not held by anyone.
        for cell in held.iter().flat_map(|run| run.start / per_cell..=(run.end - 1) / per_cell) {
            if let Some(cell) = cells.get_mut(cell as usize) {
                cell.dot.kind = if per_cell == 1 { kind } else { cell.dot.kind.max(kind) };
            }
        }
    }
    cells
}

pub fn map(copies: &Copies, key: &str, version: Option<&str>, png: Option<&Path>, width: Option<u32>, screen: &Screen) -> Outcome {
    let entry = copies.one(key, version)?;
    let map = copies.cache.map(&entry)?;
    let pages = entry.size.div_ceil(entry.page_size);
    if let Some(path) = png {
        picture::write(&map, pages, width.unwrap_or(960), path)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    }
    if screen.json {
        return screen.value(&value_of(&entry, &map));
    }
    if let Some(path) = png {
        return screen.line(&format!("{}: a square for each of {} pages", path.display(), units::count(pages)));
    }
    screen.text(&drawn(&entry, &map, pages, width, screen))
}

/// Rows of characters below each other, at most.
const ROWS: u64 = 24;

fn drawn(entry: &Entry, map: &Map, pages: u64, width: Option<u32>, screen: &Screen) -> String {
    let across = width.map_or(screen.width(), |width| width as usize);
    // The label before each row: where it begins.
    let columns = (across.saturating_sub(LABEL + 2)).max(8) as u64;
    let per_cell = pages.div_ceil(columns * ROWS).max(1);
    let cells = cells(map, pages, per_cell);
    let mut shown = heading(entry, map, pages, per_cell);
    for (row, cells) in cells.chunks(columns as usize).enumerate() {
        let offset = row as u64 * columns * per_cell * entry.page_size;
        shown += &format!("{:>LABEL$} ", units::size(offset));
        for cell in cells {
            shown += &screen.paint(colour(cell.dot), glyph(*cell, screen.colour));
        }
        shown.push('\n');
    }
    shown + &legend(&cells, screen)
}

const LABEL: usize = 10;

fn heading(entry: &Entry, map: &Map, pages: u64, per_cell: u64) -> String {
    let (here, all) = (units::size(entry.cached_bytes), units::size(entry.size));
    let verified = map.pages.iter().filter(|page| page.state == PageState::Verified).count() as u64;
    let mut shown = format!("{}\n", printable(&entry.key));
    shown += &format!("{here} of {all} here ({}%), ", units::percent(entry.cached_bytes, entry.size));
    shown += &format!("{} of {} pages, {} verified", units::count(entry.cached_pages), units::count(pages), units::count(verified));
    shown += match (entry.open, map.frozen) {
        (_, true) => ", frozen\n",
        (true, false) => ", open\n",
        (false, false) => "\n",
    };
    let each = units::size(per_cell.saturating_mul(entry.page_size));
    shown
        + &if per_cell == 1 {
            format!("a character is a page, {each}\n")
        } else {
            format!("a character is {per_cell} pages, {each}\n")
        }
}

/// How much of a cell is here, in eighths of its height; what is held or damaged is always seen. Where there are no colours, a page
/// alone in its cell shows what else they tell: how lately it was used, or that it was not compared.
fn glyph(cell: Cell, colours: bool) -> &'static str {
    const EIGHTHS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    let alone = !colours && cell.pages == 1;
    match cell.dot.kind {
        Kind::Absent => "·",
        Kind::Taken => "×",
        Kind::Busy => "▒",
        Kind::Pinned if alone => "■",
        Kind::Filled if alone => "░",
        Kind::Verified if alone => EIGHTHS[2 * usize::from(cell.dot.uses.min(3)) + 1],
        _ if cell.here == 0 => "▒",
        _ => EIGHTHS[(cell.here * 8).div_ceil(cell.pages).clamp(1, 8) as usize - 1],
    }
}

/// SGR codes of 256 colours; green from dark to bright by use.
fn colour(dot: Dot) -> &'static str {
    match (dot.kind, dot.uses) {
        (Kind::Absent, _) => "38;5;240",
        (Kind::Filled, _) => "38;5;178",
        (Kind::Verified, 0) => "38;5;22",
        (Kind::Verified, 1) => "38;5;28",
        (Kind::Verified, 2) => "38;5;34",
        (Kind::Verified, _) => "38;5;46",
        (Kind::Pinned, _) => "38;5;39",
        (Kind::Busy, _) => "38;5;170",
        (Kind::Taken, _) => "38;5;196",
    }
}

fn legend(cells: &[Cell], screen: &Screen) -> String {
    let alone = cells.first().is_none_or(|cell| cell.pages == 1);
    let sample = |kind, uses| {
        let cell = Cell { dot: Dot { kind, uses }, here: 1, pages: 1 };
        // Of several pages the height says how many are here, so without colours they are told apart by the numbers above alone.
        screen.paint(colour(cell.dot), glyph(cell, screen.colour || !alone))
    };
    let mut parts = vec![format!("{} {}", sample(Kind::Absent, 0), Kind::Absent.meaning())];
    for kind in Kind::ALL.into_iter().filter(|&kind| cells.iter().any(|cell| cell.dot.kind == kind)) {
        let used: String = (0..4).map(|uses| sample(kind, uses)).collect();
        parts.push(match kind {
            Kind::Verified if screen.colour => format!("{used} verified, brighter: used lately"),
            Kind::Verified if alone => format!("{used} verified, higher: used lately"),
            kind => format!("{} {}", sample(kind, 0), kind.meaning()),
        });
    }
    if !alone {
        parts.push("height: how much is here".into());
    }
    format!("{}\n", parts.join("   "))
}

/// Neighbouring pages that are alike, as one.
fn value_of(entry: &Entry, map: &Map) -> Value {
    let mut runs: Vec<(u64, u64, Dot)> = Vec::new();
    for page in &map.pages {
        let kind = match page.state {
            PageState::Verified => Kind::Verified,
            PageState::Filled => Kind::Filled,
            _ => Kind::Taken,
        };
        let dot = Dot { kind, uses: page.uses };
        match runs.last_mut() {
            Some((_, last, like)) if *last + 1 == page.number && *like == dot => *last = page.number,
            _ => runs.push((page.number, page.number, dot)),
        }
    }
    let of_runs =
        |(first, last, dot): &(u64, u64, Dot)| json!({ "first": first, "last": last, "state": dot.kind.name(), "uses": dot.uses });
    let of_held = |held: &Vec<std::ops::Range<u64>>| -> Vec<Value> {
        held.iter().map(|run| json!({ "first": run.start, "last": run.end - 1 })).collect()
    };
    json!({
        "key": text(&entry.key), "version": text(&entry.version), "size": entry.size, "page_size": entry.page_size,
        "pages": entry.size.div_ceil(entry.page_size), "open": entry.open, "frozen": map.frozen,
        "present": runs.iter().map(of_runs).collect::<Vec<_>>(), "pinned": of_held(&map.pinned), "busy": of_held(&map.busy),
    })
}
