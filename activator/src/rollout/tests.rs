//! Assignment and counting without sockets.

use std::collections::BTreeMap;

use crds::route::{CodeRange, HeaderMatch, RouteAffinity, RouteBreaker, RouteMatch, RouteMirror};
use http::HeaderValue;
use http::header::COOKIE;

use super::attempt::{BAD_SESSIONS, Unit, Verdict};
use super::*;
use crate::account::{Counts, Use};
use crate::cluster::Cluster;
use crate::config::{Args, Config};
use crate::hub::Hub;
use crate::meter::Outcome;
use crate::pool::{Enter, Published};
use crate::route::RouteKey;
use crate::throttle::Kind;
use crds::report::PoolKey;

/// Pools `web-0`, `web-1`, … with these weights.
fn pools(weights: &[u32]) -> Vec<(u32, Arc<Pool>)> {
    pools_of(&hub(), weights)
}

fn hub() -> Arc<Hub> {
    let config = Config::try_from(Args::default()).expect("valid");
    Hub::new(config, Cluster { client: None })
}

fn pools_of(hub: &Arc<Hub>, weights: &[u32]) -> Vec<(u32, Arc<Pool>)> {
    let pool = |at: usize| PoolKey {
        namespace: "shop".into(),
        pool: format!("web-{at}"),
    };
    let all = weights.iter().enumerate();
    all.map(|(at, weight)| (*weight, Pool::new(pool(at), Arc::clone(hub))))
        .collect()
}

/// `web-0` is stable, `web-1` the candidate; 5xx and timeouts are bad.
fn rollout() -> RouteRollout {
    RouteRollout {
        stable: "web-0".into(),
        candidate: "web-1".into(),
        attempt: "1-a".into(),
        bad: BadAnswers {
            codes: vec![CodeRange {
                first: 500,
                last: 599,
            }],
            grpc: vec![2, 14],
            timeouts: true,
        },
        ..RouteRollout::default()
    }
}

fn attempt() -> Arc<Attempt> {
    let route = RouteKey {
        namespace: "shop".into(),
        name: "web".into(),
    };
    Arc::new(Attempt::new(route, "1-a".into()))
}

fn plan(rollout: &RouteRollout, pools: &[(u32, Arc<Pool>)], attempt: &Arc<Attempt>) -> Arc<Plan> {
    let mut wrong = Vec::new();
    let plan = Plan::of(rollout, pools, Some(Arc::clone(attempt)), &mut wrong);
    assert!(wrong.is_empty(), "{wrong:?}");
    Arc::new(plan.expect("can be followed"))
}

/// Assigns one request; what it comes to is counted. Returns its pool and the cookie that it got.
fn go(
    plan: &Arc<Plan>,
    pools: &[(u32, Arc<Pool>)],
    headers: &HeaderMap,
    point: u32,
    status: u16,
) -> (String, Option<String>) {
    let choice = plan.choose(pools, Some(headers), &mut |_| point).expect("a pool");
    let name = choice.pool.key.pool.clone();
    let Some(mut ticket) = choice.ticket else {
        return (name, None);
    };
    let status = StatusCode::from_u16(status).expect("a status");
    ticket.head(status, &HeaderMap::new(), None);
    let cookie = ticket.cookie().map(|field| {
        let text = field.to_str().expect("text");
        text.split(';').next().expect("a cookie").to_owned()
    });
    drop(ticket.end(Outcome::Ok));
    (name, cookie)
}

/// `[stable, candidate, direct]` of an epoch, each as requests and bad ones.
fn counts(attempt: &Attempt, epoch: u32) -> [(u64, u64); 3] {
    let all = attempt.all();
    let found = all.iter().find(|line| line.epoch == epoch);
    found.map_or([(0, 0); 3], |line| {
        [&line.stable, &line.candidate, &line.direct].map(|arm| (arm.requests, arm.bad))
    })
}

fn cookie(value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(COOKIE, HeaderValue::try_from(value).expect("a field"));
    headers
}

/// Pearson's statistic of what was seen against weights; infinite when a weight of zero was hit.
fn chi_square(seen: &[u32], weights: &[u32]) -> f64 {
    let total: u32 = seen.iter().sum();
    let terms = seen.iter().zip(weights).map(|(seen, weight)| {
        let expected = f64::from(total) * f64::from(*weight) / 10_000.0;
        if *weight == 0 {
            return if *seen == 0 { 0.0 } else { f64::INFINITY };
        }
        (f64::from(*seen) - expected).powi(2) / expected
    });
    terms.sum()
}

