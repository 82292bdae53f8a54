//! Reactive sizing against Knative's autoscaler in one small deterministic simulation, and single decisions.

use std::collections::VecDeque;

use super::*;
use crate::pool::{Facts, Pool};
use crate::{Algorithm, Knobs};

/// SplitMix64: seeded, so that two runs are equal.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0 < x <= 1`.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }
}

/// Load on a pool whose pods serve `limit` requests at once, each for an exponential time.
struct Scenario {
    name: &'static str,
    limit: u32,
    service: f64,
    boot: f64,
    seconds: u64,
    /// Pods at the start, and requests per second at a second.
    pods: u32,
    rate: fn(f64) -> f64,
}

#[derive(Debug)]
struct Outcome {
    wait_p99: f64,
    wait_mean: f64,
    pod_seconds: f64,
    peak: u32,
}

const TICK_MS: u64 = 10;

struct World {
    now: f64,
    queue: VecDeque<f64>,
    /// Ends of requests being served.
    serving: Vec<(f64, f64)>,
    /// Orders of pods that are starting, oldest first.
    starting: VecDeque<f64>,
    ready: u32,
    replicas: u32,
    sample: Sample,
    waits: Vec<f64>,
    started: Vec<Duration>,
}

impl World {
    fn tick(&mut self, scenario: &Scenario, random: &mut Random, next: &mut f64) {
        let dt = TICK_MS as f64 / 1000.0;
        self.sample.in_flight_seconds += self.serving.len() as f64 * dt;
        self.sample.held_seconds += self.queue.len() as f64 * dt;
        self.now += dt;
        while *next <= self.now {
            self.queue.push_back(*next);
            self.sample.arrivals += 1;
            *next += random.exponential(1.0 / (scenario.rate)(*next).max(1e-9));
        }
        let now = self.now;
        let (ended, going): (Vec<_>, Vec<_>) = self.serving.drain(..).partition(|(end, _)| *end <= now);
        self.serving = going;
        self.sample.completions += ended.len() as u64;
        self.sample.service_seconds += ended.iter().map(|(_, took)| took).sum::<f64>();
        while self
            .starting
            .front()
            .is_some_and(|ordered| ordered + scenario.boot <= now)
        {
            self.starting.pop_front();
            self.ready += 1;
            self.started.push(Duration::from_secs_f64(scenario.boot));
        }
        while self.serving.len() < (self.ready * scenario.limit) as usize
            && let Some(arrived) = self.queue.pop_front()
        {
            self.waits.push(now - arrived);
            let took = random.exponential(scenario.service);
            self.serving.push((now + took, took));
        }
        (self.sample.held, self.sample.in_flight) = (self.queue.len() as u32, self.serving.len() as u32);
        self.sample.idle = (self.sample.held + self.sample.in_flight == 0).then_some(Duration::ZERO);
    }

    fn scale(&mut self, to: u32) {
        for _ in self.replicas..to {
            self.starting.push_back(self.now);
        }
        for _ in to..self.replicas {
            // Starting pods go first; a ready one finishes what it has.
            if self.starting.pop_back().is_none() {
                self.ready = self.ready.saturating_sub(1);
            }
        }
        self.replicas = to;
    }
}

fn simulate(scenario: &Scenario, algorithm: Algorithm, seed: u64) -> Outcome {
    let knobs = Knobs {
        algorithm,
        container_concurrency: scenario.limit,
        max_scale: 500,
        ..Knobs::default()
    };
    let begin = 1_700_000_000_000_u64;
    let mut pool = Pool::new(Policy::new(knobs).unwrap(), Time::from_millis(begin));
    let mut random = Random(seed);
    let mut world = World {
        now: 0.0,
        queue: VecDeque::new(),
        serving: Vec::new(),
        starting: VecDeque::new(),
        ready: scenario.pods,
        replicas: scenario.pods,
        sample: Sample::default(),
        waits: Vec::new(),
        started: Vec::new(),
    };
    let mut next = random.exponential(1.0 / (scenario.rate)(0.0).max(1e-9));
    let (mut pod_seconds, mut peak, mut wake_at) = (0.0, 0, None);
    for tick in 1..=scenario.seconds * 1000 / TICK_MS {
        let held = world.sample.held;
        world.tick(scenario, &mut random, &mut next);
        pod_seconds += f64::from(world.replicas) * TICK_MS as f64 / 1000.0;
        let now = Time::from_millis(begin + tick * TICK_MS);
        // A report every 100 ms, at once when the queue begins; and at its own times.
        let due =
            tick % 10 == 0 || (held == 0 && world.sample.held > 0) || wake_at.is_some_and(|at| now >= at);
        if !due {
            continue;
        }
        pool.observe(now, &world.sample);
        let ages = world
            .starting
            .iter()
            .map(|ordered| Duration::from_secs_f64(world.now - ordered));
        let facts = Facts {
            replicas: world.replicas,
            ready: world.ready,
            starting: ages.collect(),
            started: std::mem::take(&mut world.started),
            ..Facts::default()
        };
        let step = pool.step(now, &facts);
        wake_at = step.wake_at;
        if let Some(replicas) = step.replicas {
            world.scale(replicas);
        }
        peak = peak.max(world.replicas);
    }
    // Who still waits has waited at least so long.
    let now = world.now;
    world
        .waits
        .extend(world.queue.iter().map(|arrived| now - arrived));
    world.waits.sort_by(f64::total_cmp);
    let waits = &world.waits;
    Outcome {
        wait_p99: waits[waits.len() * 99 / 100],
        wait_mean: waits.iter().sum::<f64>() / waits.len() as f64,
        pod_seconds,
        peak,
    }
}

