//! Paths that are described where they are handled, so that a path and its description always go together.

use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter};
use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::clients::admit;
use super::openapi::{self, Described, Operation};
use super::problem::Problem;
use crate::accept::Authorizer;

/// Paths, their handlers, and their descriptions for `/openapi.json`.
#[derive(Default)]
pub(crate) struct Documented {
    pub(super) router: Router,
    pub(super) paths: Map<String, Value>,
    /// The schemas that the descriptions refer to.
    pub(super) schemas: Map<String, Value>,
    /// Whether some paths are only for known clients.
    pub(super) is_guarded: bool,
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

    /// Adds a resource for the clients that the authorizer admits, if there is an authorizer.
    pub(super) fn resource(mut self, resource: Resource, authorizer: Option<&Authorizer>) -> Self {
        let Resource { path, methods, operations, schemas, .. } = resource;
        self.schemas.extend(schemas);
        let Some(authorizer) = authorizer else { return self.path(path, methods, operations.into()) };
        let methods = methods.layer(from_fn_with_state(authorizer.clone(), admit));
        self.path_for_clients(path, methods, operations.into())
    }

    /// Adds the schema of a body that the descriptions refer to.
    pub(crate) fn schema<T: JsonSchema>(mut self) -> Self {
        let mut generator = openapi::schema_generator();
        generator.subschema_for::<T>();
        self.schemas.extend(generator.take_definitions(true));
        self
    }

    /// Adds the paths of `other`.
    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.paths.extend(other.paths);
        self.schemas.extend(other.schemas);
        self.is_guarded |= other.is_guarded;
        self
    }
}

/// A path of the management API with its operations. Each is described by the types of its handler.
pub(crate) struct Resource<S = ()> {
    path: &'static str,
    methods: MethodRouter<S>,
    /// The methods, as the `Allow` header lists them.
    allowed: Vec<&'static str>,
    operations: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl<S: Clone + Send + Sync + 'static> Resource<S> {
    pub(crate) fn at(path: &'static str) -> Self {
        Self {
            path,
            methods: MethodRouter::new(),
            allowed: Vec::new(),
            operations: Map::new(),
            schemas: Map::new(),
        }
    }

    pub(crate) fn get<H, T, I>(self, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, S> + Described<I>,
        T: 'static,
    {
        self.operation(MethodFilter::GET, "get", "GET, HEAD", handler, operation)
    }

    pub(crate) fn post<H, T, I>(self, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, S> + Described<I>,
        T: 'static,
    {
        self.operation(MethodFilter::POST, "post", "POST", handler, operation)
    }

    pub(crate) fn delete<H, T, I>(self, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, S> + Described<I>,
        T: 'static,
    {
        self.operation(MethodFilter::DELETE, "delete", "DELETE", handler, operation)
    }

    fn operation<H, T, I>(
        mut self,
        method: MethodFilter,
        name: &str,
        allow: &'static str,
        handler: H,
        mut operation: Operation,
    ) -> Self
    where
        H: Handler<T, S> + Described<I>,
        T: 'static,
    {
        H::describe(&mut operation);
        let (operation, schemas) = operation.finish();
        self.operations.insert(name.to_owned(), operation);
        self.schemas.extend(schemas);
        self.methods = self.methods.on(method, handler);
        self.allowed.push(allow);
        self
    }

    /// Gives the handlers their state, and refuses other methods.
    pub(crate) fn with_state(self, state: S) -> Resource {
        let Self { path, methods, allowed, operations, schemas } = self;
        let allow = allowed.join(", ").into();
        let methods = methods.fallback(async move || Problem::MethodNotAllowed { allow }).with_state(state);
        Resource { path, methods, allowed, operations, schemas }
    }
}
