//! An object on an HTTP server as a source, read by the program curl: one process a request, its settings (which may hold a signature)
//! by the standard input, where no other user sees them. Key and version are those of `include/nearfile/curl.h`.

use nearfile::{Connection, Source, SourceError};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is known of an object.
#[derive(Debug, Clone)]
pub struct Object {
    url: String,
    headers: Vec<String>,
    etag: String,
    last_modified: String,
    pub key: String,
    pub version: String,
    pub size: u64,
}

/// An object as a source that may be interrupted, and counts the bytes that have come.
pub struct CurlSource {
    pub object: Object,
    pub connections: u32,
    pub come: Arc<AtomicU64>,
    pub interrupted: Arc<dyn Fn() -> bool + Send + Sync>,
}

struct CurlConnection {
    object: Object,
    come: Arc<AtomicU64>,
    interrupted: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// The header of the last answer; redirects and 1xx come before it.
#[derive(Debug, Default)]
struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
}

/// A request that failed, and whether to try again, at the earliest after so long.
#[derive(Debug)]
struct Refused {
    code: i64,
    sentence: String,
    again: Option<Duration>,
}

const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Of what curl says when it fails, so much is shown.
const SAID: usize = 500;
/// More header than this is none.
const LONGEST_HEADER: u64 = 256 << 10;

impl Object {
    /// Asks for key, version and size: by HEAD, and where that is refused or tells too little by a GET of the first byte.
    pub fn probe(url: &str, headers: &[String], interrupted: &dyn Fn() -> bool) -> Result<Object, String> {
        let key = key_of(url);
        let (etag, last_modified, version) = (String::new(), String::new(), String::new());
        let mut object = Object { url: url.into(), headers: headers.into(), etag, last_modified, key, version, size: 0 };
        let head = tried(interrupted, || object.head());
        let (answer, size) = match head {
            Ok(answer) if answer.number("content-length").is_some() => {
                let size = answer.number("content-length").unwrap_or(0);
                (answer, size)
            }
            Err(refused) if matches!(refused.code, 404 | 410) || refused.code < 300 => return Err(refused.sentence),
            _ => tried(interrupted, || object.first_byte()).map_err(|refused| refused.sentence)?,
        };
        if answer.is_encoded() {
            return Err(format!("{}: the server compresses the answer, so that its ranges are not the object's", object.key));
        }
        object.etag = answer.field("etag").unwrap_or_default().to_owned();
        object.last_modified = answer.field("last-modified").unwrap_or_default().to_owned();
        let strong = object.etag.starts_with('"');
        object.version = if strong { object.etag.clone() } else { format!("{} {size}", object.last_modified) };
        object.size = size;
        Ok(object)
    }

    fn head(&self) -> Result<Answer, Refused> {
        let (mut request, answer) = self.request("head\n")?;
        request.end(self)?;
        if (200..300).contains(&answer.status) { Ok(answer) } else { Err(self.refused(&answer)) }
    }

    fn first_byte(&self) -> Result<(Answer, u64), Refused> {
        let (request, answer) = self.request("include\nrange = \"0-0\"\n")?;
        drop(request);
        let size = match answer.status {
            206 | 416 => answer.content_range().and_then(|(_, total)| total),
            200 => answer.number("content-length"),
            _ => return Err(self.refused(&answer)),
        };
        let unknown =
            || Refused { code: 0, sentence: format!("{}: the server does not say how long it is", self.key), again: None };
        Ok((answer, size.ok_or_else(unknown)?))
    }

