//! Questions to a Prometheus: a query with Flagger's variables, and one number back.

use std::time::Duration;

use http::Uri;
use serde_json::Value;

use super::outside::Caller;
use super::web::{Answer, Post, cut};

/// How long one try may take, as with Flagger.
const LIMIT: Duration = Duration::from_secs(5);
/// A query that is not answered is tried once more after this: one lost packet is not a verdict.
const AGAIN: Duration = Duration::from_secs(1);

/// Variables of a query.
pub(super) const VARIABLES: [&str; 7] = [
    "namespace",
    "name",
    "target",
    "service",
    "interval",
    "stable",
    "candidate",
];

/// Fills `{{ NAME }}` in.
///
/// # Errors
/// The first name that is not known, and those that are; or a `{{` that does not end.
pub(super) fn fill(query: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let (mut filled, mut rest) = (String::with_capacity(query.len()), query);
    while let Some((before, from)) = rest.split_once("{{") {
        let Some((name, after)) = from.split_once("}}") else {
            return Err("has a {{ without its }}".to_owned());
        };
        let name = name.trim();
        let Some(value) = value(name) else {
            let known = VARIABLES.join(", ");
            return Err(format!("uses {{{{ {name} }}}}, known are: {known}"));
        };
        filled.push_str(before);
        filled.push_str(&value);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Where queries of this Prometheus go.
///
/// # Errors
/// When the address cannot have this path.
pub(super) fn endpoint(address: &str) -> Result<Uri, String> {
    let base = super::web::address(address)?;
    if base.query().is_some() {
        return Err("allowed: an address without a query string".to_owned());
    }
    super::web::address(&format!(
        "{}/api/v1/query",
        base.to_string().trim_end_matches('/')
    ))
}

/// Asks. `None`: there is no value.
///
/// # Errors
/// A sentence: it does not answer, or not with one number.
pub(super) async fn ask(caller: &Caller, endpoint: &Uri, query: &str) -> Result<Option<f64>, String> {
    let mut form = String::from("query=");
    encode(query, &mut form);
    let post = Post {
        to: endpoint.clone(),
        media: "application/x-www-form-urlencoded",
        body: form.into(),
    };
    let answer = caller.post("prometheus", &post, LIMIT, [AGAIN]).await;
    let asked = endpoint.authority().map(ToString::to_string).unwrap_or_default();
    let read = answer.map_err(|failure| failure.to_string());
    read.and_then(|answer| read_answer(&answer))
        .map_err(|why| format!("Prometheus {asked}: {why}"))
}

/// Percent-encoding of a form's value: all but RFC 3986's unreserved characters.
fn encode(text: &str, form: &mut String) {
    use std::fmt::Write as _;
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                form.push(char::from(byte));
            }
            _ => _ = write!(form, "%{byte:02X}"),
        }
    }
}

/// Reads the answer of `/api/v1/query`, as its documentation describes it.
fn read_answer(answer: &Answer) -> Result<Option<f64>, String> {
    let Ok(said) = serde_json::from_slice::<Value>(&answer.body) else {
        return Err(format!("it answered {}", answer.shown()));
    };
    if said["status"] != "success" {
        let error = said["error"].as_str().map(cut);
        return Err(error.unwrap_or_else(|| format!("it answered {}", answer.shown())));
    }
    let result = &said["data"]["result"];
    let sample = match said["data"]["resultType"].as_str() {
        Some("scalar") => result,
        Some("vector") => match result.as_array().map(Vec::as_slice) {
            Some([]) => return Ok(None),
            Some([one]) => &one["value"],
            Some(many) => {
                let count = many.len();
                return Err(format!(
                    "the query has {count} results and may have one: aggregate them, with sum(…) for example"
                ));
            }
            None => return Err(format!("it answered {}", answer.shown())),
        },
        Some(other) => {
            return Err(format!(
                "the query has a {other} as its result, and needs one number"
            ));
        }
        None => return Err(format!("it answered {}", answer.shown())),
    };
    let number = sample[1].as_str().and_then(|text| text.parse::<f64>().ok());
    match number {
        Some(number) if number.is_nan() => Ok(None),
        Some(number) => Ok(Some(number)),
        None => Err(format!("it answered {}", answer.shown())),
    }
}
