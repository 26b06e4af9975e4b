//! The house stands: the order of the `mod` lines in `src/lib.rs` is the architecture, and a module imports only modules declared
//! above it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

fn modules() -> Vec<String> {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    lib.lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod ")))
        .filter_map(|rest| rest.strip_suffix(';'))
        .map(str::to_owned)
        .collect()
}

fn files_of(module: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let single = src.join(format!("{module}.rs"));
    if single.exists() {
        return vec![single];
    }
    fs::read_dir(src.join(module)).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The modules that a text names as `crate::x`, also in `use crate::{x, y::z}`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let name = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if let Some(list) = rest.strip_prefix('{') {
            let list = &list[..list.find("};").unwrap_or(list.len())];
            let mut depth = 0;
            let mut start = true;
            for (at, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if start && !c.is_whitespace() => {
                        found.push(name(&list[at..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            found.push(name(rest));
        }
    }
    found
}

#[test]
fn modules_import_only_what_stands_above_them() {
    let modules = modules();
    assert!(modules.len() > 10, "src/lib.rs lists the rooms: {modules:?}");
    let mut wrong = Vec::new();
    for (floor, module) in modules.iter().enumerate() {
        for file in files_of(module) {
            for import in imports(&fs::read_to_string(&file).unwrap()) {
                let stands = modules.iter().position(|name| *name == import);
                if stands.is_some_and(|stands| stands > floor) {
                    wrong.push(format!("{} imports {import}, which stands below {module}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_itself_sees_a_wrong_import() {
    assert_eq!(imports("use crate::{file::File, sys};\nuse crate::range::Run; crate::log::warn"), ["file", "sys", "range", "log"]);
}

/// The lint denies it, and nothing in the tool allows it.
#[test]
fn the_tool_is_safe_and_uses_the_public_api_alone() {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/nearfile");
    let files: Vec<PathBuf> = fs::read_dir(tool).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("unsafe") && !text.contains("nearfile::ffi") && !text.contains("libc::"), "{}", file.display());
    }
}

#[test]
fn only_the_named_rooms_are_unsafe() {
    let allowed = ["sys", "ffi", "log"];
    for module in modules() {
        for file in files_of(&module) {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let uses = code.filter(|line| line.contains("unsafe ") || line.contains("unsafe{")).count();
            assert!(uses == 0 || allowed.contains(&module.as_str()), "unsafe in {}", file.display());
        }
    }
}
