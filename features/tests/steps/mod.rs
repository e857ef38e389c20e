//! What the sentences of the features mean.

#![expect(clippy::needless_pass_by_value, reason = "cucumber hands over the words of a sentence by value")]

mod admitting;
mod adopting;
mod asking;
mod calls;
mod explaining;
mod posting;
mod programs;
mod real_input;
mod records;
mod refused;
mod retaining;
mod retrying;
mod starting;
mod tracing;

use std::time::Duration;

use cucumber::gherkin;

/// For whatever is to happen next. It mostly happens within a second; a consumer group that has lost a
/// member needs some 10 s to notice, and the machine may be busy with other scenarios.
const DEADLINE: Duration = Duration::from_mins(1);

/// The text below a step, without the line breaks that surround it.
fn text(step: &gherkin::Step) -> String {
    step.docstring().map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The rows below a step.
fn rows(step: &gherkin::Step) -> &[Vec<String>] {
    step.table().map(|table| &table.rows[..]).unwrap_or_default()
}
