//! Writes `docs/evidence.md`: how often the rules of a rollout are wrong, and how long they take to be right.
//!
//! `cargo run --release -p dormouse-core --example evidence-report [RUNS]` (runs of each case; 1,000 by default).

mod race;
mod simulate;

use std::fmt::Write as _;
use std::time::Duration;

use dormouse_core::evidence::Analysis;
use dormouse_core::rollout::{Mode, Plan, Strategy, Threshold};

use race::{Case, End, Quality, Run, run};
use simulate::{NULLS, UNFIT, shipped, upper_bound};

const CONFIDENCE: f64 = 0.99;
/// Runs of each kind for the error bounds.
const BOUND_RUNS: u64 = 100_000;

fn main() -> std::io::Result<()> {
    let runs = std::env::args()
        .nth(1)
        .and_then(|runs| runs.parse().ok())
        .unwrap_or(1_000);
    let mut page = head(runs);
    bounds(&mut page);
    table(&mut page, runs);
    page.push_str(&std::fs::read_to_string(NOTES)?);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/evidence.md");
    std::fs::write(path, page)
}

fn head(runs: u64) -> String {
    format!(
        "# How often a rollout is wrong\n\n\
         Made by `cargo run --release -p dormouse-core --example evidence-report -- {runs}`, seeded: do not edit. Every request\n\
         is simulated, and every decision is taken by the code that ships.\n\n"
    )
}

/// What a person has to say about the figures.
const NOTES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/evidence-report/notes.md");

fn percent(part: f64) -> String {
    match part * 100.0 {
        0.0 => "0 %".to_owned(),
        share if share < 10.0 => format!("{share:.2} %"),
        share => format!("{share:.0} %"),
    }
}

/// Writing to a string cannot fail.
fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = page.write_fmt(text);
    page.push('\n');
}

fn bounds(page: &mut String) {
    line(page, format_args!("## Healthy candidates that are rolled back\n"));
    line(
        page,
        format_args!(
            "Promised: at most {} (`alpha`), however often one looks. {BOUND_RUNS} runs of each kind, looking at every bad\n\
             request and never stopping to look. The bound is exact (Clopper and Pearson, one-sided, 99 %).\n\n\
             | both revisions | requests | tests | rolled back | at most |\n|---|---|---|---|---|",
            percent(Analysis::default().alpha)
        ),
    );
    for (seed, null) in (1_u64..).zip(NULLS) {
        let hits = null.rolled_back(BOUND_RUNS, seed << 32);
        let tests = if null.objective {
            "relative, objective"
        } else {
            "relative"
        };
        let share = percent(hits as f64 / BOUND_RUNS as f64);
        let bound = percent(upper_bound(hits, BOUND_RUNS, CONFIDENCE));
        line(
            page,
            format_args!(
                "| {} | {} | {tests} | {share} | {bound} |",
                null.name, null.requests
            ),
        );
        eprintln!("{}: {share}", null.name);
    }
    line(page, format_args!("\n## Unfit candidates that are shipped\n"));
    line(
        page,
        format_args!(
            "Promised: at most {} (`beta`) for a candidate of which 5 % of the requests or more are bad (`maxBadRate`).\n\n\
             | candidate | shipped | at most |\n|---|---|---|",
            percent(Analysis::default().beta)
        ),
    );
    for (seed, (name, rate)) in (101_u64..).zip(UNFIT) {
        let hits = shipped(rate, BOUND_RUNS, seed << 32);
        let share = percent(hits as f64 / BOUND_RUNS as f64);
        let bound = percent(upper_bound(hits, BOUND_RUNS, CONFIDENCE));
        line(page, format_args!("| {name} | {share} | {bound} |"));
    }
}

const fn bad(share: f64) -> Quality {
    Quality {
        bad: share,
        slower: 1.0,
        hiccups: 0.0,
    }
}

const fn case(name: &'static str, rps: f64, stable: f64, candidate: f64) -> Case {
    Case {
        name,
        rps,
        stable: bad(stable),
        candidate: bad(candidate),
        latency: false,
    }
}

const fn slow(name: &'static str, rps: f64, slower: f64, hiccups: f64) -> Case {
    Case {
        name,
        rps,
        stable: bad(0.001),
        candidate: Quality {
            bad: 0.001,
            slower,
            hiccups,
        },
        latency: true,
    }
}

