//! Rollouts, scenario 8: who meets the candidate, and who does not: copies of requests, a header, a cookie, a person's word,
//! and one release after another. Several Services side by side.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::names;
use crds::rollout::{Phase, RolloutStatus};
use dormouse_tests::e2e::{self, App, Cluster, Load, SOON, System};
use loadtest::Connections;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
/// Copies before the candidate gets any request of its own.
const PAIRS: u64 = 60;
/// Between two requests of a client that mirrors: 20 a second.
const EVERY: Duration = Duration::from_millis(50);
/// Requests of those who match, before the evidence can be in: that takes 67.
const ROUNDS: usize = 40;
/// Clients with a cookie. All on one side comes once in 2^39 runs.
const CLIENTS: usize = 40;
/// Requests of each.
const EACH: usize = 5;

#[test]
fn users_meet_a_candidate_by_copies_by_a_match_by_their_cookie_or_on_command_and_not_otherwise() {
    e2e::scenario("r08", System::Pods, async |cluster: &mut Cluster| {
        for (name, spec) in services() {
            let app = App::new(name).annotate("min-scale", "1").env("VERSION", "v1");
            cluster.apply(&app).await?;
            cluster.apply_rollout(name, spec).await?;
        }
        for (name, _) in services() {
            cluster.wait_adopted(name).await?;
        }
        let (mirrored, matched, stuck, switched, ..) = tokio::try_join!(
            mirrored(cluster),
            matched(cluster),
            sticky(cluster),
            switched(cluster),
            queued(cluster),
            superseded(cluster),
        )?;
        Ok(format!("{mirrored}; {matched}; {stuck}; {switched}"))
    });
}

