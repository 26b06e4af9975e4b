//! The tool, run as its users run it: every command, as text and as JSON, with its exit status; damage that is found and repaired;
//! directories that are empty, another user's, or in use by this process.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod tool {
    pub mod kit;
    pub mod over_http;
    pub mod served;
}

use nearfile::{Cache, CacheOptions, File, Options};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use tool::kit::{Kit, PAGE, bytes_of, close};

#[test]
fn a_directory_that_is_not_there_is_told_and_not_made() {
    let kit = Kit::new();
    let missing = kit.dir.join("deeper");
    for command in [&["ls"][..], &["stat"], &["verify"], &["top"], &["prometheus"], &["trim", "0"]] {
        let ended = kit.tool_in(&missing, command);
        assert_eq!(ended.code, 1, "{command:?}");
        assert!(ended.error.contains("nothing was cached there yet"), "{}", ended.error);
    }
    assert!(!missing.exists());
    fs::write(&missing, "a file").unwrap();
    assert!(kit.tool_in(&missing, &["ls"]).error.contains("is no directory"));
}

#[test]
fn an_empty_directory_has_nothing() {
    let kit = Kit::new();
    let ended = kit.tool(&["ls"]);
    assert_eq!((ended.code, ended.out.as_str()), (0, "no near copies here\n"));
    assert_eq!(kit.json(&["ls"], 0), Value::Array(Vec::new()));
    assert_eq!(kit.json(&["verify"], 0)["pages"], 0);
    assert_eq!(kit.json(&["stat"], 0)["files"], 0);
    for command in [&["map", "x"][..], &["stat", "x"], &["rm", "x"], &["verify", "x"], &["preserve", "x", "y"]] {
        let ended = kit.tool(command);
        assert_eq!(ended.code, 1, "{command:?}");
        assert!(ended.error.contains("nearfile ls"), "says where keys are found: {}", ended.error);
    }
}

