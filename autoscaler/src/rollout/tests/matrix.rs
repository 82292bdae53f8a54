//! The crash matrix: the same releases with the process ending at each write, and at random moments with conflicts, lost
//! answers, lost watches, deposed leaders, clocks that disagree and replaced activators. Each has to end as the
//! undisturbed one.
//!
//! `DORMOUSE_SEEDS=1000` runs it whole; `DORMOUSE_SEED=17` one seed alone.

mod activators;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crds::names::COMMAND_ANNOTATION;
use kube::api::DeleteParams;
use tokio::time::Instant;

use super::super::look::only_why;
use super::*;
use activators::{Leader, Stage};

/// How often the script looks, and the built-in controllers do.
const LOOK: Duration = Duration::from_millis(250);
/// Longest life: with all that can happen on the way.
const LONGEST: Duration = Duration::from_secs(1_200);
/// No clock is further ahead of the wall's, in milliseconds: time goes back by so much when another process leads.
const MOST_AHEAD: u64 = 5_000;
/// Seeds of an ordinary test run.
const SEEDS: u64 = 8;

/// Of so many writes one is the last, in an ordinary test run.
const MOST_STRIDE: u64 = 64;

/// What somebody does in the course of a life.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Release(&'static str),
    Command(&'static str),
    Delete,
    OptOut,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// Everything is decided, and the template's revision is what serves or what has failed.
    Rests,
    /// The candidate has this weight.
    Has(&'static str),
    /// This phase.
    Is(Phase),
    /// There is no Rollout any more.
    Gone,
    /// Nothing of the Rollout is in force any more.
    Out,
}

/// Releases, one after the other.
#[derive(Clone, Copy, Debug)]
struct Life {
    name: &'static str,
    spec: fn() -> Value,
    script: &'static [(When, Act)],
    end: When,
}

use Act::{Command, Delete, OptOut, Release};
use When::{Gone, Has, Is, Out, Rests};

const LIVES: [Life; 11] = [
    Life {
        name: "a good one",
        spec: ladder,
        script: &[(Rests, Release("y"))],
        end: Rests,
    },
    Life {
        name: "a bad one, and the way back",
        spec: ladder,
        script: &[(Rests, Release("bad")), (Is(Phase::Failed), Release("x"))],
        end: Rests,
    },
    Life {
        name: "mirrored first, paced by evidence",
        spec: mirrored,
        script: &[(Rests, Release("y"))],
        end: Rests,
    },
    Life {
        name: "aborted, tried again, and let in unproven",
        spec: ladder,
        script: &[
            (Rests, Release("quiet")),
            (Has("50%"), Command("abort")),
            (Is(Phase::Failed), Command("retry")),
            (Is(Phase::Holding), Command("promote")),
        ],
        end: Rests,
    },
    Life {
        name: "superseded",
        spec: ladder,
        script: &[(Rests, Release("quiet")), (Has("50%"), Release("z"))],
        end: Rests,
    },
    Life {
        name: "paused, let in, and undone",
        spec: ladder,
        script: &[
            (Rests, Release("y")),
            (Has("10%"), Command("pause")),
            (Is(Phase::Paused), Command("resume")),
            (Rests, Command("undo")),
        ],
        end: Rests,
    },
    Life {
        name: "all at once, by time",
        spec: at_once,
        script: &[(Rests, Release("y")), (Rests, Release("z"))],
        end: Rests,
    },
    Life {
        name: "in place, and the next",
        spec: in_place,
        script: &[(Is(Phase::Idle), Release("y"))],
        end: Rests,
    },
    Life {
        name: "in place, and given back",
        spec: in_place,
        script: &[(Is(Phase::Idle), Delete)],
        end: Gone,
    },
    Life {
        name: "in place, and opted out",
        spec: in_place,
        script: &[(Is(Phase::Idle), OptOut)],
        end: Out,
    },
    Life {
        name: "given back in the middle",
        spec: ladder,
        script: &[(Rests, Release("quiet")), (Has("50%"), Delete)],
        end: Gone,
    },
];

fn ladder() -> Value {
    json!({
        "strategy": { "steps": [{ "weight": 10 }, { "weight": 50 }], "minStepDuration": "2s" },
        "analysis": { "bake": "1s" },
        "rollback": { "keepWarm": "2s" },
        "config": { "settle": "1s" },
    })
}

fn in_place() -> Value {
    let mut spec = ladder();
    spec["targetMode"] = json!("Paused");
    spec
}

fn mirrored() -> Value {
    json!({
        "strategy": { "mirror": { "percent": 100, "requests": 40 }, "minStepDuration": "1s" },
        "analysis": { "bake": "0s" },
        "rollback": { "keepWarm": "0s" },
        "config": { "settle": "1s" },
    })
}

fn at_once() -> Value {
    json!({
        "strategy": { "type": "Immediate", "minStepDuration": "1s" },
        "analysis": { "mode": "None", "bake": "1s" },
        "config": { "settle": "1s" },
    })
}

/// What a user can tell apart in the end.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ending {
    phase: Phase,
    stable: String,
    result: String,
    history: Vec<String>,
    quarantined: Vec<String>,
    weights: Vec<(String, u32)>,
    /// Image of each Deployment, and whether it has pods.
    deployments: BTreeMap<String, (String, bool)>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    /// The process ends at its write of this number, before it or after it.
    At(i64, bool),
    /// Anything at any time.
    Random(u64),
}

