//! Programs that are run, with what they said in the failure when they did not do as they should.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::wait_for;

/// Above what any command here takes.
const LIMIT: Duration = Duration::from_secs(180);

/// How much of an output a failure shows.
const SHOWN_BYTES_MAX: usize = 4096;

/// A program to be run.
pub(crate) struct Program {
    command: Command,
    stdin: Vec<u8>,
    secret: bool,
}

impl Program {
    /// The program at `path`, or of that name in `PATH`.
    pub(crate) fn new(path: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(path),
            stdin: Vec::new(),
            secret: false,
        }
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// What it reads: the way for values and keys.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Its output may hold a value: failures do not show it.
    pub(crate) fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// Runs it to its end, whatever that is.
    #[track_caller]
    pub(crate) fn output(self) -> Output {
        let Self {
            mut command,
            stdin,
            secret,
        } = self;
        let line = line(&command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        let stdout = drain(child.stdout.take().expect("is piped"));
        let stderr = drain(child.stderr.take().expect("is piped"));
        let mut input = child.stdin.take().expect("is piped");
        // A program may end without reading; then the pipe is broken, and its status says more.
        let writer = thread::spawn(move || drop(input.write_all(&stdin)));
        let mut child = Background {
            child,
            line: line.clone(),
        };
        let status = wait_for(&format!("the end of {line}"), LIMIT, || {
            child.status().ok_or("it runs".to_owned())
        });
        writer.join().expect("writes");
        Output {
            line,
            status,
            stdout: stdout.join().expect("reads"),
            stderr: stderr.join().expect("reads"),
            secret,
        }
    }

    /// Runs it, must end well; what it printed.
    #[track_caller]
    pub(crate) fn succeed(self) -> String {
        let output = self.output();
        assert!(output.status.success(), "{output}");
        output.stdout
    }

    /// Runs it, must end with a failure.
    #[track_caller]
    pub(crate) fn fail(self) -> Output {
        let output = self.output();
        assert!(!output.status.success(), "should have failed: {output}");
        output
    }

    /// Starts it, and leaves it running until the guard goes. Its output goes where this program's goes.
    #[track_caller]
    pub(crate) fn start(mut self) -> Background {
        assert!(self.stdin.is_empty(), "nothing would write its input");
        let line = line(&self.command);
        let child = self
            .command
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        Background { child, line }
    }

    /// Starts it, and gives the lines of its stdout as they come; they must be read on for as long as it writes.
    #[track_caller]
    pub(crate) fn start_reading(mut self) -> (Background, impl Iterator<Item = String>) {
        self.command.stdout(Stdio::piped());
        let mut background = self.start();
        let stdout = background.child.stdout.take().expect("is piped");
        (
            background,
            BufReader::new(stdout).lines().map_while(Result::ok),
        )
    }
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line = line + " " + &argument.to_string_lossy();
    }
    line
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("a pipe can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What a program did.
pub(crate) struct Output {
    line: String,
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it complained about.
    pub(crate) stderr: String,
    secret: bool,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.status)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if self.secret {
                write!(f, "\n  {name}: {} bytes, not shown", text.len())?;
            } else if !text.is_empty() {
                let end = text.floor_char_boundary(SHOWN_BYTES_MAX);
                write!(f, "\n  {name}: {}", text[..end].trim_end())?;
            }
        }
        Ok(())
    }
}

/// A program that runs, until this guard goes.
pub(crate) struct Background {
    child: Child,
    line: String,
}

impl Background {
    /// How it ended, if it has.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.child
            .try_wait()
            .unwrap_or_else(|error| panic!("{}: {error}", self.line))
    }

    /// Ends it as a fault does: with SIGKILL.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Either fails only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
