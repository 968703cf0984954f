//! What `lbctl` tells the operator of a running lbd.
use std::time::Duration;

use crate::rig::{Backend, Config, DIR, Family, Lbd, Mode, Rig, Service, isolated, wait_until};

#[test]
fn lbctl_lists_services_backends_and_their_traffic_as_ipvsadm_does() {
    isolated(|| {
        let rig = Rig::new();
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let lbd = served(&rig, mode);
            let list = lbd.lbctl("list -n").ok();
            assert_eq!(lines_of(&list, "TCP  10.96.0.10:80 rr"), 1, "{list}");
            assert_eq!(lines_of(&list, "TCP  [fd00:96::10]:80 rr"), 1, "{list}");
            assert_eq!(lines_of(&list, "UDP  10.96.0.53:53 rr"), 1, "{list}");
            for backend in ["10.2.0.11:8080", "10.2.0.13:53", "[fd00:2::12]:8080"] {
                let line = list
                    .lines()
                    .find(|line| line.contains(&format!("-> {backend} ")))
                    .unwrap_or_else(|| panic!("{list}"));
                assert_eq!(line.split_whitespace().nth(2), Some("Masq"), "{line}");
                assert_eq!(line.split_whitespace().nth(3), Some("1"), "{line}");
            }
            let stats = lbd.lbctl("list -n --stats").ok();
            let web = stats
                .lines()
                .find(|line| line.starts_with("TCP  10.96.0.10:80 "))
                .expect("the service is listed");
            assert_eq!(web.split_whitespace().nth(2), Some("6"), "six connections: {stats}");
            assert!(
                lbd.lbctl("list -n --rate").ok().contains("CPS"),
                "the rates have ipvsadm's columns"
            );
            lbd.terminate();
        }
    });
}

#[test]
fn lbctl_status_names_what_the_other_mode_would_have_done_before_it_does_it() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = served(&rig, Mode::Ipvs);
        let config = Config {
            more: "[[rules]]\nname = \"no web\"\ndestination_port = 80\naction = \"reject\"\n",
            ..Config::new(Mode::Ipvs, vec![Service::web(Family::V4)])
        };
        lbd.reload(&format!("shadow = true\n{config}")).ok();
        assert_eq!(rig.spread("client", &Family::V4.web(), 3), [1, 1, 1]);
        let status = lbd.lbctl("status").ok();
        // A straggler of what was before may be among those that agree.
        assert!(status.contains("iptables: new flows "), "{status}");
        assert!(status.contains(" + disagreed 3"), "{status}");
        let told = "10.96.0.10:80: service test/web:V4-80, in iptables mode reject (rule 1)";
        assert!(status.contains(told), "{status}");
        let shadow = &lbd.status()["shadow"];
        assert_eq!(shadow["disagreed"], 3);
        assert_eq!(shadow["disagreements"][0]["shadow"]["verdict"], "reject");
        wait_until("a warning", Duration::from_secs(5), || lbd.log().contains(told));
        lbd.lbctl("mode iptables").ok();
        assert_ne!(rig.get("client", &Family::V4.web()).code, 0, "now it does");
        assert_eq!(lbd.status()["shadow"]["mode"], "ipvs");
        lbd.terminate();
    });
}

#[test]
fn lbctl_lists_one_service_by_its_name() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = served(&rig, Mode::Ipvs);
        let list = lbd.lbctl("list -n test/dns:V4").ok();
        assert!(
            list.contains("10.96.0.53:53") && !list.contains("10.96.0.10:80"),
            "{list}"
        );
        let unknown = lbd.lbctl("list -n no/such:service");
        assert!(
            unknown.code == 1 && unknown.err.contains("no/such:service"),
            "{unknown:?}"
        );
        lbd.terminate();
    });
}

