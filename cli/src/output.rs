//! What is printed: tables, JSON, YAML, ages, colour.

use std::io::{IsTerminal as _, Write as _};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde::Serialize;

use crate::args::Data;
use crate::failure::Failure;

/// Prints `text` as it is. A reader that has gone away (`| head`) is no failure.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::Process(
            anyhow::Error::new(error).context("cannot write the output"),
        )),
        _ => Ok(()),
    }
}

/// `value` as data.
///
/// # Errors
/// When it cannot be written in that form.
pub(crate) fn data<T: Serialize>(value: &T, format: Data) -> Result<String, Failure> {
    match format {
        Data::Json => serde_json::to_string_pretty(value)
            .map(|text| text + "\n")
            .map_err(|error| Failure::Process(error.into())),
        Data::Yaml => yaml(value),
    }
}

/// `value` as one of many that follow each other: a line of JSON, or a document of YAML.
///
/// # Errors
/// When it cannot be written in that form.
pub(crate) fn change<T: Serialize>(value: &T, format: Data) -> Result<String, Failure> {
    match format {
        Data::Json => serde_json::to_string(value)
            .map(|line| line + "\n")
            .map_err(|error| Failure::Process(error.into())),
        Data::Yaml => Ok(format!("---\n{}", yaml(value)?)),
    }
}

/// Objects as `kubectl get` gives several.
pub(crate) fn list<T: Serialize>(objects: &[T]) -> serde_json::Value {
    serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects })
}

/// `value` as YAML.
///
/// # Errors
/// When it cannot be written in that form.
pub(crate) fn yaml<T: Serialize>(value: &T) -> Result<String, Failure> {
    let mut text = serde_saphyr::to_string(value).map_err(|error| Failure::Process(error.into()))?;
    // Another document, or a prompt, may follow.
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Columns padded to their longest cell, as it is seen; the last is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| seen_width(cell))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - seen_width(cell) + 3));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Letters of `text`, but for those that only change colour.
fn seen_width(text: &str) -> usize {
    let mut coloured = false;
    let seen = text.chars().filter(|letter| match letter {
        '\x1b' => {
            coloured = true;
            false
        }
        // Codes of colour end with it.
        'm' if coloured => {
            coloured = false;
            false
        }
        _ => !coloured,
    });
    seen.count()
}

/// The time of day, here.
pub(crate) fn time_of_day() -> String {
    jiff::Zoned::now().strftime("%H:%M:%S").to_string()
}

/// A line that can be printed before the next is known: columns of a fixed width, so that most of them line up.
pub(crate) fn watch_line(time: &str, cells: &[String], widths: &[usize]) -> String {
    let mut line = format!("{time:<8}");
    for (cell, width) in cells.iter().zip(widths) {
        line.push_str(&format!("  {cell:<width$}"));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// The cells of an object that is there no more.
pub(crate) fn gone(object: &impl ResourceExt, namespace: bool) -> Vec<String> {
    let namespace = namespace.then(|| object.namespace().unwrap_or_default());
    namespace
        .into_iter()
        .chain([object.name_any(), "Gone".to_owned()])
        .collect()
}

/// `NAMESPACE/NAME`.
pub(crate) fn key(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// A cell: a dash where there is nothing to say.
pub(crate) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// How long ago, as kubectl says it: `12s`, `5m3s`, `3h20m`, `2d2h`. What is to come, by a clock that differs: `0s`.
pub(crate) fn age(since: Option<&Time>, now: jiff::Timestamp) -> String {
    let Some(since) = since else { return "-".to_owned() };
    local::kubectl_age(now.duration_since(since.0).as_secs().max(0))
}

/// Milliseconds for people: `0.8 ms`, `12 ms`, `1.25 s`.
pub(crate) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1000.0),
    }
}

/// Colours of one terminal; none when the output is not a terminal, or `NO_COLOR` is set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint(bool);

impl Paint {
    /// As standard output wants it.
    pub(crate) fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self(false)
    }

    #[cfg(test)]
    pub(crate) fn always() -> Self {
        Self(true)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn warn(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_as_kubectl_says_them() {
        let now = jiff::Timestamp::from_second(1_000_000_000).expect("a time");
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (800 * 86_400, "2y70d"),
            (-5, "0s"),
        ] {
            let since = Time(now - jiff::SignedDuration::from_secs(seconds));
            assert_eq!(age(Some(&since), now), want);
        }
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn milliseconds_have_as_many_digits_as_matter() {
        for (ms, want) in [
            (0.84, "0.8 ms"),
            (12.3, "12 ms"),
            (999.0, "999 ms"),
            (1254.0, "1.25 s"),
        ] {
            assert_eq!(millis(ms), want);
        }
    }

    #[test]
    fn yaml_ends_with_its_line() {
        for value in [serde_json::json!({ "a": "b" }), serde_json::json!({ "a": ["b"] })] {
            let text = yaml(&value).expect("YAML");
            assert!(text.ends_with("b\n") && !text.ends_with("\n\n"), "{text:?}");
        }
    }

    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let rows = [["A", "LONG", "C"], ["aaa", "b", ""]];
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(ToString::to_string).collect())
            .collect();
        assert_eq!(table(&rows), "A     LONG   C\naaa   b\n");
    }

    #[test]
    fn colour_takes_no_place_in_a_column() {
        let paint = Paint::always();
        let rows = [
            [paint.good("True"), "a".to_owned()],
            [paint.warn("False"), "b".to_owned()],
            ["-".to_owned(), "c".to_owned()],
        ];
        let text = table(&rows.map(|row| row.to_vec()));
        assert_eq!(
            text,
            "\x1b[32mTrue\x1b[0m    a\n\x1b[33mFalse\x1b[0m   b\n-       c\n"
        );
    }
}