#[tokio::test]
async fn the_coin_keeps_the_weights() {
    // 99.9 % of chi-square with 1, 2 and 3 degrees of freedom.
    const MOST: [f64; 3] = [10.83, 13.82, 16.27];
    for weights in [
        &[8_000, 2_000][..],
        &[9_999, 1],
        &[5_000, 5_000],
        &[0, 10_000],
        &[10_000, 0],
        &[9_000, 500, 500],
        &[9_000, 0, 500, 500],
        &[2_500, 2_500, 2_500, 2_500],
    ] {
        let pools = pools(weights);
        for seed in [1, 7, 42] {
            let attempt = attempt();
            let plan = plan(&rollout(), &pools, &attempt);
            let mut random = fastrand::Rng::with_seed(seed);
            let mut seen = vec![0; weights.len()];
            for _ in 0..100_000 {
                let choice = plan
                    .choose(&pools, Some(&HeaderMap::new()), &mut |below| random.u32(..below))
                    .expect("a pool");
                let at = pools.iter().position(|(_, pool)| Arc::ptr_eq(pool, choice.pool));
                seen[at.expect("one of them")] += 1;
                if let Some(ticket) = choice.ticket {
                    drop(ticket.end(Outcome::Ok));
                }
            }
            let statistic = chi_square(&seen, weights);
            assert!(
                statistic < MOST[weights.len() - 2],
                "{weights:?}, seed {seed}: {seen:?} has {statistic}"
            );
            // Counted is exactly what went to the two.
            let [stable, candidate, direct] = counts(&attempt, 0);
            let two = (u64::from(seen[0]), u64::from(seen[1]));
            assert_eq!((stable.0, candidate.0, direct.0), (two.0, two.1, 0));
        }
    }
}

#[tokio::test]
async fn a_match_goes_to_the_candidate_and_is_no_part_of_the_comparison() {
    let pools = pools(&[10_000, 0]);
    let mut said = rollout();
    let insider = HeaderMatch {
        contains: "group=insider".into(),
        ..HeaderMatch::default()
    };
    said.matches = vec![RouteMatch {
        headers: BTreeMap::from([("cookie".to_owned(), insider)]),
    }];
    said.breaker = Some(RouteBreaker {
        evidence: 2.0,
        tolerance: 1.0,
    });
    let attempt = attempt();
    let plan = plan(&said, &pools, &attempt);
    for (headers, wanted) in [
        (cookie("a=1; group=insider"), "web-1"),
        (cookie("group=other"), "web-0"),
        (HeaderMap::new(), "web-0"),
    ] {
        for _ in 0..20 {
            assert_eq!(go(&plan, &pools, &headers, 9_999, 500).0, wanted, "{headers:?}");
        }
    }
    assert_eq!(counts(&attempt, 0), [(40, 40), (0, 0), (20, 20)]);
    assert!(!attempt.is_broken(), "nothing was compared");
}

#[tokio::test]
async fn a_session_keeps_its_pool_and_is_counted_once() {
    let pools = pools(&[5_000, 5_000]);
    let mut said = rollout();
    said.affinity = Some(RouteAffinity {
        cookie: "x-rev".into(),
        max_age_seconds: 60,
    });
    let attempt = attempt();
    let first = plan(&said, &pools, &attempt);
    let (none, to_stable, to_candidate) = (HeaderMap::new(), 0, 9_999);
    let (pool, stable) = go(&first, &pools, &none, to_stable, 200);
    assert_eq!(pool, "web-0");
    let (pool, candidate) = go(&first, &pools, &none, to_candidate, 200);
    assert_eq!(pool, "web-1");
    let (stable, candidate) = (
        cookie(&stable.expect("a cookie")),
        cookie(&candidate.expect("a cookie")),
    );
    // Neither the coin nor anything else moves them, and good answers of known sessions add nothing.
    for _ in 0..5 {
        assert_eq!(
            go(&first, &pools, &stable, to_candidate, 200),
            ("web-0".into(), None)
        );
        assert_eq!(
            go(&first, &pools, &candidate, to_stable, 200),
            ("web-1".into(), None)
        );
    }
    assert_eq!(counts(&attempt, 0), [(1, 0), (1, 0), (0, 0)]);
    // Bad once, however often, and the cookie tells other activators.
    let (_, marked) = go(&first, &pools, &candidate, to_stable, 500);
    go(&first, &pools, &candidate, to_stable, 500);
    let marked = cookie(&marked.expect("it is news"));
    assert_eq!(
        go(&first, &pools, &marked, to_stable, 500),
        ("web-1".into(), None)
    );
    assert_eq!(counts(&attempt, 0), [(1, 0), (1, 1), (0, 0)]);
    // The next epoch: the candidate's client stays, the stable pool's is assigned anew.
    said.epoch = 1;
    let second = plan(&said, &pools, &attempt);
    assert_eq!(
        go(&second, &pools, &candidate, to_stable, 200),
        ("web-1".into(), None)
    );
    let (pool, anew) = go(&second, &pools, &stable, to_candidate, 200);
    assert!(pool == "web-1" && anew.is_some());
    assert_eq!(counts(&attempt, 0), [(1, 0), (1, 1), (0, 0)]);
    assert_eq!(counts(&attempt, 1), [(0, 0), (1, 0), (0, 0)]);
    // Another attempt knows neither, and without a weight nobody stays.
    let other = Arc::new(Attempt::new(attempt.route.clone(), "2-b".into()));
    let third = plan(&said, &pools, &other);
    assert_eq!(go(&third, &pools, &candidate, to_stable, 200).0, "web-0");
    let away: Vec<_> = pools
        .iter()
        .zip([10_000, 0])
        .map(|((_, pool), weight)| (weight, Arc::clone(pool)))
        .collect();
    let back = plan(&said, &away, &attempt);
    assert_eq!(go(&back, &away, &candidate, to_stable, 200).0, "web-0");
}

