//! What changes in a head on its way through: hop-by-hop fields go (RFC 9110 §7.6.1), `X-Forwarded-For` grows, and a
//! head in one version of HTTP becomes a head in another. Everything else stays as it was sent.

use http::header::{CONNECTION, COOKIE, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Uri, Version};

use crate::page::WAIT_HEADER;
use crate::places::PLACE_HEADER;

/// How the fields begin that Dormouse speaks to itself with.
const OURS: &str = "dormouse-";
/// The activator that a request comes from.
pub(crate) const HOP: HeaderName = HeaderName::from_static(crds::names::HOP_HEADER);
/// A self-probe, and which one.
pub(crate) const PROBE: HeaderName = HeaderName::from_static(crds::names::PROBE_HEADER);

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Whether a message asks to change the protocol of its connection.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Whether a head has a field that Dormouse speaks to itself with. Nearly none has: one look in place of many.
pub(crate) fn has_ours(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(OURS))
}

/// Removes what Dormouse speaks to itself with.
pub(crate) fn remove_ours(headers: &mut HeaderMap) {
    for name in [HOP, PROBE, PLACE_HEADER, WAIT_HEADER] {
        headers.remove(name);
    }
}

/// Whether a field is about one connection only.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
    )
}

/// Removes what is meant for one connection only. An `upgrade` keeps what it needs.
pub(crate) fn strip(headers: &mut HeaderMap, upgrade: bool) {
    if !upgrade && !headers.keys().any(is_hop_by_hop) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|token| HeaderName::try_from(token.trim()).ok())
            // Nobody may take away what says where the request goes or how long it is.
            .filter(|name| *name != HOST && *name != http::header::CONTENT_LENGTH && *name != UPGRADE)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
}

/// Makes a client's head into what the pod reads: HTTP/2 with `h2`, else HTTP/1.1. `from` is the client's address as a
/// field value; a request from a peer activator has it already.
pub(crate) fn to_pod(parts: &mut Parts, from: Option<&HeaderValue>, h2: bool, upgrade: bool, has_body: bool) {
    let was_h2 = parts.version == Version::HTTP_2;
    let headers = &mut parts.headers;
    if headers.keys().any(is_hop_by_hop) {
        let trailers = wants_trailers(headers);
        strip(headers, upgrade);
        headers.remove(TE);
        if trailers {
            // gRPC needs it to reach the pod; everything else in it is for this connection.
            headers.insert(TE, HeaderValue::from_static("trailers"));
            if !h2 {
                // RFC 9110 §10.1.4: it is for the next connection, too, and HTTP/1.1 must say so.
                headers.append(CONNECTION, HeaderValue::from_static("te"));
            }
        }
        // A body of unknown length keeps its coding in HTTP/1.1, or a GET would lose its body.
        headers.remove(TRANSFER_ENCODING);
    }
    if has_ours(headers) {
        remove_ours(headers);
    }
    if let Some(from) = from {
        forwarded_for(headers, from);
    }
    if h2 {
        to_h2(parts);
    } else {
        if was_h2 {
            join_cookies(headers);
        }
        if has_body && !headers.contains_key(http::header::CONTENT_LENGTH) && !upgrade {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        to_h1(parts);
    }
}

/// Whether a client reads trailers: whether they are among what its `TE` lists.
fn wants_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Appends to `X-Forwarded-For`. Several fields become one, because many applications read only the first.
fn forwarded_for(headers: &mut HeaderMap, from: &HeaderValue) {
    let value = match headers.get(X_FORWARDED_FOR) {
        None => from.clone(),
        Some(_) => {
            let mut all = Vec::new();
            for value in headers.get_all(X_FORWARDED_FOR) {
                all.extend_from_slice(value.as_bytes());
                all.extend_from_slice(b", ");
            }
            all.extend_from_slice(from.as_bytes());
            HeaderValue::from_bytes(&all).unwrap_or_else(|_| from.clone())
        }
    };
    headers.insert(X_FORWARDED_FOR, value);
}

/// Origin form and a Host field.
fn to_h1(parts: &mut Parts) {
    parts.version = Version::HTTP_11;
    if let Some(authority) = parts.uri.authority() {
        // RFC 9112 §3.2.2: the authority of an absolute form replaces the Host field; so does HTTP/2's.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        if let Ok(host) = HeaderValue::try_from(host) {
            parts.headers.insert(HOST, host);
        }
        let path = parts
            .uri
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        parts.uri = Uri::from(path);
    }
    if !parts.headers.contains_key(HOST) {
        // HTTP/1.0 needs none; HTTP/1.1 does.
        parts.headers.insert(HOST, HeaderValue::from_static("localhost"));
    }
}

