use super::{Case, assert_problems, http};

#[test]
fn secrets_come_from_environment_and_files() {
    let case = Case::over(
        r"
destinations:
  three:
    headers: {a: {env: HEADER_A}, b: {file: b.txt}, c: plain}
kafka: {properties: {sasl.password: {file: sub/../b.txt}}}
",
    )
    .with_file("b.txt", "of a file\r\n");
    std::fs::create_dir(case.path("sub")).unwrap();
    let settings = case.environment(&[("HEADER_A", "of the environment")]).loaded().settings;
    let headers = http(&settings.destinations["three"]).headers;
    assert_eq!(headers["a"].expose(), "of the environment");
    assert_eq!(headers["b"].expose(), "of a file");
    assert_eq!(headers["c"].expose(), "plain");
    assert_eq!(settings.kafka.properties["sasl.password"].expose(), "of a file");
}

#[test]
fn unresolvable_references_are_reported() {
    assert_problems(
        &Case::over(
            r"
database: {url: {env: NO_URL}}
destinations:
  three:
    headers: {a: {file: missing.txt}, b: {evn: X}, c: {env: X, file: Y}, d: {}}
routes: {one: {schema: {file: missing.json}}}
",
        ),
        &[
            "database.url: the environment variable NO_URL is not set  [throughline.yaml]",
            "destinations.three.headers.a: cannot read missing.txt: No such file or directory (os error 2)  [throughline.yaml]",
            "destinations.three.headers.b.evn: unknown key; did you mean `env`?  [throughline.yaml]",
            "destinations.three.headers.c: expected a string, `{env: NAME}` or `{file: PATH}`; found a mapping  \
             [throughline.yaml]",
            "destinations.three.headers.d: expected a string, `{env: NAME}` or `{file: PATH}`; found a mapping  \
             [throughline.yaml]",
            "routes.one.schema: cannot read missing.json: No such file or directory (os error 2)  [throughline.yaml]",
        ],
    );
}

#[test]
fn schemas_come_from_json_and_yaml_files() {
    for (name, text) in
        [("s.json", "{\"type\": \"object\", \"default\": null}"), ("s.yaml", "type: object\ndefault:")]
    {
        let case =
            Case::over(&format!("routes: {{one: {{schema: {{file: {name}}}}}}}")).with_file(name, text);
        let settings = case.loaded().settings;
        let document = settings.routes["one"].schema.as_ref().unwrap().document();
        assert_eq!(*document, serde_json::json!({"type": "object", "default": null}));
    }
}

#[test]
fn an_invalid_schema_file_is_reported() {
    let case = Case::over("routes: {one: {schema: {file: s.json}}}").with_file("s.json", "{");
    assert_problems(
        &case,
        &[
            "routes.one.schema: s.json is not JSON: EOF while parsing an object at line 1 column 1  [throughline.yaml]",
        ],
    );
}