/// The Services, and how each is rolled out.
fn services() -> [(&'static str, Value); 6] {
    // By evidence, but sure: the usual alpha takes a healthy release out in a hundred runs, and that is proved elsewhere.
    let judged = json!({ "alpha": 1e-6, "bake": "0s" });
    let unjudged = json!({ "mode": "None", "bake": "0s" });
    let paused = |weight: u32| json!({ "weight": weight, "pause": "1h" });
    let spec = |strategy: Value, analysis: &Value| {
        let mut strategy = strategy;
        strategy["minStepDuration"] = json!("0s");
        json!({
            "strategy": strategy,
            "analysis": analysis,
            "rollback": { "keepWarm": "1s" },
            "config": { "settle": "1s" },
        })
    };
    let mirror = json!({ "mirror": { "percent": 100, "requests": PAIRS }, "steps": [paused(60)] });
    let insiders = json!([{ "headers": { "x-canary": { "exact": "insider" } } }]);
    let sticky = json!({
        "sessionAffinity": { "cookie": "rev", "maxAge": "24h" },
        "steps": [paused(50), paused(80)],
    });
    let mut queue = spec(json!({ "steps": [paused(50)] }), &unjudged);
    let supersede = queue.clone();
    queue["onNewRevision"] = json!("Queue");
    [
        ("mirror", spec(mirror, &judged)),
        (
            "match",
            spec(json!({ "type": "ABTest", "match": insiders }), &judged),
        ),
        ("sticky", spec(sticky, &unjudged)),
        (
            "switch",
            spec(json!({ "type": "BlueGreen", "gate": "Manual" }), &judged),
        ),
        ("queue", queue),
        ("supersede", supersede),
    ]
}

/// The revision that answers one request.
async fn by_whom(url: &str, headers: &[(&str, &str)]) -> Result<String> {
    let answer = e2e::ask(url, headers, SOON).await?;
    ensure!(answer.status() == 200, "{url}: {answer:?}");
    revision_of(answer.body())
}

/// A pod's name is its Deployment's with two parts more, and a revision is the name of its Deployment.
fn revision_of(pod: &str) -> Result<String> {
    let mut parts = pod.trim().rsplitn(3, '-');
    parts.nth(2).map(str::to_owned).context("a pod's name")
}

/// Gives a command as a person does.
async fn promote(cluster: &Cluster, name: &str) -> Result<()> {
    let (code, out, error) = cluster.run(&["rollout", "promote", name]).await?;
    ensure!(
        code == 0 && out.contains("goes on"),
        "promote {name}: {code} {out} {error}"
    );
    Ok(())
}

/// While requests are copied, no user sees an answer of the candidate; then most do.
async fn mirrored(cluster: &Cluster) -> Result<String> {
    let stable = cluster.rollout_status("mirror").await?.stable_revision;
    cluster.release("mirror", &[("VERSION", "v2")]).await?;
    let users = copied(cluster, &stable).await?;
    let status = cluster.wait_weight("mirror", "60%", LIMIT).await?;
    let candidate = status.candidate_revision.as_str();
    let seen = cluster.witness().seen("copied-")?;
    let sent = cluster.scrape(names::ACTIVATOR_SERVICE).await?;
    let sent = sent.sum("activator_mirrored_requests_total", &[("result", "sent")]);
    ensure!(
        sent >= PAIRS as f64 && seen.of(candidate) >= PAIRS,
        "{sent} copies were sent, {} seen",
        seen.of(candidate)
    );

    let mut options = e2e::steady_over(&cluster.urls("mirror").await?, 100.0)?;
    options.connections = Connections::Kept;
    let load = Load::start("shifted-", options).await?;
    load.goes_on(300, SOON).await?;
    let seen = cluster.witness().seen("shifted-")?;
    let (all, ours) = (seen.ids.len() as f64, seen.of(candidate) as f64);
    let off = 5.0 * (0.6 * 0.4 / all).sqrt();
    ensure!(
        (ours / all - 0.6).abs() <= off,
        "{ours} of {all} at 60 %, {off:.3} off at most"
    );
    promote(cluster, "mirror").await?;
    let done = cluster.wait_result("mirror", "", "Promoted", LIMIT).await?;
    ensure!(done.stable_revision == candidate, "{done:#?}");
    cluster.witness().proves("shifted-", &load.stop().await)?;
    Ok(format!(
        "{users} users met the stable revision while {sent} copies went to the candidate, then {:.0} % of {all} met that",
        100.0 * ours / all
    ))
}

/// Asks until nothing is copied any more. Returns how many asked while it was.
async fn copied(cluster: &Cluster, stable: &str) -> Result<usize> {
    let urls = cluster.urls("mirror").await?;
    let mut every = tokio::time::interval(EVERY);
    let mut users = 0;
    loop {
        let mut answers = Vec::new();
        for url in urls.iter().cycle().take(10) {
            every.tick().await;
            let id = format!("copied-{users}-{}", answers.len());
            answers.push(by_whom(url, &[(e2e::ID_HEADER, &id)]).await?);
        }
        // What came before this look came while it stood so.
        let status = cluster.rollout_status("mirror").await?;
        match status.phase {
            Phase::Idle | Phase::Preparing | Phase::Mirroring => {
                let others = answers.iter().find(|revision| *revision != stable);
                ensure!(
                    others.is_none(),
                    "{others:?} answered a user in phase {:?}",
                    status.phase
                );
                users += match status.phase {
                    Phase::Mirroring => answers.len(),
                    _ => 0,
                };
            }
            _ => return Ok(users),
        }
        ensure!(users < 100 * PAIRS as usize, "it copies for ever: {status:#?}");
    }
}

/// Those who match meet the candidate, all others the stable revision, until the evidence is in.
async fn matched(cluster: &Cluster) -> Result<String> {
    let url = cluster.url("match").await?;
    let stable = cluster.rollout_status("match").await?.stable_revision;
    cluster.release("match", &[("VERSION", "v2")]).await?;
    let status = cluster
        .wait_rollout("match", "open to insiders", LIMIT, |status| {
            let acked = status.step.as_ref().and_then(|step| step.acked_bp);
            status.phase == Phase::Holding && acked == Some(0)
        })
        .await?;
    let candidate = status.candidate_revision;
    let insider = [("x-canary", "insider")];
    for _ in 0..ROUNDS {
        for (headers, wanted) in [
            (&insider[..], &candidate),
            (&[("x-canary", "outsider")], &stable),
            (&[], &stable),
        ] {
            let revision = by_whom(&url, headers).await?;
            ensure!(revision == *wanted, "{headers:?} met {revision}, not {wanted}");
        }
    }
    // More of them let it in.
    let promoted = async || {
        let revision = by_whom(&url, &insider).await.ok()?;
        let status = cluster.rollout_status("match").await.ok()?;
        (revision == candidate && status.stable_revision == candidate && status.phase == Phase::Idle)
            .then_some(status)
    };
    let done = e2e::eventually("the evidence of insiders", LIMIT, promoted).await?;
    let evidence = done.evidence.context("evidence")?;
    cluster.wait_everything_on("match", &candidate).await?;
    let everybody = by_whom(&url, &[]).await?;
    ensure!(everybody == candidate, "everybody meets {everybody}");
    Ok(format!(
        "{ROUNDS} insiders met the candidate, {} others did not, until it was safe: bad at most {:.1} %",
        2 * ROUNDS,
        evidence.bad_at_most_percent
    ))
}

/// A client, by its cookie.
#[derive(Default)]
struct Client {
    cookie: String,
    revision: String,
}

impl Client {
    /// Asks several times, at every address in turn, each time with the cookie that it was last given. Returns whom it met.
    async fn visit(&mut self, urls: &[String]) -> Result<Vec<String>> {
        let mut met = Vec::new();
        for url in urls.iter().cycle().take(EACH) {
            let answer = match self.cookie.as_str() {
                "" => e2e::fetch(url, SOON).await?,
                cookie => e2e::ask(url, &[("cookie", cookie)], SOON).await?,
            };
            ensure!(answer.status() == 200, "{answer:?}");
            met.push(revision_of(answer.body())?);
            if let Some(given) = answer.headers().get("set-cookie") {
                let given = given.to_str()?;
                ensure!(given.contains("; Max-Age=86400"), "{given}");
                self.cookie = given.split(';').next().unwrap_or_default().to_owned();
            }
        }
        ensure!(self.cookie.starts_with("rev="), "it has no cookie: {met:?}");
        Ok(met)
    }
}

/// Who has met a revision meets it again: the stable one until the weight grows, the candidate to the end.
async fn sticky(cluster: &Cluster) -> Result<String> {
    let urls = cluster.urls("sticky").await?;
    cluster.release("sticky", &[("VERSION", "v2")]).await?;
    let status = cluster.wait_weight("sticky", "50%", LIMIT).await?;
    let candidate = status.candidate_revision.as_str();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::default()).collect();
    for client in &mut clients {
        let met = client.visit(&urls).await?;
        client.revision.clone_from(&met[0]);
        ensure!(met.iter().all(|it| *it == met[0]), "one client met {met:?}");
    }
    let of = |clients: &[Client]| clients.iter().filter(|it| it.revision == candidate).count();
    let half = of(&clients);
    ensure!(
        (1..CLIENTS).contains(&half),
        "{half} of {CLIENTS} met the candidate"
    );

    promote(cluster, "sticky").await?;
    cluster.wait_weight("sticky", "80%", LIMIT).await?;
    for client in &mut clients {
        let met = client.visit(&urls).await?;
        ensure!(met.iter().all(|it| *it == met[0]), "one client met {met:?}");
        ensure!(
            client.revision != candidate || met[0] == candidate,
            "a client of the candidate met {met:?}"
        );
        client.revision.clone_from(&met[0]);
    }
    let more = of(&clients);
    promote(cluster, "sticky").await?;
    cluster.wait_result("sticky", "", "Promoted", LIMIT).await?;
    Ok(format!(
        "{half} and then {more} of {CLIENTS} clients met the candidate, and none crossed in {EACH} requests each"
    ))
}

