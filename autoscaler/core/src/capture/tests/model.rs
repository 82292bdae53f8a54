//! A small cluster around the machine: objects, activators, pods, nodes whose tables are late, a process that forgets.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const TICK: u64 = 100;
/// Nodes know what has stood for this long, in ticks: half of the settle time.
const TABLE_LAG: usize = 10;

/// What happens to the cluster from outside.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Kill(usize),
    Revive(usize),
    TakeKey,
    OptOut,
    OptIn,
    /// The process starts anew and has forgotten everything.
    Crash,
    /// The Service gets another port: a new generation of the Route.
    Port,
    Sleep,
    ProbesMiss,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Listed {
    Nothing,
    Activators(BTreeSet<String>, u32),
    Pods(u32),
}

/// What a node sends traffic to.
#[derive(Clone, Debug)]
struct Table {
    slice: Listed,
    builtin: u32,
}

struct World {
    now: u64,
    opted_in: bool,
    generation: u32,
    route: Option<u32>,
    private: bool,
    original: bool,
    slice: Listed,
    key: bool,
    /// The built-in slices follow key and pods a little later.
    builtin: u32,
    pods: u32,
    /// Ticks until a pod that is wanted is ready.
    boot: u32,
    /// Per activator: alive, and the generation on whose ports it listens.
    activators: Vec<(bool, Option<u32>)>,
    probe: Option<(u64, u64)>,
    probed: Option<(u64, Result<(), String>)>,
    misses: bool,
    tables: VecDeque<Table>,
    state: State,
    may_sleep: bool,
    /// Since when each activator is listed, and our slice and the built-in endpoints stand as they are.
    listed: BTreeMap<String, u64>,
    slice_since: u64,
    builtin_since: u64,
}

impl World {
    fn new(activators: usize) -> Self {
        Self {
            now: 0,
            opted_in: true,
            generation: 1,
            route: None,
            private: false,
            original: false,
            slice: Listed::Nothing,
            key: false,
            builtin: 1,
            pods: 1,
            boot: 0,
            activators: vec![(true, None); activators],
            probe: None,
            probed: None,
            misses: false,
            tables: VecDeque::new(),
            state: State::default(),
            may_sleep: false,
            listed: BTreeMap::new(),
            slice_since: 0,
            builtin_since: 0,
        }
    }

    fn live(&self) -> BTreeSet<String> {
        let live = self
            .activators
            .iter()
            .enumerate()
            .filter(|(_, (alive, _))| *alive);
        live.map(|(index, _)| format!("a{index}")).collect()
    }

    fn listening(&self) -> BTreeSet<String> {
        let all = self.activators.iter().enumerate();
        let listening = all
            .filter(|(_, (alive, generation))| *alive && generation.is_some() && *generation == self.route);
        listening.map(|(index, _)| format!("a{index}")).collect()
    }

    fn facts(&self) -> Facts {
        let wanted = match self.opted_in {
            true => Wanted::Captured,
            false => Wanted::Released {
                why: "opted out".to_owned(),
            },
        };
        Facts {
            wanted,
            service: true,
            private_services: self.private,
            any_private_service: self.private,
            route: match self.route {
                None => RouteFact::Missing,
                Some(generation) if generation == self.generation => RouteFact::Current,
                Some(_) => RouteFact::Outdated,
            },
            original_recorded: self.original,
            any_original: self.original,
            original: 1,
            complete: true,
            live: self.live(),
            listening: self.listening(),
            slice: match &self.slice {
                Listed::Nothing => SliceFact::None,
                Listed::Activators(names, generation) => SliceFact::Activators {
                    names: names.clone(),
                    current: Some(*generation) == self.route,
                },
                Listed::Pods(pods) => SliceFact::Pods {
                    current: *pods == self.pods,
                },
            },
            builtin_ready: self.builtin,
            key: self.key,
            selector_manager: Some("kubectl".to_owned()),
            probed: self.probed.clone(),
            pods_ready: self.pods,
            in_flight: 0,
        }
    }

    fn suffer(&mut self, blow: Blow) {
        match blow {
            Blow::Kill(index) => {
                if let Some(activator) = self.activators.get_mut(index) {
                    *activator = (false, None);
                }
            }
            Blow::Revive(index) => {
                if let Some(activator) = self.activators.get_mut(index) {
                    activator.0 = true;
                }
            }
            Blow::TakeKey => self.key = false,
            Blow::OptOut => self.opted_in = false,
            Blow::OptIn => self.opted_in = true,
            Blow::Crash => (self.state, self.probe, self.probed) = (State::default(), None, None),
            Blow::Port => self.generation += 1,
            Blow::Sleep if self.may_sleep => self.pods = 0,
            Blow::Sleep => {}
            Blow::ProbesMiss => self.misses = !self.misses,
        }
    }