    /// Reads what one answer gives of a range: at least a byte.
    fn read(&self, offset: u64, buf: &mut [u8], come: &AtomicU64, interrupted: &dyn Fn() -> bool) -> Result<usize, Refused> {
        let condition = match (self.etag.starts_with('"'), self.last_modified.is_empty()) {
            (true, _) => header(&format!("If-Match: {}", self.etag)),
            (false, false) => header(&format!("If-Unmodified-Since: {}", self.last_modified)),
            (false, true) => String::new(),
        };
        let last = offset + buf.len() as u64 - 1;
        let (mut request, answer) = self.request(&format!("include\nrange = \"{offset}-{last}\"\n{condition}"))?;
        let room = self.judge(&answer, offset, buf.len() as u64)?;
        let buf = &mut buf[..room];
        let mut got = 0;
        while got < buf.len() && !interrupted() {
            // An error of the pipe is an end, too: what came before is good.
            let Ok(more @ 1..) = request.answer.read(&mut buf[got..]) else { break };
            got += more;
            come.fetch_add(more as u64, Ordering::Relaxed);
        }
        if got < buf.len() {
            let ended = request.end(self);
            return if got > 0 { Ok(got) } else { ended.and(Err(self.again("the answer has no bytes", 0))) };
        }
        Ok(got)
    }

    /// How many bytes an answer gives of those that were asked for, if it is of the right object.
    fn judge(&self, answer: &Answer, offset: u64, len: u64) -> Result<usize, Refused> {
        let wrong =
            |sentence: &str| Refused { code: answer.status.into(), sentence: format!("{}: {sentence}", self.key), again: None };
        let changed = || wrong("the object has changed since it was probed: warm it again");
        if !matches!(answer.status, 200 | 206) {
            return Err(if matches!(answer.status, 412 | 416) { changed() } else { self.refused(answer) });
        }
        if answer.is_encoded() {
            return Err(wrong("the server compresses the answer, so that its ranges are not the object's"));
        }
        let differs = |name: &str, known: &str| answer.field(name).is_some_and(|now| !known.is_empty() && now != known);
        if differs("etag", &self.etag) || (self.etag.is_empty() && differs("last-modified", &self.last_modified)) {
            return Err(changed());
        }
        let (range, total) = match answer.status {
            206 => answer.content_range().ok_or_else(|| wrong("a part without a Content-Range"))?,
            _ => (Some((0, self.size.saturating_sub(1))), answer.number("content-length")),
        };
        if total.is_some_and(|total| total != self.size) {
            return Err(changed());
        }
        match range {
            Some((first, last)) if first == offset && last >= first && last - first < len => Ok((last - first + 1) as usize),
            _ if answer.status == 200 => Err(wrong(&format!(
                "the server ignores ranges: get it whole (curl -O), then nearfile warm FILE --key '{}' --version '{}'",
                self.key, self.version
            ))),
            _ => Err(wrong("the server answered with another range than the one asked for")),
        }
    }

    fn refused(&self, answer: &Answer) -> Refused {
        let why = match answer.status {
            401 | 403 => "the server refuses access: give what it wants with -H, ~/.netrc or a presigned URL",
            404 | 410 => "the server has no such object",
            _ => "the server did not send what was asked for",
        };
        let again = matches!(answer.status, 408 | 429 | 500 | 502 | 503 | 504).then(|| {
            let asked = answer.number("retry-after").map(Duration::from_secs).unwrap_or_default();
            asked.min(LONGEST_PAUSE)
        });
        Refused { code: answer.status.into(), sentence: format!("{}: {why} (HTTP {})", self.key, answer.status), again }
    }

    fn again(&self, sentence: &str, code: i64) -> Refused {
        Refused { code, sentence: format!("{}: {sentence}", self.key), again: Some(Duration::ZERO) }
    }

    /// Starts curl and reads the header of what it answers.
    fn request(&self, settings: &str) -> Result<(Request, Answer), Refused> {
        let failed = |sentence: String| Refused { code: 0, sentence, again: None };
        let spawned = Command::new("curl")
            .args(["--config", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = spawned.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => failed("the program curl was not found: install it (Debian: apt install curl)".into()),
            _ => failed(format!("curl does not start: {error}")),
        })?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("curl has no pipes".into()));
        };
        let fixed = "silent\nshow-error\nlocation\nmax-redirs = 5\nproto = \"=http,https\"\nproto-redir = \"=http,https\"\ngloboff\nnetrc-optional\n\
                     suppress-connect-headers\nconnect-timeout = 10\nspeed-limit = 1\nspeed-time = 15\n";
        let agent = format!("user-agent = \"nearfile/{}\"\n", env!("CARGO_PKG_VERSION"));
        let headers: String = self.headers.iter().map(|line| header(line)).collect();
        let all = format!("{fixed}{agent}{}{headers}{settings}url = {}\n", header("Accept-Encoding: identity"), quoted(&self.url));
        // Should curl have ended already, what it says is read below.
        let _ = stdin.write_all(all.as_bytes());
        drop(stdin);
        let mut request = Request { child, answer: BufReader::with_capacity(256 << 10, stdout) };
        match Answer::read(&mut request.answer) {
            Some(answer) => Ok((request, answer)),
            None => Err(request.end(self).err().unwrap_or_else(|| self.again("no answer", 0))),
        }
    }
}

