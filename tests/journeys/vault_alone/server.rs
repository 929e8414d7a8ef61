//! `barekey-operator serve` on loopback, with a database of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::database::{Engine, OwnPostgres};
use super::http::{self, Answer};

/// How long a start, a stop or a recovery may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where a vault lives: its database, its master key, its socket. Outlives the server.
pub(crate) struct Place {
    pub(crate) engine: Engine,
    pub(crate) database: String,
    pub(crate) master_key: String,
    pub(crate) socket: PathBuf,
    pub(crate) directory: PathBuf,
    _temporary: Option<TempDir>,
}

/// 32 random bytes in base64.
pub(crate) fn make_key() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("random bytes");
    STANDARD.encode(bytes)
}

/// A value that is nowhere else.
pub(crate) fn make_value() -> String {
    let mut bytes = [0; 18];
    getrandom::fill(&mut bytes).expect("random bytes");
    hex::encode(bytes)
}

impl Place {
    /// A new, empty one.
    pub(crate) fn new(engine: Engine) -> Self {
        let directory = TempDir::new().expect("a directory");
        let mut place = Self::at(engine, directory.path());
        place._temporary = Some(directory);
        place
    }

    /// A new one in a directory of the caller's.
    pub(crate) fn at(engine: Engine, directory: &Path) -> Self {
        Self {
            engine,
            database: engine.make_database(directory),
            master_key: make_key(),
            socket: directory.join("admin.sock"),
            directory: directory.to_owned(),
            _temporary: None,
        }
    }

    /// A new one on a PostgreSQL of the journey's own.
    pub(crate) fn on(postgres: &OwnPostgres) -> Self {
        let mut place = Self::new(Engine::Sqlite);
        place.engine = Engine::Postgres;
        place.database = postgres.url.clone();
        place
    }

