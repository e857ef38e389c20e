//! The replicas of both services: real programs, which are killed, frozen and restarted.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use throughline_testkit::{Output, Program, Programs, Service};

use crate::load::Doors;

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

    /// One more than there are.
    pub(crate) fn newcomer(service: Service) -> Self {
        Self { service, number: REPLICAS }
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.service, self.number + 1)
    }
}

/// Shifts the wall clock of a program that is started with it.
const AHEAD: &str = include_str!("ahead.c");

/// Compiles the library that shifts a program's clock.
fn clock(ahead: &str, folder: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    let (source, library) = (folder.join("ahead.c"), folder.join("ahead.so"));
    std::fs::write(&source, AHEAD)?;
    let compiled =
        Command::new("cc").args(["-O2", "-fPIC", "-shared", "-o"]).arg(&library).arg(&source).status();
    ensure!(compiled.context("no C compiler")?.success(), "cannot compile {}", source.display());
    Ok(vec![("LD_PRELOAD", library.display().to_string()), ("SECONDS_AHEAD", ahead.to_owned())])
}

/// All replicas, in one folder with one configuration.
pub(crate) struct Cast {
    programs: Programs,
    folder: PathBuf,
    doors: Arc<Doors>,
    running: Vec<(Replica, Program)>,
    printed: Vec<(Replica, Output)>,
    /// What they did that they should not.
    faux_pas: Vec<String>,
}

impl Cast {
    pub(crate) fn new(programs: Programs, folder: &Path, doors: Arc<Doors>) -> Self {
        let (running, printed, faux_pas) = (Vec::new(), Vec::new(), Vec::new());
        Self { programs, folder: folder.to_owned(), doors, running, printed, faux_pas }
    }

    /// Starts a replica and waits until it listens.
    pub(crate) async fn start(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.start_ahead(replica, None).await
    }

    /// The same, with a clock that is some seconds `ahead` of the system's.
    pub(crate) async fn start_ahead(&mut self, replica: Replica, ahead: Option<&str>) -> anyhow::Result<()> {
        let executable = self.programs.path(&replica.service.to_string());
        let environment = ahead.map(|ahead| clock(ahead, &self.folder)).transpose()?.unwrap_or_default();
        let mut program = Program::start_with(&executable, &[], &environment, &self.folder)?;
        self.printed.push((replica, program.output().clone()));
        let address = program.listening().await.with_context(|| replica.to_string())?;
        if replica.service == Service::Ingest {
            self.doors.open(replica.number, address);
        }
        self.running.push((replica, program));
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.doors.give_up(replica);
        self.take(replica)?.kill().await.with_context(|| replica.to_string())
    }

    /// SIGSTOP.
    pub(crate) fn freeze(&self, replica: Replica) -> anyhow::Result<()> {
        self.get(replica)?.freeze().with_context(|| replica.to_string())
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self, replica: Replica) -> anyhow::Result<()> {
        self.get(replica)?.thaw().with_context(|| replica.to_string())
    }

    /// SIGTERM: it is to finish what it has begun, and to end well.
    pub(crate) async fn stop(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.doors.give_up(replica);
        let ended = self.take(replica)?.terminate().await.with_context(|| replica.to_string())?;
        if !ended.status.success() {
            self.faux_pas.push(format!("{replica} was told to stop, and ended with {}", ended.status));
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

    /// Starts again those that have ended though nobody told them to.
    pub(crate) async fn look_after(&mut self) -> anyhow::Result<()> {
        let (mut running, mut ended) = (Vec::new(), Vec::new());
        for (replica, mut program) in std::mem::take(&mut self.running) {
            match program.has_ended()? {
                None => running.push((replica, program)),
                Some(status) => {
                    let last = program.output().lines().pop().unwrap_or_default();
                    self.faux_pas.push(format!("{replica} ended by itself with {status}, saying: {last}"));
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

    /// Something that one of them should not have done.
    pub(crate) fn blame(&mut self, what: String) {
        self.faux_pas.push(what);
    }

    /// What they did that they should not.
    pub(crate) fn faux_pas(&self) -> &[String] {
        &self.faux_pas
    }

    /// All lines that they have printed, and who each.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (Replica, String)> {
        self.printed
            .iter()
            .flat_map(|(replica, output)| output.lines().into_iter().map(|line| (*replica, line)))
    }

    /// Writes what they have printed into files, one for each time that one was started.
    pub(crate) fn write_logs(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)?;
        for (number, (replica, output)) in self.printed.iter().enumerate() {
            let name = format!("{number:03} {replica}.log").replace(' ', "-");
            std::fs::write(folder.join(name), output.text())?;
        }
        Ok(())
    }

    fn get(&self, replica: Replica) -> anyhow::Result<&Program> {
        let found = self.running.iter().find(|(running, _)| *running == replica);
        Ok(&found.with_context(|| format!("{replica} does not run"))?.1)
    }

    fn take(&mut self, replica: Replica) -> anyhow::Result<Program> {
        let place = self.running.iter().position(|(running, _)| *running == replica);
        Ok(self.running.remove(place.with_context(|| format!("{replica} does not run"))?).1)
    }
}
