//! What the README shows is what is built and tested: its C program is `examples/quick.c`, byte for byte.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::read_to_string;
use std::path::Path;

#[test]
fn the_readme_shows_the_program_that_is_built() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shown = read_to_string(root.join("README.md")).unwrap();
    let built = read_to_string(root.join("examples/quick.c")).unwrap();
    assert!(shown.contains(&format!("```c\n{built}```")), "copy examples/quick.c into README.md");
}
