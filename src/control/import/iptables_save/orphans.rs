//! Rules that were followed, but whose every way in was left out later: a service that lbd does not take, a node port
//! without a backend here.
use std::collections::HashMap;

use super::dump::{Dump, Placed, Table};
use super::ledger::Ledger;
use super::plumbing::is_of_a_service;

/// Says of every rule that only rules which were left out lead to that it is left out, too.
pub(super) fn tell(dump: &Dump, ledger: &mut Ledger) {
    let in_nat = || dump.rules.iter().filter(|placed| placed.table == Table::Nat);
    let mut jumps: HashMap<&str, Vec<&Placed>> = HashMap::new();
    for placed in in_nat() {
        jumps.entry(placed.rule.target()).or_default().push(placed);
    }
    // Chains are at most four deep (FW, EXT, SVC, SEP); a tangle of them ends, too, since each turn loses a line or is the last.
    loop {
        let mut lost_any = false;
        for placed in in_nat().filter(|placed| is_of_a_service(&placed.rule.chain)) {
            if !ledger.is_used(placed.line) {
                continue;
            }
            let Some(ways_in) = jumps.get(placed.rule.chain.as_str()) else {
                continue;
            };
            if let Some(first) = ways_in
                .first()
                .filter(|_| ways_in.iter().all(|way| ledger.is_lost(way.line)))
            {
                let why = format!("what leads to its chain is left out (line {})", first.line + 1);
                ledger.lost(placed.line, why);
                lost_any = true;
            }
        }
        if !lost_any {
            return;
        }
    }
}