/// Mean over seeds.
fn mean(scenario: &Scenario, algorithm: Algorithm) -> Outcome {
    let seeds = [1, 2, 3];
    let all = seeds.map(|seed| simulate(scenario, algorithm, seed));
    let mean = |value: fn(&Outcome) -> f64| all.iter().map(value).sum::<f64>() / seeds.len() as f64;
    Outcome {
        wait_p99: mean(|outcome| outcome.wait_p99),
        wait_mean: mean(|outcome| outcome.wait_mean),
        pod_seconds: mean(|outcome| outcome.pod_seconds),
        peak: all.iter().map(|outcome| outcome.peak).max().unwrap_or(0),
    }
}

/// Compares with Knative's: largest ratios of p99 wait and of pod-seconds.
fn compare(scenario: &Scenario, wait: f64, pods: f64) {
    let kpa = mean(scenario, Algorithm::Kpa);
    let ours = mean(scenario, Algorithm::Adaptive);
    let name = scenario.name;
    println!("{name}: kpa {kpa:?}, ours {ours:?}");
    assert!(
        ours.wait_p99 <= kpa.wait_p99 * wait + 0.02,
        "{name}: p99 wait {} against {}",
        ours.wait_p99,
        kpa.wait_p99
    );
    assert!(
        ours.pod_seconds <= kpa.pod_seconds * pods,
        "{name}: {} pod-seconds against {}",
        ours.pod_seconds,
        kpa.pod_seconds
    );
}

#[test]
fn a_step_to_forty_times_the_load_waits_less_and_costs_a_fifth() {
    let rate = |second: f64| if second < 60.0 { 5.0 } else { 200.0 };
    let scenario = Scenario {
        name: "step 5 to 200",
        limit: 1,
        service: 0.1,
        boot: 3.0,
        seconds: 180,
        pods: 1,
        rate,
    };
    compare(&scenario, 0.75, 0.2);
}

#[test]
fn from_zero_to_two_hundred_at_once_waits_less_and_costs_half() {
    let scenario = Scenario {
        name: "0 to 200",
        limit: 10,
        service: 0.2,
        boot: 3.0,
        seconds: 90,
        pods: 0,
        rate: |_| 200.0,
    };
    compare(&scenario, 0.9, 0.5);
}

#[test]
fn slow_boots_do_not_make_a_crowd() {
    let scenario = Scenario {
        name: "0 to 3, slow boot",
        limit: 1,
        service: 0.1,
        boot: 10.0,
        seconds: 90,
        pods: 0,
        rate: |_| 3.0,
    };
    compare(&scenario, 1.02, 0.2);
    let rate = |second: f64| if second < 60.0 { 5.0 } else { 80.0 };
    let scenario = Scenario {
        name: "5 to 80, slow boot",
        limit: 2,
        service: 0.1,
        boot: 25.0,
        seconds: 180,
        pods: 1,
        rate,
    };
    compare(&scenario, 0.75, 0.2);
}

#[test]
fn bursts_wait_less_and_cost_a_fifth() {
    let rate = |second: f64| {
        if (second / 20.0).floor() % 2.0 == 0.0 {
            5.0
        } else {
            80.0
        }
    };
    let scenario = Scenario {
        name: "bursts 5/80",
        limit: 4,
        service: 0.15,
        boot: 3.0,
        seconds: 240,
        pods: 1,
        rate,
    };
    compare(&scenario, 1.02, 0.2);
}

#[test]
fn slow_waves_and_steady_load_cost_about_the_same() {
    let rate = |second: f64| 80.0 - 70.0 * (second * std::f64::consts::TAU / 300.0).cos();
    let scenario = Scenario {
        name: "sine 10-150",
        limit: 8,
        service: 0.2,
        boot: 3.0,
        seconds: 600,
        pods: 1,
        rate,
    };
    compare(&scenario, 1.0, 1.10);
    let scenario = Scenario {
        name: "steady 500",
        limit: 10,
        service: 0.2,
        boot: 3.0,
        seconds: 180,
        pods: 15,
        rate: |_| 500.0,
    };
    compare(&scenario, 1.02, 1.05);
}
