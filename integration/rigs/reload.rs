//! Changes under load: what is in flight does not notice.
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::rig::{Config, DIR, Family, Load, Mode, Rig, Running, Service, isolated, matrix, wait_until};

#[test]
fn no_request_fails_while_backends_come_and_go() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let load = Load::start("client", &family.web());
            for round in 0..20 {
                let servers: &[usize] = [&[1, 2, 3][..], &[1, 3], &[2], &[3, 2, 1]][round % 4];
                let config = Config::new(mode, vec![Service::tcp(family, 80, 8080, servers)]);
                lbd.reload(&config.to_string()).ok();
                sleep(Duration::from_millis(60));
            }
            let (answered, failures) = load.stop();
            println!("{answered} answered");
            assert!(
                failures.is_empty(),
                "{} of {answered} failed: {failures:#?}",
                failures.len()
            );
            assert!(answered > 300, "only {answered} requests in all");
            lbd.terminate();
        }
    });
}

#[test]
fn requests_follow_a_reload_at_once() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            for (servers, expected) in [(&[2][..], [0, 6, 0]), (&[1, 3], [3, 0, 3]), (&[3, 2, 1], [2, 2, 2])] {
                let config = Config::new(mode, vec![Service::tcp(family, 80, 8080, servers)]);
                lbd.reload(&config.to_string()).ok();
                assert_eq!(rig.spread("client", &family.web(), 6), expected);
            }
            lbd.terminate();
        }
    });
}

#[test]
fn services_come_and_go_with_a_reload() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let more = Config::new(mode, vec![Service::web(family), Service::dns(family)]);
            lbd.hangup(&more.to_string());
            wait_until("the new service", Duration::from_secs(10), || {
                rig.dig("client", family.dns()).code == 0
            });
            assert_eq!(rig.spread("client", &family.web(), 3), [1, 1, 1]);
            lbd.reload(&Config::new(mode, vec![Service::dns(family)]).to_string())
                .ok();
            assert_ne!(rig.get("client", &family.web()).code, 0, "the old service is gone");
            lbd.terminate();
        }
    });
}

#[test]
fn downloads_live_through_a_switch_of_the_mode() {
    isolated(|| {
        let rig = Rig::new();
        let expected = sum(&rig);
        for family in [Family::V4, Family::V6] {
            let config = |mode| Config::new(mode, vec![Service::web(family)]).to_string();
            let lbd = rig.lbd(&Config::new(Mode::Ipvs, vec![Service::web(family)]));
            let downloads: Vec<Running> = (0..6).map(|_| download(&rig, &family.web())).collect();
            let load = Load::start("client", &family.web());
            for mode in [Mode::Iptables, Mode::Ipvs, Mode::Iptables] {
                sleep(Duration::from_millis(600));
                lbd.hangup(&config(mode));
                let switched = || lbd.lbctl("mode").out.contains(mode.name());
                wait_until("the switch", Duration::from_secs(10), switched);
            }
            assert_complete(downloads, &expected);
            let (answered, failures) = load.stop();
            assert!(
                failures.is_empty(),
                "{} of {answered} failed: {failures:#?}",
                failures.len()
            );
            lbd.terminate();
        }
    });
}

#[test]
fn a_download_from_a_backend_that_is_removed_completes() {
    isolated(|| {
        let rig = Rig::new();
        let expected = sum(&rig);
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let downloads: Vec<Running> = (0..3).map(|_| download(&rig, &family.web())).collect();
            lbd.wait_for_established(3);
            let rest = Config::new(mode, vec![Service::tcp(family, 80, 8080, &[2])]);
            lbd.reload(&rest.to_string()).ok();
            assert_eq!(
                rig.spread("client", &family.web(), 4),
                [0, 4, 0],
                "new ones go to who is left"
            );
            assert_complete(downloads, &expected);
            lbd.terminate();
        }
    });
}

