//! lbctl: the operator's client of a running lbd. It parses, asks and shows; what to do is up to lbd.
#[path = "lbctl/connections.rs"]
mod connections;
#[path = "lbctl/edits.rs"]
mod edits;
#[path = "lbctl/explain.rs"]
mod explain;
#[path = "lbctl/import.rs"]
mod import;
#[path = "lbctl/ipvsadm.rs"]
mod ipvsadm;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use lbd::config::edit::Which;
use lbd::config::{self, Diagnostic};
use lbd::control::names::Names;
use lbd::control::protocol::{Data, Reply, Request, ServiceView};
use lbd::control::render::{self, Columns};
use lbd::control::selector::Selector;
use lbd::control::{DEFAULT_SOCKET, client};
use lbd::export;
use lbd::policy::Mode;
use lbd::whole_file::WholeFile;

/// Shows and changes what a running lbd does.
#[derive(Parser)]
#[command(name = "lbctl", version, arg_required_else_help = true)]
struct Cli {
    /// The control socket of lbd
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Ask(Ask),
    /// Flows, as `ipvsadm -Lc`
    Connections(connections::Connections),
    /// Turn what another program saved into a configuration, printed as TOML
    #[command(subcommand)]
    Import(import::Import),
    /// The ipvsadm command line: same options, same output, for NAT (-m) services
    #[command(disable_help_flag = true)]
    Ipvsadm {
        /// As of ipvsadm(8)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<OsString>,
    },
}

/// What takes one request and one reply.
#[derive(Subcommand)]
enum Ask {
    /// How lbd is doing
    Status(Json),
    /// Services and their backends, as `ipvsadm -L`
    List(List),
    /// The rules of iptables mode in order, with packet and byte counts
    Rules(Rules),
    /// Every reason why packets were dropped, refused or passed, with its count
    Drops(Json),
    /// What would happen to a packet now, step by step; nothing is changed
    Explain(explain::Explain),
    /// Show the mode, or switch to another; no flow is lost
    Mode(ModeArgs),
    /// Read the configuration file again: all of it, or nothing if it has errors
    Reload,
    /// Print the running configuration as TOML
    Save(Save),
    /// Add, edit or delete a service while lbd runs
    #[command(subcommand)]
    Service(edits::Service),
    /// Add, edit, delete or drain a backend while lbd runs
    #[command(subcommand)]
    Backend(edits::Backend),
    /// Show the timeouts of idle flows, or set them while lbd runs
    Timeouts(edits::Timeouts),
    /// Count traffic from zero again
    Zero {
        /// Only of this service: its name, or one of its ADDRESS:PORT
        service: Option<String>,
    },
}

