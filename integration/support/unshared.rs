//! A test in namespaces of its own: it starts itself anew under `unshare`, and says so where that is not permitted.
use std::io::Write;
use std::process::{Command, Stdio};

const INSIDE: &str = "LBD_TEST_INSIDE";

/// Runs `body`, which is all of the test `name`, in fresh namespaces, as root or as root of a user namespace.
#[allow(dead_code, reason = "some tests need more than a user namespace gives")]
pub(crate) fn inside(name: &str, body: impl FnOnce()) {
    let id = Command::new("id").arg("-u").output().unwrap();
    let is_root = id.stdout == b"0\n";
    inside_with(if is_root { "-n" } else { "-Urn" }, name, body);
}

/// The same with these options for unshare.
pub(crate) fn inside_with(options: &str, name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let permitted = Command::new("unshare").args([options, "true"]).output();
    if !permitted.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped: `unshare {options}` is not permitted here: {permitted:?}");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args([options, this.to_str().unwrap(), "--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    // Not print: the test harness would hide what was skipped.
    std::io::stdout().write_all(&output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{name} failed in its namespaces"
    );
}

/// Runs a program, whose arguments have no spaces in them; yields what it said.
#[allow(dead_code, reason = "some tests use shell scripts")]
pub(crate) fn run(program: &str, command: &str) -> String {
    let output = Command::new(program).args(command.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[allow(dead_code, reason = "some tests use shell scripts")]
pub(crate) fn ip(command: &str) -> String {
    run("ip", command)
}
