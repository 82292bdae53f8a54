//! Laws that hold whatever happens.

use super::*;

/// One moment of a pool's life.
#[derive(Clone, Debug)]
struct Moment {
    pause: u64,
    arrivals: u32,
    in_flight: u32,
    held: u32,
    stale: bool,
    ready: u32,
    may_sleep: bool,
    at_least: Option<u32>,
    hpa: bool,
    command: Option<Command>,
    /// Somebody sets the replicas to this.
    foreign: Option<u32>,
    reachable: bool,
}

fn moment() -> impl Strategy<Value = Moment> {
    let traffic = (
        0_u64..90_000,
        0_u32..200,
        prop_oneof![3 => Just(0), 1 => 0_u32..50],
        prop_oneof![3 => Just(0), 1 => 0_u32..400],
    );
    let cluster = (prop::bool::weighted(0.1), 0_u32..12, prop::bool::weighted(0.8));
    let others = (
        prop_oneof![9 => Just(None), 1 => (0_u32..9).prop_map(Some)],
        prop::bool::weighted(0.05),
        prop_oneof![9 => Just(None), 1 => Just(Some(Command::Wake)), 1 => Just(Some(Command::Sleep))],
        prop_oneof![9 => Just(None), 1 => (0_u32..9).prop_map(Some)],
        prop::bool::weighted(0.9),
    );
    (traffic, cluster, others).prop_map(|(traffic, cluster, others)| {
        let (pause, arrivals, in_flight, held) = traffic;
        let (stale, ready, may_sleep) = cluster;
        let (at_least, hpa, command, foreign, reachable) = others;
        Moment {
            pause,
            arrivals,
            in_flight,
            held,
            stale,
            ready,
            may_sleep,
            at_least,
            hpa,
            command,
            foreign,
            reachable,
        }
    })
}

fn knobs() -> impl Strategy<Value = Knobs> {
    let scales = (0_u32..4, 0_u32..8, 0_u32..3, any::<bool>());
    let rest = (any::<bool>(), 0_u32..20, 0_u64..120, 0_u64..30);
    (scales, rest).prop_map(
        |((min, more, limit, kpa), (fixed, burst, keep_alive, delay))| Knobs {
            algorithm: if kpa { Algorithm::Kpa } else { Algorithm::Adaptive },
            min_scale: min,
            max_scale: if more == 0 { 0 } else { min + more },
            container_concurrency: limit,
            keep_alive: fixed.then(|| Duration::from_secs(keep_alive)),
            scale_down_delay: Duration::from_secs(delay),
            burst,
            ..Knobs::default()
        },
    )
}

