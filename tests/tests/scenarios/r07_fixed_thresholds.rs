//! Rollouts, scenario 7: Flagger's rule with Flagger's numbers, for who wants to keep them: ladders, five failed checks, no
//! traffic, no stale metric. Several Services side by side, what a board shows of them, and what somebody outside is told.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::names;
use crds::rollout::{AttemptStatus, RolloutStatus};
use dormouse_tests::e2e::{self, App, Cluster, Load, Receiver, SOON, Scrape, System};
use loadtest::Connections;
use serde_json::{Value, json};
use tokio::time::Instant;

/// How often the rule looks, but at the Service of which the mix is measured.
const INTERVAL: &str = "2s";
/// There, it is longer: more answers at each weight.
const MIX_INTERVAL: &str = "3s";
/// Failed checks until it is over.
const THRESHOLD: u32 = 5;
/// The share of answers at a weight is off by five standard deviations once in 1.7 million, and it may be by so much anyway.
const OFF: f64 = 0.05;
/// Answers at one weight, at least: with fewer, five standard deviations allow nearly everything.
const LEAST: u64 = 200;
/// How much longer the candidate takes of which the times are looked at. Between two bounds of the histogram.
const SLOWER_MS: u64 = 40;
const LIMIT: Duration = Duration::from_secs(60);

/// A Service by Flagger's ladder, with a load of its own. At its least weight, 14 requests go to the candidate between two
/// looks on average: none at all, which is a failed check, comes once in a million times.
struct Ladder {
    name: &'static str,
    step: u32,
    max: u32,
    interval: &'static str,
    per_second: f64,
    /// What follows from step and maximum: up to the first weight that is not below the maximum.
    weights: &'static [u32],
}

const MIX: Ladder = Ladder {
    name: "mix",
    step: 20,
    max: 70,
    interval: MIX_INTERVAL,
    per_second: 150.0,
    weights: &[20, 40, 60, 80],
};
const SIXTY: Ladder = Ladder {
    name: "sixty",
    step: 20,
    max: 60,
    interval: INTERVAL,
    per_second: 40.0,
    weights: &[20, 40, 60],
};
const TENS: Ladder = Ladder {
    name: "tens",
    step: 10,
    max: 50,
    interval: INTERVAL,
    per_second: 70.0,
    weights: &[10, 20, 30, 40, 50],
};
const FAILING: Ladder = Ladder {
    name: "failing",
    interval: INTERVAL,
    per_second: 40.0,
    ..MIX
};
/// Nobody asks it.
const QUIET: Ladder = Ladder {
    name: "quiet",
    interval: "1s",
    per_second: 0.0,
    ..FAILING
};
/// Its release never gets ready.
const STUCK: Ladder = Ladder {
    name: "stuck",
    ..QUIET
};

#[test]
fn flaggers_rule_takes_its_steps_its_five_failures_and_nothing_of_the_release_before() {
    e2e::scenario("r07", System::Pods, async |cluster: &mut Cluster| {
        let receiver = alerted(cluster).await?;
        let all = [&MIX, &SIXTY, &TENS, &FAILING, &QUIET, &STUCK];
        for ladder in all {
            let app = App::new(ladder.name).env("VERSION", "v1");
            cluster.apply(&app.annotate("min-scale", "1")).await?;
            cluster.apply_rollout(ladder.name, ladder.spec()).await?;
        }
        for ladder in all {
            cluster.wait_adopted(ladder.name).await?;
        }
        let (mixed, _, _, failed, silent, stuck) = tokio::try_join!(
            mixed(cluster),
            promoted(cluster, &SIXTY),
            promoted(cluster, &TENS),
            failing_then_healthy(cluster),
            rolled_back_without_traffic(cluster),
            never_ready(cluster),
        )?;
        let alerts = told(&receiver).await?;
        Ok(format!("{mixed}; {failed}; {silent}; {stuck}; {alerts}"))
    });
}

