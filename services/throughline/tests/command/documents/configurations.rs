use std::fs::{create_dir_all, read_to_string, write};

use serde_json::Value as Json;
use throughline_config::{Environment, Sources, load};
use throughline_settings::Settings;

use super::markdown::{Block, project};
use super::{assert_none, blocks, queries};

/// The configuration under each fragment.
const LEAST: &str = "
kafka: {bootstrap_servers: 'localhost:9092'}
routes:
  one: {path: /one, topic: one-request-local, destinations: [three]}
destinations:
  three: {url: 'https://api.example.com/three'}
";
const CHART: &str = "deploy/helm/throughline";

/// Returns the names in references such as `{env: NAME}`.
fn references<'a>(text: &'a str, kind: &str) -> Vec<&'a str> {
    let begin = format!("{{{kind}: ");
    text.split(&begin).skip(1).filter_map(|rest| Some(rest.split_once('}')?.0)).collect()
}

/// Loads a fragment over the minimal configuration, with all variables and files that it refers to.
fn configuration(text: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let text = text.replace("{file: /", &format!("{{file: {}/", folder.path().display()));
    for name in references(&text, "file") {
        let file = folder.path().join(name);
        create_dir_all(file.parent().unwrap()).unwrap();
        write(&file, if name.contains(".json") { "{}" } else { "0123456789abcdef" }).unwrap();
    }
    let secret = |name: &str| match name {
        "DATABASE_URL" => "postgres://db/app".to_owned(),
        // Keys must differ.
        name => format!("0123456789abcdef-{name}"),
    };
    let secrets: Vec<_> = references(&text, "env").into_iter().map(|name| (name, secret(name))).collect();
    let variables: Vec<_> = secrets.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let file = folder.path().join("throughline.yaml");
    write(&file, &text).unwrap();
    let sources = Sources { defaults: Some(LEAST), file: Some(file), ..Sources::default() };
    load::<Settings>(sources, &Environment::new(&variables))
        .map(drop)
        .map_err(|problems| problems.to_string())
}

/// Validates values over those of the Helm chart. The chart's own tests also load the complete example.
fn values(values: Json) -> Result<(), String> {
    let read = |name: &str| read_to_string(project().join(CHART).join(name)).unwrap();
    let validator =
        jsonschema::validator_for(&serde_json::from_str(&read("values.schema.json")).unwrap()).unwrap();
    let mut merged = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    merge(&mut merged, values);
    validator.validate(&merged).map_err(|error| format!("{}: {error}", error.instance_path()))
}

/// Merges as Helm does: a null removes a value.
fn merge(below: &mut Json, above: Json) {
    match (below, above) {
        (Json::Object(below), Json::Object(above)) => {
            for (key, value) in above {
                if value.is_null() {
                    below.remove(&key);
                } else {
                    merge(below.entry(key).or_insert(Json::Null), value);
                }
            }
        }
        (below, above) => *below = above,
    }
}

fn problem(block: &Block) -> Option<String> {
    let is_of_the_chart = block.path.starts_with(CHART);
    let check = |value: Json| match block.info.as_str() {
        "yaml" if is_of_the_chart => values(value),
        "yaml" => configuration(&block.text),
        // The rules of another program, with queries of our metrics.
        "yaml prometheus-adapter" => queries::promql(&block.text),
        other => Err(format!("no test checks blocks in `{other}`")),
    };
    let parsed = serde_saphyr::from_str(&block.text).map_err(|error| error.to_string());
    parsed.and_then(check).err().map(|error| block.problem(error))
}

#[test]
fn every_configuration_in_the_documents_is_valid() {
    let problems: Vec<_> = blocks("yaml").iter().filter_map(problem).collect();
    assert_none(&problems);
}
