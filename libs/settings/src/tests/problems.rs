use super::{Case, LEAST, assert_problems};

#[test]
fn all_problems_are_reported_together() {
    assert_problems(
        &Case::file(
            r#"
http:
  address: nowhere
  colour: green
  body_limit: much
kafka:
  bootstrap_servers: localhost:9092
  compression: gzip
  topics: {partitions: 0, create: perhaps}
ingest: {redelivery_timeout: 0s}
routes:
  one:
    path: one
    topic: one
    destinations: [thre]
destinations:
  three:
    url: http://localhost/three
    filter: "{id: $id, one_request: ."
    oauth2:
      token_url: http://localhost/token
      client_id: me
      client_secret: {env: THROUGHLINE_TEST_NO_SUCH_VARIABLE}
      colour: green
"#,
        ),
        &[
            "http.address: expected an IP address and a port, such as `0.0.0.0:8099`; found \"nowhere\"  [throughline.yaml]",
            "http.colour: unknown key (known keys: address, body_limit, connections_per_address, health_address, timeout)  [throughline.yaml]",
            "http.body_limit: expected a size above zero, such as `64KiB` or `1MiB`; found \"much\"  [throughline.yaml]",
            "kafka.compression: expected `lz4`, `zstd` or `none`; found \"gzip\"  [throughline.yaml]",
            "kafka.topics.partitions: expected a whole number from 1 to 4294967295; found 0  [throughline.yaml]",
            "kafka.topics.create: expected `true` or `false`; found \"perhaps\"  [throughline.yaml]",
            "ingest.redelivery_timeout: expected a duration above zero, such as `500ms`, `30s` or `1h 30m`; found \"0s\"  [throughline.yaml]",
            "routes.one.path: a path must begin with `/`: write `/one`  [throughline.yaml]",
            "routes.one.destinations[0]: unknown destination `thre` (known destinations: three)  [throughline.yaml]",
            "destinations.three.filter: the filter does not compile: line 1, column 25: expected closing brace, found the end of the filter  [throughline.yaml]",
            "destinations.three.oauth2.client_secret: the environment variable THROUGHLINE_TEST_NO_SUCH_VARIABLE is not set  [throughline.yaml]",
            "destinations.three.oauth2.colour: unknown key (known keys: audience, client_id, client_secret, credentials, parameters, scope, timeout, token_url)  [throughline.yaml]",
        ],
    );
}

#[test]
fn a_single_problem_is_a_single_line_and_several_are_a_line_each() {
    let one = Case::over("colour: green").load().unwrap_err().to_string();
    assert!(one.starts_with("colour: unknown key"), "{one}");
    assert_eq!(one.lines().count(), 1);
    let two = Case::over("colour: green\nsize: big").load().unwrap_err().to_string();
    assert!(two.starts_with("2 problems in the configuration:\n  colour: "), "{two}");
    assert_eq!(two.lines().count(), 3);
}

#[test]
fn an_empty_configuration_says_what_to_write() {
    let problems = Case::file("").problems();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].starts_with("kafka.bootstrap_servers: is missing"), "{problems:#?}");
    assert!(
        problems[1].starts_with("routes: no route is configured; write for example `routes: {one:"),
        "{problems:#?}"
    );
    // The suggested configuration is valid.
    let written: Vec<_> = problems[1].split('`').skip(1).step_by(2).collect();
    let case = Case::file(&format!("{}\nkafka: {{bootstrap_servers: k}}", written.join("\n")));
    case.loaded();
}

#[test]
fn a_problem_in_one_place_is_not_reported_elsewhere() {
    assert_problems(
        &Case::over(
            r"
routes:
  one: {path: 7, destinations: [1]}
  two: {topic: two, destinations: [four]}
destinations:
  four: {url: nonsense}
kafka: {bootstrap_servers: [a]}
",
        ),
        &[
            "routes.one.path: expected a string; found 7 (enclose it in quotes)  [throughline.yaml]",
            "routes.one.destinations[0]: expected a string; found 1 (enclose it in quotes)  [throughline.yaml]",
            "routes.two.path: is missing; expected a string  [throughline.yaml]",
            "destinations.four.url: expected a URL, such as `https://api.example.com/three`; found a different string  [throughline.yaml]",
            "kafka.bootstrap_servers: expected a string; found a list  [throughline.yaml]",
        ],
    );
}