/// Nothing, then everything, when a person says so; and no request fails.
async fn switched(cluster: &Cluster) -> Result<String> {
    let stable = cluster.rollout_status("switch").await?.stable_revision;
    let url = cluster.url("switch").await?;
    let load = Load::start("switch-", e2e::steady_over(&cluster.urls("switch").await?, 20.0)?).await?;
    cluster.release("switch", &[("VERSION", "v2")]).await?;
    let status = cluster
        .wait_rollout("switch", "the gate", LIMIT, |status| {
            status.phase == Phase::Paused && status.why.contains("waits for the command promote")
        })
        .await?;
    let candidate = status.candidate_revision;
    for _ in 0..20 {
        let revision = by_whom(&url, &[]).await?;
        ensure!(revision == stable, "{revision} before the command");
    }
    promote(cluster, "switch").await?;
    let done = cluster.wait_result("switch", "", "Promoted", LIMIT).await?;
    let weights = done.attempt.context("an attempt")?.epochs.into_iter();
    let weights: Vec<u32> = weights.map(|epoch| epoch.weight_bp).collect();
    ensure!(weights == [10_000], "everything at once, not {weights:?}");
    for _ in 0..20 {
        let revision = by_whom(&url, &[]).await?;
        ensure!(revision == candidate, "{revision} after it");
    }
    load.goes_on(20, SOON).await?;
    let results = load.stop().await;
    let seen = cluster.witness().proves("switch-", &results)?;
    let (before, after) = (seen.of(&stable), seen.of(&candidate));
    ensure!(before > 0 && after > 0, "{before} before and {after} after");
    Ok(format!(
        "blue/green by command under {} requests, none failed",
        results.ok
    ))
}