/// A life in progress.
struct Play {
    world: World,
    stage: Arc<Stage>,
    random: fastrand::Rng,
    trouble: Trouble,
    /// Nobody leads until then.
    dead_until: Option<Instant>,
    /// Deposed processes that have not ended yet, each with a write under way.
    stale: Vec<(Instant, Box<dyn FnOnce()>)>,
}

impl Play {
    async fn start(life: &Life, trouble: Trouble) -> Self {
        let seed = match trouble {
            Trouble::Random(seed) => seed,
            Trouble::None | Trouble::At(..) => 0,
        };
        fastrand::seed(seed);
        let stage = Arc::new(Stage::default());
        let world = World::start_with(LOOK, Some(Arc::clone(&stage.heard))).await;
        let mut play = Self {
            world,
            stage,
            random: fastrand::Rng::with_seed(seed),
            trouble,
            dead_until: None,
            stale: Vec::new(),
        };
        play.introduce();
        tokio::spawn(Arc::clone(&play.stage).play(play.world.client(), seed));
        play.world.play_going_to_zero();
        play.world.rolled_out(1, (life.spec)()).await;
        match trouble {
            // What it writes from here on is counted.
            Trouble::None => play.world.burn(i64::MAX),
            Trouble::At(writes, late) => {
                play.world.chaos.dies_late.store(late, Ordering::SeqCst);
                play.world.burn(writes);
            }
            Trouble::Random(seed) => {
                play.world.chaos.seed(seed);
                play.world.chaos.conflicts.store(40, Ordering::SeqCst);
                play.world.chaos.lost.store(40, Ordering::SeqCst);
                *play.stage.restless.lock() = true;
            }
        }
        play
    }

    fn introduce(&mut self) {
        self.stage.lead_to(Leader {
            fleet: Arc::clone(&self.world.fleet),
            counts: Arc::clone(&self.world.counts),
        });
    }

    async fn succeed(&mut self) {
        self.dead_until = None;
        self.world.chaos.dies_late.store(false, Ordering::SeqCst);
        if let Trouble::Random(_) = self.trouble {
            self.world.ahead = Duration::from_millis(self.random.u64(0..MOST_AHEAD));
        }
        self.world.succeed().await;
        self.introduce();
    }

