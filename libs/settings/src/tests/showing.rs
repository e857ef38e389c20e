use super::Case;

fn case() -> Case {
    let mut case = Case::over(
        r#"
database: {url: {env: DATABASE_URL}}
kafka: {properties: {sasl.password: hunter2}}
clients: {shop: {key: {env: SHOP_KEY}}}
routes: {one: {schema: {file: s.json}, rate: 600/min}}
destinations:
  three:
    headers: {language: en, x-key: {env: HEADER}}
    filter: |
      # a comment
      {id: $id}
    oauth2: {token_url: 'https://auth/token', client_id: "7", client_secret: {file: secret}}
"#,
    )
    .with_file("s.json", "{\"type\": \"object\"}")
    .with_file("secret", "hunter2")
    .environment(&[
        ("DATABASE_URL", "postgres://me:hunter2@db/app"),
        ("HEADER", "hunter2"),
        ("SHOP_KEY", "hunter2-hunter2-hunter2"),
        ("THROUGHLINE_DISPATCH__CONCURRENCY", "7"),
    ]);
    case.flags.http = Some("127.0.0.1:1".to_owned());
    case
}

#[test]
fn secrets_are_masked_and_every_value_has_its_origin() {
    let mut case = case();
    let folder = format!("{}/", case.folder.path().display());
    case.flags.kafka = Some("broker:9092".to_owned());
    let loaded = case.loaded();
    let text = loaded.show().replace(&folder, "");
    // Without the blanks that align the comments.
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.split("  #").map(str::trim_end).collect::<Vec<_>>().join("  #"))
        .collect();
    for line in [
        "http:",
        "  address: 127.0.0.1:1  # --http",
        "  body_limit: 1MiB  # default",
        "  timeout: 5s  # default",
        "  url: postgres://me:***@db/app  # throughline.yaml {env: DATABASE_URL}",
        "  bootstrap_servers: broker:9092  # --kafka",
        "    sasl.password: \"***\"  # throughline.yaml",
        "  concurrency: 7  # environment THROUGHLINE_DISPATCH__CONCURRENCY",
        "  node_ids: 0-1023  # default",
        "  one:",
        "    path: /one  # default",
        "    destinations: [three]  # default",
        "    key: \"***\"  # throughline.yaml {env: SHOP_KEY}",
        "    routes: null  # default",
        "    manage: false  # default",
        "    schema: {file: s.json}  # throughline.yaml {file: s.json}",
        "    rate: 600/1m  # throughline.yaml",
        "      language: \"***\"  # throughline.yaml",
        "      x-key: \"***\"  # throughline.yaml {env: HEADER}",
        "    filter: \"# a comment\\n{id: $id}\\n\"  # throughline.yaml",
        "      client_id: \"7\"  # throughline.yaml",
        "      client_secret: \"***\"  # throughline.yaml {file: secret}",
        "  idempotency_window: 1day  # default",
        "  delivered: 30days  # default",
        "  dead: 90days  # default",
        "shutdown_deadline: 25s  # default",
    ] {
        assert!(lines.iter().any(|other| other == line), "{line}\n\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
    assert!(!format!("{loaded:?}").contains("hunter2"));
}

#[test]
fn shown_settings_are_valid_yaml() {
    let case = Case::over(
        "ingest: {idempotency_window: 36h}\nretention: {delivered: 7d, dead: 1000d}\nhttp: {body_limit: 1000001}",
    );
    let first = case.loaded();
    let second = Case::file(&first.show()).loaded();
    assert_eq!(format!("{:?}", first.settings), format!("{:?}", second.settings));
}

#[test]
fn debug_output_of_flags_omits_the_database() {
    let mut case = case();
    case.flags.database = Some("postgres://me:hunter2@db/app".to_owned());
    assert!(!format!("{:?}", case.flags).contains("hunter2"));
}
