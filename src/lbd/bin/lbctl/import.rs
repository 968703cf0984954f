//! `import`: what other programs saved, as a configuration.
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use lbd::control::ipvsadm;
use lbd::import::iptables_save;

use super::print;

#[derive(Subcommand)]
pub(super) enum Import {
    /// What `iptables-save`, `ip6tables-save` or both printed on a node with kube-proxy; what becomes of lines that are
    /// not carried over is told on standard error
    IptablesSave {
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// What `ipvsadm -Sn` or `ipvsadm-save -n` printed; what cannot be carried over is told on standard error
    IpvsadmSave {
        /// The file, or - for standard input
        file: PathBuf,
    },
}

impl Import {
    pub(super) fn run(&self) -> ExitCode {
        let (file, import): (_, fn(&str, &str) -> _) = match self {
            Self::IptablesSave { file } => (file, iptables_save::import),
            Self::IpvsadmSave { file } => (file, ipvsadm::import::import),
        };
        let name = file.display().to_string();
        let text = read(file).map_err(|error| format!("cannot read {name}: {error}"));
        let (out, err, code) = match text.and_then(|text| import(&name, &text)) {
            Ok(imported) => (imported.toml, imported.remarks.join("\n"), ExitCode::SUCCESS),
            Err(error) => (String::new(), error, ExitCode::FAILURE),
        };
        if !err.is_empty() {
            print(&mut io::stderr().lock(), &format!("{err}\n")).ok();
        }
        match print(&mut io::stdout().lock(), &out) {
            Ok(()) => code,
            Err(_) => ExitCode::FAILURE,
        }
    }
}

fn read(file: &Path) -> io::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file)
}
