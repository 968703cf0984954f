//! lbctl as ipvsadm: `lbctl ipvsadm ARGS`, or called by that name.
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lbd::control::{DEFAULT_SOCKET, client, ipvsadm};

use super::print;

/// Where lbd listens, for a program that has no option for it.
const SOCKET_VARIABLE: &str = "LBD_SOCKET";

/// Whether this program was called as `ipvsadm`.
pub(super) fn is_called() -> bool {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(Path::new).and_then(Path::file_name);
    name == Some(OsStr::new("ipvsadm"))
}

/// All of the program, when it was called as `ipvsadm`.
pub(super) fn main() -> ExitCode {
    let socket = std::env::var_os(SOCKET_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from);
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    run(&socket, &program.to_string_lossy(), &arguments)
}

/// `program` is what messages call it.
pub(super) fn run(socket: &Path, program: &str, arguments: &[OsString]) -> ExitCode {
    let arguments: Vec<String> = arguments
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let output = ipvsadm::run(program, &arguments, input, &mut |request| {
        client::ask(socket, request).map_err(|error| error.to_string())
    });
    let shown = print(&mut io::stdout().lock(), &output.out);
    let told = print(&mut io::stderr().lock(), &output.err);
    match shown.and(told) {
        Ok(()) => ExitCode::from(output.code),
        Err(_) => ExitCode::FAILURE,
    }
}

fn input() -> io::Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}