#[test]
fn lbctl_shows_the_connections_that_live() {
    isolated(|| {
        let rig = Rig::new();
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let lbd = served(&rig, mode);
            let download = rig.spawn("client", "curl -sS -o /dev/null --max-time 20 http://10.96.0.10/slow");
            lbd.wait_for_established(1);
            let connections = lbd.lbctl("connections -n").ok();
            let established = connections
                .lines()
                .filter(|line| line.contains("ESTABLISHED"))
                .collect::<Vec<_>>();
            assert_eq!(established.len(), 1, "{connections}");
            let fields: Vec<&str> = established[0].split_whitespace().collect();
            assert_eq!((fields[0], fields[4]), ("TCP", "10.96.0.10:80"), "{connections}");
            assert!(
                fields[3].starts_with("10.1.0.2:") && fields[5].starts_with("10.2.0.1"),
                "{connections}"
            );
            assert!(connections.lines().any(|line| line.starts_with("UDP")), "{connections}");
            download.wait().ok();
            lbd.terminate();
        }
    });
}

#[test]
fn lbctl_tells_the_mode_and_the_state_of_things() {
    isolated(|| {
        let rig = Rig::new();
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let lbd = served(&rig, mode);
            assert_eq!(lbd.lbctl("mode").ok().trim(), mode.name());
            assert!(lbd.lbctl("status").ok().contains(mode.name()));
            let drops = lbd.lbctl("drops").ok();
            assert!(
                drops.contains("malformed") && drops.contains("table_full"),
                "every reason is told: {drops}"
            );
            lbd.terminate();
        }
    });
}

#[test]
fn lbctl_switches_the_mode_of_a_running_lbd() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = served(&rig, Mode::Ipvs);
        lbd.lbctl("mode iptables").ok();
        assert_eq!(lbd.lbctl("mode").ok().trim(), "iptables");
        assert!(
            lbd.lbctl("rules").ok().contains("10.96.0.10"),
            "now there is a rule for each service"
        );
        assert_eq!(rig.spread("client", &Family::V4.web(), 3), [1, 1, 1]);
        lbd.terminate();
    });
}

#[test]
fn every_reading_command_speaks_json() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = served(&rig, Mode::Iptables);
        for command in [
            "status",
            "list",
            "list --stats",
            "list --rate",
            "connections",
            "rules",
            "drops",
            "mode",
        ] {
            let json = lbd.lbctl(&format!("{command} --json")).ok();
            let value: serde_json::Value =
                serde_json::from_str(&json).unwrap_or_else(|error| panic!("{command}: {error}: {json}"));
            assert_lower_snake_case(command, &value);
        }
        lbd.terminate();
    });
}

fn assert_lower_snake_case(command: &str, value: &serde_json::Value) {
    if let Some(object) = value.as_object() {
        for (key, value) in object {
            let good = key
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            assert!(good, "{command}: key {key:?}");
            assert_lower_snake_case(command, value);
        }
    }
    value
        .as_array()
        .into_iter()
        .flatten()
        .for_each(|item| assert_lower_snake_case(command, item));
}

#[test]
fn what_lbctl_saves_is_a_configuration_that_lbd_takes() {
    isolated(|| {
        let rig = Rig::new();
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let lbd = served(&rig, mode);
            let saved = lbd.lbctl("save").ok();
            lbd.terminate();
            std::fs::write(format!("{DIR}/saved.toml"), &saved).expect("cannot write");
            rig.sh(
                "lb",
                &format!("{} check --config {DIR}/saved.toml", env!("CARGO_BIN_EXE_lbd")),
            )
            .ok();
            for part in ["10.96.0.10:80", "[fd00:96::10]:80", "10.2.0.12:8080", mode.name()] {
                assert!(saved.contains(part), "{part} is missing: {saved}");
            }
        }
    });
}

#[test]
fn lbctl_without_an_lbd_says_so() {
    isolated(|| {
        let rig = Rig::new();
        let client = env!("CARGO_BIN_EXE_lbctl");
        let ran = rig.sh("lb", &format!("{client} --socket {DIR}/nobody.sock status"));
        assert!(ran.code == 1 && ran.err.contains("nobody.sock"), "{ran:?}");
        assert_eq!(rig.sh("lb", &format!("{client} no-such-command")).code, 2);
    });
}