#[tokio::test]
async fn how_a_request_ends_decides_whether_it_counts() {
    let pools = pools(&[10_000, 0]);
    let ok = Some(StatusCode::OK);
    let error = Some(StatusCode::SERVICE_UNAVAILABLE);
    for (what, timeouts, head, outcome, wanted) in [
        ("answered", true, ok, Outcome::Ok, (1, 0)),
        ("answered badly", true, error, Outcome::ServerError, (1, 1)),
        ("broken off after a good head", true, ok, Outcome::Failed, (1, 1)),
        (
            "broken off, where that is fine",
            false,
            ok,
            Outcome::Failed,
            (1, 0),
        ),
        ("never answered", true, None, Outcome::Failed, (1, 1)),
        ("refused by us", true, None, Outcome::Refused, (0, 0)),
        ("the client left", true, None, Outcome::Cancelled, (0, 0)),
        (
            "the client left in the middle",
            true,
            ok,
            Outcome::Cancelled,
            (0, 0),
        ),
        (
            "the client left after an error",
            true,
            error,
            Outcome::Cancelled,
            (1, 1),
        ),
    ] {
        let attempt = attempt();
        let mut said = rollout();
        said.bad.timeouts = timeouts;
        let plan = plan(&said, &pools, &attempt);
        let choice = plan.choose(&pools, None, &mut |_| 0).expect("a pool");
        let mut ticket = choice.ticket.expect("counted");
        if let Some(status) = head {
            ticket.head(status, &HeaderMap::new(), None);
        }
        drop(ticket.end(outcome));
        assert_eq!(counts(&attempt, 0)[0], wanted, "{what}");
    }
}

#[test]
fn a_grpc_status_is_judged_wherever_it_stands() {
    let bad = rollout().bad;
    for (status, wanted) in [
        (None, false),
        (Some("0"), false),
        (Some("5"), false),
        (Some("14"), true),
        (Some(" 2 "), true),
        // As clients read it: UNKNOWN.
        (Some("x"), true),
        (Some("-1"), true),
    ] {
        let mut fields = HeaderMap::new();
        if let Some(status) = status {
            fields.insert("grpc-status", HeaderValue::from_static(status));
        }
        assert_eq!(is_bad_grpc(&bad, &fields), wanted, "{status:?}");
        assert!(!is_bad_grpc(&BadAnswers::default(), &fields));
    }
}

#[test]
fn epochs_are_bounded_and_what_is_beyond_is_told() {
    let attempt = attempt();
    let good = Verdict {
        is_bad: false,
        time: Some(Duration::from_millis(1)),
    };
    for epoch in [0, 127, 128, u32::MAX] {
        attempt.begin(epoch, 0.5);
        attempt.count(epoch, Unit::Coin(Arm::Stable, 0.5), good, None);
    }
    assert_eq!((attempt.all().len(), attempt.uncounted()), (2, 2));
}

