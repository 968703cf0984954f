//! What `ip` knows of an interface. Not sysfs, which may show another network namespace's.
use std::process::Command;

use lbd::io::xdp::bundle::Port;

/// The interface with its number and MTU, and these queues.
pub(crate) fn port(name: &str, queues: Vec<u32>) -> Result<Port, String> {
    let output = Command::new("ip").args(["-o", "link", "show", "dev", name]).output();
    let output = output.map_err(|error| format!("cannot run ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said_wrong = || format!("{name}: ip says {said}{}", String::from_utf8_lossy(&output.stderr));
    // 5: eth0@if4: <BROADCAST,MULTICAST,UP> mtu 1500 qdisc ...
    let mut words = said.split_whitespace();
    let index = words.next().and_then(|word| word.strip_suffix(':')?.parse().ok());
    let mtu = words
        .skip_while(|&word| word != "mtu")
        .nth(1)
        .and_then(|word| word.parse().ok());
    Ok(Port {
        name: name.to_owned(),
        index: index.ok_or_else(said_wrong)?,
        mtu: mtu.ok_or_else(said_wrong)?,
        queues,
    })
}
