//! From files and folders to documents; every error has its file, line and column.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cluster::FOLDER_ANNOTATION;

/// Largest file that is read; Kubernetes takes no object above a few MiB.
const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// How deep folders are followed: deeper is a loop of links.
const DEEPEST: usize = 32;

/// One document.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    pub(super) object: Value,
    pub(super) file: PathBuf,
}

/// All manifests in files and folders, in order of their names.
pub(super) fn list_files(paths: &[PathBuf]) -> (Vec<PathBuf>, Vec<String>) {
    let mut files = Vec::new();
    let mut errors = Vec::new();
    for path in paths {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => walk(path, 0, &mut files, &mut errors),
            Ok(_) => files.push(path.clone()),
            Err(error) => errors.push(format!("{}: {error}", path.display())),
        }
    }
    (files, errors)
}

fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>, errors: &mut Vec<String>) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return errors.push(format!("{}: {error}", folder.display())),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        // Editors' copies and tools' own files begin with a dot.
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() && depth < DEEPEST {
            walk(&path, depth + 1, files, errors);
        } else if [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end)) {
            files.push(path);
        }
    }
}

/// A file's documents and errors.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) documents: Vec<Document>,
    pub(super) errors: Vec<String>,
}

pub(super) fn read(file: &Path) -> std::io::Result<Read> {
    if std::fs::metadata(file)?.len() > LARGEST_FILE {
        return Err(std::io::Error::other("larger than 16 MiB: no manifest"));
    }
    Ok(parse(file, &std::fs::read_to_string(file)?))
}

fn parse(file: &Path, text: &str) -> Read {
    let mut read = Read::default();
    let mut reader = text.as_bytes();
    let name = file.display();
    let options = serde_saphyr::Options::default();
    for document in serde_saphyr::read_with_options::<_, Value>(&mut reader, options) {
        match document {
            Ok(Value::Null) => {}
            Ok(object) => flatten(object, file, &mut read),
            Err(error) => {
                let at = error.location();
                let place = at
                    .map(|at| format!("{}:{}:", at.line(), at.column()))
                    .unwrap_or_default();
                let text = error.without_snippet().to_string();
                let line = text.lines().next().unwrap_or_default();
                // The place is said once, where editors look for it.
                let again = at.map(|at| format!(" at line {}, column {}", at.line(), at.column()));
                let line = again
                    .as_deref()
                    .and_then(|again| line.strip_suffix(again))
                    .unwrap_or(line);
                read.errors.push(format!("{name}:{place} {line}"));
            }
        }
    }
    read
}

/// A document, or the documents of a `List`.
fn flatten(object: Value, file: &Path, read: &mut Read) {
    let is_list = object
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind.ends_with("List"));
    if let (true, Some(items)) = (is_list, object.get("items").and_then(Value::as_array)) {
        for item in items {
            flatten(item.clone(), file, read);
        }
        return;
    }
    for field in ["/apiVersion", "/kind", "/metadata/name"] {
        if object
            .pointer(field)
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            let field = field.trim_start_matches('/').replace('/', ".");
            let kind = object.get("kind").and_then(Value::as_str).unwrap_or("a document");
            read.errors
                .push(format!("{}: {kind} without {field}", file.display()));
            return;
        }
    }
    read.documents.push(Document {
        object,
        file: file.to_owned(),
    });
}

/// Records the manifest's folder in pod templates that have a relative path: processes know no other base.
pub(super) fn note_folder(object: &mut Value, file: &Path) {
    let Some(folder) = std::path::absolute(file)
        .ok()
        .and_then(|it| it.parent().map(Path::to_owned))
    else {
        return;
    };
    let template = if object.get("kind").and_then(Value::as_str) == Some("Pod") {
        ""
    } else {
        "/spec/template"
    };
    let Some(template) = object.pointer_mut(template) else {
        return;
    };
    let containers = ["initContainers", "containers"]
        .iter()
        .filter_map(|list| template.pointer(&format!("/spec/{list}"))?.as_array())
        .flatten();
    let is_relative = |path: &str| !path.is_empty() && !path.starts_with('/');
    let needs = containers.into_iter().any(|container| {
        let folder = container
            .get("workingDir")
            .and_then(Value::as_str)
            .is_some_and(is_relative);
        let program = container.pointer("/command/0").and_then(Value::as_str);
        folder || program.is_some_and(|it| it.contains('/') && is_relative(it))
    });
    if needs && template.is_object() {
        if !template["metadata"].is_object() {
            template["metadata"] = json!({});
        }
        if !template["metadata"]["annotations"].is_object() {
            template["metadata"]["annotations"] = json!({});
        }
        template["metadata"]["annotations"][FOLDER_ANNOTATION] = json!(folder.to_string_lossy());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_read_and_errors_have_a_place() {
        let text = "\
apiVersion: v1
kind: ConfigMap
metadata: { name: a }
---
---
apiVersion: v1
kind: List
items:
- { apiVersion: v1, kind: Service, metadata: { name: b } }
- { apiVersion: v1, kind: Service, metadata: {} }
---
apiVersion: v1
kind: [broken
---
apiVersion: v1
kind: Secret
metadata: { name: c }
";
        let read = parse(Path::new("x.yaml"), text);
        let names: Vec<&str> = read
            .documents
            .iter()
            .filter_map(|it| it.object.pointer("/metadata/name")?.as_str())
            .collect();
        assert_eq!(names[..2], ["a", "b"]);
        assert_eq!(read.errors[0], "x.yaml: Service without metadata.name");
        assert!(read.errors[1].starts_with("x.yaml:1"), "{:?}", read.errors);
    }

    #[test]
    fn only_relative_paths_need_the_folder() {
        for (container, expected) in [
            (json!({ "command": ["sh"] }), false),
            (json!({ "command": ["/bin/sh"], "workingDir": "/tmp" }), false),
            (json!({ "command": ["./run"] }), true),
            (json!({ "command": ["sh"], "workingDir": "app" }), true),
        ] {
            let mut object = json!({ "kind": "Deployment", "spec": { "template": { "spec": { "containers": [container] } } } });
            note_folder(&mut object, Path::new("/manifests/web.yaml"));
            let folder = object.pointer("/spec/template/metadata/annotations/dormouse.dev~1folder");
            assert_eq!(folder.is_some(), expected, "{object}");
            assert!(folder.is_none_or(|it| it == "/manifests"));
        }
    }
}
