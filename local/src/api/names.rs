//! Names, labels and quantities: what Kubernetes accepts, and the sentences with which it refuses the rest.

const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const DNS_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const LABEL_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn lower_alnum(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|&byte| lower_alnum(byte))
        && bytes.last().is_some_and(|&byte| lower_alnum(byte))
        && bytes.iter().all(|&byte| lower_alnum(byte) || byte == b'-')
}

/// Why `name` is not an RFC 1123 label.
pub(crate) fn label_error(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!is_label(name)).then(|| DNS_LABEL.to_owned())
}

/// Why `name` is not an RFC 1035 label, which Services need.
pub(crate) fn label_1035_error(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    let good = is_label(name) && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    (!good).then(|| DNS_1035.to_owned())
}

/// Why `name` is not an RFC 1123 subdomain.
pub(crate) fn subdomain_error(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some("must be no more than 253 bytes".to_owned());
    }
    (!name.split('.').all(is_label)).then(|| DNS_SUBDOMAIN.to_owned())
}

/// Why `name` cannot be one segment of a path, the least that every name must be.
pub(crate) fn segment_error(name: &str) -> Option<String> {
    if matches!(name, "." | "..") {
        return Some(format!("may not be '{name}'"));
    }
    name.chars()
        .find(|&it| matches!(it, '/' | '%'))
        .map(|it| format!("may not contain '{it}'"))
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Why `value` is not a label's value.
pub(crate) fn label_value_error(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!value.is_empty() && !is_qualified(value)).then(|| LABEL_VALUE.to_owned())
}

/// Why `key` is not a label's or an annotation's key.
pub(crate) fn label_key_error(key: &str) -> Option<String> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            if prefix.is_empty() {
                return Some("prefix part must be non-empty".to_owned());
            }
            if let Some(why) = subdomain_error(prefix) {
                return Some(format!("prefix part {why}"));
            }
            name
        }
        None => key,
    };
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 bytes".to_owned());
    }
    (!is_qualified(name)).then(|| LABEL_NAME.to_owned())
}

/// Why `name` is not an IANA service name, which container ports and `targetPort` use.
pub(crate) fn port_name_error(name: &str) -> Option<String> {
    if name.len() > 15 {
        return Some("must be no more than 15 characters".to_owned());
    }
    let bytes = name.as_bytes();
    if !bytes.iter().all(|&byte| lower_alnum(byte) || byte == b'-') {
        return Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        return Some("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        return Some("must not contain consecutive hyphens".to_owned());
    }
    (name.starts_with('-') || name.ends_with('-')).then(|| "must not begin or end with a hyphen".to_owned())
}

/// Five characters that make a generated name unique, out of those that spell no words.
pub(crate) fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .map(|_| char::from(LETTERS[fastrand::usize(..LETTERS.len())]))
        .collect()
}

/// A random version-4 UUID.
pub(crate) fn uid() -> String {
    let bits = (fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// Now, as Kubernetes writes times: UTC, whole seconds.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_kubernetes_judges_them() {
        for (name, label, service, subdomain) in [
            ("web", true, true, true),
            ("1web", true, false, true),
            ("web.a", false, false, true),
            ("Web", false, false, false),
            ("-web", false, false, false),
            ("web-", false, false, false),
            ("", false, false, false),
        ] {
            assert_eq!(label_error(name).is_none(), label, "{name}");
            assert_eq!(label_1035_error(name).is_none(), service, "{name}");
            assert_eq!(subdomain_error(name).is_none(), subdomain, "{name}");
        }
        assert!(label_key_error("dormouse.dev/pool").is_none());
        assert!(label_key_error("a/b/c").is_some());
        assert!(label_value_error("").is_none());
        assert!(label_value_error("a b").is_some());
        assert!(port_name_error("http").is_none());
        assert!(port_name_error("8080").is_some());
    }

    #[test]
    fn uids_are_version_4() {
        let uid = uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"), "{uid}");
    }
}