impl Ladder {
    fn spec(&self) -> Value {
        json!({
            "strategy": { "linear": { "step": self.step, "max": self.max } },
            "analysis": {
                "mode": "Threshold",
                "interval": self.interval,
                "threshold": THRESHOLD,
                // Half a second is usual; a machine that is shared has slower moments, which are not what this is about.
                "metrics": [
                    { "name": "request-success-rate", "min": 99 },
                    { "name": "request-duration", "max": 2000 },
                ],
                // A rollout of seconds is over before pods have warmed up as long as usual.
                "warmup": { "perPodRequests": 5, "perPod": "0s" },
                "bake": "0s",
            },
            "rollback": { "keepWarm": "1s" },
            "config": { "settle": "1s" },
            "progressDeadline": if self.name == STUCK.name { "3s" } else { "1m" },
            "alerts": [{ "severity": "info", "secretRef": { "name": "slack" } }],
        })
    }

    /// What the ids of its load begin with.
    fn prefix(&self) -> String {
        format!("{}-", self.name)
    }

    /// Its load.
    async fn load(&self, cluster: &Cluster) -> Result<Load> {
        let mut options = e2e::steady_over(&cluster.urls(self.name).await?, self.per_second)?;
        // What a thousand new connections cost is not what this is about.
        options.connections = Connections::Kept;
        let load = Load::start(&self.prefix(), options).await?;
        load.goes_on(20, SOON).await?;
        Ok(load)
    }

    /// Waits until the present attempt has taken every step of the ladder, and checks that it took no other and failed none.
    async fn climbed(&self, cluster: &Cluster, before: &str) -> Result<RolloutStatus> {
        let done = cluster.wait_result(self.name, before, "Promoted", LIMIT).await?;
        let attempt = attempt_of(&done)?;
        let mut weights = weights(attempt);
        ensure!(
            weights.pop() == Some(100) && weights == self.weights,
            "{}: {:?}",
            self.name,
            attempt.epochs
        );
        ensure!(
            attempt.ticks.failed_checks == 0,
            "{}: {:?}, {:?}",
            self.name,
            attempt.ticks,
            attempt.measurements
        );
        Ok(done)
    }
}

fn attempt_of(status: &RolloutStatus) -> Result<&AttemptStatus> {
    status.attempt.as_ref().context("an attempt")
}

/// The weights that the candidate had, in percent.
fn weights(attempt: &AttemptStatus) -> Vec<u32> {
    attempt.epochs.iter().map(|epoch| epoch.weight_bp / 100).collect()
}

/// Somebody who is told, and what lets the autoscaler read their address: as `manifests/components/alerts` does.
async fn alerted(cluster: &Cluster) -> Result<Receiver> {
    let receiver = Receiver::start(cluster).await?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "slack" },
        "stringData": { "address": receiver.url() },
    });
    e2e::apply(&cluster.client, &secret.to_string()).await?;
    let role = include_str!("../../../manifests/components/alerts/role.yaml");
    e2e::apply(&cluster.client, role).await?;
    Ok(receiver)
}

/// By a ladder under its load, from the first weight to the last.
async fn promoted(cluster: &Cluster, ladder: &Ladder) -> Result<()> {
    let load = ladder.load(cluster).await?;
    cluster.release(ladder.name, &[("VERSION", "v2")]).await?;
    ladder.climbed(cluster, "").await?;
    let results = load.stop().await;
    cluster.witness().proves(&ladder.prefix(), &results)?;
    Ok(())
}

/// As [`promoted`], and the mix of the answers at each weight is what the weight says, and on a board.
async fn mixed(cluster: &Cluster) -> Result<String> {
    let stable = cluster.rollout_status(MIX.name).await?.stable_revision;
    let load = MIX.load(cluster).await?;
    let slower = SLOWER_MS.to_string();
    let release = [("VERSION", "v2"), ("EXTRA_DELAY_MS", slower.as_str())];
    cluster.release(MIX.name, &release).await?;
    let (mixes, board) = tokio::try_join!(mixes(cluster), board(cluster, &stable))?;
    MIX.climbed(cluster, "").await?;
    let results = load.stop().await;
    cluster.witness().proves(&MIX.prefix(), &results)?;
    Ok(format!("{mixes}; {board}"))
}

