//! The management API under `/v1`: queries, explains and cancels requests; lists, replays and purges dead letters.
//!
//! Each resource is described by the types of its handlers, which `throughline_api` declares.

mod accept_header;
mod dead_letters;
mod explain;
mod explanation;
mod replays;
mod requests;

use throughline_settings::Settings;

use self::explanation::Explainer;
use crate::http::Resource;
use crate::sweeper::Operations;

/// Returns the resources of the API.
pub(crate) fn resources(settings: &Settings, operations: &Operations) -> Vec<Resource> {
    let explanation = explanation::resource().with_state(Explainer::new(settings, operations));
    let of_operations =
        requests::resources().into_iter().chain(dead_letters::resources()).chain(replays::resources());
    of_operations.map(|resource| resource.with_state(operations.clone())).chain([explanation]).collect()
}
