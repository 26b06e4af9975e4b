//! Promises 6 and 7: after a power cut no torn or unwritten page is served, and after a clean close nothing is lost.
//!
//! Needs root, for it mounts images. `NEARFILE_POWER_ROUNDS` sets the cuts a file system (default 12), and a tenth as many after a
//! clean close; `NEARFILE_POWER_SECONDS` ends it earlier; `NEARFILE_POWER_FS` picks a file system. The full run is `scripts/torture power`.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks, clippy::unwrap_used, reason = "a test that mounts")]

mod disk;
mod near;

use disk::{Disk, in_child, killed, sync_data, write_back};
use near::{Near, Random, SIZE, check, check_count, hit_what_is_there};
use nearfile::File;
use std::time::{Duration, Instant};

/// Where the page words of an index begin.
const WORDS: i64 = 12288;

/// One test at a time: a child that one forks would keep the other's disk busy.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

// ---- many cuts -----------------------------------------------------------------------------------------------------------------------

/// What the rounds of a file system came to.
#[derive(Default)]
struct Tally {
    cuts: u64,
    /// Pages found damaged, that is: not served.
    damaged: u64,
    /// Cuts after a clean close, with pages to hit.
    all_hits: u64,
}

/// Lets a part of what was written reach the disk before the cut: all of the index without the mirror, the mirror without the index, the
/// page words without the session's number, some of the blocks of pages, or nothing.
fn sync_a_part(file: &File, which: u64, random: &mut Random) {
    let (data, index) = (file.data_path().unwrap(), file.index_path().unwrap());
    match which % 6 {
        0 => sync_data(index),
        1 => sync_data(data),
        2 => write_back(index, WORDS, 0),
        3 | 4 => {
            for _ in 0..8 {
                write_back(data, (random.below(SIZE) / 4096 * 4096) as i64, 4096 * (1 + random.below(3) as i64));
            }
            if which % 6 == 3 { sync_data(index) } else { write_back(index, WORDS, 0) }
        }
        _ => {}
    }
}

/// Reads, discards and trims; with a limit in force pages go by themselves, too.
fn use_it(near: &Near, mount: &std::path::Path, file: &File, random: &mut Random) {
    for _ in 0..1 + random.below(16) {
        let from = random.below(SIZE);
        let end = (from + 1 + random.below(200_000)).min(SIZE);
        match random.below(12) {
            0 => file.discard(from..end).unwrap(),
            1 if near.limit != 0 => near.cache(mount).trim(near.limit / 2).unwrap(),
            _ => check(file, from, end),
        }
    }
}

/// A session that is cut: in one process or three, storing pages or only hitting what an unclean end left, beside a pair just made.
fn cut_session(near: &Near, disk: &Disk, round: u64) -> u64 {
    let mut random = Random(round);
    let cache = near.cache(&disk.mount);
    let file = near.open_key(&cache, "key");
    if round % 5 == 2 {
        hit_what_is_there(&file);
    } else {
        use_it(near, &disk.mount, &file, &mut random);
    }
    if round % 7 == 3 {
        let made_now = near.open_key(&cache, &format!("made in round {round}"));
        check(&made_now, 0, 100_000);
        sync_a_part(&made_now, random.below(6), &mut random);
        std::mem::forget(made_now);
    }
    for other in 0..if round % 4 == 1 { 2 } else { 0 } {
        // Processes that open it for themselves, and stay until they are killed.
        let (mut random, mut pipe) = (Random(round * 10 + other), [0; 2]);
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        in_child(false, || {
            let file = near.open(&disk.mount);
            use_it(near, &disk.mount, &file, &mut random);
            unsafe { libc::write(pipe[1], (&raw const pipe).cast(), 1) };
            loop {
                unsafe { libc::pause() };
            }
        });
        let mut byte = 0_u8;
        unsafe { libc::close(pipe[1]) };
        assert_eq!(unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) }, 1, "a process beside it failed, see above");
    }
    sync_a_part(&file, random.below(6), &mut random);
    let damaged = file.stats().checksum_failures;
    std::mem::forget((file, cache));
    damaged
}

