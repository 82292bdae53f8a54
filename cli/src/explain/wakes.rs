//! The last wakes, each split into what came one after the other.

use crds::route::Wake;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

/// One wake. Milliseconds; a part that was not seen is missing.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Split {
    pub(super) at: Option<Time>,
    /// First byte to the `/scale` request.
    pub(super) signal: Option<f64>,
    /// From there to the pod's address: scheduling, and whatever makes a pod.
    pub(super) schedule: Option<f64>,
    /// From there to the pod answering its probe: image, boot.
    pub(super) start: Option<f64>,
    /// From there to the response's first byte.
    pub(super) forward: Option<f64>,
    /// First byte to the response's first byte: all of it.
    pub(super) answered: Option<f64>,
    pub(super) held: u32,
    pub(super) woken_by: String,
}

impl Split {
    pub(super) fn new(wake: &Wake) -> Self {
        let after = |later: Option<f64>, earlier: Option<f64>| Some((later? - earlier?).max(0.0));
        Self {
            at: wake.at.clone(),
            signal: wake.signal_ms,
            schedule: after(wake.address_ms, wake.signal_ms),
            start: after(wake.listening_ms, wake.address_ms),
            forward: wake
                .forward_ms
                .or_else(|| after(wake.answered_ms, wake.listening_ms)),
            answered: wake.answered_ms,
            held: wake.held,
            woken_by: wake.woken_by.clone(),
        }
    }

    /// The five parts, in order.
    pub(super) fn parts(&self) -> [Option<f64>; 5] {
        [
            self.signal,
            self.schedule,
            self.start,
            self.forward,
            self.answered,
        ]
    }
}

/// The parts' names, in the order of [`Split::parts`].
pub(super) const PARTS: [&str; 5] = ["signal", "schedule", "start", "forward", "answered"];

/// Middle and largest of each part, over several wakes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) p50: f64,
    pub(super) max: f64,
}

/// Of one part; `None` when no wake has it.
pub(super) fn summary(splits: &[Split], part: usize) -> Option<Summary> {
    let mut values: Vec<f64> = splits
        .iter()
        .filter_map(|split| *split.parts().get(part)?)
        .collect();
    values.sort_by(f64::total_cmp);
    // Of an even number the larger middle: with two wakes, the slower one.
    Some(Summary {
        p50: *values.get(values.len() / 2)?,
        max: *values.last()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wake(signal: f64, address: f64, listening: f64, answered: f64) -> Wake {
        Wake {
            signal_ms: Some(signal),
            address_ms: Some(address),
            listening_ms: Some(listening),
            answered_ms: Some(answered),
            forward_ms: Some(2.0),
            ..Wake::default()
        }
    }

    #[test]
    fn a_wake_is_split_into_what_came_one_after_the_other() {
        let split = Split::new(&wake(1.0, 5.0, 105.0, 107.0));
        assert_eq!(
            split.parts(),
            [Some(1.0), Some(4.0), Some(100.0), Some(2.0), Some(107.0)]
        );
    }

    #[test]
    fn a_part_that_was_not_seen_leaves_its_neighbours_out_too() {
        let split = Split::new(&Wake {
            address_ms: None,
            forward_ms: None,
            ..wake(1.0, 0.0, 105.0, 107.0)
        });
        assert_eq!(split.parts(), [Some(1.0), None, None, Some(2.0), Some(107.0)]);
        assert_eq!(Split::new(&Wake::default()).parts(), [None; 5]);
    }

    #[test]
    fn the_summary_is_middle_and_largest() {
        let splits: Vec<_> = [9.0, 1.0, 5.0]
            .iter()
            .map(|s| Split::new(&wake(*s, 10.0, 20.0, 30.0)))
            .collect();
        assert_eq!(summary(&splits, 0), Some(Summary { p50: 5.0, max: 9.0 }));
        assert_eq!(summary(&splits[..2], 0), Some(Summary { p50: 9.0, max: 9.0 }));
        assert_eq!(summary(&[], 0), None);
    }
}
