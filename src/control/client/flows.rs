//! Reads the answer to [`Request::Connections`](crate::protocol::Request) flow by flow.
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::protocol::ConnectionView;

/// A refusal.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    pub(super) message: String,
}

/// A [`Reply`](crate::protocol::Reply) whose flows go to `self`, until that says that it has seen enough.
pub(super) struct Flows<F>(pub(super) F);

impl<'de, F: FnMut(ConnectionView) -> bool> DeserializeSeed<'de> for Flows<F> {
    type Value = Result<(), Refusal>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, F: FnMut(ConnectionView) -> bool> Visitor<'de> for Flows<F> {
    type Value = Result<(), Refusal>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a reply")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let value = match map.next_key::<String>()?.as_deref() {
            Some("ok") => Ok(map.next_value_seed(Data(&mut self.0))?),
            Some("error") => Err(map.next_value()?),
            _ => return Err(A::Error::custom("neither ok nor error")),
        };
        end(&mut map)?;
        Ok(value)
    }
}

struct Data<F>(F);

impl<'de, F: FnMut(ConnectionView) -> bool> DeserializeSeed<'de> for Data<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, F: FnMut(ConnectionView) -> bool> Visitor<'de> for Data<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connections")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        match map.next_key::<String>()?.as_deref() {
            Some("connections") => map.next_value_seed(List(&mut self.0))?,
            other => {
                let other = other.unwrap_or("nothing");
                return Err(A::Error::custom(format!("{other} where connections were asked for")));
            }
        }
        end(&mut map)
    }
}

struct List<F>(F);

impl<'de, F: FnMut(ConnectionView) -> bool> DeserializeSeed<'de> for List<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(ConnectionView) -> bool> Visitor<'de> for List<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of connections")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(flow) = list.next_element()? {
            if !(self.0)(flow) {
                return Err(A::Error::custom("enough was seen"));
            }
        }
        Ok(())
    }
}

fn end<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Reply;

    fn read(text: &str) -> Result<(usize, Option<String>), serde_json::Error> {
        let mut count = 0;
        let mut reader = serde_json::Deserializer::from_str(text);
        let outcome = Flows(|_| {
            count += 1;
            true
        })
        .deserialize(&mut reader)?;
        Ok((count, outcome.err().map(|refusal| refusal.message)))
    }

    #[test]
    fn flows_are_handed_on_and_a_refusal_is_told() {
        let flow = r#"{"protocol":"tcp","state":"CLOSE","expires_seconds":9,"client":"10.1.0.2:1","virtual":"10.9.9.9:80",
            "backend":"10.2.2.2:80","source":"10.1.0.2:1","service":"web","masqueraded":false}"#;
        let told = |flows: &str| format!("{{\"ok\":{{\"connections\":[{flows}]}}}}");
        assert_eq!(read(&told("")).unwrap(), (0, None));
        assert_eq!(read(&told(&format!("{flow},{flow}"))).unwrap(), (2, None));
        let refusal = serde_json::to_string(&Reply::error("no such service")).unwrap();
        assert_eq!(read(&refusal).unwrap(), (0, Some("no such service".to_owned())));
    }

    #[test]
    fn what_was_not_asked_for_and_what_is_cut_short_is_an_error() {
        for text in [
            "{\"ok\":{\"mode\":\"ipvs\"}}",
            "{\"ok\":{\"connections\":[",
            "{}",
            "[]",
            "{\"ok\":{}}",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
