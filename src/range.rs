//! Byte ranges, pages and runs of pages, and the ordered set of byte ranges that a read still has to deliver. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// How a file of `size` bytes is cut into pages of `page_size`. The last page may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pages {
    pub(crate) size: u64,
    pub(crate) page_size: u64,
}

/// Pages `first..=last`; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Run {
    pub(crate) fn one(page: u64) -> Run {
        Run { first: page, last: page }
    }

    pub(crate) fn count(self) -> u64 {
        self.last - self.first + 1
    }

    /// The first `count` pages of the run, or all of it.
    pub(crate) fn head(self, count: u64) -> Run {
        Run { first: self.first, last: self.last.min(self.first.saturating_add(count.max(1) - 1)) }
    }
}

impl Pages {
    pub(crate) fn count(self) -> u64 {
        self.size.div_ceil(self.page_size)
    }

    #[inline]
    pub(crate) fn page_of(self, offset: u64) -> u64 {
        // A division costs tens of cycles on older machines, and most page sizes are powers of two.
        if self.page_size & (self.page_size - 1) == 0 { offset >> self.page_size.trailing_zeros() } else { offset / self.page_size }
    }

    /// The bytes of one page.
    pub(crate) fn bytes(self, page: u64) -> Range<u64> {
        self.bytes_of(Run::one(page))
    }

    /// The bytes of a run, ended by the end of the file.
    pub(crate) fn bytes_of(self, run: Run) -> Range<u64> {
        let end = (run.last + 1).saturating_mul(self.page_size).min(self.size);
        run.first * self.page_size..end
    }

    /// The pages that a non-empty range touches.
    pub(crate) fn touched(self, range: &Range<u64>) -> Run {
        Run { first: self.page_of(range.start), last: self.page_of(range.end - 1) }
    }

    /// The pages that lie wholly inside a range; a range up to the end of the file holds its short last page whole.
    pub(crate) fn inside(self, range: &Range<u64>) -> Option<Run> {
        let end = if range.end >= self.size { self.count() } else { range.end / self.page_size };
        let first = range.start.div_ceil(self.page_size);
        (first < end).then(|| Run { first, last: end - 1 })
    }
}

/// Disjoint byte ranges in order, joined where they meet. Logarithmic in their number.
#[derive(Debug, Default, Clone)]
pub(crate) struct Intervals(BTreeMap<u64, u64>);

impl Intervals {
    pub(crate) fn of(range: Range<u64>) -> Intervals {
        let mut set = Intervals::default();
        if range.start < range.end {
            set.0.insert(range.start, range.end);
        }
        set
    }

    /// The first range at or after an offset; one that spans the offset is cut there.
    pub(crate) fn next_from(&self, offset: u64) -> Option<Range<u64>> {
        if let Some((_, &end)) = self.0.range(..=offset).next_back() {
            if end > offset {
                return Some(offset..end);
            }
        }
        self.0.range(offset..).next().map(|(&start, &end)| start..end)
    }

    /// Where the range ends that holds an offset; `None` where none does.
    pub(crate) fn end_at(&self, offset: u64) -> Option<u64> {
        self.0.range(..=offset).next_back().map(|(_, &end)| end).filter(|&end| end > offset)
    }

    pub(crate) fn insert(&mut self, new: Range<u64>) {
        if new.start >= new.end {
            return;
        }
        // Those that overlap or meet it melt into one.
        let (mut start, mut end) = (new.start, new.end);
        let touched: Vec<(u64, u64)> =
            self.0.range(..=new.end).rev().take_while(|&(_, &end)| end >= new.start).map(|(&start, &end)| (start, end)).collect();
        for (first, last) in touched {
            self.0.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.0.insert(start, end);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// Ranges, and their bytes.
    pub(crate) fn census(&self) -> (u64, u64) {
        self.iter().fold((0, 0), |(ranges, bytes), range| (ranges + 1, bytes + range.end - range.start))
    }

    pub(crate) fn remove(&mut self, gone: Range<u64>) {
        if gone.start >= gone.end {
            return;
        }
        let touched: Vec<(u64, u64)> =
            self.0.range(..gone.end).rev().take_while(|&(_, &end)| end > gone.start).map(|(&start, &end)| (start, end)).collect();
        for (start, end) in touched {
            self.0.remove(&start);
            if start < gone.start {
                self.0.insert(start, gone.start);
            }
            if end > gone.end {
                self.0.insert(gone.end, end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_the_file_and_nothing_more() {
        for (size, page_size) in [(1, 1), (10, 3), (9, 3), (1, 1 << 30), (i64::MAX as u64, 7)] {
            let pages = Pages { size, page_size };
            let last = pages.count() - 1;
            assert_eq!(pages.bytes(last).end, size);
            assert_eq!(pages.bytes(0).start, 0);
            assert!(!pages.bytes(last).is_empty());
            assert_eq!(pages.touched(&(0..size)), Run { first: 0, last });
            assert_eq!(pages.inside(&(0..size)), Some(Run { first: 0, last }));
        }
        let pages = Pages { size: 10, page_size: 4 };
        assert_eq!(pages.inside(&(1..8)), Some(Run::one(1)));
        assert_eq!(pages.inside(&(1..7)), None);
        assert_eq!(pages.inside(&(8..10)), Some(Run::one(2)));
        assert_eq!(pages.inside(&(8..u64::MAX)), Some(Run::one(2)));
        assert_eq!(pages.inside(&(8..9)), None);
    }

    /// Against a plain bitmap, every small insertion and removal.
    #[test]
    fn intervals_are_a_bitmap() {
        for bits in 0..1_u32 << 12 {
            let at = |place: u32| u64::from(bits >> (3 * place) & 7);
            let (a, b, c, d) = (at(0), at(1), at(2), at(3));
            let mut set = Intervals::default();
            set.insert(a..b);
            set.insert(c..d);
            let model: Vec<u64> = (0..8).filter(|at| (a..b).contains(at) || (c..d).contains(at)).collect();
            check(&set, &model);
            let mut set = Intervals::of(0..8);
            set.remove(a..b);
            set.remove(c..d);
            let model: Vec<u64> = (0..8).filter(|at| !(a..b).contains(at) && !(c..d).contains(at)).collect();
            check(&set, &model);
        }
    }

    fn check(set: &Intervals, model: &[u64]) {
        for at in 0..8 {
            assert_eq!(set.end_at(at).is_some(), model.contains(&at));
            assert_eq!(set.next_from(at).is_some_and(|range| range.start == at), model.contains(&at));
        }
        assert_eq!(set.census().1, model.len() as u64);
        // Joined where they meet: one range a stretch.
        let stretches = model.iter().filter(|&&at| at == 0 || !model.contains(&(at - 1))).count();
        assert_eq!(set.census().0, stretches as u64);
    }

    #[test]
    fn a_hundred_thousand_ranges_are_fast() {
        let mut set = Intervals::default();
        let mut random = 1_u64;
        for _ in 0..100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = random >> 24;
            set.insert(start..start + 10);
        }
        assert!(set.census().0 > 99_000);
    }
}