/// A header as a line of curl's configuration.
fn header(line: &str) -> String {
    format!("header = {}\n", quoted(line))
}

/// A value in curl's configuration.
fn quoted(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
    format!("\"{escaped}\"")
}

/// A curl that runs; ended when dropped.
struct Request {
    child: Child,
    answer: BufReader<ChildStdout>,
}

impl Request {
    /// Waits for curl, after its output has ended; an error tells what it said.
    fn end(&mut self, object: &Object) -> Result<(), Refused> {
        let _ = std::io::copy(&mut self.answer, &mut std::io::sink());
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(SAID as u64).read_to_string(&mut said);
        }
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            // Resolving, connecting, partial, timeout, TLS handshake, nothing, sending, receiving, HTTP/2.
            Ok(status) if matches!(status.code(), Some(5 | 6 | 7 | 16 | 18 | 28 | 35 | 52 | 55 | 56 | 92)) => {
                Err(object.again(said.trim(), 1000 + i64::from(status.code().unwrap_or(0))))
            }
            Ok(status) => {
                let sentence = format!("{}: {} ({status})", object.key, said.trim());
                Err(Refused { code: 1000 + i64::from(status.code().unwrap_or(0)), sentence, again: None })
            }
            Err(error) => Err(Refused { code: 0, sentence: error.to_string(), again: None }),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    /// Reads header blocks up to the one that no other follows; `None` where the output ends before.
    fn read(from: &mut impl BufRead) -> Option<Answer> {
        let mut from = from.take(LONGEST_HEADER);
        loop {
            let answer = Answer::read_block(&mut from)?;
            let redirects = matches!(answer.status, 301 | 302 | 303 | 307 | 308) && answer.field("location").is_some();
            if answer.status >= 200 && !redirects {
                return Some(answer);
            }
        }
    }

