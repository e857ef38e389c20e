use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;
use throughline_messages::Topics;
use throughline_settings::Settings;
use throughline_store::Store;

use crate::broker::Broker;
use crate::collector::Collector;
use crate::composed::{Composed, Container, INSIDE};
use crate::configuration::{self, Addresses, Configuration};
use crate::environment::Environment;
use crate::measured::unmeasured;
use crate::output::Output;
use crate::program::{Ended, Program};
use crate::programs::Programs;
use crate::third_party::ThirdParty;

/// The part of an [`Environment`] that belongs to one test.
pub struct Stage {
    configuration: Configuration,
    settings: Settings,
    folder: TempDir,
    programs: Programs,
    /// The environment variables of the programs.
    variables: Vec<(&'static str, String)>,
    broker: Arc<Broker>,
    third_party: ThirdParty,
    /// The containers that the services run in, if they do.
    composed: Option<Arc<Composed>>,
    ingest: Option<Running>,
    dispatch: Option<Running>,
    /// The output of every program started here.
    printed: Vec<(Service, Output)>,
}

enum Running {
    Program { program: Program, address: SocketAddr },
    Container { container: Container, composed: Arc<Composed> },
}

/// A service under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Accepts HTTP requests, stores them, and publishes them through Kafka.
    Ingest,
    /// Consumes from Kafka and calls third parties.
    Dispatch,
}

impl Service {
    fn program(self) -> &'static str {
        match self {
            Self::Ingest => "throughline-ingest",
            Self::Dispatch => "throughline-dispatch",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

impl FromStr for Service {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        [Self::Ingest, Self::Dispatch]
            .into_iter()
            .find(|service| service.program().ends_with(name))
            .with_context(|| format!("no service is called {name}"))
    }
}

impl Stage {
    /// Prepares a folder, an empty database, a third party and a name on the broker.
    ///
    /// # Errors
    /// If one of them is not available.
    pub async fn set(environment: &Environment) -> anyhow::Result<Self> {
        let name = environment.name_a_stage();
        let folder = TempDir::with_prefix("throughline-")?;
        let database = environment.another_database(&name, folder.path()).await?;
        let broker = environment.broker();
        let composed = environment.as_composed().cloned();
        let third_party = match &composed {
            Some(composed) => {
                composed.clear().await?;
                ThirdParty::at(&composed.third_party(), INSIDE.third_party).await?
            }
            None => ThirdParty::open().await,
        };
        let configuration = Configuration { name, database };
        Ok(Self {
            settings: configure(&configuration, &folder, &broker, &third_party, composed.as_deref())?,
            configuration,
            folder,
            programs: environment.programs().clone(),
            variables: Vec::new(),
            broker,
            third_party,
            composed,
            ingest: None,
            dispatch: None,
            printed: Vec::new(),
        })
    }

    /// Replaces the shared broker with one of its own, which may be stopped without affecting other tests.
    ///
    /// # Errors
    /// If the broker does not start.
    pub async fn take_own_broker(&mut self, environment: &Environment) -> anyhow::Result<()> {
        self.broker = Arc::new(environment.another_broker().await?);
        let Self { configuration, folder, broker, third_party, composed, .. } = &*self;
        self.settings = configure(configuration, folder, broker, third_party, composed.as_deref())?;
        Ok(())
    }

    /// Makes services started from now on export to a collector, without delay.
    ///
    /// # Errors
    /// If the services run in containers, which cannot reach the collector.
    pub fn export_to(&mut self, collector: &Collector) -> anyhow::Result<()> {
        self.set_variables(collector.variables())
    }

