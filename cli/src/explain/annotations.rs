//! `dormouse explain annotations`: the table of `crds`, for people and for programs.

use crds::annotation::{self, Key, TABLE};

use super::Format;
use crate::args::Data;
use crate::failure::Failure;
use crate::output::{self, Paint};

/// # Errors
/// When it cannot be written.
pub(super) fn run(format: Option<Format>) -> Result<(), Failure> {
    let text = match format {
        None => text(Paint::stdout()),
        Some(Format::Markdown) => annotation::markdown(),
        Some(Format::Json) => output::data(&rows(), Data::Json)?,
        Some(Format::Yaml) => output::data(&rows(), Data::Yaml)?,
    };
    output::print(&text)
}

fn rows() -> Vec<serde_json::Value> {
    TABLE
        .iter()
        .map(|key| {
            serde_json::json!({
                "key": key.full(),
                "allowed": key.kind.allowed(),
                "default": key.default,
                "knative": key.knative,
                "onNamespace": key.on_namespace,
                "meaning": key.meaning,
                "inactive": annotation::activity(key),
            })
        })
        .collect()
}

fn text(paint: Paint) -> String {
    let mut text = format!(
        "Annotations on a Service, or on a Namespace as the default for its Services. Every key starts with `{}`.\n",
        annotation::PREFIX
    );
    for key in TABLE {
        text.push('\n');
        text.push_str(&entry(key, paint));
    }
    text
}

fn entry(key: &Key, paint: Paint) -> String {
    let mut lines = vec![
        format!(
            "{}   {}",
            paint.bold(key.name),
            paint.faint(&format!("default {}", key.default))
        ),
        format!("    {}", key.meaning),
        format!("    allowed: {}", key.kind.allowed()),
    ];
    if !key.on_namespace {
        lines.push("    on a Service only".to_owned());
    }
    if !key.knative.is_empty() {
        lines.push(format!("    also: {}", key.knative.join(", ")));
    }
    if let Some(note) = annotation::activity(key) {
        lines.push(format!("    {}", paint.warn(&note)));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained_with_its_range() {
        let text = text(Paint::never());
        for key in TABLE {
            let entry = format!("\n{}   default {}\n", key.name, key.default);
            assert!(text.contains(&entry), "{}", key.name);
            assert!(text.contains(&key.kind.allowed()), "{}", key.name);
        }
        assert_eq!(rows().len(), TABLE.len());
    }
}
