use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::eventually::eventually;
use crate::output::Output;

/// The deadline for a program to listen. It takes well under a second; the rest is for a busy machine.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// The deadline for a program to exit after SIGTERM: its own deadline (25 s, or more if so configured) and some more.
const STOP_DEADLINE: Duration = Duration::from_mins(1);

/// The variables of this process that a program inherits. Other settings that a developer exports must not affect
/// tests.
const INHERITED: [&str; 2] = ["RUST_BACKTRACE", "RUST_LOG"];

/// The id of the user and group `nobody` on most systems.
const NOBODY: u32 = 65534;

/// One of the real programs, running as a child process; killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    output: Output,
    followers: [JoinHandle<()>; 2],
}

/// The exit status of a program, and everything that it printed.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its output.
    pub output: Output,
}

impl Program {
    /// Starts an executable with its arguments, with the folder as its working directory.
    ///
    /// # Errors
    /// If the executable does not exist.
    pub fn start(executable: &Path, arguments: &[&str], folder: &Path) -> anyhow::Result<Self> {
        Self::start_with(executable, arguments, &[], folder)
    }

    /// Starts an executable like [`Program::start`], with environment variables.
    ///
    /// # Errors
    /// If the executable does not exist.
    pub fn start_with(
        executable: &Path,
        arguments: &[&str],
        environment: &[(&str, String)],
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(executable);
        command.args(arguments);
        Self::spawn(command, environment, folder)
    }

    /// Starts an executable as a user bound by file permissions: if this process runs as root, as `nobody`, which
    /// must be able to reach the executable and the folder.
    ///
    /// # Errors
    /// If the executable does not exist.
    pub fn start_unprivileged(executable: &Path, arguments: &[&str], folder: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(executable);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.args(arguments);
        Self::spawn(command, &[], folder)
    }

