//! The rig itself, with the kernel as the balancer: where this fails, it is not lbd's fault.
use crate::rig::{Family, Load, Rig, isolated, udp_echo_integrity};

const DNAT: &str = "
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    for tcp in 0 1 2; do
        every=$((3 - tcp)); to=$((tcp + 1))
        iptables -t nat -A PREROUTING -p tcp -d 10.96.0.10 --dport 80 -m statistic --mode nth --every $every \
            --packet 0 -j DNAT --to-destination 10.2.0.1$to:8080
        ip6tables -t nat -A PREROUTING -p tcp -d fd00:96::10 --dport 80 -m statistic --mode nth --every $every \
            --packet 0 -j DNAT --to-destination [fd00:2::1$to]:8080
    done
    iptables -t nat -A PREROUTING -p udp -d 10.96.0.53 --dport 53 -j DNAT --to-destination 10.2.0.12:53
    ip6tables -t nat -A PREROUTING -p udp -d fd00:96::53 --dport 53 -j DNAT --to-destination [fd00:2::12]:53
    iptables -t nat -A PREROUTING -p udp -d 10.96.0.10 --dport 7 -j DNAT --to-destination 10.2.0.11:7
    ip6tables -t nat -A PREROUTING -p udp -d fd00:96::10 --dport 7 -j DNAT --to-destination [fd00:2::11]:7";

#[test]
fn the_rig_serves_http_and_dns_through_the_kernels_own_nat() {
    isolated(|| {
        let rig = Rig::new();
        rig.sh("lb", DNAT).ok();
        for family in [Family::V4, Family::V6] {
            assert_eq!(rig.spread("client", &family.web(), 30), [10, 10, 10]);
            assert_eq!(rig.dig("client", family.dns()).ok(), "s2\n");
            let load = Load::start("client", &family.web());
            std::thread::sleep(std::time::Duration::from_millis(500));
            load.go_on_until_answered(50);
            let (answered, failures) = load.stop();
            assert!(
                answered > 50 && failures.is_empty(),
                "{answered} answered, {failures:?}"
            );
            udp_echo_integrity(&family.server(1, 7), &family.vip(7), 1_000_000);
        }
    });
}
