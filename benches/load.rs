//! A load of kept-alive HTTP/1.1 connections, and the constant server that everything is measured beside.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one run of a load saw.
pub(crate) struct Load {
    /// Answers a second.
    pub(crate) per_second: f64,
    /// Half of the answers came within this.
    pub(crate) p50: Duration,
    /// 99 of 100 answers came within this.
    pub(crate) p99: Duration,
    /// How many answers came.
    pub(crate) answers: usize,
}

/// A `POST` with a JSON body, as bytes that are sent again and again.
pub(crate) fn post(path: &str, bearer: Option<&str>, body: &str) -> Vec<u8> {
    let authorization = bearer.map_or_else(String::new, |token| {
        format!("authorization: Bearer {token}\r\n")
    });
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{authorization}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// One connection: sends a request and reads its whole answer into `answer`; `None` when the peer closed it. An answer as
/// long as the one before is whole without being parsed, so that the load takes little of the machine that it shares.
async fn exchange(stream: &mut TcpStream, request: &[u8], answer: &mut Vec<u8>) -> Option<()> {
    stream.write_all(request).await.ok()?;
    let before = answer.len();
    answer.clear();
    let mut chunk = [0_u8; 8192];
    loop {
        let read = stream.read(&mut chunk).await.ok()?;
        if read == 0 {
            return None;
        }
        answer.extend_from_slice(&chunk[..read]);
        if answer.len() == before || whole(answer) {
            return Some(());
        }
    }
}

/// Whether an answer has come to its end.
fn whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return false;
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .expect("an answer with a content-length")
        .trim()
        .parse()
        .unwrap();
    answer.len() >= head + 4 + length
}

/// Sends one request and returns status and body.
pub(crate) fn call(address: SocketAddr, request: &[u8]) -> (u16, String) {
    runtime().block_on(async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = Vec::new();
        exchange(&mut stream, request, &mut answer)
            .await
            .expect("an answer");
        let text = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    })
}

/// Keeps `connections` busy with `request` for `time`. Every answer must be 200, or the bench stops.
pub(crate) fn load(
    address: SocketAddr,
    request: &[u8],
    connections: usize,
    time: Duration,
) -> Load {
    let mut latencies: Vec<Duration> = runtime().block_on(async {
        let end = Instant::now() + time;
        let tasks: Vec<_> = (0..connections)
            .map(|_| {
                let request = request.to_vec();
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let mut answer = Vec::new();
                    let mut latencies = Vec::new();
                    while Instant::now() < end {
                        let start = Instant::now();
                        exchange(&mut stream, &request, &mut answer)
                            .await
                            .expect("an answer");
                        latencies.push(start.elapsed());
                        assert!(
                            answer.starts_with(b"HTTP/1.1 200"),
                            "not 200: {}",
                            String::from_utf8_lossy(&answer)
                        );
                    }
                    latencies
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.append(&mut task.await.unwrap());
        }
        all
    });
    latencies.sort_unstable();
    Load {
        answers: latencies.len(),
        per_second: latencies.len() as f64 / time.as_secs_f64(),
        p50: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A free port of the loopback address.
pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A child that is killed when this is dropped.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// The CPU time that the process has used, in user and in system (proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms).
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // The program's name, in parentheses, may hold anything.
        let (_, after) = stat.rsplit_once(')').unwrap();
        let ticks = after
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u32>().unwrap())
            .sum::<u32>();
        Duration::from_millis(10) * ticks
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts this program again as a server that answers `body` to everything, with the same framework as the operator.
pub(crate) fn start_constant(body: &str) -> (SocketAddr, Running) {
    let address = free_address();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["serve-constant", &address.to_string(), body])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running(child);
    wait_for(address);
    (address, running)
}

/// The other side of [`start_constant`].
pub(crate) fn serve_constant(arguments: &[String]) {
    let address: SocketAddr = arguments[0].parse().unwrap();
    let body = arguments[1].clone();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let answer = move || {
                let body = body.clone();
                async move { ([("content-type", "application/json")], body) }
            };
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            axum::serve(
                axum::serve::ListenerExt::tap_io(listener, |stream| {
                    stream.set_nodelay(true).ok();
                }),
                axum::Router::new().fallback(answer),
            )
            .await
            .unwrap();
        });
}

/// Waits until something listens, at most 20 s.
pub(crate) fn wait_for(address: SocketAddr) {
    let end = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "nothing listens on {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The middle of some figures.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
