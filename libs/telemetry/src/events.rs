//! `docs/events.md` lists the events that the programs log.

use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// Macros that log an event, and their levels. `Warning` (ingest) is a warning.
const LEVELS: [(&str, &str); 5] = [
    ("debug!(", "debug"),
    ("info!(", "info"),
    ("warn!(", "warn"),
    ("error!(", "error"),
    ("Warning {", "warn"),
];

/// An event and its level.
type Logged = (String, &'static str);

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Adds the events of the Rust files in a folder and its subfolders.
fn find(folder: &Path, found: &mut BTreeSet<Logged>) {
    for entry in read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with(file!()) {
            read(&read_to_string(&path).unwrap(), found);
        }
    }
}

/// Adds the events of a source text: each `event = "…"` takes the level of the nearest macro before it.
fn read(text: &str, found: &mut BTreeSet<Logged>) {
    for assignment in ["event = \"", "event: \""] {
        for (at, _) in text.match_indices(assignment) {
            let begin = at + assignment.len();
            let (name, _) = text[begin..].split_once('"').unwrap();
            let macros = LEVELS.iter().filter_map(|(of, level)| Some((text[..begin].rfind(of)?, *level)));
            let (_, level) = macros.max().unwrap();
            found.insert((name.to_owned(), level));
        }
    }
}

/// Returns the events of the tables: rows such as ``| `lease.expired` | warn | … |``.
fn listed(text: &str) -> Vec<Logged> {
    let row = |line: &str| {
        let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let (_, level) = LEVELS.iter().find(|(_, level)| rest.starts_with(&format!("{level} |")))?;
        Some((name.to_owned(), *level))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn the_document_lists_exactly_the_events_in_the_source() {
    let mut found = BTreeSet::new();
    for group in ["libs", "services"] {
        for package in read_dir(project().join(group)).unwrap() {
            find(&package.unwrap().path().join("src"), &mut found);
        }
    }
    let rows = listed(&read_to_string(project().join("docs/events.md")).unwrap());
    let listed: BTreeSet<_> = rows.iter().cloned().collect();
    assert_eq!(rows.len(), listed.len(), "an event is listed twice");
    let undocumented: Vec<_> = found.difference(&listed).collect();
    let unused: Vec<_> = listed.difference(&found).collect();
    assert!(undocumented.is_empty() && unused.is_empty(), "not listed: {undocumented:?}; unused: {unused:?}");
}

#[test]
fn an_event_has_a_noun_and_a_verb_in_lower_case() {
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
    };
    let rows = listed(&read_to_string(project().join("docs/events.md")).unwrap());
    for (name, _) in rows {
        let (noun, verb) = name.split_once('.').unwrap();
        assert!(is_word(noun) && is_word(verb), "{name}");
    }
}
