//! Activators, played: each hears of the Route late and by itself, gives requests to pools by the weights that it knows,
//! counts what comes of them, and tells whoever leads. Nobody may ever be sent to a pool that is not there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::Route;
use crds::evidence::{ArmReport, EpochReport};
use crds::names::SCALE_MANAGER;
use crds::report::Report;
use crds::route::FULL_WEIGHT;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::sleep;

use crate::ingest::Ack;
use crate::path::tests::world::{Streams, key};
use crate::rollout::counts::Counts;

/// Milliseconds from one turn to the next.
const PAUSE: std::ops::Range<u64> = 100..400;
/// Requests of each activator in a turn.
const REQUESTS: u32 = 8;
/// Bad answers that trip a breaker.
const BREAKS: u64 = 20;

/// Who leads, as activators' streams see it.
pub(super) struct Leader {
    pub(super) fleet: Arc<Streams>,
    pub(super) counts: Arc<Counts>,
}

/// What the players and the script share.
#[derive(Default)]
pub(super) struct Stage {
    pub(super) leader: Mutex<Option<Leader>>,
    pub(super) heard: Arc<Mutex<Vec<Ack>>>,
    /// The process of each activator by its name: whoever leads next has streams to these, whatever they have heard.
    processes: Mutex<BTreeMap<String, String>>,
    /// The first law that was broken.
    pub(super) broken: Mutex<Option<String>>,
    /// Activators are replaced by others now and then.
    pub(super) restless: Mutex<bool>,
}

#[derive(Default)]
struct Activator {
    name: String,
    instance: String,
    route: Option<Route>,
    attempt: String,
    epochs: BTreeMap<u32, [ArmReport; 2]>,
    is_broken: bool,
}

/// A pool's image and its replicas.
type Pools = BTreeMap<String, (String, i32)>;

impl Stage {
    /// Activators' streams lead to this process.
    pub(super) fn lead_to(&self, leader: Leader) {
        for (name, instance) in self.processes.lock().iter() {
            leader.fleet.replace(name, instance);
        }
        *self.leader.lock() = Some(leader);
    }

