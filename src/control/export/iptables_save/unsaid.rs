//! What iptables cannot say of a service.
use super::text::fitting;
use lbd_core::policy::ServiceSpec;
use lbd_core::scheduler::{Flags, Kind};

/// What is not shown, or not as it is.
pub(super) fn unsaid(service: &ServiceSpec, kind: Kind) -> Vec<String> {
    let any = |has: fn(&lbd_core::policy::BackendSpec) -> bool| service.backends.iter().any(has);
    let affinity = service.persistence;
    let checks = [
        (
            any(|backend| backend.weight == 0),
            "its backends of weight 0, which get no new flows",
        ),
        (
            any(|backend| backend.upper_threshold > 0 || backend.lower_threshold > 0),
            "its thresholds",
        ),
        (
            affinity.is_some_and(|affinity| affinity.timeout.subsec_nanos() > 0),
            "parts of seconds in the timeout of its persistence",
        ),
        (
            affinity.is_some() && !any(|backend| backend.weight > 0),
            "its persistence, since it has no backend that takes new flows",
        ),
        (service.one_packet, "one-packet scheduling"),
        (service.on_backend_removed.is_some(), "its on_backend_removed"),
        (service.flags != Flags::default(), "its scheduler_flags"),
        (
            fitting(&service.name) != service.name,
            "the end of its name, which is too long for a comment",
        ),
    ];
    let said = checks
        .into_iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, what)| what.to_owned());
    let all = said.chain(choice(service, kind));
    all.map(|what| format!("service {:?}: {what}", service.name)).collect()
}

/// iptables draws lots, with equal or other shares.
fn choice(service: &ServiceSpec, kind: Kind) -> Option<String> {
    let weights: Vec<u32> = service
        .backends
        .iter()
        .map(|backend| backend.weight)
        .filter(|&weight| weight > 0)
        .collect();
    let even = weights.windows(2).all(|pair| pair[0] == pair[1]);
    let common = weights.into_iter().reduce(common_divisor).unwrap_or(1);
    match (kind, even) {
        (Kind::Random, true) if common == 1 => None,
        (Kind::Random, _) => Some("its weights, which random does not look at".to_owned()),
        (Kind::Wrr, false) if common == 1 => None,
        (Kind::Wrr, false) => Some("its weights themselves, but their ratio".to_owned()),
        (other, _) => Some(format!("scheduler = \"{other}\", since iptables can only draw lots")),
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}
