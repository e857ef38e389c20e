use std::time::Duration;

use bytesize::ByteSize;

use throughline_kafka::Compression;
use throughline_token::Credentials;

use super::{Case, LEAST, assert_problems, http};
use crate::{Flags, NodeIds};

#[test]
fn an_unset_setting_has_its_default() {
    let settings = Case::file(LEAST).loaded().settings;
    assert_eq!(settings.http.address.to_string(), "0.0.0.0:8099");
    assert_eq!(settings.http.health_address.to_string(), "0.0.0.0:8096");
    assert_eq!(settings.http.connections_per_address.get(), 4096);
    assert_eq!(settings.http.body_limit, ByteSize::mib(1));
    assert_eq!(settings.http.timeout, Duration::from_secs(5));
    assert_eq!(settings.database.url.expose(), "");
    assert_eq!(settings.database.max_connections.get(), 16);
    assert!(!settings.database.migrate);
    assert_eq!(settings.kafka.prefix, "throughline");
    assert_eq!(settings.kafka.compression, Compression::Lz4);
    assert_eq!(settings.kafka.topics.partitions.get(), 12);
    assert_eq!(settings.kafka.topics.replication.get(), 1);
    assert_eq!(settings.ingest.node_ids, NodeIds::ALL);
    assert_eq!(settings.ingest.node_lease, Duration::from_secs(30));
    assert_eq!(settings.ingest.batch.get(), 512);
    assert_eq!(settings.ingest.queue.get(), 4096);
    assert_eq!(settings.ingest.unacknowledged.get(), 10_000);
    assert_eq!(settings.ingest.idempotency_window, Duration::from_hours(24));
    assert_eq!(settings.ingest.redelivery_timeout, Duration::from_mins(15));
    assert_eq!(settings.dispatch.address.to_string(), "0.0.0.0:8098");
    assert_eq!(settings.dispatch.concurrency.get(), 256);
    assert_eq!(settings.retention.delivered, Duration::from_hours(30 * 24));
    assert_eq!(settings.retention.dead, Duration::from_hours(90 * 24));
    assert_eq!(settings.shutdown_deadline, Duration::from_secs(25));
    assert!(settings.clients.is_empty());
    assert_eq!(settings.routes["one"].rate, None);
    assert_eq!(settings.destinations["three"].timeout, Duration::from_secs(10));
    let three = http(&settings.destinations["three"]);
    assert_eq!(three.connect_timeout, Duration::from_secs(2));
    assert_eq!(three.response_limit, ByteSize::kib(64));
}

