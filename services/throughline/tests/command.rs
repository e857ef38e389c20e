//! The `throughline` command, as a person runs it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use throughline_testkit::{Ended, Program, eventually};

const THROUGHLINE: &str = env!("CARGO_BIN_EXE_throughline");
/// For anything that is waited for; the embedded broker alone takes 3 s to form a group.
const DEADLINE: Duration = Duration::from_mins(1);
/// Free ports for all: several of these tests run at once.
const FREE_PORTS: &str = "{http: {address: '127.0.0.1:0'}, dispatch: {address: '127.0.0.1:0'}}";

fn folder(yaml: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("throughline.yaml"), yaml).unwrap();
    folder
}

fn throughline(folder: &TempDir, arguments: &[&str]) -> Program {
    Program::start(Path::new(THROUGHLINE), arguments, folder.path()).unwrap()
}

async fn run(folder: &TempDir, arguments: &[&str]) -> Ended {
    throughline(folder, arguments).ended().await.unwrap()
}

/// `throughline dev`, once it has said where everything listens.
struct Dev {
    program: Program,
    ingest: String,
    sandbox: String,
}

impl Dev {
    async fn start(folder: &TempDir) -> Self {
        let program = throughline(folder, &["dev", "--sandbox", "127.0.0.1:0"]);
        let output = program.output().clone();
        let (ingest, sandbox) = eventually("the addresses", DEADLINE, async || {
            let url = |name| {
                let lines = output.lines();
                let line = lines.iter().find(|line| line.trim_start().starts_with(name))?;
                line.split_whitespace().nth(1).map(str::to_owned)
            };
            url("ingest").zip(url("sandbox")).ok_or_else(|| anyhow::anyhow!(output.text()))
        })
        .await
        .unwrap();
        Self { program, ingest, sandbox }
    }

    /// Posts a request that must be accepted, and gives its id.
    async fn post(&self, body: &Value) -> String {
        let post = reqwest::Client::new().post(format!("{}/one", self.ingest));
        let response =
            post.header("content-type", "application/json").body(body.to_string()).send().await.unwrap();
        assert_eq!(response.status(), 201);
        let answer: Value = response.json().await.unwrap();
        answer["request_id"].as_str().unwrap().to_owned()
    }

    async fn get(url: String) -> anyhow::Result<Value> {
        Ok(reqwest::get(url).await?.json().await?)
    }

    async fn delivered(&self, id: &str) -> Value {
        eventually("the delivery", DEADLINE, async || {
            let status = Self::get(format!("{}/v1/requests/{id}", self.ingest)).await?;
            anyhow::ensure!(status["deliveries"][0]["state"] == "delivered", "{status}");
            Ok(status)
        })
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn dev_sees_a_request_through_and_shows_how_it_ended() {
    let folder = folder(FREE_PORTS);
    let dev = Dev::start(&folder).await;
    let body = json!({ "user_id": "u-1", "data": [{ "key": "k1", "value": "15" }] });
    let id = dev.post(&body).await;
    let status = dev.delivered(&id).await;
    let attempt = &status["deliveries"][0]["attempts"][0];
    assert_eq!((&attempt["number"], &attempt["status"]), (&json!(1), &json!(200)));
    assert_eq!(attempt["trace_id"], status["trace_id"], "one trace");

    let calls = Dev::get(format!("{}/three", dev.sandbox)).await.unwrap();
    assert_eq!(calls[0]["language"], "en");
    assert_eq!(calls[0]["idempotency_key"], id.as_str());
    assert_eq!(calls[0]["body"]["id"], id.as_str());
    assert_eq!(calls[0]["body"]["one_request"], body);

    let output = dev.program.output().clone();
    eventually("the line that shows the delivery", DEADLINE, async || {
        let line = output.lines().into_iter().find(|line| line.starts_with("delivered"));
        line.filter(|line| line.contains(&id)).ok_or_else(|| anyhow::anyhow!(output.text()))
    })
    .await
    .unwrap();
    let ended = dev.program.terminate().await.unwrap();
    assert!(ended.status.success(), "{:?}", ended.output);
}

#[tokio::test]
async fn what_a_killed_dev_left_unfinished_the_next_one_delivers() {
    let folder = folder(FREE_PORTS);
    let dev = Dev::start(&folder).await;
    // The group of dispatch takes its time to form: nothing is delivered so soon.
    let id = dev.post(&json!({})).await;
    dev.program.kill().await.unwrap();
    let next = Dev::start(&folder).await;
    next.delivered(&id).await;
    assert!(next.program.terminate().await.unwrap().status.success());
}

#[tokio::test]
async fn a_taken_port_is_one_line_that_says_what_to_change() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, arguments) in [
        ("--sandbox", vec!["dev", "--sandbox", &address]),
        ("--http", vec!["dev", "--sandbox", "127.0.0.1:0", "--http", &address]),
    ] {
        let ended = run(&folder(FREE_PORTS), &arguments).await;
        assert_eq!(ended.status.code(), Some(1));
        let lines = ended.output.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(&address) && lines[0].contains(flag), "{lines:?}");
        assert_eq!(lines[0].matches("in use").count(), 1, "said once: {lines:?}");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_one_line_that_says_what_to_change() {
    let folder = folder(FREE_PORTS);
    let ended = run(&folder, &["dev", "--sandbox", "127.0.0.1:0", "--data", "throughline.yaml/data"]).await;
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(ended.output.lines().len(), 1, "{:?}", ended.output);
    assert!(ended.output.text().contains("--data"), "{:?}", ended.output);
}

#[tokio::test]
async fn migrate_makes_the_schema_and_says_when_there_is_nothing_to_do() {
    let yaml = "
        database: {url: 'sqlite://migrated.db'}
        kafka: {bootstrap_servers: 'localhost:1'}
        routes: {one: {path: /one, topic: one, destinations: [three]}}
        destinations: {three: {url: 'http://localhost/three'}}";
    let folder = folder(yaml);
    let first = run(&folder, &["migrate"]).await;
    assert!(first.status.success() && first.output.text().contains("applied"), "{:?}", first.output);
    let second = run(&folder, &["migrate"]).await;
    assert_eq!(second.output.text(), "The schema is up to date.");
}

#[tokio::test]
async fn config_check_reports_everything_at_once_and_show_masks_secrets() {
    let broken = folder(
        "{http: {address: nowhere, colour: green}, routes: {one: {path: one, topic: one, destinations: [thre]}}}",
    );
    let checked = run(&broken, &["config", "check"]).await;
    assert_eq!(checked.status.code(), Some(1));
    for path in [
        "http.address",
        "http.colour",
        "routes.one.path",
        "routes.one.destinations",
        "kafka.bootstrap_servers",
    ] {
        assert!(checked.output.text().contains(path), "{path}: {:?}", checked.output);
    }
    let yaml = "
        database: {url: 'postgres://u:s3cret@localhost/db'}
        kafka: {bootstrap_servers: 'localhost:1', properties: {sasl.password: s3cret}}
        routes: {one: {path: /one, topic: one, destinations: [three]}}
        destinations: {three: {url: 'http://localhost/three'}}";
    let shown = run(&folder(yaml), &["config", "show"]).await;
    assert!(shown.status.success(), "{:?}", shown.output);
    assert!(!shown.output.text().contains("s3cret"), "{:?}", shown.output);
    assert!(shown.output.text().contains("throughline.yaml"), "{:?}", shown.output);
}
