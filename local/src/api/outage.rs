//! An outage on request: how do an application, and Dormouse, behave while the API is away?
//!
//! `POST /local/outage?seconds=5` cuts every connection, watches included, and refuses all that come in the next five
//! seconds, those of this process too: what is inside `local` sees the same outage as what is outside. Then the API is
//! back with its objects but without its history, as after a restart from a backup, so that everyone who watched gets
//! 410 and lists again; `&history=keep` keeps it, as after a broken network. `seconds=0` only cuts.
//!
//! ```sh
//! server=$(kubectl --kubeconfig FILE config view -o jsonpath='{.clusters[0].cluster.server}')
//! curl -X POST "$server/local/outage?seconds=5"
//! ```
//!
//! It needs a token of `system:masters`, ends by itself, and there is one at a time, so it cannot lock anyone out.
//! Processes and their connections live on: only the API is away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::json;

use super::request::Query;
use super::router::{Answer, Reply};
use super::status::ApiError;
use super::{Api, User};

/// Longest outage. Nothing new happens beyond a few minutes, and a slip of the keyboard should not take a day.
const LONGEST: u64 = 300;

/// Until the outage begins: the time that its own answer has to get out.
const NOTICE: Duration = Duration::from_millis(100);

/// An outage that was asked for and is not over.
#[derive(Debug, Default)]
pub(crate) struct Pending(AtomicBool);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outage {
    seconds: u64,
    keep_history: bool,
}

/// Answers `/local/outage`.
pub(crate) fn handle(api: &Api, user: &User, method: &Method, query: &Query) -> Result<Answer, ApiError> {
    if *method != Method::POST {
        return Err(ApiError::method_not_allowed());
    }
    if !user.groups.iter().any(|group| group == "system:masters") {
        return Err(ApiError::forbidden_path(&user.name, "/local/outage"));
    }
    let outage = parse(query)?;
    if api.0.outage.0.swap(true, Ordering::SeqCst) {
        return Err(ApiError::busy("an outage is on its way already"));
    }
    tokio::spawn(run(api.clone(), outage));
    let Outage {
        seconds,
        keep_history,
    } = outage;
    let history = if keep_history { "kept" } else { "forgotten" };
    Ok(Reply::Json(202, json!({ "seconds": seconds, "history": history })).into())
}

fn parse(query: &Query) -> Result<Outage, ApiError> {
    let text = query.get("seconds").unwrap_or_default();
    let seconds = text.parse().ok().filter(|seconds| *seconds <= LONGEST);
    let seconds = seconds.ok_or_else(|| {
        ApiError::bad_request(format!(
            "seconds={text}: how long is the API to be away? A whole number, 0 to {LONGEST}"
        ))
    })?;
    let keep_history = match query.get("history") {
        None | Some("forget") => false,
        Some("keep") => true,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "history={other}: it is \"forget\" or \"keep\""
            )));
        }
    };
    Ok(Outage {
        seconds,
        keep_history,
    })
}

