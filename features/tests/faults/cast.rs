//! The replicas of both services: real programs that are killed, frozen and restarted.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use throughline_testkit::{Output, Program, Programs, Service};

use crate::load::Doors;
use crate::watch::Watch;

/// Replicas of each service.
pub(crate) const REPLICAS: usize = 3;

/// One of the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) service: Service,
    /// From 0.
    pub(crate) number: usize,
}

impl Replica {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let of = |service| (0..REPLICAS).map(move |number| Self { service, number });
        of(Service::Ingest).chain(of(Service::Dispatch))
    }

    /// The additional replica.
    pub(crate) fn newcomer(service: Service) -> Self {
        Self { service, number: REPLICAS }
    }

    /// The name of its process that is started after `earlier` other processes.
    fn process(self, earlier: usize) -> String {
        format!("{self} {earlier}").replace(' ', "-")
    }

    /// Whether a process with this name is or was this replica.
    pub(crate) fn has_been(self, process: &str) -> bool {
        process
            .rsplit_once('-')
            .is_some_and(|(_, number)| number.parse().is_ok_and(|earlier| self.process(earlier) == process))
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.service, self.number + 1)
    }
}

/// Source of a library that shifts the wall clock of a program.
const AHEAD: &str = include_str!("ahead.c");

/// Compiles that library, and returns the variables that enable it.
fn clock(ahead: &str, folder: &Path) -> anyhow::Result<[(&'static str, String); 2]> {
    let (source, library) = (folder.join("ahead.c"), folder.join("ahead.so"));
    std::fs::write(&source, AHEAD)?;
    let compiled =
        Command::new("cc").args(["-O2", "-fPIC", "-shared", "-o"]).arg(&library).arg(&source).status();
    ensure!(compiled.context("no C compiler")?.success(), "cannot compile {}", source.display());
    Ok([("LD_PRELOAD", library.display().to_string()), ("SECONDS_AHEAD", ahead.to_owned())])
}

/// The variable with the name of the process, which each call of dispatch carries.
const PROCESS: &str = "PROCESS";
/// The variable with the URL of the database, which names the sessions of the process.
const DATABASE: &str = "DATABASE";

/// A running process.
struct Running {
    replica: Replica,
    /// Unique in the run.
    name: String,
    program: Program,
}

/// A process that was killed by SIGKILL.
#[derive(Clone, Debug)]
pub(crate) struct Killed {
    pub(crate) process: String,
    pub(crate) at: Duration,
}

/// Limit of an ingest's open files. It reserves 1,024 of them for other purposes than client connections.
const FILES: u32 = 2048;

/// A shell script that executes its argument; for ingest with the limit [`FILES`], so that a flood can exceed its
/// connections.
fn limited(service: Service) -> String {
    match service {
        Service::Ingest => format!("ulimit -n {FILES} && exec \"$0\""),
        Service::Dispatch => "exec \"$0\"".to_owned(),
    }
}

/// All replicas, in one folder with one configuration.
pub(crate) struct Cast {
    watch: Watch,
    programs: Programs,
    folder: PathBuf,
    /// The URL of the database.
    database: String,
    doors: Arc<Doors>,
    running: Vec<Running>,
    killed: Vec<Killed>,
    printed: Vec<(Replica, Output)>,
    /// Unexpected behaviour of the replicas.
    faux_pas: Vec<String>,
}

impl Cast {
    pub(crate) fn new(
        watch: Watch,
        programs: Programs,
        folder: &Path,
        database: String,
        doors: Arc<Doors>,
    ) -> Self {
        let (running, killed, printed, faux_pas) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self {
            watch,
            programs,
            folder: folder.to_owned(),
            database,
            doors,
            running,
            killed,
            printed,
            faux_pas,
        }
    }

    /// Starts a replica and waits until it listens.
    pub(crate) async fn start(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.start_ahead(replica, None).await
    }

    /// Starts a replica with a clock that is `ahead` seconds ahead of the system's.
    pub(crate) async fn start_ahead(&mut self, replica: Replica, ahead: Option<&str>) -> anyhow::Result<()> {
        let executable = self.programs.path(&replica.service.to_string());
        let name = replica.process(self.printed.len());
        let database = format!("{}?application_name={name}", self.database);
        let mut environment = vec![(PROCESS, name.clone()), (DATABASE, database)];
        if let Some(ahead) = ahead {
            environment.extend(clock(ahead, &self.folder)?);
        }
        let executable = executable.display().to_string();
        let mut program = Program::start_with(
            Path::new("/bin/sh"),
            &["-c", &limited(replica.service), &executable],
            &environment,
            &self.folder,
        )?;
        self.printed.push((replica, program.output().clone()));
        let address = program.listening().await.with_context(|| replica.to_string())?;
        if replica.service == Service::Ingest {
            self.doors.open(replica.number, address);
        }
        self.running.push(Running { replica, name, program });
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.doors.give_up(replica);
        let Running { name, program, .. } = self.take(replica)?;
        self.killed.push(Killed { process: name, at: self.watch.now() });
        program.kill().await.with_context(|| replica.to_string())
    }

    /// SIGSTOP.
    pub(crate) fn freeze(&self, replica: Replica) -> anyhow::Result<()> {
        self.get(replica)?.program.freeze().with_context(|| replica.to_string())
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self, replica: Replica) -> anyhow::Result<()> {
        self.get(replica)?.program.thaw().with_context(|| replica.to_string())
    }

    /// SIGTERM: the replica must finish its work in progress and exit successfully.
    pub(crate) async fn stop(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.doors.give_up(replica);
        let ended = self.take(replica)?.program.terminate().await.with_context(|| replica.to_string())?;
        if !ended.status.success() {
            self.faux_pas.push(format!("{replica} received SIGTERM and exited with {}", ended.status));
        }
        Ok(())
    }

    /// Restarts all replicas, one after the other.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        for replica in Replica::all() {
            self.stop(replica).await?;
            self.start(replica).await?;
        }
        Ok(())
    }

    /// Restarts replicas that have exited unexpectedly.
    pub(crate) async fn look_after(&mut self) -> anyhow::Result<()> {
        let (mut running, mut ended) = (Vec::new(), Vec::new());
        for mut process in std::mem::take(&mut self.running) {
            let replica = process.replica;
            match process.program.has_ended()? {
                None => running.push(process),
                Some(status) => {
                    let last = process.program.output().lines().pop().unwrap_or_default();
                    self.faux_pas
                        .push(format!("{replica} exited unexpectedly with {status}; last line: {last}"));
                    ended.push(replica);
                }
            }
        }
        self.running = running;
        for replica in ended {
            self.start(replica).await?;
        }
        Ok(())
    }

    /// Records unexpected behaviour of a replica.
    pub(crate) fn blame(&mut self, what: String) {
        self.faux_pas.push(what);
    }

    /// Unexpected behaviour of the replicas.
    pub(crate) fn faux_pas(&self) -> &[String] {
        &self.faux_pas
    }

    /// The processes that were killed by SIGKILL.
    pub(crate) fn killed(&self) -> &[Killed] {
        &self.killed
    }

    /// The name of a replica's current process.
    pub(crate) fn process(&self, replica: Replica) -> anyhow::Result<&str> {
        Ok(&self.get(replica)?.name)
    }

    /// All lines of output, each with its replica.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (Replica, String)> {
        self.printed
            .iter()
            .flat_map(|(replica, output)| output.lines().into_iter().map(|line| (*replica, line)))
    }

    /// Writes the output to files, one for each process.
    pub(crate) fn write_logs(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)?;
        for (number, (replica, output)) in self.printed.iter().enumerate() {
            let name = format!("{number:03} {replica}.log").replace(' ', "-");
            std::fs::write(folder.join(name), output.text())?;
        }
        Ok(())
    }

    fn get(&self, replica: Replica) -> anyhow::Result<&Running> {
        let found = self.running.iter().find(|running| running.replica == replica);
        found.with_context(|| format!("{replica} is not running"))
    }

    fn take(&mut self, replica: Replica) -> anyhow::Result<Running> {
        let index = self.running.iter().position(|running| running.replica == replica);
        Ok(self.running.remove(index.with_context(|| format!("{replica} is not running"))?))
    }
}
