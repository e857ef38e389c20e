//! What the steps of one scenario share.

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

/// What the scenarios share.
pub(crate) struct Setting {
    /// The servers.
    pub(crate) environment: Environment,
    /// GitHub's webhook payloads, if they could be fetched.
    pub(crate) payloads: Option<Payloads>,
}

tokio::task_local! {
    /// The setting of the run that is under way: cucumber makes worlds out of nothing.
    pub(crate) static SETTING: Rc<Setting>;
}

/// What the steps of one scenario share.
#[derive(Debug, cucumber::World)]
#[world(init = Self::new)]
pub(crate) struct World {
    pub(crate) stage: Stage,
    pub(crate) client: Client,
    /// All answers that a client got, in order.
    pub(crate) answers: Vec<Answer>,
    /// The body that was posted, or produced, last.
    pub(crate) body: Vec<u8>,
    /// The call that a step has found at the third party.
    pub(crate) call: Option<Arc<Call>>,
    /// The record that a step has found on a topic.
    pub(crate) record: Option<Record>,
    /// The delivery that a step has asked for.
    pub(crate) delivery: Option<Value>,
    /// The clients that post without a pause.
    pub(crate) load: Option<Load>,
    /// The program that has ended last, unless it was killed.
    pub(crate) ended: Option<Ended>,
    /// Where the services export to, if they do.
    pub(crate) collector: Option<Collector>,
    /// The spans that a step has found last.
    pub(crate) spans: Vec<Span>,
    /// The bodies of all real payloads that were posted, by the request ids they got.
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

    /// The answer that came last.
    pub(crate) fn answer(&self) -> anyhow::Result<&Answer> {
        self.answers.last().context("no client has asked for anything")
    }

    /// The ids of all requests that were accepted.
    pub(crate) fn accepted(&self) -> Vec<String> {
        self.answers.iter().filter_map(Answer::request_id).collect()
    }

    /// The same, where a step is about nothing if there are none.
    pub(crate) fn some_accepted(&self) -> anyhow::Result<Vec<String>> {
        let accepted = self.accepted();
        ensure!(!accepted.is_empty(), "no request was accepted: {:?}", self.answers);
        Ok(accepted)
    }

    /// The id of the request that the scenario is about: the one accepted last, or, if none was posted,
    /// the one behind the call.
    pub(crate) fn request_id(&self) -> anyhow::Result<String> {
        let called = || Some(self.call.as_ref()?.header("idempotency-key")?.to_owned());
        let id = self.accepted().pop().or_else(called);
        id.ok_or_else(|| anyhow!("there is no request yet, but {:?}", self.answers))
    }

    /// The call that an earlier step has found.
    pub(crate) fn call(&self) -> anyhow::Result<&Call> {
        self.call.as_deref().context("no step has found a call")
    }

    /// The collector that the services export to.
    pub(crate) fn collector(&self) -> anyhow::Result<&Collector> {
        self.collector.as_ref().context("there is no collector")
    }

    /// The record that an earlier step has found.
    pub(crate) fn record(&self) -> anyhow::Result<&Record> {
        self.record.as_ref().context("no step has found a record")
    }
}

/// The setting of the run that is under way.
pub(crate) fn setting() -> Rc<Setting> {
    SETTING.with(Rc::clone)
}

/// What steps return: a failure shows all its causes.
pub(crate) type Step = Result<(), Failure>;

/// Why a step has failed.
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
