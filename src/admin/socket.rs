//! The socket of the running server: bound by `serve`, asked by `admin`.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::{Reply, Request, origin, perform};
use crate::vault::Vault;

/// The longest request, in bytes: a head for each of some ten thousand organizations fits.
const REQUEST_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// How long a request may take to arrive.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// How long requests that were begun may take once the server was told to stop.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// How many administrators are served at once.
const CONNECTIONS_MAX: usize = 16;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another server answers on it.
    #[error(
        "another server answers on {path}: stop it, or name another socket with --admin-socket"
    )]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error("{path} is there and is no socket: name another path with --admin-socket")]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// The system says no.
    #[error("cannot listen on the admin socket {path}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No server listens.
    #[error("no server listens on {path}")]
    NoServer {
        /// Where.
        path: PathBuf,
    },
    /// The caller may not open it, or it broke off.
    #[error("cannot ask the server on {path}")]
    Broken {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The request is one that the server would not read to its end.
    #[error(
        "the request is {length} bytes long and may have {REQUEST_BYTES_MAX}: give fewer heads; the newest of each chain is enough"
    )]
    TooLong {
        /// How long it is, in bytes.
        length: usize,
    },
    /// The answer is not one of this version.
    #[error("the server on {path} answers in another form: is it of another version?")]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
}

/// The server's end, bound. Its file goes when it is dropped.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The file may be gone already; nothing is left to do about it either way.
        drop(std::fs::remove_file(&self.path));
    }
}

