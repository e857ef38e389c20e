use std::collections::BTreeSet;
use std::fs::read_to_string;

use clap::CommandFactory as _;
use clap::error::ErrorKind;
use serde_json::Value as Json;

use super::markdown::{Block, documents, project};
use super::{assert_none, blocks, shell};
use crate::{Dev, folder};

/// The addresses of ingest, and those that serve only health checks.
const INGEST: &str = "localhost:8099";
const HEALTH: [&str; 2] = ["localhost:8096", "localhost:8098"];
/// WireMock, and Grafana.
const OTHER_SERVERS: [&str; 2] = ["localhost:8080", "localhost:3000"];

/// The sources that commands are checked against.
struct Sources {
    makefile: String,
    services: BTreeSet<String>,
    chart: Json,
    openapi: Json,
}

impl Sources {
    async fn read() -> Self {
        let read = |path: &str| read_to_string(project().join(path)).unwrap();
        let yaml = |path: &str| serde_saphyr::from_str::<Json>(&read(path)).unwrap();
        let compose = yaml("docker-compose.yml");
        let folder = folder(crate::FREE_PORTS);
        let dev = Dev::start(&folder).await;
        let openapi = Dev::get(format!("{}/openapi.json", dev.ingest)).await.unwrap();
        Self {
            makefile: read("Makefile"),
            services: compose["services"].as_object().unwrap().keys().cloned().collect(),
            chart: yaml("deploy/helm/throughline/values.yaml"),
            openapi,
        }
    }

    fn check(&self, command: &[String], is_complete: bool) -> Result<(), String> {
        let words: Vec<_> = command.iter().map(String::as_str).collect();
        let (program, arguments) = words.split_first().ok_or("an empty command")?;
        match *program {
            "make" => self.make(arguments)?,
            "throughline" => throughline(&words, is_complete)?,
            "curl" => self.curl(arguments)?,
            "docker" => self.docker(arguments)?,
            "helm" => self.helm(arguments)?,
            // Of other programs, only paths in this project are checked.
            _ => {}
        }
        let folders = ["deploy/", "docs/", "features/", "libs/", "migrations/", "services/"];
        let mut paths = arguments.iter().filter(|word| folders.iter().any(|folder| word.starts_with(folder)));
        match paths.find(|path| !project().join(path).exists()) {
            Some(path) => Err(format!("{path} does not exist")),
            None => Ok(()),
        }
    }

    fn make(&self, arguments: &[&str]) -> Result<(), String> {
        for argument in arguments {
            if let Some((name, _)) = argument.split_once('=') {
                let scripts = read_to_string(project().join(".ci/conformance")).unwrap();
                let is_used = [&self.makefile, &scripts].iter().any(|text| {
                    [format!("$({name})"), format!("$${name}"), format!("\"{name}\"")]
                        .iter()
                        .any(|use_of| text.contains(use_of))
                });
                if !is_used {
                    return Err(format!("the Makefile does not use {name}"));
                }
            } else if !self.makefile.contains(&format!("\n{argument}:")) {
                return Err(format!("the Makefile has no target {argument}"));
            }
        }
        Ok(())
    }

    fn docker(&self, arguments: &[&str]) -> Result<(), String> {
        let ["compose", action, rest @ ..] = arguments else { return Ok(()) };
        let takes_services = ["build", "logs", "ps", "restart", "start", "stop", "up"].contains(action);
        if !takes_services && !["config", "down", "exec", "kill"].contains(action) {
            return Err(format!("no check knows `docker compose {action}`"));
        }
        let mut names = rest.iter().filter(|word| takes_services && !word.starts_with('-'));
        match names.find(|name| !self.services.contains(**name)) {
            Some(name) => Err(format!("docker-compose.yml has no service {name}")),
            None => Ok(()),
        }
    }

    fn helm(&self, arguments: &[&str]) -> Result<(), String> {
        for pair in arguments.windows(2).filter(|pair| pair[0] == "--set") {
            let (key, _) = pair[1].split_once('=').ok_or("`--set` without a value")?;
            if self.chart.pointer(&format!("/{}", key.replace('.', "/"))).is_none() {
                return Err(format!("the chart has no value {key}"));
            }
        }
        Ok(())
    }

    fn curl(&self, arguments: &[&str]) -> Result<(), String> {
        let (mut method, mut url) = ("get", None);
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match *word {
                "-X" => method = words.next().ok_or("`-X` without a method")?,
                "-d" => method = words.next().map(|_| "post").ok_or("`-d` without a body")?,
                "-H" => drop(words.next().ok_or("`-H` without a header")?),
                "-i" => {}
                option if option.starts_with('-') => return Err(format!("no check knows `curl {option}`")),
                word => url = Some(word.trim_start_matches("http://")),
            }
        }
        let url = url.ok_or("`curl` without a URL")?;
        let (server, target) = url.split_once('/').ok_or("a URL without a path")?;
        if OTHER_SERVERS.contains(&server)
            || HEALTH.contains(&server) && ["healthz", "readyz"].contains(&target)
        {
            return Ok(());
        }
        if server != INGEST {
            return Err(format!("{url}: no server of ours serves this"));
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let paths = self.openapi["paths"].as_object().unwrap();
        // A path without parameters comes first.
        let (_, item) = paths
            .iter()
            .filter(|(template, _)| is_path(template, path))
            .min_by_key(|(template, _)| template.contains('{'))
            .ok_or_else(|| format!("/openapi.json has no path /{path}"))?;
        let operation = item.get(method.to_lowercase()).ok_or_else(|| format!("/{path} has no {method}"))?;
        let described = format!("{}{}", item["parameters"], operation["parameters"]);
        let mut names =
            query.split('&').filter_map(|part| part.split('=').next()).filter(|name| !name.is_empty());
        match names.find(|name| !described.contains(&format!("\"name\":\"{name}\""))) {
            Some(name) => Err(format!("/{path} has no parameter {name}")),
            None => Ok(()),
        }
    }
}

fn is_path(template: &str, path: &str) -> bool {
    let (template, path): (Vec<_>, Vec<_>) = (template[1..].split('/').collect(), path.split('/').collect());
    let fits = |(template, part): (&&str, &&str)| template.starts_with('{') || template == part;
    template.len() == path.len() && template.iter().zip(&path).all(fits)
}

/// Parses a command line of the real command; one in a sentence may lack arguments.
fn throughline(words: &[&str], is_complete: bool) -> Result<(), String> {
    let Err(error) = throughline::Command::command().try_get_matches_from(words) else { return Ok(()) };
    let lacks_arguments = matches!(
        error.kind(),
        ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if lacks_arguments && !is_complete { Ok(()) } else { Err(error.to_string()) }
}

fn problems(block: &Block, is_complete: bool, sources: &Sources) -> Vec<String> {
    match shell::commands(&block.text) {
        Err(error) => vec![block.problem(error)],
        Ok(commands) => {
            let check = |command: &Vec<String>| sources.check(command, is_complete).err();
            commands.iter().filter_map(check).map(|error| block.problem(error)).collect()
        }
    }
}

#[tokio::test]
async fn every_command_in_the_documents_exists() {
    let sources = Sources::read().await;
    let mut found = Vec::new();
    for block in blocks("sh") {
        found.extend(problems(&block, true, &sources));
    }
    for span in documents().into_values().flat_map(|document| document.spans) {
        if ["make ", "throughline "].iter().any(|program| span.text.starts_with(program)) {
            found.extend(problems(&span, false, &sources));
        }
    }
    assert_none(&found);
}