/// Waits until a candidate other than `not` has half of the traffic.
async fn half(cluster: &Cluster, name: &str, not: &str) -> Result<RolloutStatus> {
    cluster
        .wait_rollout(name, "half", LIMIT, |status| {
            let acked = status.step.as_ref().is_some_and(|step| step.acked_bp.is_some());
            status.weight == "50%" && acked && status.candidate_revision != not
        })
        .await
}

/// `onNewRevision: Queue`: the next release waits until the one before is decided.
async fn queued(cluster: &Cluster) -> Result<()> {
    cluster.release("queue", &[("VERSION", "v2")]).await?;
    let second = half(cluster, "queue", "").await?.candidate_revision;
    cluster.release("queue", &[("VERSION", "v3")]).await?;
    let told = format!("begins after {second}");
    cluster
        .wait_rollout("queue", "the third waits", LIMIT, |status| {
            status.next.contains(&told) && status.candidate_revision == second && status.weight == "50%"
        })
        .await?;
    promote(cluster, "queue").await?;
    let third = half(cluster, "queue", &second).await?;
    ensure!(
        third.stable_revision == second && third.attempts == 2,
        "the third comes after the second: {third:#?}"
    );
    Ok(())
}

/// `onNewRevision: Supersede`, the default: the next release takes the place of the one before.
async fn superseded(cluster: &Cluster) -> Result<()> {
    let first = cluster.rollout_status("supersede").await?.stable_revision;
    cluster.release("supersede", &[("VERSION", "v2")]).await?;
    let second = half(cluster, "supersede", "").await?.candidate_revision;
    cluster.release("supersede", &[("VERSION", "v3")]).await?;
    let third = half(cluster, "supersede", &second).await?;
    ensure!(
        third.stable_revision == first && third.quarantined.is_empty() && third.attempts == 2,
        "the second is gone, and nobody's fault: {third:#?}"
    );
    let why = format!("the template is {} now", third.candidate_revision);
    let said = async || {
        let told = cluster.told("supersede").await.ok()?;
        let out = told.iter().find(|(reason, _)| reason == "RollingBack")?;
        out.1.contains(&why).then_some(())
    };
    e2e::eventually(&why, SOON, said).await
}
