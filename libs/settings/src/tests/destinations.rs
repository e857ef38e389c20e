use throughline_destination::Kind;

use super::{Case, assert_problems};

/// A second destination with these settings.
fn archive(settings: &str) -> Case {
    Case::over(&format!("destinations: {{archive: {{{settings}}}}}"))
}

#[test]
fn the_type_selects_the_settings_of_a_destination() {
    let case = archive(
        "type: kafka, topic: archive, bootstrap_servers: 'other:9092', headers: {team: a}, timeout: 3s, \
         properties: {socket.timeout.ms: 1000}, retry: {attempts: 2}",
    );
    let settings = case.loaded().settings;
    let archive = &settings.destinations["archive"];
    let Kind::Kafka(kafka) = &archive.kind else { panic!("{archive:?}") };
    assert_eq!(kafka.topic, "archive");
    assert_eq!(kafka.bootstrap_servers.as_deref(), Some("other:9092"));
    assert_eq!(kafka.headers["team"].expose(), "a");
    assert_eq!(kafka.properties["socket.timeout.ms"].expose(), "1000");
    assert_eq!((archive.timeout.as_secs(), archive.retry.most_attempts()), (3, 2));
    let explicit = archive_of("type: http, url: 'https://a.example/'");
    assert!(matches!(explicit, Kind::Http(_)), "{explicit:?}");
}

fn archive_of(settings: &str) -> Kind {
    archive(settings).loaded().settings.destinations.remove("archive").unwrap().kind
}

#[test]
fn a_type_can_come_from_another_layer() {
    let case = archive("topic: archive").environment(&[
        ("THROUGHLINE_DESTINATIONS__ARCHIVE__TYPE", "kafka"),
        ("THROUGHLINE_DESTINATIONS__ARCHIVE__HEADERS__TEAM", "a"),
    ]);
    let settings = case.loaded().settings;
    let Kind::Kafka(kafka) = &settings.destinations["archive"].kind else { panic!() };
    assert_eq!(kafka.headers["team"].expose(), "a");
}

#[test]
fn a_setting_of_another_type_is_unknown() {
    assert_problems(
        &archive("type: kafka, topic: archive, url: 'https://a.example/'"),
        &[
            "destinations.archive.url: unknown key (known keys: bootstrap_servers, breaker, filter, headers, limits, \
           properties, retry, timeout, topic, type)  [throughline.yaml]",
        ],
    );
    assert_problems(
        &archive("topic: archive, url: 'https://a.example/'"),
        &[
            "destinations.archive.topic: unknown key (known keys: breaker, connect_timeout, filter, headers, limits, \
           oauth2, response_limit, retry, statuses, timeout, type, url)  [throughline.yaml]",
        ],
    );
}

#[test]
fn a_required_setting_of_the_type_is_reported() {
    assert_problems(
        &archive("type: kafka"),
        &["destinations.archive.topic: is missing; expected a string  [throughline.yaml]"],
    );
}

#[test]
fn an_unknown_type_is_reported_by_itself() {
    assert_problems(
        &archive("type: kafak, topic: archive"),
        &["destinations.archive.type: expected one of `http`, `kafka`; found \"kafak\"  [throughline.yaml]"],
    );
}

#[test]
fn the_settings_of_a_topic_are_checked() {
    assert_problems(
        &archive(
            "type: kafka, topic: 'no topic', properties: {a: b}, headers: {ce_id: '1', team: {env: MISSING}}",
        ),
        &[
            "destinations.archive.topic: expected a topic name of at most 249 letters, digits, `.`, `_` and `-`  \
             [throughline.yaml]",
            "destinations.archive.properties: belong to a cluster of its own: add `bootstrap_servers`, or set them \
             in `kafka.properties`  [throughline.yaml]",
            "destinations.archive.headers.ce_id: is set by dispatch itself: the record is a CloudEvent with a trace \
             context  [throughline.yaml]",
            "destinations.archive.headers.team: the environment variable MISSING is not set  [throughline.yaml]",
        ],
    );
}

/// A record there would be adopted by the route, and come back for ever.
#[test]
fn a_route_must_not_deliver_to_its_own_topic() {
    let case = Case::over(
        "
        routes: {one: {destinations: [three, echo]}}
        destinations: {echo: {type: kafka, topic: one-request-local}, inner: {type: kafka, topic: throughline.outcomes}}
        ",
    );
    assert_problems(
        &case,
        &[
            "destinations.echo.topic: `one-request-local` is the topic of route `one`, so requests of route `one` would \
             come back to it forever; use another topic  [throughline.yaml]",
            "destinations.inner.topic: topics that begin with `throughline.` are internal (see kafka.prefix)  \
             [throughline.yaml]",
        ],
    );
    let other_cluster =
        "destinations: {echo: {type: kafka, topic: one-request-local, bootstrap_servers: 'b:9092'}}";
    Case::over(&format!("routes: {{one: {{destinations: [three, echo]}}}}\n{other_cluster}")).loaded();
}

#[test]
fn known_passwords_of_a_cluster_are_refused_in_production() {
    let case = archive(
        "type: kafka, topic: archive, bootstrap_servers: 'b:9092', properties: {sasl.password: changeme}",
    );
    let case = case.environment(&[
        ("THROUGHLINE_ENVIRONMENT", "production"),
        ("THROUGHLINE_INSECURE", "true"),
        ("THROUGHLINE_KAFKA__SIGNING_KEY", "0123456789abcdef0123"),
    ]);
    assert_problems(
        &case,
        &[
            "destinations.archive.properties.\"sasl.password\": contains a publicly known password; `environment: \
           production` requires a password of your own  [throughline.yaml]",
        ],
    );
}
