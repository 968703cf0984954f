//! What `nft -j list ...` prints, read: libnftables-json(5).
use serde_json::Value;

use super::rules::{Chain, Condition, Family, Hook, Rule, Source, Table, Verdict};

/// The tables of a listing. What is not understood is a condition that some packets may meet.
pub(super) fn tables(text: &str) -> Option<Vec<Table>> {
    let whole: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let mut tables: Vec<Table> = Vec::new();
    for object in whole.get("nftables")?.as_array()? {
        if let Some(chain) = object.get("chain") {
            add_chain(chain, &mut tables);
        } else if let Some(rule) = object.get("rule") {
            add_rules(rule, &mut tables);
        }
    }
    Some(tables)
}

fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key)?.as_str()
}

fn add_chain(value: &Value, tables: &mut Vec<Table>) -> Option<()> {
    let family = Family::of(text(value, "family")?)?;
    let (name, chain) = (text(value, "table")?, text(value, "name")?);
    let known = tables
        .iter()
        .position(|table| table.family == family && table.name == name);
    let at = known.unwrap_or_else(|| {
        tables.push(Table {
            source: Source::Nft,
            family,
            name: name.to_owned(),
            chains: Vec::new(),
        });
        tables.len() - 1
    });
    // What translates addresses and what reroutes drops nothing.
    let filters = text(value, "type").is_some_and(|kind| kind == "filter");
    tables.get_mut(at)?.chains.push(Chain {
        name: chain.to_owned(),
        hook: text(value, "hook").and_then(Hook::of).filter(|_| filters),
        drops: text(value, "policy") == Some("drop"),
        rules: Vec::new(),
    });
    Some(())
}

fn add_rules(value: &Value, tables: &mut [Table]) -> Option<()> {
    let family = Family::of(text(value, "family")?)?;
    let (name, chain) = (text(value, "table")?, text(value, "chain")?);
    let table = tables
        .iter_mut()
        .find(|table| table.family == family && table.name == name)?;
    let chain = table.chains.iter_mut().find(|known| known.name == chain)?;
    let empty = Vec::new();
    let expressions = value.get("expr").and_then(Value::as_array).unwrap_or(&empty);
    let mut rule = Rule {
        handle: value.get("handle").and_then(Value::as_u64),
        comment: text(value, "comment").map(str::to_owned),
        ..Rule::default()
    };
    for expression in expressions {
        if let Some(entries) = by_map(expression) {
            // A map of verdicts is a rule for each of its keys.
            for (condition, verdict) in entries {
                let mut one = rule.clone();
                one.conditions.push(condition);
                one.verdict = verdict;
                chain.rules.push(one);
            }
            return Some(());
        }
        if let Some(verdict) = verdict(expression) {
            rule.verdict = verdict;
        } else if let Some(condition) = condition(expression) {
            rule.conditions.push(condition);
        }
    }
    chain.rules.push(rule);
    Some(())
}

fn verdict(expression: &Value) -> Option<Verdict> {
    let (key, value) = expression.as_object()?.iter().next()?;
    let target = || text(value, "target").map(str::to_owned);
    match key.as_str() {
        "accept" => Some(Verdict::Accept),
        "drop" => Some(Verdict::Drop),
        "reject" => Some(Verdict::Reject),
        "return" => Some(Verdict::Return),
        "jump" => Some(Verdict::Jump(target()?)),
        "goto" => Some(Verdict::Goto(target()?)),
        "xt" if text(value, "type") == Some("target") && text(value, "name") == Some("REJECT") => Some(Verdict::Reject),
        _ => None,
    }
}

/// Of statements that are no conditions (counters, logs, marks) there is none.
fn condition(expression: &Value) -> Option<Condition> {
    let (key, value) = expression.as_object()?.iter().next()?;
    match key.as_str() {
        "match" => Some(of_match(value)),
        "xt" if text(value, "type") == Some("match") => xt(text(value, "name").unwrap_or_default()),
        "limit" | "connlimit" | "ct count" | "quota" => Some(Condition::Perhaps(key.clone())),
        _ => None,
    }
}

/// A module of iptables that nft cannot show.
fn xt(name: &str) -> Option<Condition> {
    match name {
        "comment" => None,
        "rpfilter" => Some(Condition::ReversePath),
        _ => Some(Condition::Perhaps(format!("-m {name}"))),
    }
}

