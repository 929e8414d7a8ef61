//! Connections over memory and over loopback, with a guard that is not patient.

use std::net::{SocketAddr, TcpListener};

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::api::listener::{Raw, limit};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// So many places, and half of them for one address.
fn places(all: usize) -> Bounds {
    Bounds {
        all,
        address: all.div_ceil(2),
        network: all,
        kept: 0,
        little: 0,
    }
}

fn place() -> Share {
    Shares::new(places(1)).take(None, 1).unwrap()
}

fn within(milliseconds: u64) -> Patience {
    Patience {
        first_byte: Duration::from_millis(milliseconds),
        idle: Duration::from_millis(milliseconds),
        ..PATIENT
    }
}

const PATIENT: Patience = Patience {
    first_byte: Duration::from_secs(60),
    idle: Duration::from_secs(60),
    request: Duration::from_secs(60),
};

#[test]
fn a_connection_that_never_sends_a_byte_ends() {
    runtime().block_on(async {
        let (_silent, served) = tokio::io::duplex(64);
        let mut guarded = Guarded::new(served, place(), within(20), Arc::default());
        let error = guarded.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn a_connection_that_has_sent_waits_longer_and_stays_while_a_request_is_under_way() {
    runtime().block_on(async {
        let (mut talking, served) = tokio::io::duplex(64);
        let patience = Patience {
            first_byte: Duration::from_millis(20),
            ..PATIENT
        };
        let mut guarded = Guarded::new(served, place(), patience, Arc::default());
        talking.write_u8(1).await.unwrap();
        assert_eq!(guarded.read_u8().await.unwrap(), 1);
        let later = tokio::time::timeout(Duration::from_millis(60), guarded.read_u8());
        assert!(later.await.is_err(), "it still waits for the second byte");

        let (mut asking, served) = tokio::io::duplex(64);
        let requests = Arc::new(Requests::default());
        let mut guarded = Guarded::new(served, place(), within(20), Arc::clone(&requests));
        asking.write_u8(1).await.unwrap();
        assert_eq!(guarded.read_u8().await.unwrap(), 1);
        let underway = Underway::begin(&requests);
        let later = tokio::time::timeout(Duration::from_millis(100), guarded.read_u8());
        assert!(later.await.is_err(), "its request is under way");
        drop(underway);
        let error = guarded.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "it was ended");
    });
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
    [&head[..], payload].concat()
}

#[test]
fn pings_do_not_keep_an_http_2_connection_open_and_a_slow_answer_does() {
    let answering = Duration::from_millis(1500);
    let slow = async move || {
        tokio::time::sleep(answering).await;
        "done"
    };
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let guard = Guard::with(Raw, limits::CONNECTIONS, within(200));
        let mut server = axum_server::from_tcp(listener).unwrap().acceptor(guard);
        limit(&mut server);
        let router = Router::new().route("/", axum::routing::get(slow));
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let serving = tokio::spawn(server.serve(service));

        // `GET /` by the static table of RFC 7541, its headers and itself ended.
        let get = frame(1, 5, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a']);
        for (asks, lives) in [(Vec::new(), false), (get, true)] {
            let (mut reads, mut writes) = TcpStream::connect(address).await.unwrap().into_split();
            let settings = frame(4, 0, 0, &[]);
            let opening = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &asks].concat();
            writes.write_all(&opening).await.unwrap();
            let pinging = tokio::spawn(async move {
                while writes.write_all(&frame(6, 0, 0, &[7; 8])).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            let begun = Instant::now();
            let mut came = Vec::new();
            let end = reads.read_to_end(&mut came);
            // A reset is an end too: a ping may cross the closing.
            drop(
                tokio::time::timeout(Duration::from_secs(20), end)
                    .await
                    .expect("it ends"),
            );
            assert_eq!(begun.elapsed() > answering, lives);
            assert_eq!(came.windows(4).any(|it| it == b"done"), lives);
            pinging.abort();
        }
        serving.abort();
    });
}

#[test]
fn a_connection_whose_answer_nobody_reads_ends_whatever_comes_over_it() {
    // More than the buffers of two sockets hold.
    let long = Bytes::from(vec![b'x'; 64 * 1024 * 1024]);
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Patience {
            request: Duration::from_millis(300),
            ..PATIENT
        };
        let guard = Guard::with(Raw, limits::CONNECTIONS, patience);
        let places = guard.places.clone();
        let mut server = axum_server::from_tcp(listener).unwrap().acceptor(guard);
        limit(&mut server);
        let router = Router::new().route("/", axum::routing::get(async move || long.clone()));
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let serving = tokio::spawn(server.serve(service));
        let all_are_free = || places.take(None, limits::CONNECTIONS_MAX - limits::CONNECTIONS.kept);

        // HTTP/2: SETTINGS with an INITIAL_WINDOW_SIZE of nothing, `GET /`, and pings for ever.
        let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
        let get = frame(1, 5, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a']);
        let second = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &get].concat();
        // HTTP/1: a second request behind the first, so that nothing more is read until the first is answered.
        let first = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2);
        for (opening, pings) in [(second, true), (first, false)] {
            let (_reads, mut writes) = TcpStream::connect(address).await.unwrap().into_split();
            writes.write_all(&opening).await.unwrap();
            let pinging = tokio::spawn(async move {
                while !pings || writes.write_all(&frame(6, 0, 0, &[7; 8])).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(all_are_free().is_none(), "it is being answered");
            let ended = async {
                while all_are_free().is_none() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), ended)
                .await
                .expect("it ends");
            pinging.abort();
        }
        serving.abort();
    });
}

#[test]
fn a_connection_too_many_is_closed_until_another_one_ends() {
    runtime().block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let guard = Guard::with(Raw, places(1), PATIENT);
        let connect = async || {
            let client = TcpStream::connect(address).await.unwrap();
            let (served, _) = listener.accept().await.unwrap();
            (client, guard.accept(served, ()).await)
        };
        let (_first, taken) = connect().await;
        assert!(taken.is_ok());
        let (mut second, refused) = connect().await;
        assert!(refused.is_err());
        assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0, "it is closed");
        drop(taken);
        assert!(connect().await.1.is_ok());
    });
}

#[test]
fn a_peer_that_has_its_share_leaves_places_for_another() {
    runtime().block_on(async {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let guard = Guard::with(Raw, places(4), PATIENT);
        // Each address of 127.0.0.0/8 that is connected to is also that which is connected from.
        let connect = async |from: [u8; 4]| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((from, 0))).unwrap();
            let client = socket
                .connect(SocketAddr::from((from, port)))
                .await
                .unwrap();
            let (served, _) = listener.accept().await.unwrap();
            (client, guard.accept(served, ()).await)
        };
        let greedy = [127, 0, 0, 2];
        let _one = connect(greedy).await;
        let _two = connect(greedy).await;
        assert!(connect(greedy).await.1.is_err());
        assert!(connect([127, 0, 0, 3]).await.1.is_ok());
    });
}

#[test]
fn no_peer_can_take_every_place_of_the_real_listener() {
    let Bounds {
        all,
        address,
        network,
        kept,
        little,
    } = limits::CONNECTIONS;
    assert!(address < network && network <= all - kept && (1..kept).contains(&little));
}
