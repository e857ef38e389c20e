//! A third party for trials: a token endpoint, and an API that shows the calls it has received.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Maximum number of calls remembered.
const REMEMBERED: usize = 100;
const TOKEN: &str = "sandbox-token";

/// A sandbox that is bound to its port.
pub(super) struct Sandbox {
    listener: TcpListener,
    address: SocketAddr,
}

type Calls = Arc<Mutex<VecDeque<Call>>>;

/// A call as it was received.
#[derive(Clone, Serialize)]
struct Call {
    idempotency_key: Option<String>,
    traceparent: Option<String>,
    language: Option<String>,
    body: Value,
}

impl Sandbox {
    pub(super) async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("the sandbox cannot listen on {address}; set --sandbox to another address")
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) async fn serve(self, stop: CancellationToken) -> Result<(), std::io::Error> {
        let router = Router::new()
            .route("/token", post(token))
            .route("/three", post(receive).get(received))
            .with_state(Calls::default());
        axum::serve(self.listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

async fn token() -> Json<Value> {
    Json(json!({ "access_token": TOKEN, "token_type": "Bearer", "expires_in": 300 }))
}

async fn receive(
    State(calls): State<Calls>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    if text(AUTHORIZATION.as_str()).as_deref() != Some(&*format!("Bearer {TOKEN}")) {
        return (
            StatusCode::UNAUTHORIZED,
            Json(json!({ "error": "missing or wrong token; get one from /token" })),
        );
    }
    let call = Call {
        idempotency_key: text("idempotency-key"),
        traceparent: text("traceparent"),
        language: text("language"),
        body,
    };
    let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
    if calls.len() == REMEMBERED {
        calls.pop_front();
    }
    calls.push_back(call);
    (StatusCode::OK, Json(json!({ "received": calls.len() })))
}

async fn received(State(calls): State<Calls>) -> Json<Vec<Call>> {
    Json(calls.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect())
}