#[test]
fn bad_sessions_are_bounded_and_what_is_beyond_is_told() {
    let attempt = attempt();
    let count = |id: u64, is_bad| {
        let unit = Unit::Session {
            arm: Arm::Candidate,
            id,
            is_new: true,
            was_bad: false,
        };
        attempt.count(0, unit, Verdict { is_bad, time: None }, None);
        (attempt.all()[0].candidate.bad, attempt.uncounted())
    };
    let most = BAD_SESSIONS as u64;
    for id in 1..most {
        count(id, true);
    }
    for (what, id, is_bad, wanted) in [
        ("the last there is room for", most, true, (most, 0)),
        ("one that is known", 1, true, (most, 0)),
        ("a good one", most + 1, false, (most, 0)),
        ("one too many", most + 1, true, (most, 1)),
        ("and again, because it is not known", most + 1, true, (most, 2)),
    ] {
        assert_eq!(count(id, is_bad), wanted, "{what}");
    }
}

#[test]
fn a_change_is_told_once_and_everything_to_who_asks() {
    let attempt = attempt();
    let verdict = |is_bad| Verdict {
        is_bad,
        time: Some(Duration::from_millis(1)),
    };
    let coin = |arm| Unit::Coin(arm, 0.5);
    assert!(attempt.count(0, coin(Arm::Stable), verdict(false), None).is_first);
    assert!(
        !attempt
            .count(0, coin(Arm::Candidate), verdict(true), None)
            .is_first
    );
    let lines = attempt.take_changed();
    assert_eq!(lines.len(), 1);
    assert_eq!((lines[0].stable.requests, lines[0].candidate.bad), (1, 1));
    assert_eq!(lines[0].stable.times, vec![(55, 1)]);
    assert!(attempt.take_changed().is_empty());
    assert!(attempt.count(3, Unit::Direct, verdict(true), None).is_first);
    let epochs: Vec<u32> = attempt.take_changed().iter().map(|line| line.epoch).collect();
    assert_eq!(epochs, [3]);
    assert_eq!(attempt.all().len(), 2);
}

#[tokio::test]
async fn what_broke_stays_broken_until_another_attempt() {
    let pools = pools(&[8_000, 2_000]);
    let mut said = rollout();
    said.breaker = Some(RouteBreaker {
        evidence: 10_000.0,
        tolerance: 1.0,
    });
    let attempt = attempt();
    let first = plan(&said, &pools, &attempt);
    let to_candidate = 9_999;
    let mut sent = 0;
    while go(&first, &pools, &HeaderMap::new(), to_candidate, 500).0 == "web-1" {
        sent += 1;
        assert!(sent < 10, "a breaker that does not break");
    }
    assert!(attempt.is_broken());
    let lines = attempt.all();
    assert!(lines[0].broken && lines[0].evidence >= 10_000, "{lines:?}");
    // What goes to the stable pool in its stead is not compared: the coin is another.
    assert_eq!(counts(&attempt, 0), [(0, 0), (sent, sent), (0, 0)]);
    // Neither another epoch nor a Route without a breaker brings it back.
    said.epoch = 1;
    said.breaker = None;
    let second = plan(&said, &pools, &attempt);
    assert_eq!(
        go(&second, &pools, &HeaderMap::new(), to_candidate, 200).0,
        "web-0"
    );
    let other = Arc::new(Attempt::new(attempt.route.clone(), "2-b".into()));
    let third = plan(&said, &pools, &other);
    assert_eq!(
        go(&third, &pools, &HeaderMap::new(), to_candidate, 200).0,
        "web-1"
    );
}

#[tokio::test]
async fn of_a_pair_only_a_difference_speaks() {
    let pools = pools(&[10_000, 0]);
    let mut said = rollout();
    said.mirror = Some(RouteMirror {
        percent: 100,
        methods: vec!["get".into()],
    });
    let attempt = attempt();
    let plan = plan(&said, &pools, &attempt);
    let bad = [false, true];
    for (stable, candidate) in [
        (bad[0], bad[0]),
        (bad[0], bad[1]),
        (bad[1], bad[0]),
        (bad[1], bad[1]),
    ] {
        let [mut ours, mut theirs] = plan.pair().expect("counted");
        for (half, is_bad) in [(&mut ours, stable), (&mut theirs, candidate)] {
            let status = if is_bad {
                StatusCode::BAD_GATEWAY
            } else {
                StatusCode::OK
            };
            half.head(status, &HeaderMap::new(), None);
        }
        assert!(theirs.end(Outcome::Ok).is_none(), "one answer is no pair");
        assert!(ours.is_overtaken());
        assert!(ours.end(Outcome::Ok).is_some());
    }
    // One of the two does not count: neither does the pair.
    let [ours, theirs] = plan.pair().expect("counted");
    assert!(theirs.end(Outcome::Cancelled).is_none() && ours.end(Outcome::Ok).is_none());
    assert_eq!(counts(&attempt, 0), [(4, 1), (4, 1), (0, 0)]);
    // Outside of pairs nothing is counted.
    go(&plan, &pools, &HeaderMap::new(), 0, 500);
    assert_eq!(counts(&attempt, 0), [(4, 1), (4, 1), (0, 0)]);
}

