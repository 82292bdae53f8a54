//! Requests that go to the candidate by what their fields say. Pure.

use crds::route::{HeaderMatch, RouteMatch};
use http::{HeaderMap, HeaderName};

/// The rules of a Route; one that holds is enough.
#[derive(Debug, Default)]
pub(super) struct Matches(Vec<Vec<(HeaderName, HeaderMatch)>>);

impl Matches {
    /// # Errors
    /// Names the field that is none.
    pub(super) fn of(matches: &[RouteMatch]) -> Result<Self, String> {
        let rule = |one: &RouteMatch| {
            let fields = one.headers.iter().map(|(name, value)| {
                let read = HeaderName::try_from(name).map_err(|_| {
                    format!("rollout.matches has the header \"{name}\", which is no field name")
                });
                Ok::<_, String>((read?, value.clone()))
            });
            fields.collect()
        };
        matches.iter().map(rule).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a rule holds. One without fields never does: it would be everybody's.
    pub(super) fn has(&self, headers: &HeaderMap) -> bool {
        self.0.iter().any(|rule| {
            let mut fields = rule.iter();
            !rule.is_empty()
                && fields.all(|(name, wanted)| {
                    headers
                        .get_all(name)
                        .iter()
                        .any(|value| fits(wanted, value.as_bytes()))
                })
        })
    }
}

/// Whether a value is as wanted, in every respect that is asked for.
fn fits(wanted: &HeaderMatch, value: &[u8]) -> bool {
    let HeaderMatch {
        exact,
        prefix,
        suffix,
        contains,
    } = wanted;
    (exact.is_empty() || exact.as_bytes() == value)
        && value.starts_with(prefix.as_bytes())
        && value.ends_with(suffix.as_bytes())
        && (contains.is_empty()
            || value
                .windows(contains.len())
                .any(|part| part == contains.as_bytes()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn wanted(exact: &str, prefix: &str, suffix: &str, contains: &str) -> HeaderMatch {
        HeaderMatch {
            exact: exact.into(),
            prefix: prefix.into(),
            suffix: suffix.into(),
            contains: contains.into(),
        }
    }

    #[test]
    fn a_value_fits_in_every_respect_that_is_asked_for() {
        for (wanted, value, fit) in [
            (wanted("", "", "", ""), "", true),
            (wanted("", "", "", ""), "anything", true),
            (wanted("insider", "", "", ""), "insider", true),
            (wanted("insider", "", "", ""), "insiders", false),
            (wanted("", "in", "er", "sid"), "insider", true),
            (wanted("", "in", "er", "xx"), "insider", false),
            (wanted("", "x", "", ""), "insider", false),
            (wanted("", "", "x", ""), "insider", false),
            (
                wanted("", "", "", "group=insider"),
                "a=1; group=insider; b=2",
                true,
            ),
            (wanted("", "", "", "longer than the value"), "short", false),
        ] {
            assert_eq!(fits(&wanted, value.as_bytes()), fit, "{wanted:?} {value}");
        }
    }

    #[test]
    fn all_fields_of_one_rule_or_all_of_another() {
        let rule = |fields: &[(&str, &str)]| RouteMatch {
            headers: fields
                .iter()
                .map(|(name, exact)| ((*name).to_owned(), wanted(exact, "", "", "")))
                .collect(),
        };
        let matches = Matches::of(&[
            rule(&[("x-a", "1"), ("x-b", "")]),
            rule(&[("x-c", "3")]),
            rule(&[]),
        ]);
        let matches = matches.expect("field names");
        for (fields, has) in [
            (&[][..], false),
            (&[("x-a", "1")][..], false),
            (&[("x-a", "1"), ("x-b", "any")][..], true),
            (&[("x-a", "2"), ("x-b", "any")][..], false),
            (&[("x-c", "2"), ("x-c", "3")][..], true),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(matches.has(&headers), has, "{fields:?}");
        }
    }

    #[test]
    fn a_field_that_is_none_is_named() {
        let mut rule = RouteMatch::default();
        rule.headers.insert("x y".into(), HeaderMatch::default());
        assert!(Matches::of(&[rule]).expect_err("refused").contains("\"x y\""));
    }
}
