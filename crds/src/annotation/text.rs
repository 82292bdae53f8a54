//! Values with a grammar of their own: workloads, names, lists, what to ignore.

use super::Settings;
use super::schedule;
use crate::route::{Ignore, Workload, WorkloadKind};

/// Most entries of each list in `ignore`, as in the Route's schema.
const MOST_IGNORED: usize = 64;
/// Longest entry of `ignore`, bytes: user agents and paths of probes are far shorter.
const LONGEST_IGNORED: usize = 256;
/// Most Services in `depends-on`. An order of start that long is a mistake.
const MOST_DEPENDENCIES: usize = 32;

pub(super) fn workload(settings: &mut Settings, text: &str) -> Result<(), String> {
    let (kind, name) = text.split_once('/').ok_or_else(String::new)?;
    let kind = match kind {
        "deployment" => WorkloadKind::Deployment,
        "statefulset" => WorkloadKind::StatefulSet,
        _ => return Err(format!("`{kind}` is not a kind that can be scaled to zero")),
    };
    object_name(name)?;
    settings.workload = Some(Workload {
        kind,
        name: name.to_owned(),
    });
    Ok(())
}

pub(super) fn schedule(settings: &mut Settings, text: &str) -> Result<(), String> {
    schedule::check(text)?;
    settings.schedule = Some(text.to_owned());
    Ok(())
}

pub(super) fn waiting_page(settings: &mut Settings, text: &str) -> Result<(), String> {
    object_name(text)?;
    settings.waiting_page = text.to_owned();
    Ok(())
}

pub(super) fn group(settings: &mut Settings, text: &str) -> Result<(), String> {
    label(text)?;
    settings.group = Some(text.to_owned());
    Ok(())
}

pub(super) fn depends_on(settings: &mut Settings, text: &str) -> Result<(), String> {
    let mut services: Vec<String> = Vec::new();
    for name in text.split(',').map(str::trim) {
        label(name)?;
        if services.iter().any(|known| known == name) {
            return Err(format!("`{name}` is there twice"));
        }
        services.push(name.to_owned());
    }
    if services.len() > MOST_DEPENDENCIES {
        return Err(format!("{} are more than {MOST_DEPENDENCIES}", services.len()));
    }
    settings.depends_on = services;
    Ok(())
}

pub(super) fn rollout(settings: &mut Settings, text: &str) -> Result<(), String> {
    object_name(text)?;
    settings.rollout = Some(text.to_owned());
    Ok(())
}

pub(super) fn ignore(settings: &mut Settings, text: &str) -> Result<(), String> {
    let mut ignore = Ignore::default();
    for entry in text.split(',').map(str::trim) {
        if entry.is_empty() {
            return Err("an entry is empty".to_owned());
        }
        if entry.len() > LONGEST_IGNORED || !entry.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(format!(
                "an entry is printable ASCII of at most {LONGEST_IGNORED} bytes"
            ));
        }
        if entry.starts_with('/') {
            ignore.paths.push(entry.to_owned());
        } else {
            ignore.user_agents.push(entry.to_owned());
        }
    }
    if ignore.paths.len() > MOST_IGNORED || ignore.user_agents.len() > MOST_IGNORED {
        return Err(format!("at most {MOST_IGNORED} of each"));
    }
    settings.ignore = ignore;
    Ok(())
}

/// An object's name: a DNS subdomain (RFC 1123).
fn object_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("the name is empty".to_owned());
    }
    if text.len() > 253 || !text.split('.').all(is_label) {
        return Err(format!(
            "`{}` cannot be the name of an object",
            super::shorten(text)
        ));
    }
    Ok(())
}

/// A Service's or group's name: a DNS label (RFC 1123).
fn label(text: &str) -> Result<(), String> {
    if is_label(text) {
        return Ok(());
    }
    Err(format!(
        "`{}` cannot be a name: lower-case letters, digits and `-`, at most 63",
        super::shorten(text)
    ))
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}
