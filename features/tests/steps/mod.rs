//! The steps of the features.

#![expect(clippy::needless_pass_by_value, reason = "cucumber passes the arguments of a step by value")]

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

/// Deadline for the effect of a step. Most effects take less than a second; but a consumer group needs some
/// 10 s to notice a lost member, and other scenarios may keep the machine busy.
const DEADLINE: Duration = Duration::from_mins(1);

/// The text below a step, without surrounding line breaks.
fn text(step: &gherkin::Step) -> String {
    step.docstring().map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The rows below a step.
fn rows(step: &gherkin::Step) -> &[Vec<String>] {
    step.table().map(|table| &table.rows[..]).unwrap_or_default()
}
