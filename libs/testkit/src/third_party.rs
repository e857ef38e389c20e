use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use wiremock::http::HeaderMap;
use wiremock::matchers::{basic_auth, body_string_contains, method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

/// The credentials that the token endpoint knows.
pub(crate) const CLIENT_ID: &str = "throughline";
pub(crate) const CLIENT_SECRET: &str = "not-to-be-printed";

/// Longer than any test.
const NEVER: Duration = Duration::from_hours(1);

/// Third-party APIs, with everything that was ever asked of them.
///
/// `/token` gives OAuth2 tokens to who knows the client secret, `/three` wants one of them as bearer
/// token, every other path takes anything.
pub struct ThirdParty {
    server: MockServer,
    desk: Arc<Desk>,
}

/// A call that has come in.
#[derive(Debug)]
pub struct Call {
    /// The path that was called.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Call {
    /// A header's value, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What the endpoints share.
#[derive(Default)]
struct Desk {
    /// By path; where there is none, 200.
    answers: Mutex<HashMap<String, ResponseTemplate>>,
    /// By path, what is answered before that, once each.
    answers_in_turn: Mutex<HashMap<String, VecDeque<ResponseTemplate>>>,
    calls: Mutex<Vec<Arc<Call>>>,
    tokens: Mutex<Vec<String>>,
}

impl ThirdParty {
    /// Opens on a port of its own; answers each call 200 until told otherwise.
    pub async fn open() -> Self {
        let desk = Arc::<Desk>::default();
        // Not `MockServer::start`: its servers come from a pool, and their connections with them.
        let server = MockServer::builder().disable_request_recording().start().await;
        let (tokens, three, receiver) = (Arc::clone(&desk), Arc::clone(&desk), Arc::clone(&desk));
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
        Self { server, desk }
    }

    /// Its base URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.uri()
    }

    /// Answers each call at a path so, from now on.
    pub fn answer(&self, path: &str, answer: ResponseTemplate) {
        lock(&self.desk.answers).insert(path.to_owned(), answer);
    }

    /// Answers the next calls at a path so, one after the other, and then as before.
    pub fn answer_in_turn(&self, path: &str, answers: impl IntoIterator<Item = ResponseTemplate>) {
        lock(&self.desk.answers_in_turn).entry(path.to_owned()).or_default().extend(answers);
    }

    /// Answers each call at a path as it did at first, from now on.
    pub fn answer_as_usual(&self, path: &str) {
        lock(&self.desk.answers).remove(path);
    }

    /// Takes calls at a path and never answers, from now on.
    pub fn hang(&self, path: &str) {
        self.answer(path, ResponseTemplate::new(200).set_delay(NEVER));
    }

    /// All calls so far, but for those to the token endpoint and those without a good token.
    #[must_use]
    pub fn calls(&self) -> Vec<Arc<Call>> {
        lock(&self.desk.calls).clone()
    }

    /// What nobody else may ever get to see: the client secret, and all tokens so far.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets = self.tokens();
        secrets.push(CLIENT_SECRET.to_owned());
        secrets
    }

    /// The tokens that were given out so far.
    #[must_use]
    pub fn tokens(&self) -> Vec<String> {
        lock(&self.desk.tokens).clone()
    }
}

impl Desk {
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