    async fn disturb(&mut self) {
        let now = Instant::now();
        let (over, stale) = std::mem::take(&mut self.stale)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.stale = stale;
        let over: Vec<(Instant, Box<dyn FnOnce()>)> = over;
        over.into_iter().for_each(|(_, end)| end());
        if let Some(until) = self.dead_until {
            if now >= until {
                self.succeed().await;
            }
            return;
        }
        match self.trouble {
            Trouble::None => {}
            Trouble::At(..) if self.world.is_burnt() => {
                self.world.kill();
                self.succeed().await;
            }
            Trouble::At(..) => {}
            Trouble::Random(_) => match self.random.u32(0..160) {
                0..4 => {
                    self.world.kill();
                    *self.stage.leader.lock() = None;
                    self.dead_until = Some(now + Duration::from_millis(self.random.u64(0..4_000)));
                }
                4 => {
                    let end = now + Duration::from_millis(self.random.u64(500..3_000));
                    self.stale.push((end, Box::new(self.world.depose())));
                    self.succeed().await;
                }
                5..8 => self.world.lose_watches().await,
                _ => {}
            },
        }
    }

    /// Nothing goes wrong any more.
    async fn calm(&mut self) {
        self.trouble = Trouble::None;
        self.world.chaos.conflicts.store(0, Ordering::SeqCst);
        self.world.chaos.lost.store(0, Ordering::SeqCst);
        *self.stage.restless.lock() = false;
        for (_, end) in std::mem::take(&mut self.stale) {
            end();
        }
        if self.world.is_burnt() || self.dead_until.is_some() {
            self.world.kill();
            self.succeed().await;
        } else {
            self.world.burn(i64::MAX);
        }
    }

    async fn holds(&self, when: When, rollout: Option<&crds::Rollout>) -> bool {
        let Some(rollout) = rollout else {
            return when == Gone;
        };
        let status = &rollout.status.clone().unwrap_or_default();
        let commanded = rollout.annotations().get(COMMAND_ANNOTATION);
        match when {
            Gone => false,
            Out => *status == only_why(&status.why),
            Has(weight) => status.weight == weight,
            Is(phase) => status.phase == phase,
            Rests => {
                // Somebody may have been told something while nobody led.
                let obeyed = commanded.is_none_or(|text| *text == status.last_command);
                if !status.adopted || status.phase != Phase::Idle || !obeyed {
                    return false;
                }
                let images = self.images().await;
                let image = |name: &str| images.get(name).map(|(image, _)| image);
                let undone = status.last_command.starts_with("undo") && status.history.len() == 1;
                undone || image("web") == image(&status.stable_revision)
            }
        }
    }

    async fn act(&self, act: Act) {
        match act {
            Release(image) => self.world.set_image(image).await,
            Command(verb) => self.world.command(verb).await,
            Delete => {
                let all = self.world.rollouts();
                all.delete("web", &DeleteParams::default())
                    .await
                    .expect("it is deleted");
            }
            OptOut => self.world.annotate("web", json!({ OPTED: "false" })).await,
        }
    }

    async fn images(&self) -> BTreeMap<String, (String, bool)> {
        let all = self.world.images().await.into_iter();
        all.map(|(name, image, replicas)| (name, (image, replicas > 0)))
            .collect()
    }

    async fn ending(&self) -> Ending {
        let status = self.world.status().await;
        Ending {
            phase: status.phase,
            stable: status.stable_revision,
            result: status.attempt.map(|attempt| attempt.result).unwrap_or_default(),
            history: status.history,
            quarantined: status.quarantined,
            weights: self.world.weights().await,
            deployments: self.images().await,
        }
    }
}

