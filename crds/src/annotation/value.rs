//! The kinds of value that an annotation can have: how each is read, which values it allows, and how that is said.

use std::time::Duration;

use super::Settings;

/// What a key's value is, in which range, and where it goes in the [`Settings`]. All bounds are inclusive.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number.
    Whole {
        /// What is counted, in the plural.
        unit: &'static str,
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
        /// Puts it into the settings.
        set: fn(&mut Settings, u32),
    },
    /// A number with or without decimals.
    Number {
        /// What is measured.
        unit: &'static str,
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
        /// One value outside the range that is allowed too.
        or: Option<f64>,
        /// Puts it into the settings.
        set: fn(&mut Settings, f64),
    },
    /// A duration as Go writes it.
    Duration {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
        /// The duration is a multiple of this.
        step: Duration,
        /// A word that stands in place of a duration.
        word: Option<Word>,
        /// Puts it into the settings.
        set: fn(&mut Settings, Duration),
    },
    /// One of a few words.
    Choice {
        /// The words.
        words: &'static [Word],
    },
    /// Text with a grammar of its own.
    Text {
        /// The grammar, in words that fit after "allowed: ".
        grammar: &'static str,
        /// Puts it into the settings.
        ///
        /// # Errors
        /// What is wrong with it, as a clause; may be empty.
        set: fn(&mut Settings, &str) -> Result<(), String>,
    },
}

/// A word that a value may be.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// As it is documented.
    pub name: &'static str,
    /// Other spellings that are accepted: Knative's.
    pub also: &'static [&'static str],
    /// Puts it into the settings.
    pub set: fn(&mut Settings),
}

impl Word {
    fn matches(&self, text: &str) -> bool {
        self.name == text || self.also.contains(&text)
    }
}

impl Kind {
    /// Reads `text` into `settings`; leaves `settings` alone when it is refused.
    ///
    /// # Errors
    /// What is wrong beyond not being [`Kind::allowed`]; often empty.
    pub(super) fn read(&self, text: &str, settings: &mut Settings) -> Result<(), String> {
        let text = text.trim();
        match *self {
            Self::Whole { min, max, set, .. } => {
                let number = text.parse::<u32>().map_err(|_| String::new())?;
                if !(min..=max).contains(&number) {
                    return Err(String::new());
                }
                set(settings, number);
            }
            Self::Number {
                min, max, or, set, ..
            } => {
                let number = text.parse::<f64>().map_err(|_| String::new())?;
                // NaN and the infinities are outside every range.
                if !(min..=max).contains(&number) && or != Some(number) {
                    return Err(String::new());
                }
                set(settings, number);
            }
            Self::Duration {
                min,
                max,
                step,
                word,
                set,
            } => {
                if let Some(word) = word.filter(|word| word.matches(text)) {
                    (word.set)(settings);
                    return Ok(());
                }
                let duration = read_duration(text)?;
                let whole = step.is_zero() || duration.as_nanos().is_multiple_of(step.as_nanos());
                if !(min..=max).contains(&duration) || !whole {
                    return Err(String::new());
                }
                set(settings, duration);
            }
            Self::Choice { words } => {
                let word = words
                    .iter()
                    .find(|word| word.matches(text))
                    .ok_or_else(String::new)?;
                (word.set)(settings);
            }
            Self::Text { set, .. } => set(settings, text)?,
        }
        Ok(())
    }

    /// What is allowed, in words a user can act on.
    #[must_use]
    pub fn allowed(&self) -> String {
        match *self {
            Self::Whole { unit, min, max, .. } => format!("a whole number of {unit} from {min} to {max}"),
            Self::Number {
                unit, min, max, or, ..
            } => {
                let or = or.map_or_else(String::new, |value| format!("{value}, or "));
                format!("{or}a number from {min} to {max} ({unit})")
            }
            Self::Duration {
                min, max, step, word, ..
            } => {
                let word = word.map_or_else(String::new, |word| format!("`{}`, or ", word.name));
                let (min, max) = (write_duration(min), write_duration(max));
                let whole = if step == Duration::from_secs(1) {
                    " in whole seconds"
                } else {
                    ""
                };
                format!("{word}a duration from {min} to {max}{whole}, such as `90s` or `1m30s`")
            }
            Self::Choice { words } => {
                let names: Vec<_> = words.iter().map(|word| format!("`{}`", word.name)).collect();
                match names.split_last() {
                    Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                    _ => names.concat(),
                }
            }
            Self::Text { grammar, .. } => grammar.to_owned(),
        }
    }
}