#[test]
fn every_setting_can_be_set() {
    let settings = Case::file(
        r"
http: {address: '127.0.0.1:0', body_limit: 2MiB, timeout: 1m 30s}
clients: {shop: {key: s3cret-s3cret-s3cret, routes: [one], manage: true}}
database: {url: 'sqlite://x.db', max_connections: 3, connect_timeout: 250ms, migrate: true}
kafka:
  bootstrap_servers: a:9092,b:9092
  prefix: staging
  compression: none
  group_instance_id: replica-1
  topics: {create: true, partitions: 6, replication: 3}
  properties: {ssl.ca.location: /ca, socket.timeout.ms: 30000, enable.sparse.connections: false}
ingest: {node_ids: 512-1023, node_lease: 9s, batch: 1, queue: 2, unacknowledged: 3, idempotency_window: 7days}
dispatch: {address: '[::1]:9', concurrency: 7}
routes:
  one:
    path: /one
    topic: one.requests
    destinations: [three]
    schema: {type: object, properties: {a: {enum: [1, null]}, b: {const: null}}}
    ordering_key: /user/~0id
    keep_headers: [X-Tenant]
    rate: 100/s
destinations:
  three:
    url: http://localhost:1/three?x=1
    headers: {language: en}
    filter: '{id: $id}'
    connect_timeout: 1s
    timeout: 2s
    response_limit: 4096
    oauth2:
      token_url: http://localhost:1/token
      client_id: me
      client_secret: s3cret
      credentials: body
      scope: a b
      audience: them
      parameters: {resource: urn:x}
      timeout: 3s
retention: {delivered: 36h, dead: 1year}
shutdown_deadline: 1min
",
    )
    .loaded()
    .settings;
    assert_eq!(settings.http.timeout, Duration::from_secs(90));
    assert_eq!(settings.kafka.compression, Compression::None);
    assert_eq!(settings.kafka.properties["socket.timeout.ms"].expose(), "30000");
    assert_eq!(settings.kafka.properties["enable.sparse.connections"].expose(), "false");
    assert_eq!(settings.ingest.node_ids, NodeIds { first: 512, last: 1023 });
    assert_eq!(settings.retention.delivered, Duration::from_hours(36));
    assert!(settings.retention.dead > Duration::from_hours(365 * 24));
    let shop = &settings.clients["shop"];
    assert_eq!((shop.key.expose(), shop.manage), ("s3cret-s3cret-s3cret", true));
    assert_eq!(shop.routes.as_deref(), Some(&["one".to_owned()][..]));
    assert_eq!(settings.routes["one"].rate, "100/s".parse().ok());
    let schema = settings.routes["one"].schema.as_ref().unwrap().document();
    assert_eq!(
        *schema,
        serde_json::json!({"type": "object", "properties": {"a": {"enum": [1, null]}, "b": {"const": null}}})
    );
    let three = http(&settings.destinations["three"]);
    assert_eq!(three.response_limit, ByteSize::b(4096));
    let oauth2 = three.oauth2.as_ref().unwrap();
    assert_eq!(oauth2.credentials, Credentials::Body);
    assert_eq!(oauth2.client_secret.expose(), "s3cret");
    assert_eq!(oauth2.parameters["resource"].expose(), "urn:x");
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let mut case = Case::over("http: {address: '127.0.0.1:1', timeout: 1s, body_limit: 1KiB}")
        .environment(&[("THROUGHLINE_HTTP__ADDRESS", "127.0.0.1:2"), ("THROUGHLINE_HTTP__TIMEOUT", "2s")]);
    case.flags.http = Some("127.0.0.1:3".to_owned());
    case.flags.kafka = Some("broker:9092".to_owned());
    case.flags.database = Some("sqlite://flag.db".to_owned());
    let settings = case.loaded().settings;
    assert_eq!(settings.http.address.port(), 3);
    assert_eq!(settings.http.timeout, Duration::from_secs(2));
    assert_eq!(settings.http.body_limit, ByteSize::kib(1));
    assert_eq!(settings.kafka.bootstrap_servers, "broker:9092");
    assert_eq!(settings.database.url.expose(), "sqlite://flag.db");
    assert_eq!(settings.routes["one"].path.as_deref(), Some("/one"));
}

#[test]
fn the_environment_can_name_the_file_and_the_flag_wins() {
    let case = Case::file("not: this").with_file("other.yaml", LEAST);
    let other = case.path("other.yaml");
    let by_flag = Case { flags: Flags { config: Some(other.clone()), ..Flags::default() }, ..case };
    let by_flag = by_flag.environment(&[("THROUGHLINE_CONFIG", "/nowhere.yaml")]);
    by_flag.loaded();
    let by_variable = Case { flags: Flags::default(), ..by_flag };
    by_variable.environment(&[("THROUGHLINE_CONFIG", other.to_str().unwrap())]).loaded();
}

#[test]
fn a_named_file_must_exist() {
    let mut case = Case::file(LEAST);
    case.flags.config = Some(case.path("other.yaml"));
    assert_problems(&case, &["cannot read other.yaml: No such file or directory (os error 2)  [--config]"]);
}

#[test]
fn invalid_yaml_is_reported_with_its_position() {
    assert_problems(
        &Case::file("http: {address: '"),
        &["not YAML: unclosed quote at line 1, column 17  [throughline.yaml]"],
    );
    assert_problems(
        &Case::file("http: {}\nhttp: {}"),
        &[
            "not YAML: duplicate mapping key `http` is not allowed here at line 2, column 1  [throughline.yaml]",
        ],
    );
    assert_problems(&Case::file("s3cret"), &["expected a mapping, such as `routes: …`  [throughline.yaml]"]);
}

#[test]
fn empty_sections_and_files_change_nothing() {
    for text in ["", "# all commented out\n", "kafka:\nhttp:\n", "http: {timeout: }\nkafka: {topics: }"] {
        let settings = Case::over(text).loaded().settings;
        assert_eq!(settings.kafka.bootstrap_servers, "localhost:9092", "{text}");
        assert_eq!(settings.http.timeout, Duration::from_secs(5), "{text}");
    }
}

#[test]
fn null_removes_an_entry_of_the_defaults() {
    let case = Case::over("routes: {one: null, two: {path: /two, topic: two, destinations: [three]}}");
    assert_eq!(case.loaded().settings.routes.keys().collect::<Vec<_>>(), ["two"]);
}

#[test]
fn anchors_and_merge_keys_work() {
    let case = Case::over(
        "destinations:\n  three: &three {url: 'http://a', timeout: 3s}\n  four: {<<: *three, url: 'http://b'}",
    );
    assert_eq!(case.loaded().settings.destinations["four"].timeout, Duration::from_secs(3));
}
