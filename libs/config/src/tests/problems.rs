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
ingest: {patience: 0s}
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
            "http.colour: there is no such key (there are: address, body_limit, connections_per_address, health_address, timeout)  [throughline.yaml]",
            "http.body_limit: expected a size above zero, such as `64KiB` or `1MiB`; found \"much\"  [throughline.yaml]",
            "kafka.compression: expected `lz4`, `zstd` or `none`; found \"gzip\"  [throughline.yaml]",
            "kafka.topics.partitions: expected a whole number from 1 to 4294967295; found 0  [throughline.yaml]",
            "kafka.topics.create: expected `true` or `false`; found \"perhaps\"  [throughline.yaml]",
            "ingest.patience: expected a duration above zero, such as `500ms`, `30s` or `1h 30m`; found \"0s\"  [throughline.yaml]",
            "routes.one.path: a path begins with `/`: write `/one`  [throughline.yaml]",
            "routes.one.destinations[0]: no destination is called `thre` (there are: three)  [throughline.yaml]",
            "destinations.three.filter: the filter does not compile: line 1, column 25: expected closing brace, found the end  [throughline.yaml]",
            "destinations.three.oauth2.client_secret: the environment has no THROUGHLINE_TEST_NO_SUCH_VARIABLE  [throughline.yaml]",
            "destinations.three.oauth2.colour: there is no such key (there are: audience, client_id, client_secret, credentials, parameters, scope, timeout, token_url)  [throughline.yaml]",
        ],
    );
}

#[test]
fn a_single_problem_is_a_single_line_and_several_are_a_line_each() {
    let one = Case::over("colour: green").load().unwrap_err().to_string();
    assert!(one.starts_with("colour: there is no such key"), "{one}");
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
        problems[1].starts_with("routes: there is no route; write for example `routes: {one:"),
        "{problems:#?}"
    );
    // What it says to write is sound.
    let written: Vec<_> = problems[1].split('`').skip(1).step_by(2).collect();
    let case = Case::file(&format!("{}\nkafka: {{bootstrap_servers: k}}", written.join("\n")));
    case.loaded();
}

#[test]
fn what_is_wrong_in_one_place_raises_no_alarm_elsewhere() {
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
            "routes.one.path: expected a text; found 7 (put quotes round it)  [throughline.yaml]",
            "routes.one.destinations[0]: expected a text; found 1 (put quotes round it)  [throughline.yaml]",
            "routes.two.path: is missing; expected a text  [throughline.yaml]",
            "destinations.four.url: expected a URL, such as `https://api.example.com/three`; found another text  [throughline.yaml]",
            "kafka.bootstrap_servers: expected a text; found a list  [throughline.yaml]",
        ],
    );
}

#[test]
fn routes_do_not_share_paths_or_topics() {
    assert_problems(
        &Case::over("routes: {two: {path: /one, topic: one-request-local, destinations: [three]}}"),
        &[
            "routes.two.path: `/one` is the path of route `one` already  [throughline.yaml]",
            "routes.two.topic: `one-request-local` is the topic of route `one` already  [throughline.yaml]",
        ],
    );
}

