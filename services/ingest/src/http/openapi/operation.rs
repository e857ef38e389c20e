//! The description of an operation, from the types of its handler: what the handler takes and what it answers is
//! described without being written twice.

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, StatusCode};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::problems;
use crate::http::Problem;

/// An operation of a path.
#[derive(Debug)]
pub(crate) struct Operation {
    object: Map<String, Value>,
    parameters: Vec<Value>,
    required: Vec<&'static str>,
    responses: Map<String, Value>,
    /// The parts of the answer to a request that succeeds.
    answer: String,
    status: StatusCode,
    content: Map<String, Value>,
    headers: Map<String, Value>,
    links: Map<String, Value>,
    generator: SchemaGenerator,
}

impl Operation {
    /// Creates the description of an operation of the management API. `answer` describes the answer of a request that
    /// succeeds.
    pub(crate) fn management(id: &str, summary: &str, answer: &str) -> Self {
        let object = json!({ "operationId": id, "tags": ["management"], "summary": summary });
        Self {
            object: into_map(object),
            parameters: Vec::new(),
            required: Vec::new(),
            responses: problems(&[400, 403, 431, 500, 503]),
            answer: answer.to_owned(),
            status: StatusCode::OK,
            content: Map::new(),
            headers: Map::new(),
            links: Map::new(),
            generator: schema_generator(),
        }
    }

    /// Adds a longer description.
    pub(crate) fn description(mut self, text: &str) -> Self {
        self.object.insert("description".to_owned(), text.into());
        self
    }

    /// Adds problems that the operation can answer, beside those of every operation.
    pub(crate) fn problems(mut self, statuses: &[u16]) -> Self {
        self.responses.extend(problems(statuses));
        self
    }

    /// Adds a link from the answer to another operation, whose parameters are expressions.
    pub(crate) fn link(mut self, name: &str, operation: &str, parameters: &[(&str, &str)]) -> Self {
        let parameters: Map<_, _> =
            parameters.iter().map(|(name, expression)| ((*name).to_owned(), (*expression).into())).collect();
        let link = json!({ "operationId": operation, "parameters": parameters });
        self.links.insert(name.to_owned(), link);
        self
    }

    /// Requires a parameter that is optional by its type.
    pub(crate) fn require(mut self, name: &'static str) -> Self {
        self.required.push(name);
        self
    }

    /// Sets the status of a request that succeeds.
    pub(crate) fn status(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// Adds a media type of the answer, with the schema of its body if it has one.
    pub(crate) fn content<T: JsonSchema>(&mut self, media_type: &str) {
        let schema = self.generator.subschema_for::<T>();
        let content = if schema.as_bool() == Some(true) { json!({}) } else { json!({ "schema": schema }) };
        self.content.insert(media_type.to_owned(), content);
    }

    /// Adds a header of the answer.
    pub(crate) fn header(&mut self, name: &str, description: &str) {
        let header = json!({ "description": description, "schema": { "type": "string" } });
        self.headers.insert(name.to_owned(), header);
    }

    /// Adds the properties of `T` as parameters in the path or the query.
    pub(crate) fn parameters<T: JsonSchema>(&mut self, place: &str) {
        let schema = T::json_schema(&mut self.generator);
        let is_required = |name: &String| {
            schema
                .get("required")
                .and_then(Value::as_array)
                .is_some_and(|names| names.iter().any(|one| one == name))
        };
        for (name, property) in properties(&schema) {
            let mut property = without_null(property.clone());
            let description = property.as_object_mut().and_then(|property| property.remove("description"));
            let mut parameter = json!({ "name": name, "in": place, "schema": property });
            if let Some(description) = description {
                parameter["description"] = description;
            }
            if place == "path" || is_required(name) {
                parameter["required"] = true.into();
            }
            self.parameters.push(parameter);
        }
    }

    /// Returns the description, and the schemas that it refers to.
    pub(crate) fn finish(mut self) -> (Value, Map<String, Value>) {
        for parameter in &mut self.parameters {
            if self.required.iter().any(|name| parameter["name"] == *name) {
                parameter["required"] = true.into();
            }
        }
        if !self.parameters.is_empty() {
            self.object.insert("parameters".to_owned(), self.parameters.into());
        }
        let mut answer = into_map(json!({ "description": self.answer, "content": self.content }));
        for (name, parts) in [("headers", self.headers), ("links", self.links)] {
            if !parts.is_empty() {
                answer.insert(name.to_owned(), parts.into());
            }
        }
        self.responses.insert(self.status.as_u16().to_string(), answer.into());
        self.object.insert("responses".to_owned(), self.responses.into());
        (self.object.into(), self.generator.take_definitions(true))
    }
}

/// What an extractor takes from a request.
pub(crate) trait Input {
    /// Adds it to the description.
    fn describe(_: &mut Operation) {}
}

impl<S> Input for State<S> {}

impl Input for HeaderMap {}

/// The answer of a handler to a request that succeeds.
pub(crate) trait Output {
    /// Adds it to the description.
    fn describe(operation: &mut Operation);
}

impl<T: JsonSchema> Output for Json<T> {
    fn describe(operation: &mut Operation) {
        operation.content::<T>("application/json");
    }
}

/// A handler whose parameters and answer describe its operation.
pub(crate) trait Described<Inputs> {
    /// Adds them to the description.
    fn describe(operation: &mut Operation);
}

macro_rules! described {
    ($($input:ident)*) => {
        impl<F, Answer, O, $($input),*> Described<($($input,)*)> for F
        where
            F: Fn($($input),*) -> Answer,
            Answer: Future<Output = Result<O, Problem>>,
            O: Output,
            $($input: Input,)*
        {
            fn describe(operation: &mut Operation) {
                $($input::describe(operation);)*
                O::describe(operation);
            }
        }
    };
}

described!(A);
described!(A B);
described!(A B C);

/// Returns a generator for the schemas of answers. Definitions are referred to by their place in the description.
pub(crate) fn schema_generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.with(|settings| settings.definitions_path = "/components/schemas".into()).into_generator()
}

/// Returns the properties of an object's schema.
pub(crate) fn properties(schema: &Schema) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

/// Removes `null` from the schema of an optional property: a path or a query cannot express it.
fn without_null(mut schema: Value) -> Value {
    let Some(object) = schema.as_object_mut() else { return schema };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = &mut types[..] {
            let only = only.take();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(mut any)) = object.remove("anyOf") {
        any.retain(|schema| schema["type"] != "null");
        match <[Value; 1]>::try_from(any) {
            Ok([only]) => object.extend(into_map(only)),
            Err(any) => {
                object.insert("anyOf".to_owned(), any.into());
            }
        }
    }
    schema
}

fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
