//! The SERVICE argument of lbctl: a service's name, or one of its addresses.
use lbd_core::flow::Endpoint;

/// Picks services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector<'a> {
    text: &'a str,
    address: Option<Endpoint>,
}

impl<'a> Selector<'a> {
    /// What the operator wrote.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            address: text.parse().ok(),
        }
    }

    /// Whether it means the service of this name and these addresses.
    #[must_use]
    pub fn picks(&self, name: &str, addresses: &[Endpoint]) -> bool {
        addresses.iter().any(|&address| self.picks_address(name, address))
    }

    /// Whether it means this one address of the service of this name: a name means all of them.
    #[must_use]
    pub fn picks_address(&self, name: &str, address: Endpoint) -> bool {
        self.text == name || self.address == Some(address)
    }

    /// The error where it means none of the services.
    #[must_use]
    pub fn unknown(&self) -> String {
        let text = self.text;
        format!("no service {text:?}: give a name or ADDRESS:PORT of one that `lbctl list -n --json` shows")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Vec<Endpoint> {
        ["10.96.0.10:80", "203.0.113.10:80", "[fd00::10]:80"]
            .map(|text| text.parse().unwrap())
            .into()
    }

    #[test]
    fn a_service_is_found_by_its_name_and_by_each_of_its_addresses() {
        for text in ["default/web:http", "10.96.0.10:80", "203.0.113.10:80", "[fd00::10]:80"] {
            assert!(Selector::new(text).picks("default/web:http", &addresses()), "{text}");
        }
    }

    #[test]
    fn an_address_picks_only_itself_and_a_name_all_addresses() {
        let [cluster, external, _] = addresses()[..] else {
            panic!()
        };
        let by_address = Selector::new("203.0.113.10:80");
        assert!(by_address.picks_address("web", external));
        assert!(!by_address.picks_address("web", cluster));
        assert!(Selector::new("web").picks_address("web", cluster));
    }

    #[test]
    fn another_name_or_port_is_unknown_and_named_in_the_error() {
        for text in ["web", "10.96.0.10:81", "10.96.0.10"] {
            assert!(!Selector::new(text).picks("default/web:http", &addresses()), "{text}");
        }
        assert!(Selector::new("web").unknown().starts_with("no service \"web\": "));
    }
}
