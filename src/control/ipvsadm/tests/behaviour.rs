//! reference/behaviour.json, what a real kernel did with live connections, repeated in virtual time.
//!
//! Each with the settings that stand for the recorded sysctls (`Case::as_the_kernel`). What is different on purpose:
//! - With `expire_nodest_conn=1` the kernel forgets flows at once, lbd when both sides have been told.
//! - A template that lost its server is replaced, while the kernel keeps it with port 65535 until its time is over.
//! - Flows of a deleted service: the recording host had the virtual address itself, and its own stack reset them.
use std::time::Duration;

use serde_json::Value;

use super::lab::{Answer, Lab, Tcp};
use super::reference;
use lbd_core::policy::{Conntrack, OnBackendRemoved};
use lbd_core::verdict::Verdict;
use lbd_testkit::packets::{ACK, RST, endpoints, tcp};

const VIP: &str = "10.9.9.9:80";

struct Case {
    lab: Lab,
    sysctls: Value,
    steps: Vec<Value>,
    step: usize,
}

/// The recorded case of this name, with its service and servers 1 and 2; None where there are no recordings.
fn case(name: &str) -> Option<Case> {
    let recording: Value = serde_json::from_str(&reference("behaviour.json")?).unwrap();
    let cases = recording["cases"].as_array().unwrap();
    let recorded = cases
        .iter()
        .find(|case| case["case"] == name)
        .unwrap_or_else(|| panic!("{name}"));
    let word = |key: &str| recorded[key].as_str().unwrap().to_owned();
    let mut lab = Lab::new();
    lab.ok(&format!("-A -t {VIP} -s {} {}", word("scheduler"), word("options")));
    for server in [1, 2] {
        lab.ok(&format!("-a -t {VIP} -r 10.2.{server}.2:80 -m"));
    }
    let mut case = Case {
        lab,
        sysctls: recorded["sysctl"].clone(),
        steps: recorded["steps"].as_array().unwrap().clone(),
        step: 0,
    };
    case.as_the_kernel();
    Some(case)
}

impl Case {
    /// What was observed in the next step, whose text must hold `about`: one line each, without times.
    fn observed(&mut self, about: &str) -> Vec<String> {
        let step = &self.steps[self.step];
        assert!(step["step"].as_str().unwrap().contains(about), "{step}");
        self.step += 1;
        let lines = match &step["observed"] {
            Value::String(line) => vec![line.clone()],
            other => other
                .as_array()
                .unwrap()
                .iter()
                .map(|line| line.as_str().unwrap().to_owned())
                .collect(),
        };
        let mut lines: Vec<String> = lines.iter().map(|line| timeless(line)).collect();
        if lines
            .iter()
            .any(|line| line.starts_with("TCP 10.1") || line.starts_with("TCP ES"))
        {
            lines.sort();
        }
        lines
    }

    fn skip(&mut self, about: &str) {
        self.observed(about);
    }

    /// Connections from ports 40000 and 40001.
    fn two(&mut self) -> [Tcp; 2] {
        [40_000, 40_001].map(|port| self.lab.connect(&client(port), VIP).unwrap())
    }

    fn visits(&mut self, first: u16, count: u16) -> Vec<String> {
        let ports = first..first + count;
        ports.map(|port| told(&self.lab.visit(&client(port), VIP))).collect()
    }

    fn flows(&mut self) -> Vec<String> {
        let mut flows: Vec<String> = self.lab.flows().iter().map(|line| timeless(line)).collect();
        flows.sort();
        flows
    }

    fn on_removed(&mut self, rule: OnBackendRemoved) {
        self.settings(|conntrack| conntrack.on_backend_removed = Some(rule));
    }

    fn settings(&mut self, change: impl FnOnce(&mut Conntrack)) {
        let mut config = self.lab.config().clone();
        change(&mut config.policy.conntrack);
        self.lab.put(config);
    }

