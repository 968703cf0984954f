//! How lbd is doing, one fact a line.
use std::time::Duration;

use crate::protocol::shadow::ShadowView;
use crate::protocol::{AfXdpView, FragmentsView, InterfaceView, QueueView, Status};

/// The facts, for people.
#[must_use]
pub fn status(status: &Status) -> String {
    let facts = [
        ("version", status.version.clone()),
        ("pid", status.pid.to_string()),
        ("uptime", duration(status.uptime_seconds)),
        ("config", status.config.display().to_string()),
        ("mode", status.mode.name().to_owned()),
        ("backend", status.backend.clone()),
        ("workers", status.workers.to_string()),
        ("services", status.services.to_string()),
        ("backends", status.backends.to_string()),
        ("flows", format!("{} of {}", status.flows, status.max_flows)),
        ("flow table", format!("{} bytes", status.flow_table_bytes)),
        ("unknown TCP", status.unknown_tcp.clone()),
        ("echo", if status.echo { "answered" } else { "not answered" }.to_owned()),
        ("packets", packets(status)),
        ("fragments", fragments(status)),
        ("last reload", last_reload(status)),
    ];
    let mut text = String::new();
    let drains = status
        .draining
        .iter()
        .map(|drain| ("draining", super::drains::line(drain)));
    let troubles = status.troubles.iter().map(|trouble| ("trouble", trouble.clone()));
    let obstacles = status.firewall.iter().map(|line| ("firewall", line.clone()));
    for (key, value) in facts.into_iter().chain(troubles).chain(drains).chain(obstacles) {
        text.push_str(&format!("{key:<12} {value}\n"));
        match key {
            "flows" => text.push_str(&flows_by_state(status)),
            "mode" => text.push_str(&status.shadow.as_ref().map_or_else(String::new, shadow)),
            "backend" => text.push_str(&status.af_xdp.as_ref().map_or_else(String::new, af_xdp)),
            _ => {}
        }
    }
    text
}

fn shadow(view: &ShadowView) -> String {
    format!("{:<12} {}", "shadow", super::shadow::shadow(view))
}

