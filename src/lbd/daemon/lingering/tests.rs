use ahash::RandomState as Hasher;

use super::*;
use lbd_core::conntrack::connection::{Dialogue, State};
use lbd_core::conntrack::window::Window;
use lbd_core::engine::{Engine, Seeds};
use lbd_state::config::parse;

/// A running engine, and what is led to it.
struct Lab {
    engine: Engine,
    plan: Plan,
    lingering: Lingering,
}

fn service(name: &str, address: &str, more: &str, backends: &[&str]) -> String {
    let backends: Vec<String> = backends
        .iter()
        .map(|backend| format!("{{ address = \"{backend}\" }}"))
        .collect();
    format!(
        "[[services]]\nname = \"{name}\"\nprotocol = \"udp\"\naddress = \"{address}\"\n{more}\nbackends = [{}]\n",
        backends.join(", ")
    )
}

fn policy(text: &str) -> Policy {
    parse("test", text).unwrap().config.policy
}

fn seconds(seconds: u64) -> Instant {
    Instant::from_duration(Duration::from_secs(seconds))
}

impl Lab {
    fn of(text: &str) -> Self {
        let policy = policy(text);
        let plan = Plan::new(&policy, &[]).unwrap();
        let seeds = Seeds {
            choices: 1,
            hashing: Hasher::with_seeds(1, 2, 3, 4),
        };
        let (engine, _) = Engine::new(Arc::new(policy), 1, seeds, Instant::ZERO);
        Self {
            engine,
            plan,
            lingering: Lingering::default(),
        }
    }

    /// A flow of a client to an address by way of the first backend of a service.
    fn flow(&self, name: &str, address: &str) -> Connection {
        let ruleset = self.engine.ruleset();
        let mut services = ruleset.services.iter();
        let service = services.find(|service| service.identity.name == name).unwrap();
        let client = "192.0.2.1:4000".parse().unwrap();
        service.backends[0].bind();
        Connection {
            protocol: Protocol::Udp,
            client,
            virtual_address: address.parse().unwrap(),
            source: client,
            backend: Arc::clone(&service.backends[0].backend),
            template: None,
            state: State::Udp,
            dialogue: Dialogue::Asked,
            window: Window::default(),
            opened: Instant::ZERO,
            expires: seconds(1_000),
        }
    }

    /// As the daemon does it, but for the kernel. `text` has the services of the new policy.
    fn reload(&mut self, text: &str) {
        let (before, former) = {
            let ruleset = self.engine.ruleset();
            (ruleset.services.clone(), Arc::clone(&ruleset.policy))
        };
        let policy = Arc::new(policy(text));
        let plan = Plan::new(&policy, &[]).unwrap();
        self.engine.apply(Arc::clone(&policy));
        let services = self.engine.ruleset().services.clone();
        self.lingering.follow(&before, &services);
        let led = plan.union(&self.plan);
        let surplus = difference(&led, &Plan::new(&policy, &[]).unwrap());
        self.lingering.set(surplus, &former, &policy, &services);
        self.plan = led;
    }

    fn take_out(&mut self, gone: &Plan) {
        self.plan = difference(&self.plan, gone);
        self.lingering.forget(gone);
    }

    /// Takes out what counts tell.
    fn prune(&mut self) -> Vec<String> {
        let gone = self.lingering.unneeded();
        self.take_out(&gone);
        led(&gone)
    }
}

fn end(flow: Connection) {
    flow.backend.unbind(false);
}

/// What of a plan is a route, and what a backend.
fn led(plan: &Plan) -> Vec<String> {
    let routes = plan.routes.iter().map(ToString::to_string);
    let replies = plan.replies.iter().map(|(_, backend)| backend.to_string());
    routes.chain(replies).collect()
}

const WEB: &str = "10.96.0.10:53";
const DNS: &str = "10.96.0.53:53";

fn web() -> String {
    service("web", WEB, "", &["10.2.0.1:53"])
}

fn dns() -> String {
    service("dns", DNS, "", &["10.2.0.2:53"])
}