    /// What lbd calls the kernel's sysctls: its defaults, and those that were recorded with the case.
    fn as_the_kernel(&mut self) {
        let sysctl = |name: &str, default| self.sysctls[name].as_u64().unwrap_or(default);
        let (nodest, template) = (sysctl("expire_nodest_conn", 0), sysctl("expire_quiescent_template", 0));
        let reuse = sysctl("conn_reuse_mode", 1);
        self.settings(|conntrack| {
            conntrack.on_backend_removed = Some(match nodest {
                0 => OnBackendRemoved::Drop,
                _ => OnBackendRemoved::Reset,
            });
            conntrack.expire_quiescent_template = template != 0;
            conntrack.conn_reuse = reuse != 0;
        });
    }

    fn edit(&mut self, server: u8, options: &str) {
        self.lab.ok(&format!("-e -t {VIP} -r 10.2.{server}.2:80 -m {options}"));
    }

    fn delete(&mut self, server: u8) {
        self.lab.ok(&format!("-d -t {VIP} -r 10.2.{server}.2:80"));
    }

    /// A connection where server 1 answers each SYN with RST.
    fn visit_where_1_refuses(&mut self, port: u16) -> String {
        let server = self.lab.open(&client(port), VIP);
        if server.to_string() != "10.2.1.2:80" {
            return told(&self.lab.visit(&client(port), VIP));
        }
        let (verdict, answer) = self.lab.send(&tcp(server, client(port), RST | ACK, 0, 2, &[]));
        assert_eq!(verdict, Verdict::Forward);
        assert_eq!(
            endpoints(&answer),
            (VIP.parse().unwrap(), client(port).parse().unwrap())
        );
        told(&Answer::Refused)
    }

    fn talk(&mut self, flow: &Tcp) -> String {
        told(&self.lab.exchange(flow, 1, 1))
    }
}

fn client(port: u16) -> String {
    format!("10.1.0.2:{port}")
}

/// Without how long it took, and without the time that is left of a flow.
fn timeless(line: &str) -> String {
    let line = line.split(" after ").next().unwrap_or(line);
    match line.strip_prefix("TCP ").and_then(|rest| rest.split_once(' ')) {
        Some((time, rest)) if time.contains(':') && !time.contains('.') => format!("TCP {rest}"),
        Some(_) | None => line.to_owned(),
    }
}

fn told(answer: &Answer) -> String {
    match answer {
        Answer::From(server) => {
            let text = server.ip().to_string();
            format!("answered by server {}", text.split('.').nth(2).unwrap())
        }
        Answer::Refused => "ConnectionRefusedError errno 111".to_owned(),
        Answer::Silence => "TimeoutError".to_owned(),
    }
}

#[test]
fn a_deleted_server_keeps_its_flows_and_finds_them_again_when_it_returns() {
    let Some(mut case) = case("delete a server (defaults: expire_nodest_conn=0)") else {
        return;
    };
    let flows = case.two();
    assert_eq!(case.flows(), case.observed("two connections"));
    case.delete(1);
    assert_eq!(case.lab.table(), case.observed("-d ..."));
    assert_eq!(case.flows(), case.observed("-Lnc"));
    assert_eq!([case.talk(&flows[1])], case.observed("deleted server 1, data sent")[..]);
    assert_eq!([case.talk(&flows[0])], case.observed("server 2, data sent")[..]);
    assert_eq!(case.visits(41_000, 4), case.observed("4 new"));
    assert_eq!(case.flows(), case.observed("-Lnc"));
    case.lab.ok("-a -t 10.9.9.9:80 -r 10.2.1.2:80 -m");
    assert_eq!(case.lab.table(), case.observed("added again"));
    assert_eq!([case.talk(&flows[1])], case.observed("first connection")[..]);
    assert_eq!(case.lab.table(), case.observed("-Ln"));
}