/// An interface a line, a queue a line below it, and how much went through the kernel.
fn af_xdp(view: &AfXdpView) -> String {
    let mut text = String::new();
    for InterfaceView { name, attach, queues } in &view.interfaces {
        text.push_str(&format!("  {name}: {attach}\n"));
        queues.iter().for_each(|queue| text.push_str(&queue_line(queue)));
    }
    let AfXdpView {
        interfaces: _,
        taken,
        left_to_kernel,
        routed_by_kernel,
        given_back,
        finished_checksums,
        answered_neighbours,
        detours,
    } = view;
    let lines = [
        format!("XDP program: {taken} taken, {left_to_kernel} left to the kernel"),
        format!("translated, then routed by the kernel: {routed_by_kernel}"),
        format!("given back to the kernel as they came: {given_back}"),
        format!("checksums of local senders finished: {finished_checksums}"),
        format!("ARP and NDP questions answered: {answered_neighbours}"),
    ];
    let detours = detours.iter().map(|why| format!("routed by the kernel: {why}"));
    for line in lines.into_iter().chain(detours) {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

fn queue_line(view: &QueueView) -> String {
    let QueueView {
        queue,
        zero_copy,
        received,
        sent,
        unsent,
        dropped,
        receive_ring_full,
        no_frame,
        invalid,
    } = *view;
    let mode = if zero_copy { "zero copy" } else { "copy" };
    let losses = [
        ("unsent", unsent),
        ("dropped", dropped),
        ("receive ring full", receive_ring_full),
        ("no frame", no_frame),
        ("invalid", invalid),
    ];
    let losses = losses.iter().filter(|(_, count)| *count > 0);
    let losses: String = losses.map(|(what, count)| format!(", {what} {count}")).collect();
    format!("    queue {queue} ({mode}): received {received}, sent {sent}{losses}\n")
}

fn flows_by_state(status: &Status) -> String {
    let line =
        |count: &crate::protocol::StateCount| format!("  {:<4} {:<11} {}\n", count.protocol, count.state, count.flows);
    status.flows_by_state.iter().map(line).collect()
}

fn packets(status: &Status) -> String {
    let packets = &status.packets;
    format!(
        "in {} = forward {} + pass {} + reject {} + drop {}; {} not taken by the device",
        packets.received, packets.forward, packets.pass, packets.reject, packets.drop, status.unsent
    )
}

fn fragments(status: &Status) -> String {
    let FragmentsView {
        datagrams,
        held,
        held_bytes,
    } = status.fragments;
    format!("{datagrams} datagrams under way; {held} fragments ({held_bytes} bytes) held for their first one")
}

fn last_reload(status: &Status) -> String {
    let Some(reload) = &status.last_reload else {
        return "none".to_owned();
    };
    let outcome = if reload.succeeded { "done" } else { "refused" };
    let ago = duration(reload.seconds_ago);
    // Errors have a line each; they go on below, under the value.
    let result = reload.result.trim_end().replace('\n', "\n             ");
    format!("{ago} ago, {outcome}: {result}")
}

fn duration(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{LastReload, PacketCounts, StateCount};
    use lbd_core::flow::Protocol;
    use lbd_core::policy::Mode;

    #[test]
    fn each_queue_of_an_interface_has_a_line_and_losses_are_told_only_where_there_are_some() {
        let queue = |queue, no_frame| QueueView {
            queue,
            zero_copy: queue == 0,
            received: 100,
            sent: 90,
            unsent: 0,
            dropped: 0,
            receive_ring_full: 0,
            no_frame,
            invalid: 0,
        };
        let view = AfXdpView {
            interfaces: vec![InterfaceView {
                name: "eth0".to_owned(),
                attach: "native".to_owned(),
                queues: vec![queue(0, 0), queue(1, 3)],
            }],
            taken: 200,
            detours: vec!["policy rule 100".to_owned()],
            ..AfXdpView::default()
        };
        let expected = "  eth0: native
    queue 0 (zero copy): received 100, sent 90
    queue 1 (copy): received 100, sent 90, no frame 3
  XDP program: 200 taken, 0 left to the kernel
  translated, then routed by the kernel: 0
  given back to the kernel as they came: 0
  checksums of local senders finished: 0
  ARP and NDP questions answered: 0
  routed by the kernel: policy rule 100
";
        assert_eq!(af_xdp(&view), expected);
    }

    #[test]
    fn each_fact_has_a_line_and_errors_of_a_reload_stay_readable() {
        let facts = Status {
            version: "0.1.0".to_owned(),
            mode: Mode::Ipvs,
            backend: "tun".to_owned(),
            config: "/etc/lbd.toml".into(),
            pid: 42,
            uptime_seconds: 3720,
            workers: 2,
            services: 3,
            backends: 9,
            flows: 5,
            max_flows: 1_048_576,
            flow_table_bytes: 1_504,
            unknown_tcp: "drop".to_owned(),
            echo: true,
            flows_by_state: vec![StateCount {
                protocol: Protocol::Tcp,
                state: "ESTABLISHED".into(),
                flows: 5,
            }],
            packets: PacketCounts {
                received: 10,
                forward: 4,
                pass: 3,
                reject: 2,
                drop: 1,
            },
            fragments: FragmentsView {
                datagrams: 3,
                held: 2,
                held_bytes: 2_960,
            },
            unsent: 2,
            last_reload: Some(LastReload {
                seconds_ago: 61,
                succeeded: false,
                result: "a:1:1: x\na:2:1: y\n".to_owned(),
            }),
            troubles: Vec::new(),
            firewall: vec!["table ip filter, chain FORWARD has policy drop: nft 'insert rule'".to_owned()],
            draining: Vec::new(),
            shadow: None,
            af_xdp: None,
        };
        let expected = "\
version      0.1.0
pid          42
uptime       1h 2m
config       /etc/lbd.toml
mode         ipvs
backend      tun
workers      2
services     3
backends     9
flows        5 of 1048576
  tcp  ESTABLISHED 5
flow table   1504 bytes
unknown TCP  drop
echo         answered
packets      in 10 = forward 4 + pass 3 + reject 2 + drop 1; 2 not taken by the device
fragments    3 datagrams under way; 2 fragments (2960 bytes) held for their first one
last reload  1m 1s ago, refused: a:1:1: x
             a:2:1: y
firewall     table ip filter, chain FORWARD has policy drop: nft 'insert rule'
";
        assert_eq!(status(&facts), expected);
    }
}
