//! Flagger's matches. Ours know whole values, beginnings, ends and parts; a regular expression that says one of these is
//! taken for it, and any other is not guessed at.

use serde_json::{Map, Value, json};

use super::fields::Fields;

/// A cookie among others, as Flagger's documentation writes it.
const COOKIE: (&str, &str) = ("^(.*?;)?(", ")(;.*)?$");

/// What each entry of `match` says in our words. One that cannot be said whole is left out and noted: half of it would match
/// more than was meant.
pub(super) fn matches(analysis: &mut Fields) -> Result<Vec<Value>, String> {
    let mut found = Vec::new();
    for (number, mut entry) in analysis.items("match")?.into_iter().enumerate() {
        let field = format!("match[{number}]");
        let whole = entry.rest().clone();
        let said = entry.take("headers");
        let headers = said.as_ref().and_then(headers);
        let others = entry.end();
        match headers {
            Some(headers) if others.is_empty() && !headers.is_empty() => {
                found.push(json!({ "headers": headers }));
                for (name, regex) in said.iter().flat_map(wider) {
                    let advice = "read as contains, which also matches inside another cookie or a longer value: choose a name \
                                  and a value that are part of no other";
                    analysis.note(&format!("{field}.headers.{name}"), regex, advice);
                }
            }
            _ => {
                let advice = "say it with headers, as exact, prefix, suffix or contains: requests cannot be told apart by \
                              anything else, nor by other regular expressions";
                analysis.note(&field, &whole, advice);
            }
        }
    }
    Ok(found)
}

fn headers(headers: &Value) -> Option<Map<String, Value>> {
    let header = |(name, how): (&String, &Value)| Some((name.to_ascii_lowercase(), header(how)?));
    headers.as_object()?.iter().map(header).collect()
}

/// The headers of which our words match more than the regular expression does: a cookie among others.
fn wider(headers: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let cookie = |how: &Value| how["regex"].as_str().is_some_and(|regex| cookie(regex).is_some());
    headers
        .as_object()
        .into_iter()
        .flatten()
        .filter(move |(_, how)| cookie(how))
}

/// One header: exactly one of the four ways, or a regular expression that is one.
fn header(how: &Value) -> Option<Value> {
    let fields = how.as_object()?;
    let mut ways = fields.iter();
    let (Some((way, value)), None) = (ways.next(), ways.next()) else {
        return None;
    };
    let value = value.as_str().filter(|value| !value.is_empty())?;
    match way.as_str() {
        "exact" | "prefix" | "suffix" => Some(json!({ way: value })),
        "regex" => {
            let (way, text) = plain(value)?;
            Some(json!({ way: text }))
        }
        _ => None,
    }
}

/// What a regular expression says, if that is plain text and where it stands. Istio's and Envoy's match whole values.
fn plain(regex: &str) -> Option<(&'static str, String)> {
    if let Some(inner) = cookie(regex) {
        return Some(("contains", literal(inner)?));
    }
    let open_before = |text: &str| text.strip_prefix(".*").map(str::to_owned);
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let regex = regex.strip_suffix('$').unwrap_or(regex);
    let (before, rest) = match open_before(regex) {
        Some(rest) => (true, rest),
        None => (false, regex.to_owned()),
    };
    let (after, rest) = match rest.strip_suffix(".*") {
        Some(rest) => (true, rest.to_owned()),
        None => (false, rest),
    };
    let way = match (before, after) {
        (false, false) => "exact",
        (false, true) => "prefix",
        (true, false) => "suffix",
        (true, true) => "contains",
    };
    Some((way, literal(&rest)?))
}

/// What a regular expression for one cookie among others says of it.
fn cookie(regex: &str) -> Option<&str> {
    regex.strip_prefix(COOKIE.0)?.strip_suffix(COOKIE.1)
}

/// The text that a regular expression without operators stands for.
fn literal(regex: &str) -> Option<String> {
    let mut text = String::new();
    let mut letters = regex.chars();
    while let Some(letter) = letters.next() {
        match letter {
            // A class such as \d is no letter.
            '\\' => text.push(letters.next().filter(|escaped| !escaped.is_alphanumeric())?),
            '.' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '^' | '$' => return None,
            other => text.push(other),
        }
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_expressions_that_are_plain_text_are_read() {
        for (regex, want) in [
            (
                "^(.*?;)?(canary=always)(;.*)?$",
                Some(("contains", "canary=always")),
            ),
            (".*Firefox.*", Some(("contains", "Firefox"))),
            ("insider", Some(("exact", "insider"))),
            ("^v1\\.2$", Some(("exact", "v1.2"))),
            ("^beta-.*$", Some(("prefix", "beta-"))),
            (".*\\.example\\.com", Some(("suffix", ".example.com"))),
            ("^(.*?;)?(type=(a|b))(;.*)?$", None),
            ("(?!.*Chrome).*Safari.*", None),
            ("\\d+", None),
            (".*", None),
            ("a.c", None),
        ] {
            let found = plain(regex);
            let found = found.as_ref().map(|(way, text)| (*way, text.as_str()));
            assert_eq!(found, want, "{regex}");
        }
    }

    #[test]
    fn what_can_be_said_only_in_part_is_left_out() {
        let mut analysis = Fields::at(
            "spec.analysis",
            json!({ "match": [
                { "headers": { "X-Canary": { "exact": "insider" }, "cookie": { "regex": ".*a=1.*" } } },
                { "headers": { "cookie": { "regex": "^(.*?;)?(a=1)(;.*)?$" } } },
                { "headers": { "user-agent": { "regex": "(?i)safari" } } },
                { "headers": { "x": { "exact": "1" } }, "sourceLabels": { "app": "a" } },
                { "queryParams": { "v": { "exact": "2" } } },
            ]}),
        );
        let found = matches(&mut analysis).expect("a list");
        assert_eq!(
            found,
            [
                json!({ "headers": { "x-canary": { "exact": "insider" }, "cookie": { "contains": "a=1" } } }),
                json!({ "headers": { "cookie": { "contains": "a=1" } } }),
            ]
        );
        let notes: Vec<String> = analysis.end().iter().map(ToString::to_string).collect();
        let places = ["match[1].headers.cookie", "match[2]", "match[3]", "match[4]"];
        assert_eq!(notes.len(), places.len());
        for (note, place) in notes.iter().zip(places) {
            assert!(note.starts_with(&format!("spec.analysis.{place}: ")), "{note}");
        }
    }
}
