//! The bytes of an index and of `control`: every offset a constant that adds to the one before, every field checked before
//! arithmetic uses it. Pure. Integers are in the machine's byte order; a mark tells, and a file of the other order is foreign.
//!
//! ```text
//! index                                                 control
//!      0  magic                8                            0  magic               8
//!      8  format version       4                            8  format version      4
//!     12  byte-order mark      4                           12  byte-order mark     4
//!     16  header crc32c        4                           64  limit, bytes        8   (0: none)
//!     20  key length           4                           72  used, bytes         8
//!     24  version length       4                           80  count << 1 | clean  8
//!     32  size                 8                          128  counters       16 × 8
//!     40  page size            8                         4096  slots       1,024 × 64
//!     48  mirror name         16                        69632  end
//!     64  time of making, ns   8                           88  durable count       8
//!                                                          96  to be recounted     8
//!    128  session             13 × 8  (below)           one slot: reserved 8, held by private pairs 8, taken 8, zero 40
//!    256  key, version
//!   8192  beats, 1,024 × 4            bumped when pages of `page % 1024` move on; bit 0: someone sleeps
//!  12288  words, 8 a page
//!   then, at a multiple of 4096: 2 bits of recency a page
//! ```
//!
//! The crc is over the bytes before it and the fields from *key length* to *time*, the key and the version: all that never changes.

use std::fmt;

/// The largest key, bytes.
pub const MAX_KEY: usize = 4096;
/// The largest version, bytes.
pub const MAX_VERSION: usize = 1024;
/// The largest page, bytes.
pub const MAX_PAGE: u64 = 1 << 30;
/// The most pages of one file: an index of 8 TiB, half of what ext4 allows a file.
pub const MAX_PAGES: u64 = 1 << 40;

const INDEX_MAGIC: u64 = u64::from_le_bytes(*b"nearfile");
const CONTROL_MAGIC: u64 = u64::from_le_bytes(*b"nearctl\0");
const BYTE_ORDER: u32 = 0x0102_0304;
pub(crate) const FORMAT_VERSION: u32 = 1;

const AT_MAGIC: usize = 0;
const AT_FORMAT: usize = AT_MAGIC + 8;
const AT_ORDER: usize = AT_FORMAT + 4;
const AT_CRC: usize = AT_ORDER + 4;
const AT_KEY_LEN: usize = AT_CRC + 4;
const AT_VERSION_LEN: usize = AT_KEY_LEN + 4;
const AT_SIZE: usize = AT_VERSION_LEN + 8; // 4 of them zero, for alignment
const AT_PAGE_SIZE: usize = AT_SIZE + 8;
const AT_MIRROR: usize = AT_PAGE_SIZE + 8;
const AT_MADE: usize = AT_MIRROR + 16;
const FIXED_END: usize = AT_MADE + 8;
const AT_SESSION: usize = 128;
/// `count << 1 | clean`: how many sessions there were, and whether the last one ended well.
pub(crate) const AT_SESSION_WORD: u64 = AT_SESSION as u64;
/// `count << 1 | opened clean`, of the session that wrote it.
pub(crate) const AT_OPENED: u64 = AT_SESSION_WORD + 8;
/// The count of the last session whose session word is on the disk.
pub(crate) const AT_DURABLE: u64 = AT_OPENED + 8;
/// The count of the last session that changed a page.
pub(crate) const AT_DIRTY: u64 = AT_DURABLE + 8;
/// Device and inode of the mirror, as the first opener of the session saw it.
pub(crate) const AT_MIRROR_DEVICE: u64 = AT_DIRTY + 8;
pub(crate) const AT_MIRROR_INODE: u64 = AT_MIRROR_DEVICE + 8;
/// Bytes that the pair's pages hold, as the budget counts them.
pub(crate) const AT_HELD: u64 = AT_MIRROR_INODE + 8;
/// Where the clock's hand stands: a page.
pub(crate) const AT_HAND: u64 = AT_HELD + 8;
/// When a session of the pair last began or ended, nanoseconds since 1970.
pub(crate) const AT_USED_AT: u64 = AT_HAND + 8;
/// Not 0: removed while it was open; the last closer takes it away.
pub(crate) const AT_DOOMED: u64 = AT_USED_AT + 8;
/// The pages that the holder of the freeze lock is dropping, or was when it was killed: `first 40 | count 24`; 0: none.
pub(crate) const AT_DROPPING: u64 = AT_DOOMED + 8;
/// The number of the first session since the last that did not end well: what was filled or compared in one since then was synced.
pub(crate) const AT_SOUND_SINCE: u64 = AT_DROPPING + 16; // 8 of them zero
const AT_STRINGS: usize = 256;
/// As much of a header as there can be.
pub(crate) const HEADER_LEN: usize = 8192;
pub(crate) const AT_BEATS: u64 = HEADER_LEN as u64;
pub(crate) const BEATS: u64 = 1024;
pub(crate) const AT_WORDS: u64 = AT_BEATS + 4 * BEATS;

