//! How calls go: what the server hears, what is tried again, what is believed of an answer.

use serde_json::json;

use super::test_server::{Reply, SERVER_NAME, Server, error, ok, reply, unused_port};
use super::*;
use crate::protocol::environment::PullRequest;
use crate::protocol::management::{
    ProjectCreateRequest, ProjectCreateResponse, ProjectListRequest, ProjectListResponse,
};

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn patience(tries_max: u32) -> Patience {
    Patience {
        total: Duration::from_secs(20),
        tries_max,
    }
}

fn client_at(endpoint: Endpoint, trust: &Trust) -> Client {
    let token = Credential::Token(Zeroizing::new("bk_api_1".to_owned()));
    Client::new(endpoint, trust, token, patience(3), "test/1").unwrap()
}

fn client_of(server: &Server) -> Client {
    let address = vec!["127.0.0.1".parse().unwrap()];
    client_at(
        Endpoint::of_service(SERVER_NAME, server.port(), address),
        &Trust::Authority(server.authority().to_vec()),
    )
}

fn list_projects(client: &Client) -> Result<ProjectListResponse, ClientError> {
    run(client.list_projects(&ProjectListRequest { org_slug: None }))
}

fn create_project(client: &Client) -> Result<ProjectCreateResponse, ClientError> {
    run(client.create_project(&ProjectCreateRequest {
        org_slug: None,
        name: "Shop".to_owned(),
        slug: None,
    }))
}

fn no_projects() -> Reply {
    ok(&json!({"projects": [], "requestId": "req_1"}))
}

#[test]
fn a_call_carries_its_path_its_token_and_its_body_to_a_server_with_the_right_name() {
    let server = Server::start(|_| ok(&json!({"variables": {"A": "1"}, "requestId": "r"})));
    let pulled = run(client_of(&server).pull(&PullRequest {
        org_slug: None,
        project_slug: "shop".to_owned(),
        stage_slug: "production".to_owned(),
        seed: None,
        key: None,
    }))
    .unwrap();
    assert_eq!(pulled.variables["A"].0, "1");
    let requests = server.requests();
    assert!(
        requests[0]
            .head
            .starts_with("POST /v1/env/pull HTTP/1.1\r\n")
    );
    assert_eq!(requests[0].header("authorization"), Some("Bearer bk_api_1"));
    assert_eq!(
        requests[0].header("host"),
        Some(format!("{SERVER_NAME}:{}", server.port()).as_str())
    );
    assert_eq!(
        requests[0].body,
        r#"{"projectSlug":"shop","stageSlug":"production"}"#
    );
}

#[test]
fn a_server_of_another_authority_hears_no_token_and_is_tried_once() {
    let server = Server::start(|_| no_projects());
    let other = Server::start(|_| no_projects());
    let mut client = client_of(&server);
    client.connector = connection::Connector::new(
        &client.endpoint,
        &Trust::Authority(other.authority().to_vec()),
    )
    .unwrap();
    assert!(list_projects(&client).unwrap_err().is_distrust());
    assert_eq!((server.connections(), server.requests().len()), (1, 0));
}

#[test]
fn a_server_of_another_name_hears_no_token_and_is_tried_once() {
    let server = Server::start(|_| no_projects());
    let endpoint = Endpoint::of_service(
        "barekey.elsewhere",
        server.port(),
        vec!["127.0.0.1".parse().unwrap()],
    );
    let client = client_at(endpoint, &Trust::Authority(server.authority().to_vec()));
    assert!(list_projects(&client).unwrap_err().is_distrust());
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn an_address_is_a_name_that_a_certificate_can_have() {
    let server = Server::start(|_| no_projects());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, server.authority_pem()).unwrap();
    let url = format!("https://127.0.0.1:{}", server.port());
    let client = client_at(Endpoint::parse_url(&url).unwrap(), &Trust::File(file));
    assert!(list_projects(&client).is_ok());
}

#[test]
fn a_plain_server_is_spoken_to_when_the_url_says_http() {
    let server = Server::start_plain(|_| no_projects());
    let url = format!("http://localhost:{}/base", server.port());
    let client = client_at(
        Endpoint::parse_url(&url).unwrap(),
        &Trust::Authority(Vec::new()),
    );
    assert!(list_projects(&client).is_ok());
    assert!(
        server.requests()[0]
            .head
            .starts_with("POST /base/v1/cli/projects/list ")
    );
}

