use proptest::prelude::*;

use super::*;

const T0: u64 = 1_700_000_000;

fn at(second: u64) -> Time {
    Time::from_secs(T0 + second)
}

fn five() -> Window {
    Window::new(Duration::from_secs(5))
}

/// What happens at a second, counted from T0.
enum Row {
    Write(u64, f64),
    /// The average that is read.
    Read(u64, f64),
}
use Row::{Read, Write};

fn run(name: &str, rows: &[Row]) {
    let mut window = five();
    for row in rows {
        match row {
            Write(second, value) => window.record(at(*second), *value),
            Read(second, average) => {
                assert_eq!(
                    window.average(at(*second), Aggregation::Linear),
                    *average,
                    "{name}, at {second} s"
                );
            }
        }
    }
}

#[test]
fn v31_the_average_of_a_window_of_five_seconds() {
    let rows = [
        Write(0, 1.0),
        Write(1, 2.0),
        Write(2, 3.0),
        Write(3, 4.0),
        Write(4, 5.0),
        Read(4, 3.0),
        Read(6, 4.0), // the first two no longer count: 12 over 3
        Read(10, 0.0),
        Write(6, 91.0),
        Read(6, 20.6), // the gap at 5 counts: 3 + 4 + 5 + 0 + 91 over 5
        Write(66, 1984.0),
        Read(66, 1984.0), // a gap of more than the window starts anew
        Write(63, 4.0),
        Read(66, 497.0), // late data belongs three seconds earlier: 1988 over 4
    ];
    run("V31", &rows);
}

#[test]
fn a_partly_filled_window_is_averaged_over_what_there_is() {
    run(
        "one second",
        &[
            Write(3, 10.0),
            Read(3, 10.0),
            Read(5, 10.0),
            Read(7, 10.0),
            Read(8, 0.0),
        ],
    );
    run(
        "values of a second add up",
        &[Write(3, 10.0), Write(3, 5.0), Read(3, 15.0)],
    );
    run(
        "two seconds",
        &[
            Write(3, 10.0),
            Write(4, 20.0),
            Read(4, 15.0),
            Read(7, 15.0),
            Read(8, 20.0),
        ],
    );
    run(
        "cut to six digits",
        &[Write(0, 1.0), Write(2, 0.0), Read(2, 0.333_333)],
    );
}

#[test]
fn data_older_than_the_window_is_not_kept() {
    run(
        "late",
        &[
            Write(10, 5.0),
            Write(5, 100.0),
            Read(10, 5.0),
            Write(6, 10.0),
            Read(10, 3.0),
        ],
    );
    run(
        "a read in the past sees all there is",
        &[Write(10, 5.0), Read(3, 5.0)],
    );
}

#[test]
fn the_coefficients_of_the_weighted_average_are_exact() {
    for (buckets, expected) in [(60, 0.2), (40, 0.2057), (6, 0.7846), (5, 0.8415), (1, 0.9999)] {
        let found = coefficient(buckets);
        assert!((found - expected).abs() < 5e-5, "{buckets} buckets: {found}");
    }
}

#[test]
fn the_weighted_average_lets_newer_seconds_weigh_more_and_fades_with_time() {
    let mut window = five();
    for (second, value) in [(0, 10.0), (1, 10.0), (2, 5.0), (3, 5.0)] {
        window.record(at(second), value);
    }
    let c = coefficient(5);
    let expected = |gap: i32| {
        [5.0, 5.0, 10.0, 10.0]
            .iter()
            .zip(gap..)
            .map(|(value, age)| value * c * (1.0 - c).powi(age))
            .sum::<f64>()
    };
    for gap in 0..2 {
        let found = window.average(at(3 + gap), Aggregation::WeightedExponential);
        let expected = expected(i32::try_from(gap).unwrap());
        assert!(
            (found - expected).abs() < 1e-9,
            "{gap} s later: {found}, not {expected}"
        );
    }
    // Two seconds later the oldest bucket is out of the window.
    let later = window.average(at(5), Aggregation::WeightedExponential);
    let full = expected(2);
    assert!(
        later < full && full - later < 10.0 * c * (1.0 - c).powi(5) + 1e-9,
        "{later}, {full}"
    );
    assert_eq!(window.average(at(8), Aggregation::WeightedExponential), 0.0);
    assert_eq!(window.average(at(9), Aggregation::WeightedExponential), 0.0);
}

#[test]
fn a_window_is_empty_until_written_and_when_nothing_comes_for_longer_than_it_is() {
    let mut window = five();
    assert!(window.is_empty(at(0)));
    window.record(at(0), 0.0);
    assert!(!window.is_empty(at(5)));
    assert!(window.is_empty(at(6)));
}

#[test]
fn the_maximum_holds_for_the_delay() {
    let mut maximum = Maximum::new(Duration::from_secs(10), Duration::from_secs(2));
    // (second, value, largest)
    let rows = [
        (0, 4, 4),
        (2, 2, 4),
        (4, 3, 4),
        (8, 0, 4),
        (9, 0, 4),
        (10, 0, 3),
        (13, 1, 3),
        (14, 0, 1),
        (22, 0, 0),
    ];
    for (second, value, largest) in rows {
        assert_eq!(maximum.record(at(second), value), largest, "at {second} s");
    }
    maximum.record(at(24), 9);
    maximum.record(at(26), 5);
    assert_eq!((maximum.expires(), maximum.afterwards()), (Some(at(34)), Some(5)));
}

proptest! {
    #[test]
    fn the_average_is_what_a_list_of_all_writes_says(
        writes in prop::collection::vec((0_u64..40, 0_u32..1000), 1..60),
        later in 0_u64..12,
    ) {
        let mut window = five();
        // The reference keeps every write; in order, so that nothing is dropped for being late.
        let mut writes = writes;
        writes.sort_by_key(|(second, _)| *second);
        for (second, value) in &writes {
            window.record(at(*second), f64::from(*value));
        }
        let last = writes.last().map_or(0, |(second, _)| *second);
        let now = last + later;
        // The first write since the last gap of a whole window.
        let mut first = writes[0].0;
        for pair in writes.windows(2) {
            if pair[1].0 - pair[0].0 >= 5 {
                first = pair[1].0;
            }
        }
        let counts = |second: u64| second + 5 > now && second >= first;
        let sum: u32 = writes.iter().filter(|(second, _)| counts(*second)).map(|(_, value)| value).sum();
        let valid = (last - first + 1).min(5_u64.saturating_sub(later));
        let expected = if valid == 0 { 0.0 } else { f64::from(sum) / valid as f64 };
        let found = window.average(at(now), Aggregation::Linear);
        prop_assert!((found - expected).abs() <= 1.1e-6, "{found}, not {expected}");
    }

    #[test]
    fn the_maximum_is_the_largest_of_the_last_steps(values in prop::collection::vec((0_u64..5, 0_u32..20), 1..50)) {
        let mut maximum = Maximum::new(Duration::from_secs(10), Duration::from_secs(2));
        let mut all: Vec<(u64, u32)> = Vec::new();
        let mut second = 0;
        for (gap, value) in values {
            second += gap;
            all.push((second, value));
            let found = maximum.record(at(second), value);
            let expected = all.iter().filter(|(then, _)| then / 2 + 5 > second / 2).map(|(_, value)| *value).max();
            prop_assert_eq!(Some(found), expected);
        }
    }
}