#[test]
fn systemd_is_told_when_traffic_is_served() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = served(&rig, Mode::Ipvs);
        assert!(lbd.notified().contains("READY=1"), "{:?}", lbd.notified());
        assert!(
            lbd.log().contains(&format!(
                "lbd ready: mode=ipvs backend={} services=4 backends=12",
                Backend::of_this_run().name()
            )),
            "{}",
            lbd.log()
        );
        lbd.terminate();
    });
}

#[test]
fn a_second_lbd_does_not_disturb_the_first() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = served(&rig, Mode::Ipvs);
        let second = rig.sh(
            "lb",
            &format!("timeout 5 {} --config {DIR}/lbd.toml", env!("CARGO_BIN_EXE_lbd")),
        );
        assert_eq!(second.code, 1, "it says that another one runs: {second:?}");
        assert_eq!(rig.spread("client", &Family::V4.web(), 3), [1, 1, 1]);
        lbd.lbctl("status").ok();
        lbd.terminate();
    });
}

/// An lbd that has served six connections and two questions.
fn served(rig: &Rig, mode: Mode) -> Lbd<'_> {
    let services = [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|family| [Service::web(family), Service::dns(family)]);
    let lbd = rig.lbd(&Config::new(mode, services.collect()));
    assert_eq!(rig.spread("client", &Family::V4.web(), 6), [2, 2, 2]);
    rig.dig("client", Family::V4.dns()).ok();
    rig.dig("client", Family::V4.dns()).ok();
    lbd
}

/// How many lines are just this, but for space at the end.
fn lines_of(text: &str, line: &str) -> usize {
    text.lines().filter(|other| other.trim_end() == line).count()
}

#[test]
fn lbctl_under_the_name_of_ipvsadm_builds_a_service_that_answers() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = rig.lbd(&Config::new(Mode::Ipvs, vec![Service::dns(Family::V4)]));
        let link = format!("ln -sf {} {DIR}/ipvsadm", env!("CARGO_BIN_EXE_lbctl"));
        rig.sh("lb", &link).ok();
        let ipvsadm = |arguments: &str| {
            let script = format!("cd {DIR} && LBD_SOCKET={DIR}/lbd.sock PATH={DIR}:$PATH ipvsadm {arguments}");
            rig.sh("lb", &script)
        };
        let vip = Family::V4.vip(80);
        ipvsadm(&format!("-A -t {vip} -s rr")).ok();
        for server in [1, 2, 3] {
            ipvsadm(&format!("-a -t {vip} -r {} -m", Family::V4.server(server, 8080))).ok();
        }
        assert_eq!(rig.spread("client", &Family::V4.web(), 6), [2, 2, 2]);
        let table = ipvsadm("-Ln --stats").ok();
        assert!(
            table.starts_with("IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port "),
            "{table}"
        );
        let again = ipvsadm(&format!("-A -t {vip}"));
        assert_eq!((again.code, again.err.as_str()), (255, "Service already exists\n"));
        let direct = ipvsadm(&format!("-a -t {vip} -r 10.2.0.99"));
        assert!(direct.code == 2 && direct.err.contains("give -m"), "{direct:?}");
        let saved = ipvsadm("-Sn").ok();
        ipvsadm("-C").ok();
        assert_eq!(ipvsadm("-Sn").ok(), "");
        assert_ne!(rig.get("client", &Family::V4.web()).code, 0, "nothing answers");
        ipvsadm(&format!("-R <<'E'\n{saved}E\n")).ok();
        assert_eq!(ipvsadm("-Sn").ok(), saved);
        assert_eq!(rig.spread("client", &Family::V4.web(), 6), [2, 2, 2]);
        lbd.terminate();
    });
}