/// Lives a life through. Returns how it ends, and how many writes that took.
async fn live(life: &Life, trouble: Trouble) -> Result<(Ending, i64), String> {
    let mut play = Play::start(life, trouble).await;
    let begun = Instant::now();
    let mut script = life.script.iter();
    let mut next = script.next();
    loop {
        tokio::time::sleep(LOOK).await;
        play.disturb().await;
        if let Some(broken) = play.stage.broken.lock().take() {
            return Err(broken);
        }
        let rollout = play.world.rollouts().get_opt("web").await.expect("an answer");
        let (when, act) = next.map_or((life.end, None), |(when, act)| (*when, Some(*act)));
        if play.holds(when, rollout.as_ref()).await {
            match act {
                Some(act) => play.act(act).await,
                None => break,
            }
            next = script.next();
        }
        if begun.elapsed() > LONGEST {
            return Err(format!(
                "waits for {when:?}: {:#?}",
                rollout.map(|rollout| rollout.status)
            ));
        }
    }
    let writes = play.world.writes_tried();
    play.calm().await;
    play.world.rest(30).await;
    if let Some(broken) = play.stage.broken.lock().take() {
        return Err(broken);
    }
    Ok((play.ending().await, writes))
}

/// Time is paused: a life of a minute takes as long as its work.
fn run(life: &Life, trouble: Trouble) -> Result<(Ending, i64), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(live(life, trouble))
}

/// Runs each of the cases on every processor, and says which fail.
fn all(cases: Vec<(usize, Trouble)>, calm: &[(Ending, i64)]) {
    let next = AtomicU64::new(0);
    let failures = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let at = usize::try_from(next.fetch_add(1, Ordering::SeqCst)).expect("few");
                    let Some((place, trouble)) = cases.get(at) else {
                        return;
                    };
                    let life = &LIVES[*place];
                    let case = format!("{}, {trouble:?}", life.name);
                    // A law that is broken inside is one more failure.
                    let lived = std::panic::catch_unwind(|| run(life, *trouble));
                    let wrong = match lived {
                        Err(_) => Some("it panicked, see above".to_owned()),
                        Ok(Err(wrong)) => Some(wrong),
                        Ok(Ok((ending, _))) if ending != calm[*place].0 => {
                            Some(format!("ends as {ending:#?}\nnot as {:#?}", calm[*place].0))
                        }
                        Ok(Ok(_)) => None,
                    };
                    failures
                        .lock()
                        .extend(wrong.map(|wrong| format!("{case}: {wrong}")));
                }
            });
        }
    });
    let failures = failures.into_inner();
    assert!(
        failures.is_empty(),
        "{} of {}: {}",
        failures.len(),
        cases.len(),
        failures[0]
    );
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, allowed: a number")),
    )
}

fn undisturbed() -> Vec<(Ending, i64)> {
    let lived = LIVES.iter().map(|life| run(life, Trouble::None));
    lived.map(|lived| lived.expect("an undisturbed life")).collect()
}

#[test]
fn a_process_that_ends_at_any_write_of_any_life_is_carried_on_to_the_same_end() {
    let calm = undisturbed();
    for (life, (ending, _)) in LIVES.iter().zip(&calm) {
        let all: u32 = ending.weights.iter().map(|(_, weight)| weight).sum();
        let routed = if life.end == Out { 0 } else { 10_000 };
        assert_eq!(all, routed, "{}: {ending:#?}", life.name);
    }
    let stride = (MOST_STRIDE * SEEDS / number("DORMOUSE_SEEDS").unwrap_or(SEEDS)).clamp(1, MOST_STRIDE);
    let mut cases = Vec::new();
    for (place, (_, writes)) in calm.iter().enumerate() {
        for at in 0..*writes {
            for late in [false, true] {
                let turn = u64::try_from(at).unwrap_or(0) * 2 + u64::from(late) + place as u64;
                if turn.is_multiple_of(stride) {
                    cases.push((place, Trouble::At(at, late)));
                }
            }
        }
    }
    all(cases, &calm);
}

#[test]
fn whatever_happens_whenever_each_life_ends_as_the_undisturbed_one() {
    let calm = undisturbed();
    let seeds = match number("DORMOUSE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DORMOUSE_SEEDS").unwrap_or(SEEDS),
    };
    let place = |seed: u64| usize::try_from(seed).unwrap_or(0) % LIVES.len();
    all(
        seeds.map(|seed| (place(seed), Trouble::Random(seed))).collect(),
        &calm,
    );
}
