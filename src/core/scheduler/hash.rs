//! The kernel's hashes of addresses, so that a client meets the same server here as it does there.
use std::net::IpAddr;

/// The address as one word in host order; the four words of an IPv6 address are joined by XOR (`addr_fold` of
/// `ip_vs_sh_hashkey` and its kin).
pub(super) fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            let halves = (bits >> 64) as u64 ^ bits as u64;
            (halves >> 32) as u32 ^ halves as u32
        }
    }
}

/// `hash_32()` of include/linux/hash.h with `GOLDEN_RATIO_32`: the highest `bits` (1 to 32) bits of the product.
pub(super) const fn hash_32(value: u32, bits: u32) -> usize {
    (value.wrapping_mul(0x61C8_8647) >> (32 - bits)) as usize
}

/// `hsiphash_1u32()` of lib/siphash.c where longs have 64 bits: SipHash-1-3 of four bytes, its lower half. Both words
/// of the key are the same in all its uses here.
pub(super) const fn hsiphash(value: u32, key: u64) -> u32 {
    // The initial state is that of the SipHash paper (section 2.1): "somepseudorandomlygeneratedbytes".
    let mut v = [
        0x736f_6d65_7073_6575 ^ key,
        0x646f_7261_6e64_6f6d ^ key,
        0x6c79_6765_6e65_7261 ^ key,
        0x7465_6462_7974_6573 ^ key,
    ];
    let last_word = (4 << 56) | value as u64;
    v[3] ^= last_word;
    v = sip_round(v);
    v[0] ^= last_word;
    v[2] ^= 0xff;
    v = sip_round(sip_round(sip_round(v)));
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32
}

/// `SipRound` of the SipHash paper (figure 2.1).
const fn sip_round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_folds_to_the_xor_of_its_words() {
        let address = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        assert_eq!(fold(address), 0x2001_0db8 ^ 0x0001_0002 ^ 0x0003_0004 ^ 0x0005_0006);
    }

    #[test]
    fn an_ipv4_address_folds_to_itself_in_host_order() {
        assert_eq!(fold("10.1.0.2".parse().unwrap()), 0x0a01_0002);
    }
}
