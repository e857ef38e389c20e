//! Paths that are described where they are handled, so that a path and its description always go together.

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;
use serde_json::{Map, Value};

use super::clients::{Authorizer, admit};
use super::openapi;

/// Paths, their handlers, and their descriptions for `/openapi.json`.
#[derive(Default)]
pub(super) struct Documented {
    pub(super) router: Router,
    pub(super) paths: Map<String, Value>,
    /// Whether some paths are only for known clients.
    pub(super) is_guarded: bool,
}

impl Documented {
    /// Adds a path for all callers; `item` is its Path Item.
    pub(super) fn path(mut self, path: &str, methods: MethodRouter, item: Value) -> Self {
        self.router = self.router.route(path, methods);
        self.paths.insert(path.to_owned(), item);
        self
    }

    /// Adds a path for the clients that the authorizer admits, if there is an authorizer.
    pub(super) fn guarded(
        mut self,
        path: &str,
        methods: MethodRouter,
        item: Value,
        authorizer: Option<&Authorizer>,
    ) -> Self {
        let Some(authorizer) = authorizer else { return self.path(path, methods, item) };
        self.is_guarded = true;
        self.path(
            path,
            methods.layer(from_fn_with_state(authorizer.clone(), admit)),
            openapi::for_clients(item),
        )
    }
}
