//! `docs/guarantees.md`: the tests that it names exist, and no promise of the documentation is left out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The pages whose promises are listed.
const PAGES: [&str; 3] = ["README.md", "docs/operations.md", "docs/data-layout.md"];

/// Words that promise: that nothing is lost, or a bound.
const PROMISES: [&str; 13] = [
    "never",
    "at most",
    "within",
    "survives",
    "survive any",
    "lose nothing",
    "loses nothing",
    "loses no",
    "missed nothing",
    "nothing is lost",
    "nothing was lost",
    "any moment",
    "every second",
];

/// Words of a length of time, behind a number.
const TIMES: [&str; 10] = ["s", "ms", "h", "second", "seconds", "minute", "minutes", "hour", "days", "hours"];

/// Numbers in words.
const NUMBERS: [&str; 7] = ["a", "one", "two", "five", "ten", "four", "half"];

/// Sentences that have such words and promise nothing: advice, examples, meanings of alerts, what senders do.
const NO_PROMISES: [&str; 23] = [
    "at --rate events a second about --leads leads",
    "(of a lead that was never heard of",
    "In headless Chromium on 2 busy cores",
    "the sender tries again, 3 times at most",
    "spooled events applied per second at most",
    "more per second from this address than",
    "(Redis was stopped four seconds ago",
    "64 at most",
    "Never probe with plain /readyz",
    "Kubernetes needs the delay (5 s in the manifest)",
    "the server has been shutting down for a minute",
    "The sender tries each event three times within minutes",
    "Answers take over a second",
    "Events have been waiting in the spool for five minutes",
    "more than one a second for ten minutes",
    "One call in a hundred takes over a quarter of a second",
    "Events were refused or can never be applied",
    "% within a word are escaped",
    "payloads (id → what is needed to try again",
    "at five the sender gives up",
    "somebody runs a script for seconds",
    "half an hour, a tenth more or less",
    "somebody still has the old one",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Text without its marks, on one line.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    // Of a link its text.
    while let Some((before, link)) = rest.split_once("](") {
        plain += before;
        rest = link.split_once(')').map_or("", |(_, after)| after);
    }
    plain += rest;
    let plain: String = plain.chars().filter(|c| !"*`[]".contains(*c)).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The sentences of a page, and the rows of its tables. What is in a block of code is none, nor what was measured.
fn sentences(page: &str) -> Vec<String> {
    let page = page.split("\n## Speed\n").next().unwrap_or_default();
    let text: String = page.split("\n```").step_by(2).collect::<Vec<_>>().join("\n\n");
    let mut blocks = vec![String::new()];
    for line in text.lines().map(str::trim) {
        let is_item = line.starts_with("- ") || line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        if line.is_empty() || line.starts_with(['|', '#']) || is_item {
            blocks.push(String::new());
        }
        let block = blocks.last_mut().expect("a block");
        *block += " ";
        *block += line;
    }
    blocks
        .iter()
        .flat_map(|block| plain(block).split_inclusive(". ").map(|sentence| sentence.trim().to_owned()).collect::<Vec<_>>())
        .collect()
}

fn promises(sentence: &str) -> bool {
    let sentence = sentence.to_lowercase();
    let words: Vec<&str> = sentence.split(|c: char| !c.is_alphanumeric() && c != '.').map(|word| word.trim_end_matches('.')).collect();
    let is_number = |word: &str| word.parse::<f64>().is_ok() || NUMBERS.contains(&word);
    let in_words = format!(" {} ", words.join(" "));
    PROMISES.iter().any(|promise| in_words.contains(&format!(" {promise} ")))
        || words.windows(2).any(|pair| is_number(pair[0]) && TIMES.contains(&pair[1]))
}

/// The rows of the tables under a heading, as plain cells.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let page = read("docs/guarantees.md");
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading:?}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells = |line: &str| line.trim_matches('|').split('|').map(plain).collect::<Vec<_>>();
    section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).skip(1).map(cells).collect()
}

