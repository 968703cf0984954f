//! `ipvsadm -h` and `-v`.

/// `-v`
pub(super) const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";

/// What follows the version. Our own words for what lbd does: the text of the original is under another licence (GPL),
/// and half of it is about what lbd refuses.
const HELP: &str = include_str!("help.txt");

/// `-h`, with the program called by the name that it was called by.
pub(super) fn help(program: &str) -> String {
    format!("{VERSION}{}", HELP.replace("  ipvsadm ", &format!("  {program} ")))
}