#[tokio::test]
async fn only_what_has_no_effect_is_copied_and_only_of_the_stable_pool() {
    let pools = pools(&[10_000, 0]);
    let (stable, candidate) = (&pools[0].1, &pools[1].1);
    for (methods, percent, method, pool, wanted) in [
        (&[][..], 100, Method::GET, stable, true),
        (&[], 100, Method::HEAD, stable, true),
        (&[], 100, Method::POST, stable, false),
        (&["POST", "PUT", "DELETE"], 100, Method::POST, stable, false),
        (&["POST", "PUT", "DELETE"], 100, Method::DELETE, stable, false),
        (&["GET"], 100, Method::HEAD, stable, false),
        (&["GET"], 50, Method::GET, stable, false),
        (&["GET"], 51, Method::GET, stable, true),
        (&["GET"], 100, Method::GET, candidate, false),
    ] {
        let mut said = rollout();
        said.mirror = Some(RouteMirror {
            percent,
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        });
        let plan = plan(&said, &pools, &attempt());
        let copied = plan.mirror(&pools, pool, &method, &mut |_| 50);
        assert_eq!(copied.is_some(), wanted, "{method} of {methods:?}, {percent} %");
    }
}

#[tokio::test]
async fn what_cannot_be_followed_is_named() {
    let pools = pools(&[10_000, 0]);
    let mut unknown = rollout();
    unknown.candidate = "web-9".into();
    let mut same = rollout();
    same.stable = "web-1".into();
    for (said, named) in [(unknown, "\"web-9\""), (same, "\"web-1\"")] {
        let error = Plan::of(&said, &pools, Some(attempt()), &mut Vec::new()).expect_err("refused");
        assert!(error.contains(named), "{error}");
    }
}

#[tokio::test]
async fn a_part_that_cannot_be_followed_brings_no_broken_candidate_back() {
    let pools = pools(&[5_000, 5_000]);
    let mut said = rollout();
    said.breaker = Some(RouteBreaker {
        evidence: 1.5,
        tolerance: 1.0,
    });
    let attempt = attempt();
    let first = plan(&said, &pools, &attempt);
    let to_candidate = 9_999;
    for _ in 0..2 {
        go(&first, &pools, &HeaderMap::new(), to_candidate, 500);
    }
    assert!(attempt.is_broken());
    said.affinity = Some(RouteAffinity {
        cookie: "a b".into(),
        max_age_seconds: 1,
    });
    said.matches = vec![RouteMatch {
        headers: BTreeMap::from([("x y".to_owned(), HeaderMatch::default())]),
    }];
    let mut wrong = Vec::new();
    let plan = Plan::of(&said, &pools, Some(Arc::clone(&attempt)), &mut wrong).expect("in part");
    assert!(
        wrong[0].contains("\"a b\"") && wrong[1].contains("\"x y\""),
        "{wrong:?}"
    );
    let plan = Arc::new(plan);
    assert_eq!(go(&plan, &pools, &HeaderMap::new(), to_candidate, 200).0, "web-0");
}

#[tokio::test]
async fn a_request_of_our_own_that_no_pod_was_tried_with_says_nothing_of_the_candidate() {
    let hub = hub();
    let pools = pools_of(&hub, &[10_000, 0]);
    let attempt = attempt();
    let plan = plan(&rollout(), &pools, &attempt);
    let (pool, _) = plan.direct(&pools).expect("the candidate");
    let pod = Published {
        serving: true,
        ..Published::default()
    };
    pool.publish([(std::net::IpAddr::from([127, 21, 1, 1]), pod)].into());
    for (is_sent, wanted) in [(false, (0, 0)), (true, (1, 1))] {
        let (_, ticket) = plan.direct(&pools).expect("counted");
        let mut usage = Use::begin(&hub, pool, 0, Counts::Synthetic, hub.now());
        usage.enrol(Some(ticket));
        if is_sent {
            let who = None::<fn() -> String>;
            match pool.enter(Kind::Hop, hub.now(), &mut |_| 0, None, who) {
                Enter::Granted(slot) => usage.sent(slot, hub.now()),
                _ => panic!("no place"),
            }
        }
        usage.give_up();
        assert_eq!(counts(&attempt, 0)[2], wanted, "sent: {is_sent}");
    }
}
