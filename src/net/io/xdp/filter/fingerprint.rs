/// The sources of the filter, beside this file.
const FILTER_SOURCES: [&str; 2] = ["filter.c", "filter_maps.h"];

/// FNV-1a with 64 bits over the filter's sources, in hexadecimal: tells whether the checked-in object was made of them.
fn fingerprint(directory: &Path) -> std::io::Result<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for name in FILTER_SOURCES {
        for byte in fs::read(directory.join(name))? {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(format!("{hash:016x}"))
}