    /// Plays for ever.
    pub(super) async fn play(self: Arc<Self>, client: Client, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut all, mut processes) = (Vec::new(), 2_u32);
        for number in 0..2 {
            all.push(Activator {
                name: format!("activator-{number}"),
                instance: format!("instance-{number}"),
                ..Activator::default()
            });
        }
        loop {
            sleep(Duration::from_millis(random.u64(PAUSE))).await;
            let routes = Api::<Route>::default_namespaced(client.clone());
            let route = routes.get_opt("web").await.expect("an answer");
            let pools = pools(&client).await;
            if let Some(route) = &route {
                self.check(route, &pools);
            }
            for activator in &mut all {
                if *self.restless.lock() && random.u32(0..150) == 0 {
                    processes += 1;
                    self.replace(activator, processes);
                }
                if random.u32(0..4) > 0 {
                    self.hear(activator, route.as_ref());
                }
                for _ in 0..REQUESTS {
                    self.send(activator, &client, &pools, &mut random).await;
                }
                // Lines get lost with their streams.
                if random.u32(0..4) > 0 {
                    self.tell(activator);
                }
            }
        }
    }

    fn break_law(&self, what: String) {
        self.broken.lock().get_or_insert(what);
    }

    fn check(&self, route: &Route, pools: &Pools) {
        let weights: Vec<_> = route
            .spec
            .pools
            .iter()
            .map(|pool| (&pool.name, pool.weight))
            .collect();
        let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
        if !weights.is_empty() && sum != FULL_WEIGHT {
            self.break_law(format!("weights add up to {sum}: {weights:?}"));
        }
        if let Some((name, weight)) = weights.iter().find(|(name, _)| !pools.contains_key(*name)) {
            self.break_law(format!("{name} has {weight} and is not there: {pools:?}"));
        }
    }

    fn replace(&self, activator: &mut Activator, process: u32) {
        self.heard.lock().retain(|ack| ack.instance != activator.instance);
        *activator = Activator {
            name: activator.name.clone(),
            instance: format!("instance-{process}"),
            ..Activator::default()
        };
        let running = (activator.name.clone(), activator.instance.clone());
        self.processes.lock().extend([running]);
        if let Some(leader) = self.leader.lock().as_ref() {
            leader.fleet.replace(&activator.name, &activator.instance);
        }
    }

    fn hear(&self, activator: &mut Activator, route: Option<&Route>) {
        let version = |route: Option<&Route>| route.map(|route| (route.uid(), route.metadata.generation));
        if version(route) == version(activator.route.as_ref()) {
            return;
        }
        activator.route = route.cloned();
        let mut heard = self.heard.lock();
        heard.retain(|ack| ack.instance != activator.instance);
        if let Some(route) = route {
            heard.push(Ack {
                activator: activator.name.clone(),
                instance: activator.instance.clone(),
                serving: true,
                uid: route.uid().unwrap_or_default(),
                generation: route.metadata.generation.unwrap_or(0),
                error: String::new(),
            });
        }
        drop(heard);
        if let Some(leader) = self.leader.lock().as_ref() {
            leader.fleet.has_heard(&key("web"));
        }
    }

    /// One request, by the coin.
    async fn send(
        &self,
        activator: &mut Activator,
        client: &Client,
        pools: &Pools,
        random: &mut fastrand::Rng,
    ) {
        let Some(route) = &activator.route else { return };
        let rollout = route.spec.rollout.clone();
        let mut point = random.u32(0..FULL_WEIGHT);
        let chosen = route.spec.pools.iter().find(|pool| {
            let hit = point < pool.weight;
            point = point.saturating_sub(pool.weight);
            hit
        });
        let Some(mut name) = chosen.map(|pool| pool.name.clone()) else {
            return;
        };
        let counted = rollout.filter(|rollout| !rollout.attempt.is_empty());
        if let Some(rollout) = &counted {
            if activator.attempt != rollout.attempt {
                activator.attempt.clone_from(&rollout.attempt);
                activator.epochs.clear();
                activator.is_broken = false;
            }
            let told = self.leader.lock();
            let out = told
                .as_ref()
                .map(|leader| leader.fleet.out.lock().get(&key("web")).cloned());
            drop(told);
            if out.flatten().as_ref() == Some(&rollout.attempt) {
                activator.is_broken = true;
            }
            if activator.is_broken && name == rollout.candidate {
                name.clone_from(&rollout.stable);
            }
        }
        let Some((image, replicas)) = pools.get(&name) else {
            self.break_law(format!(
                "a request was sent to {name}, which is not there: {pools:?}"
            ));
            return;
        };
        if *replicas == 0 {
            wake(client, &name).await;
        }
        let Some(rollout) = counted.filter(|_| !activator.is_broken) else {
            return;
        };
        // Nothing that it does counts: it stays where it is until somebody decides.
        if pools
            .get(&rollout.candidate)
            .is_some_and(|(image, _)| image == "quiet")
        {
            return;
        }
        let epoch = activator.epochs.entry(rollout.epoch).or_default();
        let bad_candidate = pools
            .get(&rollout.candidate)
            .is_some_and(|(image, _)| image == "bad");
        let [stable, candidate] = epoch;
        if rollout.mirror.is_some() {
            stable.requests += 1;
            candidate.requests += 1;
            candidate.bad += u64::from(bad_candidate);
        } else if name == rollout.candidate {
            candidate.requests += 1;
            candidate.bad += u64::from(image == "bad");
        } else {
            stable.requests += 1;
        }
        let bad: u64 = activator
            .epochs
            .values()
            .map(|[_, candidate]| candidate.bad)
            .sum();
        activator.is_broken = rollout.breaker.is_some() && bad >= BREAKS;
    }

    /// A line of its report: everything that it has counted for this attempt.
    fn tell(&self, activator: &Activator) {
        let Some(leader) = &*self.leader.lock() else {
            return;
        };
        let epochs = activator
            .epochs
            .iter()
            .map(|(epoch, [stable, candidate])| EpochReport {
                namespace: "default".into(),
                route: "web".into(),
                attempt: activator.attempt.clone(),
                epoch: *epoch,
                stable: stable.clone(),
                candidate: candidate.clone(),
                broken: activator.is_broken,
                ..EpochReport::default()
            });
        leader.counts.line(&Report {
            activator: activator.name.clone(),
            instance: activator.instance.clone(),
            epochs: epochs.collect(),
            ..Report::default()
        });
    }
}

async fn pools(client: &Client) -> Pools {
    let all = Api::<Deployment>::default_namespaced(client.clone());
    let all = all.list(&ListParams::default()).await.expect("Deployments").items;
    let there = all
        .into_iter()
        .filter(|each| each.metadata.deletion_timestamp.is_none());
    let one = |deployment: Deployment| {
        let name = deployment.name_any();
        let spec = deployment.spec.unwrap_or_default();
        let pod = spec.template.spec.unwrap_or_default();
        let image = pod.containers.first().and_then(|each| each.image.clone());
        (name, (image.unwrap_or_default(), spec.replicas.unwrap_or(1)))
    };
    there.map(one).collect()
}

/// What an activator does for a request when nobody else does.
async fn wake(client: &Client, pool: &str) {
    let ours = PatchParams {
        field_manager: Some(SCALE_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let body = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    let api = Api::<Deployment>::default_namespaced(client.clone());
    let woken = api.patch_scale(pool, &ours, &body).await;
    woken.expect("a pool that has a weight can be woken");
}
