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

/// For a program to listen. It does in well under a second; the rest is for a machine that is busy.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// For a program to end when told to: its own deadline (25 s, or more if its configuration says so) and some more.
const STOP_DEADLINE: Duration = Duration::from_mins(1);

/// What of this process's environment a program gets to see: settings that a developer exports must not
/// change what is tested.
const INHERITED: [&str; 2] = ["RUST_BACKTRACE", "RUST_LOG"];

/// The user and group of that name, on most systems.
const NOBODY: u32 = 65534;

/// One of the real programs, running as a child process; killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    output: Output,
    followers: [JoinHandle<()>; 2],
}

/// How a program ended, and all that it printed.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub output: Output,
}

impl Program {
    /// Starts an executable with its arguments in a folder, as a person would who has changed into it.
    ///
    /// # Errors
    /// If there is no such executable.
    pub fn start(executable: &Path, arguments: &[&str], folder: &Path) -> anyhow::Result<Self> {
        Self::start_with(executable, arguments, &[], folder)
    }

    /// The same, with variables in its environment.
    ///
    /// # Errors
    /// If there is no such executable.
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

    /// Starts an executable as somebody whom permissions bind: where this process is root's, as nobody,
    /// who must be able to get at the executable and the folder.
    ///
    /// # Errors
    /// If there is no such executable.
    pub fn start_unprivileged(executable: &Path, arguments: &[&str], folder: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(executable);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.args(arguments);
        Self::spawn(command, &[], folder)
    }

    /// What a service's program says of the one that listens at an address, asked as a container's health check does;
    /// `variable` is the one that sets the address.
    ///
    /// # Errors
    /// If there is no such executable, or it does not end in time.
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

    /// What it has printed so far.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// How much processor time it has taken, of all its threads, as Linux tells (proc(5), `stat`).
    ///
    /// # Errors
    /// If it has ended, or this is another system.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let pid = self.child.id().context("it has ended")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name before it may have spaces in it. The 14th and 15th fields are ticks in user and kernel mode.
        let (_, fields) = stat.rsplit_once(')').context("no name")?;
        let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let (user, system) =
            (ticks.next().context("no user time")??, ticks.next().context("no system time")??);
        Ok(Duration::from_millis((user + system) * 1000 / rustix::param::clock_ticks_per_second()))
    }

    /// Waits until it says where it is listening.
    ///
    /// # Errors
    /// If it ends instead, or does not listen in time.
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

    /// SIGKILL: it has no chance to tidy up.
    ///
    /// # Errors
    /// If it has ended already.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("was to be killed, but had ended with {status}:\n{}", self.output.text());
        }
        self.child.kill().await.context("cannot kill")
    }

    /// SIGTERM: it may finish what it has begun.
    ///
    /// # Errors
    /// If it has ended already, or does not end in time.
    pub async fn terminate(mut self) -> anyhow::Result<Ended> {
        if let Some(status) = self.child.try_wait()? {
            bail!("was to be stopped, but had ended with {status}:\n{}", self.output.text());
        }
        self.signal(Signal::TERM)?;
        self.ended().await
    }

    /// SIGSTOP: it stands still, and does not notice.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT: it goes on as if no time had passed.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).context("has no id")?;
        kill_process(id, signal).context("cannot signal")
    }

    /// Looks whether it has ended by itself, and how.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn has_ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not end in time.
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
    use std::os::unix::fs::PermissionsExt as _;

    fn script(lines: &str) -> (tempfile::TempDir, Program) {
        let folder = tempfile::tempdir().unwrap();
        let executable = folder.path().join("script");
        std::fs::write(&executable, format!("#!/bin/sh\n{lines}\n")).unwrap();
        std::fs::set_permissions(&executable, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = Program::start(&executable, &[], folder.path()).unwrap();
        (folder, program)
    }

    const LISTENING: &str = r#"echo '{"message":"listening","address":"127.0.0.1:7"}'"#;

    #[tokio::test]
    async fn a_program_that_is_told_to_stop_may_tidy_up() {
        let (_folder, mut program) = script(&format!(
            "trap 'kill $!; echo tidied; exit 3' TERM\ntail -f /dev/null & {LISTENING}\nwait $!"
        ));
        assert_eq!(program.listening().await.unwrap(), "127.0.0.1:7".parse().unwrap());
        let ended = program.terminate().await.unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert!(ended.output.text().ends_with("tidied"), "{:?}", ended.output);
    }

    #[tokio::test]
    async fn a_program_that_ends_instead_of_listening_says_what_it_printed() {
        let (_folder, mut program) = script("echo 'port taken' >&2; exit 1");
        let error = program.listening().await.unwrap_err().to_string();
        assert!(error.contains("exit status: 1"), "{error}");
    }

    #[tokio::test]
    async fn a_frozen_program_goes_on_when_it_is_thawed() {
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
    async fn a_program_dies_of_a_kill_without_a_word() {
        let (_folder, mut program) =
            script(&format!("trap 'echo tidied' TERM\n{LISTENING}\nexec tail -f /dev/null"));
        program.listening().await.unwrap();
        let output = program.output().clone();
        program.kill().await.unwrap();
        assert_eq!(output.lines().len(), 1, "{output:?}");
    }
}
