//! `warm`: of URLs through curl, of paths, of ranges; what comes in between.

use super::kit::{Kit, PAGE};
use super::served::{Behaviour, Served, byte_at};
use nearfile::{Cache, CacheOptions, Connection, Options, Source, SourceError};
use serde_json::Value;
use std::sync::atomic::Ordering;
use std::time::Duration;

const SIZE: u64 = 3_000_001;

fn served() -> Served {
    Served::start(Behaviour { size: SIZE, ..Behaviour::default() })
}

/// A source that must not be asked.
struct Untouched;

impl Source for Untouched {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        Err(SourceError::new(0, "the source was asked"))
    }
}

/// Reads what was warmed by what the tool says names it, without a source.
fn read_warmed(kit: &Kit, warmed: &Value, offset: u64, len: usize) -> Vec<u8> {
    let cache = Cache::open(Some(&kit.dir), &CacheOptions::default()).unwrap();
    let mut options = Options::new();
    options.key = Some(warmed["key"].as_str().unwrap().into());
    options.version = warmed["version"].as_str().unwrap().into();
    options.size = warmed["size"].as_u64();
    let file = cache.file(Box::new(Untouched), &options).unwrap();
    let mut bytes = vec![0; len];
    assert_eq!(file.read_at(&mut bytes, offset).unwrap(), len);
    bytes
}

#[test]
fn a_url_is_warmed_once() {
    let (kit, served) = (Kit::new(), served());
    let url = format!("http://me:word@{}/object?part=1&X-Amz-Signature=secret", served.host);
    let warmed = kit.json(&["warm", &url, "--page-size", "64k"], 0);
    assert_eq!(warmed["key"], format!("http://{}/object?part=1", served.host), "no secret in it");
    assert_eq!((&warmed["version"], &warmed["size"]), (&"\"one\"".into(), &SIZE.into()));
    assert_eq!(
        (&warmed["missing_before"], &warmed["missing_after"], &warmed["source_bytes"]),
        (&SIZE.into(), &0.into(), &SIZE.into())
    );
    assert_eq!(served.behaviour.bytes.load(Ordering::SeqCst), SIZE);
    let bytes = read_warmed(&kit, &warmed, 0, SIZE as usize);
    assert!(bytes.iter().zip(0..).all(|(&byte, at)| byte == byte_at(at)));
    let again = kit.json(&["warm", &url], 0);
    assert_eq!((&again["source_reads"], &again["missing_before"]), (&0.into(), &0.into()));
    assert_eq!(served.behaviour.bytes.load(Ordering::SeqCst), SIZE);
    // By a redirect it is another key, and the same object.
    let moved = kit.json(&["warm", &format!("http://{}/moved", served.host), "0..10"], 0);
    assert_eq!((&moved["version"], &moved["size"]), (&"\"one\"".into(), &SIZE.into()));
}

#[test]
fn ranges_are_warmed_alone() {
    let (kit, served) = (Kit::new(), served());
    let url = format!("http://{}/object", served.host);
    let warmed = kit.json(&["warm", &url, "0..1", "1M+1", "2900k..", "--page-size", "4k", "--key", "mine", "--version", "7"], 0);
    assert_eq!((&warmed["key"], &warmed["version"]), (&"mine".into(), &"7".into()));
    let map = kit.json(&["map", "mine"], 0);
    let runs: Vec<(u64, u64)> = map["present"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| (run["first"].as_u64().unwrap(), run["last"].as_u64().unwrap()))
        .collect();
    assert_eq!(runs, [(0, 0), (256, 256), (725, 732)], "{map}");
    assert_eq!(read_warmed(&kit, &warmed, 1 << 20, 1), [byte_at(1 << 20)]);
    let past = kit.tool(&["warm", &url, "3M.."]);
    assert!(past.code == 1 && past.error.contains("begins past the end"), "{}", past.error);
}

#[test]
fn servers_that_are_unwell_are_asked_again() {
    let (kit, served) = (Kit::new(), served());
    served.behaviour.refuses_head.store(true, Ordering::SeqCst);
    served.behaviour.unwell.store(2, Ordering::SeqCst);
    served.behaviour.cut.store(2, Ordering::SeqCst);
    let warmed = kit.json(&["warm", &format!("http://{}/object", served.host)], 0);
    let bytes = read_warmed(&kit, &warmed, 0, SIZE as usize);
    assert!(bytes.iter().zip(0..).all(|(&byte, at)| byte == byte_at(at)));
}

#[test]
fn what_a_server_cannot_do_is_told() {
    let (kit, served) = (Kit::new(), served());
    let url = format!("http://{}/object", served.host);
    let fails = |url: &str, with: &str| {
        let ended = kit.tool(&["warm", url, "2M.."]);
        assert_eq!(ended.code, 1, "{url}");
        assert!(ended.error.contains(with), "{with}: {}", ended.error);
    };
    fails(&format!("http://{}/nothing", served.host), "no such object (HTTP 404)");
    fails("ftp://example.org/x", "ftp:// is not read");
    fails("http://127.0.0.1:9/object", "connect");
    served.behaviour.ignores_ranges.store(true, Ordering::SeqCst);
    fails(&url, "ignores ranges");
    served.behaviour.ignores_ranges.store(false, Ordering::SeqCst);
    served.behaviour.unwell.store(u32::MAX, Ordering::SeqCst);
    fails(&url, "(HTTP 503) (5 tries)");
    assert_eq!(kit.json(&["stat"], 0)["cached_bytes"], 0);
}

