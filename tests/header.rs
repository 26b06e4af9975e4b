//! `include/nearfile.h` is what cbindgen makes of `src/ffi` today. `NEARFILE_REWRITE_HEADER=1 cargo test --test header` rewrites it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::path::Path;

#[test]
fn the_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for room in ["status", "source", "cache", "file", "pin"] {
        builder = builder.with_src(root.join(format!("src/ffi/{room}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().expect("cbindgen").write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = root.join("include/nearfile.h");
    if std::env::var_os("NEARFILE_REWRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        made == committed,
        "include/nearfile.h is not what src/ffi says: run NEARFILE_REWRITE_HEADER=1 cargo test --test header"
    );
}