#[test]
fn a_download_lives_on_when_its_backend_is_drained() {
    isolated(|| {
        let rig = Rig::new();
        let expected = sum(&rig);
        for (mode, family) in matrix() {
            let mut service = Service::tcp(family, 80, 8080, &[1, 2]);
            let lbd = rig.lbd(&Config::new(mode, vec![service.clone()]));
            let downloads: Vec<Running> = (0..2).map(|_| download(&rig, &family.web())).collect();
            lbd.wait_for_established(2);
            service.backends[0].1 = 0;
            lbd.reload(&Config::new(mode, vec![service]).to_string()).ok();
            assert_eq!(rig.spread("client", &family.web(), 4), [0, 4, 0]);
            assert_complete(downloads, &expected);
            lbd.terminate();
        }
    });
}

#[test]
fn a_download_from_a_removed_backend_is_reset_where_the_operator_wants_that() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let mut config = Config::new(mode, vec![Service::tcp(family, 80, 8080, &[1, 2])]);
            config.more = "[conntrack]\non_backend_removed = \"reset\"\n";
            let lbd = rig.lbd(&config);
            let download = download(&rig, &family.web());
            lbd.wait_for_established(1);
            // curl has another word for a connection that is reset before it has asked.
            sleep(Duration::from_millis(500));
            let start = Instant::now();
            config.services = vec![Service::tcp(family, 80, 8080, &[2])];
            lbd.reload(&config.to_string()).ok();
            let ran = download.wait();
            assert_eq!(ran.code, 56, "curl says that its peer reset the connection: {ran:?}");
            assert!(start.elapsed() < Duration::from_millis(2500), "{ran:?}");
            lbd.terminate();
        }
    });
}

#[test]
fn a_bad_file_changes_nothing_and_is_reported() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let good = Config::new(mode, vec![Service::web(family)]).to_string();
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            for bad in bad_files(&good) {
                let reload = lbd.reload(&bad);
                assert_eq!(reload.code, 1, "{reload:?}");
                assert!(reload.err.contains("lbd.toml:"), "the place is told: {reload:?}");
                assert!(lbd.hangup(&bad).contains("lbd.toml:"), "and logged: {}", lbd.log());
                assert_eq!(rig.spread("client", &family.web(), 6), [2, 2, 2]);
            }
            lbd.reload(&good).ok();
            lbd.terminate();
        }
    });
}

#[test]
fn a_file_that_was_cut_short_takes_no_service_away_unless_it_says_that_this_is_meant() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let empty = Config::new(mode, Vec::new()).to_string();
            let refused = lbd.reload(&empty);
            assert_eq!(refused.code, 1, "{refused:?}");
            for part in ["lbd.toml: no [[services]]", "has 1", "allow_empty = true"] {
                assert!(refused.err.contains(part), "{refused:?}");
                assert!(lbd.hangup(&empty).contains(part), "{}", lbd.log());
            }
            assert_eq!(rig.spread("client", &family.web(), 6), [2, 2, 2]);
            lbd.reload(&format!("allow_empty = true\n{empty}")).ok();
            assert_ne!(rig.get("client", &family.web()).code, 0, "the service is gone");
            lbd.terminate();
        }
    });
}

#[test]
fn a_reload_that_takes_most_services_away_says_how_many() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let services = |count| (0..count).map(|n| Service::tcp(family, 80 + n, 8080, &[1, 2, 3]));
            let lbd = rig.lbd(&Config::new(mode, services(10).collect()));
            let half = lbd.reload(&Config::new(mode, services(5).collect()).to_string()).ok();
            assert!(!half.contains("warning"), "half of them is not most: {half}");
            lbd.reload(&Config::new(mode, services(12).collect()).to_string()).ok();
            let most = lbd.reload(&Config::new(mode, services(5).collect()).to_string()).ok();
            assert!(most.contains("warning: 7 of 12 services are removed"), "{most}");
            assert!(lbd.log().contains("7 of 12 services are removed"), "{}", lbd.log());
            assert_eq!(rig.spread("client", &family.web(), 6), [2, 2, 2], "it is done");
            lbd.terminate();
        }
    });
}