    /// The program with this place's environment and nothing else of ours. It ends with the thread that starts it.
    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                env!("CARGO_BIN_EXE_barekey-operator"),
            ])
            .args(arguments)
            .env_clear()
            .env("BAREKEY_DATABASE", &self.database)
            .env("BAREKEY_MASTER_KEY_B64", &self.master_key)
            .env("BAREKEY_ADMIN_SOCKET", &self.socket)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `barekey-operator admin …` to its end.
    pub(crate) fn admin(&self, arguments: &[&str]) -> Output {
        let all: Vec<_> = std::iter::once("admin")
            .chain(arguments.iter().copied())
            .collect();
        self.program(&all).output().expect("the program runs")
    }

    /// What `admin …` prints on standard output, and it must succeed.
    #[track_caller]
    pub(crate) fn admin_prints(&self, arguments: &[&str]) -> String {
        let output = self.admin(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }

    /// Makes the organization and returns its owner's token.
    #[track_caller]
    pub(crate) fn bootstrap(&self, organization: &str) -> String {
        self.admin_prints(&["bootstrap", "--organization", organization])
    }

    /// Makes a token of the organization.
    #[track_caller]
    pub(crate) fn token(&self, organization: &str, more: &[&str]) -> String {
        let mut arguments = vec!["token", "create", "--organization", organization];
        arguments.extend(more);
        self.admin_prints(&arguments)
    }

    /// Starts a server and waits until it listens.
    pub(crate) fn serve(&self) -> Server {
        self.serve_with(&[])
    }

    /// Starts a server with more flags and waits until it listens.
    pub(crate) fn serve_with(&self, more: &[&str]) -> Server {
        match self.try_serve(more) {
            Ok(server) => server,
            Err((status, log)) => panic!("the server did not start ({status}):\n{log}"),
        }
    }

    /// Starts a server; the log when it ends before it listens.
    pub(crate) fn try_serve(&self, more: &[&str]) -> Result<Server, (ExitStatus, String)> {
        let mut arguments = vec![
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--probe-listen",
            "127.0.0.1:0",
            "--log-format",
            "json",
            "--log-level",
            "debug",
        ];
        arguments.extend(more);
        Self::try_start(self.program(&arguments))
    }

    /// Starts a program that is a server with a log in JSON; the log when it ends before it listens.
    pub(crate) fn try_start(mut program: Command) -> Result<Server, (ExitStatus, String)> {
        let mut child = program.spawn().expect("the program runs");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("a piped log");
        let collected = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = collected.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut server = Server {
            child,
            log,
            reader: Some(reader),
            api: ([127, 0, 0, 1], 0).into(),
            probes: ([127, 0, 0, 1], 0).into(),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = server.logged("listening") {
                server.api = line["api"].as_str().unwrap().parse().unwrap();
                server.probes = line["probes"].as_str().unwrap().parse().unwrap();
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait().unwrap() {
                let log = server.whole_log();
                return Err((status, log));
            }
            assert!(
                Instant::now() < deadline,
                "no start in time:\n{}",
                server.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A running server; killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    pub(crate) api: SocketAddr,
    pub(crate) probes: SocketAddr,
}

impl Server {
    /// Everything that it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Everything that it has logged until its end.
    fn whole_log(&mut self) -> String {
        // The reader may be a line behind; it ends with the pipe.
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.log()
    }

    /// The newest line of the log with that message.
    pub(crate) fn logged(&self, message: &str) -> Option<Value> {
        self.log()
            .lines()
            .rev()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["message"] == message)
    }

    /// A request with a token and a JSON body.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer
            .iter()
            .map(|bearer| ("authorization", bearer.as_str()))
            .collect();
        let body = if method == "GET" {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        http::exchange(self.api, &http::request(method, path, &headers, &body))
    }

    pub(crate) fn post(&self, path: &str, token: &str, body: &Value) -> Answer {
        self.call("POST", path, Some(token), body)
    }

    /// A request to the probes.
    pub(crate) fn probe(&self, path: &str) -> Answer {
        http::exchange(self.probes, &http::request("GET", path, &[], b""))
    }

    /// Makes a project of that slug.
    #[track_caller]
    pub(crate) fn make_project(&self, token: &str, slug: &str) {
        let body = json!({"name": slug, "slug": slug});
        self.post("/v1/cli/projects/create", token, &body).success();
    }

    /// Writes variables of a stage.
    #[track_caller]
    pub(crate) fn write(&self, token: &str, stage: (&str, &str), values: &[(&str, &str)]) -> Value {
        let entries: Vec<_> = values
            .iter()
            .map(|(name, value)| json!({"name": name, "kind": "secret", "value": value}))
            .collect();
        let body = json!({"projectSlug": stage.0, "stageSlug": stage.1, "mode": "upsert", "entries": entries});
        self.post("/v1/env/write", token, &body).success()
    }

    /// Asks for one variable.
    pub(crate) fn evaluate(&self, token: &str, stage: (&str, &str), name: &str) -> Answer {
        let body = json!({"projectSlug": stage.0, "stageSlug": stage.1, "name": name});
        self.post("/v1/env/evaluate", token, &body)
    }

    /// The value of one variable, which must be there.
    #[track_caller]
    pub(crate) fn value(&self, token: &str, stage: (&str, &str), name: &str) -> String {
        let body = self.evaluate(token, stage, name).success();
        body["value"].as_str().unwrap().to_owned()
    }

    /// Everything that a stage holds: metadata, then values.
    #[track_caller]
    pub(crate) fn snapshot(&self, token: &str, stage: (&str, &str)) -> (Value, Value) {
        let body = json!({"projectSlug": stage.0, "stageSlug": stage.1});
        let list = self.post("/v1/env/list", token, &body).success();
        let pull = self.post("/v1/env/pull", token, &body).success();
        (list["variables"].clone(), pull["variables"].clone())
    }

    /// Waits until `done` is true.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "{what} did not come:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Waits for its end, and that of its log.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.whole_log();
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to stop and waits: it must end well. Everything that it has logged.
    #[track_caller]
    pub(crate) fn stop(mut self) -> String {
        self.signal("TERM");
        let status = self.ended();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        self.whole_log()
    }

    /// Kills it, as a power cut would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(30);
            eprintln!("the end of the server's log:\n{}", lines[last..].join("\n"));
        }
    }
}

/// A server with the organization `acme`, its project `shop` and the owner's token.
pub(crate) struct Shop {
    pub(crate) place: Place,
    pub(crate) server: Server,
    pub(crate) owner: String,
}

/// The stage that most journeys use; it is not protected.
pub(crate) const STAGING: (&str, &str) = ("shop", "staging");
/// A protected stage.
pub(crate) const PRODUCTION: (&str, &str) = ("shop", "production");

impl Shop {
    pub(crate) fn open(engine: Engine) -> Self {
        Self::open_at(Place::new(engine))
    }

    pub(crate) fn open_at(place: Place) -> Self {
        let server = place.serve();
        let owner = place.bootstrap("acme");
        server.make_project(&owner, "shop");
        Self {
            place,
            server,
            owner,
        }
    }

    /// Stops the server and starts another one on the same place.
    pub(crate) fn restart(self) -> Self {
        self.server.stop();
        let server = self.place.serve();
        Self {
            place: self.place,
            server,
            owner: self.owner,
        }
    }
}
