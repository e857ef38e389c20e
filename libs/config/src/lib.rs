//! Loads a configuration in layers: defaults, file, environment, flags.
//!
//! A program declares its settings as a type ([`Configuration`]), composed of the sections that its libraries declare.
//! [`load`] merges four layers into it. A later layer overrides an earlier one value by value; a list is replaced as a
//! whole:
//!
//! 1. the defaults of the type, and the defaults that the program itself supplies ([`Sources`]);
//! 2. the YAML file: the one that a flag names, else the one that the environment names, else the default one if it
//!    exists. A key with a null value counts as absent, so `routes: {one: null}` removes a route of the layer below;
//! 3. the environment: with the prefix `THROUGHLINE_`, `THROUGHLINE_HTTP__ADDRESS` is `http.address`. Names of entries
//!    of mappings that the layers below define match in any case, and `_` also matches `-` and `.`; new names become
//!    lower-case. A list is written with commas, a mapping as YAML;
//! 4. the flags ([`FlagValue`]).
//!
//! A [`Secret`] can be written as `{file: PATH}`, relative to the configuration file, or as `{env: NAME}`; a JSON
//! Schema as `{file: PATH}`. Durations are strings such as `500ms` or `1h 30m`, sizes are strings such as `64KiB`.
//!
//! # Problems
//! All problems are reported together, one per line, each with its path in the configuration and its source.
//! Deserializing the layers straight into the type would stop at the first mistake. They are therefore first validated
//! against the JSON Schema of the type. Invalid values are removed; the rest is deserialized, and then
//! [`Configuration::check`] checks its meaning. Values that can be secrets are never quoted.
//!
//! # Schemas
//! Beyond JSON Schema, the schemas of settings have three keywords: `x-expected` describes the expected value,
//! `x-reference` names the kind of value that `{env: …}` and `{file: …}` stand for, and `x-variants` ([`variants`])
//! declares a mapping whose keys depend on its `type`.

mod environment;
mod form;
mod layer;
mod load;
mod markdown;
mod path;
mod problems;
mod references;
mod schema;
mod secret;
mod show;
mod text;
mod value;
mod variants;
mod yaml;

pub use environment::Environment;
pub use load::{Configuration, Context, FlagValue, Format, Loaded, Sources, load};
pub use markdown::reference;
pub use path::Path;
pub use problems::{Findings, Problem, Problems};
pub use secret::{MASK, Property, Secret};
pub use text::{AddressText, DurationText, Rate, SizeText, at_least_one};
pub use variants::variants;
