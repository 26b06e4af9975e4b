//! What the torture tests switch in builds of their own, by `RUSTFLAGS`: a rule that is left out, so that a test shows that it would
//! notice (`--cfg 'nearfile_break="recheck"'`), and races that are made wide (`--cfg nearfile_widen`). Constants in every other build.

/// A hit does not look at its words a second time.
pub(crate) const NO_RECHECK: bool = cfg!(nearfile_break = "recheck");
/// A session's number is not synced before its first change.
pub(crate) const NO_DURABLE: bool = cfg!(nearfile_break = "durable");
/// A clean close is trusted for pages that an earlier unclean end left.
pub(crate) const NO_SOUND: bool = cfg!(nearfile_break = "sound");
/// Epochs repeat without a sweep.
pub(crate) const NO_SWEEP: bool = cfg!(nearfile_break = "sweep");
/// Sessions are entered and ended without their gate.
pub(crate) const NO_GATE: bool = cfg!(nearfile_break = "gate");
/// A forked child keeps the page locks of its parent.
pub(crate) const NO_CHILD_CLOSES: bool = cfg!(nearfile_break = "childcloses");
/// A wait for a page has no deadline.
pub(crate) const NO_DEADLINE: bool = cfg!(nearfile_break = "wait");

/// Holds a reader between its look at the words and its copy: for longer than a dropper that is held between a word and its punch.
#[inline]
pub(crate) fn widen_hit() {
    hold(200);
}

/// Holds a dropper between a word and its punch.
#[inline]
pub(crate) fn widen_drop() {
    hold(50);
}

fn hold(micros: u64) {
    if cfg!(nearfile_widen) {
        std::thread::sleep(std::time::Duration::from_micros(micros));
    }
}