/// What the pods saw from when every activator had a weight until just before the next one.
async fn mixes(cluster: &Cluster) -> Result<String> {
    let (witness, prefix) = (cluster.witness(), MIX.prefix());
    let mut shares = Vec::new();
    for weight in MIX.weights {
        let status = cluster
            .wait_weight(MIX.name, &format!("{weight}%"), LIMIT)
            .await?;
        let (step, candidate) = (
            status.step.context("a step")?.index,
            status.candidate_revision.as_str(),
        );
        let first = witness.seen(&prefix)?;
        let mut last = first.clone();
        let stood = async || {
            let now = witness.seen(&prefix).ok()?;
            // The status says a weight before any activator is told of it: what was seen before this look is of the old one.
            let status = cluster.rollout_status(MIX.name).await.ok()?;
            if status.step.is_none_or(|now| now.index != step) {
                return Some(());
            }
            last = now;
            None
        };
        e2e::eventually(&format!("after {weight} %"), LIMIT, stood).await?;
        let all = (last.ids.len() - first.ids.len()) as u64;
        ensure!(all >= LEAST, "{all} answers at {weight} % say too little");
        let share = (last.of(candidate) - first.of(candidate)) as f64 / all as f64;
        let wanted = f64::from(*weight) / 100.0;
        let off = (5.0 * (wanted * (1.0 - wanted) / all as f64).sqrt()).max(OFF);
        ensure!(
            (share - wanted).abs() <= off,
            "at {weight} %: {share:.3} of {all} answers were the candidate's, {off:.3} off at most"
        );
        shares.push(format!("{:.1} % of {all} at {weight} %", 100.0 * share));
    }
    Ok(format!("the candidate answered {}", shares.join(", ")))
}

/// What a board needs of stable and candidate is at the activators' `/metrics`, and agrees with what the pods saw.
async fn board(cluster: &Cluster, stable: &str) -> Result<String> {
    let status = cluster.wait_weight(MIX.name, "60%", LIMIT).await?;
    let candidate = status.candidate_revision.as_str();
    let (witness, prefix) = (cluster.witness(), MIX.prefix());
    let before = witness.seen(&prefix)?;
    let volume = |all: &Scrape, pool: &str| all.sum("activator_requests_total", &[("pool", pool)]);
    // A request counts when it has ended.
    let caught_up = async || {
        let all = cluster.scrape(names::ACTIVATOR_SERVICE).await.ok()?;
        let has = |pool: &str| volume(&all, pool) >= before.of(pool) as f64;
        (has(stable) && has(candidate)).then_some(all)
    };
    let all = e2e::eventually("the series", SOON, caught_up).await?;
    let after = witness.seen(&prefix)?;
    let mut told = Vec::new();
    for (pool, role, weight) in [(stable, "stable", 0.4), (candidate, "candidate", 0.6)] {
        let (own, ended) = ([("pool", pool)], volume(&all, pool));
        ensure!(
            ended <= after.of(pool) as f64,
            "{ended} of {pool}'s {} requests ended",
            after.of(pool)
        );
        let good = all.sum("activator_requests_total", &[("pool", pool), ("outcome", "ok")]);
        ensure!(good == ended, "{good} of {ended} of {role} were good");
        let times = "activator_service_time_seconds";
        let timed = all.sum(&format!("{times}_count"), &own);
        ensure!(
            timed >= ended && timed <= after.of(pool) as f64,
            "{timed} times of {ended} requests"
        );
        let at = |quantile| all.quantile(times, &own, quantile).context("a quantile");
        let (p50, p90, p99) = (at(0.5)?, at(0.9)?, at(0.99)?);
        ensure!(p50 <= p90 && p90 <= p99, "{p50:?} {p90:?} {p99:?}");
        let labels = [("route", MIX.name), ("pool", pool), ("role", role)];
        let shares = all.each("activator_route_weight_ratio", &labels);
        ensure!(shares == [weight; 2], "both activators give {role} {shares:?}");
        told.push((
            p50,
            format!("{role} {ended} requests, p50 {p50:?} p90 {p90:?} p99 {p99:?}"),
        ));
    }
    let [(fast, stable), (slow, candidate)] = told.try_into().map_err(|_| anyhow::anyhow!("two of them"))?;
    ensure!(
        fast < slow && slow >= Duration::from_millis(25),
        "the candidate takes {SLOWER_MS} ms longer: {stable}; {candidate}"
    );
    Ok(format!("on the board at 60 %: {stable}; {candidate}"))
}

