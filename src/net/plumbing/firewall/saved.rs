//! What `iptables-save` prints, read: iptables(8), iptables-extensions(8).
use super::rules::{Chain, Condition, Family, Hook, Rule, Source, Table, Verdict};

/// The tables of a dump.
pub(super) fn tables(text: &str, source: Source, family: Family) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table {
                source,
                family,
                name: name.to_owned(),
                chains: Vec::new(),
            });
        } else if let Some(table) = tables.last_mut() {
            add(line, table);
        }
    }
    tables
}

fn add(line: &str, table: &mut Table) -> Option<()> {
    if let Some(declared) = line.strip_prefix(':') {
        let mut words = declared.split_whitespace();
        let (name, policy) = (words.next()?, words.next()?);
        table.chains.push(Chain {
            name: name.to_owned(),
            hook: Hook::of(name).filter(|_| policy != "-" && table.name != "nat"),
            drops: policy == "DROP",
            rules: Vec::new(),
        });
        return Some(());
    }
    let words = words(line);
    let mut words = words.iter().map(String::as_str).peekable();
    words.find(|word| *word == "-A")?;
    let chain = words.next()?;
    let chain = table.chains.iter_mut().find(|known| known.name == chain)?;
    chain.rules.push(rule(&mut words));
    Some(())
}

fn rule<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> Rule {
    let mut rule = Rule::default();
    let mut negated = false;
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        let list = |value: Option<&str>| value.unwrap_or("").split(',').map(str::to_lowercase).collect();
        // iptables ends the name of many interfaces with +, nft with *.
        let interface = |value: Option<&str>| vec![value.unwrap_or("").replace('+', "*")];
        match word {
            "-i" => rule.conditions.push(Condition::In(interface(words.next()), negated)),
            "-o" => rule.conditions.push(Condition::Out(interface(words.next()), negated)),
            "--ctstate" | "--state" => rule.conditions.push(Condition::State(list(words.next()), negated)),
            "--comment" => rule.comment = words.next().map(str::to_owned),
            "--mark" | "--ctstatus" => {
                words.next();
                rule.conditions.push(if negated {
                    Condition::Perhaps("--mark".to_owned())
                } else {
                    Condition::Never
                });
            }
            "-j" => rule.verdict = target(words.next().unwrap_or(""), Verdict::Jump),
            "-g" => rule.verdict = target(words.next().unwrap_or(""), Verdict::Goto),
            "-m" => rule.conditions.extend(module(words.next().unwrap_or(""))),
            "-s" | "-d" | "-p" => {
                let value = words.next().unwrap_or("");
                let not = if negated { "! " } else { "" };
                rule.conditions.push(Condition::Perhaps(format!("{not}{word} {value}")));
            }
            _ => {}
        }
        negated = false;
    }
    rule
}

/// What iptables has of its own ends in no other chain.
fn target(name: &str, to: impl Fn(String) -> Verdict) -> Verdict {
    match name {
        "ACCEPT" => Verdict::Accept,
        "DROP" => Verdict::Drop,
        "REJECT" => Verdict::Reject,
        "RETURN" => Verdict::Return,
        _ => to(name.to_owned()),
    }
}

/// A condition that is known by its module; those of the others are known by their options.
fn module(name: &str) -> Option<Condition> {
    match name {
        "comment" | "conntrack" | "state" | "mark" | "connmark" | "tcp" | "udp" | "sctp" | "icmp" | "icmp6"
        | "nfacct" => None,
        "rpfilter" => Some(Condition::ReversePath),
        _ => Some(Condition::Perhaps(format!("-m {name}"))),
    }
}

/// Words between blanks; double quotes hold blanks together.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => quoted = !quoted,
            '\\' if quoted => word.extend(letters.next()),
            ' ' if !quoted => all.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            _ => word.push(letter),
        }
    }
    all.extend(Some(word).filter(|word| !word.is_empty()));
    all
}