/// Absolute form without a Host field.
fn to_h2(parts: &mut Parts) {
    parts.version = Version::HTTP_2;
    let host = parts.headers.remove(HOST);
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    if uri.authority.is_none() {
        uri.authority = host
            .and_then(|host| Authority::try_from(host.as_bytes()).ok())
            .or_else(|| Some(Authority::from_static("localhost")));
    }
    if uri.path_and_query.is_none() {
        uri.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

/// HTTP/2 may split cookies into several fields; HTTP/1.1 may not (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(version: Version, uri: &str, fields: &[(&'static str, &str)]) -> Parts {
        let mut request = http::Request::builder().version(version).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn fields(parts: &Parts) -> Vec<(String, String)> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut all: Vec<_> = parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn fields_for_one_connection_do_not_pass() {
        let mut parts = head(
            Version::HTTP_11,
            "/a?b",
            &[
                ("host", "web"),
                ("connection", "close, x-mine, host"),
                ("x-mine", "1"),
                ("keep-alive", "5"),
                ("te", "gzip"),
                ("upgrade", "h2c"),
                ("dormouse-hop", "x"),
                ("accept", "*/*"),
            ],
        );
        to_pod(
            &mut parts,
            Some(&HeaderValue::from_static("10.1.1.1")),
            false,
            false,
            false,
        );
        let wanted = [
            ("accept", "*/*"),
            ("host", "web"),
            ("x-forwarded-for", "10.1.1.1"),
        ];
        assert_eq!(
            fields(&parts),
            wanted.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert_eq!(parts.uri, "/a?b");
    }

    #[test]
    fn the_list_of_forwarders_grows() {
        let mut parts = head(
            Version::HTTP_11,
            "/",
            &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")],
        );
        forwarded_for(&mut parts.headers, &HeaderValue::from_static("3.3.3.3"));
        assert_eq!(parts.headers["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 3.3.3.3");
        assert_eq!(parts.headers.get_all("x-forwarded-for").iter().count(), 1);
    }

    #[test]
    fn http2_becomes_http1() {
        let mut parts = head(
            Version::HTTP_2,
            "http://web:80/x?y",
            &[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")],
        );
        to_pod(&mut parts, None, false, false, true);
        assert_eq!(
            (parts.version, parts.uri.to_string()),
            (Version::HTTP_11, "/x?y".to_owned())
        );
        assert_eq!(parts.headers["host"], "web:80");
        assert_eq!(parts.headers["cookie"], "a=1; b=2");
        assert_eq!(
            (&parts.headers["te"], &parts.headers["connection"]),
            (
                &HeaderValue::from_static("trailers"),
                &HeaderValue::from_static("te")
            )
        );
        assert_eq!(parts.headers["transfer-encoding"], "chunked");
    }

    #[test]
    fn trailers_are_asked_for_on_every_connection_of_the_way() {
        let asks = [("connection", "te"), ("te", "trailers")];
        for (what, sent, upgrade, to_h1, to_h2) in [
            (
                "as it must be",
                &[("connection", "TE"), ("te", "trailers")][..],
                false,
                &asks[..],
                &asks[1..],
            ),
            ("unnamed", &[("te", "Trailers")], false, &asks, &asks[1..]),
            (
                "among others",
                &[
                    ("connection", "close, te"),
                    ("te", "gzip;q=0.5"),
                    ("te", "deflate, trailers"),
                ],
                false,
                &asks,
                &asks[1..],
            ),
            (
                "not asked for",
                &[("connection", "TE"), ("te", "gzip, x-trailers")],
                false,
                &[],
                &[],
            ),
            (
                "with an upgrade",
                &[
                    ("connection", "upgrade, TE"),
                    ("te", "trailers"),
                    ("upgrade", "x"),
                ],
                true,
                &[
                    ("connection", "upgrade"),
                    ("connection", "te"),
                    ("te", "trailers"),
                    ("upgrade", "x"),
                ],
                // It never goes out in HTTP/2.
                &[],
            ),
        ] {
            for (h2, wanted) in [(false, to_h1), (true, to_h2)] {
                if h2 && upgrade {
                    continue;
                }
                let mut parts = head(Version::HTTP_11, "/", sent);
                parts.headers.insert(HOST, HeaderValue::from_static("web"));
                to_pod(&mut parts, None, h2, upgrade, false);
                parts.headers.remove(HOST);
                let wanted: Vec<_> = wanted
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect();
                let mut seen: Vec<_> = parts
                    .headers
                    .iter()
                    .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
                    .collect();
                // Stable: the values of a name stay in their order.
                seen.sort_by(|one, other| one.0.cmp(&other.0));
                assert_eq!(seen, wanted, "{what}, h2: {h2}");
            }
        }
    }

    #[test]
    fn http1_becomes_http2() {
        let mut parts = head(
            Version::HTTP_11,
            "/x",
            &[
                ("host", "web"),
                ("connection", "keep-alive"),
                ("transfer-encoding", "chunked"),
            ],
        );
        to_pod(&mut parts, None, true, false, true);
        assert_eq!(
            (parts.version, parts.uri.to_string()),
            (Version::HTTP_2, "http://web/x".to_owned())
        );
        assert!(parts.headers.is_empty(), "{:?}", parts.headers);
    }

    #[test]
    fn an_upgrade_keeps_its_fields() {
        let mut parts = head(
            Version::HTTP_11,
            "/",
            &[
                ("host", "web"),
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "websocket"),
            ],
        );
        assert!(is_upgrade(&parts.headers));
        to_pod(&mut parts, None, false, true, false);
        assert_eq!(
            (&parts.headers["connection"], &parts.headers["upgrade"]),
            (
                &HeaderValue::from_static("upgrade"),
                &HeaderValue::from_static("websocket")
            )
        );
    }

    #[test]
    fn http10_without_a_host_gets_one() {
        let mut parts = head(Version::HTTP_10, "/", &[]);
        to_pod(&mut parts, None, false, false, false);
        assert_eq!(parts.headers["host"], "localhost");
    }
}
