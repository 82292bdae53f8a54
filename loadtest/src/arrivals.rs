//! When requests are due, decided in advance: pure, and the same for the same seed.
//!
//! A rate that changes over time is handled by counting: the n-th arrival is due when the integral of the rate reaches
//! n (constant spacing) or the sum of n exponential steps of mean one (Poisson). Bursts are merged in by due time.

use std::time::Duration;

/// Requests per second over time: a straight line from `from` to `to` during `over`, then `to`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests per second at the start.
    pub from: f64,
    /// Requests per second from `over` on.
    pub to: f64,
    /// How long the way takes. Zero: `to` at once.
    pub over: Duration,
}

impl Rate {
    /// The same rate all the time.
    #[must_use]
    pub fn constant(per_second: f64) -> Self {
        Self {
            from: per_second,
            to: per_second,
            over: Duration::ZERO,
        }
    }

    /// When the integral of the rate reaches `count`; `None`: never.
    fn reaches(&self, count: f64) -> Option<Duration> {
        let over = self.over.as_secs_f64();
        let ramp = (self.from + self.to) / 2.0 * over;
        let seconds = if count > ramp || over == 0.0 {
            if self.to <= 0.0 {
                return None;
            }
            over + (count - ramp) / self.to
        } else {
            // from·t + slope·t²/2 = count, solved without subtracting nearly equal numbers.
            let slope = (self.to - self.from) / over;
            let root = slope.mul_add(2.0 * count, self.from * self.from).max(0.0).sqrt();
            if self.from + root == 0.0 {
                0.0
            } else {
                2.0 * count / (self.from + root)
            }
        };
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// `size` requests at once, every `every`, the first at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Requests in one burst.
    pub size: u32,
    /// From one burst to the next.
    pub every: Duration,
}

/// What an open loop sends. Rate and bursts may be combined.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Schedule {
    /// The steady part.
    pub rate: Option<Rate>,
    /// Whether its arrivals are a Poisson process, as independent users make, or evenly spaced.
    pub poisson: bool,
    /// The bursts.
    pub burst: Option<Burst>,
}

impl Schedule {
    /// A steady rate, evenly spaced.
    #[must_use]
    pub fn rate(per_second: f64) -> Self {
        Self {
            rate: Some(Rate::constant(per_second)),
            ..Self::default()
        }
    }

    /// The due times in order, counted from the start of the run. Endless unless the rate falls to zero.
    pub fn arrivals(self, random: fastrand::Rng) -> impl Iterator<Item = Duration> + Send + use<> {
        let mut rate = self.steady(random).peekable();
        let mut burst = self.bursts().peekable();
        std::iter::from_fn(move || match (rate.peek(), burst.peek()) {
            (Some(one), Some(many)) if many <= one => burst.next(),
            (Some(_), _) => rate.next(),
            (None, _) => burst.next(),
        })
    }

    fn steady(self, mut random: fastrand::Rng) -> impl Iterator<Item = Duration> + Send + use<> {
        // Even spacing starts with a request at once; a Poisson process with a pause like any other.
        let mut count = 0.0;
        let mut first = true;
        std::iter::from_fn(move || {
            let rate = self.rate?;
            if self.poisson {
                count -= (1.0 - random.f64()).ln();
            } else if !std::mem::take(&mut first) {
                count += 1.0;
            }
            rate.reaches(count)
        })
    }

    fn bursts(self) -> impl Iterator<Item = Duration> + Send + use<> {
        let mut sent = 0_u64;
        std::iter::from_fn(move || {
            let burst = self.burst.filter(|burst| burst.size > 0)?;
            let round = u32::try_from(sent / u64::from(burst.size)).ok()?;
            sent += 1;
            burst.every.checked_mul(round)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(schedule: Schedule, until: u64) -> Vec<f64> {
        let until = Duration::from_secs(until);
        let random = fastrand::Rng::with_seed(1);
        schedule
            .arrivals(random)
            .take_while(|due| *due < until)
            .map(|due| due.as_secs_f64())
            .collect()
    }

    #[test]
    fn a_constant_rate_is_evenly_spaced_from_the_start() {
        assert_eq!(due(Schedule::rate(4.0), 1), [0.0, 0.25, 0.5, 0.75]);
    }

    #[test]
    fn a_ramp_sends_the_area_under_its_line_and_then_holds() {
        let rate = Some(Rate {
            from: 10.0,
            to: 200.0,
            over: Duration::from_secs(30),
        });
        let all = due(
            Schedule {
                rate,
                ..Schedule::default()
            },
            40,
        );
        let within = |from: f64, to: f64| all.iter().filter(|due| **due >= from && **due < to).count();
        for (from, to, expected) in [
            (0.0, 30.0, 3150),
            (0.0, 15.0, 862),
            (30.0, 31.0, 200),
            (39.0, 40.0, 200),
        ] {
            let got = within(from, to);
            assert!(got.abs_diff(expected) <= 1, "{from}..{to}: {got} for {expected}");
        }
        assert!(all.is_sorted());
    }

    #[test]
    fn a_ramp_to_zero_ends_and_a_ramp_from_zero_begins() {
        let ramp = |from, to| {
            let rate = Some(Rate {
                from,
                to,
                over: Duration::from_secs(10),
            });
            due(
                Schedule {
                    rate,
                    ..Schedule::default()
                },
                100,
            )
        };
        let down = ramp(10.0, 0.0);
        assert_eq!(down.len(), 51);
        assert!(down.is_sorted());
        assert_eq!(ramp(0.0, 10.0).iter().filter(|due| **due < 10.0).count(), 50);
        assert_eq!(ramp(0.0, 0.0), [0.0]);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_chance_and_repeat_with_the_seed() {
        let schedule = Schedule {
            poisson: true,
            ..Schedule::rate(100.0)
        };
        let all = due(schedule, 100);
        // 10,000 expected, standard deviation 100: five of them either way.
        assert!((9_500..=10_500).contains(&all.len()), "{}", all.len());
        let mut per_second = [0_f64; 100];
        all.iter().for_each(|due| per_second[*due as usize] += 1.0);
        let mean = per_second.iter().sum::<f64>() / 100.0;
        let variance = per_second.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / 100.0;
        assert!((0.5..2.0).contains(&(variance / mean)), "{variance} for {mean}");
        assert_eq!(all, due(schedule, 100));
    }

    #[test]
    fn bursts_come_at_once_and_on_top_of_a_rate() {
        let burst = Some(Burst {
            size: 3,
            every: Duration::from_secs(10),
        });
        assert_eq!(
            due(
                Schedule {
                    burst,
                    ..Schedule::default()
                },
                15
            ),
            [0.0, 0.0, 0.0, 10.0, 10.0, 10.0]
        );
        let both = due(
            Schedule {
                burst,
                ..Schedule::rate(1.0)
            },
            20,
        );
        assert_eq!(both.len(), 26);
        assert!(both.is_sorted());
    }
}