fn of_match(value: &Value) -> Condition {
    let (Some(left), Some(right)) = (value.get("left"), value.get("right")) else {
        return Condition::Perhaps("a match".to_owned());
    };
    let negated = text(value, "op") == Some("!=");
    let names = || words(right);
    match left_side(left) {
        Left::InInterface => Condition::In(names(), negated),
        Left::OutInterface => Condition::Out(names(), negated),
        Left::State => Condition::State(names(), negated),
        Left::Version => match right.as_str() {
            Some("ipv4") => Condition::Version4(!negated),
            Some("ipv6") => Condition::Version4(negated),
            _ => Condition::Perhaps("nfproto".to_owned()),
        },
        // `ct status dnat`, `mark 0x4000`: "!=" of them and of 0 is what lbd's packets do meet.
        Left::Unmarked if negated != is_zero(right) => Condition::Perhaps("mark".to_owned()),
        Left::Unmarked => Condition::Never,
        Left::ReversePath if right == &Value::Bool(false) || is_zero(right) => Condition::ReversePath,
        Left::ReversePath => Condition::Perhaps("fib".to_owned()),
        Left::Other(what) => Condition::Perhaps(what),
    }
}

fn is_zero(value: &Value) -> bool {
    value.as_u64() == Some(0)
}

/// What a match looks at.
enum Left {
    InInterface,
    OutInterface,
    State,
    Version,
    /// Marks and the like, which lbd's packets do not have.
    Unmarked,
    ReversePath,
    Other(String),
}

fn left_side(left: &Value) -> Left {
    let Some((key, value)) = left.as_object().and_then(|left| left.iter().next()) else {
        return Left::Other("a match".to_owned());
    };
    match (key.as_str(), text(value, "key")) {
        ("meta", Some("iifname" | "iif")) => Left::InInterface,
        ("meta", Some("oifname" | "oif")) => Left::OutInterface,
        ("meta", Some("nfproto")) => Left::Version,
        ("ct", Some("state")) => Left::State,
        ("meta" | "ct", Some("mark")) | ("ct", Some("status")) => Left::Unmarked,
        ("fib", _) if is_reverse_path(value) => Left::ReversePath,
        ("payload", _) => Left::Other(format!(
            "{} {}",
            text(value, "protocol").unwrap_or("payload"),
            text(value, "field").unwrap_or("")
        )),
        ("&", _) => match value.as_array().and_then(|pair| pair.first()) {
            Some(first) => left_side(first),
            None => Left::Other("&".to_owned()),
        },
        (key, what) => Left::Other(format!("{key} {}", what.unwrap_or(""))),
    }
}

/// `fib saddr . iif oif`, as firewalld has it.
fn is_reverse_path(fib: &Value) -> bool {
    let flags = fib.get("flags").map(words).unwrap_or_default();
    let has = |flag: &str| flags.iter().any(|known| known == flag);
    text(fib, "result") == Some("oif") && has("saddr") && has("iif")
}

/// A word, or the words of a set or list.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(word) => vec![word.clone()],
        Value::Array(list) => list.iter().flat_map(words).collect(),
        Value::Object(object) => object
            .get("set")
            .or_else(|| object.get("|"))
            .map(words)
            .unwrap_or_default(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

/// `ct state vmap { established : accept, invalid : drop }`, and the same of interfaces.
fn by_map(expression: &Value) -> Option<Vec<(Condition, Verdict)>> {
    let map = expression.get("vmap")?;
    let key = left_side(map.get("key")?);
    let pairs = map.get("data")?.get("set")?.as_array()?;
    let entry = |pair: &Value| {
        let names = words(pair.get(0)?);
        let condition = match &key {
            Left::InInterface => Condition::In(names, false),
            Left::OutInterface => Condition::Out(names, false),
            Left::State => Condition::State(names, false),
            Left::Unmarked => Condition::Never,
            Left::Version | Left::ReversePath => Condition::Perhaps("vmap".to_owned()),
            Left::Other(what) => Condition::Perhaps(what.clone()),
        };
        Some((condition, verdict(pair.get(1)?)?))
    };
    Some(pairs.iter().filter_map(entry).collect())
}
