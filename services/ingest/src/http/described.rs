//! Paths that are described where they are answered, so that neither goes without the other.

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;
use serde_json::{Map, Value};

use super::clients::{Guard, admit};
use super::openapi;

/// Paths, how each is answered, and what `/openapi.json` says of it.
#[derive(Default)]
pub(super) struct Described {
    pub(super) router: Router,
    pub(super) paths: Map<String, Value>,
    /// Whether some are only for known clients.
    pub(super) is_guarded: bool,
}

impl Described {
    /// Adds a path for everybody; `item` is its Path Item.
    pub(super) fn path(mut self, path: &str, methods: MethodRouter, item: Value) -> Self {
        self.router = self.router.route(path, methods);
        self.paths.insert(path.to_owned(), item);
        self
    }

    /// Adds a path for those whom the guard lets in, if there is one.
    pub(super) fn guarded(
        mut self,
        path: &str,
        methods: MethodRouter,
        item: Value,
        guard: Option<&Guard>,
    ) -> Self {
        let Some(guard) = guard else { return self.path(path, methods, item) };
        self.is_guarded = true;
        self.path(path, methods.layer(from_fn_with_state(guard.clone(), admit)), openapi::for_clients(item))
    }
}
