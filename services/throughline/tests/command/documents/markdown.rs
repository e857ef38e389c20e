//! Reads the Markdown documents of the project.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// The documents that are read: files, and folders with all their subfolders.
const ROOTS: [&str; 6] = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs", "deploy"];

/// A document.
pub(super) struct Document {
    pub(super) blocks: Vec<Block>,
    /// Inline code.
    pub(super) spans: Vec<Block>,
    /// Targets of links; `text` is the target.
    pub(super) links: Vec<Block>,
    /// The fragments of all headings.
    pub(super) anchors: BTreeSet<String>,
}

/// A fenced block, or another text with a position.
pub(super) struct Block {
    /// The path of the document in the project, with `/`.
    pub(super) path: String,
    pub(super) line: usize,
    /// The words after the fence.
    pub(super) info: String,
    pub(super) text: String,
}

impl Block {
    /// Returns the language; empty if there is none.
    pub(super) fn language(&self) -> &str {
        self.info.split_whitespace().next().unwrap_or_default()
    }

    /// Formats a problem with this text.
    pub(super) fn problem(&self, message: impl std::fmt::Display) -> String {
        format!("{}:{}: {message}", self.path, self.line)
    }
}

/// Returns the folder of the project.
pub(super) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns all documents by their paths.
pub(super) fn documents() -> BTreeMap<String, Document> {
    let mut documents = BTreeMap::new();
    for root in ROOTS {
        find(root, &mut documents);
    }
    documents
}

fn find(path: &str, documents: &mut BTreeMap<String, Document>) {
    let file = project().join(path);
    if file.is_dir() {
        for entry in read_dir(file).unwrap() {
            find(&format!("{path}/{}", entry.unwrap().file_name().to_str().unwrap()), documents);
        }
    } else if file.extension().is_some_and(|extension| extension == "md") {
        documents.insert(path.to_owned(), Document::read(path, &read_to_string(file).unwrap()));
    }
}

impl Document {
    fn read(path: &str, text: &str) -> Self {
        let mut document =
            Self { blocks: Vec::new(), spans: Vec::new(), links: Vec::new(), anchors: BTreeSet::new() };
        let block = |at: usize, info: &str, content: &str| Block {
            path: path.to_owned(),
            line: text[..at].matches('\n').count() + 1,
            info: info.to_owned(),
            text: content.to_owned(),
        };
        let (mut heading, mut is_code) = (None::<String>, false);
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info =
                        if let CodeBlockKind::Fenced(info) = kind { info.to_string() } else { String::new() };
                    document.blocks.push(block(range.start, &info, ""));
                    is_code = true;
                }
                Event::End(TagEnd::CodeBlock) => is_code = false,
                Event::Text(line) if is_code => document.blocks.last_mut().unwrap().text.push_str(&line),
                Event::Start(Tag::Link { dest_url, .. }) => {
                    document.links.push(block(range.start, "", &dest_url));
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    document.add_anchor(&heading.take().unwrap_or_default());
                }
                Event::Text(part) => heading = heading.map(|heading| heading + &part),
                Event::Code(part) => {
                    heading = heading.map(|heading| heading + &part);
                    document.spans.push(block(range.start, "", &part));
                }
                _ => {}
            }
        }
        document
    }

    /// Adds the fragment that GitHub gives to a heading.
    fn add_anchor(&mut self, heading: &str) {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let slug = heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-");
        let unused = (1..).map(|count| format!("{slug}-{count}"));
        let mut names = std::iter::once(slug.clone()).chain(unused);
        let name = names.find(|name| !self.anchors.contains(name)).unwrap();
        self.anchors.insert(name);
    }
}
