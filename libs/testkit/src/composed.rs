use std::env::var_os;
use std::ffi::OsString;
use std::io::{Cursor, ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{self, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::configuration::{self, Addresses};
use crate::container::free_port;
use crate::eventually::eventually;
use crate::output::Output;
use crate::program::Ended;
use crate::programs::Programs;
use crate::stage::Service;

/// Differs from the project that a developer may have running, so that both can run at the same time.
const PROJECT: &str = "throughline-features";

/// The root of the repository, which contains docker-compose.yml.
const PROJECT_FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The deadline for `docker compose` operations on existing containers. They mostly take a second.
const DEADLINE: Duration = Duration::from_mins(2);

/// Variables that would change the behaviour under test.
const UNSET: [&str; 8] = [
    "COMPOSE_PROFILES",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_RESOURCE_ATTRIBUTES",
    "POSTGRES_PASSWORD",
    "RECORDS_SECRET",
    "THREE_CLIENT_SECRET",
    "THROUGHLINE_ENVIRONMENT",
    "THROUGHLINE_INSECURE",
];

/// WireMock returns all its calls in one document: bodies of 28 MB are 80 MB of JSON, which Java copies several
/// times.
const THIRD_PARTY_MEMORY: &str = "2g";

const DOWN: [&str; 4] = ["down", "--volumes", "--timeout", "1"];

/// The position of the exit code in a wait status, in bits from the right: wait(2).
const EXITED: i32 = 8;

/// The addresses that containers listen on, and those that they use to reach each other.
pub(crate) const INSIDE: Addresses<'static> = Addresses {
    http: "0.0.0.0:8099",
    health: "0.0.0.0:8096",
    dispatch: "0.0.0.0:8098",
    broker: "kafka:9092",
    third_party: "http://third-party:8080",
};

/// The running containers of docker-compose.yml. They are removed when it is dropped.
///
/// Tests use them as users do: over HTTP, Kafka and SQL at the published ports. They start, stop and kill services
/// with `docker compose`.
pub(crate) struct Composed {
    folder: TempDir,
    ports: Ports,
    /// The profile of the already compiled programs that the images are built from, if they are.
    profile: Option<OsString>,
}

/// The published ports.
struct Ports {
    ingest: u16,
    dispatch: u16,
    postgres: u16,
    kafka: u16,
    third_party: u16,
}

/// A running service, with its output.
pub(crate) struct Container {
    service: Service,
    output: Output,
    /// Ends when dropped.
    _logs: Child,
}

impl Composed {
    /// Builds the images, starts everything with a configuration, and waits until it is ready.
    ///
    /// # Errors
    /// If `docker compose` fails: its output.
    pub(crate) async fn up(configuration: &str) -> anyhow::Result<Self> {
        let ports = Ports {
            ingest: free_port()?,
            dispatch: free_port()?,
            postgres: free_port()?,
            kafka: free_port()?,
            third_party: free_port()?,
        };
        let folder = TempDir::with_prefix("throughline-")?;
        let composed = Self { folder, ports, profile: profile_on_host()? };
        composed.configure(configuration)?;
        // Remove containers of an earlier run that was killed.
        composed.run(&DOWN, Some(DEADLINE)).await?;
        composed.run(&["build"], None).await?;
        composed.run(&["pull", "--policy", "missing", "--ignore-buildable"], None).await?;
        composed.run(&["up", "--detach"], Some(DEADLINE)).await?;
        for service in [Service::Ingest, Service::Dispatch] {
            let healthy = async || {
                let health = composed.inspect(service, "{{.State.Health.Status}}").await?;
                ensure!(health == "healthy", "{service} is {health}");
                Ok(())
            };
            eventually("the containers to be healthy", DEADLINE, healthy).await?;
        }
        Ok(composed)
    }

    /// Replaces the configuration that services read at their start.
    pub(crate) fn configure(&self, text: &str) -> anyhow::Result<()> {
        // The file is overwritten in place, since this file is mounted.
        configuration::write(self.folder.path(), text)
    }

    /// Returns the configuration that services read at their start.
    pub(crate) fn configuration(&self) -> anyhow::Result<String> {
        configuration::read(self.folder.path())
    }

    /// Removes the state of an earlier test: stops the services, starts other containers that are down, and empties
    /// the database.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        self.run(&["kill", "ingest", "dispatch"], Some(DEADLINE)).await?;
        self.run(&["rm", "--force", "ingest", "dispatch"], Some(DEADLINE)).await?;
        let others = ["postgres", "kafka", "third-party"];
        self.run(&[&["up", "--detach", "--no-recreate", "--wait"][..], &others].concat(), Some(DEADLINE))
            .await?;
        let sql = "DROP SCHEMA public CASCADE; CREATE SCHEMA public";
        let psql = ["psql", "--quiet", "--username", "throughline", "--command", sql];
        self.run(&[&["exec", "--no-TTY", "postgres"][..], &psql].concat(), Some(DEADLINE)).await?;
        Ok(())
    }

    /// Starts a service and waits until it listens.
    pub(crate) async fn start(&self, service: Service) -> anyhow::Result<Container> {
        let name = name(service);
        self.run(&["up", "--detach", "--no-deps", "--no-build", "--force-recreate", name], Some(DEADLINE))
            .await?;
        let mut logs = self.command(&["logs", "--follow", "--no-log-prefix", "--no-color", name]);
        let mut logs = logs.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
        let output = Output::default();
        output.follow(logs.stdout.take().context("no stdout")?);
        let listening = eventually("the service to listen", DEADLINE, async || {
            output.address().with_context(|| format!("it printed:\n{}", output.text()))
        });
        listening.await?;
        Ok(Container { service, output, _logs: logs })
    }

    /// Starts a service that is expected to exit by itself.
    pub(crate) async fn start_in_vain(&self, service: Service) -> anyhow::Result<Ended> {
        self.run_to_its_end(&[name(service)]).await
    }

    /// Runs the `throughline` command.
    pub(crate) async fn run_command(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        self.run_to_its_end(&[&["throughline"][..], arguments].concat()).await
    }

    async fn run_to_its_end(&self, service_and_arguments: &[&str]) -> anyhow::Result<Ended> {
        let mut run = self.command(&["run", "--rm", "--no-deps", "--no-TTY"]);
        let ended = ended(run.args(service_and_arguments), Some(DEADLINE)).await?;
        let output = Output::default();
        for printed in [ended.stdout, ended.stderr] {
            output.follow(Cursor::new(printed)).await?;
        }
        Ok(Ended { status: ended.status, output })
    }

    /// Sends SIGKILL to a service.
    pub(crate) async fn kill(&self, container: Container) -> anyhow::Result<()> {
        self.run(&["kill", name(container.service)], Some(DEADLINE)).await?;
        Ok(())
    }

    /// Sends SIGTERM to a service, and waits until it has exited.
    pub(crate) async fn stop(&self, container: Container) -> anyhow::Result<Ended> {
        let Container { service, output, _logs: mut logs } = container;
        self.run(&["stop", name(service)], Some(DEADLINE)).await?;
        // The logs end with the container.
        timeout(DEADLINE, logs.wait()).await.context("its logs do not end")??;
        let code: i32 = self.inspect(service, "{{.State.ExitCode}}").await?.parse()?;
        Ok(Ended { status: ExitStatus::from_raw(code << EXITED), output })
    }

    /// Replaces Kafka with an empty one, without the topics of earlier tests: after a kill it would scan all of them.
    pub(crate) async fn renew_kafka(&self) -> anyhow::Result<()> {
        self.run(&["rm", "--stop", "--force", "kafka"], Some(DEADLINE)).await?;
        let volume = format!("{PROJECT}_kafka");
        ended_well(Command::new("docker").args(["volume", "rm", "--force", &volume]), Some(DEADLINE)).await?;
        self.run(&["up", "--detach", "--wait", "kafka"], Some(DEADLINE)).await?;
        Ok(())
    }

    /// Returns the id of the container that Kafka runs in.
    pub(crate) async fn kafka(&self) -> anyhow::Result<String> {
        self.run(&["ps", "--all", "--quiet", "kafka"], Some(DEADLINE)).await
    }

    /// Returns the address of a service, as reachable from here.
    pub(crate) fn address(&self, service: Service) -> SocketAddr {
        let port = match service {
            Service::Ingest => self.ports.ingest,
            Service::Dispatch => self.ports.dispatch,
        };
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// Returns the URL of the database, as reachable from here.
    pub(crate) fn database(&self) -> String {
        format!("postgres://throughline:throughline@127.0.0.1:{}/throughline", self.ports.postgres)
    }

    /// Returns the port of the broker, as reachable from here.
    pub(crate) fn kafka_port(&self) -> u16 {
        self.ports.kafka
    }

    /// Returns the URL of the third party, as reachable from here.
    pub(crate) fn third_party(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.third_party)
    }

    async fn inspect(&self, service: Service, format: &str) -> anyhow::Result<String> {
        let id = self.run(&["ps", "--all", "--quiet", name(service)], Some(DEADLINE)).await?;
        let mut inspect = Command::new("docker");
        ended_well(inspect.args(["inspect", "--format", format, &id]), Some(DEADLINE)).await
    }

    /// Runs `docker compose` and returns its output.
    async fn run(&self, arguments: &[&str], deadline: Option<Duration>) -> anyhow::Result<String> {
        ended_well(&mut self.command(arguments), deadline).await
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        // No settings that a developer has made for another project: no .env, no override.
        command.args(["compose", "--project-name", PROJECT, "--file", "docker-compose.yml"]);
        command.args(["--env-file", "/dev/null"]).args(arguments).current_dir(PROJECT_FOLDER);
        let ports = [
            ("INGEST_PORT", self.ports.ingest),
            ("DISPATCH_PORT", self.ports.dispatch),
            ("POSTGRES_PORT", self.ports.postgres),
            ("KAFKA_PORT", self.ports.kafka),
            ("THIRD_PARTY_PORT", self.ports.third_party),
        ];
        command.envs(ports.map(|(name, port)| (name, port.to_string())));
        command.env("THROUGHLINE_YAML", self.folder.path().join("throughline.yaml"));
        command.env("THROUGHLINE_TAG", "features");
        command.env("THIRD_PARTY_MEMORY", THIRD_PARTY_MEMORY);
        command.envs(self.profile.iter().map(|profile| ("PROFILE", profile)));
        for name in UNSET {
            command.env_remove(name);
        }
        command
    }
}

