//! A node's `iptables-save` and `ip6tables-save`, with kube-proxy's chains of any version from 1.10, as a configuration.
//!
//! The dump is read once into `dump` (lines, `words`, `rule`). Then the chains are followed from where packets
//! come in (`frontends`) to `endpoints`, the filter table says what is refused (`refusals`), and `services`
//! puts it together. Every line's fate is written into the `ledger`: used, not needed, or lost and why.
mod build;
mod dump;
mod empty;
mod endpoints;
mod fences;
mod frontends;
mod ledger;
mod marks;
mod names;
mod orphans;
mod own_rules;
mod plumbing;
mod refusals;
mod rule;
mod services;
mod weights;
mod words;

use self::dump::Dump;
use self::endpoints::Context;
use self::frontends::Entrances;
use self::ledger::Ledger;
use self::marks::Marks;
use self::refusals::Refusals;
use self::services::Making;
use super::Imported;

/// Reads what `iptables-save`, `ip6tables-save` or both printed; `file` is for remarks.
///
/// # Errors
/// When nothing at all could be read.
pub fn import(file: &str, text: &str) -> Result<Imported, String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut ledger = Ledger::new(lines.len());
    let dump = Dump::read(&lines, &mut ledger);
    let mut marks = Marks::default();
    let (mut entrances, mut refusals, mut making) = (Entrances::default(), Refusals::default(), Making::default());
    for v4 in [true, false] {
        refusals.read(v4, &dump, &mut ledger);
    }
    let mut context = Context {
        dump: &dump,
        refusals: &refusals,
        ledger: &mut ledger,
        marks: &mut marks,
    };
    for v4 in [true, false] {
        entrances.read(v4, &mut context);
    }
    making.make(&mut entrances, &mut context);
    let masquerade = marks.settle(&entrances.frontends, &mut ledger);
    let own = own_rules::own_rules(&dump, &mut ledger);
    plumbing::note(&dump, &mut ledger);
    let notes: Vec<String> = making.notes.iter().map(|note| format!("# {file}: {note}")).collect();
    let built = build::build(making, own, masquerade, &mut ledger);
    let toml = built.map_err(|why| format!("{file}: {why}"))?;
    orphans::tell(&dump, &mut ledger);
    let mut remarks = ledger.remarks(file, &lines);
    if !ledger.understood_any() && !remarks.is_empty() {
        let nothing = format!("{file}: no line of it is a rule of kube-proxy: give the output of `iptables-save`");
        remarks.insert(0, nothing);
        return Err(remarks.join("\n"));
    }
    remarks.extend(notes);
    Ok(Imported { toml, remarks })
}