/// A clean close, with the power cut right after it: nothing is lost, nothing is read and nothing compared. Returns whether there was
/// something to lose.
fn cut_after_a_clean_close(near: &Near, disk: &Disk, tally: &mut Tally) {
    let near = Near { trust: true, ..near.clone() };
    let file = near.open(&disk.mount);
    let before = hit_what_is_there(&file);
    tally.damaged += file.stats().checksum_failures;
    let before = before - damaged_bytes(&file, before);
    drop(file);
    disk.cut_and_mount();
    let reads = near.reads();
    let file = near.open(&disk.mount);
    let after = hit_what_is_there(&file);
    let stats = file.stats();
    assert_eq!((near.reads(), stats.pages_verified, after), (reads, 0, before), "after a clean close all are hits: {stats:?}");
    drop(file);
    check_count(&disk.mount);
    tally.all_hits += u64::from(stats.hits > 0); // the names may have gone with the cut before, and then there is nothing to hit
}

/// Of bytes that were there, those that are no more, as what was damaged could not be kept again within the limit.
fn damaged_bytes(file: &File, before: u64) -> u64 {
    before - hit_what_is_there(file)
}

fn rounds(fs: &str, rounds: u64, time: Option<Duration>) -> Tally {
    let (disk, start) = (Disk::new(fs), Instant::now());
    let mut tally = Tally::default();
    let mut told = start;
    let mut near = Near::default();
    for round in 0..rounds {
        if time.is_some_and(|time| start.elapsed() > time) {
            break;
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            eprintln!(
                "  power: {fs}, {round} of {rounds} cuts, {} damaged pages found, {} s",
                tally.damaged,
                start.elapsed().as_secs()
            );
        }
        // A new directory now and then: its first session is the one that is spared its sync.
        if round % 5 == 0 {
            let _ = std::fs::remove_dir_all(disk.mount.join("cache"));
            near.page_size = [16 << 10, 4096, 5000, 256 << 10, 64 << 10][(round / 5 % 5) as usize];
            near.singly = round / 5 % 2 == 0;
            near.limit = if round / 5 % 3 == 1 { SIZE / 2 } else { 0 };
        }
        tally.damaged += disk.cut_during(|| cut_session(&near, &disk, round));
        tally.cuts += 1;
        drop(near.cache(&disk.mount)); // counts anew
        check_count(&disk.mount);
        // Trust is asked for at the first opening after the cut, too.
        let trusting = Near { trust: round % 3 == 0, ..near.clone() };
        if round % 2 == 1 {
            let file = trusting.open(&disk.mount);
            hit_what_is_there(&file);
            tally.damaged += file.stats().checksum_failures;
        }
        if round % 10 == 3 {
            cut_after_a_clean_close(&near, &disk, &mut tally);
        }
        if round % 5 == 4 {
            let file = trusting.open(&disk.mount);
            check(&file, 0, SIZE);
            tally.damaged += file.stats().checksum_failures;
        }
    }
    tally
}

#[test]
fn no_wrong_byte_after_a_power_cut() {
    let _alone = alone();
    let count = setting("NEARFILE_POWER_ROUNDS", 15);
    let time = std::env::var("NEARFILE_POWER_SECONDS").map(|seconds| Duration::from_secs(seconds.parse().unwrap())).ok();
    let only = std::env::var("NEARFILE_POWER_FS").ok();
    let mut found = Vec::new();
    for fs in ["ext4", "xfs"].into_iter().filter(|fs| only.as_deref().is_none_or(|only| only == *fs)) {
        let tally = rounds(fs, count, time.map(|time| time / 2));
        assert!(tally.damaged > 0, "{fs}: not one page was damaged: the cuts do not cut");
        assert!(tally.all_hits > 0, "{fs}: no cut after a clean close had anything to hit");
        let Tally { cuts, damaged, all_hits } = tally;
        found.push(format!(
            "{fs}: {cuts} of {count} cuts, {damaged} damaged pages, none served; {all_hits} cuts after a clean close, all hits"
        ));
    }
    println!("power: {}; 0 wrong bytes, 0 wrong counts", found.join("; "));
}

// ---- one rule each ---------------------------------------------------------------------------------------------------------------------

const PAGE: u64 = 16 << 10;

fn plain() -> Near {
    Near { page_size: PAGE, ..Near::default() }
}