async fn run(api: Api, outage: Outage) {
    tokio::time::sleep(NOTICE).await;
    tracing::warn!(seconds = outage.seconds, "the API goes away, as it was asked to");
    api.set_available(false);
    tokio::time::sleep(Duration::from_secs(outage.seconds)).await;
    if !outage.keep_history {
        api.compact();
    }
    api.0.outage.0.store(false, Ordering::SeqCst);
    api.set_available(true);
    tracing::warn!("the API is back");
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{StreamExt, TryStreamExt};
    use http_body_util::Full;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{ListParams, PostParams, WatchParams};
    use kube::core::WatchEvent;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::api::serve;

    async fn ask(api: &Api, user: &str, method: Method, query: &str) -> u16 {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("/local/outage{query}"))
            .body(Full::new(Bytes::new()))
            .unwrap();
        api.handle(&user.into(), request).await.status().as_u16()
    }

    fn maps(api: &Api) -> kube::Api<ConfigMap> {
        kube::Api::default_namespaced(api.client())
    }

    async fn create(api: &Api, name: &str) {
        let map = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        maps(api).create(&PostParams::default(), &map).await.unwrap();
    }

    fn code<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> u16 {
        match result {
            Err(kube::Error::Api(status)) => status.code,
            other => panic!("not refused by the API: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_asked_for_by_the_administrator_in_whole_seconds_and_once() {
        let api = Api::new();
        let rows = [
            ("system:admin", Method::GET, "?seconds=5", 405),
            ("system:serviceaccount:a:b", Method::POST, "?seconds=5", 403),
            ("system:admin", Method::POST, "", 400),
            ("system:admin", Method::POST, "?seconds=soon", 400),
            ("system:admin", Method::POST, "?seconds=-1", 400),
            ("system:admin", Method::POST, "?seconds=301", 400),
            ("system:admin", Method::POST, "?seconds=5&history=none", 400),
            ("system:admin", Method::POST, "?seconds=5&history=keep", 202),
            ("system:admin", Method::POST, "?seconds=5", 409),
        ];
        for (user, method, query, expected) in rows {
            let row = format!("{user} {method} {query}");
            assert_eq!(ask(&api, user, method, query).await, expected, "{row}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_api_is_away_for_so_long_and_back_by_itself() {
        let api = Api::new();
        create(&api, "before").await;
        assert_eq!(ask(&api, "system:admin", Method::POST, "?seconds=5").await, 202);
        assert!(api.is_available(), "its own answer still gets out");
        tokio::time::sleep(NOTICE + Duration::from_secs(1)).await;
        assert!(!api.is_available());
        assert_eq!(code(maps(&api).get("before").await), 503);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(maps(&api).get("before").await.is_ok());
        assert_eq!(
            ask(&api, "system:admin", Method::POST, "?seconds=0").await,
            202,
            "the next may come"
        );
    }

    #[tokio::test]
    async fn what_was_open_ends_and_what_is_begun_while_away_is_refused() {
        let api = Api::new();
        let maps = maps(&api);
        let mut open = maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        api.set_available(false);
        assert!(open.next().await.is_none(), "the watch ends");
        assert_eq!(code(maps.list(&ListParams::default()).await), 503);
        assert_eq!(api.stats().watches, 0);
        // Cutting what is cut already does not serve again.
        api.disconnect_all();
        assert!(!api.is_available());
        api.set_available(true);
        assert!(maps.list(&ListParams::default()).await.is_ok());
    }

    /// Reads until the other side closes: what it sent before.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        // A reset is an end too.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    }

    #[tokio::test]
    async fn over_http_idle_connections_are_cut_and_new_ones_closed_at_once() {
        let api = Api::new();
        api.add_token("secret", "system:admin");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(api.clone(), listener, stop.clone()));
        let request = b"GET /token/secret/version HTTP/1.1\r\nhost: localhost\r\n\r\n";

        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(request).await.unwrap();
        let mut begun = [0; 15];
        idle.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200 OK");
        api.set_available(false);
        rest(&mut idle).await;
        let mut new = TcpStream::connect(address).await.unwrap();
        let _ = new.write_all(request).await;
        assert_eq!(rest(&mut new).await, "");

        api.set_available(true);
        let mut back = TcpStream::connect(address).await.unwrap();
        back.write_all(request).await.unwrap();
        back.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200 OK");
        stop.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn cutting_ends_watches_but_refuses_nothing() {
        let api = Api::new();
        let maps = maps(&api);
        let mut open = maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        api.disconnect_all();
        assert!(open.next().await.is_none(), "the watch ends");
        let mut again = maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        create(&api, "after").await;
        let event = again.try_next().await.unwrap();
        assert!(matches!(event, Some(WatchEvent::Added(_))), "{event:?}");
    }

    #[tokio::test]
    async fn without_history_a_watch_and_a_continued_list_from_before_are_expired() {
        let api = Api::new();
        for name in ["a", "b", "c"] {
            create(&api, name).await;
        }
        let maps = maps(&api);
        let first = maps.list(&ListParams::default().limit(1)).await.unwrap();
        let before = first.metadata.resource_version.unwrap();
        let more = first.metadata.continue_.unwrap();
        create(&api, "d").await;
        api.compact();

        let mut watch = maps
            .watch(&WatchParams::default(), &before)
            .await
            .unwrap()
            .boxed();
        match watch.try_next().await.unwrap() {
            Some(WatchEvent::Error(status)) => {
                assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
            }
            other => panic!("not expired: {other:?}"),
        }
        assert!(watch.next().await.is_none(), "nothing follows");
        let page = ListParams::default().limit(1).continue_token(&more);
        assert_eq!(code(maps.list(&page).await), 410);

        // What is there is still there, and a watch from now sees what comes.
        let list = maps.list(&ListParams::default()).await.unwrap();
        assert_eq!(list.items.len(), 4);
        let now = list.metadata.resource_version.unwrap();
        let mut watch = maps.watch(&WatchParams::default(), &now).await.unwrap().boxed();
        create(&api, "e").await;
        let event = watch.try_next().await.unwrap();
        assert!(matches!(event, Some(WatchEvent::Added(_))), "{event:?}");
    }
}
