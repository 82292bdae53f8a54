//! Crashes, conflicts, deposed leaders, lost reports and dying activators at random, over many seeds.

use std::collections::BTreeMap;

use super::world::{Fault, Quality, World};
use super::*;

const SEEDS: u64 = 1_200;

fn plan(seed: u64) -> Plan {
    let strategy = match seed % 7 {
        0 | 1 => Strategy::default(),
        2 => Strategy::Linear {
            step: 2_000,
            max: 7_000,
        },
        3 => Strategy::Steps(vec![
            StepPlan {
                weight: 500,
                ..StepPlan::default()
            },
            StepPlan {
                weight: 5_000,
                pause: 3 * SECOND,
                gate: false,
            },
        ]),
        4 => Strategy::Time {
            duration: 20 * SECOND,
        },
        5 => Strategy::BlueGreen { gate: false },
        _ => Strategy::Immediate,
    };
    Plan {
        strategy,
        mirror: (seed.is_multiple_of(3)).then_some(Mirror {
            percent: 100,
            pairs: 40,
        }),
        gradual: seed.is_multiple_of(5),
        gates: if seed.is_multiple_of(4) {
            Gate::ALL.into()
        } else {
            [].into()
        },
        on_new: if seed.is_multiple_of(2) {
            OnNew::Queue
        } else {
            OnNew::Supersede
        },
        min_step: SECOND,
        progress_deadline: 40 * SECOND,
        bake: Duration::from_secs(seed % 3 * 5),
        pause_target: seed % 6 == 1,
        ..Plan::default()
    }
}

/// At every gate, after a while: each answer is asked for.
fn everybody_agrees(world: &mut World) {
    world.says = Gate::ALL.map(|gate| (gate, None)).into();
}

fn fault(world: &mut World) -> Fault {
    match world.random.below(8) {
        0..=2 => Fault::Crash(world.random.below(4) as usize),
        3 => Fault::Conflict,
        4 => Fault::Stale,
        _ => Fault::None,
    }
}

/// Passes so many seconds with faults in most turns, or none.
fn endure(world: &mut World, seconds: u64, faulty: bool) -> Result<(), String> {
    for _ in 0..2 * seconds {
        world.pass();
        let fault = if faulty { fault(world) } else { Fault::None };
        world.turn(fault)?;
    }
    Ok(())
}

fn revision(world: &mut World) -> (String, Quality) {
    let number = world.revisions.len() + 1;
    let quality = match world.random.below(5) {
        0 | 1 => Quality::BAD,
        2 => Quality {
            starts: false,
            bad: 0.0,
        },
        _ => Quality::GOOD,
    };
    (format!("r{number}"), quality)
}

/// What a user can tell apart in the end.
type Ending = (
    Phase,
    String,
    Option<Ended>,
    BTreeMap<String, u32>,
    Vec<String>,
    Vec<String>,
);

fn ending(world: &World) -> Ending {
    let status = &world.status;
    (
        status.phase,
        status.stable.clone(),
        world.ended(),
        world.route.weights.clone(),
        status.history.clone(),
        status.quarantined.clone(),
    )
}

/// The same releases, with and without crashes, each given the time it takes.
fn lives(seed: u64, faulty: bool) -> Result<Vec<Ending>, String> {
    let mut world = World::new(plan(seed), seed);
    world.load = (seed % 4) as f64;
    everybody_agrees(&mut world);
    let mut script = World::new(plan(seed), seed ^ 0xdead);
    let mut endings = Vec::new();
    endure(&mut world, 40, faulty)?;
    for _ in 0..3 {
        match script.random.below(4) {
            3 if world.status.adopted => world.command(Verb::Undo(None)),
            _ => {
                let (name, quality) = revision(&mut script);
                script.revisions.insert(name.clone());
                world.release(&name, quality);
            }
        }
        endure(&mut world, 110, faulty)?;
        // Whatever is open is finished in peace.
        endure(&mut world, 50, false)?;
        endings.push(ending(&world));
    }
    Ok(endings)
}

#[test]
fn whatever_crashes_the_end_is_the_same() {
    for seed in 0..SEEDS {
        let calm = lives(seed, false).unwrap_or_else(|error| panic!("seed {seed}, calm: {error}"));
        let wild = lives(seed, true).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(calm, wild, "seed {seed}");
        let resting = |ending: &Ending| matches!(ending.0, Phase::Idle | Phase::Failed);
        assert!(calm.iter().all(resting), "seed {seed}: {calm:?}");
    }
}

/// Anything at any moment: the laws are checked at every decision and every write.
#[test]
fn no_weight_is_ever_where_nobody_can_serve_or_hold() {
    for seed in 0..SEEDS {
        let mut world = World::new(plan(seed), seed.wrapping_mul(31));
        everybody_agrees(&mut world);
        for _ in 0..40 {
            let pause = world.random.below(12);
            let lived = endure(&mut world, pause, true);
            lived.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            suffer(&mut world);
        }
        (world.deaf, world.silent, world.load) = (false, false, 2.0);
        world.plan.suspend = false;
        for index in 0..world.activators.len() {
            world.restart_activator(index);
        }
        world.command(Verb::Resume);
        endure(&mut world, 400, false).unwrap_or_else(|error| panic!("seed {seed}, at the end: {error}"));
        let there = world
            .route
            .weights
            .keys()
            .all(|pool| world.pools.contains_key(pool));
        assert!(there, "seed {seed}");
        assert!(
            matches!(world.phase(), Phase::Idle | Phase::Failed),
            "seed {seed}: {} {}",
            world.phase(),
            world.reason
        );
        let serves = match world.status.in_place {
            true => "app".to_owned(),
            false => world.status.stable.clone(),
        };
        assert_eq!(world.route.weights, [(serves, FULL)].into(), "seed {seed}");
    }
}

fn suffer(world: &mut World) {
    let index = world.random.below(3) as usize;
    match world.random.below(13) {
        12 => world.forget_answers(),
        0 | 1 => {
            let (name, quality) = revision(world);
            world.release(&name, quality);
        }
        2 => {
            // An old template again.
            let known: Vec<String> = world.revisions.iter().cloned().collect();
            world.latest = known[world.random.below(known.len() as u64) as usize].clone();
        }
        3 => world.activators[index].alive = false,
        4 => world.restart_activator(index),
        5 => world.silent = !world.silent,
        6 => world.deaf = !world.deaf,
        7 => world.load = world.random.below(20) as f64,
        8 => {
            // Somebody deletes a pool.
            let pools: Vec<String> = world
                .pools
                .keys()
                .filter(|pool| *pool != "app")
                .cloned()
                .collect();
            if let Some(pool) = pools.get(index) {
                world.lose_pool(pool);
            }
        }
        9 => world.plan.suspend = !world.plan.suspend,
        _ => {
            let verb = match world.random.below(7) {
                0 => Verb::Promote,
                1 => Verb::PromoteFull,
                2 => Verb::Abort,
                3 => Verb::Retry,
                4 => Verb::Pause,
                5 => Verb::Resume,
                _ => Verb::Undo(None),
            };
            world.command(verb);
        }
    }
}
