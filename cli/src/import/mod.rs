//! `dormouse import`: a Flagger `Canary` as a `Rollout`, and what of it has no equivalent.
//!
//! | module | what it does |
//! |---|---|
//! | [`canary`] | one Canary to one Rollout |
//! | [`measure`] | its metrics, webhooks and alerts |
//! | [`matching`] | its matches: regular expressions that are plain text in disguise |
//! | [`fields`] | what of a document was used; whatever is left is named, with advice from a table |

mod canary;
mod fields;
mod matching;
mod measure;

use std::io::Read as _;
use std::path::PathBuf;

use serde_json::Value;

use crate::args::Data;
use crate::failure::Failure;
use crate::output;
use canary::{Imported, Related};

/// Largest input: no Canary is longer.
const LARGEST: u64 = 16 << 20;
/// Where a line of a comment ends.
const WIDTH: usize = 110;

/// Options of `dormouse import`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// YAML or JSON with Flagger's Canaries, and with the MetricTemplates and AlertProviders that they name; `-`: standard input
    #[arg(value_name = "CANARY.yaml", default_value = "-")]
    file: PathBuf,
    /// How to write the Rollouts. Comments are written in YAML only
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: Data,
}

/// # Errors
/// When the input cannot be read, holds no Canary, or one that cannot be a Rollout.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let name = match args.file.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => args.file.display().to_string(),
    };
    let text = read(args, &name)?;
    let imported = import(&text).map_err(|why| Failure::Usage(format!("{name}: {why}")))?;
    for one in &imported {
        eprint!("{}", report(one));
    }
    let written = match args.output {
        Data::Yaml => imported.iter().map(commented).collect::<Result<String, _>>()?,
        Data::Json => match imported.as_slice() {
            [one] => output::data(&one.rollout, Data::Json)?,
            many => {
                let items: Vec<&Value> = many.iter().map(|one| &one.rollout).collect();
                let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
                output::data(&list, Data::Json)?
            }
        },
    };
    output::print(&written)
}

fn read(args: &Args, name: &str) -> Result<String, Failure> {
    let wrong = |error: &std::io::Error| Failure::Usage(format!("cannot read {name}: {error}"));
    let mut text = String::new();
    let read = match args.file.to_str() {
        Some("-") => std::io::stdin()
            .lock()
            .take(LARGEST + 1)
            .read_to_string(&mut text),
        _ => std::fs::File::open(&args.file)
            .map_err(|error| wrong(&error))?
            .take(LARGEST + 1)
            .read_to_string(&mut text),
    };
    match read {
        Ok(length) if length as u64 > LARGEST => Err(wrong(&std::io::Error::other("larger than 16 MiB"))),
        Ok(_) => Ok(text),
        Err(error) => Err(wrong(&error)),
    }
}

/// Every Canary of a text as a Rollout.
///
/// # Errors
/// What is wrong, and where.
fn import(text: &str) -> Result<Vec<Imported>, String> {
    let documents = documents(text)?;
    let related = Related::of(&documents);
    let mut imported = Vec::new();
    let mut others = Vec::new();
    for document in &documents {
        match document["kind"].as_str() {
            Some("Canary") => imported.push(canary::import(document, &related)?),
            Some("MetricTemplate" | "AlertProvider") => {}
            Some(kind) => others.push(kind.to_owned()),
            None => return Err("a document has no kind: it is no Kubernetes object".to_owned()),
        }
    }
    match (imported.is_empty(), others.as_slice()) {
        (false, []) => Ok(imported),
        (true, []) => Err("there is no Canary in it".to_owned()),
        (_, others) => Err(format!(
            "kind {} is not a Canary, MetricTemplate or AlertProvider of flagger.app: leave it out",
            others.join(", ")
        )),
    }
}

/// All documents; a List is what it holds.
fn documents(text: &str) -> Result<Vec<Value>, String> {
    let mut documents = Vec::new();
    let mut reader = text.as_bytes();
    let options = serde_saphyr::Options::default();
    for document in serde_saphyr::read_with_options::<_, Value>(&mut reader, options) {
        match document {
            Ok(Value::Null) => {}
            Ok(object) => flatten(object, &mut documents),
            Err(error) => {
                let text = error.without_snippet().to_string();
                return Err(text.lines().next().unwrap_or_default().to_owned());
            }
        }
    }
    Ok(documents)
}

fn flatten(mut object: Value, documents: &mut Vec<Value>) {
    let is_list = object["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    // What is no object has no fields, and asking for one to write to it would be an end of all.
    match object.get_mut("items") {
        Some(Value::Array(items)) if is_list => {
            std::mem::take(items)
                .into_iter()
                .for_each(|item| flatten(item, documents));
        }
        _ => documents.push(object),
    }
}

/// The Rollout with everything that has to be known about it above it.
fn commented(one: &Imported) -> Result<String, Failure> {
    let mut text = String::from("---\n");
    let mut comment = |indent: &str, line: &str| {
        for line in wrapped(line, WIDTH - indent.len()) {
            text.push_str(&format!("#{indent}{line}\n"));
        }
    };
    comment(" ", &format!("From Flagger's Canary {}.", one.name));
    for line in one.first.iter().chain(&obstacle(one)) {
        comment(" ", line);
    }
    if !one.notes.is_empty() {
        comment(" ", "Without an equivalent:");
        for note in &one.notes {
            comment("   ", &note.to_string());
        }
    }
    Ok(text + &output::yaml(&one.rollout)?)
}

/// What has to be changed before this version takes it.
fn obstacle(one: &Imported) -> Option<String> {
    let why = one.obstacle.as_ref()?;
    Some(format!("This version does not carry it out as it is: {why}."))
}

/// For standard error: what has no equivalent.
fn report(one: &Imported) -> String {
    let mut text = match one.notes.len() {
        0 => format!("Canary {}: every field has an equivalent\n", one.name),
        1 => format!(
            "Canary {}: 1 field has no equivalent, or not the same one\n",
            one.name
        ),
        count => format!(
            "Canary {}: {count} fields have no equivalent, or not the same one\n",
            one.name
        ),
    };
    for note in &one.notes {
        text.push_str(&format!("  {note}\n"));
    }
    if let Some(obstacle) = obstacle(one) {
        text.push_str(&format!("  {obstacle}\n"));
    }
    text
}

/// Lines of at most so many letters, but for words that are longer.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests;
