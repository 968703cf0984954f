//! What operators say: requests on the control socket, ipvsadm's command lines and saved rules, iptables dumps.
//!
//! The first byte says which of them the rest is.
use std::net::IpAddr;

use lbd::config::{Config, edit, parse, to_toml};
use lbd::control::ipvsadm;
use lbd::control::protocol::{Data, Reply, Request};
use lbd::control::selector::Selector;
use lbd::import;

const CONFIG: &str = include_str!("../../../configs/svc.toml");
const NODE: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 2))];

/// Any bytes.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    if kind % 5 == 0 {
        return request(rest);
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match kind % 5 {
        1 => arguments(text),
        2 => restore(text),
        3 => imported(import::iptables_save::import("fuzz.txt", text).map(|done| done.toml)),
        _ => imported(ipvsadm::import::import("fuzz.txt", text).map(|done| done.toml)),
    }
}

/// A line as the control socket gets it.
fn request(line: &[u8]) {
    let Ok(request) = serde_json::from_slice::<Request>(line) else {
        return;
    };
    let again = serde_json::to_vec(&request).expect("a request can be written");
    let again: Request = serde_json::from_slice(&again).expect("and read again");
    assert_eq!(request, again);
    drop(answer(&mut config(), &request));
}

fn arguments(text: &str) {
    let words: Vec<String> = text.split([' ', '\n']).map(str::to_owned).collect();
    drop(ipvsadm(&words, String::new()));
}

/// Saved rules; what they make of the configuration is valid, or they are refused.
fn restore(text: &str) {
    let config = ipvsadm(&["--restore".to_owned()], text.to_owned());
    let again = parse("edited.toml", &to_toml(&config)).expect("an edited configuration is valid");
    assert_eq!(again.config, config);
}

fn ipvsadm(arguments: &[String], input: String) -> Config {
    let mut config = config();
    let mut ask = |request: &Request| Ok(answer(&mut config, request));
    drop(ipvsadm::run("ipvsadm", arguments, || Ok(input), &mut ask));
    config
}

/// An import either says why not, or its configuration loads.
fn imported(toml: Result<String, String>) {
    if let Ok(toml) = toml {
        let loaded = parse("imported.toml", &toml);
        assert!(loaded.is_ok(), "{loaded:#?}\n{toml}");
    }
}

fn config() -> Config {
    parse("svc.toml", CONFIG).expect("a good file").config
}

/// Does what can be done without a running lbd.
fn answer(config: &mut Config, request: &Request) -> Reply {
    match request {
        Request::Edit { edits } => match edit::apply(config, &NODE, edits) {
            Ok(edited) => {
                *config = edited;
                Reply::message("edited")
            }
            Err(refusal) => refusal.into(),
        },
        Request::List { service } => {
            let selector = service.as_deref().map(Selector::new);
            let picked = selector.is_none_or(|selector| selector.picks("default/web:http", &[]));
            let refused = || Reply::error("none");
            if picked {
                Reply::Ok(Data::Services(Vec::new()))
            } else {
                refused()
            }
        }
        Request::Connections { .. } => Reply::Ok(Data::Connections(Vec::new())),
        Request::Explain { packet } => match lbd::explain::packet(packet) {
            Ok(packet) => Reply::message(format!("{} bytes", packet.len())),
            Err(why) => Reply::error(why),
        },
        other => Reply::error(format!("{other:?}")),
    }
}