#[test]
fn routes_do_not_share_paths_or_topics() {
    assert_problems(
        &Case::over("routes: {two: {path: /one, topic: one-request-local, destinations: [three]}}"),
        &[
            "routes.two.path: `/one` is already the path of route `one`  [throughline.yaml]",
            "routes.two.topic: `one-request-local` is already the topic of route `one`  [throughline.yaml]",
        ],
    );
}

#[test]
fn bodies_fit_into_records() {
    assert_problems(
        &Case::over("http: {body_limit: 8323073}"),
        &[
            "http.body_limit: exceeds the size of a Kafka record: with its headers, a body may have up to 8323072 \
             bytes; lower this limit, or raise message.max.bytes in kafka.properties and \
            max.message.bytes of the topics  [throughline.yaml]",
        ],
    );
    Case::over("http: {body_limit: 8323072}").loaded();
    Case::over("{http: {body_limit: 16MiB}, kafka: {properties: {message.max.bytes: 20971520}}}").loaded();
    let lowered = Case::over("kafka: {properties: {message.max.bytes: 1048576}}").problems();
    assert!(lowered.len() == 1 && lowered[0].contains("up to 983040 bytes"), "{lowered:?}");
}

fn route(field: &str, value: &str) -> Vec<String> {
    Case::over(&format!("routes: {{one: {{{field}: {value}}}}}"))
        .load()
        .map_or_else(|problems| problems.iter().map(ToString::to_string).collect(), |_| Vec::new())
}

#[test]
fn paths_are_plain_and_not_reserved() {
    for path in ["/one", "/a/b.c", "/~x/%20", "/v1x", "/docs-of-mine", "/healthz2", "/"] {
        assert!(route("path", &format!("'{path}'")).is_empty(), "{path}");
    }
    for path in [
        "",
        "one",
        "/v1",
        "/v1/x",
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/docs/x",
        "/a b",
        "/{id}",
        "/:id",
        "/*rest",
        "/a?b=c",
        "/a#b",
        "/ž",
    ] {
        assert_eq!(route("path", &format!("'{path}'")).len(), 1, "{path}");
    }
}

#[test]
fn topics_are_legal_and_not_internal() {
    for topic in ["a", "a.B_c-9", "throughline", "throughline-outcomes"] {
        assert!(route("topic", topic).is_empty(), "{topic}");
    }
    let long = "x".repeat(250);
    for topic in [
        "''",
        ".",
        "..",
        "a b",
        "a/b",
        "ž",
        "throughline.outcomes",
        "throughline.x",
        "__consumer_offsets",
        &long,
    ] {
        assert_eq!(route("topic", topic).len(), 1, "{topic}");
    }
}

#[test]
fn a_route_lists_each_destination_once() {
    let none = route("destinations", "[]");
    assert_eq!(none.len(), 1);
    assert!(
        none[0].contains("a route needs at least one destination (known destinations: three)"),
        "{none:?}"
    );
    assert_eq!(route("destinations", "[three, three]").len(), 1);
    assert_eq!(route("destinations", "[three, four, five]").len(), 2);
}

#[test]
fn ordering_keys_are_json_pointers() {
    for pointer in ["''", "/a", "/a~0b~1c/0", "/"] {
        assert!(route("ordering_key", pointer).is_empty(), "{pointer}");
    }
    for pointer in ["a", ".a", "/a~", "/a~2", "$.a"] {
        assert_eq!(route("ordering_key", pointer).len(), 1, "{pointer}");
    }
}

