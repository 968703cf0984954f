//! What is printed, given to the real programs and the kernel, in a network namespace of its own.
use std::io::Write;
use std::process::{Command, Stdio};

use lbd::config::{Config, parse};
use lbd::export::iptables_save::export;

use super::{DUMPS, dump, imported, lost};

/// Whether the program takes the text in a network namespace of its own; None where it cannot be tried.
fn restored(program: &str, text: &str) -> Option<Result<(), String>> {
    let usable = Command::new("unshare")
        .args(["-rn", program, "--version"])
        .output()
        .ok()?;
    if !usable.status.success() {
        return None;
    }
    let mut child = Command::new("unshare")
        .args(["-rn", program, "-w", "10", "--test"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(text.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if told.contains("Permission denied") || told.contains("does not exist") {
        return None;
    }
    Some(if output.status.success() { Ok(()) } else { Err(told) })
}

#[test]
fn iptables_restore_and_ip6tables_restore_take_what_is_printed() {
    let quotes = "mode = \"iptables\"\n[[rules]]\nname = \"it's \\\"so\\\" \\\\\"\nsource_port = \"1-1023\"\nprobability = 0.3\n\
                  action = \"reject\"\n[[services]]\nname = \"o'clock \\\\ cluster IP\"\nprotocol = \"udp\"\naddress = \"10.96.0.1:53\"\n\
                  persistence = { timeout = \"1h\", netmask = 24 }\nbackends = [{ address = \"10.2.0.1:53\" }]\n";
    let mut texts = vec![parse("", quotes).unwrap().config];
    texts.push(imported(&(dump("kube-1.30.txt") + &dump("kube-1.30-ip6.txt"))).0);
    texts.extend(DUMPS.map(|name| imported(&dump(name)).0));
    for text in texts.iter().map(|config| export(config).text) {
        for program in ["iptables-restore", "ip6tables-restore"] {
            // A dump of one family alone has no marks for the other's program.
            if program == "ip6tables-restore" && !text.contains("\n-6 ") {
                continue;
            }
            match restored(program, &text) {
                None => println!("skipped: {program} cannot be run in a network namespace here"),
                Some(taken) => assert_eq!(taken, Ok(()), "{program}\n{text}"),
            }
        }
    }
}

/// What the kernel has of a text after both programs took it, as both print it; None where it cannot be tried.
fn through_the_kernel(text: &str) -> Option<String> {
    let usable =
        restored("iptables-restore", text)?.is_ok() && restored("ip6tables-restore", "*nat\nCOMMIT\n")?.is_ok();
    let file = tempfile::NamedTempFile::new().ok().filter(|_| usable)?;
    std::fs::write(file.path(), text).ok()?;
    let six = if text.contains("\n-6 ") {
        "ip6tables-restore -w 10 < $0 &&"
    } else {
        ""
    };
    let script = format!("iptables-restore -w 10 < $0 && {six} iptables-save && ip6tables-save");
    let output = Command::new("unshare")
        .args(["-rn", "sh", "-c", &script])
        .arg(file.path())
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).ok()
}

#[test]
fn what_the_kernel_says_it_was_told_is_imported_as_the_same_configuration() {
    let mut texts = DUMPS.map(dump).to_vec();
    texts.push(dump("kube-1.30.txt") + &dump("kube-1.30-ip6.txt"));
    for text in texts {
        let (config, _) = imported(&text);
        let Some(saved) = through_the_kernel(&export(&config).text) else {
            println!("skipped: iptables cannot be run in a network namespace here");
            return;
        };
        let (again, remarks) = imported(&saved);
        assert_eq!(lost(&remarks), Vec::<&String>::new(), "{saved}");
        let sorted = |mut config: Config| {
            config.policy.services.sort_by(|a, b| a.name.cmp(&b.name));
            config
        };
        assert_eq!(sorted(again), sorted(config), "{saved}");
    }
}
