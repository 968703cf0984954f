//! What of the interfaces that are served by AF_XDP is told to lbctl.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lbd_control::protocol::{AfXdpView, InterfaceView, QueueView};
use lbd_net::io::xdp::filter::counters::Counters;
use lbd_net::io::xdp::interfaces::Interfaces;
use lbd_net::io::xdp::kernel::Tally;
use lbd_net::io::xdp::meter::Reading;
use lbd_net::io::xdp::next_hop::Family;

/// All of it.
pub(super) fn view(interfaces: &Interfaces) -> AfXdpView {
    let gauges = interfaces.gauges();
    let sum = |of: fn(&Tally) -> &AtomicU64| gauges.iter().map(|(_, tally)| of(tally).load(Relaxed)).sum();
    // Only a process that may not read its own maps gets no counters.
    let filter = interfaces.counters().unwrap_or_default();
    AfXdpView {
        interfaces: interface_views(interfaces),
        taken: filter.taken(),
        left_to_kernel: left_to_kernel(&filter),
        routed_by_kernel: sum(|tally| &tally.routed),
        given_back: sum(|tally| &tally.returned),
        finished_checksums: sum(|tally| &tally.finished_checksums),
        answered_neighbours: sum(|tally| &tally.answered),
        detours: detours(interfaces),
    }
}

fn interface_views(interfaces: &Interfaces) -> Vec<InterfaceView> {
    let served = interfaces.served().iter();
    let mut views: Vec<InterfaceView> = served
        .map(|served| InterfaceView {
            name: served.name.clone(),
            attach: match served.gone {
                true => "gone".to_owned(),
                false => served.mode.to_string(),
            },
            queues: Vec::new(),
        })
        .collect();
    for reading in interfaces.gauges().iter().flat_map(|(meter, _)| meter.read()) {
        if let Some(view) = views.get_mut(reading.port) {
            view.queues.push(queue_view(&reading));
        }
    }
    for view in &mut views {
        view.queues.sort_unstable_by_key(|queue| queue.queue);
    }
    views
}

const fn queue_view(reading: &Reading) -> QueueView {
    QueueView {
        queue: reading.queue,
        zero_copy: reading.zero_copy,
        received: reading.counts.received(),
        sent: reading.counts.sent(),
        unsent: reading.counts.unsent(),
        dropped: reading.kernel.dropped,
        receive_ring_full: reading.kernel.receive_ring_full,
        no_frame: reading.kernel.no_frame,
        invalid: reading.kernel.invalid,
    }
}

const fn left_to_kernel(counters: &Counters) -> u64 {
    let Counters {
        passed,
        passed_flows,
        reinjected,
        foreign,
        no_socket,
        ..
    } = *counters;
    passed + passed_flows + reinjected + foreign + no_socket
}

fn detours(interfaces: &Interfaces) -> Vec<String> {
    let hops = interfaces.next_hops();
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| hops.detour(family))
        .collect()
}