/// Routes to the pool are there as long as there are services.
const ALWAYS: &str = "198.18.0.0/28";

#[test]
fn what_a_removed_service_leaves_goes_at_once_whatever_flows_others_have() {
    let mut lab = Lab::of(&(web() + &dns()));
    let _flow = lab.flow("web", WEB);
    lab.reload(&web());
    assert_eq!(lab.prune(), ["10.96.0.53/32", "10.2.0.2:53"]);
    assert_eq!(led(&lab.plan), ["10.96.0.10/32", ALWAYS, "10.2.0.1:53"]);
    assert!(
        lab.lingering.query(seconds(9)).is_none(),
        "nobody looks through the flows"
    );
}

#[test]
fn what_a_flow_of_a_removed_service_needs_stays_until_it_ends() {
    let mut lab = Lab::of(&(web() + &dns()));
    let flow = lab.flow("dns", DNS);
    lab.reload(&web());
    assert!(lab.prune().is_empty());
    assert!(lab.lingering.query(seconds(9)).is_none(), "its backend counts it");
    end(flow);
    assert_eq!(lab.prune(), ["10.96.0.53/32", "10.2.0.2:53"]);
    assert!(lab.prune().is_empty(), "once");
}

#[test]
fn a_backend_that_went_before_its_service_keeps_the_address_of_its_flow() {
    let mut lab = Lab::of(&(web() + &dns()));
    let flow = lab.flow("dns", DNS);
    lab.reload(&(web() + &service("dns", DNS, "", &["10.2.0.3:53"])));
    assert!(lab.prune().is_empty());
    lab.reload(&web());
    assert_eq!(lab.prune(), ["10.2.0.3:53"]);
    end(flow);
    assert_eq!(lab.prune(), ["10.96.0.53/32", "10.2.0.2:53"]);
}

#[test]
fn an_address_that_another_service_has_had_meanwhile_stays_for_the_flow_of_the_first_one() {
    let mut lab = Lab::of(&(web() + &dns()));
    let flow = lab.flow("dns", DNS);
    lab.reload(&(web() + &service("other", DNS, "", &["10.2.0.2:53"])));
    assert!(lab.prune().is_empty());
    lab.reload(&web());
    assert!(lab.prune().is_empty(), "the first one's flow goes on");
    end(flow);
    assert_eq!(lab.prune(), ["10.96.0.53/32", "10.2.0.2:53"]);
}

#[test]
fn a_service_that_comes_back_needs_nothing_to_be_kept_for_it() {
    let mut lab = Lab::of(&(web() + &dns()));
    let flow = lab.flow("dns", DNS);
    lab.reload(&web());
    lab.reload(&(web() + &dns()));
    assert!(lab.prune().is_empty());
    end(flow);
    assert!(lab.prune().is_empty(), "it is configured");
    lab.reload(&web());
    assert_eq!(lab.prune(), ["10.96.0.53/32", "10.2.0.2:53"]);
}

const BOTH: &str = "external_addresses = [\"203.0.113.9\"]";

#[test]
fn an_address_that_a_service_loses_is_looked_for_among_the_flows() {
    let both = service("web", WEB, BOTH, &["10.2.0.1:53"]);
    let mut lab = Lab::of(&both);
    let (own, lost) = (lab.flow("web", WEB), lab.flow("web", "203.0.113.9:53"));
    lab.reload(&web());
    assert!(lab.prune().is_empty(), "counts do not tell");
    let mut query = lab.lingering.query(seconds(9)).unwrap();
    query.see(&own);
    assert!(!query.is_over());
    query.see(&lost);
    assert!(query.is_over(), "a flow needs all of it");
    assert_eq!(lab.lingering.answered(query, seconds(9), seconds(9)), Plan::default());
    let mut query = lab.lingering.query(seconds(20)).unwrap();
    query.see(&own);
    let gone = lab.lingering.answered(query, seconds(20), seconds(20));
    assert_eq!(led(&gone), ["203.0.113.9/32"]);
    lab.take_out(&gone);
    assert!(lab.lingering.query(seconds(90)).is_none());
}

