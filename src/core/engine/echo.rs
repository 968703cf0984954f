//! A service's address can be pinged: nobody has it but lbd, so lbd answers.
use super::Processor;
use crate::packet::frame::Frame;
use crate::packet::{Headers, echo};
use crate::verdict::{Drop, Reject, Verdict};

impl Processor<'_> {
    /// Whether it is an echo request that nobody else would answer. Those to this host's own addresses are the kernel's.
    pub(super) fn is_pinged(&self, packet: &[u8], headers: &Headers) -> bool {
        let ruleset = &self.ruleset;
        ruleset.policy.icmp.echo && echo::is_request(packet, headers) && ruleset.is_virtual(&headers.destination.into())
    }
}

/// There is no limit, as there is none in Linux (`icmp_ratemask` leaves echo replies out): an answer is as long as the
/// question.
pub(super) fn answer(frame: &mut Frame<'_>) -> Verdict {
    match Headers::parse(frame.bytes()) {
        Ok(headers) if echo::answer(frame, &headers).is_ok() => Verdict::Reject(Reject::Echo),
        Ok(_) | Err(_) => Verdict::Drop(Drop::Unanswerable),
    }
}
