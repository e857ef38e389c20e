//! Access to the paths under `/v1`.

use std::net::{IpAddr, UdpSocket};

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::world::{Running, World};

/// Returns an address of this machine other than its loopback; without one, there is nothing to test.
fn address_in_the_network() -> Option<IpAddr> {
    // Nothing is sent: this finds the address from which it would be.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

async fn ask(ingest: &Running, method: Method, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let mut request = reqwest::Client::new().request(method, format!("{}{path}", ingest.base));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let problem: Value = answer.json().await.unwrap_or_default();
    let kind = problem["type"].as_str().and_then(|kind| kind.rsplit('/').next()).unwrap_or_default();
    (status, kind.to_owned())
}

const REPLAYS: &str = "/v1/replays";

#[tokio::test]
async fn a_page_of_another_origin_cannot_change_anything() {
    for settings in
        ["", "insecure: true", "clients: {operator: {key: the-key-of-the-operator, manage: true}}"]
    {
        let world = World::new(settings);
        let ingest = world.start().await;
        let key = ("authorization", "Bearer the-key-of-the-operator");
        let own = ingest.base.clone();
        for (header, status) in [
            (("sec-fetch-site", "cross-site"), 403),
            (("sec-fetch-site", "same-site"), 403),
            (("origin", "http://evil.example"), 403),
            (("origin", "null"), 403),
            (("sec-fetch-site", "same-origin"), 202),
            (("origin", own.as_str()), 202),
        ] {
            let (answer, problem) = ask(&ingest, Method::POST, REPLAYS, &[key, header]).await;
            assert_eq!(answer, status, "{settings} {header:?}");
            assert_eq!(problem == "cross-origin", status == 403, "{problem}");
            for (method, path) in [
                (Method::DELETE, "/v1/dead-letters?before=2000-01-01T00:00:00Z"),
                (Method::POST, "/v1/replays/1/stop"),
            ] {
                let (answer, _) = ask(&ingest, method, path, &[key, header]).await;
                assert_eq!(answer == 403, status == 403, "{settings} {path} {header:?}");
            }
            // The browser decides what a page of another origin may read.
            let (answer, _) = ask(&ingest, Method::GET, "/v1/dead-letters", &[key, header]).await;
            assert_eq!(answer, 200, "{settings} {header:?}");
        }
        ingest.stop().await;
    }
}

#[tokio::test]
async fn without_clients_management_is_local_unless_insecure_is_set() {
    let Some(address) = address_in_the_network() else { return };
    for (insecure, status, problem) in [(false, 403, "not-local"), (true, 200, "")] {
        let world = World::new(&format!("http: {{address: '0.0.0.0:0'}}\ninsecure: {insecure}"));
        let mut ingest = world.start().await;
        let port = ingest.base.rsplit(':').next().unwrap().to_owned();
        let letters = "/v1/dead-letters";
        ingest.base = format!("http://127.0.0.1:{port}");
        assert_eq!(ask(&ingest, Method::GET, letters, &[]).await.0, 200);
        let rebound = ask(&ingest, Method::GET, letters, &[("host", "evil.example")]).await;
        assert_eq!((rebound.0.as_u16(), rebound.1.as_str()), (status, problem));
        ingest.base = format!("http://{address}:{port}");
        for path in [letters, "/v1/nothing"] {
            let answer = ask(&ingest, Method::GET, path, &[]).await;
            let expected = if insecure && path != letters { (404, "not-found") } else { (status, problem) };
            assert_eq!((answer.0.as_u16(), answer.1.as_str()), expected, "{path}");
        }
        world.accepted(&ingest, "{}").await;
        ingest.stop().await;
    }
}