/// Five failed checks, out at the look after the fifth; and right after it a healthy release fails none.
async fn failing_then_healthy(cluster: &Cluster) -> Result<String> {
    let name = FAILING.name;
    let load = FAILING.load(cluster).await?;
    let release = [("VERSION", "bad"), ("FAIL_PERCENT", "100")];
    cluster.release(name, &release).await?;
    let fifth = cluster
        .wait_rollout(name, "five failed checks", LIMIT, |status| {
            let attempt = status.attempt.as_ref();
            attempt.is_some_and(|attempt| attempt.ticks.failed_checks >= THRESHOLD)
        })
        .await?;
    let failed = cluster.wait_result(name, "", "RolledBack", LIMIT).await?;
    let begun = Instant::now();
    let healthy = [("VERSION", "good"), ("FAIL_PERCENT", "")];
    cluster.release(name, &healthy).await?;

    let bad = attempt_of(&failed)?;
    checks_failed(cluster, &FAILING, bad, "request-success-rate 0.00 is below 99").await?;
    let looked = |status: &RolloutStatus| attempt_of(status)?.ticks.last_at.clone().context("a look");
    let waited = looked(&failed)?.0.duration_since(looked(&fifth)?.0);
    let waited = Duration::try_from(waited)?;
    let interval = Duration::from_secs(2);
    ensure!(
        waited >= interval && waited < 2 * interval,
        "out {waited:?} after the fifth failed check"
    );

    let uid = bad.uid.as_str();
    cluster
        .wait_rollout(name, "the next one begins", LIMIT, |status| {
            status.attempt.as_ref().is_some_and(|attempt| attempt.uid != uid)
        })
        .await?;
    let begins = begun.elapsed();
    let done = FAILING.climbed(cluster, uid).await?;
    let results = load.stop().await;
    let prefix = FAILING.prefix();
    let seen = cluster.witness().proves_but(&prefix, &results, u64::MAX)?;
    ensure!(
        seen.of(&bad.candidate) == results.failed && seen.of(&done.stable_revision) > 0,
        "{} requests were the bad release's, {} failed",
        seen.of(&bad.candidate),
        results.failed
    );
    Ok(format!(
        "{THRESHOLD} failed checks and out {waited:?} later, {} answers; the healthy one after it began in {begins:?} and failed none",
        results.failed
    ))
}

/// That an attempt was taken out by so many failed checks at its first weight, and that each has said why.
async fn checks_failed(cluster: &Cluster, ladder: &Ladder, attempt: &AttemptStatus, why: &str) -> Result<()> {
    let name = ladder.name;
    ensure!(
        weights(attempt) == ladder.weights[..1],
        "{name}: {:?}",
        attempt.epochs
    );
    ensure!(
        attempt.ticks.failed_checks == THRESHOLD && attempt.why == format!("{THRESHOLD} checks failed"),
        "{name}: {attempt:#?}"
    );
    let wanted: Vec<String> = (1..=THRESHOLD)
        .map(|check| {
            format!(
                "Halted at {} %: {why}; {check} of {THRESHOLD} failed.",
                ladder.weights[0]
            )
        })
        .collect();
    // Events are written beside everything else.
    let mut told = Vec::new();
    let said = async || {
        told = cluster.told(name).await.ok()?;
        let checks = told.iter().filter(|(reason, _)| reason == "CheckFailed");
        checks.map(|(_, text)| text).eq(&wanted).then_some(())
    };
    let what = format!("{name}: an Event for each of {wanted:?}");
    let waited = e2e::eventually(&what, SOON, said).await;
    waited.with_context(|| format!("{name} was told {told:#?}"))
}

