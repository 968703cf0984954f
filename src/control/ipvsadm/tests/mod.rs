//! ipvsadm against a real engine. What was recorded from a real kernel is read where it is; see [`reference`].
#![allow(
    clippy::unwrap_in_result,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends at the first surprise, in its helpers too"
)]
mod behaviour;
mod command_line;
mod lab;
mod removal;
mod samples;
mod sequences;

/// A file of the shared reference material; None, and a word about it, where this machine has none.
fn reference(file: &str) -> Option<String> {
    let shared = std::env::var_os("LBD_SHARED").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        std::path::PathBuf::from,
    );
    let path = shared.join("reference").join(file);
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        eprintln!("SKIPPED: no {}; set LBD_SHARED", path.display());
    }
    text
}
