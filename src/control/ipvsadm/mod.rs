//! The command line of ipvsadm 1.31 (ipvsadm.c), for services that forward by NAT: same options, output, messages and
//! exit codes.
//!
//! `words` splits arguments as popt does, `options` gives them their meaning, `tables` prints. What is done is
//! asked of lbd over its socket, like everything that lbctl does.
mod combinations;
pub mod import;
mod options;
mod parse;
mod tables;
mod usage;
mod words;

use crate::names::Names;
use crate::protocol::{Data, Reply, Request, ServiceView};
use combinations::Command;
use lbd_core::flow::Endpoint;
use lbd_state::config::edit::{AffinityChange, BackendFields, Edit, Mistake, ServiceFields, Which};
use options::{Options, Place};

/// What ipvsadm leaves behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// For standard output.
    pub out: String,
    /// For standard error.
    pub err: String,
    /// Exit code.
    pub code: u8,
}

/// What ends the program at once (`fail` of ipvsadm.c).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    /// Bad usage.
    fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 2,
            message: message.into(),
        }
    }

    fn try_help(program: &str) -> Self {
        Self {
            code: FAILED,
            message: format!("Try `{program} -h' or '{program} --help' for more information."),
        }
    }
}

/// A result of -1 of a `main`.
const FAILED: u8 = 255;

/// Runs `ipvsadm`: `program` is the name it was called by, `input` what it can read, `ask` sends a request to lbd.
pub fn run(
    program: &str,
    arguments: &[String],
    input: impl FnOnce() -> std::io::Result<String>,
    ask: &mut dyn FnMut(&Request) -> Result<Reply, String>,
) -> Output {
    let mut session = Session {
        program,
        ask,
        output: Output::default(),
        batch: Vec::new(),
    };
    let list: [String; 1] = ["-L".to_owned()];
    let arguments = if arguments.is_empty() { &list } else { arguments };
    let ended = session.top(arguments, input).and_then(|()| session.flush());
    if let Err(Exit { code, message }) = ended {
        // What was read before the mistake has been done, as by the real one.
        let flushed = session.flush();
        for message in [flushed.err().map(|exit| exit.message), Some(message)]
            .into_iter()
            .flatten()
        {
            session.output.err += &format!("{message}\n");
        }
        session.output.code = code;
    }
    session.output
}

/// So that a request stays far below the megabyte that lbd reads.
const MOST_EDITS: usize = 1000;

/// An edit that waits to be sent with others, and the function of libipvs that it stands for.
type Waiting = (Edit, Function);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    AddService,
    /// Update, delete or zero.
    Service,
    AddDestination,
    /// Update or delete.
    Destination,
    Other,
}

impl Function {
    /// `ipvs_strerror` of libipvs.c; None where lbd's own words say more.
    const fn message(self, mistake: Mistake) -> Option<&'static str> {
        match (mistake, self) {
            (Mistake::ServiceExists, _) => Some("Service already exists"),
            (Mistake::NoSuchService, Self::AddDestination | Self::Destination) => Some("Service not defined"),
            (Mistake::NoSuchService, Self::AddService | Self::Service | Self::Other) => Some("No such service"),
            (Mistake::BackendExists, _) => Some("Destination already exists"),
            (Mistake::NoSuchBackend, _) => Some("No such destination"),
            (Mistake::Invalid, _) => None,
        }
    }
}

/// `strerror(ERANGE)`: `ip_vs_add_dest` wants no lower threshold above the upper one.
const OUT_OF_RANGE: &str = "Numerical result out of range";
const NO_SCHEDULER: &str = "Scheduler or persistence engine not found";

struct Session<'a> {
    program: &'a str,
    ask: &'a mut dyn FnMut(&Request) -> Result<Reply, String>,
    output: Output,
    batch: Vec<Waiting>,
}

