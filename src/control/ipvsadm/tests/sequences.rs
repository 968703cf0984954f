//! reference/scheduler-sequences.json through the engine, by the recorded commands.
use serde_json::Value;

use super::lab::Lab;
use super::reference;

#[test]
fn the_recorded_commands_give_the_kernels_sequences_and_tables_through_the_engine() {
    replay_all(|lab, commands| {
        for command in commands {
            lab.ok(command);
        }
    });
}

#[test]
fn the_same_commands_read_by_restore_give_the_same_sequences() {
    replay_all(|lab, commands| {
        let output = lab.restore("-R", &commands.join("\n"));
        assert_eq!((output.code, output.err.as_str()), (0, ""));
    });
}

fn replay_all(set_up: impl Fn(&mut Lab, &[String])) {
    let Some(text) = reference("scheduler-sequences.json") else {
        return;
    };
    let recording: Value = serde_json::from_str(&text).unwrap();
    let runs = recording["runs"].as_array().unwrap();
    let deterministic = runs.iter().filter(|run| run["deterministic"] == true);
    let mut count = 0;
    for run in deterministic {
        let mut lab = Lab::new();
        set_up(&mut lab, &commands(run));
        replay(lab, run);
        count += 1;
    }
    assert!(count > 60, "{count}");
}

fn replay(mut lab: Lab, run: &Value) {
    let expected: Vec<Option<u64>> = run["sequence"].as_array().unwrap().iter().map(Value::as_u64).collect();
    let chosen: Vec<Option<u64>> = (0..expected.len())
        .map(|number| connect(&mut lab, run, number))
        .collect();
    let what = format!(
        "{} {} {} {}",
        run["scheduler"], run["flags"], run["mode"], run["pattern"]
    );
    assert_eq!(chosen, expected, "{what}");
    let table = lab.ok("-Ln");
    let expected: Vec<&str> = run["table_after"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(table.lines().collect::<Vec<_>>(), expected, "{what}");
}

fn commands(run: &Value) -> Vec<String> {
    let recorded = run["commands"].as_array().unwrap().iter().filter_map(Value::as_str);
    let all: Vec<String> = recorded
        .filter(|line| !line.starts_with("..."))
        .map(str::to_owned)
        .collect();
    if run["pattern"] != "vips" {
        return all;
    }
    let of = |number: usize| {
        let address = format!("10.9.9.{}:", number + 1);
        all.iter().map(move |line| line.replace("10.9.9.1:", &address))
    };
    (0..24).flat_map(of).collect()
}

fn connect(lab: &mut Lab, run: &Value, number: usize) -> Option<u64> {
    let (client, service) = match run["pattern"].as_str().unwrap() {
        "ports" => (format!("10.1.0.2:{}", 40_000 + number), "10.9.9.9:80".to_owned()),
        "sources" => (format!("10.1.0.{}:40000", 2 + number), "10.9.9.9:80".to_owned()),
        "vips" => (
            format!("10.1.0.2:{}", 40_000 + number),
            format!("10.9.9.{}:80", number + 1),
        ),
        other => panic!("unknown pattern {other}"),
    };
    let flow = lab.connect(&client, &service).ok()?;
    match run["mode"].as_str().unwrap() {
        "open" => {}
        "close" => lab.close(&flow),
        "reset" => lab.reset(&flow),
        other => panic!("unknown mode {other}"),
    }
    let text = flow.server.ip().to_string();
    text.split('.').nth(2)?.parse().ok()
}
