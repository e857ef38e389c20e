use std::collections::{BTreeMap, BTreeSet};

use super::assert_none;
use super::markdown::{Block, Document, documents, project};

/// The target of a relative link: its path in the project, and the fragment.
fn target(link: &Block) -> Option<(String, Option<&str>)> {
    if link.text.contains("://") || link.text.starts_with("mailto:") {
        return None;
    }
    let (path, fragment) = match link.text.split_once('#') {
        Some((path, fragment)) => (path, Some(fragment)),
        None => (link.text.as_str(), None),
    };
    if path.is_empty() {
        return Some((link.path.clone(), fragment));
    }
    let mut parts: Vec<_> = link.path.split('/').collect();
    parts.pop();
    for part in path.trim_end_matches('/').split('/') {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some((parts.join("/"), fragment))
}

fn problem(link: &Block, documents: &BTreeMap<String, Document>) -> Option<String> {
    let (path, fragment) = target(link)?;
    if !project().join(&path).exists() {
        return Some(link.problem(format!("the link leads nowhere: {}", link.text)));
    }
    let fragment = fragment?;
    let has_heading = documents.get(&path).is_some_and(|document| document.anchors.contains(fragment));
    (!has_heading).then(|| link.problem(format!("no heading in {path} has this anchor: {}", link.text)))
}

#[test]
fn every_link_in_the_documents_leads_to_a_file_and_a_heading() {
    let documents = documents();
    let links = documents.values().flat_map(|document| &document.links);
    let problems: Vec<_> = links.filter_map(|link| problem(link, &documents)).collect();
    assert_none(&problems);
}

#[test]
fn links_lead_from_the_readme_to_every_document() {
    let documents = documents();
    let mut found = BTreeSet::new();
    let mut next = vec!["README.md".to_owned()];
    while let Some(path) = next.pop() {
        if let Some(document) = documents.get(&path)
            && found.insert(path)
        {
            let targets = document.links.iter().filter_map(target).map(|(path, _)| path);
            // A link to a folder leads to the documents in it.
            next.extend(targets.flat_map(|path| {
                let folder = format!("{path}/");
                let inside = move |name: &&String| name.starts_with(&folder);
                let below: Vec<_> = documents.keys().filter(inside).cloned().collect();
                below.into_iter().chain([path])
            }));
        }
    }
    let missing = documents.keys().filter(|path| !found.contains(*path));
    let problems: Vec<_> = missing.map(|path| format!("{path}: no link leads here from README.md")).collect();
    assert_none(&problems);
}