impl Session<'_> {
    fn top(&mut self, arguments: &[String], input: impl FnOnce() -> std::io::Result<String>) -> Result<(), Exit> {
        let options = Options::parse(self.program, arguments)?;
        if options.command != Command::Restore {
            return self.command(&options);
        }
        let text = input().map_err(|error| Exit::usage(format!("cannot read standard input: {error}")))?;
        for line in text.split('\n') {
            let words = line.split([' ', '\t', '\r']);
            let words: Vec<String> = words
                .filter(|word| !word.is_empty() && *word != "ipvsadm")
                .map(str::to_owned)
                .collect();
            if words.is_empty() {
                continue;
            }
            // The exit code is that of the last line.
            self.output.code = 0;
            let options = Options::parse(self.program, &words)?;
            self.command(&options)?;
        }
        Ok(())
    }

    fn command(&mut self, options: &Options) -> Result<(), Exit> {
        match options.command {
            Command::Help => self.output.out += &usage::help(self.program),
            Command::Version => self.output.out += usage::VERSION,
            Command::List => return self.list(options),
            Command::Save => {
                let services = self.services()?;
                self.output.out += &tables::rules(&services, &options.names(&services));
            }
            Command::Clear => self.later(Edit::Clear, Function::Other),
            Command::AddService | Command::EditService => return self.put_service(options),
            Command::DeleteService => return self.delete_service(options),
            Command::AddServer | Command::EditServer => return self.put_server(options),
            Command::DeleteServer => {
                let (service, address) = self.server(options);
                self.later_at(service, Function::Destination, |service| Edit::DeleteBackend {
                    service,
                    address,
                })?;
            }
            Command::Zero => return self.zero(options),
            Command::Set([tcp, tcp_fin, udp]) => {
                let given = |seconds: u32| (seconds != 0).then_some(u64::from(seconds));
                let (tcp, tcp_fin, udp) = (given(tcp), given(tcp_fin), given(udp));
                self.later(Edit::Timeouts { tcp, tcp_fin, udp }, Function::Other);
            }
            Command::StartDaemon => {
                let message = "lbd does not send its connections to other hosts: --start-daemon is not supported";
                return Err(Exit::usage(message));
            }
            Command::StopDaemon => {
                self.flush()?;
                self.failed("No daemon is running");
            }
            // Within itself; see `top`.
            Command::Restore => return Err(Exit::try_help(self.program)),
        }
        Ok(())
    }

    fn list(&mut self, options: &Options) -> Result<(), Exit> {
        options.check_list()?;
        if options.lists_connections() {
            let data = self.ask(&Request::Connections { service: None })?;
            let Data::Connections(flows) = data else {
                return Err(surprise(&data));
            };
            let names = options.names_of_flows(&flows);
            self.output.out += &tables::connections(&flows, &names, options.format);
        } else if let Some(place) = options.service {
            let services = self.services()?;
            let found = place.and_then(|place| tables::find(&services, place));
            let Some((address, service)) = found else {
                let message = "No such service".to_owned();
                return Err(Exit { code: 1, message });
            };
            let names = options.names(&services);
            self.output.out += &tables::one(address, service, &names, options.format);
        } else if options.lists_timeouts() {
            let data = self.ask(&Request::Timeouts)?;
            let Data::Timeouts(timeouts) = data else {
                return Err(surprise(&data));
            };
            self.output.out += &tables::timeouts(&timeouts);
        } else if !options.lists_daemons() {
            let services = self.services()?;
            self.output.out += &tables::all(&services, &options.names(&services), options.format);
        }
        Ok(())
    }

    fn put_service(&mut self, options: &Options) -> Result<(), Exit> {
        let adds = options.command == Command::AddService;
        let function = if adds { Function::AddService } else { Function::Service };
        let Some(place) = options.place() else {
            return Err(no_mark(adds));
        };
        let Some(scheduler) = options.scheduler.parse().ok().filter(|_| !options.has_engine) else {
            let known = self.is_there(place)?;
            let message = match (known, adds) {
                (true, true) => "Service already exists",
                (false, false) => "No such service",
                (true, false) | (false, true) => NO_SCHEDULER,
            };
            self.failed(message);
            return Ok(());
        };
        let affinity = |(timeout, prefix_length)| AffinityChange::On {
            timeout_seconds: u64::from(timeout),
            prefix_length: Some(prefix_length),
        };
        let (protocol, address) = place;
        let fields = ServiceFields {
            protocol: Some(protocol),
            address: adds.then_some(address),
            scheduler: Some(scheduler),
            flags: Some(options.flag_words(scheduler)?),
            persistence: Some(options.persistence()?.map_or(AffinityChange::Off, affinity)),
            ..ServiceFields::default()
        };
        match adds {
            true => self.later(Edit::AddService { fields }, function),
            false => {
                let edit = |service| Edit::EditService { service, fields };
                return self.later_at(Some(place), function, edit);
            }
        }
        Ok(())
    }

    fn delete_service(&mut self, options: &Options) -> Result<(), Exit> {
        let services = self.services()?;
        if let Some((_, service)) = options.place().and_then(|place| tables::find(&services, place))
            && service.addresses.len() > 1
        {
            let name = &service.name;
            let addresses: Vec<String> = service.addresses.iter().map(Endpoint::to_string).collect();
            self.failed(&format!(
                "service {name:?} answers on {} in lbd: delete them all with `lbctl service delete`",
                addresses.join(", ")
            ));
            return Ok(());
        }
        self.later_at(options.place(), Function::Service, |service| Edit::DeleteService {
            service,
        })
    }

    fn put_server(&mut self, options: &Options) -> Result<(), Exit> {
        options.check_forwarding()?;
        let (service, address) = self.server(options);
        let function = match options.command == Command::AddServer {
            true => Function::AddDestination,
            false => Function::Destination,
        };
        if options.lower_threshold > options.upper_threshold {
            let known = match service {
                Some(place) => self.is_there(place)?,
                None => false,
            };
            self.failed(if known { OUT_OF_RANGE } else { "Service not defined" });
            return Ok(());
        }
        let fields = BackendFields {
            weight: Some(options.weight),
            upper_threshold: Some(options.upper_threshold),
            lower_threshold: Some(options.lower_threshold),
        };
        let adds = function == Function::AddDestination;
        self.later_at(service, function, |service| match adds {
            true => Edit::AddBackend {
                service,
                address,
                fields,
                // `ip_vs_add_dest` puts it at the head of the list.
                first: true,
            },
            false => Edit::EditBackend {
                service,
                address,
                fields,
            },
        })
    }

    fn server(&self, options: &Options) -> (Option<Place>, Endpoint) {
        (options.place(), options.server)
    }

    fn zero(&mut self, options: &Options) -> Result<(), Exit> {
        self.flush()?;
        let service = match options.service {
            None => None,
            Some(None) => {
                self.failed("No such service");
                return Ok(());
            }
            Some(Some((protocol, address))) => Some(Which::At { protocol, address }),
        };
        match (self.ask)(&Request::Zero { service }).map_err(Exit::usage)? {
            Reply::Ok(_) => {}
            Reply::Err { message, mistake } => self.refused(Function::Service, mistake, &message),
        }
        Ok(())
    }

    /// Has an edit of a service wait; there is none with a firewall mark.
    fn later_at(
        &mut self,
        place: Option<Place>,
        function: Function,
        edit: impl FnOnce(Which) -> Edit,
    ) -> Result<(), Exit> {
        match place {
            Some((protocol, address)) => self.later(edit(Which::At { protocol, address }), function),
            None => {
                self.flush()?;
                self.failed(function.message(Mistake::NoSuchService).unwrap_or_default());
            }
        }
        Ok(())
    }

    fn later(&mut self, edit: Edit, function: Function) {
        self.batch.push((edit, function));
    }

    /// Sends what waits, in few requests.
    fn flush(&mut self) -> Result<(), Exit> {
        let batch = std::mem::take(&mut self.batch);
        batch.chunks(MOST_EDITS).try_for_each(|part| self.send(part))
    }

    /// All at once, and one by one where that fails, since ipvsadm does what it can.
    fn send(&mut self, part: &[Waiting]) -> Result<(), Exit> {
        let edits = part.iter().map(|(edit, _)| edit.clone()).collect();
        match (self.ask)(&Request::Edit { edits }).map_err(Exit::usage)? {
            Reply::Ok(_) => {
                self.output.code = 0;
                Ok(())
            }
            Reply::Err { message, mistake } if part.len() == 1 => {
                self.refused(part[0].1, mistake, &message);
                Ok(())
            }
            Reply::Err { .. } => part.chunks(1).try_for_each(|edit| self.send(edit)),
        }
    }

    fn refused(&mut self, function: Function, mistake: Option<Mistake>, message: &str) {
        let known = mistake.and_then(|mistake| function.message(mistake));
        self.failed(known.unwrap_or(message));
    }

    fn failed(&mut self, message: &str) {
        self.output.err += &format!("{message}\n");
        self.output.code = FAILED;
    }

    fn is_there(&mut self, place: Place) -> Result<bool, Exit> {
        let services = self.services()?;
        Ok(tables::find(&services, place).is_some())
    }

    fn services(&mut self) -> Result<Vec<ServiceView>, Exit> {
        let data = self.ask(&Request::List { service: None })?;
        let Data::Services(services) = data else {
            return Err(surprise(&data));
        };
        Ok(services)
    }

    /// Asks for something to show, after everything that waits was done.
    fn ask(&mut self, request: &Request) -> Result<Data, Exit> {
        self.flush()?;
        match (self.ask)(request).map_err(Exit::usage)? {
            Reply::Ok(data) => Ok(data),
            Reply::Err { message, .. } => Err(Exit { code: 1, message }),
        }
    }
}