impl Socket {
    /// Binds it with mode 0600. A socket that nobody answers on any more is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Bind {
            path: path.to_owned(),
            source,
        };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NoSocket {
                    path: path.to_owned(),
                });
            }
            Ok(_) => {
                if UnixStream::connect(path).await.is_ok() {
                    return Err(SocketError::Taken {
                        path: path.to_owned(),
                    });
                }
                std::fs::remove_file(path).map_err(failed)?;
            }
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Self {
            listener,
            path: path.to_owned(),
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(socket)
    }

    /// Answers until `stop` turns true, and lets what was begun end, for a while.
    pub async fn serve(self, vault: Vault, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut answering = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = answering.join_next() => continue,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        continue;
                    };
                    let vault = vault.clone();
                    answering.spawn(async move {
                        if let Err(error) = answer(stream, &vault).await {
                            tracing::warn!("an admin request broke off: {error}");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept on the admin socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let ended = async { while answering.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIME_MAX, ended).await.is_err() {
            tracing::warn!("admin requests that took too long to end were given up");
        }
        answering.shutdown().await;
    }
}

async fn answer(mut stream: UnixStream, vault: &Vault) -> io::Result<()> {
    let who = match stream.peer_cred() {
        Ok(peer) => format!("uid {}", peer.uid()),
        Err(_) => String::new(),
    };
    let mut asked = Vec::new();
    let mut limited = (&mut stream).take(REQUEST_BYTES_MAX + 1);
    tokio::time::timeout(REQUEST_TIME_MAX, limited.read_to_end(&mut asked))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let reply = if is_too_long(asked.len()) {
        Reply::Refused {
            message: format!("the request is longer than {REQUEST_BYTES_MAX} bytes"),
        }
    } else {
        match serde_json::from_slice::<Request>(&asked) {
            Ok(request) => perform(vault, &origin(who), request).await,
            Err(error) => Reply::Refused {
                message: format!(
                    "the request is not one of this version: line {}, column {}",
                    error.line(),
                    error.column()
                ),
            },
        }
    };
    let reply = serde_json::to_vec(&reply).map_err(io::Error::other)?;
    stream.write_all(&reply).await?;
    stream.shutdown().await
}

fn is_too_long(length: usize) -> bool {
    length as u64 > REQUEST_BYTES_MAX
}

/// Asks the running server.
///
/// # Errors
/// [`AskError`].
pub async fn ask(path: &Path, request: &Request) -> Result<Reply, AskError> {
    let broken = |source: io::Error| AskError::Broken {
        path: path.to_owned(),
        source,
    };
    let mut stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Err(AskError::NoServer {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(broken(error)),
    };
    let asked = serde_json::to_vec(request)
        .map_err(io::Error::other)
        .map_err(broken)?;
    if is_too_long(asked.len()) {
        return Err(AskError::TooLong {
            length: asked.len(),
        });
    }
    stream.write_all(&asked).await.map_err(broken)?;
    stream.shutdown().await.map_err(broken)?;
    let mut replied = Vec::new();
    stream.read_to_end(&mut replied).await.map_err(broken)?;
    serde_json::from_slice(&replied).map_err(|source| AskError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::PublishedHead;
    use crate::crypto::keys::MasterKey;
    use crate::vault::{Clock, VaultSettings};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn the_socket_is_for_its_owner_alone_and_goes_with_its_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        block_on(async {
            let socket = Socket::bind(&path).await.unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert!(matches!(
                Socket::bind(&path).await,
                Err(SocketError::Taken { .. })
            ));
            drop(socket);
            assert!(!path.exists());
        });
    }

    #[test]
    fn a_socket_that_a_killed_server_left_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        block_on(async {
            drop(Socket::bind(&path).await.unwrap());
            std::fs::write(&path, "precious").unwrap();
            assert!(matches!(
                Socket::bind(&path).await,
                Err(SocketError::NoSocket { .. })
            ));
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    fn heads(count: usize) -> Request {
        let head = PublishedHead {
            chain: "org_0".to_owned(),
            epoch: 1,
            sequence: 1,
            mac: "0".repeat(64),
        };
        Request::VerifyAudit {
            published: vec![head; count],
        }
    }

    async fn vault(directory: &Path) -> Vault {
        struct Stopped;
        impl Clock for Stopped {
            fn now_ms(&self) -> i64 {
                1_000
            }
        }
        let settings = VaultSettings {
            database: format!("sqlite:{}", directory.join("vault.db").display()),
            master_key: MasterKey::from_base64(&format!("{}=", "A".repeat(43))).unwrap(),
            accepted_risks: Vec::new(),
            value_bytes_max: 1024,
            pod_identity: None,
        };
        Vault::open(settings, Arc::new(Stopped)).await.unwrap()
    }

    #[tokio::test]
    async fn a_request_that_is_too_long_is_refused_on_either_side_with_what_would_pass() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let socket = Socket::bind(&path).await.unwrap();
        let (_running, stop) = watch::channel(false);
        let serving = tokio::spawn(socket.serve(vault(directory.path()).await, stop));

        assert!(ask(&path, &heads(10_000)).await.is_ok());
        let refused = ask(&path, &heads(100_000)).await.unwrap_err();
        assert!(refused.to_string().contains("newest"), "{refused}");

        let mut stream = UnixStream::connect(&path).await.unwrap();
        let long = vec![b' '; usize::try_from(REQUEST_BYTES_MAX).unwrap() + 1];
        stream.write_all(&long).await.unwrap();
        let mut replied = String::new();
        stream.read_to_string(&mut replied).await.unwrap();
        assert!(replied.contains("longer than"), "{replied}");
        serving.abort();
    }

    #[tokio::test]
    async fn a_request_that_was_begun_is_answered_before_the_socket_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let socket = Socket::bind(&path).await.unwrap();
        let (running, stop) = watch::channel(false);
        let serving = tokio::spawn(socket.serve(vault(directory.path()).await, stop));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let asked = serde_json::to_vec(&heads(0)).unwrap();
        stream.write_all(&asked).await.unwrap();
        // It is accepted, and waits for the end of the request.
        tokio::time::sleep(Duration::from_millis(100)).await;
        running.send_replace(true);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!serving.is_finished());
        stream.shutdown().await.unwrap();
        let mut replied = Vec::new();
        stream.read_to_end(&mut replied).await.unwrap();
        let reply: Reply = serde_json::from_slice(&replied).unwrap();
        assert!(matches!(reply, Reply::Audit { .. }));
        tokio::time::timeout(Duration::from_secs(5), serving)
            .await
            .expect("it ends")
            .unwrap();
    }

    #[test]
    fn without_a_server_the_administrator_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let request = Request::VerifyAudit {
            published: Vec::new(),
        };
        let error = block_on(ask(&path, &request)).unwrap_err();
        assert!(matches!(error, AskError::NoServer { .. }));
    }
}
