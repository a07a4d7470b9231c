//! Tables and figures in the documents, made of the JSON beside them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lowbit_sweep::Report;

/// Folder of the tables and figures, in that of the documents.
const FOLDER: &str = "reproduction";

/// The page that shows them.
const PAGE: &str = "reproduction.md";

const END: &str = "<!-- end -->";

/// Writes the table in `out` into the documents of `docs`: its JSON, its figures, and its part of the page.
pub fn write(name: &str, out: &Path, docs: &Path) -> anyhow::Result<()> {
    let folder = docs.join(FOLDER);
    let report = Report::read(&out.join("table.json"))?.published();
    let page = docs.join(PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("failed to read {}", page.display()))?;
    let text = with_part(&text, name, &part(name, &report))?;
    let write = |path: &Path, text: String| {
        fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    };
    write(&json(name, docs), serde_json::to_string_pretty(&report)? + "\n")?;
    for figure in ["accuracy", "differences", "curves"] {
        for ending in ["svg", "png"] {
            let to = folder.join(format!("{name}-{figure}.{ending}"));
            let from = out.join(format!("{figure}.{ending}"));
            fs::copy(from, &to).with_context(|| format!("failed to write {}", to.display()))?;
        }
    }
    write(&page, text)
}

/// The published results of a table.
pub fn json(name: &str, docs: &Path) -> PathBuf {
    docs.join(FOLDER).join(format!("{name}.json"))
}

/// What the page says of a table.
fn part(name: &str, report: &Report) -> String {
    let figure = |what: &str, file: &str| format!("![{what}]({FOLDER}/{name}-{file}.svg)\n");
    let figures = [
        figure("Differences with their intervals", "differences"),
        figure("Accuracy by method", "accuracy"),
        figure("Accuracy over the epochs", "curves"),
    ];
    format!("{}\n{}", report.markdown(), figures.concat())
}

fn begin(name: &str) -> String {
    format!("<!-- made by cargo xtask reproduce {name} --docs -->")
}

/// The page with another part of a table, between its marks.
fn with_part(page: &str, name: &str, part: &str) -> anyhow::Result<String> {
    let begin = begin(name);
    let Some((before, rest)) = page.split_once(&begin) else {
        bail!("docs/{PAGE} has no place for this table: add the lines {begin} and {END}");
    };
    let Some((_, after)) = rest.split_once(END) else {
        bail!("docs/{PAGE} has no {END} after {begin}");
    };
    Ok(format!("{before}{begin}\n\n{part}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_replaces_what_is_between_its_marks() {
        let page = "a\n<!-- made by cargo xtask reproduce digits --docs -->\nold\n<!-- end -->\nb\n";
        let expected = "a\n<!-- made by cargo xtask reproduce digits --docs -->\n\nnew\n\n<!-- end -->\nb\n";
        assert_eq!(with_part(page, "digits", "new\n").unwrap(), expected);
        assert!(with_part(page, "cifar10", "new\n").is_err());
    }

    #[test]
    fn the_page_says_what_the_results_beside_it_say() {
        let docs = crate::workspace::root().join("docs");
        let page = fs::read_to_string(docs.join(PAGE)).unwrap();
        for entry in fs::read_dir(docs.join(FOLDER)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let name = path.file_stem().unwrap().to_str().unwrap();
            let report = Report::read(&path).unwrap();
            assert_eq!(
                with_part(&page, name, &part(name, &report)).unwrap(),
                page,
                "{name}: write it with --docs"
            );
        }
    }
}
