//! Paths that are described where they are handled, so that a path and its description always go together.

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

use super::clients::admit;
use super::openapi;
use crate::accept::Authorizer;

/// Paths, their handlers, and their descriptions for `/openapi.json`.
#[derive(Default)]
pub(crate) struct Documented {
    pub(super) router: Router,
    pub(super) paths: Map<String, Value>,
    /// Whether some paths are only for known clients.
    pub(super) is_guarded: bool,
    /// Each adds the schema of a body that the descriptions refer to.
    pub(super) schemas: Vec<fn(&mut SchemaGenerator)>,
}

impl Documented {
    /// Adds a path for all callers; `item` is its Path Item.
    pub(crate) fn path(mut self, path: &str, methods: MethodRouter, item: Value) -> Self {
        self.router = self.router.route(path, methods);
        self.paths.insert(path.to_owned(), item);
        self
    }

    /// Adds a path whose handlers admit only known clients.
    pub(crate) fn path_for_clients(mut self, path: &str, methods: MethodRouter, item: Value) -> Self {
        self.is_guarded = true;
        self.path(path, methods, openapi::for_clients(item))
    }

    /// Adds a path for the clients that the authorizer admits, if there is an authorizer.
    pub(super) fn guarded(
        self,
        path: &str,
        methods: MethodRouter,
        item: Value,
        authorizer: Option<&Authorizer>,
    ) -> Self {
        let Some(authorizer) = authorizer else { return self.path(path, methods, item) };
        self.path_for_clients(path, methods.layer(from_fn_with_state(authorizer.clone(), admit)), item)
    }

    /// Adds the schema of a body that the descriptions refer to.
    pub(crate) fn schema<T: JsonSchema>(mut self) -> Self {
        self.schemas.push(|generator| {
            generator.subschema_for::<T>();
        });
        self
    }

    /// Adds the paths of `other`.
    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.paths.extend(other.paths);
        self.is_guarded |= other.is_guarded;
        self.schemas.extend(other.schemas);
        self
    }
}
