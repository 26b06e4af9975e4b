//! Sizes, spans, times and rates, as people write and read them.

use std::ops::Range;
use std::time::Duration;

/// Bytes from `start` to `end`, or to the end of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: Option<u64>,
}

impl Span {
    /// What of a file of so many bytes it stands for.
    pub fn within(self, size: u64) -> Range<u64> {
        self.start.min(size)..self.end.unwrap_or(size).min(size)
    }
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// `1536` is "1.5 KiB".
pub fn size(bytes: u64) -> String {
    let mut scaled = bytes as f64;
    let mut unit = 0;
    // What would be shown as 1024 is one of the next unit.
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

/// `1234567` is "1,234,567".
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// "45 s", "3 min", "5 h", "12 d".
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6000 => format!("{} min", seconds / 60),
        6000..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// "1:05" or "2:03:04": what is left.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{:02}", seconds % 60) } else { format!("{minutes}:{:02}", seconds % 60) }
}

/// `parts` of `all`, whole percents; 100 only where nothing lacks.
pub fn percent(parts: u64, all: u64) -> u64 {
    if all == 0 { 100 } else { (u128::from(parts) * 100 / u128::from(all)).min(100) as u64 }
}

/// Reads "64", "64k", "1.5G", "10MB", "10 MiB".
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim().to_ascii_lowercase());
    let factor = factor_of(&unit).ok_or_else(|| format!("\"{unit}\" is no unit: take k, M, G, T, or KB, MB, GB, TB"))?;
    let wrong = || format!("\"{text}\" is no size: write 512k, 1.5G, 10GB or bytes");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("{text} is more than a file can have"));
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * factor as f64;
    if bytes < 9e18 { Ok(bytes as u64) } else { Err(format!("{text} is more than a file can have")) }
}

fn factor_of(unit: &str) -> Option<u64> {
    let (letter, base) = match unit.as_bytes() {
        [] | [b'b'] => return Some(1),
        [letter] | [letter, b'i', b'b'] => (*letter, 1024_u64),
        [letter, b'b'] => (*letter, 1000),
        _ => return None,
    };
    let power = b"kmgtp".iter().position(|&known| known == letter)?;
    Some(base.pow(power as u32 + 1))
}

/// Reads "START..END", "START..", "..END", "START+LENGTH".
pub fn parse_range(text: &str) -> Result<Span, String> {
    let wrong = || format!("\"{text}\" is no range: write START..END, START.., ..END or START+LENGTH, as 0..64M or 1G+16M");
    let (start, end) = if let Some((start, end)) = text.split_once("..") {
        let start = if start.is_empty() { 0 } else { parse_size(start)? };
        (start, if end.is_empty() { None } else { Some(parse_size(end)?) })
    } else {
        let (start, len) = text.split_once('+').ok_or_else(wrong)?;
        let (start, len) = (parse_size(start)?, parse_size(len)?);
        (start, Some(start.checked_add(len).ok_or_else(wrong)?))
    };
    if end.is_some_and(|end| end < start) { Err(format!("\"{text}\" ends before it begins")) } else { Ok(Span { start, end }) }
}

/// Reads seconds, 0.05 to a day.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("\"{text}\" is no number of seconds"))?;
    if (0.05..=86400.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err("0.05 to 86400 seconds".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        let read = |text| parse_size(text).ok();
        assert_eq!([read("0"), read("64"), read("64B"), read("2k")], [Some(0), Some(64), Some(64), Some(2048)]);
        assert_eq!([read("1.5 GiB"), read("10MB"), read("1T")], [Some(3 << 29), Some(10_000_000), Some(1 << 40)]);
        assert_eq!([read(""), read("k"), read("1x"), read("-1"), read("1.2.3"), read("99999999P"), read("nan")], [None; 7]);
        assert_eq!([size(0), size(1023), size(1024)], ["0 B", "1023 B", "1.0 KiB"]);
        assert_eq!([size((1 << 20) - 1), size(3 << 29), size(u64::MAX)], ["1.0 MiB", "1.5 GiB", "16.0 EiB"]);
    }

    #[test]
    fn ranges_are_read() {
        let read = |text| parse_range(text).ok().map(|span| (span.start, span.end));
        assert_eq!(read("0..64k"), Some((0, Some(65536))));
        assert_eq!([read("1k.."), read("..10"), read("..")], [Some((1024, None)), Some((0, Some(10))), Some((0, None))]);
        assert_eq!(read("1M+1"), Some((1 << 20, Some((1 << 20) + 1))));
        assert_eq!([read("5"), read("9..3"), read("a..b"), read("")], [None; 4]);
    }

    #[test]
    fn numbers_are_shown() {
        assert_eq!([count(7), count(1234), count(1_234_567)], ["7", "1,234", "1,234,567"]);
        assert_eq!([percent(999, 1000), percent(0, 0), percent(5, 5)], [99, 100, 100]);
        assert_eq!([clock(Duration::from_secs(65)), clock(Duration::from_secs(7384))], ["1:05", "2:03:04"]);
        assert_eq!([duration(Duration::from_secs(99)), duration(Duration::from_secs(100))], ["99 s", "1 min"]);
    }
}
