//! Verifies the telemetry in the backends.

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

/// Returns all violations.
pub(crate) async fn read(backends: &Backends, scene: &Scene, played: &Played, unseen: usize) -> Vec<String> {
    let time = || Time { from: scene.began, to: Clock::system().now() };
    let mut wrong = Vec::new();
    say("Prometheus: dropped telemetry and alerts");
    wrong.extend(alerts::read(backends, scene, unseen).await);
    say("Tempo: traces");
    wrong.extend(traces::read(backends, played, time).await);
    say("Loki: log lines of a request");
    wrong.extend(logs::read(backends, scene, played, time).await);
    say("all: every query of every panel, variable, data source, rule and alert");
    match queries::read(backends, scene, played, time).await {
        Ok(found) => wrong.extend(found),
        Err(error) => wrong.push(format!("{error:#}")),
    }
    say("Prometheus: exemplars");
    wrong.extend(exemplars::read(backends, time).await);
    wrong
}