#[test]
fn live_edits_stay_over_a_reload_of_the_same_file_and_go_with_a_new_one() {
    isolated(|| {
        let rig = Rig::new();
        let mut config = Config::new(Mode::Ipvs, vec![Service::web(Family::V4)]);
        let lbd = rig.lbd(&config);
        let (service, backend) = (Family::V4.vip(80), Family::V4.server(3, 8080));
        let wrong = lbd.lbctl(&format!("backend edit {service} {backend} --weight 70000"));
        assert!(wrong.code == 1 && wrong.err.contains("weight = 70000"), "{wrong:?}");
        lbd.lbctl(&format!("backend delete {service} {backend}")).ok();
        assert_eq!(rig.spread("client", &Family::V4.web(), 6), [3, 3, 0]);
        let kept = lbd.reload(&config.to_string()).ok();
        assert!(kept.contains("live edits stay"), "{kept}");
        assert_eq!(rig.spread("client", &Family::V4.web(), 6), [3, 3, 0]);
        lbd.lbctl("timeouts 1h 0 1m").ok();
        assert_eq!(
            lbd.lbctl("timeouts").ok(),
            "tcp_established 1h\ntcp_fin         2m\nudp             1m\n"
        );
        let saved = lbd.lbctl("save").ok();
        config.services.push(Service::dns(Family::V4));
        lbd.reload(&config.to_string()).ok();
        assert!(
            lbd.log().contains("what was edited live no longer counts"),
            "{}",
            lbd.log()
        );
        assert_eq!(rig.spread("client", &Family::V4.web(), 6), [2, 2, 2]);
        lbd.reload(&saved).ok();
        assert_eq!(
            rig.spread("client", &Family::V4.web(), 6),
            [3, 3, 0],
            "as it was when it was saved"
        );
        lbd.terminate();
    });
}

#[test]
fn a_drained_backend_shows_what_is_left_and_its_flows_end_at_the_deadline() {
    isolated(|| {
        let rig = Rig::new();
        let config = Config::new(Mode::Ipvs, vec![Service::tcp(Family::V4, 80, 8080, &[1])]);
        let lbd = rig.lbd(&config);
        // It would take 16 s; lbd looks every two seconds whose time is up.
        let slowly = "curl -sS -o /dev/null --limit-rate 1M --max-time 30 http://10.96.0.10/slow";
        let download = rig.spawn("client", slowly);
        lbd.wait_for_established(1);
        let backend = Family::V4.server(1, 8080);
        let drain = lbd.lbctl(&format!("backend drain {backend} --deadline 1s --json")).ok();
        let value: serde_json::Value = serde_json::from_str(&drain).expect("JSON");
        assert_eq!(value["drains"][0]["remaining_flows"], 1, "{drain}");
        lbd.reload(&config.to_string()).ok();
        assert!(
            lbd.lbctl("status").ok().contains("draining"),
            "a reload changes nothing"
        );
        assert_ne!(rig.get("client", &Family::V4.web()).code, 0, "no new flow");
        let ended = download.wait();
        assert!(
            ended.code != 0 && ended.code != 28,
            "reset, and not for lack of time: {ended:?}"
        );
        lbd.lbctl(&format!("backend edit {} {backend} --weight 1", Family::V4.vip(80)))
            .ok();
        assert!(lbd.lbctl("backend drain").ok().contains("no backend"));
        assert_eq!(rig.spread("client", &Family::V4.web(), 2), [2, 0, 0]);
        lbd.terminate();
    });
}

