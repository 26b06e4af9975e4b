//! What the README and the guide show is what is built and tested: their programs are those of `examples/`, byte for byte.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::read_to_string;
use std::path::Path;

fn shows(text: &str, language: &str, example: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shown = read_to_string(root.join(text)).unwrap();
    let built = read_to_string(root.join("examples").join(example)).unwrap();
    assert!(shown.contains(&format!("```{language}\n{built}```")), "copy examples/{example} into {text}");
}

#[test]
fn the_readme_shows_the_program_that_is_built() {
    shows("README.md", "c", "quick.c");
}

#[test]
fn the_guide_shows_the_project_that_is_built() {
    shows("docs/guide.md", "cmake", "guide/CMakeLists.txt");
    shows("docs/guide.md", "c", "guide/near.c");
    shows("docs/guide.md", "c", "guide/workers.c");
}