#[test]
fn an_object_that_changes_is_an_error_and_no_mixture() {
    let (kit, served) = (Kit::new(), served());
    served.behaviour.delay_ms.store(600, Ordering::SeqCst);
    let url = format!("http://{}/object", served.host);
    let warming = kit.start(&["warm", &url, "--connections", "1", "--page-size", "4k", "0..4k", "8k..12k", "16k..20k"]);
    while served.gets() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    served.behaviour.changed.store(true, Ordering::SeqCst);
    let ended = warming.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8(ended.stderr).unwrap().contains("has changed since it was probed"));
    assert_eq!(kit.json(&["ls"], 0).as_array().unwrap().len(), 1);
    served.behaviour.delay_ms.store(0, Ordering::SeqCst);
    assert_eq!(kit.json(&["warm", &url], 0)["version"], "\"two\"");
    assert_eq!(kit.json(&["stat"], 0)["outdated"], 1);
}

#[test]
fn headers_reach_the_server() {
    let kit = Kit::new();
    let served = Served::start(Behaviour { size: SIZE, secret: Some("X-Key: a \"b\" \\c"), ..Behaviour::default() });
    let url = format!("http://{}/object", served.host);
    let refused = kit.tool(&["warm", &url]);
    assert!(refused.code == 1 && refused.error.contains("refuses access"), "{}", refused.error);
    assert_eq!(kit.tool(&["warm", &url, "-H", "X-Key: a \"b\" \\c"]).code, 0);
    // From a file, so that it is not in the list of processes.
    std::fs::write(kit.dir.join("headers"), "X-Key: a \"b\" \\c\n").unwrap();
    assert_eq!(kit.tool(&["warm", &url, "-H", "@headers", "--key", "again"]).code, 0);
}

#[test]
fn ctrl_c_keeps_what_has_come() {
    let (kit, served) = (Kit::new(), served());
    served.behaviour.delay_ms.store(150, Ordering::SeqCst);
    let url = format!("http://{}/object", served.host);
    // One page a range, so that there is always another request to come.
    let ranges: Vec<String> = (0..200).map(|n| format!("{}..{}", n * 8192, n * 8192 + 1)).collect();
    let mut args = vec!["warm", url.as_str(), "--page-size", "4k", "--connections", "1"];
    args.extend(ranges.iter().map(String::as_str));
    let warming = kit.start(&args);
    while served.gets() < 4 {
        std::thread::sleep(Duration::from_millis(5));
    }
    kit.interrupt(&warming);
    let ended = warming.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let here = kit.json(&["stat"], 0)["cached_pages"].as_u64().unwrap();
    assert!((1..200).contains(&here), "{here}");
    assert_eq!(kit.json(&["verify"], 0)["pages"], here);
}

#[test]
fn a_path_is_warmed_until_it_changes() {
    let kit = Kit::new();
    let path = kit.dir.parent().unwrap().join("far \"file\".bin");
    let content: Vec<u8> = (0..50 * PAGE as u64).map(byte_at).collect();
    std::fs::write(&path, &content).unwrap();
    let name = path.to_str().unwrap();
    let warmed = kit.json(&["warm", name, "--page-size", "4k"], 0);
    assert_eq!(warmed["key"], format!("file://{}", path.canonicalize().unwrap().display()));
    assert_eq!(read_warmed(&kit, &warmed, 0, content.len()), content);
    std::fs::write(&path, &content[1..]).unwrap();
    let again = kit.json(&["warm", name], 0);
    assert!(again["version"] != warmed["version"]);
    assert_eq!(read_warmed(&kit, &again, 0, content.len() - 1), &content[1..]);
    std::fs::write(&path, "").unwrap();
    assert_eq!(kit.json(&["warm", name], 0)["bytes"], 0);
    assert_eq!(kit.tool(&["warm", "/nonexistent"]).code, 1);
    assert!(kit.tool(&["warm", "/dev/zero"]).error.contains("no plain file"));
}

#[test]
fn a_limit_keeps_the_rest_out_and_says_so() {
    let kit = Kit::new();
    let mut limits = CacheOptions::default();
    limits.size_limit = 20 * PAGE as u64;
    drop(Cache::open(Some(&kit.dir), &limits).unwrap());
    let path = kit.dir.parent().unwrap().join("far.bin");
    std::fs::write(&path, vec![7; 50 * PAGE]).unwrap();
    let ended = kit.tool(&["warm", path.to_str().unwrap(), "--page-size", "4k"]);
    assert_eq!(ended.code, 1, "{}", ended.out);
    assert!(ended.error.contains("could not be kept: the directory's limit (80.0 KiB)"), "{}", ended.error);
    assert!(kit.json(&["stat"], 0)["held_bytes"].as_u64().unwrap() <= limits.size_limit);
}