#[test]
fn a_reload_by_lbctl_is_in_the_log_as_one_by_a_signal_is_whether_it_was_refused_or_not() {
    isolated(|| {
        let rig = Rig::new();
        let mut config = Config::new(Mode::Ipvs, vec![Service::web(Family::V4)]);
        let lbd = rig.lbd(&config);
        config.services.push(Service::dns(Family::V4));
        lbd.reload(&config.to_string()).ok();
        let log = lbd.log();
        assert!(log.contains(&format!("INFO reloaded {DIR}/lbd.toml: ")), "{log}");
        let refused = lbd.reload("mode = 3\n");
        assert_eq!(refused.code, 1, "{refused:?}");
        let log = lbd.log();
        let (_, told) = log.split_once("not reloaded, nothing was changed:\n").expect(&log);
        assert_eq!(told, refused.err, "the log says what lbctl says");
        lbd.terminate();
    });
}

#[test]
fn signals_that_other_programs_end_by_end_lbd_with_its_traces_removed() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        for signal in ["USR1", "QUIT"] {
            let lbd = rig.lbd(&Config::new(Mode::Ipvs, vec![Service::web(Family::V4)]));
            let pid = &lbd.status()["pid"];
            rig.sh("lb", &format!("kill -{signal} {pid}")).ok();
            let (code, log) = lbd.ended();
            assert_eq!(code, Some(0), "SIG{signal}: {log}");
            assert_eq!(rig.kernel_state(), before, "SIG{signal}");
        }
    });
}

#[test]
fn a_node_port_at_another_services_address_is_told_of_and_is_the_firsts_in_both_modes() {
    isolated(|| {
        let rig = Rig::new();
        let first = Service {
            node_port: Some(30080),
            ..Service::web(Family::V4)
        };
        let second = Service {
            address: Family::V4.balancer(30080),
            ..Service::tcp(Family::V4, 81, 8080, &[2])
        };
        let told = "tcp 10.1.0.1:30080 is an address of service \"test/web:V4-81\" and";
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let lbd = rig.lbd(&Config::new(mode, vec![first.clone(), second.clone()]));
            assert_eq!(lbd.log().matches(told).count(), 1, "{}", lbd.log());
            assert_eq!(
                rig.spread("client", &Family::V4.balancer(30080), 3),
                [1, 1, 1],
                "{mode:?}"
            );
            let apart = vec![Service::web(Family::V4), second.clone()];
            lbd.reload(&Config::new(mode, apart).to_string()).ok();
            assert_eq!(lbd.log().matches(told).count(), 1, "{}", lbd.log());
            lbd.lbctl("service edit test/web:V4-80 --node-port 30080").ok();
            assert_eq!(lbd.log().matches(told).count(), 2, "{}", lbd.log());
            lbd.terminate();
        }
    });
}

#[test]
fn what_another_program_takes_out_of_the_kernel_is_put_back_and_told() {
    isolated(|| {
        let rig = Rig::new();
        let services = Family::BOTH.map(|family| Service {
            node_port: Some(30_080),
            ..Service::web(family)
        });
        let lbd = rig.lbd(&Config::new(Mode::Ipvs, services.into()));
        let before = rig.kernel_state();
        let harm = [
            "for family in -4 -6; do
                 ip $family rule flush; ip $family rule add pref 0 lookup local; ip $family rule add pref 32766 lookup main
             done
             ip rule add pref 32767 lookup default",
            "ip link set lbd0 down; ip link set lbd0 up",
            "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
        ];
        for harm in harm {
            let told = lbd.log().len();
            rig.sh("lb", harm).ok();
            wait_until("a warning", Duration::from_secs(10), || {
                lbd.log()[told..].contains("put back")
            });
            for family in Family::BOTH {
                for address in [family.web(), family.balancer(30_080)] {
                    assert_eq!(rig.spread("client", &address, 3), [1, 1, 1], "{harm}");
                }
            }
        }
        // Of routes only a few are looked at every two seconds: all are where the file is read again and says the same.
        rig.sh("lb", "ip route flush table 7762").ok();
        lbd.lbctl("reload").ok();
        assert_eq!(rig.spread("client", &Family::V4.web(), 3), [1, 1, 1]);
        assert_eq!(rig.kernel_state(), before);
        lbd.terminate();
    });
}
