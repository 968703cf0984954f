//! Compiles filter.c for the kernel's BPF machine; where there is no clang, takes the checked-in filter.o, provided that
//! it was made of the same sources.
//!
//! After a change to filter.c or filter_maps.h: `LBD_BUILD_FILTER=1 cargo check`, which renews filter.o and
//! filter.o.source, to be committed with it.
#![allow(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

include!("fingerprint.rs");

const DIRECTORY: &str = "io/xdp/filter";
/// When set, the checked-in object is renewed.
const RENEW: &str = "LBD_BUILD_FILTER";

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join(DIRECTORY);
    let object = PathBuf::from(env::var("OUT_DIR")?).join("filter.o");
    let inputs = ["build.rs", "fingerprint.rs", "filter.o", "filter.o.source"];
    for name in inputs.iter().chain(&FILTER_SOURCES) {
        println!("cargo::rerun-if-changed={DIRECTORY}/{name}");
    }
    println!("cargo::rerun-if-env-changed={RENEW}");
    match compile(&directory, &object) {
        Ok(()) if env::var_os(RENEW).is_some() => renew(&directory, &object)?,
        Ok(()) => {}
        Err(why) => take_checked_in(&directory, &object, &why)?,
    }
    Ok(())
}

/// Warnings are left to whoever changes the filter: another clang may have other ones.
fn compile(directory: &Path, object: &Path) -> Result<(), String> {
    let machine = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb",
        _ => "bpfel",
    };
    // Debian and Ubuntu keep asm/types.h there, where clang looks for it only when it compiles for that machine.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let headers = format!("-I/usr/include/{arch}-linux-gnu");
    // The last option: the same object wherever it is built.
    run(Command::new("clang")
        .args([
            "-O2",
            "-g",
            "-target",
            machine,
            "-mcpu=v3",
            &headers,
            "-fdebug-compilation-dir=.",
        ])
        .args(["-c", "filter.c"])
        .current_dir(directory)
        .arg("-o")
        .arg(object))?;
    // Only makes it smaller: BTF, which the loader needs, stays.
    let _stripped = run(Command::new("llvm-strip").arg("-g").arg(object));
    Ok(())
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

fn renew(directory: &Path, object: &Path) -> Result<(), Box<dyn Error>> {
    fs::copy(object, directory.join("filter.o"))?;
    fs::write(directory.join("filter.o.source"), fingerprint(directory)? + "\n")?;
    Ok(())
}

fn take_checked_in(directory: &Path, object: &Path, why: &str) -> Result<(), Box<dyn Error>> {
    let made_of = fs::read_to_string(directory.join("filter.o.source")).unwrap_or_default();
    let little = env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() == Ok("little");
    if little && made_of.trim() == fingerprint(directory)? {
        fs::copy(directory.join("filter.o"), object)?;
        return Ok(());
    }
    let reason = why.replace('\n', "; ");
    println!(
        "cargo::error=the XDP program {DIRECTORY}/filter.c cannot be compiled ({reason}), and the checked-in filter.o is of another version of it; install clang and the kernel's headers (Debian: apt install clang llvm linux-libc-dev)"
    );
    Ok(())
}
