//! Arguments as popt splits them (libpopt 1.19, `poptGetNextOpt`).
use super::Exit;

/// What is to be known of an option.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) long: &'static str,
    pub(super) short: Option<char>,
    pub(super) value: Takes,
}

/// Whether an option has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Value,
    /// Unless the next argument begins with a dash.
    MaybeValue,
}

/// One option as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) long: &'static str,
    pub(super) value: Option<String>,
    /// The argument that was read last for it: itself, or its value.
    pub(super) argument: String,
}

/// Arguments that are read one after the other.
pub(super) struct Words<'a> {
    specs: &'static [Spec],
    arguments: &'a [String],
    next: usize,
    /// What is left of an argument of several short options.
    rest: Option<&'a str>,
    /// Arguments that are no options.
    pub(super) leftover: Vec<&'a str>,
}

impl<'a> Words<'a> {
    pub(super) const fn new(specs: &'static [Spec], arguments: &'a [String]) -> Self {
        Self {
            specs,
            arguments,
            next: 0,
            rest: None,
            leftover: Vec::new(),
        }
    }

    /// The next option; None when there is none any more.
    pub(super) fn option(&mut self) -> Result<Option<Word>, Exit> {
        if let Some(rest) = self.rest.take() {
            return self.short(rest).map(Some);
        }
        loop {
            let Some(argument) = self.take() else {
                return Ok(None);
            };
            if argument == "--" {
                while let Some(argument) = self.take() {
                    self.leftover.push(argument);
                }
                return Ok(None);
            }
            if let Some(long) = argument.strip_prefix("--") {
                return self.long(long).map(Some);
            }
            match argument.strip_prefix('-') {
                Some(shorts) if !shorts.is_empty() => return self.short(shorts).map(Some),
                Some(_) | None => self.leftover.push(argument),
            }
        }
    }

    fn take(&mut self) -> Option<&'a str> {
        let argument = self.arguments.get(self.next)?;
        self.next += 1;
        Some(argument)
    }

    fn long(&mut self, text: &'a str) -> Result<Word, Exit> {
        let (name, value) = text
            .split_once('=')
            .map_or((text, None), |(name, value)| (name, Some(value)));
        let spec = self.specs.iter().find(|spec| spec.long == name);
        let spec = spec.ok_or_else(|| self.bad("unknown option"))?;
        match (spec.value, value) {
            (Takes::Nothing, Some(_)) => Err(self.bad("option does not take an argument")),
            (_, Some(value)) => Ok(self.word(spec, Some(value))),
            (_, None) => self.with_value(spec),
        }
    }

    fn short(&mut self, shorts: &'a str) -> Result<Word, Exit> {
        let mut letters = shorts.chars();
        let letter = letters.next();
        let rest = Some(letters.as_str()).filter(|rest| !rest.is_empty());
        let spec = self
            .specs
            .iter()
            .find(|spec| spec.short.is_some() && spec.short == letter);
        let spec = spec.ok_or_else(|| self.bad("unknown option"))?;
        match (spec.value, rest) {
            (Takes::Nothing, Some(rest)) if rest.starts_with('=') => Err(self.bad("option does not take an argument")),
            (Takes::Nothing, rest) => {
                self.rest = rest;
                Ok(self.word(spec, None))
            }
            (Takes::Value | Takes::MaybeValue, Some(rest)) => {
                Ok(self.word(spec, Some(rest.strip_prefix('=').unwrap_or(rest))))
            }
            (Takes::Value | Takes::MaybeValue, None) => self.with_value(spec),
        }
    }

    fn with_value(&mut self, spec: &'static Spec) -> Result<Word, Exit> {
        let follows = self.arguments.get(self.next);
        match (spec.value, follows) {
            (Takes::Nothing, _) | (Takes::MaybeValue, None) => Ok(self.word(spec, None)),
            (Takes::MaybeValue, Some(next)) if next.starts_with('-') => Ok(self.word(spec, None)),
            (Takes::Value, None) => Err(self.bad("missing argument")),
            (Takes::Value | Takes::MaybeValue, Some(_)) => {
                let value = self.take();
                Ok(self.word(spec, value))
            }
        }
    }

    /// `poptBadOption`: the argument that was read last.
    fn last(&self) -> &'a str {
        let argument = self.next.checked_sub(1).and_then(|at| self.arguments.get(at));
        argument.map_or("", String::as_str)
    }

    fn bad(&self, problem: &str) -> Exit {
        Exit {
            code: super::FAILED,
            message: format!("{}: {problem}", self.last()),
        }
    }

    fn word(&self, spec: &Spec, value: Option<&str>) -> Word {
        Word {
            long: spec.long,
            value: value.map(str::to_owned),
            argument: self.last().to_owned(),
        }
    }
}
