//! A large cluster that never rests: 10,000 services, 100,000 backends, and clients that do not notice any change.
use std::fmt::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lbd::config::edit::{BackendFields, Edit, Which};
use lbd::control::client::ask;
use lbd::control::protocol::{Reply, Request};
use lbd::flow::Endpoint;

use crate::rig::{Backend, Config, DIR, Load, Mode, Rig, isolated};

const SERVICES: usize = 10_000;
/// Of each service.
const BACKENDS: usize = 10;
/// Services that every fourth change, and every second client, is about.
const BUSY: usize = 16;
const CHANGES_A_SECOND: usize = 100;

/// Each server answers at 65,536 addresses: 10.11.0.0/16, 10.12.0.0/16, 10.13.0.0/16.
const MANY_ADDRESSES: &str = r#"
for number in 1 2 3; do
    ip -n "s$number" route add local "10.1$number.0.0/16" dev lo
    ip -n lb route add "10.1$number.0.0/16" via "10.2.0.1$number" dev "s$number"
done
"#;

/// The address of backend `each` of a service; the servers have every third one.
fn backend(service: usize, each: usize) -> Endpoint {
    let number = service * BACKENDS + each;
    let (server, host) = (1 + number % 3, number / 3);
    let text = format!("10.1{server}.{}.{}:8080", host >> 8, host & 255);
    text.parse().expect("an endpoint")
}

fn name(service: usize) -> String {
    format!("ns-{}/service-{service}:http", service % 50)
}

fn address(service: usize) -> String {
    format!("10.96.{}.{}:80", service >> 8, service & 255)
}

/// `[[services]]`, the backends of each by `of`.
fn services(of: impl Fn(usize) -> Vec<Endpoint>) -> String {
    let mut text = String::new();
    for service in 0..SERVICES {
        let (name, address) = (name(service), address(service));
        write!(
            text,
            "[[services]]\nname = \"{name}\"\nprotocol = \"tcp\"\naddress = \"{address}\"\nbackends = [\n"
        )
        .expect("a String takes all");
        for backend in of(service) {
            writeln!(text, "  {{ address = \"{backend}\" }},").expect("a String takes all");
        }
        text.push_str("]\n");
    }
    text
}

fn all(service: usize) -> Vec<Endpoint> {
    (0..BACKENDS).map(|each| backend(service, each)).collect()
}

fn config(mode: Mode, services: String) -> Config {
    Config {
        more: services.leak(),
        ..Config::new(mode, Vec::new())
    }
}

/// Has lbd make a change, and returns how long that took.
#[track_caller]
fn edit(edit: Edit) -> Duration {
    let (start, socket) = (Instant::now(), format!("{DIR}/lbd.sock"));
    let request = Request::Edit { edits: vec![edit] };
    let reply = ask(Path::new(&socket), &request).expect("lbd answers");
    let took = start.elapsed();
    assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
    took
}

fn add(service: usize, address: Endpoint) -> Edit {
    Edit::AddBackend {
        service: Which::Named(name(service)),
        address,
        fields: BackendFields::default(),
        first: false,
    }
}

fn delete(service: usize, address: Endpoint) -> Edit {
    Edit::DeleteBackend {
        service: Which::Named(name(service)),
        address,
    }
}

/// One of few services half of the time, else any of all.
fn pick(rng: &mut fastrand::Rng, busy: usize) -> usize {
    match rng.usize(..busy) {
        0 => rng.usize(..BUSY) * (SERVICES / BUSY),
        _ => rng.usize(..SERVICES),
    }
}

/// Takes a backend from a service, or gives it back, at an even pace. Returns how long each change took, and how many
/// backends there are in the end.
fn churn(seconds: usize) -> (Vec<Duration>, usize) {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut gone: Vec<Option<Endpoint>> = vec![None; SERVICES];
    let (start, mut took) = (Instant::now(), Vec::new());
    for number in 0..seconds * CHANGES_A_SECOND {
        let due = start + Duration::from_secs(1) * number as u32 / CHANGES_A_SECOND as u32;
        sleep(due.saturating_duration_since(Instant::now()));
        let service = pick(&mut rng, 4);
        took.push(match gone[service].take() {
            Some(address) => edit(add(service, address)),
            None => {
                let address = backend(service, rng.usize(..BACKENDS));
                gone[service] = Some(address);
                edit(delete(service, address))
            }
        });
    }
    let missing = gone.iter().flatten().count();
    (took, SERVICES * BACKENDS - missing)
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "{what}: {} took {:?} at the median, {:?} at the 99th percentile, {:?} at most",
        took.len(),
        at(50),
        at(99),
        at(100)
    );
}

#[test]
fn no_connection_fails_while_a_hundred_backends_a_second_come_and_go() {
    isolated(|| {
        let rig = Rig::changed(MANY_ADDRESSES);
        let long = std::env::var_os("LBD_RIG_LONG").is_some();
        for mode in [Mode::Iptables, Mode::Ipvs] {
            // The whole minute once in a run of all rigs is enough.
            let seconds = match (mode, Backend::of_this_run()) {
                (Mode::Iptables, Backend::Tun) => 60,
                (Mode::Iptables, Backend::AfXdp) | (Mode::Ipvs, _) if long => 60,
                (Mode::Iptables, Backend::AfXdp) | (Mode::Ipvs, _) => 10,
            };
            println!("--- {mode:?}: {seconds} s (LBD_RIG_LONG=1 has each last 60 s)");
            let lbd = rig.lbd(&config(mode, services(all)));
            let load = Load::scattered("client", 4, |rng| address(pick(rng, 2)));
            let start = Instant::now();
            let (took, backends) = churn(seconds);
            let rate = took.len() as f64 / start.elapsed().as_secs_f64();
            let (answered, failures) = load.stop();
            tell(&format!("{rate:.0} changes a second"), took);
            println!("{answered} connections");
            assert!(
                failures.is_empty(),
                "{} of {answered} failed: {failures:#?}",
                failures.len()
            );
            assert!(answered > 50 * seconds, "only {answered} connections in all");
            assert_eq!(lbd.status()["backends"], backends);
            lbd.terminate();
        }
    });
}

#[test]
fn one_backend_of_a_hundred_thousand_is_changed_by_hangup_and_by_command() {
    isolated(|| {
        let rig = Rig::changed(MANY_ADDRESSES);
        // Of 100,000 backends those of one service are on one server.
        let (one, servers) = (5_000, [backend(0, 0), backend(0, 1), backend(0, 2)]);
        let with = |server: usize| {
            services(|service| match service == one {
                true => vec![servers[server]],
                false => all(service),
            })
        };
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let lbd = rig.lbd(&config(mode, with(0)));
            assert_eq!(rig.spread("client", &address(one), 3), [3, 0, 0]);
            for (server, expected) in [(1, [0, 3, 0]), (2, [0, 0, 3])] {
                let text = config(mode, with(server)).to_string();
                let start = Instant::now();
                let said = lbd.hangup(&text);
                println!("{mode:?}: {} bytes, reloaded within {:?}", text.len(), start.elapsed());
                assert!(said.contains("services +0 ~1 -0"), "{said}");
                assert_eq!(rig.spread("client", &address(one), 3), expected);
            }
            tell("a backend added", vec![edit(add(one, servers[0]))]);
            tell("a backend removed", vec![edit(delete(one, servers[2]))]);
            assert_eq!(rig.spread("client", &address(one), 3), [3, 0, 0]);
            lbd.terminate();
        }
    });
}
