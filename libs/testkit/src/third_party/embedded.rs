use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;
use wiremock::matchers::{basic_auth, body_string_contains, method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use super::{Answer, CLIENT_ID, CLIENT_SECRET, Call};

/// A mock server in this process.
pub(super) struct Embedded {
    server: MockServer,
    shared: Arc<Shared>,
}

/// The shared state of the endpoints.
#[derive(Default)]
struct Shared {
    /// The answer of each path; without one, 200.
    answers: Mutex<HashMap<String, ResponseTemplate>>,
    /// The answers of each path that come first, each used once.
    answers_in_turn: Mutex<HashMap<String, VecDeque<ResponseTemplate>>>,
    calls: Mutex<Vec<Arc<Call>>>,
    tokens: Mutex<Vec<String>>,
}

impl Embedded {
    /// Opens a server on a free port.
    pub(super) async fn open() -> Self {
        let shared = Arc::<Shared>::default();
        // `MockServer::start` would take the server from a pool, with its existing connections.
        let server = MockServer::builder().disable_request_recording().start().await;
        let (tokens, three, receiver) = (Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared));
        Mock::given(method("POST"))
            .and(path("/token"))
            .and(basic_auth(CLIENT_ID, CLIENT_SECRET))
            .and(body_string_contains("grant_type=client_credentials"))
            .respond_with(move |_: &Request| tokens.give_token())
            .mount(&server)
            .await;
        Mock::given(method("POST"))
            .and(path("/three"))
            .respond_with(move |request: &Request| three.take_from_known(request))
            .mount(&server)
            .await;
        Mock::given(method("POST"))
            .respond_with(move |request: &Request| receiver.take(request))
            .mount(&server)
            .await;
        Self { server, shared }
    }

    pub(super) fn url(&self) -> String {
        self.server.uri()
    }

    pub(super) fn answer(&self, path: &str, answer: Answer) {
        lock(&self.shared.answers).insert(path.to_owned(), answer.into());
    }

    pub(super) fn answer_in_turn(&self, path: &str, answers: Vec<Answer>) {
        let mut in_turn = lock(&self.shared.answers_in_turn);
        in_turn.entry(path.to_owned()).or_default().extend(answers.into_iter().map(ResponseTemplate::from));
    }

    pub(super) fn answer_as_usual(&self, path: &str) {
        lock(&self.shared.answers).remove(path);
    }

    pub(super) fn calls(&self) -> Vec<Arc<Call>> {
        lock(&self.shared.calls).clone()
    }

    pub(super) fn tokens(&self) -> Vec<String> {
        lock(&self.shared.tokens).clone()
    }
}

impl From<Answer> for ResponseTemplate {
    fn from(answer: Answer) -> Self {
        let Answer { status, body, media_type, retry_after, delay } = answer;
        let template = Self::new(status).set_body_raw(body, media_type).set_delay(delay);
        match retry_after {
            Some(pause) => template.insert_header("retry-after", pause),
            None => template,
        }
    }
}

impl Shared {
    fn give_token(&self) -> ResponseTemplate {
        if let Some(answer) = self.next_answer("/token") {
            return answer;
        }
        let mut tokens = lock(&self.tokens);
        let token = format!("token-number-{}", tokens.len() + 1);
        tokens.push(token.clone());
        ResponseTemplate::new(200)
            .set_body_json(json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600}))
    }

    fn next_answer(&self, path: &str) -> Option<ResponseTemplate> {
        let in_turn = lock(&self.answers_in_turn).get_mut(path).and_then(VecDeque::pop_front);
        in_turn.or_else(|| lock(&self.answers).get(path).cloned())
    }

    fn take_from_known(&self, request: &Request) -> ResponseTemplate {
        let authorization = request.headers.get("authorization").map(|value| value.as_bytes().to_vec());
        let is_known = lock(&self.tokens)
            .iter()
            .any(|token| authorization.as_deref() == Some(format!("Bearer {token}").as_bytes()));
        if is_known { self.take(request) } else { ResponseTemplate::new(401) }
    }

    fn take(&self, request: &Request) -> ResponseTemplate {
        let call = Call {
            path: request.url.path().to_owned(),
            headers: request.headers.clone(),
            body: request.body.clone().into(),
        };
        let answer = self.next_answer(&call.path);
        lock(&self.calls).push(Arc::new(call));
        answer.unwrap_or_else(|| ResponseTemplate::new(200))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