const CASES: [Case; 16] = [
    case("healthy, 0 errors, 0.05 rps", 0.05, 0.0, 0.0),
    case("healthy, 0.9 % both, 5 rps", 5.0, 0.009, 0.009),
    case("healthy, 0.9 % both, 50 rps", 50.0, 0.009, 0.009),
    case("old problem: 2 % both, 50 rps", 50.0, 0.02, 0.02),
    case("100 % bad, 50 rps", 50.0, 0.001, 1.0),
    case("10 % bad, 5 rps", 5.0, 0.001, 0.1),
    case("10 % bad, 50 rps", 50.0, 0.001, 0.1),
    case("5 % bad, 0.5 rps", 0.5, 0.001, 0.05),
    case("20 % bad, 0.05 rps", 0.05, 0.001, 0.2),
    case("2 % bad, 5 rps", 5.0, 0.001, 0.02),
    slow("healthy, times judged, 5 rps", 5.0, 1.0, 0.0),
    slow("times x2, 5 rps", 5.0, 2.0, 0.0),
    slow("times x2, 50 rps", 50.0, 2.0, 0.0),
    slow("3 % take 1 s longer, 0.5 rps", 0.5, 1.0, 0.03),
    slow("3 % take 1 s longer, 5 rps", 5.0, 1.0, 0.03),
    slow("3 % take 1 s longer, 50 rps", 50.0, 1.0, 0.03),
];

fn flagger(seconds: u64, threshold: u32, step: u32, max: u32) -> Plan {
    Plan {
        strategy: Strategy::Linear { step, max },
        mode: Mode::Threshold(Threshold {
            interval: Duration::from_secs(seconds),
            threshold,
            iterations: 0,
        }),
        bake: Duration::ZERO,
        ..Plan::default()
    }
}

fn sequential(case: &Case, strategy: Strategy) -> Plan {
    Plan {
        strategy,
        mode: Mode::Sequential(Analysis {
            latency: case.latency,
            latency_budget: case.latency.then_some((Duration::from_millis(500), 0.01)),
            ..Analysis::default()
        }),
        bake: Duration::ZERO,
        ..Plan::default()
    }
}

fn table(page: &mut String, runs: u64) {
    line(
        page,
        format_args!(
            "\n## Beside fixed thresholds\n\n{runs} runs of each cell, at most four hours long. Shares are of runs rolled back (RB) and shipped;\n\
             what is missing was undecided. Median seconds, bad requests of the candidate, and all of its requests, until the end.\n\n\
             | case | Flagger: 30 s, 5 failures, 120 s window, 20 to 80 % | Flagger: 60 s, 10 failures, 5 to 50 % | Dormouse, 20 to 80 % | Dormouse, risk budget |\n|---|---|---|---|---|"
        ),
    );
    for (number, case) in (0_u64..).zip(&CASES) {
        let plans = [
            (flagger(30, 5, 2_000, 7_000), 120.0),
            (flagger(60, 10, 500, 5_000), 60.0),
            (
                sequential(
                    case,
                    Strategy::Linear {
                        step: 2_000,
                        max: 7_000,
                    },
                ),
                0.0,
            ),
            (sequential(case, Strategy::default()), 0.0),
        ];
        let cells: Vec<String> = plans
            .iter()
            .map(|(plan, window)| {
                let seeds = (0..runs).map(|run| (number << 32) ^ run.wrapping_mul(0x2545_f491_4f6c_dd1d));
                cell(
                    &seeds
                        .map(|seed| run(case, plan, *window, seed))
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        line(page, format_args!("| {} | {} |", case.name, cells.join(" | ")));
        eprintln!("{}: {}", case.name, cells.join(" | "));
    }
}

fn cell(runs: &[Run]) -> String {
    let of = |end: End| runs.iter().filter(|run| run.end == end).count() as f64 / runs.len().max(1) as f64;
    let (back, shipped) = (of(End::RolledBack), of(End::Shipped));
    let usual = if back >= shipped {
        End::RolledBack
    } else {
        End::Shipped
    };
    let median = |value: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().filter(|run| run.end == usual).map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let (seconds, failed, requests) = (
        median(|run| run.seconds),
        median(|run| run.failed as f64),
        median(|run| run.requests as f64),
    );
    let seconds = if seconds < 10.0 {
        format!("{seconds:.1}")
    } else {
        format!("{seconds:.0}")
    };
    format!(
        "RB {}, shipped {}; {seconds} s, {failed} bad of {requests}",
        percent(back),
        percent(shipped)
    )
}
