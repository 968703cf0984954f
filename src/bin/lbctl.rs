//! lbctl: the operator's client of a running lbd. It parses, asks and shows; what to do is up to lbd.
use std::error::Error;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use lbd::control::names::Names;
use lbd::control::protocol::{ConnectionView, Data, Reply, Request, ServiceView};
use lbd::control::render::{self, Columns};
use lbd::control::selector::Selector;
use lbd::control::{DEFAULT_SOCKET, client};
use lbd::policy::Mode;

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
    /// How lbd is doing
    Status(Json),
    /// Services and their backends, as `ipvsadm -L`
    List(List),
    /// Flows, as `ipvsadm -Lc`
    Connections(Connections),
    /// The rules of iptables mode in order, with packet and byte counts
    Rules(Json),
    /// Every reason why packets were dropped, refused or passed, with its count
    Drops(Json),
    /// Show the mode, or switch to another; no flow is lost
    Mode(ModeArgs),
    /// Read the configuration file again: all of it, or nothing if it has errors
    Reload,
    /// Print the running configuration as TOML
    Save(Save),
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
struct Connections {
    /// Only flows of this service: its name, or one of its ADDRESS:PORT
    service: Option<String>,
    /// Show addresses and ports as numbers
    #[arg(short, long)]
    numeric: bool,
    #[command(flatten)]
    json: Json,
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
    /// Write to this file, all or nothing, instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let shown = run(&cli).and_then(|text| Ok(print(&mut io::stdout().lock(), &text)?));
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
fn run(cli: &Cli) -> Outcome<String> {
    let data = match client::ask(&cli.socket, &request(&cli.command))? {
        Reply::Ok(data) => data,
        Reply::Err { message } => return Err(message.trim_end().into()),
    };
    show(&cli.command, data)
}

fn request(command: &Command) -> Request {
    match command {
        Command::Status(_) => Request::Status,
        Command::List(List { service, .. }) => Request::List {
            service: service.clone(),
        },
        Command::Connections(Connections { service, .. }) => Request::Connections {
            service: service.clone(),
        },
        Command::Rules(_) => Request::Rules,
        Command::Drops(_) => Request::Drops,
        Command::Mode(ModeArgs { mode, .. }) => match mode {
            None => Request::Mode,
            Some(ModeWord::Ipvs) => Request::SwitchMode { mode: Mode::Ipvs },
            Some(ModeWord::Iptables) => Request::SwitchMode { mode: Mode::Iptables },
        },
        Command::Reload => Request::Reload,
        Command::Save(_) => Request::Save,
    }
}

fn show(command: &Command, data: Data) -> Outcome<String> {
    match (command, data) {
        (Command::Status(args), Data::Status(status)) if args.json => json(&status),
        (Command::Status(_), Data::Status(status)) => Ok(render::status(&status)),
        (Command::List(args), data @ Data::Services(_)) if args.json.json => json(&data),
        (Command::List(args), Data::Services(services)) => Ok(list(args, &services)),
        (Command::Connections(args), data @ Data::Connections(_)) if args.json.json => json(&data),
        (Command::Connections(args), Data::Connections(flows)) => Ok(connections(args, &flows)),
        (Command::Rules(args), data @ Data::Rules(_)) if args.json => json(&data),
        (Command::Rules(_), Data::Rules(rules)) => Ok(render::rules(&rules)),
        (Command::Drops(args), Data::Drops(drops)) if args.json => json(&drops.by_verdict()),
        (Command::Drops(_), Data::Drops(drops)) => Ok(render::drops(&drops)),
        (Command::Mode(args), data @ Data::Mode(_)) if args.json.json => json(&data),
        (Command::Mode(_), Data::Mode(mode)) => Ok(format!("{}\n", mode.name())),
        (Command::Mode(_) | Command::Reload, Data::Message(message)) => Ok(format!("{}\n", message.trim_end())),
        (Command::Save(args), Data::Configuration(toml)) => save(args, toml),
        (_, data) => Err(format!(
            "lbd answered something else than was asked for: {}: use the lbctl that came with it",
            json(&data)?.trim_end()
        )
        .into()),
    }
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

fn connections(args: &Connections, flows: &[ConnectionView]) -> String {
    let names = if args.numeric {
        Names::numeric()
    } else {
        Names::look_up(flows.iter().flat_map(|flow| {
            let ends = [flow.client, flow.virtual_address, flow.backend];
            ends.map(|endpoint| (flow.protocol, endpoint))
        }))
    };
    render::connections(flows, &names)
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

/// Whoever reads `file` meanwhile, or after a crash, finds the old text or the new one. Its mode stays; a symbolic link
/// stays one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let target = match fs::canonicalize(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => file.to_owned(),
        found => found?,
    };
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let draft = target.with_file_name(name);
    let written = write_synced(&draft, &target, text).and_then(|()| fs::rename(&draft, &target));
    if written.is_err() {
        // The error above is the one to tell.
        fs::remove_file(&draft).ok();
    }
    written
}

fn write_synced(draft: &Path, target: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::create_new(draft)?;
    if let Ok(metadata) = fs::metadata(target) {
        file.set_permissions(metadata.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
