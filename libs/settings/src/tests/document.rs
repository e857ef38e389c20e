//! `docs/configuration.md`, the reference of all settings.

use std::path::Path;

/// Writes the document again before it is compared.
const UPDATE: &str = "UPDATE_DOCS";

#[test]
fn the_document_is_the_current_reference() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let reference = crate::reference().unwrap();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&document, &reference).unwrap();
    }
    let written = std::fs::read_to_string(&document).unwrap_or_default();
    assert!(written == reference, "docs/configuration.md is out of date: run `make reference`");
}

#[test]
fn each_setting_has_a_meaning() {
    let reference = crate::reference().unwrap();
    let rows: Vec<_> = reference.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 60, "{}", rows.len());
    let nameless: Vec<_> = rows.iter().filter(|row| row.contains("|  |")).collect();
    assert!(nameless.is_empty(), "{nameless:?}");
    assert!(!reference.contains("](crate") && !reference.contains("[`"), "a link of rustdoc");
}
