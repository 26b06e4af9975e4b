//! `map --png`: a square a page, several pages a square where there are too many.

use crate::map::{Cell, Dot, Kind, cells};
use nearfile::Map;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Rows of pixels, at most: a taller picture has more pages a square instead.
const TALLEST: u64 = 2048;
/// The side of a square where there is room, pixels; one of them is the gap.
const SIDES: [u64; 7] = [24, 16, 12, 8, 6, 4, 2];

/// How pages are laid out: squares of `side` pixels, `columns` across, `per_cell` pages each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    side: u64,
    columns: u64,
    rows: u64,
    per_cell: u64,
}

/// The largest squares that make a picture no taller than two thirds of its width; the smallest, with several pages each, where none do.
fn layout(pages: u64, width: u64) -> Layout {
    let pages = pages.max(1);
    let of = |side: u64, per_cell: u64| {
        let columns = (width / side).max(1);
        Layout { side, columns, rows: pages.div_ceil(per_cell).div_ceil(columns), per_cell }
    };
    let fits = SIDES.iter().map(|&side| of(side, 1)).find(|layout| layout.rows * layout.side <= width * 2 / 3);
    let smallest = SIDES[SIDES.len() - 1];
    fits.unwrap_or_else(|| {
        let squares = (width / smallest).max(1) * (TALLEST / smallest).min(width / smallest).max(1);
        of(smallest, pages.div_ceil(squares))
    })
}

pub fn write(map: &Map, pages: u64, width: u32, path: &Path) -> io::Result<()> {
    let layout = layout(pages, u64::from(width));
    let cells = cells(map, pages, layout.per_cell);
    let height = u32::try_from(layout.rows * layout.side).map_err(io::Error::other)?.max(1);
    let mut out = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(io::Error::other)?;
    writer.write_image_data(&pixels(&cells, layout, width as usize, height as usize)).map_err(io::Error::other)?;
    writer.finish().map_err(io::Error::other)?;
    out.flush()
}

fn pixels(cells: &[Cell], layout: Layout, width: usize, height: usize) -> Vec<u8> {
    let side = layout.side as usize;
    let gap = usize::from(side > 2);
    let mut pixels = BACKGROUND.repeat(width * height);
    for (at, cell) in cells.iter().enumerate() {
        let (left, top) = (at % layout.columns as usize * side, at / layout.columns as usize * side);
        let colour = colour(*cell);
        for y in top..(top + side - gap).min(height) {
            for x in left..(left + side - gap).min(width) {
                pixels[3 * (y * width + x)..][..3].copy_from_slice(&colour);
            }
        }
    }
    pixels
}

const BACKGROUND: [u8; 3] = [13, 17, 23];
const ABSENT: [u8; 3] = [33, 38, 45];

/// The colours of the terminal's map; of several pages, as strong as much of them is here.
fn colour(cell: Cell) -> [u8; 3] {
    let Dot { kind, uses } = cell.dot;
    let strong = match (kind, uses) {
        (Kind::Absent, _) => return ABSENT,
        (Kind::Filled, _) => [210, 153, 34],
        (Kind::Verified, 0) => [3, 82, 29],
        (Kind::Verified, 1) => [25, 122, 49],
        (Kind::Verified, 2) => [46, 160, 67],
        (Kind::Verified, _) => [86, 235, 110],
        (Kind::Pinned, _) => [56, 150, 255],
        (Kind::Busy, _) => [201, 90, 200],
        (Kind::Taken, _) => [248, 60, 60],
    };
    if matches!(kind, Kind::Pinned | Kind::Busy | Kind::Taken) {
        return strong;
    }
    let part = |from: u8, to: u8| {
        let (from, to) = (i64::from(from), i64::from(to));
        (from + (to - from) * cell.here as i64 / cell.pages.max(1) as i64) as u8
    };
    std::array::from_fn(|channel| part(ABSENT[channel], strong[channel]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_a_place() {
        for pages in [0, 1, 7, 100, 5000, 1 << 20, 1 << 40] {
            for width in [8, 100, 960, 8192] {
                let layout = layout(pages, width);
                assert!(layout.columns * layout.rows * layout.per_cell >= pages, "{pages} {width} {layout:?}");
                assert!(layout.columns * layout.side <= width.max(layout.side) && layout.rows * layout.side <= TALLEST.max(width));
            }
        }
    }
}
