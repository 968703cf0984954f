//! The kernel's rate estimator, to the digit: net/netfilter/ipvs/ip_vs_est.c.
//!
//! Every two seconds a quarter of the difference to the last two seconds' rate is taken over, so rates lag by design.
use std::time::Duration;

use super::protocol::RatesView;
use lbd_core::service::Totals;

/// How often [`Estimator::tick`] is to be called: `IPVS_EST_NTICKS` ticks of `IPVS_EST_TICK`, two seconds.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Fraction bits of connections and packets a second (`cps`, `inpps`, `outpps`).
const COUNT_BITS: u32 = 10;
/// Fraction bits of bytes a second (`inbps`, `outbps`).
const BYTE_BITS: u32 = 5;

/// Rates of one service or backend.
#[derive(Clone, Debug, Default)]
pub struct Estimator {
    last: Totals,
    connections: Average<COUNT_BITS>,
    in_packets: Average<COUNT_BITS>,
    out_packets: Average<COUNT_BITS>,
    in_bytes: Average<BYTE_BITS>,
    out_bytes: Average<BYTE_BITS>,
}

impl Estimator {
    /// Rates of zero, whatever was counted until now.
    #[must_use]
    pub fn new(totals: Totals) -> Self {
        Self {
            last: totals,
            ..Self::default()
        }
    }

    /// Two seconds have passed.
    pub fn tick(&mut self, totals: Totals) {
        let last = std::mem::replace(&mut self.last, totals);
        self.connections.tick(last.connections, totals.connections);
        self.in_packets.tick(last.in_packets, totals.in_packets);
        self.out_packets.tick(last.out_packets, totals.out_packets);
        self.in_bytes.tick(last.in_bytes, totals.in_bytes);
        self.out_bytes.tick(last.out_bytes, totals.out_bytes);
    }

    /// Rounded (`ip_vs_read_estimator`).
    #[must_use]
    pub const fn rates(&self) -> RatesView {
        RatesView {
            connections_per_second: self.connections.rounded(),
            in_packets_per_second: self.in_packets.rounded(),
            out_packets_per_second: self.out_packets.rounded(),
            in_bytes_per_second: self.in_bytes.rounded(),
            out_bytes_per_second: self.out_bytes.rounded(),
        }
    }
}

/// A moving average with `BITS` fraction bits.
#[derive(Clone, Copy, Debug, Default)]
struct Average<const BITS: u32>(u64);

impl<const BITS: u32> Average<BITS> {
    /// `rate = (count - last) << (BITS - 1)`, as two seconds have passed; `avg += ((s64)rate - (s64)avg) >> 2`.
    const fn tick(&mut self, last: u64, count: u64) {
        let rate = count.wrapping_sub(last) << (BITS - 1);
        let difference = rate.wrapping_sub(self.0).cast_signed() >> 2;
        self.0 = self.0.wrapping_add_signed(difference);
    }

    /// The kernel adds 0x1FF before `>> 10` and 0xF before `>> 5`: a half is rounded down.
    const fn rounded(self) -> u64 {
        (self.0 + (1 << (BITS - 1)) - 1) >> BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(count: u64) -> Totals {
        Totals {
            connections: count,
            in_packets: 2 * count,
            out_packets: 3 * count,
            in_bytes: 1000 * count,
            out_bytes: 2000 * count,
        }
    }

    fn rates(values: [u64; 5]) -> RatesView {
        let [connections, in_packets, out_packets, in_bytes, out_bytes] = values;
        RatesView {
            connections_per_second: connections,
            in_packets_per_second: in_packets,
            out_packets_per_second: out_packets,
            in_bytes_per_second: in_bytes,
            out_bytes_per_second: out_bytes,
        }
    }

    #[test]
    fn a_steady_load_is_approached_by_a_quarter_of_the_difference_every_two_seconds() {
        let mut estimator = Estimator::default();
        // 100 a second. cps: 102400/4 = 25600 = 25.0; + 76800/4 = 44800 = 43.75; + 57600/4 = 59200 = 57.8
        // bytes: 100000 a second. 3200000/4 = 800000 = 25000.0; + 2400000/4 = 1400000 = 43750.0; 1850000 = 57812.5
        estimator.tick(totals(200));
        assert_eq!(estimator.rates(), rates([25, 50, 75, 25_000, 50_000]));
        estimator.tick(totals(400));
        assert_eq!(estimator.rates(), rates([44, 87, 131, 43_750, 87_500]));
        estimator.tick(totals(600));
        assert_eq!(estimator.rates(), rates([58, 116, 173, 57_812, 115_625]));
    }

    #[test]
    fn a_rate_falls_back_to_zero_when_traffic_stops() {
        let mut estimator = Estimator::default();
        estimator.tick(totals(8));
        // 4 a second: 4096/4 = 1024 = 1; then -256 a step of the average: 768 (0.75 -> 1), 576 (0.5625 -> 1), 432 (0)
        let falling = [1, 1, 1, 0].map(|expected| {
            assert_eq!(estimator.rates().connections_per_second, expected);
            estimator.tick(totals(8));
        });
        assert_eq!(falling.len(), 4);
    }

    #[test]
    fn a_half_is_rounded_down_as_the_kernel_does() {
        let mut estimator = Estimator::default();
        // 2 a second: 2048/4 = 512 = exactly a half; one byte more a step is not.
        estimator.tick(totals(4));
        assert_eq!(estimator.rates().connections_per_second, 0);
        assert_eq!(estimator.rates().in_packets_per_second, 1);
    }

    #[test]
    fn what_was_counted_before_the_estimator_began_is_no_rate() {
        let mut estimator = Estimator::new(totals(1_000_000));
        estimator.tick(totals(1_000_000));
        assert_eq!(estimator.rates(), RatesView::default());
    }
}
