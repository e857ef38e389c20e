use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::{Client, Method};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use wiremock::http::{HeaderMap, HeaderName, HeaderValue};

use super::{Answer, CLIENT_ID, CLIENT_SECRET, Call};

/// The timeout of a call to the administration API.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The prefix of every token.
const TOKEN: &str = "token-";

/// Priorities of stubs: the smallest is tried first. Of two stubs with the same priority, WireMock tries the newer
/// one first, so its stubs from files, which start at 1, are tried after all of these.
const IN_TURN: i32 = -2;
const CONFIGURED: i32 = -1;
const USUAL: i32 = 0;
const REFUSED: i32 = 1;
const OTHERS: i32 = 2;

/// A WireMock server, controlled through its administration API (wiremock.org/docs/standalone/admin-api-reference).
pub(super) struct Remote {
    client: Client,
    url: String,
    for_others: String,
    /// The configured answers, by path.
    configured: Mutex<HashMap<String, Configured>>,
}

#[derive(Default)]
struct Configured {
    /// The id of the stub for every call from now on.
    always: Option<String>,
    /// The number of answers configured in turn.
    in_turn: usize,
}

/// WireMock's record of a call.
#[derive(Deserialize)]
struct Event {
    request: Asked,
    response: Answered,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    url: String,
    headers: HashMap<String, OneOrMany>,
    body_as_base64: String,
}

#[derive(Deserialize)]
struct Answered {
    status: u16,
    #[serde(default)]
    body: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Remote {
    /// Removes all configured answers and recorded calls.
    pub(super) async fn reset(url: &str, for_others: &str) -> anyhow::Result<Self> {
        let client = Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        let remote = Self {
            client,
            url: url.to_owned(),
            for_others: for_others.to_owned(),
            configured: Mutex::default(),
        };
        remote.ask(Method::POST, "reset", None).await?;
        for stub in usual() {
            remote.ask(Method::POST, "mappings", Some(stub)).await?;
        }
        Ok(remote)
    }

    pub(super) fn url(&self) -> String {
        self.for_others.clone()
    }

    pub(super) async fn answer(&self, path: &str, answer: Answer) -> anyhow::Result<()> {
        let mut configured = self.configured.lock().await;
        let configured = configured.entry(path.to_owned()).or_default();
        self.forget(configured).await?;
        let stub = json!({"priority": CONFIGURED, "request": posted(path), "response": response(answer)});
        let stub = self.ask(Method::POST, "mappings", Some(stub)).await?;
        configured.always = Some(stub["id"].as_str().context("a stub without id")?.to_owned());
        Ok(())
    }

    /// Uses a WireMock scenario for each path: each answer leads to the next state; the last state has no answer.
    pub(super) async fn answer_in_turn(&self, path: &str, answers: Vec<Answer>) -> anyhow::Result<()> {
        let mut configured = self.configured.lock().await;
        let configured = configured.entry(path.to_owned()).or_default();
        for answer in answers {
            let state = |turn: usize| if turn == 0 { "Started".to_owned() } else { turn.to_string() };
            let stub = json!({
                "priority": IN_TURN,
                "scenarioName": path,
                "requiredScenarioState": state(configured.in_turn),
                "newScenarioState": state(configured.in_turn + 1),
                "request": posted(path),
                "response": response(answer),
            });
            self.ask(Method::POST, "mappings", Some(stub)).await?;
            configured.in_turn += 1;
        }
        Ok(())
    }

    pub(super) async fn answer_as_usual(&self, path: &str) -> anyhow::Result<()> {
        match self.configured.lock().await.get_mut(path) {
            Some(configured) => self.forget(configured).await,
            None => Ok(()),
        }
    }

    async fn forget(&self, configured: &mut Configured) -> anyhow::Result<()> {
        if let Some(stub) = configured.always.take() {
            self.ask(Method::DELETE, &format!("mappings/{stub}"), None).await?;
        }
        Ok(())
    }

    pub(super) async fn calls(&self) -> anyhow::Result<Vec<Arc<Call>>> {
        let is_call = |event: &Event| match event.request.url.as_str() {
            "/token" => false,
            "/three" => event.response.status != 401,
            _ => true,
        };
        let calls = self.journal().await?.into_iter().filter(is_call);
        calls.map(|event| event.request.into_call().map(Arc::new)).collect()
    }

    pub(super) async fn tokens(&self) -> anyhow::Result<Vec<String>> {
        let token = |event: Event| {
            let answer: Value = serde_json::from_str(&event.response.body).ok()?;
            let token = answer["access_token"].as_str().filter(|token| token.starts_with(TOKEN))?;
            (event.request.url == "/token").then(|| token.to_owned())
        };
        Ok(self.journal().await?.into_iter().filter_map(token).collect())
    }

    /// Returns the recorded calls, oldest first.
    async fn journal(&self) -> anyhow::Result<Vec<Event>> {
        let mut answer = self.ask(Method::GET, "requests", None).await?;
        let mut events: Vec<Event> = serde_json::from_value(answer["requests"].take())?;
        events.reverse();
        Ok(events)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let request = self.client.request(method, format!("{}/__admin/{path}", self.url));
        let request = match &body {
            Some(body) => request.json(body),
            None => request,
        };
        let answer = request.send().await?.error_for_status()?.bytes().await?;
        if answer.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&answer)?) }
    }
}

