//! `ipvsadm -h` and `-v`.

/// `-v`
pub(super) const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";

/// What follows the version; the name of the program is filled in.
const HELP: &str = include_str!("help.txt");

/// `-h`
pub(super) fn help(program: &str) -> String {
    let (usage, rest) = HELP.split_once("\n\n").unwrap_or((HELP, ""));
    let usage = usage.replace("  ipvsadm ", &format!("  {program} "));
    format!("{VERSION}{usage}\n\n{rest}")
}