/// As Flagger has it: no traffic is a failed check, and takes a release out of which nothing is known.
async fn rolled_back_without_traffic(cluster: &Cluster) -> Result<String> {
    cluster.release(QUIET.name, &[("VERSION", "v2")]).await?;
    let failed = cluster.wait_result(QUIET.name, "", "RolledBack", LIMIT).await?;
    let attempt = attempt_of(&failed)?;
    checks_failed(
        cluster,
        &QUIET,
        attempt,
        "no values found for request-success-rate",
    )
    .await?;
    Ok("without traffic out as well".to_owned())
}

/// Pods that do not get ready in time.
async fn never_ready(cluster: &Cluster) -> Result<String> {
    let release = [("VERSION", "v2"), ("BOOT_DELAY_MS", "3600000")];
    cluster.release(STUCK.name, &release).await?;
    let failed = cluster.wait_result(STUCK.name, "", "Expired", LIMIT).await?;
    let attempt = attempt_of(&failed)?;
    ensure!(attempt.epochs.is_empty(), "it had a weight: {:?}", attempt.epochs);
    Ok(format!("one whose pods do not start: {}", attempt.why))
}

/// What Slack is told of a Rollout, in this order: event, colour, and what the text says among other things.
fn wanted(name: &str) -> Vec<(&'static str, &'static str, &'static str)> {
    let begun = [
        ("Initialized", "good", "has all traffic"),
        ("NewRevision", "good", "scaling up"),
    ];
    let out = |why| ("RollingBack", "danger", why);
    let done = ("Promoted", "good", "is stable, after");
    let rest = match name {
        "failing" => vec![out("5 checks failed"), begun[1], done],
        "quiet" => vec![out("5 checks failed")],
        "stuck" => vec![out("0 of 1 pods were ready after 3 s")],
        _ => vec![done],
    };
    begun.into_iter().chain(rest).collect()
}

/// Every alert has come once, in Slack's words, and no other.
async fn told(receiver: &Receiver) -> Result<String> {
    let all = [&MIX, &SIXTY, &TENS, &FAILING, &QUIET, &STUCK];
    let number = all.iter().map(|ladder| wanted(ladder.name).len()).sum();
    let arrived = async || (receiver.received().len() >= number).then_some(());
    let waited = e2e::eventually("every alert", SOON, arrived).await;
    let received = receiver.received();
    waited.with_context(|| format!("{received:#?}"))?;
    ensure!(received.len() == number, "{number} alerts, not {received:#?}");
    for ladder in all {
        let mut missing = wanted(ladder.name);
        for message in &received {
            let attachment = &message["attachments"][0];
            if attachment["author_name"] != format!("{}.default", ladder.name) {
                continue;
            }
            let text = attachment["text"].as_str().unwrap_or_default();
            ensure!(
                message["text"] == format!("default/{}: {text}", ladder.name),
                "{message:#}"
            );
            let at = missing.iter().position(|(event, color, says)| {
                attachment["title"] == *event && attachment["color"] == *color && text.contains(says)
            });
            missing.remove(at.with_context(|| format!("nobody is to be told {message:#}"))?);
        }
        ensure!(missing.is_empty(), "{} is not told {missing:?}", ladder.name);
    }
    Ok(format!("{number} alerts"))
}