const _: () = assert!(FIXED_END <= AT_SESSION && AT_SOUND_SINCE as usize + 8 <= AT_STRINGS);
const _: () = assert!(AT_STRINGS + MAX_KEY + MAX_VERSION <= HEADER_LEN && AT_WORDS % 4096 == 0);

// Lock bytes of an index. They lie past any data; `LOCK_BASE + i` is page i.
/// Held shared by who has the pair open.
pub(crate) const SESSION_LOCK: u64 = (1 << 62) - 1;
/// Held alone while someone comes into the session, or looks whether it was the last to go.
pub(crate) const SESSION_GATE: u64 = (1 << 62) - 3;
/// Shared by handles that are frozen; whoever evicts or drops pages holds it alone.
pub(crate) const FREEZE_LOCK: u64 = (1 << 62) - 2;
pub(crate) const LOCK_BASE: u64 = 1 << 62;

/// The lock byte of `control` that guards publishing, replacing and removing pairs.
pub(crate) const DIRECTORY_LOCK: u64 = 1 << 62;
/// One evictor at a time.
pub(crate) const EVICT_LOCK: u64 = DIRECTORY_LOCK + 1;
/// Members and gate of the directory's session.
pub(crate) const DIRECTORY_SESSION: u64 = DIRECTORY_LOCK + 2;
pub(crate) const DIRECTORY_GATE: u64 = DIRECTORY_LOCK + 3;
/// Slot n is locked by the process that uses it.
pub(crate) const SLOT_LOCKS: u64 = DIRECTORY_LOCK + 1024;
pub(crate) const AT_LIMIT: u64 = 64;
pub(crate) const AT_USED: u64 = AT_LIMIT + 8;
/// `count << 1 | clean`, as in an index.
pub(crate) const AT_CONTROL_SESSION: u64 = AT_USED + 8;
pub(crate) const AT_CONTROL_DURABLE: u64 = AT_CONTROL_SESSION + 8;
/// Not 0: a process died that had a slot, so the count may be too high, and the next first opener counts anew.
pub(crate) const AT_RECOUNT: u64 = AT_CONTROL_DURABLE + 8;
pub(crate) const AT_COUNTERS: u64 = 128;
pub(crate) const AT_SLOTS: u64 = 4096;
pub(crate) const SLOTS: u64 = 1024;
pub(crate) const SLOT_LEN: u64 = 64;
pub(crate) const CONTROL_LEN: u64 = AT_SLOTS + SLOTS * SLOT_LEN;

/// crc32c (CRC-32/iSCSI), as in the words and the header.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A crc32c over pieces.
pub(crate) struct Crc32c(crc_fast::Digest);

impl Crc32c {
    pub(crate) fn new() -> Crc32c {
        Crc32c(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn value(&self) -> u32 {
        self.0.finalize() as u32
    }
}

/// The part of an index that never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) key: Vec<u8>,
    pub(crate) version: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) page_size: u64,
    /// The mirror's random name; zeros where it is given by path or has none.
    pub(crate) mirror: [u8; 16],
    /// Nanoseconds since 1970; orders the pairs of one key.
    pub(crate) made: u64,
}

/// Why bytes are not a header of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Ours once: torn, rotten or never finished. May be replaced.
    Damaged(&'static str),
    /// Another program's, another format's or another machine's. Never touched.
    Foreign(String),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Damaged(what) => write!(to, "damaged: {what}"),
            Unreadable::Foreign(what) => write!(to, "foreign: {what}"),
        }
    }
}