    fn read_block(from: &mut impl BufRead) -> Option<Answer> {
        let mut answer = Answer::default();
        loop {
            let mut line = Vec::new();
            from.read_until(b'\n', &mut line).ok()?;
            if !line.ends_with(b"\n") {
                return None;
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            if answer.status == 0 {
                answer.status = line.strip_prefix("HTTP/")?.split_whitespace().nth(1)?.parse().ok()?;
            } else if line.is_empty() {
                return Some(answer);
            } else if let Some((name, value)) = line.split_once(':') {
                answer.fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().rev().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    fn is_encoded(&self) -> bool {
        self.field("content-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"))
    }

    /// `bytes 0-99/1234`; a star may stand for the range or the total.
    #[expect(clippy::type_complexity, reason = "two things that may both be unknown")]
    fn content_range(&self) -> Option<(Option<(u64, u64)>, Option<u64>)> {
        let (range, total) = self.field("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        let range = range.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        Some((range, total.parse().ok()))
    }
}

/// Tries again what may end well the next time, with pauses that double.
fn tried<T>(interrupted: &dyn Fn() -> bool, mut request: impl FnMut() -> Result<T, Refused>) -> Result<T, Refused> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match request() {
            Err(Refused { again: Some(at_least), .. }) if !interrupted() => {
                let until = Instant::now() + pause.max(at_least);
                while Instant::now() < until && !interrupted() {
                    std::thread::sleep(Duration::from_millis(20));
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            ended => return ended,
        }
    }
    request().map_err(|refused| Refused { sentence: format!("{} ({TRIES} tries)", refused.sentence), ..refused })
}

impl Source for CurlSource {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        let (come, interrupted) = (Arc::clone(&self.come), Arc::clone(&self.interrupted));
        Ok(Box::new(CurlConnection { object: self.object.clone(), come, interrupted }))
    }

    fn max_connections(&self) -> u32 {
        self.connections
    }
}

impl Connection for CurlConnection {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        let interrupted = &*self.interrupted;
        if interrupted() {
            return Err(SourceError::new(0, "interrupted"));
        }
        let read = tried(interrupted, || self.object.read(offset, buf, &self.come, interrupted));
        read.map_err(|refused| SourceError::new(refused.code, refused.sentence))
    }
}

/// The URL as a name that outlives its signature and tells no secret: as `nearfile_curl_key`.
pub fn key_of(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let (place, query) = url.split_once('?').map_or((url, ""), |(place, query)| (place, query));
    let mut key = match place.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => place.to_owned(),
    };
    let is_sas = url.contains("?sig=") || query.contains("&sig=");
    // In there a further '?' separates, too.
    for (at, parameter) in
        query.split(['&', '?']).filter(|_| url.contains('?')).filter(|part| !is_signature(part, is_sas)).enumerate()
    {
        key.push(if at == 0 { '?' } else { '&' });
        key.push_str(parameter);
    }
    key
}

/// Whether a parameter is part of a signature (of S3, its elders, Google, Azure), and not of a name.
fn is_signature(parameter: &str, is_sas: bool) -> bool {
    const SIGNED: [&str; 8] =
        ["x-amz-", "x-goog-", "awsaccesskeyid=", "googleaccessid=", "signature=", "expires=", "key-pair-id=", "policy="];
    const SAS: [&str; 14] =
        ["sig=", "se=", "sp=", "sv=", "sr=", "st=", "spr=", "sip=", "skoid=", "sktid=", "skt=", "ske=", "sks=", "skv="];
    let parameter = parameter.to_ascii_lowercase();
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| parameter.starts_with(prefix));
    begins(&SIGNED) || (is_sas && begins(&SAS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_no_secret() {
        let same = ["https://example.org/a?b=c", "http://example.org", "https://h/a?", "x", "https://h/p?a=1&b=2&a=3"];
        assert_eq!(same.map(key_of), same);
        assert_eq!(
            key_of("https://me:word@h:8/a/@b?versionId=7&X-Amz-Signature=s&x-amz-date=1#part"),
            "https://h:8/a/@b?versionId=7"
        );
        assert_eq!(key_of("https://h/a?Expires=1&Signature=2&Key-Pair-Id=3"), "https://h/a");
        assert_eq!(key_of("https://h/a?se=1&sp=r&name=x&sig=2"), "https://h/a?name=x");
        assert_eq!(key_of("https://h/a?se=1&sp=r"), "https://h/a?se=1&sp=r");
    }

    #[test]
    fn only_the_last_answer_counts() {
        let said = "HTTP/1.1 302 Found\r\nLocation: /b\r\nETag: \"no\"\r\n\r\nHTTP/2 206 \r\nETag: \"yes\"\r\nContent-Range: bytes 3-5/9\r\n\r\nabc";
        let mut from = BufReader::new(said.as_bytes());
        let answer = Answer::read(&mut from).unwrap_or_default();
        assert_eq!(
            (answer.status, answer.field("etag"), answer.content_range()),
            (206, Some("\"yes\""), Some((Some((3, 5)), Some(9))))
        );
        let mut body = String::new();
        assert!(from.read_to_string(&mut body).is_ok() && body == "abc");
        assert!(Answer::read(&mut BufReader::new(&b"HTTP/1.1 200 OK\r\nA: b\r\n"[..])).is_none());
    }

    #[test]
    fn what_curl_reads_is_one_value() {
        assert_eq!(quoted("a\"b\\c\nurl = x"), "\"a\\\"b\\\\c url = x\"");
    }
}