#[test]
fn wrong_usage_is_2() {
    let kit = Kit::new();
    let wrong = [
        &["nonsense"][..],
        &[],
        &["map"],
        &["rm"],
        &["trim", "5x"],
        &["trim"],
        &["warm", "x", "9..3"],
        &["warm", "x", "--connections", "0"],
        &["top", "-i", "0"],
        &["ls", "--sort", "colour"],
    ];
    for command in wrong {
        assert_eq!(kit.tool(command).code, 2, "{command:?}");
    }
    assert_eq!(kit.tool(&["--version"]).out, format!("nearfile {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn another_users_directory_is_refused_with_the_reason() {
    let kit = Kit::new();
    let (open, other) = (kit.dir.join("open"), kit.dir.join("other"));
    for dir in [&open, &other] {
        fs::create_dir(dir).unwrap();
    }
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    // Who is not root finds directories of another user's: root's.
    let other = if std::os::unix::fs::chown(&other, Some(65534), Some(65534)).is_ok() { other } else { "/usr".into() };
    for dir in [open, other] {
        for command in [&["ls"][..], &["stat"], &["rm", "x"], &["warm", "/etc/passwd"]] {
            let ended = kit.tool_in(&dir, command);
            assert_eq!(ended.code, 1, "{command:?} in {}", dir.display());
            assert!(ended.error.contains("belongs to another user or can be written by others"), "{}", ended.error);
        }
    }
}

#[test]
fn ls_and_stat_show_every_version() {
    let kit = Kit::new();
    let older = kit.file("s3://bucket/a", "1", 10);
    older.read_at(&mut [0; 10], 0).unwrap();
    close(older);
    let newer = kit.file("s3://bucket/a", "2", 10);
    newer.read_at(&mut vec![0; 3 * PAGE], 0).unwrap();
    drop(kit.file("s3://bucket/b\n", "", 2));
    let all = kit.json(&["ls", "--sort", "key"], 0);
    let of = |at: usize, name: &str| all[at][name].clone();
    assert_eq!(all.as_array().unwrap().len(), 3);
    assert_eq!((of(0, "key"), of(0, "version"), of(0, "outdated")), ("s3://bucket/a".into(), "2".into(), false.into()));
    assert_eq!((of(0, "open"), of(0, "cached_pages"), of(0, "pages")), (true.into(), 3.into(), 10.into()));
    assert_eq!((of(1, "version"), of(1, "outdated"), of(1, "open")), ("1".into(), true.into(), false.into()));
    assert!(Path::new(of(0, "data_path").as_str().unwrap()).exists() && of(0, "used").as_f64().unwrap() > 1.0e9);
    let text = kit.tool(&["ls"]).out;
    assert!(text.contains("open") && text.contains("outdated") && text.contains("3 files in all"), "{text}");
    assert!(text.contains("s3://bucket/b\\n") && text.lines().count() == 5, "a key is a line: {text}");
    assert_eq!(kit.json(&["ls", "bucket/a"], 0).as_array().unwrap().len(), 2);
    // By a part of its key, unless that is another's, too.
    assert_eq!(kit.json(&["stat", "ket/a"], 0)[0]["version"], "2");
    let ambiguous = kit.tool(&["stat", "bucket"]);
    assert_eq!(ambiguous.code, 1);
    assert!(ambiguous.error.contains("2 keys contain"), "{}", ambiguous.error);
    close(newer);
    let stat = kit.json(&["stat"], 0);
    assert_eq!((&stat["files"], &stat["open"], &stat["outdated"]), (&3.into(), &0.into(), &1.into()));
    assert_eq!(stat["counters"]["misses"], 2);
    assert_eq!(stat["held_bytes"], stat["cached_bytes"]);
    assert!(kit.tool(&["stat"]).out.contains("over all processes"));
}

#[test]
fn map_shows_what_pages_are() {
    let kit = Kit::new();
    let file = kit.file("key", "", 10);
    file.read_at(&mut vec![0; 3 * PAGE], 0).unwrap();
    file.read_at(&mut [0; 1], 5 * PAGE as u64).unwrap();
    for _ in 0..3 {
        file.read_at(&mut [0; 1], 5 * PAGE as u64).unwrap(); // compared at its first hit, and hot
    }
    let pin = file.pin(PAGE as u64, 1).unwrap();
    assert!(pin.is_mapped());
    let map = kit.json(&["map", "key"], 0);
    let runs = map["present"].as_array().unwrap();
    let states: Vec<_> = runs.iter().map(|run| (run["first"].as_u64().unwrap(), run["state"].as_str().unwrap())).collect();
    assert!(states.contains(&(0, "filled")) && states.contains(&(5, "verified")), "{map}");
    assert!(runs.iter().any(|run| run["first"] == 5 && run["uses"].as_u64().unwrap() >= 2), "{map}");
    assert_eq!(map["pinned"], serde_json::json!([{ "first": 1, "last": 1 }]));
    assert_eq!((&map["busy"], &map["frozen"], &map["open"]), (&serde_json::json!([]), &false.into(), &true.into()));
    let text = kit.tool(&["map", "key", "--width", "40"]).out;
    assert!(
        text.lines().nth(3).unwrap().ends_with(" ░■░··▆····") || text.lines().nth(3).unwrap().ends_with(" ░■░··█····"),
        "{text}"
    );
    assert!(text.contains("pinned") && !text.contains('\x1b'), "{text}");
    assert!(kit.tool(&["map", "key", "--color", "always"]).out.contains("\x1b[38;5;39m"), "pinned is blue");
    drop(pin);
    file.freeze().unwrap();
    assert_eq!(kit.json(&["map", "key"], 0)["frozen"], true);
    assert_eq!(kit.json(&["map", "key"], 0)["pinned"], serde_json::json!([]));
    assert!(kit.tool(&["map", "key", "--version", "x"]).error.contains("no such version"));
}

#[test]
fn a_large_file_is_drawn_within_its_rows() {
    let kit = Kit::new();
    let file = kit.file("large", "", 100_000);
    file.read_at(&mut vec![0; 500 * PAGE], 0).unwrap();
    let text = kit.tool(&["map", "large", "--width", "60"]).out;
    assert!(text.lines().count() <= 28 && text.contains("a character is 87 pages"), "{text}");
    assert!(text.lines().nth(3).unwrap().contains("█████▇·") || text.lines().nth(3).unwrap().contains("█████▆·"), "{text}");
}

#[test]
fn a_picture_has_a_square_a_page() {
    let kit = Kit::new();
    let file = kit.file("key", "", 100);
    file.read_at(&mut vec![0; PAGE], 7 * PAGE as u64).unwrap();
    let path = kit.dir.join("map.png");
    let ended = kit.tool(&["map", "key", "--png", path.to_str().unwrap(), "--width", "480"]);
    assert_eq!(ended.code, 0, "{}", ended.error);
    let mut reader = png::Decoder::new(std::io::BufReader::new(fs::File::open(&path).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (480, 5 * 24));
    let pixel = |page: usize| {
        let (x, y) = (page % 20 * 24 + 3, page / 20 * 24 + 3);
        [0, 1, 2].map(|channel| pixels[3 * (y * 480 + x) + channel])
    };
    assert_eq!((pixel(7), pixel(8), pixel(99)), ([210, 153, 34], [33, 38, 45], [33, 38, 45]));
    let nowhere = kit.tool(&["map", "key", "--png", "/nonexistent/map.png"]);
    assert_eq!(nowhere.code, 1);
}

/// Changes a byte of a page in the mirror, behind the library's back.
fn damage(kit: &Kit, key: &str, page: usize) {
    let data = kit.json(&["stat", key], 0)[0]["data_path"].as_str().unwrap().to_owned();
    let mirror = fs::OpenOptions::new().read(true).write(true).open(data).unwrap();
    let mut byte = [0];
    mirror.read_exact_at(&mut byte, (page * PAGE + 9) as u64).unwrap();
    mirror.write_all_at(&[byte[0] ^ 1], (page * PAGE + 9) as u64).unwrap();
}

#[test]
fn damage_is_found_and_repaired() {
    let kit = Kit::new();
    let file = kit.file("key", "", 20);
    let mut all = vec![0; 20 * PAGE];
    file.read_at(&mut all, 0).unwrap();
    drop(file);
    assert_eq!(kit.json(&["verify"], 0)["pages"], 20);
    for page in [3, 4, 11] {
        damage(&kit, "key", page);
    }
    let found = kit.json(&["verify", "key"], 1);
    assert_eq!(found["damaged"][0]["pages"], serde_json::json!([3, 4, 11]));
    assert_eq!((&found["damaged_pages"], &found["repaired_pages"]), (&3.into(), &0.into()));
    let text = kit.tool(&["verify"]);
    assert_eq!(text.code, 1);
    assert!(text.out.contains("3 of 20 pages damaged (page 3-4, 11)") && text.out.contains("--repair"), "{}", text.out);
    assert_eq!(kit.json(&["stat"], 0)["cached_bytes"], 20 * PAGE, "to look changes nothing");
    let repaired = kit.json(&["verify", "--repair"], 1);
    assert_eq!((&repaired["damaged_pages"], &repaired["repaired_pages"]), (&3.into(), &3.into()));
    let again = kit.json(&["verify"], 0);
    assert_eq!((&again["pages"], &again["damaged_pages"]), (&17.into(), &0.into()));
    let stat = kit.json(&["stat"], 0);
    assert_eq!((&stat["counters"]["checksum_failures"], &stat["held_bytes"]), (&3.into(), &(17 * PAGE).into()));
    let file = kit.file("key", "", 20);
    let mut now = vec![0; 20 * PAGE];
    file.read_at(&mut now, 0).unwrap();
    assert!(now == all && file.stats().pages_fetched == 3 && file.stats().checksum_failures == 0);
}

#[test]
fn damage_under_an_open_pinned_or_frozen_file_is_served_to_nobody() {
    let kit = Kit::new();
    let file = kit.file("key", "", 8);
    let mut all = vec![0; 8 * PAGE];
    file.read_at(&mut all, 0).unwrap();
    file.read_at(&mut all, 0).unwrap(); // compared: hits from now on trust it
    let pin = file.pin(0, 2 * PAGE).unwrap();
    damage(&kit, "key", 1);
    damage(&kit, "key", 5);
    let mut now = vec![0; 8 * PAGE];
    file.read_at(&mut now, 0).unwrap();
    assert!(now != all, "a verified page is not compared again in its session: what verify is for");
    assert_eq!(kit.json(&["verify", "--repair"], 1)["repaired_pages"], 2);
    file.read_at(&mut now, 0).unwrap();
    assert!(now == all);
    drop(pin);
    file.read_at(&mut now, 0).unwrap();
    assert_eq!(kit.json(&["verify"], 0)["pages"], 8);
    file.freeze().unwrap();
    damage(&kit, "key", 2);
    assert_eq!(kit.json(&["verify", "--repair"], 1)["repaired_pages"], 1);
    assert!(file.read_at(&mut now, 0).is_err(), "frozen: an error, and never the damaged bytes");
}

#[test]
fn a_mirror_that_is_gone_is_an_error_of_its_file_alone() {
    let kit = Kit::new();
    for key in ["a", "b"] {
        kit.file(key, "", 2).read_at(&mut [0], 0).unwrap();
    }
    fs::remove_file(kit.json(&["stat", "a"], 0)[0]["data_path"].as_str().unwrap()).unwrap();
    let found = kit.json(&["verify"], 1);
    assert_eq!((&found["pages"], &found["errors"][0]["key"]), (&1.into(), &"a".into()));
    assert!(kit.tool(&["verify"]).out.contains("its mirror is gone"));
}

#[test]
fn trim_gives_up_pages_and_says_what_stays() {
    let kit = Kit::new();
    let file = kit.file("key", "", 50);
    file.read_at(&mut vec![0; 50 * PAGE], 0).unwrap();
    drop(file);
    let trimmed = kit.json(&["trim", &(20 * PAGE).to_string()], 0);
    assert_eq!(trimmed["before_bytes"], 50 * PAGE);
    assert!(trimmed["after_bytes"].as_u64().unwrap() <= 20 * PAGE as u64);
    assert_eq!(kit.json(&["stat"], 0)["held_bytes"], trimmed["after_bytes"]);
    let file = kit.file("key", "", 50);
    let pin = file.pin(0, 3 * PAGE).unwrap();
    let stays = kit.tool(&["trim", "0"]);
    assert_eq!(stays.code, 1);
    assert!(stays.error.contains("12.0 KiB stay: pages that are pinned"), "{}", stays.error);
    drop(pin);
    assert_eq!(kit.tool(&["trim", "0"]).code, 0);
}

#[test]
fn rm_takes_every_version_and_open_files_later() {
    let kit = Kit::new();
    for version in ["1", "2"] {
        let file = kit.file("a", version, 4);
        file.read_at(&mut [0], 0).unwrap();
        close(file);
    }
    let open = kit.file("b", "", 4);
    open.read_at(&mut [0], 0).unwrap();
    let some = kit.json_and_error(&["rm", "a", "nix"], 1);
    assert_eq!((&some["removed"][0]["versions"], &some["missing"]), (&2.into(), &1.into()));
    assert_eq!(kit.files_left(), 2, "b's");
    assert!(kit.tool(&["rm", "b"]).out.contains("when the last process closes it"));
    assert_eq!(kit.json(&["ls"], 0)[0]["cached_pages"], 0);
    close(open);
    assert_eq!((kit.files_left(), kit.json(&["stat"], 0)["held_bytes"].as_u64()), (0, Some(0)));
}

#[test]
fn preserve_makes_a_pair_that_opens_without_its_source() {
    let kit = Kit::new();
    let file = kit.file("key", "v", 10);
    file.read_at(&mut vec![0; 4 * PAGE], 0).unwrap();
    let kept = kit.dir.join("kept");
    let shown = kit.json(&["preserve", "key", kept.to_str().unwrap()], 0);
    assert_eq!(shown["cached_bytes"], 4 * PAGE);
    let mut options = Options::new();
    (options.key, options.version, options.size) = (Some(b"key".into()), b"v".into(), Some(10 * PAGE as u64));
    options.frozen = true;
    options.paths = Some((kept.clone(), shown["index_path"].as_str().unwrap().into()));
    let copy = File::open_kept(&options).unwrap();
    let mut bytes = vec![0; 4 * PAGE];
    copy.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, bytes_of("key", "v", 0, 4 * PAGE));
    let taken = kit.tool(&["preserve", "key", kept.to_str().unwrap()]);
    assert_eq!(taken.code, 1);
    assert!(taken.error.contains("writes over nothing"), "{}", taken.error);
}

#[test]
fn top_shows_what_others_do_between_two_looks() {
    let kit = Kit::new();
    let cache = Cache::open(Some(&kit.dir), &CacheOptions::default()).unwrap();
    let file = kit.file_in(&cache, "key", "", 400);
    let top = kit.start(&["top", "--json", "-i", "0.3", "-n", "4"]);
    for page in 0..60 {
        file.read_at(&mut [0], page * PAGE as u64).unwrap();
        file.read_at(&mut [0], page * PAGE as u64).unwrap();
        cache.counters(); // tells the hits, too
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let ended = top.wait_with_output().unwrap();
    assert!(ended.status.success());
    let lines: Vec<Value> =
        String::from_utf8(ended.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    let sum = |name: &str| -> f64 {
        lines.iter().map(|line| line["rates"][name].as_f64().unwrap() * line["seconds"].as_f64().unwrap()).sum()
    };
    assert!(sum("hits") > 5.0 && sum("source_bytes") >= 5.0 * PAGE as f64, "{lines:?}");
    let last = lines[3]["counters"]["hits"].as_u64().unwrap();
    assert!(lines[0]["counters"]["hits"].as_u64().unwrap() < last && last <= 60, "{lines:?}");
    drop(file);
    let text = kit.tool(&["top", "-i", "0.05", "-n", "2"]).out;
    assert_eq!(text.lines().count(), 3, "{text}");
    let panel = kit.tool(&["top", "-i", "0.05", "-n", "2", "--color", "always"]).out;
    assert!(panel.contains("\x1b[13A") && panel.contains("source bytes") && panel.contains("no limit"), "{panel:?}");
}

#[test]
fn top_ends_well_by_ctrl_c() {
    let kit = Kit::new();
    let top = kit.start(&["top", "-i", "0.05"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    kit.interrupt(&top);
    let ended = top.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert!(String::from_utf8(ended.stdout).unwrap().lines().count() >= 2);
}

#[test]
fn whoever_reads_the_output_may_go() {
    let kit = Kit::new();
    kit.file("key", "", 1).read_at(&mut [0], 0).unwrap();
    for command in [&["ls"][..], &["map", "key"], &["verify"], &["top", "-i", "0.05", "-n", "3"], &["prometheus"]] {
        let mut child = kit.start(command);
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let error = String::from_utf8(ended.stderr).unwrap();
        assert!(!error.contains("panicked") && error.is_empty(), "{command:?}: {error}");
    }
}

#[test]
fn prometheus_reads_the_numbers() {
    let kit = Kit::new();
    let file = kit.file("key", "", 5);
    file.read_at(&mut vec![0; 2 * PAGE], 0).unwrap();
    let metrics = parse_exposition(&kit.tool(&["prometheus"]).out);
    let label = format!("{{directory=\"{}\"}}", kit.dir.display());
    let value =
        |name: &str| metrics.iter().find(|(known, ..)| *known == format!("{name}{label}")).map(|found| (found.1.as_str(), found.2));
    assert_eq!(value("nearfile_misses_total"), Some(("counter", 1)));
    assert_eq!(value("nearfile_source_bytes_total"), Some(("counter", 2 * PAGE as u64)));
    assert_eq!(value("nearfile_open_files"), Some(("gauge", 1)));
    assert_eq!(value("nearfile_held_bytes"), Some(("gauge", 2 * PAGE as u64)));
    assert_eq!(metrics.len(), 20);
    let out = kit.dir.join("nearfile.prom");
    for _ in 0..2 {
        let ended = kit.tool(&["prometheus", "--out", out.to_str().unwrap()]);
        assert_eq!((ended.code, ended.out.as_str()), (0, ""), "{}", ended.error);
    }
    assert_eq!(parse_exposition(&fs::read_to_string(&out).unwrap()).len(), 20);
    let left =
        fs::read_dir(&kit.dir).unwrap().filter(|entry| entry.as_ref().unwrap().path().to_string_lossy().contains(".prom")).count();
    assert_eq!(left, 1, "nothing is left beside it");
    assert_eq!(kit.tool(&["prometheus", "--out", "/nonexistent/x.prom"]).code, 1);
}

/// Name with labels, type, value; each line as the text format has it.
fn parse_exposition(text: &str) -> Vec<(String, String, u64)> {
    let (mut metrics, mut kind) = (Vec::new(), ("", ""));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge"].contains(&kind.1), "{line}");
            assert_eq!(kind.1 == "counter", kind.0.ends_with("_total"), "{line}");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&format!("{}{{", kind.0)), "{line}");
            metrics.push((name.to_owned(), kind.1.to_owned(), value.parse().unwrap()));
        }
    }
    metrics
}