/// Checks what both files begin with.
fn check_start(bytes: &[u8], magic: u64) -> Result<(), Unreadable> {
    match u64_at(bytes, AT_MAGIC) {
        None | Some(0) => return Err(Unreadable::Damaged("no header")),
        Some(found) if found == magic => {}
        Some(found) if found == magic.swap_bytes() => {
            return Err(Unreadable::Foreign("written on a machine of the other byte order".into()));
        }
        Some(_) => return Err(Unreadable::Foreign("not a file of nearfile's".into())),
    }
    if u32_at(bytes, AT_ORDER) == Some(BYTE_ORDER.swap_bytes()) {
        return Err(Unreadable::Foreign("written on a machine of the other byte order".into()));
    }
    match u32_at(bytes, AT_FORMAT) {
        Some(FORMAT_VERSION) => {}
        Some(0) | None => return Err(Unreadable::Damaged("no format version")),
        Some(other) => {
            return Err(Unreadable::Foreign(format!("format {other}, and this library knows {FORMAT_VERSION}")));
        }
    }
    if u32_at(bytes, AT_ORDER) == Some(BYTE_ORDER) { Ok(()) } else { Err(Unreadable::Damaged("no byte-order mark")) }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

impl Header {
    /// The header's bytes, with the session words of a first session that has not ended.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; AT_STRINGS + self.key.len() + self.version.len()];
        put(&mut bytes, AT_MAGIC, &INDEX_MAGIC.to_ne_bytes());
        put(&mut bytes, AT_FORMAT, &FORMAT_VERSION.to_ne_bytes());
        put(&mut bytes, AT_ORDER, &BYTE_ORDER.to_ne_bytes());
        put(&mut bytes, AT_KEY_LEN, &(self.key.len() as u32).to_ne_bytes());
        put(&mut bytes, AT_VERSION_LEN, &(self.version.len() as u32).to_ne_bytes());
        put(&mut bytes, AT_SIZE, &self.size.to_ne_bytes());
        put(&mut bytes, AT_PAGE_SIZE, &self.page_size.to_ne_bytes());
        put(&mut bytes, AT_MIRROR, &self.mirror);
        put(&mut bytes, AT_MADE, &self.made.to_ne_bytes());
        put(&mut bytes, AT_STRINGS, &self.key);
        put(&mut bytes, AT_STRINGS + self.key.len(), &self.version);
        let crc = constant_crc(&bytes);
        put(&mut bytes, AT_CRC, &crc.to_ne_bytes());
        bytes
    }

    /// The mirror's name in bytes that may be no header any more; `None` where there is none.
    pub(crate) fn mirror_of_damaged(bytes: &[u8]) -> Option<[u8; 16]> {
        let name: [u8; 16] = bytes.get(AT_MIRROR..AT_MIRROR + 16)?.try_into().ok()?;
        (u64_at(bytes, AT_MAGIC) == Some(INDEX_MAGIC) && name != [0; 16]).then_some(name)
    }

    /// Reads a header from the first [`HEADER_LEN`] bytes of a file, or as many as it has.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Header, Unreadable> {
        check_start(bytes, INDEX_MAGIC)?;
        let short = || Unreadable::Damaged("header cut off");
        let key_len = u32_at(bytes, AT_KEY_LEN).ok_or_else(short)? as usize;
        let version_len = u32_at(bytes, AT_VERSION_LEN).ok_or_else(short)? as usize;
        if key_len > MAX_KEY || version_len > MAX_VERSION {
            return Err(Unreadable::Damaged("key or version too long"));
        }
        let end = AT_STRINGS + key_len + version_len;
        let bytes = bytes.get(..end).ok_or_else(short)?;
        if u32_at(bytes, AT_CRC) != Some(constant_crc(bytes)) {
            return Err(Unreadable::Damaged("header checksum"));
        }
        let header = Header {
            key: bytes[AT_STRINGS..AT_STRINGS + key_len].to_vec(),
            version: bytes[AT_STRINGS + key_len..].to_vec(),
            size: u64_at(bytes, AT_SIZE).ok_or_else(short)?,
            page_size: u64_at(bytes, AT_PAGE_SIZE).ok_or_else(short)?,
            mirror: bytes[AT_MIRROR..AT_MIRROR + 16].try_into().map_err(|_| short())?,
            made: u64_at(bytes, AT_MADE).ok_or_else(short)?,
        };
        let sane = (1..=MAX_PAGE).contains(&header.page_size)
            && i64::try_from(header.size).is_ok()
            && header.size.div_ceil(header.page_size) <= MAX_PAGES;
        if sane { Ok(header) } else { Err(Unreadable::Damaged("impossible sizes")) }
    }
}

fn constant_crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.add(&bytes[..AT_CRC]);
    crc.add(&bytes[AT_KEY_LEN..FIXED_END]);
    crc.add(&bytes[AT_STRINGS..]);
    crc.value()
}

/// Makes the checksum of a header right, whatever it says.
#[cfg(any(test, fuzzing))]
pub(crate) fn reseal(bytes: &mut [u8]) {
    let len = |at| u32_at(bytes, at).map_or(0, |len| len as usize);
    let end = AT_STRINGS.saturating_add(len(AT_KEY_LEN)).saturating_add(len(AT_VERSION_LEN));
    if let Some(crc) = bytes.get(..end).map(constant_crc) {
        put(bytes, AT_CRC, &crc.to_ne_bytes());
    }
}

