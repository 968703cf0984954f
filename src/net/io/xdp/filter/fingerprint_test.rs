//! The checked-in object is of the sources beside it.
use std::fs;
use std::path::Path;

include!("fingerprint.rs");

#[test]
fn the_checked_in_filter_was_made_of_the_sources_beside_it() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("io/xdp/filter");
    let recorded = fs::read_to_string(directory.join("filter.o.source")).unwrap();
    let remedy = "renew filter.o: LBD_BUILD_FILTER=1 cargo check";
    assert_eq!(recorded.trim(), fingerprint(&directory).unwrap(), "{remedy}");
}