#[test]
fn with_reset_the_flows_of_a_deleted_server_end_as_with_expire_nodest_conn() {
    let Some(mut case) = case("delete a server, expire_nodest_conn=1") else {
        return;
    };
    let flows = case.two();
    assert_eq!(case.flows(), case.observed("two connections"));
    case.delete(1);
    assert_eq!(case.lab.table(), case.observed("-d ..."));
    case.skip("-Lnc");
    assert!(case.observed("deleted server 1")[0].starts_with("ConnectionResetError"));
    assert_eq!(case.lab.exchange(&flows[1], 1, 1), Answer::Refused);
    assert_eq!([case.talk(&flows[0])], case.observed("server 2, data sent")[..]);
    case.lab.pass(Duration::from_secs(11));
    assert_eq!(case.visits(41_000, 4), case.observed("4 new"));
    assert_eq!(case.flows(), case.observed("-Lnc"));
    case.lab.ok("-a -t 10.9.9.9:80 -r 10.2.1.2:80 -m");
    assert_eq!(case.lab.table(), case.observed("added again"));
    case.skip("first connection, data sent again");
    assert_eq!(case.lab.table(), case.observed("-Ln"));
}

#[test]
fn a_server_of_weight_0_keeps_its_flows_and_gets_no_new_one() {
    for scheduler in ["rr", "wrr", "lc", "wlc", "sed"] {
        let Some(mut case) = case(&format!("weight 0, scheduler {scheduler}")) else {
            return;
        };
        let [second, first] = case.two();
        case.skip("two connections");
        case.edit(1, "-w 0");
        assert_eq!(case.lab.table(), case.observed("server 1 set to weight 0"));
        assert_eq!([case.talk(&first)], case.observed("to server 1")[..]);
        assert_eq!([case.talk(&second)], case.observed("to server 2")[..]);
        assert_eq!(case.visits(41_000, 6), case.observed("6 new"));
        case.edit(2, "-w 0");
        let both = [case.talk(&first), case.talk(&second)];
        assert_eq!(both, case.observed("server 2 set to weight 0")[..]);
        assert_eq!(case.visits(42_000, 2), case.observed("all weights 0"));
        case.delete(1);
        case.delete(2);
        assert_eq!(case.visits(43_000, 2), case.observed("without servers"));
    }
}

#[test]
fn hashed_clients_of_a_server_of_weight_0_are_refused_until_it_is_deleted() {
    let schedulers = ["sh", "sh -b sh-fallback", "dh", "mh", "fo"];
    for scheduler in schedulers {
        let Some(mut case) = case(&format!("weight 0 then delete, scheduler {scheduler}")) else {
            return;
        };
        let flow = case.lab.connect(&client(40_000), VIP).unwrap();
        let server = case.observed("first connection")[0]
            .replace("server ", "")
            .parse()
            .unwrap();
        assert_eq!(flow.server.to_string(), format!("10.2.{server}.2:80"), "{scheduler}");
        case.edit(server, "-w 0");
        assert_eq!([case.talk(&flow)], case.observed("set to weight 0")[..]);
        assert_eq!(case.visits(41_000, 3), case.observed("3 new"), "{scheduler}");
        case.delete(server);
        assert_eq!(case.visits(42_000, 3), case.observed("deleted"), "{scheduler}");
    }
}