#[test]
fn strict_order_requires_an_ordering_key() {
    let problems = route("ordering", "strict");
    let message = "routes.one.ordering: `strict` keeps requests with the same ordering key in order, and requires an \
        `ordering_key`";
    assert!(problems.len() == 1 && problems[0].starts_with(message), "{problems:?}");
}

#[test]
fn a_schema_that_does_not_compile_is_reported_with_its_position_and_nothing_is_fetched() {
    for (schema, place) in [
        ("{type: objekt}", "routes.one.schema.type"),
        ("{properties: {a: {minimum: x}}}", "routes.one.schema.properties.a.minimum"),
        ("{pattern: '('}", "routes.one.schema.pattern"),
        ("{$ref: 'http://localhost:1/x.json'}", "routes.one.schema"),
        ("{$ref: 'file:///etc/hostname'}", "routes.one.schema"),
        ("{$ref: '#/$defs/x'}", "routes.one.schema"),
    ] {
        let problems = route("schema", schema);
        assert_eq!(problems.len(), 1, "{schema}: {problems:?}");
        assert!(
            problems[0].starts_with(&format!("{place}: the JSON Schema does not compile")),
            "{problems:?}"
        );
    }
    assert!(route("schema", "{$ref: '#/$defs/x', $defs: {x: {type: object}}}").is_empty());
}

#[test]
fn headers_are_legal() {
    let headers = "{'a b': x, good: \"x\\ny\", Language: en, language: de, ok: 'é'}";
    assert_problems(
        &Case::over(&format!(
            "destinations: {{three: {{headers: {headers}}}}}\nroutes: {{one: {{keep_headers: ['a:']}}}}"
        )),
        &[
            "destinations.three.headers.\"a b\": is not a valid HTTP header name  [throughline.yaml]",
            "destinations.three.headers.good: invalid HTTP header value: it must not contain line breaks or control characters  [throughline.yaml]",
            "destinations.three.headers.language: duplicate header: header names are case-insensitive  [throughline.yaml]",
            "routes.one.keep_headers[0]: is not a valid HTTP header name  [throughline.yaml]",
        ],
    );
}

#[test]
fn urls_are_http_without_credentials() {
    assert_problems(
        &Case::over(
            "destinations: {three: {url: 'ftp://x', oauth2: {token_url: 'http://me:hunter2@x', client_id: '', client_secret: x}}}",
        ),
        &[
            "destinations.three.url: expected an http or https URL  [throughline.yaml]",
            "destinations.three.oauth2.token_url: a URL must not contain credentials, because URLs are displayed; use `headers` with `{env: NAME}`, or `oauth2`  [throughline.yaml]",
            "destinations.three.oauth2.client_id: must not be empty  [throughline.yaml]",
        ],
    );
}

#[test]
fn the_database_is_postgresql_or_sqlite() {
    for url in ["postgres://u:p@h/d", "postgresql://h/d", "sqlite://x.db", "sqlite::memory:"] {
        Case::over(&format!("database: {{url: '{url}'}}")).loaded();
    }
    for url in ["mysql://root:hunter2@h/d", "hunter2", "/var/x.db"] {
        let problems = Case::over(&format!("database: {{url: '{url}'}}")).problems();
        assert_eq!(
            problems,
            [
                "database.url: expected `postgres://user:password@host/name` or `sqlite://path`  [throughline.yaml]"
            ]
        );
    }
}

