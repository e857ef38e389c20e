//! The `throughline` command, run as a program; and the documents, whose commands it must accept.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod documents;

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use throughline_store as store;
use throughline_store::{ConnectionTrait as _, Store};
use throughline_testkit::{Collector, Ended, Output, Program, eventually, unmeasured};

const THROUGHLINE: &str = env!("CARGO_BIN_EXE_throughline");
/// Maximum time to wait for any condition; the embedded broker alone takes 3 s to form a group.
const DEADLINE: Duration = Duration::from_mins(1);
/// Free ports for all listeners: several of these tests run concurrently.
const FREE_PORTS: &str =
    "{http: {address: '127.0.0.1:0', health_address: '127.0.0.1:0'}, dispatch: {address: '127.0.0.1:0'}}";

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

/// `throughline dev`, after it has printed its addresses.
struct Dev {
    program: Program,
    ingest: String,
    sandbox: String,
}

impl Dev {
    async fn start(folder: &TempDir) -> Self {
        Self::start_with(folder, &[]).await
    }

    async fn start_with(folder: &TempDir, environment: &[(&str, String)]) -> Self {
        let arguments = ["dev", "--sandbox", "127.0.0.1:0"];
        let program =
            Program::start_with(Path::new(THROUGHLINE), &arguments, environment, folder.path()).unwrap();
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

    /// Posts a request that must be accepted, and returns its id.
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
async fn dev_delivers_a_request_and_prints_the_outcome() {
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
async fn dev_exports_the_telemetry_of_both_services_as_one_service() {
    let collector = Collector::open().unwrap();
    let folder = folder(FREE_PORTS);
    let dev = Dev::start_with(&folder, &collector.variables()).await;
    let id = dev.post(&json!({ "user_id": "u-1" })).await;
    let trace = dev.delivered(&id).await["trace_id"].as_str().unwrap().to_owned();
    let ended = dev.program.terminate().await.unwrap();
    assert!(ended.status.success(), "{:?}", ended.output);

    let all = collector.spans();
    let spans: Vec<_> = all.iter().filter(|span| span.trace_id == trace).collect();
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    let topic = "one-request-local";
    assert_eq!(names, ["POST", "POST", "POST /one", &format!("process {topic}"), &format!("send {topic}")]);
    assert!(spans.iter().all(|span| span.resource["service.name"] == "throughline"), "{spans:#?}");
    for metric in ["throughline.requests.accepted", "throughline.attempts"] {
        assert_eq!(collector.value(metric, &[]).unwrap(), 1, "{metric}");
    }
}

#[tokio::test]
async fn dead_letters_are_listed_shown_replayed_and_purged_from_the_terminal() {
    // The sandbox answers every call with 200, which this destination treats as final failure.
    let folder = folder(&FREE_PORTS.replace("}}", "}, destinations: {three: {statuses: {200: dead}}}}"));
    let dev = Dev::start(&folder).await;
    let id = dev.post(&json!({ "user_id": "u-1" })).await;
    let ask = async |arguments: &[&str]| {
        let ended = run(&folder, &[&["dead-letters", "--server", &dev.ingest], arguments].concat()).await;
        (ended.status.success(), ended.output.text())
    };
    let listed = async || {
        let (_, text) = ask(&["list", "--destination", "three", "--reason", "rejected"]).await;
        let line = text.lines().find(|line| line.contains(&id)).map(str::to_owned);
        line.ok_or_else(|| anyhow::anyhow!("{text:?}"))
    };
    let line = eventually("the dead letter", DEADLINE, listed).await.unwrap();
    assert!(line.contains("three  rejected  attempts=1  200 OK"), "{line}");

    let (_, shown) = ask(&["show", &id]).await;
    assert!(shown.contains(r#""state": "dead""#) && shown.ends_with(r#"{"user_id":"u-1"}"#), "{shown}");
    let (is_well, replayed) = ask(&["replay", &id, "three"]).await;
    assert!(is_well && replayed.contains(&id), "{replayed}");
    eventually("the second attempt", DEADLINE, async || {
        let line = listed().await?;
        anyhow::ensure!(line.contains("attempts=2"), "{line}");
        Ok(())
    })
    .await
    .unwrap();
    let (is_well, replayed) = ask(&["replay", "--all", "--rate", "10/s"]).await;
    assert!(is_well && replayed.ends_with("is done: 1 replayed"), "{replayed}");
    eventually("the third attempt", DEADLINE, async || {
        let line = listed().await?;
        anyhow::ensure!(line.contains("attempts=3"), "{line}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(ask(&["purge", "--before", "2200-01-01T00:00:00Z"]).await, (true, "purged 1".to_owned()));
    assert_eq!(ask(&["list"]).await, (true, String::new()));

    let (is_well, refused) = ask(&["list", "--since", "yesterday"]).await;
    assert!(!is_well && refused.contains("--since <SINCE>': must be a time"), "{refused}");
    let refused = run(&folder, &["dead-letters", "--server", "http://127.0.0.1:1", "list"]).await;
    assert!(refused.output.text().contains("--server") && !refused.status.success(), "{:?}", refused.output);
}

#[tokio::test]
async fn explain_prints_the_history_and_the_state_of_a_request() {
    let folder = folder(FREE_PORTS);
    let dev = Dev::start(&folder).await;
    let id = dev.post(&json!({ "user_id": "u-1" })).await;
    dev.delivered(&id).await;
    let explain = async |server: &str, id: &str| {
        let ended = run(&folder, &["explain", "--server", server, id]).await;
        (ended.status.code(), ended.output.lines())
    };
    let (code, explanation) = explain(&dev.ingest, &id).await;
    assert_eq!((code, explanation.len()), (Some(0), 4), "{explanation:?}");
    for (line, words) in explanation.iter().zip([
        " UTC  accepted on route `one` by node 0: 17 bytes of application/json [trace ",
        " UTC  three: attempt 1, from record ",
        " UTC  three: delivered",
        "three: delivered. The third party accepted it. This is final.",
    ]) {
        assert!(line.contains(words), "{words}: {explanation:?}");
    }

    let (code, refused) = explain(&dev.ingest, "00000000000000000042").await;
    assert_eq!((code, refused.len()), (Some(1), 1), "{refused:?}");
    assert!(
        refused[0].contains("404 Not Found: Request or delivery not found. No request has the id"),
        "{refused:?}"
    );
    let (code, refused) = explain("http://127.0.0.1:1", &id).await;
    assert!(code == Some(1) && refused[0].contains("--server"), "{refused:?}");
}

#[tokio::test]
async fn the_next_dev_delivers_requests_that_a_killed_dev_left_unfinished() {
    let folder = folder(FREE_PORTS);
    let dev = Dev::start(&folder).await;
    // The consumer group of dispatch takes seconds to form, so nothing is delivered yet.
    let id = dev.post(&json!({})).await;
    dev.program.kill().await.unwrap();
    let next = Dev::start(&folder).await;
    next.delivered(&id).await;
    assert!(next.program.terminate().await.unwrap().status.success());
}

#[tokio::test]
async fn a_port_in_use_is_reported_in_one_line_with_the_option_to_change() {
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
async fn an_unwritable_folder_is_reported_in_one_line_with_the_option_to_change() {
    let folder = folder(FREE_PORTS);
    let ended = run(&folder, &["dev", "--sandbox", "127.0.0.1:0", "--data", "throughline.yaml/data"]).await;
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(ended.output.lines().len(), 1, "{:?}", ended.output);
    assert!(ended.output.text().contains("--data"), "{:?}", ended.output);
}

/// Runs `throughline dev` as a user without write permission for the folder.
async fn run_unprivileged(folder: &TempDir) -> Ended {
    // That user may have no access to the folder of the executable.
    let executable = folder.path().join("throughline");
    let linked = std::fs::hard_link(THROUGHLINE, &executable);
    linked.or_else(|_| std::fs::copy(THROUGHLINE, &executable).map(drop)).unwrap();
    set_mode(folder.path(), 0o555);
    let arguments = ["dev", "--sandbox", "127.0.0.1:0"];
    let program = Program::start_unprivileged(&executable, &arguments, folder.path()).unwrap();
    let ended = program.ended().await.unwrap();
    // Otherwise the folder cannot be removed.
    set_mode(folder.path(), 0o755);
    ended
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_missing_write_permission_is_reported_in_one_line_with_the_change_to_make() {
    const FILE: &str = ".throughline/throughline.db";
    let nothing_there: fn(&Path) = |_| {};
    let empty_folder: fn(&Path) = |folder| {
        std::fs::create_dir(folder.join(".throughline")).unwrap();
        set_mode(&folder.join(".throughline"), 0o555);
    };
    let read_only_file: fn(&Path) = |folder| {
        std::fs::create_dir(folder.join(".throughline")).unwrap();
        std::fs::write(folder.join(FILE), "").unwrap();
        set_mode(&folder.join(FILE), 0o444);
        set_mode(&folder.join(".throughline"), 0o777);
    };
    let read_only_folder: fn(&Path) = |folder| {
        std::fs::create_dir(folder.join(".throughline")).unwrap();
        std::fs::write(folder.join(FILE), "").unwrap();
        set_mode(&folder.join(FILE), 0o666);
        set_mode(&folder.join(".throughline"), 0o555);
    };
    for (prepare, named, advice) in [
        (nothing_there, ".throughline;", "--data"),
        (empty_folder, FILE, "create its folder and make it writable"),
        (read_only_file, FILE, "make it writable"),
        (read_only_folder, FILE, "create its folder and make it writable"),
    ] {
        let folder = folder(FREE_PORTS);
        prepare(folder.path());
        let ended = run_unprivileged(&folder).await;
        assert_eq!(ended.status.code(), Some(1), "{:?}", ended.output);
        let lines = ended.output.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(named) && lines[0].contains(advice), "{lines:?}");
        let data = folder.path().join(".throughline");
        if data.exists() {
            set_mode(&data, 0o755);
        }
    }
}

#[tokio::test]
async fn migrate_creates_the_schema_and_reports_when_it_is_up_to_date() {
    let yaml = "
        database: {url: 'sqlite://migrated.db'}
        kafka: {bootstrap_servers: 'localhost:1'}
        routes: {one: {path: /one, topic: one, destinations: [three]}}
        destinations: {three: {url: 'http://localhost/three'}}";
    let folder = folder(yaml);
    let first = run(&folder, &["migrate"]).await;
    assert!(first.status.success() && first.output.text().contains("Applied"), "{:?}", first.output);
    let second = run(&folder, &["migrate"]).await;
    assert_eq!(second.output.text(), "The schema is up to date.");
}

const STORED: &str = "
    database: {url: 'sqlite://stored.db'}
    kafka: {bootstrap_servers: 'localhost:1'}
    routes: {one: {path: /one, topic: one, destinations: [three]}}
    destinations: {three: {url: 'http://localhost/three'}}
    retention: {delivered: 1h, dead: 9years}";

/// A database with requests of 2025, from 1 to `last`; the first one's delivery has not ended, the second one's is
/// dead, all others are delivered.
async fn stored(folder: &TempDir, last: u32) -> Store {
    assert!(run(folder, &["migrate"]).await.status.success());
    let url = format!("sqlite://{}", folder.path().join("stored.db").display());
    let settings = store::Settings { url: url.as_str().into(), ..store::Settings::default() };
    let store = Store::connect(&settings, &unmeasured()).await.unwrap();
    let numbers =
        format!("WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < {last})");
    let time = "'2025-01-01T00:00:00.000000+00:00'";
    for sql in [
        format!(
            "{numbers} INSERT INTO requests (id, route, body, content_type, headers, accepted_at) \
             SELECT id, 'one', x'7b7d', 'application/json', '[]', {time} FROM n"
        ),
        format!(
            "{numbers} INSERT INTO deliveries (request_id, destination, state, attempts, window_started_at, due_at, \
             reason, updated_at) SELECT id, 'three', CASE id WHEN 1 THEN 'pending' WHEN 2 THEN 'dead' ELSE 'delivered' \
             END, 1, {time}, CASE id WHEN 1 THEN {time} END, CASE id WHEN 2 THEN 'rejected' END, {time} FROM n"
        ),
        format!(
            "{numbers} INSERT INTO attempts (request_id, destination, number, started_at, duration_ms, outcome) \
             SELECT id, 'three', 1, {time}, 1, 'delivered' FROM n"
        ),
    ] {
        store.connection().execute_unprepared(&sql).await.unwrap();
    }
    store
}

#[tokio::test]
async fn purge_deletes_requests_past_their_retention_and_reports_the_counts() {
    let folder = folder(STORED);
    stored(&folder, 5).await.close().await;
    let purge = async |arguments: &[&str]| {
        let ended = run(&folder, &[&["purge"], arguments].concat()).await;
        assert_eq!(ended.status.code(), Some(0), "{:?}", ended.output);
        ended.output.lines()
    };
    let lines = purge(&["--dry-run"]).await;
    assert!(lines[0].starts_with("cutoff: delivered or cancelled before 20"), "{lines:?}");
    let oldest = "oldest request: 00000000000000000001, created at 2024-01-01 00:00:00 UTC";
    assert_eq!(lines[1..], ["would be purged: requests: 3, deliveries: 3, attempts: 3", oldest]);
    for requests in [3, 0] {
        let purged = format!(
            "purged: requests: {requests}, deliveries: {requests}, attempts: {requests}, \
             expired idempotency keys: 0, replays: 0"
        );
        assert_eq!(purge(&[]).await[1..], [purged.as_str(), oldest]);
    }
}

#[tokio::test]
async fn an_interrupted_purge_reports_its_counts_and_the_next_purge_continues() {
    let folder = folder(STORED);
    let store = stored(&folder, 5002).await;
    // While another session writes, the purge does not begin.
    let writing = store.begin().await.unwrap();
    let purge = throughline(&folder, &["purge"]);
    let output = purge.output().clone();
    eventually("the first line", DEADLINE, async || {
        anyhow::ensure!(output.text().starts_with("cutoff: "), "{output:?}");
        Ok(())
    })
    .await
    .unwrap();
    let (ended, ()) = tokio::join!(purge.terminate(), async { writing.commit().await.unwrap() });
    let ended = ended.unwrap();
    assert_eq!(ended.status.code(), Some(1), "{:?}", ended.output);
    assert!(ended.output.text().contains("interrupted before everything was deleted"), "{:?}", ended.output);
    let next = run(&folder, &["purge"]).await;
    assert!(next.status.success(), "{:?}", next.output);
    assert_eq!(purged(&ended.output) + purged(&next.output), 5000);
    assert!(purged(&next.output) > 0, "{:?}", next.output);
}

#[tokio::test]
async fn a_purge_stops_cleanly_when_its_time_has_passed() {
    let folder = folder(STORED);
    stored(&folder, 5002).await.close().await;
    let ended = run(&folder, &["purge", "--for", "1ms"]).await;
    assert_eq!(ended.status.code(), Some(0), "{:?}", ended.output);
    assert!(
        ended.output.text().contains("stopped by --for before everything was deleted"),
        "{:?}",
        ended.output
    );
    let next = run(&folder, &["purge", "--for", "1h"]).await;
    assert!(next.status.success() && !next.output.text().contains("stopped by --for"), "{:?}", next.output);
    assert_eq!(purged(&ended.output) + purged(&next.output), 5000);
    assert!(purged(&next.output) > 0, "{:?}", next.output);
}

/// Returns the number of requests that a purge reports as deleted.
fn purged(output: &Output) -> u32 {
    let line = output.lines().into_iter().find(|line| line.starts_with("purged: "));
    let line = line.unwrap_or_else(|| panic!("{output:?}"));
    line.split(&[' ', ',']).nth(2).unwrap().parse().unwrap()
}

#[tokio::test]
async fn config_check_reports_all_errors_and_show_masks_secrets() {
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