#[test]
fn bodies_fit_into_records() {
    assert_problems(
        &Case::over("http: {body_limit: 8323073}"),
        &["http.body_limit: is more than fits into a record of Kafka: with its headers, a body may have up \
            to 8323072 bytes; lower it, or raise message.max.bytes in kafka.properties and \
            max.message.bytes of the topics  [throughline.yaml]"],
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
fn paths_are_plain_and_not_ingests_own() {
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
fn a_route_has_destinations_each_once() {
    let none = route("destinations", "[]");
    assert_eq!(none.len(), 1);
    assert!(none[0].contains("a route names at least one destination (there are: three)"), "{none:?}");
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
fn a_schema_that_does_not_compile_says_where_and_nothing_is_fetched() {
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
            "destinations.three.headers.\"a b\": is not the name of an HTTP header  [throughline.yaml]",
            "destinations.three.headers.good: the value cannot be that of an HTTP header: no line breaks, no control characters  [throughline.yaml]",
            "destinations.three.headers.language: is there twice; case makes no difference  [throughline.yaml]",
            "routes.one.keep_headers[0]: is not the name of an HTTP header  [throughline.yaml]",
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
            "destinations.three.oauth2.token_url: credentials do not belong into a URL, which is shown; use `headers` with `{env: NAME}`, or `oauth2`  [throughline.yaml]",
            "destinations.three.oauth2.client_id: is empty  [throughline.yaml]",
        ],
    );
}

#[test]
fn the_database_is_one_of_two_kinds() {
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
fn the_keys_of_clients_are_long_and_their_own() {
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
            "clients.b.key: is the key of client `a` already  [throughline.yaml]",
            "clients.short.key: expected at least 16 visible ASCII characters, such as `openssl rand -hex 32` makes  [throughline.yaml]",
            "clients.empty.key: expected at least 16 visible ASCII characters, such as `openssl rand -hex 32` makes  [throughline.yaml]",
            "clients.blank.key: expected at least 16 visible ASCII characters, such as `openssl rand -hex 32` makes  [throughline.yaml]",
            "clients.foreign.key: expected at least 16 visible ASCII characters, such as `openssl rand -hex 32` makes  [throughline.yaml]",
            "clients.unknown.key: the environment has no NO_KEY  [throughline.yaml]",
        ],
    );
}

#[test]
fn the_routes_of_clients_exist() {
    assert_problems(
        &Case::over(
            "clients: {shop: {key: '0123456789abcdef', routes: [one, two]}, operator: {key: '0123456789abcdeF', routes: []}}",
        ),
        &["clients.shop.routes[1]: no route is called `two` (there are: one)  [throughline.yaml]"],
    );
}

#[test]
fn links_are_urls_with_a_place_for_the_id() {
    assert_problems(
        &Case::over("links: {trace: 'https://grafana.example.com/explore', request: 'grafana/{request_id}'}"),
        &[
            "links.trace: expected an http or https URL with `{trace_id}` in it, such as `https://grafana.example.com/trace/{trace_id}`  [throughline.yaml]",
            "links.request: expected an http or https URL with `{request_id}` in it, such as `https://grafana.example.com/request/{request_id}`  [throughline.yaml]",
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
fn names_that_kafka_gets_are_legal() {
    let case = Case::file(LEAST)
        .environment(&[("THROUGHLINE_KAFKA__PREFIX", "a b"), ("THROUGHLINE_KAFKA__GROUP_INSTANCE_ID", "")]);
    assert_eq!(case.problems().len(), 2);
}

#[test]
fn what_has_ended_is_kept_for_a_time() {
    let expected = "expected a duration above zero, such as `500ms`, `30s` or `1h 30m`";
    assert_problems(
        &Case::over("retention: {delivered: 0s, dead: 30}"),
        &[
            &format!("retention.delivered: {expected}; found \"0s\"  [throughline.yaml]"),
            &format!("retention.dead: {expected}; found 30 (put quotes round it)  [throughline.yaml]"),
        ],
    );
}

#[test]
fn durations_that_no_clock_can_be_advanced_by_are_refused() {
    assert_eq!(Case::over("ingest: {patience: 11years}").problems().len(), 1);
    Case::over("ingest: {patience: 9years}").loaded();
}

#[test]
fn numbers_too_large_for_their_type_are_refused() {
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

/// What is wrong with a password, each time.
const KNOWN: &str = "has a password that everybody knows; `environment: production` wants one of your own";

#[test]
fn passwords_that_everybody_knows_are_refused_in_production() {
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

const MISSING: &str = "are missing: everybody who reaches ingest could post; `environment: production` wants clients \
                       with keys, or `insecure: true`";

const NO_SIGNING_KEY: &str = "is missing, so records would be signed with a key that everybody knows; `environment: production` wants one of \
     your own, such as `openssl rand -hex 32` makes";

const PRODUCTION: (&str, &str) = ("THROUGHLINE_ENVIRONMENT", "production");
const INSECURE: (&str, &str) = ("THROUGHLINE_INSECURE", "true");
const SIGNING_KEY: (&str, &str) = ("THROUGHLINE_KAFKA__SIGNING_KEY", "a-key-of-ones-own");

#[test]
fn production_has_clients_or_says_that_it_is_insecure() {
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
fn keys_of_signatures_are_long_and_in_production_of_ones_own() {
    let keys = |keys: &str| format!("kafka: {{bootstrap_servers: kafka:9092, {keys}}}");
    let case = Case::over(&keys("signing_key: too short, accepted_key: '0123456789abcde'"));
    let message = "expected at least 16 visible ASCII characters, such as `openssl rand -hex 32` makes";
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
fn production_is_production_in_capitals_too() {
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
fn known_passwords_are_seen_wherever_a_url_has_them() {
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
fn a_url_without_a_password_is_held_against_that_of_the_environment() {
    let with =
        |url, password| in_production(&format!("database: {{url: '{url}'}}"), &[("PGPASSWORD", password)]);
    for url in ["postgres://me@h/d", "postgresql://h/d", "postgres://me:@h/d"] {
        assert_problems(
            &with(url, "throughline"),
            &[
                "database.url: has no password, and PGPASSWORD in the environment is one that everybody knows; \
               `environment: production` wants one of your own  [throughline.yaml]",
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
fn known_passwords_in_headers_are_refused_and_other_headers_say_what_they_like() {
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
