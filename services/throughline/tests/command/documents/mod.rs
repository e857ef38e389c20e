//! The documents stay true: each fenced block is run or parsed, and each link is followed.

mod commands;
mod configurations;
mod links;
mod markdown;
mod queries;
mod shell;

use self::markdown::{Block, documents};

/// Fails with all problems, one per line.
#[track_caller]
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems in the documents:\n{}", problems.len(), problems.join("\n"));
}

/// Returns the blocks in a language.
fn blocks(language: &str) -> Vec<Block> {
    let blocks = documents().into_values().flat_map(|document| document.blocks);
    blocks.filter(|block| block.language() == language).collect()
}

/// Checks the text of a block.
type Check = fn(&str) -> Result<(), String>;

#[test]
fn every_block_in_the_documents_is_in_a_language_that_a_test_checks() {
    let checks: [(&str, Check); 10] = [
        ("sh", |_| Ok(())),
        ("sql", |_| Ok(())),
        ("yaml", |_| Ok(())),
        ("text", |_| Ok(())),
        ("http", http),
        ("ini", ini),
        ("json", json),
        ("logql", queries::logql),
        ("mermaid", mermaid),
        ("promql", queries::promql),
    ];
    let mut problems = Vec::new();
    for block in documents().into_values().flat_map(|document| document.blocks) {
        let language = block.language();
        match checks.iter().find(|(name, _)| *name == language) {
            Some((_, check)) => problems.extend(check(&block.text).err().map(|error| block.problem(error))),
            None if language.is_empty() => problems.push(block.problem("no language: mark it `text`")),
            None => problems.push(block.problem(format!("no test checks blocks in `{language}`"))),
        }
    }
    assert_none(&problems);
}

fn json(text: &str) -> Result<(), String> {
    serde_json::from_str::<serde_json::Value>(text).map(drop).map_err(|error| error.to_string())
}

/// A response: a status line, headers, and a body in JSON.
fn http(text: &str) -> Result<(), String> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).and_then(|line| line.get(..3));
    if status
        .and_then(|status| status.parse().ok())
        .and_then(|code| http::StatusCode::from_u16(code).ok())
        .is_none()
    {
        return Err("expected a status line such as `HTTP/1.1 201 Created`".to_owned());
    }
    match lines.find(|line| !line.contains(": ")) {
        Some(line) => Err(format!("not a header: {line}")),
        None if body.is_empty() => Ok(()),
        None => json(body),
    }
}

fn ini(text: &str) -> Result<(), String> {
    let is_valid = |line: &str| {
        line.is_empty()
            || line.starts_with([';', '['])
            || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
    };
    text.lines().find(|line| !is_valid(line)).map_or(Ok(()), |line| Err(format!("not a setting: {line}")))
}

/// A diagram of states: `A --> B : 1`.
fn mermaid(text: &str) -> Result<(), String> {
    let mut lines = text.lines();
    if lines.next() != Some("stateDiagram-v2") {
        return Err("only diagrams of states are checked".to_owned());
    }
    let is_transition = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words[..], [_, "-->", _, ":", _])
    };
    lines.find(|line| !is_transition(line)).map_or(Ok(()), |line| Err(format!("not a transition: {line}")))
}