impl Drop for Composed {
    fn drop(&mut self) {
        let mut down = self.command(&DOWN).into_std();
        if !down.output().is_ok_and(|ended| ended.status.success()) {
            let _ = writeln!(
                std::io::stderr(),
                "{PROJECT} is still up: docker compose -p {PROJECT} down --volumes"
            );
        }
    }
}

impl Container {
    pub(crate) fn output(&self) -> &Output {
        &self.output
    }
}

/// With `BINARIES=host`, returns the profile of the tested programs: the images must be built from these and no
/// others.
fn profile_on_host() -> anyhow::Result<Option<OsString>> {
    if var_os("BINARIES").is_none_or(|value| value != "host") {
        return Ok(None);
    }
    let program = Programs::build()?.path("throughline").canonicalize()?;
    let folder = program.parent().context("a program without a folder")?;
    let taken = Path::new(PROJECT_FOLDER).canonicalize()?.join("target");
    ensure!(
        folder.parent() == Some(&taken),
        "BINARIES=host takes the programs from {}, and these are in {}: unset CARGO_TARGET_DIR",
        taken.display(),
        folder.display(),
    );
    Ok(folder.file_name().map(ToOwned::to_owned))
}

fn name(service: Service) -> &'static str {
    match service {
        Service::Ingest => "ingest",
        Service::Dispatch => "dispatch",
    }
}

/// Runs a command that must succeed, and returns its output.
async fn ended_well(command: &mut Command, deadline: Option<Duration>) -> anyhow::Result<String> {
    let ended = ended(command, deadline).await?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        bail!("{:?} ended with {}:\n{said}", command.as_std(), ended.status);
    }
    Ok(String::from_utf8(ended.stdout)?.trim().to_owned())
}

/// Runs a command until it exits.
async fn ended(command: &mut Command, deadline: Option<Duration>) -> anyhow::Result<process::Output> {
    let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let ended = match deadline {
        Some(deadline) => timeout(deadline, ended).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())),
        None => ended.await,
    };
    ended.with_context(|| format!("cannot run {:?}", command.as_std()))
}