    /// Makes services started from now on export everything to a collector, with the default delays.
    ///
    /// # Errors
    /// If the services run in containers, which cannot reach the collector.
    pub fn export_all_to(&mut self, collector: &Collector) -> anyhow::Result<()> {
        self.set_variables(vec![("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())])
    }

    fn set_variables(&mut self, variables: Vec<(&'static str, String)>) -> anyhow::Result<()> {
        ensure!(self.composed.is_none(), "the services run in containers");
        self.variables = variables;
        Ok(())
    }

    /// Returns the processor time that all threads of a service have used since its start.
    ///
    /// # Errors
    /// If the service does not run, or this system does not report it.
    pub fn cpu_time(&self, service: Service) -> anyhow::Result<Duration> {
        match self.running(service)? {
            Running::Program { program, .. } => program.cpu_time(),
            Running::Container { .. } => bail!("{service} runs in a container"),
        }
    }

    /// Starts a service and waits until it listens.
    ///
    /// # Errors
    /// If the service does not listen in time.
    pub async fn start(&mut self, service: Service) -> anyhow::Result<()> {
        ensure!(self.slot(service).is_none(), "{service} runs already");
        self.broker.create_topics(&all_topics(&self.settings)).await?;
        let running = if let Some(composed) = &self.composed {
            let container = composed.start(service).await?;
            self.printed.push((service, container.output().clone()));
            Running::Container { container, composed: Arc::clone(composed) }
        } else {
            let mut program = self.spawn(service)?;
            let address = program.listening().await.with_context(|| service.to_string())?;
            Running::Program { program, address }
        };
        *self.slot(service) = Some(running);
        Ok(())
    }

    /// Starts a service that is expected to exit by itself.
    ///
    /// # Errors
    /// If the service does not exit.
    pub async fn start_in_vain(&mut self, service: Service) -> anyhow::Result<Ended> {
        let Some(composed) = &self.composed else {
            return self.spawn(service)?.ended().await.with_context(|| service.to_string());
        };
        let ended = composed.start_in_vain(service).await?;
        self.printed.push((service, ended.output.clone()));
        Ok(ended)
    }

    /// Runs the `throughline` command until it exits, as an operator does.
    ///
    /// # Errors
    /// If the command does not exit in time.
    pub async fn command(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        if let Some(composed) = &self.composed {
            return composed.run_command(arguments).await;
        }
        let executable = self.programs.path("throughline");
        let program = Program::start_with(&executable, arguments, &self.variables, self.folder.path())?;
        program.ended().await.with_context(|| format!("throughline {}", arguments.join(" ")))
    }

    /// Returns the text of `throughline.yaml`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn configuration(&self) -> anyhow::Result<String> {
        match &self.composed {
            Some(composed) => composed.configuration(),
            None => configuration::read(self.folder.path()),
        }
    }

    /// Replaces the text of `throughline.yaml`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn configure(&self, text: &str) -> anyhow::Result<()> {
        match &self.composed {
            Some(composed) => composed.configure(text),
            None => configuration::write(self.folder.path(), text),
        }
    }

    /// Kills a service.
    ///
    /// # Errors
    /// If the service does not run.
    pub async fn kill(&mut self, service: Service) -> anyhow::Result<()> {
        let killed = match self.take(service)? {
            Running::Program { program, .. } => program.kill().await,
            Running::Container { container, composed } => composed.kill(container).await,
        };
        killed.with_context(|| service.to_string())
    }

    /// Stops a service and waits until it has exited.
    ///
    /// # Errors
    /// If the service does not run, or does not exit in time.
    pub async fn stop(&mut self, service: Service) -> anyhow::Result<Ended> {
        let ended = match self.take(service)? {
            Running::Program { program, .. } => program.terminate().await,
            Running::Container { container, composed } => composed.stop(container).await,
        };
        ended.with_context(|| service.to_string())
    }

    /// Returns the configuration as the services read it.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Connects to the database.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn store(&self) -> anyhow::Result<Store> {
        Ok(Store::connect(&self.settings.database, &unmeasured()).await?)
    }

    /// Returns the names of the internal topics.
    #[must_use]
    pub fn topics(&self) -> Topics {
        Topics::new(&self.settings.kafka.prefix)
    }

    /// Returns the broker.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Returns the third party.
    #[must_use]
    pub fn third_party(&self) -> &ThirdParty {
        &self.third_party
    }

    /// Returns the address that a service listens on.
    ///
    /// # Errors
    /// If the service does not run.
    pub fn address(&self, service: Service) -> anyhow::Result<SocketAddr> {
        Ok(match self.running(service)? {
            Running::Program { address, .. } => *address,
            Running::Container { composed, .. } => composed.address(service),
        })
    }

    /// Returns the output of every service started here, in order of their start.
    #[must_use]
    pub fn printed(&self) -> &[(Service, Output)] {
        &self.printed
    }

    fn spawn(&mut self, service: Service) -> anyhow::Result<Program> {
        let executable = self.programs.path(service.program());
        let program = Program::start_with(&executable, &[], &self.variables, self.folder.path())?;
        self.printed.push((service, program.output().clone()));
        Ok(program)
    }

    fn running(&self, service: Service) -> anyhow::Result<&Running> {
        let running = match service {
            Service::Ingest => &self.ingest,
            Service::Dispatch => &self.dispatch,
        };
        running.as_ref().with_context(|| format!("{service} does not run"))
    }

    fn slot(&mut self, service: Service) -> &mut Option<Running> {
        match service {
            Service::Ingest => &mut self.ingest,
            Service::Dispatch => &mut self.dispatch,
        }
    }

    fn take(&mut self, service: Service) -> anyhow::Result<Running> {
        self.slot(service).take().with_context(|| format!("{service} does not run"))
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Writes the configuration for the services, and returns it as read from here.
fn configure(
    configuration: &Configuration,
    folder: &TempDir,
    broker: &Broker,
    third_party: &ThirdParty,
    composed: Option<&Composed>,
) -> anyhow::Result<Settings> {
    let (broker, third_party) = (broker.bootstrap_servers(), third_party.url());
    configuration::write(folder.path(), &configuration.text(Addresses::here(&broker, &third_party)))?;
    if let Some(composed) = composed {
        composed.configure(&configuration.text(INSIDE))?;
    }
    configuration::load(folder.path())
}

/// Returns the topics of the routes and the internal ones.
fn all_topics(settings: &Settings) -> Vec<String> {
    let internal = Topics::new(&settings.kafka.prefix).all().map(str::to_owned);
    let routes = settings.routes.values().map(|route| route.topic.clone());
    internal.into_iter().chain(routes).collect()
}
