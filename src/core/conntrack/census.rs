//! How many flows are in each state, counted as they come, change and go, so that nobody has to look through the table.
use super::connection::State;
use super::{sctp, tcp};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Census {
    tcp: [u32; tcp::State::ALL.len()],
    udp: u32,
    sctp: [u32; sctp::State::ALL.len()],
}

impl Census {
    pub(super) const fn add(&mut self, state: State) {
        *self.count(state) += 1;
    }

    pub(super) const fn remove(&mut self, state: State) {
        *self.count(state) -= 1;
    }

    /// The states that there are flows in.
    pub(super) fn into_counts(self) -> impl Iterator<Item = (State, u64)> {
        let tcp = tcp::State::ALL.into_iter().map(State::Tcp).zip(self.tcp);
        let sctp = sctp::State::ALL.into_iter().map(State::Sctp).zip(self.sctp);
        let all = tcp.chain([(State::Udp, self.udp)]).chain(sctp);
        all.filter(|&(_, flows)| flows > 0)
            .map(|(state, flows)| (state, flows.into()))
    }

    const fn count(&mut self, state: State) -> &mut u32 {
        match state {
            State::Tcp(state) => &mut self.tcp[state as usize],
            State::Udp => &mut self.udp,
            State::Sctp(state) => &mut self.sctp[state as usize],
        }
    }
}