#[test]
fn the_flows_are_looked_through_for_a_hundredth_of_the_time_at_most() {
    let mut lab = Lab::of(&service("web", WEB, BOTH, &["10.2.0.1:53"]));
    let lost = lab.flow("web", "203.0.113.9:53");
    lab.reload(&web());
    let mut look = |start: u64, takes: u64| {
        let mut query = lab.lingering.query(seconds(start)).unwrap();
        query.see(&lost);
        let _kept = lab.lingering.answered(query, seconds(start), seconds(start + takes));
        (0..10_000).find(|&time| lab.lingering.query(seconds(start + takes + time)).is_some())
    };
    assert_eq!(look(10, 0), Some(2));
    assert_eq!(look(100, 1), Some(100));
    lab.reload(&web());
}

#[test]
fn what_changed_while_the_flows_were_looked_through_stays_until_the_next_look() {
    let both = service("web", WEB, BOTH, &["10.2.0.1:53"]);
    let mut lab = Lab::of(&both);
    lab.reload(&web());
    let query = lab.lingering.query(seconds(9)).unwrap();
    lab.reload(&both);
    lab.reload(&web());
    assert_eq!(lab.lingering.answered(query, seconds(9), seconds(9)), Plan::default());
    let query = lab.lingering.query(seconds(99)).unwrap();
    assert_eq!(
        led(&lab.lingering.answered(query, seconds(99), seconds(99))),
        ["203.0.113.9/32"]
    );
}

#[test]
fn an_old_pool_stays_for_flows_that_are_masqueraded_from_it() {
    let mut lab = Lab::of(&web());
    let mut flow = lab.flow("web", WEB);
    flow.source = "198.18.0.3:1024".parse().unwrap();
    lab.reload(&format!("[nat]\npool = [\"198.18.1.0/28\"]\n{}", web()));
    assert!(lab.prune().is_empty());
    let mut query = lab.lingering.query(seconds(9)).unwrap();
    query.see(&flow);
    assert_eq!(lab.lingering.answered(query, seconds(9), seconds(9)), Plan::default());
    let query = lab.lingering.query(seconds(99)).unwrap();
    assert_eq!(led(&lab.lingering.answered(query, seconds(99), seconds(99))), [ALWAYS]);
}

#[test]
fn where_rules_lead_to_services_flows_are_looked_for_whatever_counts_say() {
    let rule = "mode = \"iptables\"\n[[rules]]\ndestination = \"10.96.0.53\"\naction = \"service:web\"\n";
    let mut lab = Lab::of(&format!("{rule}{}{}", web(), dns()));
    let flow = lab.flow("web", DNS);
    lab.reload(&format!("{rule}{}", web()));
    assert!(lab.prune().is_empty());
    let mut query = lab.lingering.query(seconds(9)).unwrap();
    query.see(&flow);
    let gone = lab.lingering.answered(query, seconds(9), seconds(9));
    assert_eq!(led(&gone), ["10.2.0.2:53"], "a flow of web needs the address");
}

#[test]
fn backends_come_and_go_by_their_counts() {
    let of = |backends: &[&str]| web() + &service("dns", DNS, "", backends);
    let mut lab = Lab::of(&of(&["10.2.0.2:53"]));
    let flow = lab.flow("dns", DNS);
    let before = lab.engine.ruleset().services.clone();
    lab.engine.apply(Arc::new(policy(&of(&["10.2.0.3:53"]))));
    let after = lab.engine.ruleset().services.clone();
    lab.lingering.follow(&before[1..], &after[1..]);
    let reply = |text: &str| BTreeSet::from([(Protocol::Udp, text.parse().unwrap())]);
    lab.lingering.turn_over(&reply("10.2.0.3:53"), &reply("10.2.0.2:53"));
    assert!(lab.prune().is_empty());
    end(flow);
    assert_eq!(lab.prune(), ["10.2.0.2:53"]);
}
