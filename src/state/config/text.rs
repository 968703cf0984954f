//! Types of the house that travel as the words a user writes: `tcp`, `10.96.0.10:80`, `ipvs`.
use std::fmt::Display;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::Serializer;

/// For `#[serde(with)]`: writes what `Display` shows.
///
/// # Errors
/// The serializer's own.
pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

/// For `#[serde(with)]`: reads what `FromStr` understands.
///
/// # Errors
/// The text is no such value.
pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    parse(&String::deserialize(from)?)
}

fn parse<T: FromStr<Err: Display>, E: Error>(text: &str) -> Result<T, E> {
    text.parse().map_err(|error| E::custom(format!("{text:?}: {error}")))
}

/// The same for what may be absent.
pub mod option {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer};
    use serde::ser::Serializer;

    /// For `#[serde(with)]`: what `Display` shows, or null.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.collect_str(value),
            None => to.serialize_none(),
        }
    }

    /// For `#[serde(with)]`: what `FromStr` understands, or null.
    ///
    /// # Errors
    /// The text is no such value.
    pub fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| super::parse(&text)).transpose()
    }
}

/// The same for a list.
pub mod list {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer};
    use serde::ser::{SerializeSeq, Serializer};

    /// For `#[serde(with)]`: a list of what `Display` shows.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<T: Display, S: Serializer>(values: &[T], to: S) -> Result<S::Ok, S::Error> {
        let mut sequence = to.serialize_seq(Some(values.len()))?;
        for value in values {
            sequence.serialize_element(&format_args!("{value}"))?;
        }
        sequence.end()
    }

    /// For `#[serde(with)]`: a list of what `FromStr` understands.
    ///
    /// # Errors
    /// One of the texts is no such value.
    pub fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| super::parse(text)).collect()
    }
}

/// The same for a mode.
pub mod mode {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use lbd_core::policy::Mode;

    /// The mode of this name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Mode> {
        [Mode::Ipvs, Mode::Iptables]
            .into_iter()
            .find(|mode| mode.name() == word)
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(mode: &Mode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(mode.name())
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// The word is no mode.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Mode, D::Error> {
        let word = String::deserialize(from)?;
        parse(&word).ok_or_else(|| D::Error::custom(format!("no mode {word:?}: expected ipvs or iptables")))
    }
}
