use serde_json::{Value, json};
use throughline_messages::{DeadReason, Outcome, RetryRecord};
use throughline_snowflake::RequestId;

use crate::recording::{failure, report, reported};
use crate::world::{Running, World};

/// Posts requests that end dead, and returns them.
async fn dead(world: &World, ingest: &Running, count: usize) -> Vec<RequestId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let request_id = world.accepted(ingest, r#"{"a": 1}"#).await;
        let outcome = Outcome::Dead { reason: DeadReason::Rejected, failure: failure("400 Bad Request") };
        reported(world, &report(request_id, request_id.created_at(), outcome)).await;
        world.status_when(ingest, request_id, |status| status["deliveries"][0]["state"] == "dead").await;
        ids.push(request_id);
    }
    ids
}

async fn ask(world: &World, ingest: &Running, method: &str, path: &str) -> (u16, Value) {
    let method = method.parse().unwrap();
    let response = world.http.request(method, format!("{}{path}", ingest.base)).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn ids(page: &Value) -> Vec<String> {
    let letters = page["dead_letters"].as_array().unwrap();
    letters.iter().map(|letter| letter["request_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn dead_letters_are_listed_shown_replayed_and_purged() {
    let world = World::new("");
    let ingest = world.start().await;
    let dead: Vec<String> = dead(&world, &ingest, 3).await.iter().rev().map(ToString::to_string).collect();

    let (status, page) = ask(&world, &ingest, "GET", "/v1/dead-letters?route=one&limit=2").await;
    assert_eq!((status, ids(&page)), (200, dead[..2].to_vec()));
    let next = page["next"].as_str().unwrap();
    let (_, page) = ask(&world, &ingest, "GET", &format!("/v1/dead-letters?cursor={next}")).await;
    assert_eq!((ids(&page), page.get("next")), (dead[2..].to_vec(), None));
    let letter = &page["dead_letters"][0];
    assert_eq!((&letter["destination"], &letter["reason"]), (&json!("three"), &json!("rejected")));
    assert_eq!((&letter["status"], &letter["response_excerpt"]), (&json!(400), &json!("no")));

    let body = world.http.get(format!("{}/v1/requests/{}/body", ingest.base, dead[0])).send().await.unwrap();
    assert_eq!(body.headers()["content-type"], "application/json");
    assert_eq!(body.text().await.unwrap(), r#"{"a": 1}"#);

    let replay = format!("/v1/dead-letters/{}/three/replay", dead[0]);
    let (status, replayed) = ask(&world, &ingest, "POST", &replay).await;
    assert_eq!((status, &replayed["deliveries"][0]["state"]), (200, &json!("pending")));
    let retry = world.records(&world.topics().retries, 1).await.remove(0);
    let retry = RetryRecord::from_headers(&retry.headers).unwrap();
    assert_eq!(
        (retry.request.id.to_string(), retry.attempt, retry.counted_attempts),
        (dead[0].clone(), 2, 0)
    );
    let (status, problem) = ask(&world, &ingest, "POST", &replay).await;
    assert_eq!((status, &problem["type"]), (409, &json!("https://throughline.dev/problems/not-dead")));

    let purge = "/v1/dead-letters?destination=three&before=2100-01-01T00:00:00Z";
    let (status, purged) = ask(&world, &ingest, "DELETE", purge).await;
    assert_eq!((status, &purged["purged"]), (200, &json!(2)));
    assert_eq!(ids(&ask(&world, &ingest, "GET", "/v1/dead-letters").await.1), Vec::<String>::new());
    ingest.stop().await;
}

#[tokio::test]
async fn a_replay_continues_where_it_stopped_after_ingest_restarts() {
    let world = World::new("");
    let ingest = world.start().await;
    let dead = dead(&world, &ingest, 3).await;
    let (status, replay) = ask(&world, &ingest, "POST", "/v1/replays?reason=rejected&rate=1/2s").await;
    assert_eq!((status, &replay["rate"]), (202, &json!("1/2s")));
    let path = format!("/v1/replays/{}", replay["replay_id"]);
    world.records(&world.topics().retries, 1).await;
    ingest.stop().await;

    let ingest = world.start().await;
    let retries = world.records(&world.topics().retries, 3).await;
    let mut replayed: Vec<_> =
        retries.iter().map(|retry| RetryRecord::from_headers(&retry.headers).unwrap().request.id).collect();
    replayed.sort_unstable();
    assert_eq!(replayed, dead);
    throughline_testkit::eventually("the end of the replay", crate::world::DEADLINE, async || {
        let (_, replay) = ask(&world, &ingest, "GET", &path).await;
        anyhow::ensure!(replay["state"] == "done" && replay["replayed"] == 3, "{replay}");
        Ok(())
    })
    .await
    .unwrap();
    ingest.stop().await;
}

#[tokio::test]
async fn an_invalid_query_has_no_effect() {
    let world = World::new("");
    let ingest = world.start().await;
    let table = [
        ("GET", "/v1/dead-letters?destinaton=three", 400, "query-invalid"),
        ("GET", "/v1/dead-letters?limit=many", 400, "query-invalid"),
        ("GET", "/v1/dead-letters?cursor=7", 400, "query-invalid"),
        ("DELETE", "/v1/dead-letters", 400, "query-invalid"),
        ("DELETE", "/v1/dead-letters?before=yesterday", 400, "query-invalid"),
        ("POST", "/v1/replays?rate=fast", 400, "query-invalid"),
        ("GET", "/v1/replays/1", 404, "replay-unknown"),
        ("POST", "/v1/replays/x/stop", 404, "replay-unknown"),
        ("DELETE", "/v1/replays/1", 405, "method-not-allowed"),
        ("GET", "/v1/dead-letters?limit=501", 400, "query-invalid"),
        ("GET", "/v1/dead-letters?limit=0", 400, "query-invalid"),
        ("GET", "/v1/dead-letters?route=%00", 400, "query-invalid"),
        ("POST", "/v1/dead-letters/00000000000000000042/%00/replay", 404, "request-unknown"),
        ("PUT", "/v1/dead-letters", 405, "method-not-allowed"),
        ("GET", "/v1/requests/00000000000000000042/body", 404, "request-unknown"),
    ];
    for (method, path, status, problem) in table {
        let (got, answer) = ask(&world, &ingest, method, path).await;
        let problem = json!(format!("https://throughline.dev/problems/{problem}"));
        assert_eq!((got, &answer["type"]), (status, &problem), "{method} {path}: {answer}");
    }
    ingest.stop().await;
}
