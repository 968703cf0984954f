//! How much lbd answers to strangers: a flood of packets that must be refused becomes no flood of answers.
use std::time::Duration;

use super::Processor;
use crate::packet::frame::Frame;
use crate::packet::refusal;
use crate::packet::{Headers, Payload};
use crate::time::Instant;
use crate::verdict::{Drop, Reject, Verdict};

const SECOND: Duration = Duration::from_secs(1);
/// ICMP errors that may come at once (`icmp_msgs_burst`, Documentation/networking/ip-sysctl.rst).
const BURST: u32 = 50;
/// There may be so many more TCP RSTs than ICMP errors, and a second's worth of them at once. netfilter does not limit them
/// (`nf_send_reset`, net/ipv4/netfilter/nf_reject_ipv4.c): a RST is no longer than the segment that it answers, and whoever
/// misses it waits. But as many as SYNs of a flood with invented senders would make lbd a part of it.
const MORE_RESETS: u32 = 10;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// RFC 4443 section 2.4(f): a node must limit the rate of the ICMPv6 errors it originates, best by a token bucket; RFC
    /// 1812 section 4.3.2.8 says the same of ICMP.
    IcmpError,
    TcpReset,
}

/// What one worker has answered of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    icmp_errors: Bucket,
    tcp_resets: Bucket,
}

impl Limits {
    /// The bucket of this kind, the time until another token comes, and the most tokens that it holds; None: no limit.
    fn of(&mut self, kind: Kind, rate: u32) -> Option<(&mut Bucket, Duration, u32)> {
        let (bucket, rate, burst) = match kind {
            Kind::IcmpError => (&mut self.icmp_errors, rate, BURST),
            Kind::TcpReset => {
                let rate = rate.saturating_mul(MORE_RESETS);
                (&mut self.tcp_resets, rate, rate.max(BURST))
            }
        };
        Some((bucket, SECOND.checked_div(rate)?, burst))
    }
}

/// A token bucket that is told by the time at which it will be full again (the generic cell rate algorithm, ITU-T I.371).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full: Instant,
}

impl Bucket {
    fn is_empty(&self, now: Instant, interval: Duration, burst: u32) -> bool {
        self.full - now > interval * (burst - 1)
    }

    fn take(&mut self, now: Instant, interval: Duration) {
        self.full = self.full.max(now) + interval;
    }
}

impl Processor<'_> {
    /// Answers a packet that is refused.
    pub(super) fn refuse(&mut self, frame: &mut Frame<'_>, reason: Reject, now: Instant) -> Verdict {
        let Ok(headers) = Headers::parse(frame.bytes()) else {
            return Verdict::Drop(Drop::Unanswerable);
        };
        let kind = match headers.payload {
            Payload::Tcp(..) => Kind::TcpReset,
            Payload::Udp(_) | Payload::Sctp(..) | Payload::Fragment(_) | Payload::IcmpError | Payload::Other => {
                Kind::IcmpError
            }
        };
        self.within_limit(kind, reason, now, || refusal::answer(frame, &headers).is_ok())
    }

    /// The verdict after `make` has put an answer into the frame, if that was possible, unless there were too many of late.
    pub(super) fn within_limit(
        &mut self,
        kind: Kind,
        reason: Reject,
        now: Instant,
        make: impl FnOnce() -> bool,
    ) -> Verdict {
        let rate = self.ruleset.policy.icmp.rate_limit;
        let mut limit = self.lane.limits.of(kind, rate);
        if let Some((bucket, interval, burst)) = &limit
            && bucket.is_empty(now, *interval, *burst)
        {
            return Verdict::Drop(Drop::RateLimited);
        }
        if !make() {
            return Verdict::Drop(Drop::Unanswerable);
        }
        if let Some((bucket, interval, _)) = &mut limit {
            bucket.take(now, *interval);
        }
        Verdict::Reject(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(limits: &mut Limits, kind: Kind, now: Instant) -> usize {
        let (bucket, interval, burst) = limits.of(kind, 1000).unwrap();
        let mut count = 0;
        while !bucket.is_empty(now, interval, burst) {
            bucket.take(now, interval);
            count += 1;
        }
        count
    }

    #[test]
    fn a_full_bucket_gives_a_burst_and_fills_again_at_the_rate() {
        let mut limits = Limits::default();
        let start = Instant::from_nanos(1);
        assert_eq!(taken(&mut limits, Kind::IcmpError, start), 50);
        assert_eq!(
            taken(&mut limits, Kind::IcmpError, start + Duration::from_millis(20)),
            20
        );
        assert_eq!(
            taken(&mut limits, Kind::IcmpError, start + SECOND),
            50,
            "never more than a burst"
        );
        assert_eq!(taken(&mut limits, Kind::TcpReset, start), 10_000);
        assert_eq!(taken(&mut limits, Kind::TcpReset, start + Duration::from_millis(1)), 10);
    }

    #[test]
    fn no_limit_is_no_bucket() {
        assert!(Limits::default().of(Kind::TcpReset, 0).is_none());
    }
}