#[test]
fn the_keys_of_clients_are_long_and_unique() {
    assert_problems(
        &Case::over(
            r"
clients:
  a: {key: hunter2-hunter2-hunter2}
  b: {key: hunter2-hunter2-hunter2}
  short: {key: hunter2-hunter2}
  empty: {key: ''}
  blank: {key: 'hunter2 hunter2 hunter2'}
  foreign: {key: 'hunter2-hunter2-hünter2'}
  unknown: {key: {env: NO_KEY}}
",
        ),
        &[
            "clients.b.key: duplicates the key of client `a`; give each client its own key  [throughline.yaml]",
            "clients.short.key: expected at least 16 visible ASCII characters, for example the output of `openssl rand -hex 32`  [throughline.yaml]",
            "clients.empty.key: expected at least 16 visible ASCII characters, for example the output of `openssl rand -hex 32`  [throughline.yaml]",
            "clients.blank.key: expected at least 16 visible ASCII characters, for example the output of `openssl rand -hex 32`  [throughline.yaml]",
            "clients.foreign.key: expected at least 16 visible ASCII characters, for example the output of `openssl rand -hex 32`  [throughline.yaml]",
            "clients.unknown.key: the environment variable NO_KEY is not set  [throughline.yaml]",
        ],
    );
}

#[test]
fn the_routes_of_clients_exist() {
    assert_problems(
        &Case::over(
            "clients: {shop: {key: '0123456789abcdef', routes: [one, two]}, operator: {key: '0123456789abcdeF', routes: []}}",
        ),
        &["clients.shop.routes[1]: unknown route `two` (known routes: one)  [throughline.yaml]"],
    );
}

