//! The documentation: its links lead somewhere, its pages are in the book, its commands are commands.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Markdown files below `folder`.
fn pages_below(folder: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => pages.extend(pages_below(&path)),
            false if path.extension().is_some_and(|ending| ending == "md") => pages.push(path),
            false => {}
        }
    }
    pages
}

/// All pages that people read.
fn pages() -> Vec<PathBuf> {
    let root = root();
    let mut pages = pages_below(&root.join("docs"));
    for crates in fs::read_dir(root.join("crates")).unwrap() {
        pages.push(crates.unwrap().path().join("README.md"));
    }
    pages.extend(
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root.join(name)),
    );
    pages.retain(|page| page.is_file());
    pages.sort();
    assert!(pages.len() > 40, "{pages:?}");
    pages
}

/// The lines of a page, each with whether it is code.
fn lines(text: &str) -> Vec<(bool, &str)> {
    let mut is_fenced = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        lines.push((is_fenced || is_fence || line.starts_with("    "), line));
        is_fenced ^= is_fence;
    }
    lines
}

/// A line without its code between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("")
}

/// The name of a heading in a link, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(page: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(page).unwrap();
    let headings = lines(&text).into_iter().filter(|(is_code, line)| !is_code && line.starts_with('#'));
    headings.map(|(_, line)| anchor(line.trim_start_matches('#'))).collect()
}

/// Targets of the links of a page.
fn links(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let mut links = Vec::new();
    for (_, line) in lines(&text).into_iter().filter(|(is_code, _)| !is_code) {
        let line = without_code(line);
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        links.extend(targets.map(String::from));
    }
    links
}

#[test]
fn links_lead_somewhere() {
    let mut n_links = 0;
    for page in pages() {
        for link in links(&page) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            n_links += 1;
            let (path, heading) =
                link.split_once('#').map_or((link.as_str(), None), |(path, heading)| (path, Some(heading)));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            // The book has nothing else.
            let docs = root().join("docs");
            let stays = !page.starts_with(&docs) || target.canonicalize().unwrap().starts_with(&docs);
            assert!(stays, "{}: {link} leaves docs", page.display());
            if let Some(heading) = heading {
                assert!(anchors(&target).contains(heading), "{}: {link} names no heading", page.display());
            }
        }
    }
    assert!(n_links > 100, "{n_links}");
}

#[test]
fn the_book_has_every_page_and_the_index_every_guide() {
    let docs = root().join("docs");
    let linked = |page: &str| -> BTreeSet<PathBuf> {
        let targets = links(&docs.join(page)).into_iter().map(|link| docs.join(link));
        targets.filter_map(|path| path.canonicalize().ok()).collect()
    };
    let (book, index) = (linked("SUMMARY.md"), linked("index.md"));
    for page in pages_below(&docs) {
        let name = page.strip_prefix(&docs).unwrap().display().to_string();
        if name != "SUMMARY.md" {
            assert!(book.contains(&page), "docs/SUMMARY.md lacks {name}");
        }
        let is_decision = name.starts_with("decisions");
        if !["SUMMARY.md", "index.md"].contains(&name.as_str()) && !is_decision {
            assert!(index.contains(&page), "docs/index.md lacks {name}");
        }
    }
}

/// The words of a command as a shell has them; `None` if it is more than a command with words: redirected, in a loop.
fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let (mut word, mut is_word, mut quote) = (String::new(), false, None);
    for c in command.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.push(c),
            ('\'' | '"', None) => (quote, is_word) = (Some(c), true),
            ('#', None) if !is_word => break,
            ('|' | '>' | '<' | ';' | '&' | '$' | '`', None) => break,
            (c, None) if c.is_whitespace() => {
                if is_word {
                    words.push(std::mem::take(&mut word));
                }
                is_word = false;
            }
            (c, None) => {
                word.push(c);
                is_word = true;
            }
        }
    }
    if is_word {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

/// Commands of `lowbit` in the documentation, with the page.
fn commands() -> Vec<(PathBuf, Vec<String>)> {
    let mut commands = Vec::new();
    // The changes also speak of commands that are wrong.
    for page in pages().into_iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        let text = fs::read_to_string(&page).unwrap();
        // A line goes on behind a backslash.
        let text = text.replace("\\\n", " ");
        for (is_code, line) in lines(&text) {
            let code = match is_code {
                true => vec![line.trim()],
                false => line.split('`').skip(1).step_by(2).collect(),
            };
            for code in code {
                let starts = ["lowbit ", "cargo run -- ", "cargo run --release -- "];
                let rest = starts.iter().find_map(|start| code.strip_prefix(start));
                // Text names an option without its value.
                let is_whole =
                    |words: &Vec<String>| is_code || words.last().is_some_and(|word| !word.starts_with('-'));
                if let Some(words) = rest.and_then(words).filter(is_whole) {
                    commands.push((page.clone(), words));
                }
            }
        }
    }
    commands
}

/// Each is one that the program takes: it is asked for help behind all of it, where it has read all options and values.
#[test]
fn commands_are_commands() {
    let commands = commands();
    assert!(commands.len() > 100, "{}", commands.len());
    // Folders of images are looked for when the command is read.
    let folder = tempfile::tempdir().unwrap();
    ["DIR", "flowers"].iter().for_each(|name| fs::create_dir(folder.path().join(name)).unwrap());
    let mut wrong = Vec::new();
    for (page, mut words) in commands {
        // What is left open.
        for word in &mut words {
            match word.as_str() {
                "N" => *word = "1".into(),
                "NAME" => *word = "digits".into(),
                _ => {}
            }
        }
        // What a shell makes of it.
        let words: Vec<String> = words
            .iter()
            .flat_map(|word| if word.contains('*') { vec![word.clone(); 2] } else { vec![word.clone()] })
            .collect();
        // It has no help of its own.
        if words.first().is_some_and(|word| word == "help") {
            continue;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
        let output = command.args(&words).arg("--help").current_dir(folder.path()).output().unwrap();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            wrong.push(format!("{}: lowbit {}\n{stderr}", page.display(), words.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The commands of a page that stand in blocks marked `sh run`, in their order; `None` if it has none.
fn script(page: &Path) -> Option<String> {
    let text = fs::read_to_string(page).unwrap();
    let blocks = text.split("```sh run\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let blocks: Vec<&str> = blocks.collect();
    (!blocks.is_empty()).then(|| blocks.concat())
}

/// In a shell, one after the other, as a reader types them: each page in a directory of its own, where the examples of the repository are.
#[test]
fn commands_that_are_marked_run() {
    const SHELL: &str = r#"
        set -eu
        # As built for this test.
        lowbit() { "$LOWBIT" "$@"; }
        cargo() { shift 2; lowbit "$@"; }
    "#;
    let scripts: Vec<(PathBuf, String)> =
        pages().into_iter().filter_map(|page| script(&page).map(|script| (page, script))).collect();
    let names: Vec<_> = scripts.iter().filter_map(|(page, _)| page.file_name()?.to_str()).collect();
    assert_eq!(names, ["README.md", "deploy.md", "mixed-precision.md"], "pages whose commands are run");
    for (page, script) in scripts {
        assert!(!script.contains("cargo ") || script.contains("cargo run -- "), "{}", page.display());
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(root().join("examples"), folder.path().join("examples")).unwrap();
        let mut shell = Command::new("bash");
        shell.args(["-xc", &format!("{SHELL}{script}")]).current_dir(folder.path());
        shell.env("LOWBIT", env!("CARGO_BIN_EXE_lowbit")).env("HOME", folder.path());
        let output = shell.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {stderr}", page.display());
    }
}
