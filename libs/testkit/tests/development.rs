//! What docker-compose.yml has for development stays there.

use std::fs::read_to_string;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use throughline_testkit::{Environment, Programs};

/// The top of the project, where docker-compose.yml is.
const PROJECT_FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Where docker-compose.yml has services find a password.
const PASSWORDS: [&str; 3] = ["PGPASSWORD", "RECORDS_SECRET", "THREE_CLIENT_SECRET"];

/// What the names of variables that hold one have in them.
const SECRET: [&str; 2] = ["PASSWORD", "SECRET"];

#[test]
fn no_service_accepts_a_default_password_of_docker_compose_yml_in_production() -> anyhow::Result<()> {
    let text = read_to_string(Path::new(PROJECT_FOLDER).join("docker-compose.yml"))?;
    let defaults = defaults(&text);
    ensure!(defaults.len() >= PASSWORDS.len(), "docker-compose.yml has only {defaults:?}");
    let programs = Programs::build()?;
    let own = check_in_production(&programs, &[])?;
    ensure!(own.status.success(), "passwords of one's own are refused: {own:?}");
    for (name, default) in defaults {
        for password in PASSWORDS {
            let checked = check_in_production(&programs, &[(password, default)])?;
            let said = [checked.stdout, checked.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            ensure!(!checked.status.success(), "`{default}`, of {name}, is taken as {password}");
            ensure!(said.contains("publicly known"), "`{default}`, of {name}, as {password}: {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn grafana_requires_a_password_except_for_development() -> anyhow::Result<()> {
    if !Environment::engine_or_skip("who may look into Grafana").await? {
        return Ok(());
    }
    let production = ("THROUGHLINE_ENVIRONMENT", "production");
    let own = ("GRAFANA_PASSWORD", "one's own");
    for (variables, anybody, no_administrator) in [
        (&[][..], true, false),
        (&[own], true, false),
        (&[production], false, true),
        (&[production, own], false, false),
        (&[production, own, ("GRAFANA_ANONYMOUS", "true")], true, false),
    ] {
        let settings = settings_of("grafana", variables)?;
        let is = |name| settings[name].as_str() == Some("true");
        assert_eq!(is("GF_AUTH_ANONYMOUS_ENABLED"), anybody, "{variables:?}: {settings}");
        let lacks_administrator = is("GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION");
        assert_eq!(lacks_administrator, no_administrator, "{variables:?}: {settings}");
    }
    Ok(())
}

#[tokio::test]
async fn docker_compose_yml_opens_management_to_everyone_only_for_development() -> anyhow::Result<()> {
    if !Environment::engine_or_skip("who may manage").await? {
        return Ok(());
    }
    let production = ("THROUGHLINE_ENVIRONMENT", "production");
    let programs = Programs::build()?;
    for (variables, everybody) in
        [(&[][..], true), (&[production], false), (&[production, ("THROUGHLINE_INSECURE", "true")], true)]
    {
        let settings = settings_of("ingest", variables)?;
        let insecure = settings["THROUGHLINE_INSECURE"].as_str().context("not set")?;
        let checked = check_in_production(&programs, &[("THROUGHLINE_INSECURE", insecure)])?;
        ensure!(checked.status.success() == everybody, "{variables:?}: {insecure}: {checked:?}");
    }
    Ok(())
}

/// The variables in a text that are to hold a password, each with its default: of
/// `${NAME:-password}` and `${NAME-password}`, the password.
fn defaults(text: &str) -> Vec<(&str, &str)> {
    let variables = text.split("${").skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
    variables
        .filter_map(|variable| variable.split_once('-'))
        .map(|(name, default)| (name.trim_end_matches(':'), default))
        .filter(|(name, default)| SECRET.iter().any(|part| name.contains(part)) && !default.is_empty())
        .collect()
}

/// Has `throughline config check` look at what docker-compose.yml mounts, with passwords of one's own but for some.
fn check_in_production(programs: &Programs, but: &[(&str, &str)]) -> anyhow::Result<Output> {
    let mut check = Command::new(programs.path("throughline"));
    check
        .args(["config", "check", "--config", "deploy/throughline.yaml"])
        .current_dir(PROJECT_FOLDER)
        .env_clear()
        .env("THROUGHLINE_ENVIRONMENT", "production")
        .env("THROUGHLINE_INSECURE", "true")
        .env("THROUGHLINE_DATABASE__URL", "postgres://throughline@postgres/throughline")
        .envs(PASSWORDS.map(|name| (name, "a-password-of-one's-own")))
        .envs(but.iter().copied());
    check.output().context("throughline does not run")
}

/// What docker-compose.yml sets for a service, with variables that are set, and no others.
fn settings_of(service: &str, variables: &[(&str, &str)]) -> anyhow::Result<Value> {
    let mut compose = Command::new("docker");
    compose
        .args(["compose", "--file", "docker-compose.yml", "--env-file", "/dev/null"])
        .args(["--profile", "observability", "config", "--format", "json", service])
        .current_dir(PROJECT_FOLDER);
    for name in ["GRAFANA_ANONYMOUS", "GRAFANA_PASSWORD", "THROUGHLINE_ENVIRONMENT", "THROUGHLINE_INSECURE"] {
        compose.env_remove(name);
    }
    let printed = compose.envs(variables.iter().copied()).output().context("docker does not run")?;
    ensure!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let mut printed: Value = serde_json::from_slice(&printed.stdout)?;
    Ok(printed["services"][service]["environment"].take())
}
