//! What the backends have of all that happened.

mod alerts;
mod exemplars;
mod logs;
mod queries;
mod traces;

use throughline_clock::Clock;

use crate::backends::{Backends, Time};
use crate::say;
use crate::scene::Scene;
use crate::script::Played;

/// All that is wrong.
pub(crate) async fn read(backends: &Backends, scene: &Scene, played: &Played, unseen: usize) -> Vec<String> {
    let time = || Time { from: scene.began, to: Clock::system().now() };
    let mut wrong = Vec::new();
    say("Prometheus: what was dropped, and which alerts fire");
    wrong.extend(alerts::read(backends, scene, unseen).await);
    say("Tempo: the traces");
    wrong.extend(traces::read(backends, played, time).await);
    say("Loki: the lines of a request");
    wrong.extend(logs::read(backends, scene, played, time).await);
    say("all: every query of every panel, variable, data source, rule and alert");
    match queries::read(backends, scene, played, time).await {
        Ok(found) => wrong.extend(found),
        Err(error) => wrong.push(format!("{error:#}")),
    }
    say("Prometheus: traces to its graphs");
    wrong.extend(exemplars::read(backends, time).await);
    wrong
}