/// One pool through its life; each step with the facts it was made from.
fn live(knobs: &Knobs, moments: &[Moment]) -> Vec<(Sample, Facts, Step)> {
    let mut pool = Pool::new(Policy::new(knobs.clone()).unwrap(), at(0.0));
    let (mut now, mut replicas, mut last_busy) = (0, 1, 0);
    let mut sample = Sample::default();
    let mut steps = Vec::new();
    for moment in moments {
        let seconds = moment.pause as f64 / 1000.0;
        now += moment.pause;
        sample.in_flight_seconds += f64::from(sample.in_flight) * seconds;
        sample.held_seconds += f64::from(sample.held) * seconds;
        sample.arrivals += u64::from(moment.arrivals);
        sample.completions += u64::from(moment.arrivals);
        sample.service_seconds += f64::from(moment.arrivals) * 0.1;
        (sample.in_flight, sample.held, sample.stale) = (moment.in_flight, moment.held, moment.stale);
        if moment.arrivals + moment.in_flight + moment.held > 0 {
            last_busy = now;
        }
        sample.idle = Some(Duration::from_millis(now - last_busy));
        let foreign = moment.foreign.filter(|to| *to != replicas).map(|to| {
            let from = std::mem::replace(&mut replicas, to);
            Foreign {
                from,
                manager: "kubectl".to_owned(),
            }
        });
        let facts = Facts {
            replicas,
            ready: moment.ready.min(replicas),
            starting: vec![Duration::from_secs(1); replicas.saturating_sub(moment.ready) as usize],
            may_sleep: if moment.may_sleep {
                Ok(())
            } else {
                Err("not captured".to_owned())
            },
            at_least: moment.at_least.map(|replicas| (replicas, "release".to_owned())),
            scaled_by: moment.hpa.then(|| "hpa/web".to_owned()),
            command: moment.command,
            foreign,
            reachable: moment.reachable,
            ..Facts::default()
        };
        let now = at(now as f64 / 1000.0);
        pool.observe(now, &sample);
        let step = pool.step(now, &facts);
        replicas = step.replicas.unwrap_or(replicas);
        steps.push((sample, facts, step));
    }
    steps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_written_keeps_the_laws(knobs in knobs(), moments in prop::collection::vec(moment(), 1..40)) {
        for (sample, facts, step) in live(&knobs, &moments) {
            let Some(to) = step.replicas else {
                prop_assert_eq!(step.reason.from, step.reason.to);
                prop_assert!(facts.replicas > 0 || sample.held == 0, "a held request finds no pod: {}", step.reason);
                continue;
            };
            prop_assert_ne!(to, facts.replicas);
            prop_assert_eq!((step.reason.from, step.reason.to), (facts.replicas, to));
            let at_least = facts.at_least.as_ref().map_or(0, |(replicas, _)| *replicas);
            if knobs.max_scale > 0 {
                prop_assert!(to <= knobs.max_scale.max(at_least), "above max: {}", step.reason);
            }
            // Beyond the first pod an HPA has its own minimum.
            let ours = facts.scaled_by.is_none() || facts.replicas == 0 || to == 0;
            if facts.reachable && ours {
                prop_assert!(to >= knobs.min_scale, "below min: {}", step.reason);
            }
            prop_assert!(to >= at_least, "below what is asked for: {}", step.reason);
            prop_assert!(to > 0 || (sample.held == 0 && sample.in_flight == 0), "asleep in use: {}", step.reason);
            prop_assert!(to > 0 || facts.may_sleep.is_ok(), "asleep uncaptured: {}", step.reason);
            prop_assert!(to >= facts.replicas || !sample.stale, "down while stale: {}", step.reason);
            if facts.scaled_by.is_some() && facts.replicas > 0 && to > 0 {
                prop_assert!(at_least >= to, "in the HPA's way: {}", step.reason);
            }
        }
    }

    #[test]
    fn a_life_lived_again_is_the_same(knobs in knobs(), moments in prop::collection::vec(moment(), 1..30)) {
        prop_assert_eq!(live(&knobs, &moments), live(&knobs, &moments));
    }

    #[test]
    fn asleep_it_has_no_timer_and_awake_it_always_comes_to_rest(knobs in knobs(), moments in prop::collection::vec(moment(), 0..20)) {
        // After the last request it is only looked at when it asks for it.
        let mut pool = Pool::new(Policy::new(Knobs { min_scale: 0, ..knobs }).unwrap(), at(0.0));
        let mut now = at(0.0);
        for moment in &moments {
            now = now + Duration::from_millis(moment.pause);
            let sample = Sample { held: moment.held, in_flight: moment.in_flight, idle: Some(Duration::ZERO), ..Sample::default() };
            pool.observe(now, &sample);
            pool.step(now, &facts(moment.ready));
        }
        let quiet_since = now;
        let mut replicas = 3;
        for _ in 0..5_000 {
            let sample = Sample { idle: Some(now.since(quiet_since)), ..Sample::default() };
            pool.observe(now, &sample);
            let step = pool.step(now, &facts(replicas));
            replicas = step.replicas.unwrap_or(replicas);
            match step.wake_at {
                Some(at) => {
                    prop_assert!(at > now);
                    now = at;
                }
                None => break,
            }
        }
        prop_assert_eq!(replicas, 0);
        prop_assert!(now.since(quiet_since) < Duration::from_secs(300), "{:?}", now.since(quiet_since));
    }
}
