//! Attaching, and giving frames back to the kernel.
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

use lbd::flow::Protocol::Udp;
use lbd::io::xdp::filter::program::{Attach, Filter, Interface, Mode};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::lab::{LO, Wish, lab, loopback, refused, with_filter, xdp_socket};
use crate::packets::{self, DESTINATION_MAC, ethernet, syn};
use crate::unshared::ip;

/// A veth device with DESTINATION_MAC, 10.1.0.1 and 10.1.0.2 for a neighbour.
fn veth(mtu: u32) -> Interface {
    ip(&format!(
        "link add lbd-a address 02:00:00:00:00:02 mtu {mtu} type veth peer name lbd-b mtu {mtu}"
    ));
    ip("addr add 10.1.0.1/24 dev lbd-a");
    ip("link set lbd-a up");
    ip("link set lbd-b up");
    let line = ip("-o link show dev lbd-a");
    Interface {
        name: "lbd-a".into(),
        index: line.split(':').next().unwrap().parse().unwrap(),
        address: DESTINATION_MAC,
        queues: 1,
    }
}

fn listener() -> UdpSocket {
    let socket = UdpSocket::bind("10.1.0.1:5000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 9_000];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from.to_string(), "10.1.0.2:4000");
    buffer[..length].to_vec()
}

fn datagram(payload: &[u8]) -> Vec<u8> {
    ethernet(&packets::udp("10.1.0.2:4000", "10.1.0.1:5000", payload), &[])
}

#[test]
fn a_reinjected_frame_reaches_a_local_socket() {
    with_filter("interfaces::a_reinjected_frame_reaches_a_local_socket", |mut filter| {
        let interface = veth(1_500);
        let attached = filter.attach(&interface, Attach::Auto).unwrap();
        assert_eq!((attached.mode, attached.native_refused), (Mode::Native, None));
        let socket = listener();
        let path = filter.kernel_path();
        for payload in [&b"hello"[..], &[7; 1_458]] {
            path.reinject(interface.index, &datagram(payload)).unwrap();
            assert_eq!(received(&socket), payload);
        }
        assert_eq!(filter.counters().unwrap().reinjected, 0, "it is before the filter");
    });
}

#[test]
fn in_generic_mode_a_reinjected_frame_is_not_taken_again() {
    let name = "interfaces::in_generic_mode_a_reinjected_frame_is_not_taken_again";
    with_filter(name, |mut filter| {
        let interface = veth(1_500);
        filter.attach(&interface, Attach::Generic).unwrap();
        let xdp = xdp_socket();
        filter.set_socket(interface.index, 0, xdp.as_fd()).unwrap();
        filter
            .set_interest(Wish::default().local_port(Udp, "10.1.0.1:5000").interest())
            .unwrap();
        let socket = listener();
        filter
            .kernel_path()
            .reinject(interface.index, &datagram(b"hello"))
            .unwrap();
        assert_eq!(received(&socket), b"hello");
        let counters = filter.counters().unwrap();
        assert_eq!((counters.reinjected, counters.local_ports), (1, 0));
    });
}

#[test]
fn a_frame_longer_than_a_page_is_refused_and_may_take_another_way() {
    let name = "interfaces::a_frame_longer_than_a_page_is_refused_and_may_take_another_way";
    with_filter(name, |mut filter| {
        let interface = veth(9_000);
        let mode = filter.attach(&interface, Attach::Native).unwrap().mode;
        assert_eq!(mode, Mode::Native, "an MTU of 9000 does not keep it from being native");
        let socket = listener();
        let path = filter.kernel_path();
        path.reinject(interface.index, &datagram(&[7; 3_000])).unwrap();
        assert_eq!(received(&socket).len(), 3_000);
        let error = path.reinject(interface.index, &datagram(&[7; 8_000])).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    });
}

#[test]
fn a_packet_of_another_queue_is_left_to_the_kernel_and_counted() {
    let name = "interfaces::a_packet_of_another_queue_is_left_to_the_kernel_and_counted";
    with_filter(name, |mut filter| {
        filter.attach(&loopback(), Attach::Generic).unwrap();
        let xdp = xdp_socket();
        filter.set_socket(LO, 1, xdp.as_fd()).unwrap();
        filter
            .set_interest(Wish::default().route("10.96.0.10/32").interest())
            .unwrap();
        let frame = ethernet(&syn("10.1.0.2:40000", "10.96.0.10:80"), &[]);
        filter.judge(LO, &frame).unwrap();
        assert_eq!(filter.counters().unwrap().no_socket, 1);
    });
}

#[test]
fn without_native_xdp_auto_becomes_generic_and_says_why() {
    let name = "interfaces::without_native_xdp_auto_becomes_generic_and_says_why";
    with_filter(name, |mut filter| {
        let text = refused(filter.attach(&loopback(), Attach::Native));
        assert!(text.contains("lo") && text.contains("attach = \"auto\""), "{text}");
        let attached = filter.attach(&loopback(), Attach::Auto).unwrap();
        assert_eq!(attached.mode, Mode::Generic);
        assert!(attached.native_refused.unwrap().contains("not supported"));
    });
}

#[test]
fn another_xdp_program_on_the_interface_is_named_as_the_reason() {
    let name = "interfaces::another_xdp_program_on_the_interface_is_named_as_the_reason";
    with_filter(name, |mut filter| {
        let interface = veth(1_500);
        filter.attach(&interface, Attach::Auto).unwrap();
        let mut second = Filter::load().unwrap();
        let text = refused(second.attach(&interface, Attach::Auto));
        assert!(text.contains("ip link show dev lbd-a"), "{text}");
        filter.detach(interface.index).unwrap();
        second.attach(&interface, Attach::Auto).unwrap();
    });
}

#[test]
fn when_lbd_is_gone_so_is_its_program() {
    with_filter("interfaces::when_lbd_is_gone_so_is_its_program", |mut filter| {
        let interface = veth(1_500);
        filter.attach(&interface, Attach::Auto).unwrap();
        assert!(ip("link show dev lbd-a").contains("xdp"));
        drop(filter);
        assert!(!ip("link show dev lbd-a").contains("xdp"));
    });
}

#[test]
fn too_many_queues_are_refused_with_the_limit() {
    with_filter(
        "interfaces::too_many_queues_are_refused_with_the_limit",
        |mut filter| {
            let wide = Interface {
                queues: 5_000,
                ..loopback()
            };
            let text = refused(filter.attach(&wide, Attach::Generic));
            assert!(text.contains("5000") && text.contains("4096"), "{text}");
        },
    );
}

#[test]
fn an_interest_that_is_too_big_leaves_the_old_one_in_place() {
    let small = Wish::default().route("10.96.0.10/32");
    let name = "interfaces::an_interest_that_is_too_big_leaves_the_old_one_in_place";
    lab(name, &small, |mut lab| {
        let nets = (0..70_000_u32).map(|i| format!("{}.{}.{}.0/24", 11 + (i >> 16), i >> 8 & 255, i & 255));
        let big = nets.fold(Wish::default().route("10.96.0.11/32"), |wish, net| wish.route(&net));
        let text = refused(lab.filter.set_interest(big.interest()));
        assert!(text.contains("networks") && text.contains("65536"), "{text}");
        assert!(lab.takes(&syn("10.1.0.2:40000", "10.96.0.10:80")));
        assert!(!lab.takes(&syn("10.1.0.2:40000", "10.96.0.11:80")));
        let other = Wish::default().route("11.0.0.0/24");
        lab.filter.set_interest(other.interest()).unwrap();
        assert!(lab.takes(&syn("10.1.0.2:40000", "11.0.0.9:80")));
        assert!(!lab.takes(&syn("10.1.0.2:40000", "11.0.1.9:80")));
    });
}

#[test]
fn maps_change_and_frames_are_reinjected_without_privileges() {
    let name = "interfaces::maps_change_and_frames_are_reinjected_without_privileges";
    with_filter(name, |mut filter| {
        let interface = veth(1_500);
        filter.attach(&interface, Attach::Auto).unwrap();
        let socket = listener();
        let none = CapabilitySet::empty();
        let dropped = CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        };
        set_capabilities(None, dropped).unwrap();
        assert!(Filter::load().is_err(), "the privileges are gone");
        filter
            .set_interest(Wish::default().route("10.96.0.10/32").interest())
            .unwrap();
        filter
            .kernel_path()
            .reinject(interface.index, &datagram(b"hello"))
            .unwrap();
        assert_eq!(received(&socket), b"hello");
        filter.counters().unwrap();
    });
}