    /// Time passes: pods boot, activators listen, built-in slices and nodes follow, probes end.
    fn pass(&mut self) {
        self.now += TICK;
        // An activator listens on what a Route says one tick after it says so.
        for (alive, listens) in &mut self.activators {
            if *alive {
                *listens = self.route;
            }
        }
        if self.boot > 0 {
            self.boot -= 1;
            if self.boot == 0 {
                self.pods = self.pods.max(1);
            }
        }
        let builtin = if self.key { 0 } else { self.pods };
        if builtin != self.builtin {
            (self.builtin, self.builtin_since) = (builtin, self.now);
        }
        if let Some((id, due)) = self.probe.filter(|(_, due)| *due <= self.now) {
            let _ = due;
            let lands =
                !self.misses && matches!(&self.slice, Listed::Activators(..)) && !self.listening().is_empty();
            self.probed = Some((
                id,
                if lands {
                    Ok(())
                } else {
                    Err("it landed on a pod".to_owned())
                },
            ));
            self.probe = None;
        }
        self.tables.push_back(Table {
            slice: self.slice.clone(),
            builtin: self.builtin,
        });
        if self.tables.len() > TABLE_LAG {
            self.tables.pop_front();
        }
    }

    fn set_slice(&mut self, slice: Listed) {
        let names = match &slice {
            Listed::Activators(names, _) => names.clone(),
            _ => BTreeSet::new(),
        };
        self.listed.retain(|name, _| names.contains(name));
        for name in names {
            self.listed.entry(name).or_insert(self.now);
        }
        if self.slice != slice {
            (self.slice, self.slice_since) = (slice, self.now);
        }
    }

    /// The machine's turn. Every action is checked against what it may not do.
    fn turn(&mut self) -> Result<Step, TestCaseError> {
        let facts = self.facts();
        let step = step(at(self.now), &Waits::default(), &self.state, &facts);
        self.state = step.state.clone();
        self.may_sleep = step.may_sleep.is_ok();
        if step
            .at_least
            .as_ref()
            .is_some_and(|(least, _)| self.pods < *least)
            && self.boot == 0
        {
            self.boot = 10;
        }
        let now = self.now;
        let stood = |since: u64| now - since >= 2_000;
        for action in step.actions.clone() {
            match action {
                Action::EnsurePrivateServices => self.private = true,
                Action::EnsureRoute => self.route = Some(self.generation),
                Action::RecordOriginal => self.original = true,
                Action::PublishActivators(names) => {
                    prop_assert!(
                        !names.is_empty() && names.is_subset(&self.listening()),
                        "{names:?}"
                    );
                    let route = self.route.unwrap_or(0);
                    self.set_slice(Listed::Activators(names, route));
                }
                Action::PublishPods => {
                    prop_assert!(self.pods > 0 && self.listening().is_empty());
                    self.set_slice(Listed::Pods(self.pods));
                }
                Action::Probe { id } => self.probe = Some((id, self.now + 200)),
                Action::AddKey => {
                    let listening = self.listening();
                    let serves = |(name, since): (&String, &u64)| listening.contains(name) && stood(*since);
                    prop_assert!(
                        self.listed.iter().any(serves),
                        "the key goes in before our slice has stood"
                    );
                    self.key = true;
                }
                Action::RemoveKey => {
                    prop_assert!(self.pods > 0, "the key goes out before pods are ready");
                    self.key = false;
                }
                Action::RemoveSlice => {
                    prop_assert!(self.builtin > 0 && !self.key);
                    let dead = self.listening().is_empty();
                    prop_assert!(
                        dead || stood(self.builtin_since),
                        "our slice goes before the built-in ones have stood"
                    );
                    self.set_slice(Listed::Nothing);
                }
                Action::EmptyRoute | Action::RemoveRoute => {
                    prop_assert!(self.slice == Listed::Nothing && !self.key);
                    prop_assert!(
                        stood(self.slice_since),
                        "listeners go before nodes have forgotten them"
                    );
                    self.route = None;
                }
                Action::RemovePrivateServices => self.private = false,
                Action::ForgetOriginal => self.original = false,
            }
        }
        Ok(step)
    }