/// Reads a duration as Go writes it, with the units h, m, s and ms: `90s`, `1m30s`, `250ms`, `1.5h`; also `0`.
/// The finest part is a millisecond, the longest some hundred thousand years.
///
/// # Errors
/// What is wrong with it beyond its form, as a clause; often empty.
pub fn read_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("`{text}` has no unit: write `{text}s` for seconds"));
    }
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (micros, after) = read_part(rest).ok_or_else(String::new)?;
        total = total.checked_add(micros).ok_or_else(String::new)?;
        rest = after;
    }
    if text.is_empty() {
        return Err(String::new());
    }
    if !total.is_multiple_of(1000) {
        return Err("the finest part is a millisecond".to_owned());
    }
    Ok(Duration::from_micros(total))
}

/// Reads one number with its unit, in microseconds, and what follows it.
fn read_part(text: &str) -> Option<(u64, &str)> {
    let number = text.len()
        - text
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
            .len();
    let (number, rest) = text.split_at(number);
    let unit = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
    let (unit, rest) = rest.split_at(unit);
    let factor = match unit {
        "h" => 3_600_000_000,
        "m" => 60_000_000,
        "s" => 1_000_000,
        "ms" => 1_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Nine digits of the smallest unit, a millisecond, are eleven days; of the largest, a hundred thousand years.
    if whole.len() > 9 || fraction.len() > 6 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let digits = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<u64>().ok()
        }
    };
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let micros = digits(whole)?
        .checked_mul(factor)?
        .checked_add(digits(fraction)?.checked_mul(factor)? / scale)?;
    Some((micros, rest))
}

/// Writes a duration as it is read: `90s` stays `1m30s`, 0 is `0s`. Parts finer than a millisecond are cut.
#[must_use]
pub fn write_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, millis) = (millis / 1000 % 60, millis % 1000);
    let parts = [(hours, "h"), (minutes, "m"), (seconds, "s"), (millis, "ms")];
    let text: String = parts
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        let rows: &[(&str, Option<u64>)] = &[
            ("90s", Some(90_000)),
            ("1m30s", Some(90_000)),
            ("250ms", Some(250)),
            ("1.5h", Some(5_400_000)),
            ("0.25s", Some(250)),
            (".5s", Some(500)),
            ("5.s", Some(5_000)),
            ("1h1m1s1ms", Some(3_661_001)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("90", None),
            ("", None),
            ("s", None),
            (".s", None),
            ("-5s", None),
            ("+5s", None),
            ("1d", None),
            ("1us", None),
            ("0.0001s", None),
            ("1.2.3s", None),
            ("9999999999s", None),
            (
                "999999999h999999999h999999999h999999999h999999999h999999999h",
                None,
            ),
            ("1s ", None),
            ("一s", None),
            ("5S", None),
        ];
        for (text, want) in rows {
            let got = read_duration(text);
            assert_eq!(got.ok().map(|d| d.as_millis()), want.map(u128::from), "{text}");
        }
        assert!(read_duration("90").is_err_and(|text| text.contains("write `90s`")));
    }

    #[test]
    fn a_written_duration_reads_back() {
        for (millis, want) in [
            (0, "0s"),
            (90_000, "1m30s"),
            (3_600_000, "1h"),
            (250, "250ms"),
            (86_400_000, "24h"),
            (60_001, "1m1ms"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(write_duration(duration), want);
            assert_eq!(read_duration(want), Ok(duration));
        }
    }
}