#[test]
fn every_promise_is_listed() {
    let mut listed = rows("Every promise, and what holds it");
    listed.extend(rows("Not held by a test"));
    assert!(listed.len() > 40, "{listed:?}");
    let sentences: Vec<(&str, String)> =
        PAGES.iter().flat_map(|page| sentences(&read(page)).into_iter().map(|sentence| (*page, sentence)).collect::<Vec<_>>()).collect();
    let known: Vec<&str> = listed.iter().map(|row| &*row[1]).chain(NO_PROMISES).collect();
    let unknown: Vec<_> =
        sentences.iter().filter(|(_, sentence)| promises(sentence) && !known.iter().any(|known| sentence.contains(known))).collect();
    assert!(unknown.is_empty(), "docs/guarantees.md does not say which tests hold these:\n{unknown:#?}");
    let gone: BTreeSet<_> = known.iter().filter(|known| !sentences.iter().any(|(_, sentence)| sentence.contains(**known))).collect();
    assert!(gone.is_empty(), "no page says any more:\n{gone:#?}");
}

#[test]
fn the_tests_that_are_named_exist() {
    let page = read("docs/guarantees.md");
    let names: BTreeSet<&str> =
        page.split('`').skip(1).step_by(2).filter(|code| code.starts_with("it ") || code.starts_with("lib ")).collect();
    assert!(names.len() > 40, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !name.ends_with(" …") && !exists(name)).collect();
    assert!(missing.is_empty(), "docs/guarantees.md names tests that do not exist: {missing:#?}");
    for unreal in ["it nowhere::", "it logs::nothing_of_this_name", "it logs::leadfold", "lib time::tests::nothing", "lib nowhere::"] {
        assert!(!exists(unreal), "{unreal}");
    }
}

/// Whether there is such a test, or a module that has some.
fn exists(name: &str) -> bool {
    let (kind, path) = name.split_once(' ').expect("a kind and a path");
    let base = root().join(if kind == "it" { "tests/it" } else { "src" });
    let mut parts: Vec<&str> = path.split("::").collect();
    let test = parts.pop().filter(|test| !test.is_empty());
    let files = files(&base, &parts);
    files.iter().any(|file| match test {
        Some(test) => has_test(file, test),
        None => file.contains("#[test]") || file.contains("#[tokio::test") || file.contains("on_both_stores!"),
    })
}

/// The texts in which a module's tests may stand: its own file, those below it, and that of its parent for `mod tests`.
fn files(base: &Path, module: &[&str]) -> Vec<String> {
    let path = module.iter().fold(base.to_owned(), |path, part| path.join(part));
    let mut files: Vec<PathBuf> = [path.with_extension("rs"), path.join("mod.rs")].into();
    let mut folders = vec![path];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    let mut texts: Vec<String> = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    if let Some(("tests", parent)) = module.split_last().map(|(last, parent)| (*last, parent)) {
        let path = parent.iter().fold(base.to_owned(), |path, part| path.join(part));
        let inline = [path.with_extension("rs"), path.join("mod.rs")];
        texts.extend(inline.iter().filter_map(|file| std::fs::read_to_string(file).ok()).filter(|text| text.contains("mod tests {")));
    }
    texts
}

/// A function of this name that is a test: its attribute says so, or a list of tests of both stores.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_function = |line: &str| line.split_once("fn ").is_some_and(|(_, after)| after.split(['(', '<']).next() == Some(name));
    let Some(at) = lines.iter().position(|line| is_function(line)) else { return false };
    let has_attribute = lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).any(|line| line.contains("test"));
    let lists = text.split("on_both").skip(1).filter_map(|list| list.split(['}', ')']).next());
    has_attribute || lists.flat_map(|list| list.split([',', '{', '(', '\n'])).any(|listed| listed.trim() == name)
}
