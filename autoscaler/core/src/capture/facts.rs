//! The words of capture: what a step is made from and what it says.

use std::collections::BTreeSet;
use std::time::Duration;

use super::State;
use crate::Time;

/// What the user wants with the Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Opted in, and it can be captured.
    Captured,
    /// Opted out, or everything is being released.
    Released {
        /// Why, as a clause: `the annotation was removed`.
        why: String,
    },
    /// Opted in, but it cannot be captured. The Route stays, without ports, to carry the condition.
    Refused {
        /// Why.
        why: String,
    },
}

/// The Route as the cluster shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RouteFact {
    /// There is none.
    #[default]
    Missing,
    /// It has no ports and no pools: nothing is served.
    Empty,
    /// It has ports, but is not what it should be.
    Outdated,
    /// It is what it should be.
    Current,
}

/// Our slice on the user's Service as the cluster shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SliceFact {
    /// There is none, or it is empty.
    #[default]
    None,
    /// It lists activators.
    Activators {
        /// Their names.
        names: BTreeSet<String>,
        /// Whether ports and addresses are as they should be for these names.
        current: bool,
    },
    /// It lists pods.
    Pods {
        /// Whether it lists exactly the pods that are ready now, with the right ports.
        current: bool,
    },
}

/// What the cluster and the activators show of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What the user wants.
    pub wanted: Wanted,
    /// The Service is there. When it is not, everything of ours goes with it.
    pub service: bool,
    /// The pools' private Services are there and as they should be.
    pub private_services: bool,
    /// At least one of them is there.
    pub any_private_service: bool,
    /// The Route.
    pub route: RouteFact,
    /// Every workload carries the annotation with its original replicas.
    pub original_recorded: bool,
    /// At least one workload carries it.
    pub any_original: bool,
    /// The replicas to give back: the largest original, at least 1 when awake before capture.
    pub original: u32,
    /// Whether all activators have had time to report. Before that, one that is silent may only be unknown.
    pub complete: bool,
    /// Live, serving activators.
    pub live: BTreeSet<String>,
    /// Those of them that listen on all ports of the Route's current generation.
    pub listening: BTreeSet<String>,
    /// Our slice.
    pub slice: SliceFact,
    /// Ready endpoints in slices of the Service that are not ours.
    pub builtin_ready: u32,
    /// The selector has our key.
    pub key: bool,
    /// Who wrote the selector last, when that was not us.
    pub selector_manager: Option<String>,
    /// The outcome of the last self-probe that has one: its id, and whether it landed or what happened instead.
    pub probed: Option<(u64, Result<(), String>)>,
    /// Ready pods of all pools.
    pub pods_ready: u32,
    /// Requests in flight or held in activators for this Service's pools.
    pub in_flight: u32,
}

impl Facts {
    /// A Service that is opted in and has nothing of ours yet, nor pods, nor anybody who would serve it.
    #[must_use]
    pub fn untouched() -> Self {
        Self {
            wanted: Wanted::Captured,
            service: true,
            private_services: false,
            any_private_service: false,
            route: RouteFact::Missing,
            original_recorded: false,
            any_original: false,
            original: 1,
            complete: true,
            live: BTreeSet::new(),
            listening: BTreeSet::new(),
            slice: SliceFact::None,
            builtin_ready: 0,
            key: false,
            selector_manager: None,
            probed: None,
            pods_ready: 0,
            in_flight: 0,
        }
    }
}

/// What to do. Every action may be done again without harm, and all of one step may be done in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create or correct the pools' private Services.
    EnsurePrivateServices,
    /// Create or correct the Route.
    EnsureRoute,
    /// Write the annotation with the original replicas where it is missing.
    RecordOriginal,
    /// Let our slice list these activators.
    PublishActivators(BTreeSet<String>),
    /// Let our slice list the ready pods.
    PublishPods,
    /// Have an activator dial the Service's own address; the outcome comes back as [`Facts::probed`].
    Probe {
        /// Tells its outcome from earlier ones.
        id: u64,
    },
    /// Add our key to the selector, and drop our ownership of the field.
    AddKey,
    /// Remove our key from the selector.
    RemoveKey,
    /// Remove our slice.
    RemoveSlice,
    /// Take ports and pools out of the Route: activators stop listening, its conditions stay.
    EmptyRoute,
    /// Remove the Route.
    RemoveRoute,
    /// Remove the private Services.
    RemovePrivateServices,
    /// Remove the annotation with the original replicas.
    ForgetOriginal,
}

/// Where a Service stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Not captured, nothing of ours is there.
    #[default]
    Outside,
    /// Objects are being made; no activator listens yet.
    Preparing,
    /// Our slice stands; it is being proven that traffic lands on activators.
    Proving,
    /// The selector key is being set; built-in slices are emptying.
    Closing,
    /// All traffic lands on activators.
    Captured,
    /// No activator is there; our slice lists pods.
    FailOpen,
    /// On the way out.
    Releasing,
}

/// What one step says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// To be handed to the next step.
    pub state: State,
    /// What to do now, in order.
    pub actions: Vec<Action>,
    /// Where the Service stands.
    pub stage: Stage,
    /// The condition `Captured`.
    pub condition: Condition,
    /// Who takes our key away, if somebody does.
    pub selector_conflict: Option<SelectorConflict>,
    /// Whether its pools may go to zero; else the sentence that says why not.
    pub may_sleep: Result<(), String>,
    /// Replicas to keep at least, and why.
    pub at_least: Option<(u32, String)>,
    /// Why its pools keep the pods that they have, if they have to.
    pub holds: Option<String>,
    /// When to step again if nothing happens before.
    pub wake_at: Option<Time>,
}

/// The condition `Captured`: its message, and the kind from which the shell takes status and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What kind.
    pub kind: ConditionKind,
    /// One sentence.
    pub message: String,
}

/// Kinds of the condition `Captured`. Only [`ConditionKind::Probed`] is `True`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionKind {
    /// A self-probe landed on an activator.
    Probed,
    /// On the way.
    Capturing,
    /// On the way out, or out.
    Releasing,
    /// The self-probe did not land on an activator.
    ProbeFailed,
    /// No activator is there.
    NoActivator,
    /// It cannot be captured; the shell knows the reason.
    Refused,
}

/// Somebody takes our key out of the selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorConflict {
    /// The field manager, when known.
    pub manager: Option<String>,
    /// How often since it was last calm.
    pub times: u32,
    /// When we put it back, if it is not there.
    pub back_at: Option<Time>,
}

/// How long things wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// How long what replaces something must have stood before that is taken away.
    pub settle: Duration,
    /// How long a self-probe may take.
    pub probe: Duration,
    /// How long release waits for pods and for requests in flight before it goes on without.
    pub patience: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(2),
            probe: Duration::from_secs(5),
            patience: Duration::from_secs(300),
        }
    }
}