impl Asked {
    fn into_call(self) -> anyhow::Result<Call> {
        let mut headers = HeaderMap::new();
        for (name, values) in self.headers {
            let values = match values {
                OneOrMany::One(value) => vec![value],
                OneOrMany::Many(values) => values,
            };
            for value in values {
                headers.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(&value)?);
            }
        }
        let path = self.url.split('?').next().unwrap_or_default().to_owned();
        Ok(Call { path, headers, body: BASE64_STANDARD.decode(self.body_as_base64)?.into() })
    }
}

/// Returns the stubs for the default answers.
fn usual() -> [Value; 5] {
    let token = json!({
        "access_token": format!("{TOKEN}{{{{randomValue type='UUID'}}}}"), "token_type": "Bearer", "expires_in": 3600,
    });
    let mut asks = posted("/token");
    asks["basicAuthCredentials"] = json!({"username": CLIENT_ID, "password": CLIENT_SECRET});
    asks["formParameters"] = json!({"grant_type": {"equalTo": "client_credentials"}});
    let gives = json!({"status": 200, "jsonBody": token, "transformers": ["response-template"]});
    let takes = json!({"status": 200});
    let refuses = |path| json!({"method": "POST", "urlPath": path});
    [
        json!({"priority": USUAL, "request": asks, "response": gives}),
        json!({"priority": USUAL, "request": posted("/three"), "response": takes}),
        json!({"priority": REFUSED, "request": refuses("/token"), "response": {"status": 401}}),
        json!({"priority": REFUSED, "request": refuses("/three"), "response": {"status": 401}}),
        json!({"priority": OTHERS, "request": {"method": "POST", "urlPattern": "/.*"}, "response": takes}),
    ]
}

/// Returns the pattern of a call to a path; calls to `/three` must carry a token.
fn posted(path: &str) -> Value {
    let mut request = json!({"method": "POST", "urlPath": path});
    if path == "/three" {
        request["headers"] = json!({"Authorization": {"matches": format!("Bearer {TOKEN}.+")}});
    }
    request
}

fn response(answer: Answer) -> Value {
    let Answer { status, body, media_type, retry_after, delay } = answer;
    let mut headers = json!({"Content-Type": media_type});
    if let Some(pause) = retry_after {
        headers["Retry-After"] = pause.into();
    }
    json!({
        "status": status,
        "headers": headers,
        "base64Body": BASE64_STANDARD.encode(body),
        "fixedDelayMilliseconds": u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
    })
}