#[test]
fn a_server_that_is_busy_or_away_is_asked_again() {
    for status in [429, 503] {
        let server = Server::start(move |request| match request.number {
            0 => error(status, "BUSY", "later").with_header("Retry-After: 0"),
            _ => no_projects(),
        });
        assert!(list_projects(&client_of(&server)).is_ok());
        assert!(server.requests().len() == 2, "{status}");
    }
}

#[test]
fn a_change_is_sent_again_when_the_server_was_too_busy_to_look_at_it() {
    let server = Server::start(|request| match request.number {
        0 => error(503, "STORAGE_UNAVAILABLE", "later").with_header("Retry-After: 0"),
        _ => error(400, "PROJECT_CREATE_FAILED", "taken"),
    });
    let refused = create_project(&client_of(&server)).unwrap_err();
    assert!(refused.to_string().contains("taken"), "{refused}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_change_that_the_server_may_have_made_is_not_sent_again_and_a_read_is() {
    let uncertain = || error(503, "STORAGE_UNAVAILABLE", "look before you try again");
    let server = Server::start(move |_| uncertain());
    let refused = create_project(&client_of(&server)).unwrap_err();
    assert!(refused.to_string().contains("look"), "{refused}");
    assert_eq!(server.requests().len(), 1);
    assert!(list_projects(&client_of(&server)).is_err());
    assert_eq!(server.requests().len(), 4);

    // Something in front of the server does not know what the server did.
    let server = Server::start(|_| reply(503, "busy").with_header("Retry-After: 0"));
    assert!(create_project(&client_of(&server)).is_err());
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_change_whose_answer_is_lost_is_not_sent_again_and_a_read_is() {
    let server = Server::start(|_| Reply::Close);
    let lost = create_project(&client_of(&server)).unwrap_err();
    assert!(lost.to_string().contains("may or may not"), "{lost}");
    assert_eq!(server.requests().len(), 1);
    assert!(list_projects(&client_of(&server)).is_err());
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn tries_end_with_patience() {
    let port = unused_port();
    let url = format!("http://127.0.0.1:{port}");
    let client = client_at(
        Endpoint::parse_url(&url).unwrap(),
        &Trust::Authority(Vec::new()),
    );
    let refused = list_projects(&client).unwrap_err();
    assert!(
        matches!(refused, ClientError::Unreachable { .. }),
        "{refused}"
    );
    // A pause that ends after patience is not begun.
    let server = Server::start(|_| {
        error(503, "STORAGE_UNAVAILABLE", "later").with_header("Retry-After: 3600")
    });
    let begin = Instant::now();
    assert!(list_projects(&client_of(&server)).is_err());
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_refusal_says_what_was_asked_and_what_the_server_answered() {
    let server = Server::start(|_| error(403, "FORBIDDEN", "the role viewer may not"));
    assert_eq!(
        create_project(&client_of(&server)).unwrap_err().to_string(),
        "cannot make the project \"Shop\": the role viewer may not (FORBIDDEN, request req_1)"
    );
}

#[test]
fn an_answer_of_something_else_is_not_taken_for_one_and_not_shown() {
    for (status, body) in [
        (200, "<html>"),
        (200, "{}"),
        (404, "not found"),
        (500, "{}"),
    ] {
        let server = Server::start(move |_| reply(status, body));
        let refused = list_projects(&client_of(&server)).unwrap_err();
        assert!(
            matches!(refused, ClientError::Foreign { status: seen, .. } if seen == status),
            "{refused}"
        );
    }
}

#[test]
fn an_answer_that_is_too_long_is_not_read() {
    let server = Server::start(|_| {
        let length = ANSWER_BYTES_MAX + 1;
        Reply::Bytes(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        ))
    });
    let refused = list_projects(&client_of(&server)).unwrap_err();
    assert!(
        matches!(&refused, ClientError::Unanswered { source, .. } if matches!(**source, ConnectError::TooLong)),
        "{refused}"
    );
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_token_that_no_header_can_carry_is_refused_without_being_shown() {
    let server = Server::start(|_| no_projects());
    let mut client = client_of(&server);
    client.credential = Credential::Token(Zeroizing::new("bk_\napi".to_owned()));
    let refused = list_projects(&client).unwrap_err();
    assert!(!refused.to_string().contains("bk_"), "{refused}");
    assert_eq!(server.connections(), 0);
}