fn surprise(data: &Data) -> Exit {
    Exit::usage(format!(
        "lbd answered something else than was asked for: {data:?}: use the lbctl that came with it"
    ))
}

fn no_mark(adds: bool) -> Exit {
    match adds {
        true => Exit::usage(
            "lbd does not see firewall marks: -f is not supported; give an address with -t or -u, port 0 for all ports",
        ),
        false => Exit {
            code: FAILED,
            message: "No such service".to_owned(),
        },
    }
}

impl Options {
    fn names(&self, services: &[ServiceView]) -> Names {
        if self.is_numeric() {
            return Names::numeric();
        }
        Names::look_up(services.iter().flat_map(|service| {
            let backends = service.backends.iter().map(|backend| backend.address);
            let all = service.addresses.iter().copied().chain(backends);
            all.map(|endpoint| (service.protocol, endpoint))
        }))
    }

    fn names_of_flows(&self, flows: &[crate::protocol::ConnectionView]) -> Names {
        if self.is_numeric() {
            return Names::numeric();
        }
        Names::look_up(flows.iter().flat_map(|flow| {
            let ends = [flow.client, flow.virtual_address, flow.backend];
            ends.map(|endpoint| (flow.protocol, endpoint))
        }))
    }
}

#[cfg(test)]
mod tests;
