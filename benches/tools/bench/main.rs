//! lbd against what people would pick instead, in one run: `scripts/bench` builds this and runs it in namespaces.
//!
//! Each system in turn carries the same traffic over the same veth pairs. `questions` says what is measured, `systems`
//! what is measured of, `load` makes the traffic, `report` writes what came out to `target/bench`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a tool that measures real time and shows how it goes"
)]

mod check;
mod conntrack;
mod effort;
mod limits;
mod links;
mod load;
mod machine;
mod memory;
mod plan;
mod questions;
mod report;
mod rig;
mod systems;
mod world;

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::effort::Effort;
use crate::load::serve;
use crate::machine::Machine;
use crate::plan::Stage;
use crate::questions::{Bench, Finding, Question, Sink};
use crate::report::{Record, Report};
use crate::systems::{Running, System};

/// What may go wrong here is for people to read.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Measures lbd and others side by side; see scripts/bench
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    internal: Option<Internal>,
    /// Ends within 3 minutes: one round, shorter runs, smaller sizes
    #[arg(long)]
    quick: bool,
    /// Only shows that it works; measures nothing of worth
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Rounds, each with every system in turn [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Questions, e.g. 1,3: 1 bulk, 2 datagrams, 3 connections, 4 requests, 5 changes, 6 memory [default: all]
    #[arg(long, value_delimiter = ',', value_parser = Question::numbered)]
    only: Vec<Question>,
    /// Systems, e.g. routing,iptables,lbd-tun-ipvs [default: all]
    #[arg(long, value_delimiter = ',', value_parser = System::named)]
    systems: Vec<System>,
    /// UDP frames a second where CPU time is compared [default: 100000]
    #[arg(long)]
    rate: Option<f64>,
    /// Where the results go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// Says a line to a Unix socket, and prints the answer
    #[command(hide = true)]
    Tell { socket: PathBuf, line: String },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.internal {
        Some(Internal::Tell { socket, line }) => tell_socket(socket, line),
        None => run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Shows people how it goes.
pub(crate) fn tell(line: &str) {
    eprintln!("{line}");
}

fn tell_socket(socket: &PathBuf, line: &str) -> Outcome<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    print!("{answer}");
    Ok(())
}

fn run(arguments: &Arguments) -> Outcome<()> {
    limits::raise_files();
    let effort = effort_of(arguments);
    let questions = all_or(&arguments.only, &questions::ALL);
    let wanted = all_or(&arguments.systems, &systems::ALL);
    rig::prepare()?;
    let machine = Machine::look(command_line())?;
    let mut report = Report::new(machine, effort.clone());
    let present = present(&wanted, &mut report);
    tell(&format!(
        "about {:.0} minutes: {} rounds of {} systems, questions {}",
        (plan::estimate(&effort, &questions, &present) / 60.0).ceil(),
        effort.rounds,
        present.len(),
        questions
            .iter()
            .map(|question| question.number().to_string())
            .collect::<Vec<_>>()
            .join(" "),
    ));
    let bench = Bench {
        taken: [1, 2].map(serve::start).into_iter().collect::<Outcome<_>>()?,
        sink: Sink::lay()?,
        effort,
    };
    let start = Instant::now();
    for round in 0..bench.effort.rounds {
        for stage in plan::stages(&bench.effort, &questions, round) {
            for system in plan::order(&present, round) {
                turn(&bench, &mut report, round, &stage, system);
            }
        }
        // Each round is worth having, whatever becomes of the next one.
        report.write(&arguments.out)?;
    }
    tell(&format!(
        "{:.0} s; see {}/results.md",
        start.elapsed().as_secs_f64(),
        arguments.out.display()
    ));
    println!("{}", report.markdown());
    Ok(())
}

fn effort_of(arguments: &Arguments) -> Effort {
    let mut effort = match (arguments.quick, arguments.smoke) {
        (true, _) => Effort::quick(),
        (false, true) => Effort::smoke(),
        (false, false) => Effort::full(),
    };
    effort.rounds = arguments.rounds.unwrap_or(effort.rounds);
    effort.rate = arguments.rate.unwrap_or(effort.rate);
    effort.proxied = effort.proxied.min(limits::proxied_connections());
    effort
}

fn all_or<T: Copy>(chosen: &[T], all: &[T]) -> Vec<T> {
    if chosen.is_empty() { all } else { chosen }.to_vec()
}

fn command_line() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("scripts/bench {}", arguments.join(" ")).trim().to_owned()
}

/// Those that this machine can run; the others are skipped by name.
fn present(wanted: &[System], report: &mut Report) -> Vec<System> {
    let mut present = Vec::new();
    for &system in wanted {
        match system.missing() {
            Some(why) => {
                tell(&format!("skipped: {}: {why}", system.name()));
                report.skip(system, why);
            }
            None => present.push(system),
        }
    }
    present
}

/// One system, set up once, and every question of the stage.
fn turn(bench: &Bench, report: &mut Report, round: u32, stage: &Stage, system: System) {
    let asked = stage
        .questions
        .iter()
        .filter(|question| question.is_not_for(system).is_none());
    let asked: Vec<Question> = asked.copied().collect();
    if asked.is_empty() {
        return;
    }
    let begin = Instant::now();
    let started = start(bench, system, stage);
    report.spend_around(begin.elapsed());
    match started {
        Ok(mut running) => {
            for question in asked {
                let begin = Instant::now();
                add(
                    report,
                    round,
                    question,
                    system,
                    questions::ask(question, bench, &mut running),
                );
                report.spend(question, begin.elapsed());
            }
            end(report, running);
        }
        Err(error) => {
            for question in asked {
                let finding = Finding::failed(stage.world, error.to_string());
                add(report, round, question, system, vec![finding]);
            }
        }
    }
}

fn add(report: &mut Report, round: u32, question: Question, system: System, findings: Vec<Finding>) {
    for finding in findings {
        let record = Record::new(round, question, system, finding);
        tell(&format!("round {}  {record}", round + 1));
        report.add(record);
    }
}

fn end(report: &mut Report, running: Running) {
    let begin = Instant::now();
    let name = running.system.name();
    if let Err(error) = running.stop() {
        tell(&format!("{name}: cannot be taken down: {error}"));
    }
    if let Ok(busy) = machine::strangers(Duration::from_millis(150)) {
        report.note_pause(busy);
    }
    report.spend_around(begin.elapsed());
}

fn start(bench: &Bench, system: System, stage: &Stage) -> Outcome<Running> {
    let running = Running::start(system, stage.world)?;
    match check::serves(&running, &bench.sink) {
        Ok(()) => Ok(running),
        Err(error) => {
            let log = running.program.as_ref().map(rig::Program::log).unwrap_or_default();
            running.stop().unwrap_or_default();
            let words: Vec<&str> = log.lines().rev().take(2).collect();
            Err(format!("{error} {}", words.join(" | ")).into())
        }
    }
}
