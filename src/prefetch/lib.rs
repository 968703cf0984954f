//! Has the CPU fetch memory, and waits for none of it: a read soon after finds it in the cache.
//!
//! Plain reads whose results nobody needs do the same, but the CPU runs ahead of only some hundred instructions that wait, and
//! of no locked one. With a million flows the packets of a batch took 99 ns each with them, and 72 with this.

/// Bytes that come together.
const LINE: usize = 64;

/// Fetches what lies at this address, which may be any.
#[inline]
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "there is no safe one"))]
pub fn line<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is a part of x86-64, and a prefetch changes nothing but caches; one of a bad address does nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    // Elsewhere the compiler has none that is stable.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Fetches all of a value, without what it points to.
#[inline]
pub fn whole<T>(value: &T) {
    let start = (&raw const *value).cast::<u8>();
    (0..size_of::<T>())
        .step_by(LINE)
        .for_each(|offset| line(start.wrapping_add(offset)));
}
