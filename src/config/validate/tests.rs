use super::*;
#[test]
fn dump() {
    let cases: Vec<(String, Vec<String>)> =
        serde_json::from_str(&std::fs::read_to_string("/tmp/cases.json").unwrap()).unwrap();
    let mut out: Vec<(String, Vec<(String, Vec<String>)>)> = Vec::new();
    for (g, list) in cases {
        let mut v = Vec::new();
        for c in list {
            let r = match parse("lbd.toml", &c) {
                Err(e) => e.iter().map(ToString::to_string).collect(),
                Ok(l) => vec![format!("OK {:?}", l.warnings)],
            };
            v.push((c, r));
        }
        out.push((g, v));
    }
    std::fs::write("/tmp/out.json", serde_json::to_string(&out).unwrap()).unwrap();
}