    /// Runs the health check of a service's program against the instance at an address, as a container's health check
    /// does; `variable` is the one that sets the address.
    ///
    /// # Errors
    /// If the executable does not exist, or does not exit in time.
    pub async fn healthcheck(executable: &Path, variable: &str, address: String) -> anyhow::Result<Ended> {
        const CONFIGURATION: &str = "{kafka: {bootstrap_servers: 'localhost:9'}, \
             routes: {one: {path: /one, topic: one, destinations: [three]}}, \
             destinations: {three: {url: 'http://localhost:9'}}}";
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("throughline.yaml"), CONFIGURATION)?;
        let environment = [(variable, address)];
        Self::start_with(executable, &["--healthcheck"], &environment, folder.path())?.ended().await
    }

    fn spawn(mut command: Command, environment: &[(&str, String)], folder: &Path) -> anyhow::Result<Self> {
        let inherited = INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut child = command
            .current_dir(folder)
            .env_clear()
            .envs(inherited)
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", command.as_std().get_program().display()))?;
        let output = Output::default();
        let stdout = child.stdout.take().context("no stdout")?;
        let stderr = child.stderr.take().context("no stderr")?;
        let followers = [output.follow(stdout), output.follow(stderr)];
        Ok(Self { child, output, followers })
    }

    /// Returns the output so far.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Returns the processor time that all its threads have used, as reported by Linux (proc(5), `stat`).
    ///
    /// # Errors
    /// If it has exited, or this is another system.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let pid = self.child.id().context("it has ended")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The process name in the earlier fields may contain spaces. Fields 14 and 15 are ticks in user and kernel
        // mode.
        let (_, fields) = stat.rsplit_once(')').context("no name")?;
        let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let (user, system) =
            (ticks.next().context("no user time")??, ticks.next().context("no system time")??);
        Ok(Duration::from_millis((user + system) * 1000 / rustix::param::clock_ticks_per_second()))
    }

    /// Returns its resident memory in bytes, as reported by Linux (proc(5), `status`).
    ///
    /// # Errors
    /// If it has exited, or this is another system.
    pub fn resident_memory(&self) -> anyhow::Result<u64> {
        let pid = self.child.id().context("it has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: u64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok(kibibytes << 10)
    }

    /// Waits until it reports the address that it listens on.
    ///
    /// # Errors
    /// If it exits instead, or does not listen in time.
    pub async fn listening(&mut self) -> anyhow::Result<SocketAddr> {
        let output = self.output.clone();
        let listening = eventually("the program to listen", START_DEADLINE, async || {
            output.address().with_context(|| format!("it printed:\n{}", output.text()))
        });
        tokio::select! {
            address = listening => address,
            status = self.child.wait() => bail!("ended with {}:\n{}", status?, self.output.text()),
        }
    }

    /// Sends SIGKILL: it cannot clean up.
    ///
    /// # Errors
    /// If it has exited already.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("was to be killed, but had ended with {status}:\n{}", self.output.text());
        }
        self.child.kill().await.context("cannot kill")
    }

    /// Sends SIGTERM, and waits until it has exited; it may finish its current work.
    ///
    /// # Errors
    /// If it has exited already, or does not exit in time.
    pub async fn terminate(mut self) -> anyhow::Result<Ended> {
        if let Some(status) = self.child.try_wait()? {
            bail!("was to be stopped, but had ended with {status}:\n{}", self.output.text());
        }
        self.signal(Signal::TERM)?;
        self.ended().await
    }

    /// Sends SIGSTOP: it freezes without noticing.
    ///
    /// # Errors
    /// If it has exited already.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Sends SIGCONT: it continues as if no time had passed.
    ///
    /// # Errors
    /// If it has exited already.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).context("has no id")?;
        kill_process(id, signal).context("cannot signal")
    }

    /// Returns its exit status if it has exited.
    ///
    /// # Errors
    /// If the status cannot be read.
    pub fn has_ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it exits by itself.
    ///
    /// # Errors
    /// If it does not exit in time.
    pub async fn ended(mut self) -> anyhow::Result<Ended> {
        let Ok(status) = timeout(STOP_DEADLINE, self.child.wait()).await else {
            bail!("still runs after {STOP_DEADLINE:?}:\n{}", self.output.text());
        };
        for follower in self.followers {
            follower.await?;
        }
        Ok(Ended { status: status?, output: self.output })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, waitpid};

    fn script(lines: &str) -> (tempfile::TempDir, Program) {
        let folder = tempfile::tempdir().unwrap();
        // Not a script file: Linux does not execute a file that a process has open for writing, and a process that
        // another test forks at that moment inherits the open file.
        let program = Program::start(Path::new("/bin/sh"), &["-c", lines], folder.path()).unwrap();
        (folder, program)
    }

    const LISTENING: &str = r#"echo '{"message":"listening","address":"127.0.0.1:7"}'"#;

    #[tokio::test]
    async fn a_program_can_clean_up_on_sigterm() {
        let (_folder, mut program) = script(&format!(
            "trap 'kill $!; echo tidied; exit 3' TERM\ntail -f /dev/null & {LISTENING}\nwait $!"
        ));
        assert_eq!(program.listening().await.unwrap(), "127.0.0.1:7".parse().unwrap());
        let ended = program.terminate().await.unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert!(ended.output.text().ends_with("tidied"), "{:?}", ended.output);
    }

    #[tokio::test]
    async fn a_program_that_ends_instead_of_listening_is_reported_with_its_output() {
        let (_folder, mut program) = script("echo 'port taken' >&2; exit 1");
        let error = program.listening().await.unwrap_err().to_string();
        assert!(error.contains("exit status: 1"), "{error}");
    }

    #[tokio::test]
    async fn a_frozen_program_continues_when_it_is_thawed() {
        let (_folder, mut program) =
            script(&format!("trap 'echo noticed; exit 3' TERM\n{LISTENING}\nwhile :; do sleep 0.01; done"));
        program.listening().await.unwrap();
        program.freeze().unwrap();
        program.signal(Signal::TERM).unwrap();
        let id = Pid::from_raw(program.child.id().unwrap().try_into().unwrap());
        let (_, state) = waitpid(id, WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(state.stopped(), "{state:?}");
        assert_eq!(program.has_ended().unwrap(), None);
        assert_eq!(program.output().lines().len(), 1, "{:?}", program.output());
        program.thaw().unwrap();
        let ended = program.ended().await.unwrap();
        assert_eq!(ended.status.code(), Some(3));
    }

    #[tokio::test]
    async fn a_killed_program_prints_nothing() {
        let (_folder, mut program) =
            script(&format!("trap 'echo tidied' TERM\n{LISTENING}\nexec tail -f /dev/null"));
        program.listening().await.unwrap();
        let output = program.output().clone();
        program.kill().await.unwrap();
        assert_eq!(output.lines().len(), 1, "{output:?}");
    }
}
