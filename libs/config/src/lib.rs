//! One YAML file for both services: defaults, file, environment, flags.
//!
//! [`load`] lays four layers over one another, later ones winning value by value (lists as a whole):
//!
//! 1. the defaults of [`Settings`], and those that a program brings along ([`Sources`]);
//! 2. the file: `--config`, else what `THROUGHLINE_CONFIG` names, else `throughline.yaml` if there is
//!    one. A key that is null is as one that is not there, so `routes: {one: null}` takes a route of
//!    the layer below away;
//! 3. the environment: `THROUGHLINE_HTTP__ADDRESS` is `http.address`. Names of routes, destinations,
//!    headers and properties that are there already are found whatever their case, `_` standing for
//!    `-` and `.` too; new ones are lower-case. A list is written with commas, a mapping as YAML;
//! 4. the flags ([`Flags`]).
//!
//! A secret, and a JSON Schema, can be written as `{file: PATH}`, relative to the configuration file;
//! a secret also as `{env: NAME}`. Durations are texts such as `500ms` or `1h 30m`, sizes such as
//! `64KiB`.
//!
//! # Problems
//! Everything that is wrong is reported at once, a line each, with its place in the configuration and
//! where it comes from. To that end the layers are not read into [`Settings`] at once, which would
//! stop at the first mistake, but held against the JSON Schema of the type; what is wrong is taken
//! out, and the rest is read and checked for sense: destinations that exist, filters and schemas that
//! compile, topics that Kafka takes, paths and keys that do not collide. Values that can be secrets are never
//! repeated.

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
    AfterFailure, Breaker, Client, Compression, Credentials, Database, Destination, Dispatch, Http, Ingest,
    Kafka, Limits, Links, OAuth2, Retention, Retry, Route, SchemaSource, Settings, StatusMeaning, Topics,
};
pub use text::{NodeIds, Rate};
