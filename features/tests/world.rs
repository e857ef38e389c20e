//! The state that the steps of a scenario share.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, ensure};
use serde_json::Value;
use throughline_kafka::Record;
use throughline_testkit::{Call, Collector, Ended, Environment, Span, Stage};

use crate::client::{Answer, Client};
use crate::load::Load;
use crate::octokit::Payloads;

/// The state that all scenarios of a run share.
pub(crate) struct Setting {
    /// The servers.
    pub(crate) environment: Environment,
    /// GitHub's webhook payloads, if they could be fetched.
    pub(crate) payloads: Option<Payloads>,
}

tokio::task_local! {
    /// The setting of the current run, because cucumber creates worlds without arguments.
    pub(crate) static SETTING: Rc<Setting>;
}

/// The state that the steps of a scenario share.
#[derive(Debug, cucumber::World)]
#[world(init = Self::new)]
pub(crate) struct World {
    pub(crate) stage: Stage,
    pub(crate) client: Client,
    /// All responses to clients, in order.
    pub(crate) answers: Vec<Answer>,
    /// The last body that was posted or produced.
    pub(crate) body: Vec<u8>,
    /// The call at the third party that a step found.
    pub(crate) call: Option<Arc<Call>>,
    /// The record on a topic that a step found.
    pub(crate) record: Option<Record>,
    /// The delivery that a step queried.
    pub(crate) delivery: Option<Value>,
    /// The clients that post continuously.
    pub(crate) load: Option<Load>,
    /// The last program that exited without being killed.
    pub(crate) ended: Option<Ended>,
    /// The collector to which the services export, if any.
    pub(crate) collector: Option<Collector>,
    /// The spans that the last step found.
    pub(crate) spans: Vec<Span>,
    /// The bodies of all posted real payloads, by request id.
    pub(crate) posted: Vec<(String, Vec<u8>)>,
}

impl World {
    async fn new() -> anyhow::Result<Self> {
        Ok(Self {
            stage: Stage::set(&setting().environment).await?,
            client: Client::new()?,
            answers: Vec::new(),
            body: Vec::new(),
            call: None,
            record: None,
            delivery: None,
            load: None,
            ended: None,
            collector: None,
            spans: Vec::new(),
            posted: Vec::new(),
        })
    }

    /// The last response.
    pub(crate) fn answer(&self) -> anyhow::Result<&Answer> {
        self.answers.last().context("no client has sent a request")
    }

    /// The ids of all requests that were accepted.
    pub(crate) fn accepted(&self) -> Vec<String> {
        self.answers.iter().filter_map(Answer::request_id).collect()
    }

    /// The same, but fails if there are none, because the step would then test nothing.
    pub(crate) fn some_accepted(&self) -> anyhow::Result<Vec<String>> {
        let accepted = self.accepted();
        ensure!(!accepted.is_empty(), "no request was accepted: {:?}", self.answers);
        Ok(accepted)
    }

    /// The id of the scenario's request: the last accepted one, or if none was posted, that of the call.
    pub(crate) fn request_id(&self) -> anyhow::Result<String> {
        let called = || Some(self.call.as_ref()?.header("idempotency-key")?.to_owned());
        let id = self.accepted().pop().or_else(called);
        id.ok_or_else(|| anyhow!("no request was accepted; responses: {:?}", self.answers))
    }

    /// The call that an earlier step found.
    pub(crate) fn call(&self) -> anyhow::Result<&Call> {
        self.call.as_deref().context("no earlier step found a call")
    }

    /// The collector that the services export to.
    pub(crate) fn collector(&self) -> anyhow::Result<&Collector> {
        self.collector.as_ref().context("the scenario has no collector")
    }

    /// The record that an earlier step found.
    pub(crate) fn record(&self) -> anyhow::Result<&Record> {
        self.record.as_ref().context("no earlier step found a record")
    }
}

/// The setting of the current run.
pub(crate) fn setting() -> Rc<Setting> {
    SETTING.with(Rc::clone)
}

/// The result of a step; an error shows all its causes.
pub(crate) type Step = Result<(), Failure>;

/// The error of a step.
pub(crate) struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}