/// Where page `page` has its word.
pub(crate) fn word_offset(page: u64) -> u64 {
    AT_WORDS + 8 * page
}

/// Where the 32 bits are that hold the recency of a page among 16, and by how many bits it is shifted.
pub(crate) fn recency_of(pages: u64, page: u64) -> (u64, u32) {
    (word_offset(pages).next_multiple_of(4096) + page / 16 * 4, (page % 16 * 2) as u32)
}

/// The length of the index of a file of `pages` pages, which are at most [`MAX_PAGES`].
pub(crate) fn index_len(pages: u64) -> u64 {
    recency_of(pages, 0).0 + pages.div_ceil(4).next_multiple_of(4096)
}

/// What a file system gives out and takes back.
pub(crate) const BLOCK: u64 = 4096;

/// What a range of a mirror costs: the file-system blocks that it touches.
pub(crate) fn cost(range: &std::ops::Range<u64>) -> u64 {
    if range.is_empty() { 0 } else { range.end.next_multiple_of(BLOCK) - range.start / BLOCK * BLOCK }
}

/// The bytes that a new `control` begins with; the rest is zeros.
pub(crate) fn encode_control() -> [u8; 16] {
    let mut bytes = [0; 16];
    put(&mut bytes, AT_MAGIC, &CONTROL_MAGIC.to_ne_bytes());
    put(&mut bytes, AT_FORMAT, &FORMAT_VERSION.to_ne_bytes());
    put(&mut bytes, AT_ORDER, &BYTE_ORDER.to_ne_bytes());
    bytes
}

pub(crate) fn check_control(bytes: &[u8]) -> Result<(), Unreadable> {
    check_start(bytes, CONTROL_MAGIC)
}

/// What a page is. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not in the mirror.
    Absent = 0,
    /// In the mirror as its fetcher wrote it; nobody has compared it yet.
    Filled = 1,
    /// In the mirror, and compared with its checksum in this epoch.
    Verified = 2,
    /// Being written, or left so by a fetcher that died; its space is counted.
    Taken = 3,
}

/// One page's word: `crc32c 32 | sequence 16 | epoch 14 | state 2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    fn new(crc: u32, sequence: u16, epoch: u16, state: State) -> Word {
        Word(u64::from(crc) << 32 | u64::from(sequence) << 16 | u64::from(epoch & 0x3fff) << 2 | state as u64)
    }

    pub(crate) fn state(self) -> State {
        match self.0 & 3 {
            0 => State::Absent,
            1 => State::Filled,
            2 => State::Verified,
            _ => State::Taken,
        }
    }

    pub(crate) fn is_present(self) -> bool {
        matches!(self.state(), State::Filled | State::Verified)
    }

    pub(crate) fn epoch(self) -> u16 {
        (self.0 >> 2) as u16 & 0x3fff
    }

    pub(crate) fn sequence(self) -> u16 {
        (self.0 >> 16) as u16
    }

    pub(crate) fn crc(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// absent → taken, and taken → taken by the next holder of the lock.
    pub(crate) fn taken(self, epoch: u16) -> Word {
        Word::new(0, self.sequence(), epoch, State::Taken)
    }

    /// filled, verified → taken, by a reader whose checksum did not match.
    pub(crate) fn mistrusted(self, epoch: u16) -> Word {
        Word::new(0, self.sequence().wrapping_add(1), epoch, State::Taken)
    }

    /// taken → filled.
    pub(crate) fn filled(self, crc: u32, epoch: u16) -> Word {
        Word::new(crc, self.sequence(), epoch, State::Filled)
    }

    /// filled, or verified in another epoch → verified in this one.
    pub(crate) fn verified(self, epoch: u16) -> Word {
        Word::new(self.crc(), self.sequence(), epoch, State::Verified)
    }

    /// anything → absent, by the exclusive holder of the page's lock.
    pub(crate) fn absent(self) -> Word {
        Word::new(0, self.sequence().wrapping_add(1), 0, State::Absent)
    }

    /// The same page in no session's epoch: compared again before its next hit.
    pub(crate) fn swept(self) -> Word {
        Word::new(self.crc(), self.sequence(), 0, self.state())
    }
}

/// Epochs that sessions go through before one repeats; epoch 0 is nobody's.
pub(crate) const EPOCHS: u64 = (1 << 14) - 1;

/// The epoch of the n-th session.
pub(crate) fn epoch_of(count: u64) -> u16 {
    1 + (count % EPOCHS) as u16
}

