//! Files that say far less than the running one: a truncated write is a valid file, and must not be an outage.
use super::Config;
use super::reload::Changes;

/// Below this many services, the loss of half of them is an everyday change.
const MANY: usize = 10;

/// What is told of a configuration that serves nothing, unless it says that this is meant.
#[must_use]
pub fn warn_of_emptiness(config: &Config) -> Option<String> {
    let is_meant = config.allow_empty || !config.policy.services.is_empty();
    (!is_meant).then(|| {
        "no [[services]]: lbd serves nothing until services are added (`ipvsadm -A`, `lbctl service add`) or the file has \
         some and is reloaded; allow_empty = true says that this is meant"
            .to_owned()
    })
}

/// Why a file without services does not take the place of one with services.
#[must_use]
pub fn refuse_emptiness(old: &Config, new: &Config) -> Option<String> {
    let served = old.policy.services.len();
    let is_refused = served > 0 && new.policy.services.is_empty() && !new.allow_empty;
    is_refused.then(|| {
        format!(
            "no [[services]], where the running file has {served}: a reload would remove every service; if the file was cut \
             short, write it again, and if it is meant, set allow_empty = true"
        )
    })
}

/// What is told of changes to a configuration of `before` services that take most of them away.
#[must_use]
pub fn warn_of_loss(changes: &Changes, before: usize) -> Option<String> {
    let removed = changes.services.removed;
    (before >= MANY && removed > before / 2)
        .then(|| format!("{removed} of {before} services are removed; if that is not meant, was the file cut short?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::config::reload::describe;

    fn config(head: &str, services: usize) -> Config {
        let service = |n| {
            format!("[[services]]\nname = \"s{n}\"\nprotocol = \"tcp\"\naddress = \"10.96.0.{n}:80\"\nbackends = []\n")
        };
        let services: String = (1..=services).map(service).collect();
        parse("lbd.toml", &format!("{head}{services}")).unwrap().config
    }

    fn loss(before: usize, after: usize) -> Option<String> {
        let changes = describe(&config("", before), &config("", after));
        warn_of_loss(&changes, before)
    }

    #[test]
    fn an_empty_file_is_refused_where_the_running_one_has_services_unless_it_says_that_it_is_meant() {
        let refusal = refuse_emptiness(&config("", 3), &config("", 0)).unwrap();
        for part in ["[[services]]", "has 3", "allow_empty = true"] {
            assert!(refusal.contains(part), "{refusal}");
        }
        assert_eq!(
            refuse_emptiness(&config("", 3), &config("allow_empty = true\n", 0)),
            None
        );
        assert!(
            refuse_emptiness(&config("allow_empty = true\n", 3), &config("", 0)).is_some(),
            "the new file has to say it"
        );
        assert_eq!(refuse_emptiness(&config("", 0), &config("", 0)), None);
        assert_eq!(refuse_emptiness(&config("", 3), &config("", 1)), None);
    }

    #[test]
    fn a_start_without_services_is_warned_of_unless_it_is_meant() {
        assert!(
            warn_of_emptiness(&config("", 0))
                .unwrap()
                .contains("allow_empty = true")
        );
        assert_eq!(warn_of_emptiness(&config("allow_empty = true\n", 0)), None);
        assert_eq!(warn_of_emptiness(&config("", 1)), None);
    }

    #[test]
    fn the_loss_of_more_than_half_of_ten_or_more_services_is_counted() {
        assert!(
            loss(10, 4).unwrap().starts_with("6 of 10 services"),
            "{:?}",
            loss(10, 4)
        );
        assert!(loss(11, 5).unwrap().starts_with("6 of 11 services"));
        assert_eq!(loss(10, 5), None, "half of them");
        assert_eq!(loss(9, 0), None, "few");
        assert_eq!(loss(10, 20), None);
    }
}
