//! IP families of a Service, on a cluster that has only IPv4: what is asked for, what is given, what is refused.
//!
//! As kube-apiserver's `alloc.go` on a single-stack cluster: `PreferDualStack` gets one family, `RequireDualStack` is
//! refused, and a headless Service without selector may have both, because its endpoints come from elsewhere.

use serde_json::{Value, json};

use super::status::Cause;

const FIELDS: [&str; 3] = ["ipFamilies", "ipFamilyPolicy", "clusterIPs"];

/// Fills `ipFamilyPolicy` and `ipFamilies` of the Service that is to be written in place of `live`.
pub(crate) fn fill(service: &mut Value, live: Option<&Value>) -> Result<(), Vec<Cause>> {
    let unchanged = |live: &Value| {
        live["spec"].is_object() && FIELDS.iter().all(|it| live["spec"][it] == service["spec"][it])
    };
    if live.is_some_and(unchanged) {
        return Ok(());
    }
    let spec = &mut service["spec"];
    let has_selector = spec["selector"].as_object().is_some_and(|it| !it.is_empty());
    // Its endpoints come from elsewhere, so it may have families that the cluster has not.
    let free = spec["clusterIP"] == "None" && !has_selector;
    let policy = spec["ipFamilyPolicy"]
        .as_str()
        .unwrap_or(if free { "RequireDualStack" } else { "SingleStack" })
        .to_owned();
    let mut families: Vec<String> = texts(&spec["ipFamilies"]);
    let addresses = texts(&spec["clusterIPs"]);
    refuse(alone(&policy, &families, &addresses))?;
    refuse(together(&policy, &families, &addresses))?;
    if families.is_empty() {
        families.push("IPv4".to_owned());
    }
    if !free {
        refuse(configured(&policy, &families))?;
    } else if let ([one], true) = (families.as_slice(), policy != "SingleStack") {
        let other = if one == "IPv4" { "IPv6" } else { "IPv4" };
        families.push(other.to_owned());
    }
    spec["ipFamilyPolicy"] = json!(policy);
    spec["ipFamilies"] = json!(families);
    Ok(())
}

fn refuse(causes: Vec<Cause>) -> Result<(), Vec<Cause>> {
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}

fn texts(list: &Value) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|it| it.as_str().map(str::to_owned)).collect()
}

/// Each field by itself.
fn alone(policy: &str, families: &[String], addresses: &[String]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if !policies.contains(&policy) {
        causes.push(Cause::unsupported(
            "spec.ipFamilyPolicy",
            &json!(policy),
            &policies,
        ));
    }
    for (at, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{at}]");
        if !matches!(family.as_str(), "IPv4" | "IPv6") {
            causes.push(Cause::unsupported(field, &json!(family), &["IPv4", "IPv6"]));
        } else if families[..at].contains(family) {
            causes.push(Cause::duplicate(field, &json!(family)));
        }
    }
    if addresses.len() > 2 {
        causes.push(Cause::invalid(
            "spec.clusterIPs",
            &json!(addresses),
            "may only hold up to 2 values",
        ));
    }
    causes
}

/// The policy against the rest, and addresses of a family that there is not.
fn together(policy: &str, families: &[String], addresses: &[String]) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (count, what) in [(addresses.len(), "cluster IPs"), (families.len(), "IP families")] {
        if policy == "SingleStack" && count == 2 {
            let why =
                format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            causes.push(Cause::invalid("spec.ipFamilyPolicy", &json!(policy), &why));
        }
    }
    for (at, address) in addresses.iter().enumerate().skip(families.len()) {
        if address.contains(':') {
            causes.push(Cause::invalid(
                format!("spec.clusterIPs[{at}]"),
                &json!(addresses),
                "IPv6 is not configured on this cluster",
            ));
        }
    }
    causes
}

/// What the cluster has not.
fn configured(policy: &str, families: &[String]) -> Vec<Cause> {
    let mut causes = Vec::new();
    if policy == "RequireDualStack" {
        causes.push(Cause::invalid(
            "spec.ipFamilyPolicy",
            &json!(policy),
            "this cluster is not configured for dual-stack services",
        ));
    }
    for (at, family) in families.iter().enumerate().filter(|(_, it)| *it != "IPv4") {
        causes.push(Cause::invalid(
            format!("spec.ipFamilies[{at}]"),
            &json!(family),
            "not configured on this cluster",
        ));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `POLICY FAMILIES`, or the fields that are refused.
    fn filled(spec: &str, live: Option<&str>) -> String {
        let read = |spec: &str| -> Value {
            serde_saphyr::from_str(&format!("{{ spec: {spec} }}")).expect("a Service")
        };
        let mut service = read(spec);
        match fill(&mut service, live.map(read).as_ref()) {
            Ok(()) => {
                let spec = &service["spec"];
                format!("{} {}", spec["ipFamilyPolicy"], spec["ipFamilies"]).replace('"', "")
            }
            Err(causes) => {
                let fields: Vec<_> = causes.into_iter().map(|cause| cause.field).collect();
                format!("refused {}", fields.join(" "))
            }
        }
    }

    #[test]
    fn families_are_those_of_a_single_stack_cluster() {
        let headless = "{ clusterIP: None, clusterIPs: [None], selector: { a: b } }";
        for (spec, expected) in [
            ("{ selector: { a: b } }", "SingleStack [IPv4]"),
            (headless, "SingleStack [IPv4]"),
            ("{ clusterIP: None }", "RequireDualStack [IPv4,IPv6]"),
            (
                "{ clusterIP: None, ipFamilyPolicy: SingleStack }",
                "SingleStack [IPv4]",
            ),
            ("{ ipFamilyPolicy: PreferDualStack }", "PreferDualStack [IPv4]"),
            (
                "{ ipFamilyPolicy: RequireDualStack }",
                "refused spec.ipFamilyPolicy",
            ),
            (
                "{ ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv6] }",
                "refused spec.ipFamilies[1]",
            ),
            ("{ ipFamilies: [IPv6] }", "refused spec.ipFamilies[0]"),
            ("{ ipFamilies: [IPv4, IPv6] }", "refused spec.ipFamilyPolicy"),
            (
                "{ ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv4] }",
                "refused spec.ipFamilies[1]",
            ),
            ("{ ipFamilies: [IPv5] }", "refused spec.ipFamilies[0]"),
            ("{ ipFamilyPolicy: Both }", "refused spec.ipFamilyPolicy"),
            ("{ clusterIPs: ['fd00::1'] }", "refused spec.clusterIPs[0]"),
        ] {
            assert_eq!(filled(spec, None), expected, "{spec}");
        }
    }

    #[test]
    fn an_update_that_leaves_the_families_alone_is_not_judged_again() {
        let both = "{ ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIP: None }";
        let with_selector = "{ ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIP: None, selector: { a: b } }";
        assert_eq!(filled(with_selector, Some(both)), "RequireDualStack [IPv4,IPv6]");
        assert_eq!(
            filled(
                "{ ipFamilyPolicy: RequireDualStack }",
                Some("{ ipFamilyPolicy: SingleStack }")
            ),
            "refused spec.ipFamilyPolicy"
        );
    }
}