/// Whether words of an epoch come from session `since` or a later one before session `count`, all words of earlier rounds being swept.
pub(crate) fn is_since(epoch: u16, since: u64, count: u64) -> bool {
    epoch != 0 && (since / EPOCHS < count / EPOCHS || epoch >= epoch_of(since))
}

/// Whether the n-th session is the first of a new round of epochs, before which every word must be swept.
pub(crate) fn begins_a_round(count: u64) -> bool {
    count % EPOCHS == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            key: b"s3://bucket/key".to_vec(),
            version: b"\"etag\"".to_vec(),
            size: 1 << 40,
            page_size: 1 << 16,
            mirror: [7; 16],
            made: 42,
        }
    }

    /// Files of today must be read by every later library of this format: these numbers never change.
    #[test]
    fn the_bytes_on_disk_are_pinned() {
        let bytes = header().encode();
        assert_eq!(&bytes[..8], b"nearfile");
        assert_eq!(bytes[8..16], [1, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!((AT_CRC, AT_KEY_LEN, AT_SIZE, AT_PAGE_SIZE, AT_MIRROR, AT_MADE), (16, 20, 32, 40, 48, 64));
        assert_eq!((AT_SESSION_WORD, AT_MIRROR_INODE, AT_SOUND_SINCE, AT_BEATS, AT_WORDS), (128, 168, 224, 8192, 12288));
        assert_eq!((AT_LIMIT, AT_USED, AT_CONTROL_SESSION, AT_CONTROL_DURABLE, AT_RECOUNT, AT_COUNTERS), (64, 72, 80, 88, 96, 128));
        assert_eq!((cost(&(0..1)), cost(&(4095..4097)), cost(&(8192..16384)), cost(&(5..5))), (4096, 8192, 8192, 0));
        assert_eq!((LOCK_BASE, SESSION_LOCK, CONTROL_LEN), (1 << 62, (1 << 62) - 1, 69632));
        assert_eq!(u32_at(&bytes, AT_CRC), Some(0x9be3_02cd));
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let word = Word(0).taken(5).filled(0xdead_beef, 5);
        assert_eq!(word.0, 0xdead_beef_0000_0015);
        assert_eq!(word.verified(6).0, 0xdead_beef_0000_001a);
        assert_eq!(word.absent().0, 0x0000_0000_0001_0000);
        assert_eq!(word.mistrusted(6).0, 0x0000_0000_0001_001b);
        assert_eq!(index_len(1), 12288 + 4096 + 4096);
    }

    #[test]
    fn a_header_reads_as_it_was_written() {
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
    }

    /// Every flipped bit of what never changes is seen; the session's words are not part of it.
    #[test]
    fn every_flipped_bit_of_a_header_is_seen() {
        let bytes = header().encode();
        for bit in 0..bytes.len() * 8 {
            let mut hurt = bytes.clone();
            hurt[bit / 8] ^= 1 << (bit % 8);
            let unchecked = (FIXED_END..AT_STRINGS).contains(&(bit / 8));
            assert_eq!(Header::decode(&hurt).is_ok(), unchecked, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Header::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn foreign_is_told_from_damaged() {
        let mut other_format = header().encode();
        other_format[8] = 2;
        assert!(matches!(Header::decode(&other_format), Err(Unreadable::Foreign(_))));
        assert!(matches!(Header::decode(b"PK\x03\x04 something else"), Err(Unreadable::Foreign(_))));
        assert!(matches!(Header::decode(&[0; 8192]), Err(Unreadable::Damaged(_))));
        assert!(matches!(Header::decode(&[]), Err(Unreadable::Damaged(_))));
    }

    #[test]
    fn a_sequence_survives_absence_and_wraps() {
        let mut word = Word(0);
        for _ in 0..=u16::MAX {
            word = word.taken(1).filled(1, 1).absent();
        }
        assert_eq!(word, Word(0));
        assert_eq!(Word(0).absent().taken(9).sequence(), 1);
    }

    #[test]
    fn epochs_are_never_zero_and_never_repeat_within_a_round() {
        assert_eq!(epoch_of(0), 1);
        assert_eq!(epoch_of(EPOCHS - 1), 16383);
        assert_eq!(epoch_of(EPOCHS), 1);
        assert!(is_since(5, 4, 9) && is_since(5, 3, EPOCHS + 9) && !is_since(4, 4, 9) && !is_since(0, 4, EPOCHS + 9));
        assert!(begins_a_round(0) && begins_a_round(EPOCHS) && !begins_a_round(EPOCHS - 1));
    }
}
