//! In which order what is measured, and how long it will take.
use crate::effort::Effort;
use crate::questions::Question;
use crate::systems::System;
use crate::world::World;

/// What is asked of each system in turn, in one world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) questions: Vec<Question>,
}

/// The stages of a round.
pub(crate) fn stages(effort: &Effort, wanted: &[Question], round: u32) -> Vec<Stage> {
    let mut stages = vec![Stage {
        world: World::Single,
        questions: vec![Question::Bulk, Question::Requests, Question::Datagrams],
    }];
    // Memory does not vary as times do: once is enough. It wants a system that has seen no flow.
    if round == 0 {
        stages.push(Stage {
            world: World::Single,
            questions: vec![Question::Memory],
        });
    }
    for &services in &effort.services {
        let mut questions = vec![Question::Connections];
        if effort.changing_services.contains(&services) {
            questions.push(Question::Change);
        }
        stages.push(Stage {
            world: World::many(services),
            questions,
        });
    }
    for stage in &mut stages {
        stage.questions.retain(|question| wanted.contains(question));
    }
    stages.retain(|stage| !stage.questions.is_empty());
    stages
}

/// The systems in the order of a round: forwards and backwards, so that none always comes after the same one.
pub(crate) fn order(systems: &[System], round: u32) -> Vec<System> {
    let mut order = systems.to_vec();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// About how many seconds the whole run takes.
pub(crate) fn estimate(effort: &Effort, questions: &[Question], systems: &[System]) -> f64 {
    let rounds = (0..effort.rounds).flat_map(|round| stages(effort, questions, round));
    let turn = |stage: Stage, system: System| {
        let asked = stage
            .questions
            .iter()
            .filter(|question| question.is_not_for(system).is_none());
        let asked: Vec<f64> = asked
            .map(|&question| seconds(effort, question, stage.world, system))
            .collect();
        if asked.is_empty() {
            0.0
        } else {
            setup(stage.world, system) + asked.iter().sum::<f64>()
        }
    };
    rounds
        .flat_map(|stage| systems.iter().map(move |&system| (stage.clone(), system)))
        .map(|(stage, system)| turn(stage, system))
        .sum()
}

/// Setting up and taking down; measured on two CPUs.
fn setup(world: World, system: System) -> f64 {
    let services = f64::from(world.services());
    match system {
        System::Iptables => 0.6 + services * 1.3e-3,
        System::Nftables | System::Ipvs | System::Haproxy | System::Nginx => 0.6 + services * 0.3e-3,
        System::Generator | System::Routing | System::Lbd(..) | System::Bare => 0.7 + services * 0.1e-3,
    }
}

fn seconds(effort: &Effort, question: Question, world: World, system: System) -> f64 {
    let [warm_up, window] = effort.time().map(|time| time.as_secs_f64());
    let each = warm_up + window;
    match question {
        Question::Bulk => 4.0 * each,
        Question::Datagrams => effort
            .flows
            .iter()
            .map(|&flows| 2.0 * (each + 0.03) + f64::from(flows) * (1.0 / effort.rate + 1.0 / 300_000.0))
            .sum(),
        Question::Connections => each + window,
        Question::Requests => each,
        Question::Change => {
            let command = setup(world, system) - 0.6;
            system.ways().len() as f64 * (0.6 + command)
        }
        Question::Memory if system.is_proxy() => f64::from(effort.proxied) / 5_000.0,
        Question::Memory => effort
            .memory_flows
            .iter()
            .map(|&flows| f64::from(flows) / 80_000.0)
            .sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{questions, systems};

    #[test]
    fn every_question_is_in_every_effort() {
        for effort in [Effort::full(), Effort::quick(), Effort::smoke()] {
            let stages = stages(&effort, &questions::ALL, 0);
            for question in questions::ALL {
                assert!(
                    stages.iter().any(|stage| stage.questions.contains(&question)),
                    "{question:?}"
                );
            }
        }
    }

    #[test]
    fn a_quick_run_is_meant_to_take_less_than_three_minutes_and_a_full_one_less_than_twenty_five() {
        let estimate = |effort| estimate(&effort, &questions::ALL, &systems::ALL);
        assert!(estimate(Effort::quick()) < 180.0, "{}", estimate(Effort::quick()));
        assert!(estimate(Effort::full()) < 1500.0, "{}", estimate(Effort::full()));
    }

    #[test]
    fn systems_take_turns_in_both_orders() {
        let systems = [System::Routing, System::Iptables];
        assert_eq!(order(&systems, 0), [System::Routing, System::Iptables]);
        assert_eq!(order(&systems, 1), [System::Iptables, System::Routing]);
    }
}
