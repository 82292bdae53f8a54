//! Which Services there are, for people: the front door's answer to an unknown host, and the lines printed at the start.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use super::front::http_port;
use crate::informer::Key;

/// Most Services that are listed. Nobody reads further, and a page for each stray request must stay small.
const MOST: usize = 100;

/// The Services that a person would look for, with their addresses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    entries: Vec<(Key, String)>,
    /// How many more there are than are listed.
    more: usize,
}

impl Directory {
    /// Of all `services`, behind a front door at `front`.
    pub(crate) fn new(services: &[Arc<Service>], front: SocketAddr) -> Self {
        let mut entries: Vec<Key> = services
            .iter()
            .filter(|service| is_shown(service))
            .map(|service| Key::of(&**service))
            .collect();
        // What has the shortest address first: it is what most people put their things into.
        entries.sort_unstable_by_key(|key| (key.namespace != "default", key.clone()));
        let more = entries.len().saturating_sub(MOST);
        entries.truncate(MOST);
        let entries = entries.into_iter().map(|key| {
            let url = url(&key, front);
            (key, url)
        });
        Self {
            entries: entries.collect(),
            more,
        }
    }

    /// One line each, for a terminal.
    pub(crate) fn lines(&self) -> Vec<String> {
        if self.entries.is_empty() {
            return vec!["none yet; kubectl apply adds some".to_owned()];
        }
        let lines = self.entries.iter();
        let lines = lines.map(|(key, url)| format!("{:<30} {url}", key.to_string()));
        lines.chain(self.rest()).collect()
    }

    /// The answer to a program that asked for `host`.
    pub(super) fn json(&self, host: &str) -> String {
        let services = self.entries.iter();
        let services = services.map(|(key, url)| json!({ "service": key.to_string(), "url": url }));
        let answer = json!({
            "error": format!("no Service at {host}"),
            "services": services.collect::<Vec<_>>(),
            "more": self.more,
        });
        format!("{answer}\n")
    }

    /// The answer to a browser that asked for `host`.
    pub(super) fn page(&self, host: &str) -> String {
        let host = escape(host);
        let mut list = String::new();
        for (key, url) in &self.entries {
            let (name, namespace) = (escape(&key.name), escape(&key.namespace));
            // Writing to a String cannot fail.
            let _ = write!(
                list,
                "<li><a href=\"{url}\">{name}</a> <span>{namespace}</span></li>"
            );
        }
        let body = if self.entries.is_empty() {
            "<p>There are no Services yet. <code>kubectl apply</code> adds some.</p>".to_owned()
        } else {
            format!("<p>These Services are here:</p><ul>{list}</ul>")
        };
        let rest: String = self
            .rest()
            .map(|line| format!("<p>{}</p>", escape(&line)))
            .collect();
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8>\
             <meta name=viewport content=\"width=device-width, initial-scale=1\">\
             <title>No Service at {host} · Dormouse</title><style>{STYLE}</style>\
             <main><h1>No Service at <em>{host}</em></h1>{body}{rest}</main></html>\n"
        )
    }

    fn rest(&self) -> impl Iterator<Item = String> {
        (self.more > 0)
            .then(|| format!("… and {} more: kubectl get services -A", self.more))
            .into_iter()
    }
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{margin:0;font:1rem/1.5 system-ui,sans-serif}\
main{max-width:40rem;margin:0 auto;padding:2rem 1rem}\
h1{font-size:1.5rem;font-weight:600;line-height:1.25;overflow-wrap:anywhere}\
em{font-style:normal;font-family:ui-monospace,monospace}\
ul{list-style:none;padding:0;border-top:1px solid #8885}\
li{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;border-bottom:1px solid #8885}\
a{padding:.5rem 0;overflow-wrap:anywhere}\
span{padding:.5rem 0}";

/// The address of a Service behind a front door.
fn url(key: &Key, front: SocketAddr) -> String {
    let port = front.port();
    if key.namespace == "default" {
        return format!("http://{}.localhost:{port}/", key.name);
    }
    format!("http://{}.{}.localhost:{port}/", key.name, key.namespace)
}

/// Whether a person would look for this Service: not one of Dormouse's own, nor the API.
fn is_shown(service: &Service) -> bool {
    let key = Key::of(service);
    let labels = service.metadata.labels.as_ref();
    http_port(service).is_some()
        && key.namespace != crds::names::SYSTEM_NAMESPACE
        && key != Key::new("default", "kubernetes")
        && !labels.is_some_and(|labels| labels.contains_key(crds::names::POOL_LABEL))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, rest: &str) -> Arc<Service> {
        let text = format!(
            "{{ metadata: {{ name: {name}, namespace: {namespace}, {rest} }}, spec: {{ ports: [{{ port: 80 }}] }} }}"
        );
        Arc::new(serde_saphyr::from_str(&text).expect("a Service"))
    }

    fn directory(services: &[Arc<Service>]) -> Directory {
        Directory::new(services, ([127, 0, 0, 1], 8080).into())
    }

    #[test]
    fn only_what_a_person_would_look_for_is_listed() {
        let directory = directory(&[
            service("blog", "web", ""),
            service("default", "kubernetes", ""),
            service("default", "shop", ""),
            service("default", "shop-dm", "labels: { dormouse.dev/pool: shop }"),
            service(crds::names::SYSTEM_NAMESPACE, "dormouse-activator", ""),
        ]);
        assert_eq!(
            directory.lines(),
            [
                "default/shop                   http://shop.localhost:8080/",
                "blog/web                       http://web.blog.localhost:8080/",
            ]
        );
    }

    #[test]
    fn a_thousand_services_are_told_as_a_hundred_and_a_number() {
        let services: Vec<_> = (0..1_000)
            .map(|at| service("default", &format!("s{at}"), ""))
            .collect();
        let directory = directory(&services);
        let told: serde_json::Value = serde_json::from_str(&directory.json("x.localhost")).expect("JSON");
        assert_eq!(told["services"].as_array().map(Vec::len), Some(100));
        assert_eq!(told["more"], 900);
        assert_eq!(directory.lines().len(), 101);
        let page = directory.page("x.localhost");
        assert!(page.contains("and 900 more") && page.len() < 16_000, "{page}");
    }

    #[test]
    fn a_host_is_shown_as_text() {
        let page = directory(&[]).page("<script>.localhost");
        assert!(
            page.contains("&lt;script&gt;") && !page.contains("<script>"),
            "{page}"
        );
        assert!(page.contains("There are no Services yet"), "{page}");
    }
}
