//! The documents: their links, configurations, commands and URLs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use throughline_settings::{Flags, load_over};

use crate::Command;

/// What the examples leave out.
const LEAST: &str = "
kafka: {bootstrap_servers: 'localhost:9092'}
routes:
  one: {path: /one, topic: one-request-local, destinations: [three]}
destinations:
  three: {url: 'https://api.example.com/three'}
";

/// A document, with its path from the root of the repository.
struct Document {
    path: PathBuf,
    text: String,
}

/// A fenced block, or a paragraph between two of them.
#[derive(Default)]
struct Block<'a> {
    /// The language of a fenced block, and its first line.
    fence: Option<(&'a str, usize)>,
    lines: Vec<&'a str>,
}

fn root() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).unwrap()
}

fn documents() -> Vec<Document> {
    let mut paths = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"].map(PathBuf::from).to_vec();
    let mut documents = Vec::new();
    while let Some(path) = paths.pop() {
        let whole = root().join(&path);
        if whole.is_dir() {
            paths.extend(fs::read_dir(whole).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            documents.push(Document { text: fs::read_to_string(whole).unwrap(), path });
        }
    }
    assert!(documents.len() > 20);
    documents
}

impl Document {
    fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = vec![Block::default()];
        for (number, line) in self.text.lines().enumerate() {
            let block = blocks.last_mut().unwrap();
            // A block may be the first thing in an item of a list.
            let item =
                line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit() || "-. ".contains(c));
            match (item.strip_prefix("```"), block.fence) {
                (Some(language), None) => {
                    blocks.push(Block { fence: Some((language, number + 1)), lines: vec![] });
                }
                (Some(_), Some(_)) => blocks.push(Block::default()),
                (None, _) => block.lines.push(line),
            }
        }
        blocks
    }

    /// Returns the fenced blocks of a language, each with its place in the document.
    fn fenced(&self, language: &str) -> Vec<(String, Vec<&str>)> {
        let mut fenced = Vec::new();
        for block in self.blocks() {
            if let Some((_, line)) = block.fence.filter(|(name, _)| *name == language) {
                // A block within a list is indented.
                let indents = block.lines.iter().filter(|line| !line.is_empty());
                let indent = indents.map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
                let lines = block.lines.iter().map(|line| line.get(indent..).unwrap_or_default()).collect();
                fenced.push((format!("{}:{line}", self.path.display()), lines));
            }
        }
        fenced
    }

    /// Returns the anchors of the headings, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let blocks = self.blocks();
        let prose = blocks.iter().filter(|block| block.fence.is_none()).flat_map(|block| &block.lines);
        let headings = prose.filter_map(|line| line.strip_prefix('#'));
        let anchor = |heading: &str| {
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
            let kept = heading
                .trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(kept)
                .collect::<String>();
            kept.replace(' ', "-")
        };
        headings.map(anchor).collect()
    }

    fn links(&self) -> Vec<&str> {
        let mut links = Vec::new();
        for block in self.blocks().into_iter().filter(|block| block.fence.is_none()) {
            for line in block.lines {
                let ends = line.split("](").skip(1);
                links.extend(ends.filter_map(|rest| rest.split_once(')')).map(|(link, _)| link));
            }
        }
        links
    }
}

#[test]
fn links_lead_to_files_and_headings() {
    let documents = documents();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for document in &documents {
        for link in document.links() {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            checked += 1;
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let from = root().join(&document.path);
            let target = if file.is_empty() { from } else { from.parent().unwrap().join(file) };
            let target = fs::canonicalize(target).unwrap_or_default();
            let has = |anchor: &str| {
                let text = fs::read_to_string(&target).unwrap_or_default();
                Document { path: target.clone(), text }.anchors().contains(anchor)
            };
            if !target.exists() || anchor.is_some_and(|anchor| !has(anchor)) {
                wrong.push(format!("{}: {link}", document.path.display()));
            }
        }
    }
    assert!(checked > 50, "{checked}");
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn configurations_are_valid() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for document in documents() {
        for (at, lines) in document.fenced("yaml") {
            checked += 1;
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("throughline.yaml");
            fs::write(&file, lines.join("\n")).unwrap();
            let flags = Flags { config: Some(file), ..Flags::default() };
            let Err(problems) = load_over(LEAST, &flags) else { continue };
            // The files and variables that examples refer to are the reader's.
            let is_ours =
                |problem: &String| !problem.contains("cannot read") && !problem.contains("is not set");
            let problems = problems.iter().map(ToString::to_string).filter(is_ours);
            wrong.extend(problems.map(|problem| format!("{at}: {problem}")));
        }
    }
    assert!(checked > 5, "{checked}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns the words of a command, without its comment.
fn words(line: &str) -> Vec<&str> {
    let line = line.split(" #").next().unwrap_or_default();
    line.split_whitespace().map(|word| word.trim_matches('\'')).collect()
}

#[test]
fn commands_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let is_target = |name: &str| makefile.lines().any(|line| line.starts_with(&format!("{name}:")));
    let mut wrong = Vec::new();
    let mut checked = 0;
    for document in documents() {
        for (at, lines) in document.fenced("sh") {
            let script = lines.join("\n");
            let shell = std::process::Command::new("bash").args(["-n", "-c", &script]).output().unwrap();
            if !shell.status.success() {
                wrong.push(format!("{at}: {}", String::from_utf8_lossy(&shell.stderr)));
            }
            for line in lines {
                let words = words(line);
                let problem = match words.as_slice() {
                    ["make", target, ..] if !is_target(target) => Some("no such target".to_owned()),
                    ["throughline", ..] => {
                        Command::try_parse_from(&words).err().map(|error| error.to_string())
                    }
                    ["make", ..] => None,
                    _ => continue,
                };
                checked += 1;
                wrong.extend(problem.map(|problem| format!("{at}: {line}: {problem}")));
            }
        }
    }
    assert!(checked > 15, "{checked}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_block_has_a_known_language() {
    const KNOWN: [&str; 10] =
        ["sh", "yaml", "json", "http", "ini", "logql", "promql", "mermaid", "sql", "text"];
    let mut wrong = Vec::new();
    for document in documents() {
        for (language, line) in document.blocks().into_iter().filter_map(|block| block.fence) {
            if !KNOWN.contains(&language) {
                wrong.push(format!("{}:{line}: {language:?}", document.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "blocks in no known language:\n{}", wrong.join("\n"));
}
