//! Flows as they come: the table may be large, and is nowhere whole.
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::thread::JoinHandle;

use clap::Args;
use crossbeam_channel::{Sender, unbounded};

use lbd::control::client;
use lbd::control::names::{Names, Resolver};
use lbd::control::protocol::ConnectionView;
use lbd::control::render;

use super::{Json, Outcome};

/// So many flows are sorted at a time.
const RUN: usize = 1 << 16;
/// Bytes that are printed at a time.
const PIECE: usize = 1 << 16;

#[derive(Args)]
pub(super) struct Connections {
    /// Only flows of this service: its name, or one of its ADDRESS:PORT
    service: Option<String>,
    /// Show addresses and ports as numbers
    #[arg(short, long)]
    numeric: bool,
    #[command(flatten)]
    json: Json,
}

impl Connections {
    /// Asks and prints.
    pub(super) fn run(&self, socket: &Path) -> Outcome<()> {
        let mut paper = Paper::new();
        let service = self.service.as_deref();
        let told = if self.json.json {
            let mut list = List::default();
            let told = client::connections(socket, service, |flow| list.add(&flow, &mut paper));
            if matches!(told, Ok(Ok(()))) {
                list.end(&mut paper);
            }
            told
        } else {
            let mut table = Table::new(self.numeric);
            let told = client::connections(socket, service, |flow| table.add(flow, &mut paper));
            if !matches!(told, Ok(Err(_))) {
                table.end(&mut paper);
            }
            told
        };
        match paper.finish()? {
            // A reader that has seen enough (`| head`) is no failure.
            Taken::Enough => Ok(()),
            Taken::All => Ok(told?.map_err(|refusal| refusal.trim_end().to_owned())?),
        }
    }
}

/// Prints in a thread of its own: who reads page by page must not keep lbd waiting.
struct Paper {
    text: Sender<String>,
    printer: JoinHandle<io::Result<Taken>>,
    piece: String,
    is_torn: bool,
}

enum Taken {
    All,
    Enough,
}

impl Paper {
    fn new() -> Self {
        let (text, pieces) = unbounded::<String>();
        let printer = std::thread::spawn(move || {
            let mut out = io::stdout().lock();
            let mut pieces = pieces.iter();
            let printed = pieces.try_for_each(|piece| out.write_all(piece.as_bytes()));
            match printed.and_then(|()| out.flush()) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Taken::Enough),
                printed => printed.map(|()| Taken::All),
            }
        });
        Self {
            text,
            printer,
            piece: String::new(),
            is_torn: false,
        }
    }

    fn write(&mut self, text: &str) {
        self.piece.push_str(text);
        if self.piece.len() >= PIECE {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.is_torn |= self.text.send(std::mem::take(&mut self.piece)).is_err();
    }

    fn finish(mut self) -> io::Result<Taken> {
        self.turn();
        drop(self.text);
        let printed = self.printer.join();
        printed.unwrap_or_else(|_| Err(io::Error::other("cannot print")))
    }
}

/// `{"connections":[...]}`
#[derive(Default)]
struct List {
    has_begun: bool,
}

impl List {
    /// Whether there is somebody to read more.
    fn add(&mut self, flow: &ConnectionView, paper: &mut Paper) -> bool {
        let Ok(text) = serde_json::to_string(flow) else {
            return false;
        };
        self.begin(paper, ",");
        paper.write(&text);
        !paper.is_torn
    }

    fn end(&mut self, paper: &mut Paper) {
        self.begin(paper, "");
        paper.write("]}\n");
    }

    fn begin(&mut self, paper: &mut Paper, otherwise: &str) {
        let first = "{\"connections\":[";
        paper.write(if self.has_begun { otherwise } else { first });
        self.has_begun = true;
    }
}

/// As `ipvsadm -Lc`; what does not fit into one run is sorted run by run.
struct Table {
    run: Vec<ConnectionView>,
    names: Names,
    /// None: only numbers are shown.
    resolver: Option<Resolver>,
    has_begun: bool,
}

impl Table {
    fn new(numeric: bool) -> Self {
        Self {
            run: Vec::new(),
            names: Names::numeric(),
            resolver: (!numeric).then(Resolver::system),
            has_begun: false,
        }
    }

    /// Whether there is somebody to read more.
    fn add(&mut self, flow: ConnectionView, paper: &mut Paper) -> bool {
        self.run.push(flow);
        if self.run.len() == RUN {
            self.end(paper);
        }
        !paper.is_torn
    }

    fn end(&mut self, paper: &mut Paper) {
        if !std::mem::replace(&mut self.has_begun, true) {
            paper.write(render::CONNECTIONS_TITLE);
        }
        if let Some(resolver) = &mut self.resolver {
            let endpoints = self.run.iter().flat_map(|flow| {
                let ends = [flow.client, flow.virtual_address, flow.backend];
                ends.map(|endpoint| (flow.protocol, endpoint))
            });
            self.names.learn(endpoints, resolver);
        }
        paper.write(&render::connection_rows(&self.run, &self.names));
        paper.turn();
        self.run.clear();
    }
}
