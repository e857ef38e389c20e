use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dead_letter::DeadLetterFilter;

/// The parameters of a new replay, beside its filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NewReplay {
    /// Replay rate, for example `10/s` (default `100/s`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,8}/([1-9][0-9]{0,3})?(ms|s|min|h)$"))]
    pub rate: Option<String>,
}

/// Identifies a replay in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayPath {
    /// The `replay_id`.
    #[schemars(range(min = 1))]
    pub id: i64,
}

/// The progress of a replay, and the filter for its dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Replay {
    /// Its number.
    pub replay_id: i64,
    /// Whether it runs.
    pub state: ReplayState,
    /// Number of dead letters that it has taken.
    pub replayed: u64,
    /// Its rate, for example `10/s`.
    pub rate: String,
    /// The dead letters that it takes.
    #[serde(flatten)]
    pub filter: DeadLetterFilter,
}

/// The state of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ReplayState {
    /// It takes dead letters at its rate.
    Running,
    /// It has taken all dead letters that match.
    Done,
    /// It was stopped.
    Stopped,
}

impl ReplayState {
    /// Returns the state's name, as in responses and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
        }
    }
}
