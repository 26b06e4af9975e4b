//! The man page and the completions are what `src/bin/nearfile/args.rs` says today. `NEARFILE_REWRITE_TOOL_DOCS=1 cargo test --features
//! tool --test tool_docs` rewrites them. They are committed, so that who packages the tool needs not run it.
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(dead_code, reason = "what only the tool uses of its own files")]

#[path = "../src/bin/nearfile/args.rs"]
mod args;
#[path = "../src/bin/nearfile/units.rs"]
mod units;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use std::path::Path;

fn compare(name: &str, made: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("share").join(name);
    if std::env::var_os("NEARFILE_REWRITE_TOOL_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, made).unwrap();
    }
    let committed = std::fs::read(&path).unwrap_or_default();
    assert!(
        made == committed,
        "share/{name} is not what the tool's arguments say: NEARFILE_REWRITE_TOOL_DOCS=1 cargo test --features tool --test tool_docs"
    );
}

#[test]
fn completions_are_current() {
    for (shell, name) in [(Shell::Bash, "nearfile.bash"), (Shell::Zsh, "_nearfile"), (Shell::Fish, "nearfile.fish")] {
        let mut made = Vec::new();
        clap_complete::generate(shell, &mut args::Args::command(), "nearfile", &mut made);
        compare(&format!("completions/{name}"), &made);
    }
}

/// A part of the page, without what each part of clap_mangen's begins with.
fn part(render: impl Fn(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut made = Vec::new();
    render(&mut made).unwrap();
    let lines = String::from_utf8(made).unwrap();
    lines
        .lines()
        .filter(|line| !line.starts_with(".ie ") && !line.starts_with(".el "))
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// What a command does and takes, as a section of the one page.
fn section(command: &Command) -> String {
    let full = format!("nearfile {}", command.get_name());
    let man = Man::new(command.clone().display_name(&full).bin_name(&full).disable_help_flag(true));
    let synopsis = part(|to| man.render_synopsis_section(to)).replace(".SH SYNOPSIS\n", "");
    let description = part(|to| man.render_description_section(to)).replace(".SH DESCRIPTION\n", ".PP\n");
    let options = part(|to| man.render_options_section(to)).replace(".SH OPTIONS\n", "");
    format!(".SH \"{}\"\n{synopsis}{description}{options}", full.to_uppercase())
}

#[test]
fn the_man_page_is_current() {
    let command = args::Args::command();
    let man = Man::new(command.clone())
        .title("NEARFILE")
        .date("")
        .source(format!("nearfile {}", env!("CARGO_PKG_VERSION")))
        .manual("nearfile");
    let mut page = String::from(".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n");
    page += &part(|to| man.render_title(to));
    page += &part(|to| man.render_name_section(to));
    page += &part(|to| man.render_synopsis_section(to));
    page += &part(|to| man.render_description_section(to));
    page += &part(|to| man.render_options_section(to));
    page.extend(command.get_subcommands().map(section));
    page += &part(|to| man.render_extra_section(to)).replace(".SH EXTRA\nExit status: ", ".SH \"EXIT STATUS\"\n");
    compare("man/man1/nearfile.1", page.as_bytes());
}
