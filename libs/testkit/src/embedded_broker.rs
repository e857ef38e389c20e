use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use crate::programs::Programs;

/// librdkafka's mock cluster in a process of its own; see `bin/embedded-broker.rs` for the reason.
pub(crate) struct EmbeddedBroker {
    bootstrap_servers: String,
    conversation: Mutex<Conversation>,
    /// Killed when dropped.
    _process: Child,
}

struct Conversation {
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl EmbeddedBroker {
    pub(crate) async fn start(programs: &Programs) -> anyhow::Result<Self> {
        let program = programs.path("embedded-broker");
        let mut process = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let orders = process.stdin.take().context("no stdin")?;
        let answers = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        let mut conversation = Conversation { orders, answers };
        let bootstrap_servers = conversation.answer().await?;
        Ok(Self { bootstrap_servers, conversation: Mutex::new(conversation), _process: process })
    }

    pub(crate) fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    pub(crate) async fn create_topics(&self, names: &[String]) -> anyhow::Result<()> {
        self.order(&format!("topics {}", names.join(" "))).await
    }

    pub(crate) async fn go_away(&self) -> anyhow::Result<()> {
        self.order("go away").await
    }

    pub(crate) async fn come_back(&self) -> anyhow::Result<()> {
        self.order("come back").await
    }

    async fn order(&self, order: &str) -> anyhow::Result<()> {
        let mut conversation = self.conversation.lock().await;
        conversation.orders.write_all(format!("{order}\n").as_bytes()).await?;
        let answer = conversation.answer().await?;
        ensure!(answer == "done", "the embedded broker was to `{order}`, and said `{answer}`");
        Ok(())
    }
}

impl Conversation {
    async fn answer(&mut self) -> anyhow::Result<String> {
        self.answers.next_line().await?.context("the embedded broker has ended")
    }
}
