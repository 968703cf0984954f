//! lbd: arguments, logging, exit codes. Everything else is in the library; see its map.
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use lbd::config::shrinkage::warn_of_emptiness;
use lbd::config::validate::{Loaded, load};
use lbd::daemon;
use lbd::engine::Seeds;
use lbd::replay::run::Simulation;
use tracing::Level;

/// A layer-4 load balancer in user space, with the semantics of kube-proxy's iptables and IPVS modes.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    /// Log details, too, for example what the kernel's verifier says of the XDP program
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(flatten)]
    run: Run,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Serves traffic in the foreground until SIGTERM, SIGINT, SIGQUIT or SIGUSR1; SIGHUP reloads the file.
#[derive(Debug, Args)]
struct Run {
    /// The configuration file
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate a configuration: exit 0, or 1 with one line an error
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run the engine over a capture, on the capture's own clock
    Replay(Replay),
}

#[derive(Debug, Args)]
struct Replay {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where random choices begin, instead of the configuration's [datapath] seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write one JSON object a line for each input packet
    #[arg(long, value_name = "FILE")]
    verdicts: Option<PathBuf>,
    /// The capture to read: pcap or pcapng, link type RAW or EN10MB
    #[arg(value_name = "IN.pcap")]
    input: PathBuf,
    /// The capture to write
    #[arg(value_name = "OUT.pcap")]
    output: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(arguments.verbose);
    let done = match (arguments.command, arguments.run.config) {
        (Some(Command::Check { config }), _) => read(&config).map(|_valid| ()),
        (Some(Command::Replay(replay)), _) => replay.run(),
        (None, Some(config)) => serve(&config),
        (None, None) => Err("--config FILE is missing".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            say(&message);
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .log_internal_errors(false)
        .init();
}

/// Says a line on stderr, if anybody still reads it: a log pipe that ended must not end lbd.
fn say(line: &str) {
    let _unread = writeln!(std::io::stderr(), "{line}");
}

/// A valid configuration, or one line an error. Warnings are said here.
fn read(file: &Path) -> Result<Loaded, String> {
    let lines = |diagnostics: &[lbd::config::diagnostic::Diagnostic]| {
        let lines: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
        lines.join("\n")
    };
    let loaded = load(file).map_err(|errors| lines(&errors))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = warn_of_emptiness(&loaded.config) {
        tracing::warn!("{}: {warning}", file.display());
    }
    Ok(loaded)
}

fn serve(file: &Path) -> Result<(), String> {
    let failed = |error: daemon::Error| format!("lbd: {error}");
    let watch = daemon::Watch::start().map_err(failed)?;
    let loaded = read(file)?;
    daemon::run(file, loaded, watch, |ready| say(&ready.to_string())).map_err(failed)
}

impl Replay {
    fn run(&self) -> Result<(), String> {
        let mut config = read(&self.config)?.config;
        config.policy.node_addresses = config.node_addresses.unwrap_or_default();
        let seeds = Seeds {
            choices: self.seed.or(config.datapath.seed).unwrap_or(0),
            hashing: ahash::RandomState::new(),
        };
        let mut simulation = Simulation::new(config.policy, seeds);
        let verdicts = self.verdicts.as_deref();
        let summary = lbd::replay::run(&mut simulation, &self.input, &self.output, verdicts);
        tracing::info!("{}", summary.map_err(|error| error.to_string())?);
        Ok(())
    }
}