#[test]
fn flows_are_still_there_after_their_service_is_deleted_or_the_table_cleared() {
    let commands = [
        ("delete the service", "-D -t 10.9.9.9:80"),
        ("delete the service, expire_nodest_conn=1", "-D -t 10.9.9.9:80"),
        ("clear the table", "-C"),
    ];
    for (name, command) in commands {
        let Some(mut case) = case(name) else { return };
        case.on_removed(OnBackendRemoved::Reset);
        let flows = case.two();
        assert_eq!(case.flows(), sorted(case.observed("two connections")));
        case.lab.ok(command);
        let (flows_left, observed) = (case.flows(), sorted(case.observed("-Lnc")));
        assert_eq!(flows_left.len(), 2);
        assert!(name.ends_with("expire_nodest_conn=1") || flows_left == observed);
        let ends = case.observed("established");
        for (flow, end) in flows.iter().zip(ends) {
            assert!(end.starts_with("ConnectionResetError"));
            assert_eq!(case.lab.exchange(flow, 1, 1), Answer::Refused);
        }
        assert_eq!(case.visits(41_000, 1), ["ConnectionRefusedError errno 111"]);
    }
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

#[test]
fn a_server_that_does_not_answer_keeps_getting_its_turn_and_its_flows_count_as_active() {
    let Some(mut case) = case("no health check in the kernel: a dead server keeps getting connections") else {
        return;
    };
    case.two();
    case.skip("two connections");
    case.skip("stops answering");
    for port in 41_000..41_004 {
        match case.lab.open(&client(port), VIP).to_string().as_str() {
            "10.2.2.2:80" => drop(case.lab.visit(&client(port), VIP)),
            server => assert_eq!(server, "10.2.1.2:80"),
        }
    }
    assert_eq!(case.flows(), sorted(case.observed("-Lnc")));
    assert_eq!(case.lab.table(), case.observed("-Ln"));
    let answers: Vec<String> = (42_000..42_004).map(|port| case.visit_where_1_refuses(port)).collect();
    assert_eq!(answers, case.observed("answers with RST"));
    assert_eq!(case.flows(), sorted(case.observed("-Lnc")));
}

#[test]
fn a_client_of_a_quiesced_server_is_bound_to_another_one_or_stays_where_the_operator_wants_so() {
    for template in [" (expire_quiescent_template=0)", ", expire_quiescent_template=1"] {
        let Some(mut case) = case(&format!("persistence and weight 0{template}")) else {
            return;
        };
        let flow = case.lab.connect(&client(40_000), VIP).unwrap();
        assert_eq!(case.observed("first"), ["server 2"]);
        assert_eq!(case.visits(40_001, 3), case.observed("3 more"));
        assert_eq!(case.flows(), sorted(case.observed("-Lnc")), "the template too");
        case.edit(2, "-w 0");
        assert_eq!(case.visits(41_000, 3), case.observed("weight 0"));
        assert_eq!([case.talk(&flow)], case.observed("established")[..]);
        case.delete(2);
        assert_eq!(case.visits(42_000, 3), case.observed("deleted"));
        let mut observed = sorted(case.observed("-Lnc"));
        observed.retain(|line| !line.contains(":65535"));
        assert_eq!(case.flows(), observed);
    }
}

#[test]
fn a_port_that_is_used_again_gets_a_fresh_choice_or_the_server_it_had() {
    for mode in [0, 1, 2] {
        let Some(mut case) = case(&format!("port reuse, conn_reuse_mode={mode}")) else {
            return;
        };
        let visit = |case: &mut Case| case.visits(40_000, 1)[0].replace("answered by ", "");
        assert_eq!([visit(&mut case)], case.observed("opened and closed")[..]);
        assert_eq!(case.flows(), case.observed("-Lnc"));
        let flow = case.lab.connect(&client(40_000), VIP).unwrap();
        assert_eq!([case.talk(&flow)], case.observed("same port")[..]);
        assert_eq!(case.flows(), case.observed("-Lnc"));
        case.lab.close(&flow);
        assert_eq!(case.visits(40_000, 1), case.observed("once more"));
    }
}

#[test]
fn servers_at_their_upper_thresholds_get_no_more_flows() {
    let Some(mut case) = case("connection thresholds (-x -y)") else {
        return;
    };
    case.edit(1, "-x 2 -y 1");
    case.edit(2, "-x 3 -y 1");
    let mut open = Vec::new();
    let mut answers = Vec::new();
    for port in 40_000..40_008 {
        let flow = case.lab.connect(&client(port), VIP);
        answers.push(told(&match &flow {
            Ok(flow) => Answer::From(flow.server),
            Err(answer) => answer.clone(),
        }));
        open.extend(flow);
    }
    assert_eq!(answers, case.observed("upper thresholds"));
    let table: Vec<String> = case
        .lab
        .ok("-Ln --thresholds")
        .lines()
        .skip(3)
        .map(str::to_owned)
        .collect();
    assert_eq!(table, case.observed("--thresholds"));
    open.iter().for_each(|flow| case.lab.close(flow));
    assert_eq!(case.visits(41_000, 2), case.observed("all closed"));
}

#[test]
fn what_is_for_no_service_is_left_to_the_host() {
    let Some(mut case) = case("no service on that port") else {
        return;
    };
    assert_eq!(
        [told(&case.lab.visit(&client(40_000), "10.9.9.9:81"))],
        case.observed("without a service")[..]
    );
}
