//! The JSONPath of printer columns: `.spec.a[0].b`, `.status.conditions[?(@.type=="Ready")].status`, `.a['b.c']`, `[*]`.

use serde_json::Value;

/// The values that a path finds; none for a path that cannot be read.
pub(crate) fn find<'a>(path: &str, value: &'a Value) -> Vec<&'a Value> {
    let mut rest = path
        .trim()
        .trim_start_matches('{')
        .trim_end_matches('}')
        .trim_start_matches('$');
    let mut found = vec![value];
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let Some(end) = closing(after) else {
                return Vec::new();
            };
            found = index(&found, &after[..end]);
            rest = &after[end + 1..];
        } else {
            let after = rest.strip_prefix('.').unwrap_or(rest);
            let (name, left) = field(after);
            if !name.is_empty() {
                found = found.into_iter().filter_map(|it| it.get(&name)).collect();
            }
            if left.len() == rest.len() {
                return Vec::new();
            }
            rest = left;
        }
    }
    found
}

/// The name up to the next step; a dot behind a backslash belongs to it.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => {
                if let Some((_, next)) = letters.next() {
                    name.push(next);
                }
            }
            '.' | '[' => return (name, &text[at..]),
            other => name.push(other),
        }
    }
    (name, "")
}

/// Where the bracket ends, quotes respected.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (None, ']') => return Some(at),
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), close) if open == close => quote = None,
            _ => {}
        }
    }
    None
}

fn unquote(text: &str) -> &str {
    let text = text.trim();
    let inner = |mark: char| text.strip_prefix(mark).and_then(|it| it.strip_suffix(mark));
    inner('\'').or_else(|| inner('"')).unwrap_or(text)
}

fn index<'a>(found: &[&'a Value], inside: &str) -> Vec<&'a Value> {
    let inside = inside.trim();
    if inside == "*" {
        return found
            .iter()
            .flat_map(|it| match it {
                Value::Array(items) => items.iter().collect::<Vec<_>>(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            })
            .collect();
    }
    if let Some(filter) = inside.strip_prefix("?(").and_then(|it| it.strip_suffix(')')) {
        let (path, equal, wanted) = match (filter.split_once("=="), filter.split_once("!=")) {
            (Some((path, wanted)), _) => (path, true, unquote(wanted)),
            (None, Some((path, wanted))) => (path, false, unquote(wanted)),
            (None, None) => return Vec::new(),
        };
        let path = path.trim().trim_start_matches('@');
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        return found
            .iter()
            .filter_map(|it| it.as_array())
            .flatten()
            .filter(|item| find(path, item).iter().any(|it| text(it) == wanted) == equal)
            .collect();
    }
    if let Ok(at) = inside.parse::<i64>() {
        return found
            .iter()
            .filter_map(|it| {
                let items = it.as_array()?;
                let from_end = usize::try_from(at.unsigned_abs()).ok();
                let at = if at < 0 {
                    items.len().checked_sub(from_end?)?
                } else {
                    from_end?
                };
                items.get(at)
            })
            .collect();
    }
    let name = unquote(inside);
    found.iter().filter_map(|it| it.get(name)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::find;

    #[test]
    fn paths_of_printer_columns_are_understood() {
        let object = json!({
            "spec": {"a": [{"b": 1}, {"b": 2}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "False"}]},
            "metadata": {"labels": {"a.b/c": "d"}},
        });
        for (path, expected) in [
            (".spec.a[0].b", vec![json!(1)]),
            (".spec.a[-1].b", vec![json!(2)]),
            (".spec.a[*].b", vec![json!(1), json!(2)]),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                vec![json!("True")],
            ),
            (".status.conditions[?(@.type=='X')].status", vec![json!("False")]),
            (".metadata.labels.a\\.b/c", vec![json!("d")]),
            (".metadata.labels['a.b/c']", vec![json!("d")]),
            ("{.spec.a[1].b}", vec![json!(2)]),
            (".none", vec![]),
            (".spec.a[", vec![]),
        ] {
            assert_eq!(
                find(path, &object).into_iter().cloned().collect::<Vec<_>>(),
                expected,
                "{path}"
            );
        }
    }
}