#[derive(Args)]
struct Json {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct List {
    /// Only this service: its name, or one of its ADDRESS:PORT
    service: Option<String>,
    /// Show addresses and ports as numbers
    #[arg(short, long)]
    numeric: bool,
    /// Show connections, packets and bytes so far
    #[arg(long, conflicts_with = "rate")]
    stats: bool,
    /// Show connections, packets and bytes a second
    #[arg(long)]
    rate: bool,
    #[command(flatten)]
    json: Json,
}

#[derive(Args)]
struct Rules {
    /// How to print them
    #[arg(long, value_enum, default_value_t = RulesFormat::Table, conflicts_with = "json")]
    format: RulesFormat,
    #[command(flatten)]
    json: Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RulesFormat {
    /// With packet and byte counts, as `iptables -L -v`
    Table,
    /// The chains that kube-proxy would have written for the running configuration
    IptablesSave,
}

#[derive(Args)]
struct ModeArgs {
    /// Switch to this mode
    #[arg(conflicts_with = "json")]
    mode: Option<ModeWord>,
    #[command(flatten)]
    json: Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeWord {
    Ipvs,
    Iptables,
}

#[derive(Args)]
struct Save {
    /// Write to this file, all or nothing, instead of standard output; a pipe or device is written to
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    if ipvsadm::is_called() {
        return ipvsadm::main();
    }
    let Cli { socket, command } = Cli::parse();
    let shown = match command {
        Command::Ipvsadm { arguments } => return ipvsadm::run(&socket, "ipvsadm", &arguments),
        Command::Import(import) => return import.run(),
        Command::Connections(connections) => connections.run(&socket),
        Command::Ask(ask) => run(&socket, &ask).and_then(|text| Ok(print(&mut io::stdout().lock(), &text)?)),
    };
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where not even standard error works, the exit code still says it.
            print(&mut io::stderr().lock(), &format!("{error}\n")).ok();
            ExitCode::FAILURE
        }
    }
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(to: &mut impl Write, text: &str) -> io::Result<()> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// What is to be printed.
fn run(socket: &Path, ask: &Ask) -> Outcome<String> {
    let data = match client::ask(socket, &request(ask))? {
        Reply::Ok(data) => data,
        Reply::Err { message, .. } => return Err(message.trim_end().into()),
    };
    show(ask, data)
}

fn request(command: &Ask) -> Request {
    match command {
        Ask::Status(_) => Request::Status,
        Ask::List(List { service, .. }) => Request::List {
            service: service.clone(),
        },
        Ask::Rules(Rules { format, .. }) => match format {
            RulesFormat::Table => Request::Rules,
            // The configuration has all that the chains are made of.
            RulesFormat::IptablesSave => Request::Save,
        },
        Ask::Drops(_) => Request::Drops,
        Ask::Explain(explain) => explain.request(),
        Ask::Mode(ModeArgs { mode, .. }) => match mode {
            None => Request::Mode,
            Some(ModeWord::Ipvs) => Request::SwitchMode { mode: Mode::Ipvs },
            Some(ModeWord::Iptables) => Request::SwitchMode { mode: Mode::Iptables },
        },
        Ask::Reload => Request::Reload,
        Ask::Save(_) => Request::Save,
        Ask::Service(service) => service.request(),
        Ask::Backend(backend) => backend.request(),
        Ask::Timeouts(timeouts) => timeouts.request(),
        Ask::Zero { service } => Request::Zero {
            service: service.clone().map(Which::Named),
        },
    }
}

fn show(command: &Ask, data: Data) -> Outcome<String> {
    match (command, data) {
        (Ask::Status(args), Data::Status(status)) if args.json => json(&status),
        (Ask::Status(_), Data::Status(status)) => Ok(render::status(&status)),
        (Ask::List(args), data @ Data::Services(_)) if args.json.json => json(&data),
        (Ask::List(args), Data::Services(services)) => Ok(list(args, &services)),
        (Ask::Rules(_), Data::Configuration(toml)) => iptables_save(&toml),
        (Ask::Rules(args), data @ Data::Rules(_)) if args.json.json => json(&data),
        (Ask::Rules(_), Data::Rules(rules)) => Ok(render::rules(&rules)),
        (Ask::Drops(args), Data::Drops(drops)) if args.json => json(&drops.by_verdict()),
        (Ask::Drops(_), Data::Drops(drops)) => Ok(render::drops(&drops)),
        (Ask::Explain(args), Data::Explanation(told)) if args.json.json => json(&told),
        (Ask::Explain(_), Data::Explanation(told)) => Ok(render::explain(&told)),
        (Ask::Mode(args), data @ Data::Mode(_)) if args.json.json => json(&data),
        (Ask::Mode(_), Data::Mode(mode)) => Ok(format!("{}\n", mode.name())),
        (Ask::Backend(edits::Backend::Drain { json: args, .. }), data @ Data::Drains(_)) if args.json => json(&data),
        (Ask::Backend(_), Data::Drains(drains)) => Ok(render::drains(&drains)),
        (Ask::Timeouts(args), data @ Data::Timeouts(_)) if args.json.json => json(&data),
        (Ask::Timeouts(_), Data::Timeouts(timeouts)) => Ok(render::timeouts(&timeouts)),
        (
            Ask::Mode(_) | Ask::Reload | Ask::Service(_) | Ask::Backend(_) | Ask::Timeouts(_) | Ask::Zero { .. },
            Data::Message(message),
        ) => Ok(format!("{}\n", message.trim_end())),
        (Ask::Save(args), Data::Configuration(toml)) => save(args, toml),
        (_, data) => Err(format!(
            "lbd answered something else than was asked for: {}: use the lbctl that came with it",
            json(&data)?.trim_end()
        )
        .into()),
    }
}

fn iptables_save(toml: &str) -> Outcome<String> {
    let told = |errors: Vec<Diagnostic>| errors.iter().map(|error| format!("{error}\n")).collect::<String>();
    let loaded = config::parse("the running configuration", toml).map_err(told)?;
    Ok(export::iptables_save::export(&loaded.config).text)
}

fn json(value: &impl Serialize) -> Outcome<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

fn list(args: &List, services: &[ServiceView]) -> String {
    let columns = match (args.stats, args.rate) {
        (true, _) => Columns::Stats,
        (false, true) => Columns::Rate,
        (false, false) => Columns::Load,
    };
    let names = if args.numeric {
        Names::numeric()
    } else {
        Names::look_up(services.iter().flat_map(|service| {
            let backends = service.backends.iter().map(|backend| backend.address);
            let all = service.addresses.iter().copied().chain(backends);
            all.map(|endpoint| (service.protocol, endpoint))
        }))
    };
    let only = args.service.as_deref().map(Selector::new);
    render::list(services, only.as_ref(), columns, &names)
}

fn save(args: &Save, toml: String) -> Outcome<String> {
    let text = if args.json.json {
        json(&toml::from_str::<toml::Value>(&toml)?)?
    } else {
        toml
    };
    let Some(file) = &args.output else {
        return Ok(text);
    };
    replace(file, &text).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    Ok(String::new())
}

/// Whoever reads `file` meanwhile, or after a crash, finds the old text or the new one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let mut whole = WholeFile::create(file)?;
    whole.write_all(text.as_bytes())?;
    whole.publish_synced()
}
