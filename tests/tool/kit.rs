//! A directory of its own for each test, files in it through the library, and the tool run on it.

use nearfile::{Cache, CacheOptions, Connection, File, Options, Source, SourceError};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

pub const PAGE: usize = 4096;

pub struct Kit {
    pub dir: PathBuf,
    _temporary: tempfile::TempDir,
}

/// What came of a run.
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub error: String,
}

/// Held while a child of this process has not become another program yet: until then it is in every session that this process is in.
static SPAWNING: Mutex<()> = Mutex::new(());

fn spawn(mut command: Command) -> Child {
    let _spawning = SPAWNING.lock().unwrap();
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Closes a file as its last user.
pub fn close(file: File) {
    let _spawning = SPAWNING.lock().unwrap();
    drop(file);
}

/// The bytes of a remote file, told by its name and version.
pub fn bytes_of(key: &str, version: &str, offset: u64, len: usize) -> Vec<u8> {
    let seed = key.bytes().chain(version.bytes()).fold(7_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    (offset..offset + len as u64).map(|at| (at / 7).wrapping_mul(seed | 1).wrapping_shr(3) as u8 ^ at as u8).collect()
}

struct Far(String, String);

impl Source for Far {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        Ok(Box::new(Far(self.0.clone(), self.1.clone())))
    }
}

impl Connection for Far {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        buf.copy_from_slice(&bytes_of(&self.0, &self.1, offset, buf.len()));
        Ok(buf.len())
    }
}

impl Kit {
    pub fn new() -> Kit {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("cache");
        std::fs::create_dir(&dir).unwrap();
        Kit { dir: dir.canonicalize().unwrap(), _temporary: temporary }
    }

    /// A file of so many pages, open; read by the reading thread alone and only as far as asked.
    pub fn file(&self, key: &str, version: &str, pages: u64) -> File {
        self.file_in(&Cache::open(Some(&self.dir), &CacheOptions::default()).unwrap(), key, version, pages)
    }

    pub fn file_in(&self, cache: &Cache, key: &str, version: &str, pages: u64) -> File {
        let mut options = Options::new();
        options.key = Some(key.into());
        options.version = version.into();
        options.size = Some(pages * PAGE as u64);
        options.page_size = PAGE as u64;
        options.readahead_off = true;
        cache.file(Box::new(Far(key.into(), version.into())), &options).unwrap()
    }

    fn command(&self, dir: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nearfile"));
        command.arg("--dir").arg(dir).args(args).current_dir(&self.dir).env_remove("COLUMNS").stdin(Stdio::null());
        command
    }

    pub fn tool(&self, args: &[&str]) -> Ended {
        self.tool_in(&self.dir, args)
    }

    pub fn tool_in(&self, dir: &Path, args: &[&str]) -> Ended {
        let output = spawn(self.command(dir, args)).wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code().unwrap_or(-1), out: text(output.stdout), error: text(output.stderr) }
    }

    pub fn start(&self, args: &[&str]) -> Child {
        spawn(self.command(&self.dir, args))
    }

    /// What a command prints with --json, and nothing else.
    pub fn json(&self, args: &[&str], code: i32) -> Value {
        let with_json: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let ended = self.tool(&with_json);
        assert_eq!((ended.code, ended.error.as_str()), (code, ""), "{args:?}: {}", ended.out);
        serde_json::from_str(&ended.out).unwrap()
    }

    /// The same of one that fails with a sentence beside it.
    pub fn json_and_error(&self, args: &[&str], code: i32) -> Value {
        let with_json: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let ended = self.tool(&with_json);
        assert!(ended.code == code && ended.error.starts_with("nearfile: "), "{args:?}: {} {}", ended.code, ended.error);
        serde_json::from_str(&ended.out).unwrap()
    }

    /// Ctrl-C.
    pub fn interrupt(&self, child: &Child) {
        let mut kill = Command::new("kill");
        kill.args(["-INT", &child.id().to_string()]);
        assert!(spawn(kill).wait().unwrap().success());
    }

    /// Indexes and mirrors.
    pub fn files_left(&self) -> usize {
        let named = |entry: &std::fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.ends_with(".data") || name.ends_with(".index")
        };
        std::fs::read_dir(&self.dir).unwrap().filter(|entry| named(entry.as_ref().unwrap())).count()
    }
}