/// The web service and ten thousand more.
fn ten_thousand(mode: Mode) -> Config {
    let mut services = vec![Service::web(Family::V4)];
    let more = (0..10_000).map(|n| Service {
        name: format!("more/{n}"),
        address: format!("10.97.{}.{}:80", n >> 8, n & 255),
        ..Service::web(Family::V4)
    });
    services.extend(more);
    Config::new(mode, services)
}

#[test]
fn status_is_told_while_a_large_file_is_taken_over() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = rig.lbd(&Config::new(Mode::Ipvs, vec![Service::web(Family::V4)]));
        lbd.write(&ten_thousand(Mode::Ipvs).to_string());
        let mut reload = lbd.lbctl_in_background("reload");
        let mut told = 0;
        while reload.runs() {
            lbd.lbctl("status").ok();
            told += usize::from(reload.runs());
        }
        reload.wait().ok();
        // It takes many times as long as to tell it.
        assert!(told > 2, "status was told {told} times");
        assert_eq!(rig.spread("client", &Family::V4.web(), 3), [1, 1, 1]);
        lbd.terminate();
    });
}

#[test]
fn a_signal_that_comes_while_a_large_file_is_taken_over_ends_lbd_and_leaves_nothing_behind() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        // At whichever step it is then.
        for milliseconds in [50, 150, 300, 450, 600] {
            let lbd = rig.lbd(&Config::new(Mode::Ipvs, vec![Service::web(Family::V4)]));
            lbd.write(&ten_thousand(Mode::Ipvs).to_string());
            lbd.signal(Signal::HUP);
            sleep(Duration::from_millis(milliseconds));
            lbd.terminate();
            let after = rig.kernel_state();
            assert!(after == before, "after {milliseconds} ms: {after}");
        }
    });
}

#[test]
fn a_flow_keeps_what_leads_it_here_after_its_service_is_gone_and_no_longer() {
    isolated(|| {
        let rig = Rig::new();
        let expected = sum(&rig);
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let other = Service::dns(Family::V4);
            let mut few = Config::new(mode, vec![other.clone()]);
            few.more =
                "[conntrack]\ntcp_fin = \"1s\"\ntcp_time_wait = \"1s\"\ntcp_close = \"1s\"\ntcp_last_ack = \"1s\"\n";
            let lbd = rig.lbd(&few);
            let before = rig.kernel_state();
            let both = Config {
                services: vec![Service::tcp(Family::V4, 80, 8080, &[2]), other],
                ..few.clone()
            };
            lbd.reload(&both.to_string()).ok();
            let downloads = vec![download(&rig, &Family::V4.web())];
            lbd.wait_for_established(1);
            lbd.reload(&few.to_string()).ok();
            assert_ne!(rig.kernel_state(), before, "the download needs its routes");
            assert_complete(downloads, &expected);
            wait_until("the end of what it needed", Duration::from_secs(30), || {
                rig.kernel_state() == before
            });
            lbd.terminate();
        }
    });
}

/// A good file spoilt: a syntax error, an unknown key, an impossible port, and one bad service among good ones.
fn bad_files(good: &str) -> [String; 4] {
    [
        good.replacen("mode = ", "mode = = ", 1),
        format!("colour = \"red\"\n{good}"),
        good.replacen(":8080", ":80800", 1),
        good.replace("scheduler = \"rr\"", "scheduler = \"no-such\"")
            .replace("8080\", weight = 1", "8080\", weight = 9"),
    ]
}

/// A download of about 4 s, hashed.
fn download(rig: &Rig, address: &str) -> Running {
    rig.spawn(
        "client",
        &format!("curl -sS --max-time 30 http://{address}/slow | sha256sum"),
    )
}

fn sum(rig: &Rig) -> String {
    rig.sh("client", &format!("sha256sum < {DIR}/slow")).ok()
}

/// The downloads were still running, and end with every byte.
#[track_caller]
fn assert_complete(mut downloads: Vec<Running>, expected: &str) {
    assert!(
        downloads.iter_mut().all(Running::runs),
        "a download ended before the end of the test"
    );
    for download in downloads {
        let ran = download.wait();
        assert!(
            ran.out == expected && ran.err.is_empty(),
            "not the file that was served: {ran:?}"
        );
    }
}
