//! Rules that are the same on every node: jumps into kube-proxy's chains, marks, masquerading.
use super::dump::{Dump, Placed, Table};
use super::ledger::{Ledger, Plumbing};
use super::rule::Kind;
use crate::import::kube_proxy::{
    ENDPOINT, EXTERNAL, FORWARD, LOAD_BALANCER, LOCAL_ONLY, LOCAL_SERVICE, MARK_DROP, MARK_MASQUERADE, OWN_DROP,
    OWN_REJECT, POSTROUTING, SERVICE,
};

/// Takes note of all of them.
pub(super) fn note(dump: &Dump, ledger: &mut Ledger) {
    for placed in &dump.rules {
        let Placed { line, rule, .. } = placed;
        if is_jump(placed) && rule.target() == FORWARD {
            ledger.needless(*line, Plumbing::Forwarding);
        } else if is_jump(placed) {
            ledger.needless(*line, Plumbing::Jump);
        } else if is_mark(placed) {
            ledger.needless(*line, Plumbing::Marks);
        } else if rule.set
            && rule.others.iter().all(|option| option == "--match-set")
            && rule.chain.starts_with("KUBE-")
        {
            let why =
                "this node's kube-proxy is in ipvs mode: give `lbctl import ipvsadm-save` the output of `ipvsadm -Sn`";
            ledger.lost(*line, why);
        } else if placed.table == Table::Other {
            ledger.lost(*line, "services are in the tables nat and filter only");
        } else if !rule.chain.starts_with("KUBE-") && !rule.chain.starts_with("LBD-") {
            ledger.lost(*line, "a rule of another program, in a chain that is not kube-proxy's");
        } else if is_of_a_service(&rule.chain) && !ledger.knows(*line) {
            ledger.lost(*line, "no rule of KUBE-SERVICES or KUBE-NODEPORTS leads to this chain");
        }
    }
}

/// Whether a chain leads to endpoints.
pub(super) fn is_of_a_service(chain: &str) -> bool {
    let prefixes = [SERVICE, LOCAL_SERVICE, ENDPOINT, EXTERNAL, LOAD_BALANCER, LOCAL_ONLY];
    prefixes.iter().any(|prefix| chain.starts_with(prefix))
}

/// From a chain of the kernel into one of kube-proxy.
fn is_jump(Placed { rule, .. }: &Placed) -> bool {
    let built_in = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let conditions = [Kind::State, Kind::Mark];
    let own = rule.target().starts_with("KUBE-") || rule.target().starts_with("LBD-");
    built_in.contains(&rule.chain.as_str()) && own && rule.has_only(&conditions)
}

fn is_mark(Placed { rule, .. }: &Placed) -> bool {
    let target = rule.target();
    match rule.chain.as_str() {
        MARK_MASQUERADE | MARK_DROP | OWN_DROP | OWN_REJECT => {
            matches!(target, "MARK" | "ACCEPT") && rule.kinds().is_empty()
        }
        POSTROUTING => matches!(target, "MASQUERADE" | "RETURN" | "MARK") && rule.has_only(&[Kind::Mark]),
        _ => false,
    }
}
