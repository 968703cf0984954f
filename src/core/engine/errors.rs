//! ICMP errors: those of others about a flow, which follow it, and lbd's own, where lbd is the router.
use super::limits::Kind;
use super::{Processor, Stop, count};
use crate::flow::{Address, Key};
use crate::packet::frame::Frame;
use crate::packet::icmp::{self, Quoted};
use crate::packet::refusal::{self, Complaint};
use crate::packet::{Headers, Payload};
use crate::rewrite;
use crate::time::Instant;
use crate::verdict::{Drop, Pass, Reject, Verdict};

/// What becomes of an ICMP error about a flow: where it seems to come from, and the tuple of the packet that it quotes.
struct Translation {
    source: Address,
    quoted: Key,
}

impl Processor<'_> {
    /// An ICMP error about a packet of a flow goes to that packet's sender, who must recognize the packet: addresses and
    /// ports are translated in the quotation as well (RFC 5508 section 4.2). Anything else without ports meets the rules.
    pub(super) fn forward_without_ports(
        &mut self,
        frame: &mut Frame<'_>,
        headers: &Headers,
        now: Instant,
    ) -> Result<(), Stop> {
        if let Payload::Fragment(fragment) = &headers.payload {
            return self.forward_fragment(frame, headers, fragment, now);
        }
        self.may_be_from(headers.source)?;
        let related = icmp::quoted(frame.bytes(), headers)
            .and_then(|quoted| Some((quoted, self.follow_error(headers, &quoted, now)?)));
        let Some((quoted, Translation { source, quoted: inner })) = related else {
            let stop = self.without_flow(headers, now);
            frame.is_own_error = self.is_own_error(headers);
            let is_pinged =
                matches!(stop, Stop::Pass(Pass::UntrackedProtocol)) && self.is_pinged(frame.bytes(), headers);
            return Err(if is_pinged { Stop::Echo } else { stop });
        };
        self.may_go_on(frame.bytes(), headers, inner.source)?;
        rewrite::error(frame, headers, &quoted, source, &inner);
        Ok(())
    }

    /// Whether this host itself has made the error, to somebody else. One to an address of lbd's would come back here for ever.
    fn is_own_error(&self, headers: &Headers) -> bool {
        let (source, destination) = (headers.source.into(), headers.destination.into());
        headers.payload == Payload::IcmpError
            && self.ruleset.is_local(&source)
            && !self.ruleset.is_virtual(&destination)
            && !self
                .ruleset
                .policy
                .nat
                .pool
                .iter()
                .any(|pool| pool.contains(&destination))
    }

    /// The flow of the quoted packet takes no note of the error: it is neither kept alive nor ended by it.
    fn follow_error(&self, headers: &Headers, quoted: &Quoted, now: Instant) -> Option<Translation> {
        // The error goes the way of an answer to the quoted packet.
        let key = quoted.key.reply();
        let lane = self.lane.index;
        let trace = self.trace(&key);
        self.conntrack
            .with_flow(&key, trace, now, |shard, slot, direction| {
                count(&shard.get_mut(slot)?.backend, direction, lane, headers.length);
                let (arriving, leaving) = (shard.arriving(slot, direction)?, shard.leaving(slot, direction)?);
                // As `nf_nat_icmp_reply_translation` does: behind a translated address, also a router's is hidden.
                let is_hidden = arriving.source != leaving.source;
                Some(Translation {
                    source: if is_hidden { leaving.source } else { headers.source },
                    quoted: leaving.reply(),
                })
            })
            .flatten()
    }

    /// Where lbd is the router, a packet must fit the way on, and have a hop left (RFC 1812 sections 4.2.3.3 and 5.3.1).
    pub(super) fn may_go_on(&mut self, packet: &[u8], headers: &Headers, destination: Address) -> Result<(), Stop> {
        let Some(router) = &mut self.router else {
            return Ok(());
        };
        if headers.hop_limit(packet) <= 1 && !router.ends_here(destination.into()) {
            return Err(Stop::Complain(Complaint::TimeExceeded));
        }
        match router.mtu(destination.into()) {
            Some(mtu) if headers.length > mtu && headers.is_unfragmentable(packet) => {
                Err(Stop::Complain(Complaint::TooBig { mtu }))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Tells the sender of a packet, which is as it came, why it goes no further.
    pub(super) fn complain(&mut self, frame: &mut Frame<'_>, complaint: Complaint, now: Instant) -> Verdict {
        let reason = match complaint {
            Complaint::TooBig { .. } => Reject::TooBig,
            Complaint::TimeExceeded => Reject::TimeExceeded,
        };
        let Ok(headers) = Headers::parse(frame.bytes()) else {
            return Verdict::Drop(Drop::Unanswerable);
        };
        let router = self.router.as_mut();
        let own = router.and_then(|router| router.own_address(headers.source.into()));
        self.within_limit(Kind::IcmpError, reason, now, || {
            refusal::complain(frame, &headers, complaint, own).is_ok()
        })
    }
}
