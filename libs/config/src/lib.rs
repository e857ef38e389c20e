//! One YAML file for both services: defaults, file, environment, flags.
//!
//! [`load`] merges four layers. A later layer overrides an earlier one value by value; a list is replaced as a whole:
//!
//! 1. the defaults of [`Settings`], and the defaults that the program itself supplies ([`Sources`]);
//! 2. the file: `--config`, else the path in `THROUGHLINE_CONFIG`, else `throughline.yaml` if it exists. A key with a
//!    null value counts as absent, so `routes: {one: null}` removes a route of the layer below;
//! 3. the environment: `THROUGHLINE_HTTP__ADDRESS` is `http.address`. Names of routes, destinations, headers and
//!    properties that the layers below define match in any case, and `_` also matches `-` and `.`; new names become
//!    lower-case. A list is written with commas, a mapping as YAML;
//! 4. the flags ([`Flags`]).
//!
//! A secret or a JSON Schema can be written as `{file: PATH}`, relative to the configuration file; a secret also as
//! `{env: NAME}`. Durations are strings such as `500ms` or `1h 30m`, sizes are strings such as `64KiB`.
//!
//! # Problems
//! All problems are reported together, one per line, each with its path in the configuration and its source.
//! Deserializing the layers straight into [`Settings`] would stop at the first mistake. They are therefore first
//! validated against the JSON Schema of the type. Invalid values are removed; the rest is deserialized and its
//! meaning checked: destinations exist, filters and schemas compile, Kafka accepts the topics, paths and keys are
//! unique. Values that can be secrets are never quoted.

mod check;
mod environment;
mod flags;
mod form;
mod layer;
mod load;
mod path;
mod problems;
mod references;
mod schema;
mod secret;
mod settings;
mod show;
#[cfg(test)]
mod tests;
mod text;
mod value;
mod yaml;

pub use flags::Flags;
pub use load::{Loaded, Sources, load, load_from};
pub use problems::{Problem, Problems};
pub use secret::Secret;
pub use settings::{
    Breaker, Client, Compression, Credentials, Database, Destination, Dispatch, Http, Ingest, Kafka, Limits,
    Links, OAuth2, Ordering, Retention, Retry, Route, SchemaSource, Settings, StatusMeaning, Topics,
};
pub use text::{NodeIds, Rate};
