//! lbd on AF_XDP sends by the kernel's routes and neighbours, and follows them when they change.
use std::time::Duration;

use crate::rig::{
    Config, Conversation, DIR, Family, Lbd, Load, Mode, Rig, Running, Service, isolated_xdp, matrix, tcp_echo,
    wait_until,
};

/// s1 with another link to lb, which carries nothing at first.
const SECOND_LINK: &str = "
    ip link add eth1 netns s1 type veth peer name s1b netns lb
    for name in s1 lb; do in_ns $name sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0; done
    ip -n lb addr add 10.2.0.1/32 dev s1b
    ip -n lb addr add fd00:2::1/128 dev s1b nodad
    ip -n s1 addr add fd00:2::11/128 dev eth1 nodad
    ip -n lb link set s1b up
    ip -n s1 link set eth1 up";

#[test]
fn a_server_with_another_mac_is_served_on() {
    isolated_xdp(|| assert_served_on_after(|number| format!("ip link set eth0 address 02:00:00:00:01:0{number}")));
}

#[test]
fn a_server_that_goes_away_and_comes_back_with_another_mac_is_served_on() {
    let another_card = |number| {
        format!(
            "ip link set eth0 down && sleep 0.7
            ip link set eth0 address 02:00:00:00:02:0{number} && ip link set eth0 up
            ip addr add fd00:2::11/128 dev eth0 nodad
            ip route add 10.2.0.1 dev eth0 && ip route add default via 10.2.0.1
            ip -6 route add fd00:2::1 dev eth0 && ip -6 route add default via fd00:2::1"
        )
    };
    isolated_xdp(|| assert_served_on_after(another_card));
}

/// New flows and an established one outlive a change of the server, which is another one in each round.
#[track_caller]
fn assert_served_on_after(change: fn(usize) -> String) {
    let rig = Rig::new();
    let expected = sum(&rig);
    for (number, (mode, family)) in matrix().enumerate() {
        // Nobody has told it the MAC address that the server got in the other family's round.
        rig.sh("lb", "ip neigh flush dev s1").ok();
        let lbd = rig.lbd(&Config::xdp(mode, vec![Service::tcp(family, 80, 8080, &[1])]));
        let mut download = download(&rig, &lbd, family);
        rig.sh("s1", &change(number)).ok();
        assert!(download.runs(), "the download ended before the change");
        assert_served_soon(&rig, family);
        assert_eq!(download.wait().ok(), expected, "the established flow goes on");
        lbd.terminate();
    }
}

/// Frames to an address that lbd does not know for its own go to the kernel, whose clients reset what they do not know.
#[test]
fn a_link_of_lbd_with_another_mac_is_served_on() {
    isolated_xdp(|| {
        let rig = Rig::new();
        Family::BOTH
            .iter()
            .for_each(|family| tcp_echo("s1", &family.server(1, 7)));
        for (number, (mode, family)) in matrix().enumerate() {
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::tcp(family, 7, 7, &[1])]));
            let mut talk = Conversation::open("client", &family.vip(7));
            talk.say("before");
            let mac = format!("02:00:00:00:03:0{number}");
            rig.sh("lb", &format!("ip link set s1 address {mac}")).ok();
            let learn = format!(
                "ip neigh replace 10.2.0.1 lladdr {mac} dev eth0 && ip neigh replace fd00:2::1 lladdr {mac} dev eth0"
            );
            rig.sh("s1", &learn).ok();
            std::thread::sleep(Duration::from_secs(1));
            talk.say("after");
            lbd.terminate();
        }
    });
}

#[track_caller]
fn assert_served_soon(rig: &Rig, family: Family) {
    let ask = format!("curl -s --max-time 1 http://{}/", family.web());
    let answered = || rig.sh("client", &ask).code == 0;
    wait_until("an answer", Duration::from_secs(5), answered);
    assert_eq!(rig.spread("client", &family.web(), 5), [5, 0, 0]);
}

/// A request fails after 3 s; none does.
#[test]
fn requests_follow_a_route_to_another_link_and_back() {
    isolated_xdp(|| {
        let rig = Rig::changed(SECOND_LINK);
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&over_both_links(mode, family));
            let load = Load::start("client", &family.web());
            for (here, there) in [("s1b", "eth1"), ("s1", "eth0"), ("s1b", "eth1"), ("s1", "eth0")] {
                std::thread::sleep(Duration::from_millis(700));
                route(&rig, here, there);
                let before = received(&rig, here);
                let used = || received(&rig, here) > before + 50;
                wait_until(&format!("traffic by {here}"), Duration::from_secs(3), used);
            }
            let (answered, failures) = load.stop();
            assert!(
                failures.is_empty(),
                "{} of {answered} failed: {failures:#?}",
                failures.len()
            );
            assert!(answered > 200, "only {answered} requests in all");
            lbd.terminate();
        }
    });
}

#[test]
fn a_server_whose_link_goes_down_is_served_by_its_other_one() {
    isolated_xdp(|| {
        let rig = Rig::changed(SECOND_LINK);
        let lbd = rig.lbd(&over_both_links(Mode::Ipvs, Family::V4));
        let expected = sum(&rig);
        let download = download(&rig, &lbd, Family::V4);
        rig.sh("lb", "ip link set s1 down").ok();
        route(&rig, "s1b", "eth1");
        assert_served_soon(&rig, Family::V4);
        assert_eq!(download.wait().ok(), expected);
        lbd.terminate();
    });
}

fn over_both_links(mode: Mode, family: Family) -> Config {
    let mut config = Config::xdp(mode, vec![Service::tcp(family, 80, 8080, &[1])]);
    config.interfaces.push("s1b");
    config
}

/// s1 is reached by lb's link `here`, which is its `there`.
fn route(rig: &Rig, here: &str, there: &str) {
    let back = format!(
        "ip route replace 10.2.0.1 dev {there} && ip route replace default via 10.2.0.1 dev {there}
        ip -6 route replace fd00:2::1 dev {there} && ip -6 route replace default via fd00:2::1 dev {there}"
    );
    let forth = format!("ip route replace 10.2.0.11 dev {here} && ip -6 route replace fd00:2::11 dev {here}");
    rig.sh("lb", &forth).ok();
    rig.sh("s1", &back).ok();
}

/// Packets that came to lb by a link.
fn received(rig: &Rig, link: &str) -> u64 {
    let count = rig.sh(
        "lb",
        &format!("ip -j -s link show {link} | jq '.[].stats64.rx.packets'"),
    );
    count.ok().trim().parse().expect("a count")
}

/// A download of about 4 s by the service, which has begun.
fn download(rig: &Rig, lbd: &Lbd<'_>, family: Family) -> Running {
    let get = format!("curl -sS --max-time 30 http://{}/slow | sha256sum", family.web());
    let download = rig.spawn("client", &get);
    lbd.wait_for_established(1);
    download
}

fn sum(rig: &Rig) -> String {
    rig.sh("client", &format!("sha256sum < {DIR}/slow")).ok()
}
