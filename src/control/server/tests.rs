use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::client;
use crate::protocol::{Data, FragmentsView, PacketCounts, Reply, Request, Status};
use lbd_core::policy::Mode;

/// Knows its pid, and has as many services as one wants.
struct Fake;

impl Handler for Fake {
    fn handle(&self, request: Request) -> Reply {
        match request {
            Request::Status => Reply::Ok(Data::Status(Box::new(status()))),
            Request::Mode => Reply::Ok(Data::Mode(Mode::Ipvs)),
            Request::Save => Reply::Ok(Data::Configuration("x".repeat(32 << 20))),
            Request::Reload => panic!("a defect of the handler"),
            Request::List { .. }
            | Request::Connections { .. }
            | Request::Rules
            | Request::Drops
            | Request::Edit { .. }
            | Request::Drain { .. }
            | Request::Drains
            | Request::Timeouts
            | Request::Explain { .. }
            | Request::Zero { .. }
            | Request::SwitchMode { .. } => Reply::error("not in this test"),
        }
    }
}

fn status() -> Status {
    Status {
        version: "0".to_owned(),
        mode: Mode::Ipvs,
        backend: "tun".to_owned(),
        config: "lbd.toml".into(),
        pid: 4711,
        uptime_seconds: 0,
        workers: 1,
        services: 0,
        backends: 0,
        flows: 0,
        max_flows: 1,
        unknown_tcp: "drop".to_owned(),
        echo: true,
        flow_table_bytes: 0,
        flows_by_state: Vec::new(),
        packets: PacketCounts::default(),
        fragments: FragmentsView::default(),
        unsent: 0,
        last_reload: None,
        troubles: Vec::new(),
        firewall: Vec::new(),
        draining: Vec::new(),
        shadow: None,
        af_xdp: None,
    }
}

fn running() -> (TempDir, PathBuf, Server) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("run/lbd.sock");
    let server = Server::start(&path, Arc::new(Fake)).unwrap();
    (directory, path, server)
}

fn said(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

fn asks(path: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    said(&stream)
}

#[test]
fn only_the_owner_may_open_the_socket_and_its_directory_is_made() {
    let (_directory, path, _server) = running();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o755);
    assert_eq!(
        std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "no draft is left"
    );
}

#[test]
fn a_request_is_answered_and_more_may_follow_on_the_same_connection() {
    let (_directory, path, _server) = running();
    let mode = "{\"command\":\"mode\"}\n";
    assert_eq!(asks(&path, mode), "{\"ok\":{\"mode\":\"ipvs\"}}\n");
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(mode.repeat(3).as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "{\"ok\":{\"mode\":\"ipvs\"}}\n".repeat(3));
}

#[test]
fn nonsense_is_answered_with_an_error_that_shows_what_is_right() {
    let (_directory, path, _server) = running();
    for nonsense in ["hello\n", "\n", "{\"command\":\"fly\"}\n", "[1]\n", "\u{0}\n"] {
        let reply = asks(&path, nonsense);
        assert!(
            reply.starts_with("{\"error\":{\"message\":\"not a request: "),
            "{reply}"
        );
        assert!(reply.contains("command"), "{reply}");
    }
}

#[test]
fn the_socket_is_gone_after_the_server_stopped() {
    let (_directory, path, server) = running();
    let idle = UnixStream::connect(&path).unwrap();
    asks(&path, "{\"command\":\"mode\"}\n");
    server.stop();
    assert!(!path.exists());
    assert_eq!(said(&idle), "", "a client that waits is let go at once");
}

#[test]
fn a_socket_that_nobody_serves_any_more_is_replaced() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("lbd.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = Server::start(&path, Arc::new(Fake)).unwrap();
    assert!(client::ask(&path, &Request::Mode).is_ok());
    server.stop();
}

#[test]
fn a_second_lbd_is_refused_and_told_the_pid_of_the_first() {
    let (_directory, path, _server) = running();
    let error = Server::start(&path, Arc::new(Fake)).unwrap_err();
    let expected = format!("another lbd is listening on {} (pid 4711)", path.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(client::ask(&path, &Request::Mode).is_ok(), "the first goes on");
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("lbd.sock");
    std::fs::write(&path, "precious").unwrap();
    let error = Server::start(&path, Arc::new(Fake)).unwrap_err();
    assert!(error.to_string().contains("is no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_stopping_server_leaves_a_socket_alone_that_is_not_its_own() {
    let (_directory, path, server) = running();
    std::fs::remove_file(&path).unwrap();
    let _another = UnixListener::bind(&path).unwrap();
    server.stop();
    assert!(path.exists());
}

#[test]
fn clients_that_hang_do_not_hold_up_the_others() {
    let (_directory, path, _server) = running();
    let hung: Vec<_> = (1..MAX_CLIENTS)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"{\"comm").unwrap();
            stream
        })
        .collect();
    assert!(client::ask(&path, &Request::Mode).is_ok());
    drop(hung);
}

#[test]
fn a_client_beyond_the_limit_is_told_so() {
    let (_directory, path, _server) = running();
    let hung: Vec<_> = (0..MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let reply = client::ask(&path, &Request::Mode).unwrap();
    let Reply::Err { message, .. } = reply else {
        panic!("{reply:?}")
    };
    assert!(message.contains("16 control clients"), "{message}");
    drop(hung);
}

#[test]
fn a_client_that_says_nothing_is_left_after_five_seconds() {
    let (_directory, path, _server) = running();
    let silent = UnixStream::connect(&path).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    assert_eq!(said(&silent), "", "closed by the server, not by our own timeout");
}

#[test]
fn a_request_of_more_than_a_megabyte_is_refused() {
    let (_directory, path, _server) = running();
    let mut stream = UnixStream::connect(&path).unwrap();
    // The server may close while we are still talking.
    stream.write_all(&vec![b' '; session::MAX_REQUEST + 1]).ok();
    let reply = said(&stream);
    assert!(reply.contains("longer than 1048576 bytes"), "{reply}");
}

#[test]
fn a_request_that_lbd_fails_at_costs_its_own_connection_only() {
    let (_directory, path, server) = running();
    let error = client::ask(&path, &Request::Reload).unwrap_err();
    assert!(error.to_string().starts_with("no reply from lbd at "), "{error}");
    assert!(client::ask(&path, &Request::Mode).is_ok());
    server.stop();
}

#[test]
fn a_large_reply_arrives_whole() {
    let (_directory, path, _server) = running();
    let Reply::Ok(Data::Configuration(text)) = client::ask(&path, &Request::Save).unwrap() else {
        panic!("another reply");
    };
    assert_eq!(text.len(), 32 << 20);
}

#[test]
fn a_client_that_takes_no_reply_does_not_hold_up_the_others() {
    let (_directory, path, server) = running();
    let mut greedy = UnixStream::connect(&path).unwrap();
    greedy.write_all(b"{\"command\":\"save\"}\n").unwrap();
    assert!(client::ask(&path, &Request::Mode).is_ok());
    server.stop();
}

#[test]
fn where_nobody_listens_the_error_names_the_socket_and_the_remedy() {
    let error = client::ask(Path::new("/nonexistent/lbd.sock"), &Request::Mode).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("cannot reach lbd at /nonexistent/lbd.sock: "),
        "{text}"
    );
    assert!(
        text.ends_with("start `lbd --config FILE` or give --socket PATH"),
        "{text}"
    );
}