#[test]
fn links_are_urls_with_a_placeholder_for_the_id() {
    assert_problems(
        &Case::over("links: {trace: 'https://grafana.example.com/explore', request: 'grafana/{request_id}'}"),
        &[
            "links.trace: expected an http or https URL that contains `{trace_id}`, such as `https://grafana.example.com/trace/{trace_id}`  [throughline.yaml]",
            "links.request: expected an http or https URL that contains `{request_id}`, such as `https://grafana.example.com/request/{request_id}`  [throughline.yaml]",
        ],
    );
    for link in
        ["'https://{trace_id}'", "'file:///{trace_id}'", "'https://h/{request_id}'", "'{trace_id}'", "''"]
    {
        let problems = Case::over(&format!("links: {{trace: {link}}}"))
            .load()
            .map_or_else(|problems| problems.iter().count(), |_| 0);
        assert_eq!(problems, usize::from(link != "'https://{trace_id}'"), "{link}");
    }
    let links = Case::over(
        "links: {trace: 'https://h/{trace_id}?{\"q\": \"{trace_id}\"}', request: 'http://h/?id={request_id}'}",
    );
    let links = links.loaded().settings.links;
    assert_eq!(links.to_trace("0af7").as_deref(), Some(r#"https://h/0af7?{"q": "0af7"}"#));
    assert_eq!(links.to_request("0042").as_deref(), Some("http://h/?id=0042"));
    assert_eq!(Case::over("").loaded().settings.links.to_trace("0af7"), None);
}

#[test]
fn names_for_kafka_are_legal() {
    let case = Case::file(LEAST)
        .environment(&[("THROUGHLINE_KAFKA__PREFIX", "a b"), ("THROUGHLINE_KAFKA__GROUP_INSTANCE_ID", "")]);
    assert_eq!(case.problems().len(), 2);
}

#[test]
fn retention_times_are_durations() {
    let expected = "expected a duration above zero, such as `500ms`, `30s` or `1h 30m`";
    assert_problems(
        &Case::over("retention: {delivered: 0s, dead: 30}"),
        &[
            &format!("retention.delivered: {expected}; found \"0s\"  [throughline.yaml]"),
            &format!("retention.dead: {expected}; found 30 (enclose it in quotes)  [throughline.yaml]"),
        ],
    );
}

#[test]
fn durations_beyond_the_range_of_clocks_are_rejected() {
    assert_eq!(Case::over("ingest: {redelivery_timeout: 11years}").problems().len(), 1);
    Case::over("ingest: {redelivery_timeout: 9years}").loaded();
}

#[test]
fn numbers_too_large_for_their_type_are_rejected() {
    for text in [
        "ingest: {batch: 4294967296}",
        "ingest: {batch: 340282366920938463463374607431768211456}",
        "ingest: {batch: 1.5}",
        "ingest: {batch: -1}",
        "http: {body_limit: 99999999999999999999}",
    ] {
        assert_eq!(Case::over(text).problems().len(), 1, "{text}");
    }
}

#[test]
fn a_wrong_value_that_may_be_a_secret_is_not_repeated() {
    let case = Case::over(
        r"
database: {url: 1234567}
destinations:
  three:
    url: 'http://me:hunter2@:x'
    headers: {a: 1234567, b: [hunter2], c: {evn: hunter2}}
    oauth2: hunter2
",
    );
    let problems = case.load().unwrap_err();
    assert_eq!(problems.iter().count(), 6, "{problems}");
    let text = format!("{problems} {problems:?}");
    assert!(!text.contains("1234567"), "{text}");
    assert!(!text.contains("hunter2@"), "{text}");
}

/// The problems of passwords.
const KNOWN: &str =
    "contains a publicly known password; `environment: production` requires a password of your own";

#[test]
fn publicly_known_passwords_are_rejected_in_production() {
    let text = "
database: {url: 'postgres://throughline:throughline@postgres/throughline'}
kafka:
  bootstrap_servers: kafka:9092
  properties: {sasl.password: changeme}
routes:
  one: {path: /one, topic: one, destinations: [three]}
destinations:
  three:
    url: http://localhost/three
    oauth2: {token_url: http://localhost/token, client_id: me, client_secret: development}
";
    let with = |environment| Case::file(text).environment(&[("THROUGHLINE_ENVIRONMENT", environment)]);
    with("staging").loaded();
    let message = format!("{KNOWN}  [throughline.yaml]");
    assert_problems(
        &with("production"),
        &[
            &format!("clients: {MISSING}"),
            &format!("database.url: {message}"),
            &format!("destinations.three.oauth2.client_secret: {message}"),
            &format!("kafka.properties.\"sasl.password\": {message}"),
            &format!("kafka.signing_key: {NO_SIGNING_KEY}  [throughline.yaml]"),
        ],
    );
}

const MISSING: &str = "is missing, so every caller that reaches ingest could post requests; `environment: production` \
                       requires clients with keys, or `insecure: true`";

const NO_SIGNING_KEY: &str = "is missing, so records would be signed with a publicly known key; `environment: \
                              production` requires a key of your own, for example the output of `openssl rand -hex 32`";

const PRODUCTION: (&str, &str) = ("THROUGHLINE_ENVIRONMENT", "production");
const INSECURE: (&str, &str) = ("THROUGHLINE_INSECURE", "true");
const SIGNING_KEY: (&str, &str) = ("THROUGHLINE_KAFKA__SIGNING_KEY", "a-key-of-ones-own");

#[test]
fn production_requires_clients_or_insecure() {
    let in_production = |text| Case::over(text).environment(&[PRODUCTION, SIGNING_KEY]);
    assert_problems(&in_production(""), &[&format!("clients: {MISSING}")]);
    let client = "clients: {shop: {key: 0123456789abcdef}}";
    for text in [client, "insecure: true"] {
        in_production(text).loaded();
    }
    // Where the environment sets `insecure` for a file without clients, the file may name some.
    in_production(&format!("{client}\ninsecure: true")).loaded();
    Case::over("").loaded();
}

#[test]
fn signing_keys_are_long_and_in_production_not_publicly_known() {
    let keys = |keys: &str| format!("kafka: {{bootstrap_servers: kafka:9092, {keys}}}");
    let case = Case::over(&keys("signing_key: too short, accepted_key: '0123456789abcde'"));
    let message =
        "expected at least 16 visible ASCII characters, for example the output of `openssl rand -hex 32`";
    assert_problems(
        &case,
        &[
            &format!("kafka.accepted_key: {message}  [throughline.yaml]"),
            &format!("kafka.signing_key: {message}  [throughline.yaml]"),
        ],
    );
    let known = "signing_key: development-only, accepted_key: development-only";
    Case::over(&keys(known)).loaded();
    assert_problems(
        &Case::over(&keys(known)).environment(&[PRODUCTION, INSECURE]),
        &[
            &format!("kafka.accepted_key: {KNOWN}  [throughline.yaml]"),
            &format!("kafka.signing_key: {KNOWN}  [throughline.yaml]"),
        ],
    );
    let without = Case::over("").environment(&[PRODUCTION, INSECURE]);
    assert_problems(&without, &[&format!("kafka.signing_key: {NO_SIGNING_KEY}  [default]")]);
    let own = Case::over(&keys("signing_key: a-key-of-ones-own, accepted_key: {env: THE_OTHER}"));
    let kafka = own
        .environment(&[PRODUCTION, INSECURE, ("THE_OTHER", "another-key-of-ones-own")])
        .loaded()
        .settings
        .kafka;
    assert_eq!(
        (kafka.signing_key(), kafka.accepted_key()),
        ("a-key-of-ones-own", Some("another-key-of-ones-own"))
    );
}

fn in_production(text: &str, variables: &[(&str, &str)]) -> Case {
    let environment = [&[PRODUCTION, INSECURE, SIGNING_KEY], variables].concat();
    Case::over(text).environment(&environment)
}

#[test]
fn production_is_recognised_in_any_case() {
    let text = "database: {url: 'postgres://me:changeme@h/d'}";
    for environment in ["production", "Production", "PRODUCTION"] {
        let environment = ("THROUGHLINE_ENVIRONMENT", environment);
        let case = Case::over(text).environment(&[environment, INSECURE, SIGNING_KEY]);
        assert_eq!(
            case.problems(),
            [format!("database.url: {KNOWN}  [throughline.yaml]")],
            "{environment:?}"
        );
    }
}

#[test]
fn known_passwords_are_found_anywhere_in_a_url() {
    for url in [
        "postgres://me:%63hangem%65@h/d",
        "postgres://h/d?user=me&password=throughline",
        "postgresql://me:s3cret-of-ours@h/d?password=%74hroughline",
        "postgres://h/d?password=s3cret-of-ours&password=throughline",
    ] {
        let problems = in_production(&format!("database: {{url: '{url}'}}"), &[]).problems();
        assert_eq!(problems, [format!("database.url: {KNOWN}  [throughline.yaml]")], "{url}");
    }
    for url in ["postgres://me:changeme@h/d?password=s3cret-of-ours", "postgres://changeme:changemf@h/d"] {
        in_production(&format!("database: {{url: '{url}'}}"), &[]).loaded();
    }
}

#[test]
fn a_url_without_a_password_uses_the_one_of_the_environment() {
    let with =
        |url, password| in_production(&format!("database: {{url: '{url}'}}"), &[("PGPASSWORD", password)]);
    for url in ["postgres://me@h/d", "postgresql://h/d", "postgres://me:@h/d"] {
        assert_problems(
            &with(url, "throughline"),
            &[
                "database.url: has no password, and the environment variable PGPASSWORD contains a publicly known \
                 one; `environment: production` requires a password of your own  [throughline.yaml]",
            ],
        );
        with(url, "s3cret-of-ours").loaded();
    }
    for url in
        ["postgres://me:s3cret-of-ours@h/d", "postgres://me@h/d?password=s3cret-of-ours", "sqlite://x.db"]
    {
        with(url, "throughline").loaded();
    }
}

#[test]
fn known_passwords_are_rejected_in_headers_for_credentials_only() {
    let case = in_production(
        "destinations: {three: {url: 'https://h', headers: {Authorization: Bearer changeme, X-Api-Key: secret, \
         User-Agent: throughline, X-Stage: development, Proxy-Authorization: Bearer s3cret-of-ours}}}",
        &[],
    );
    assert_problems(
        &case,
        &[
            &format!("destinations.three.headers.Authorization: {KNOWN}  [throughline.yaml]"),
            &format!("destinations.three.headers.X-Api-Key: {KNOWN}  [throughline.yaml]"),
        ],
    );
}