/// The rule that a session's number is on the disk before its first change: words of a session may outlive its number, and the next
/// session, which would take the same number, must not trust them. (A build that breaks the rule "durable" fails here.)
#[test]
fn words_that_outlive_their_session_s_number_are_not_trusted() {
    let _alone = alone();
    let (disk, near) = (Disk::new("ext4"), plain());
    let half = SIZE / 2;
    let file = near.open(&disk.mount);
    check(&file, 0, half);
    drop(file); // clean: the number of this session is on the disk
    disk.cut_during(|| {
        let file = near.open(&disk.mount);
        check(&file, half, SIZE); // filled
        check(&file, half, SIZE); // compared: verified in this session
        write_back(file.index_path().unwrap(), WORDS, 0);
        std::mem::forget(file);
        0
    });
    let file = Near { trust: true, ..near }.open(&disk.mount);
    check(&file, 0, SIZE);
    assert!(file.stats().checksum_failures > 0, "no word outlived: the test tests nothing");
}

/// The same for a session that stores nothing: it hits what a killed one left in the kernel's cache, and is cut. (So does "durable".)
#[test]
fn hits_after_an_unclean_end_are_not_trusted_after_a_cut() {
    let _alone = alone();
    let (disk, near) = (Disk::new("ext4"), plain());
    let file = near.open(&disk.mount);
    check(&file, 0, PAGE);
    drop(file); // clean, and the words have their blocks
    let fill = || {
        let file = near.open(&disk.mount);
        sync_data(file.index_path().unwrap()); // its number is on the disk, whatever the library does
        check(&file, 0, SIZE);
        std::mem::forget(file);
        0
    };
    killed(fill, || {});
    let reads = near.reads();
    disk.cut_during(|| {
        let file = near.open(&disk.mount);
        assert_eq!(hit_what_is_there(&file), SIZE); // each compared, and found right: the kernel has them
        write_back(file.index_path().unwrap(), WORDS, 0);
        std::mem::forget(file);
        0
    });
    assert_eq!(near.reads(), reads, "it was to be hits only");
    let file = near.open(&disk.mount);
    check(&file, 0, SIZE);
    assert!(file.stats().checksum_failures > 0, "no word outlived: the test tests nothing");
}

/// Pages of which some blocks are on the disk and others are not.
#[test]
fn torn_pages_are_found() {
    let _alone = alone();
    for fs in ["ext4", "xfs"] {
        let (disk, near) = (Disk::new(fs), Near { page_size: 12_000, singly: true, ..Near::default() });
        drop(near.open(&disk.mount)); // the names are on the disk
        disk.sync();
        disk.cut_during(|| {
            let file = near.open(&disk.mount);
            check(&file, 0, SIZE);
            for block in (0..SIZE / 4096).step_by(5) {
                write_back(file.data_path().unwrap(), block as i64 * 4096, 4096);
            }
            sync_data(file.index_path().unwrap());
            std::mem::forget(file);
            0
        });
        let file = near.open(&disk.mount);
        let data = std::fs::read(file.data_path().unwrap()).unwrap();
        let torn = |page: &&[u8]| page.contains(&0) && page.iter().any(|&byte| byte != 0);
        let torn = data.chunks_exact(12_000).filter(torn).count();
        assert!(torn > 20, "{fs}: {torn} pages were torn: the test tests nothing");
        check(&file, 0, SIZE);
        assert!(file.stats().checksum_failures >= torn as u64, "{fs}: {:?}", file.stats());
    }
}

/// A clean close vouches for what its session compared or filled, not for what an earlier session left torn and nobody has read since.
/// (A build that breaks the rule "sound" fails here.)
#[test]
fn trust_does_not_reach_back_over_a_cut() {
    let _alone = alone();
    let (disk, near) = (Disk::new("ext4"), plain());
    let trusting = Near { trust: true, ..near.clone() };
    let half = SIZE / 2 / PAGE * PAGE;
    drop(near.open(&disk.mount)); // the names are on the disk
    disk.sync();
    disk.cut_during(|| {
        let file = near.open(&disk.mount);
        check(&file, 0, half);
        sync_data(file.index_path().unwrap()); // the words, not the bytes
        std::mem::forget(file);
        0
    });
    let file = near.open(&disk.mount);
    assert!(file.extent(0).unwrap().1, "no word outlived: the test tests nothing");
    check(&file, half, SIZE);
    drop(file); // clean, and nobody has looked at the first half
    let file = trusting.open(&disk.mount);
    check(&file, 0, SIZE);
    let stats = file.stats();
    assert!(stats.checksum_failures > 0 && stats.pages_verified < SIZE / PAGE, "{stats:?}");
}
