//! A small HTTP server of the test's own: one object, ranges, conditions, and the faults that a test asks for.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

#[derive(Default)]
pub struct Behaviour {
    pub size: u64,
    pub gets: AtomicU64,
    pub bytes: AtomicU64,
    /// So many GETs are answered with 503 first.
    pub unwell: AtomicU32,
    /// So many GETs get half of what they asked for, and a closed connection.
    pub cut: AtomicU32,
    pub ignores_ranges: AtomicBool,
    pub refuses_head: AtomicBool,
    /// Another content, with another ETag.
    pub changed: AtomicBool,
    /// Milliseconds before the body.
    pub delay_ms: AtomicU64,
    /// What must be among the headers, else 403.
    pub secret: Option<&'static str>,
}

pub struct Served {
    pub behaviour: Arc<Behaviour>,
    pub host: String,
}

pub fn byte_at(offset: u64) -> u8 {
    (offset ^ (offset >> 8).wrapping_mul(37) ^ (offset >> 16)) as u8
}

impl Served {
    pub fn start(behaviour: Behaviour) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let behaviour = Arc::new(behaviour);
        let shared = Arc::clone(&behaviour);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let behaviour = Arc::clone(&shared);
                std::thread::spawn(move || drop(serve(&stream, &behaviour)));
            }
        });
        Served { behaviour, host }
    }

    pub fn gets(&self) -> u64 {
        self.behaviour.gets.load(Ordering::SeqCst)
    }
}

/// One request after the other, until the client goes.
fn serve(stream: &TcpStream, behaviour: &Behaviour) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let mut request = Vec::new();
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim_end().is_empty() {
                break;
            }
            request.push(line.trim_end().to_owned());
        }
        if !answer(stream, behaviour, &request)? {
            return Ok(());
        }
    }
}

fn take_one(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

/// False: the connection is closed.
fn answer(mut stream: &TcpStream, behaviour: &Behaviour, request: &[String]) -> std::io::Result<bool> {
    let field = |name: &str| {
        request
            .iter()
            .find_map(|line| line.split_once(": ").filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value))
    };
    let head = request[0].starts_with("HEAD ");
    let mut status = |line: &str| write!(stream, "HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n").map(|()| true);
    if request[0].contains(" /moved") {
        return status("302 Found\r\nLocation: /object");
    }
    if !request[0].contains(" /object") {
        return status("404 Not Found");
    }
    if behaviour.secret.is_some_and(|secret| !request.iter().any(|line| line == secret)) {
        return status("403 Forbidden");
    }
    if head && behaviour.refuses_head.load(Ordering::SeqCst) {
        return status("405 Method Not Allowed");
    }
    let etag = if behaviour.changed.load(Ordering::SeqCst) { "\"two\"" } else { "\"one\"" };
    if !head {
        behaviour.gets.fetch_add(1, Ordering::SeqCst);
        if take_one(&behaviour.unwell) {
            return status("503 Service Unavailable");
        }
    }
    if field("If-Match").is_some_and(|wanted| wanted != etag) {
        return status("412 Precondition Failed");
    }
    let size = behaviour.size;
    let asked = field("Range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let range = asked.filter(|_| !behaviour.ignores_ranges.load(Ordering::SeqCst)).map(|(first, last)| {
        let first: u64 = first.parse().unwrap();
        first..last.parse::<u64>().map_or(size, |last| (last + 1).min(size))
    });
    let (line, range) = match range {
        Some(range) => (format!("206 Partial Content\r\nContent-Range: bytes {}-{}/{size}", range.start, range.end - 1), range),
        None => ("200 OK".to_owned(), 0..size),
    };
    write!(stream, "HTTP/1.1 {line}\r\nETag: {etag}\r\nContent-Length: {}\r\n\r\n", range.end - range.start)?;
    if head {
        return Ok(true);
    }
    std::thread::sleep(Duration::from_millis(behaviour.delay_ms.load(Ordering::SeqCst)));
    let cut = take_one(&behaviour.cut);
    let end = if cut { range.start + (range.end - range.start) / 2 } else { range.end };
    let body: Vec<u8> = (range.start..end).map(byte_at).collect();
    stream.write_all(&body)?;
    behaviour.bytes.fetch_add(body.len() as u64, Ordering::SeqCst);
    Ok(!cut)
}
