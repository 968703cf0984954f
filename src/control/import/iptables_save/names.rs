//! A service's name, out of the comments that kube-proxy writes.
use super::rule::Rule;

/// What follows the name, in all versions.
const ENDINGS: [&str; 6] = [
    " cluster IP",
    " external IP",
    " loadbalancer IP",
    " has no endpoints",
    " has no local endpoints",
    " health check node port",
];

/// The name in a rule's comment: with `exact` as it is, else without the colon that a port without a name left behind
/// until 1.19 (`default/nginx:`).
pub(super) fn service_name(rule: &Rule, exact: bool) -> Option<String> {
    let comment = rule.comment.as_deref()?.trim();
    let name = ENDINGS
        .iter()
        .find_map(|ending| comment.strip_suffix(ending))
        .unwrap_or(comment);
    if exact {
        return (!name.is_empty()).then(|| name.to_owned());
    }
    let name = name.trim().trim_end_matches(':');
    let letters = name.chars().filter(|letter| !letter.is_control());
    let name: String = letters.collect::<String>().trim().to_owned();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(comment: &str, exact: bool) -> Option<String> {
        let rule = Rule {
            comment: Some(comment.to_owned()),
            ..Rule::default()
        };
        service_name(&rule, exact)
    }

    #[test]
    fn a_name_is_what_stands_before_what_kube_proxy_adds() {
        for comment in [
            "default/web:http",
            "default/web:http cluster IP",
            "default/web:http has no endpoints",
        ] {
            assert_eq!(name(comment, false).unwrap(), "default/web:http");
        }
        assert_eq!(name("default/nginx: loadbalancer IP", false).unwrap(), "default/nginx");
        assert_eq!(name("default/nginx: cluster IP", true).unwrap(), "default/nginx:");
        assert_eq!(name(" cluster IP", false), Some("cluster IP".to_owned()));
        assert_eq!(name("", false), None);
    }
}