    /// Whether a new connection by this table finds somebody, on every entry whose owner is alive.
    fn served(&self, table: &Table) -> bool {
        let pods = self.pods > 0 && (table.builtin > 0 || matches!(table.slice, Listed::Pods(_)));
        match &table.slice {
            Listed::Activators(names, _) => {
                let mut live = names.iter().filter_map(|name| {
                    let index: usize = name[1..].parse().ok()?;
                    self.activators.get(index).filter(|(alive, _)| *alive)
                });
                let any = live.clone().next().is_some();
                // A listed activator that lives has its ports open.
                live.all(|(_, listens)| listens.is_some()) && (any || pods)
            }
            _ => pods,
        }
    }

    /// Runs without blows until the machine has nothing to do.
    fn converge(&mut self) -> Result<Step, TestCaseError> {
        self.misses = false;
        for _ in 0..3_700 {
            self.pass();
            self.turn()?;
        }
        self.pass();
        self.turn()
    }
}

fn blow(activators: usize, mortal: usize) -> impl Strategy<Value = Blow> {
    prop_oneof![
        3 => (mortal..activators.max(mortal + 1)).prop_map(Blow::Kill),
        3 => (0..activators).prop_map(Blow::Revive),
        3 => Just(Blow::TakeKey),
        2 => Just(Blow::OptOut),
        2 => Just(Blow::OptIn),
        2 => Just(Blow::Crash),
        1 => Just(Blow::Port),
        2 => Just(Blow::Sleep),
        1 => Just(Blow::ProbesMiss),
    ]
}

/// Pauses in ticks, and what follows each.
fn blows(activators: usize, mortal: usize) -> impl Strategy<Value = Vec<(u64, Blow)>> {
    prop::collection::vec((0_u64..60, blow(activators, mortal)), 0..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// One activator stays: then no node's table, old or new, is ever without somebody who answers.
    #[test]
    fn no_table_is_ever_without_an_endpoint_that_answers(blows in blows(3, 1)) {
        let mut world = World::new(3);
        for (pause, blow) in blows {
            for _ in 0..=pause {
                world.pass();
                world.turn()?;
                if let Some(table) = world.tables.front() {
                    let asleep_by_others = world.pods == 0 && matches!(table.slice, Listed::Pods(_) | Listed::Nothing);
                    prop_assert!(world.served(table) || asleep_by_others, "at {}: {table:?}", world.now);
                }
            }
            // Only those that live may be lost without a trace: the last one stays.
            if !matches!(blow, Blow::Kill(0)) {
                world.suffer(blow);
            }
        }
    }

    /// Whatever happened, it ends where it should.
    #[test]
    fn from_any_state_it_converges(blows in blows(2, 0), opted_in in any::<bool>()) {
        let mut world = World::new(2);
        for (pause, blow) in blows {
            for _ in 0..=pause {
                world.pass();
                world.turn()?;
            }
            world.suffer(blow);
        }
        world.activators.iter_mut().for_each(|(alive, _)| *alive = true);
        world.opted_in = opted_in;
        let last = world.converge()?;
        prop_assert_eq!(&last.actions, &Vec::new());
        if opted_in {
            prop_assert_eq!(last.stage, Stage::Captured);
            prop_assert!(world.key && world.may_sleep);
            prop_assert_eq!(world.facts().slice, listed(&["a0", "a1"]));
        } else {
            prop_assert_eq!(last.stage, Stage::Outside);
            prop_assert!(!world.key && !world.private && !world.original && world.route.is_none());
            prop_assert_eq!(&world.slice, &Listed::Nothing);
            prop_assert!(world.pods > 0 && world.builtin > 0, "awake, as it was");
        }
    }

    /// Without a single activator the pods carry it, once they have been missed for long enough.
    #[test]
    fn while_the_key_is_in_the_slice_lists_somebody_alive(blows in blows(2, 0)) {
        let mut world = World::new(2);
        for (pause, blow) in blows {
            for _ in 0..=pause {
                world.pass();
                world.turn()?;
            }
            world.suffer(blow);
            // One second is enough to notice and to act.
            for _ in 0..10 {
                world.pass();
                world.turn()?;
            }
            if world.key && (world.pods > 0 || !world.listening().is_empty()) {
                let listed = match &world.slice {
                    Listed::Activators(names, _) => !names.is_disjoint(&world.listening()),
                    Listed::Pods(_) => world.pods > 0,
                    Listed::Nothing => false,
                };
                prop_assert!(listed, "at {} after {blow:?}: {:?}", world.now, world.slice);
            }
        }
    }
}
