//! HTTP calls to others: bounded in time, in size and in number, and never led elsewhere.
//!
//! TLS trusts what the system trusts (`SSL_CERT_FILE` names another bundle); an image without any certificates, as ours,
//! has Mozilla's. Redirects are answers like others: who moves says so in the spec. Connections are not kept: calls are rare.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

/// Most bytes of an answer that are read: a query has one result.
pub(super) const LONGEST: usize = 1024 * 1024;
/// Most characters of an answer that are shown.
const SHOWN: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It may or may not have arrived.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// No connection, or one that broke off.
    #[error("{0}")]
    Unreachable(String),
    /// Whatever it says, it is not what was asked for.
    #[error("its answer is longer than {LONGEST} bytes")]
    TooLong,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Answer {
    /// The answer in a few words, for people.
    pub(super) fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match words.as_str() {
            "" => self.status.to_string(),
            words => format!("{}: {}", self.status, cut(words)),
        }
    }
}

/// The beginning of a text.
pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What is sent.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) to: Uri,
    pub(super) media: &'static str,
    pub(super) body: Bytes,
}

impl Post {
    /// A JSON document.
    pub(super) fn json(to: &Uri, body: &serde_json::Value) -> Self {
        Self {
            to: to.clone(),
            media: "application/json",
            body: body.to_string().into(),
        }
    }
}

type Https = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client. It is made at its first call: most installations have none.
#[derive(Default)]
pub(super) struct Web {
    client: OnceLock<Https>,
}

impl Web {
    /// One that trusts what the system trusts.
    fn usual() -> Https {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::debug!(%error, "a certificate of the system");
        }
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let mozillas = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
            roots.add_parsable_certificates(mozillas.iter().cloned());
        }
        Self::trusting(roots)
    }

    /// One that trusts these.
    fn trusting(roots: RootCertStore) -> Https {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions of TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(plain);
        Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector)
    }

    /// Sends one request and reads the whole answer, both within `limit`.
    ///
    /// # Errors
    /// [`Failure`]: there is no answer that could be judged. Trying again may help, but for [`Failure::TooLong`].
    ///
    /// # Cancel safety
    /// Dropping it drops the connection; the request may have arrived.
    pub(super) async fn post(&self, post: Post, limit: Duration) -> Result<Answer, Failure> {
        let request = Request::post(post.to)
            .header(header::CONTENT_TYPE, HeaderValue::from_static(post.media))
            .header(header::ACCEPT, HeaderValue::from_static("application/json"))
            .header(
                header::USER_AGENT,
                HeaderValue::from_static("dormouse-autoscaler"),
            )
            .body(Full::new(post.body))
            .map_err(|error| Failure::Unreachable(error.to_string()))?;
        let whole = async {
            let client = self.client.get_or_init(Self::usual);
            let answer = client.request(request).await;
            let answer = answer.map_err(|error| Failure::Unreachable(causes(&error)))?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, LONGEST).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    Failure::TooLong
                } else {
                    Failure::Unreachable(format!("its answer broke off: {error}"))
                }
            })?;
            Ok(Answer {
                status: parts.status,
                body: body.to_bytes(),
            })
        };
        timeout(limit, whole)
            .await
            .unwrap_or(Err(Failure::TimedOut(limit)))
    }
}

/// An error with what caused it: the outer ones of a client say little.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

/// Reads an address.
///
/// # Errors
/// What is wrong with it, and what is allowed.
pub(super) fn address(text: &str) -> Result<Uri, String> {
    let wrong = |why: &str| format!("allowed: http://HOST[:PORT][/PATH] or https://…; {why}");
    let uri: Uri = text.trim().parse().map_err(|error| wrong(&format!("{error}")))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("it begins with neither http:// nor https://"));
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err(wrong("a user and a password in it would not be sent"))
        }
        Some(authority) if !authority.host().is_empty() => Ok(uri),
        _ => Err(wrong("it has no host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// For 127.0.0.1, signed by itself, and its key, which guards nothing.
    const CERTIFICATE: &[u8] = include_bytes!("tests/certificate.pem");
    const KEY: &[u8] = include_bytes!("tests/key.pem");

    /// A server with this certificate, which says `ok`. Returns its address and the certificate.
    async fn server() -> (String, CertificateDer<'static>) {
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .expect("they belong together");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("https://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await;
                let _ = stream.shutdown().await;
            }
        });
        (address, certificate)
    }

    #[tokio::test]
    async fn tls_is_spoken_with_who_is_trusted_and_with_nobody_else() {
        let (to, certificate) = server().await;
        let post = Post::json(&address(&to).expect("an address"), &serde_json::json!({}));
        let limit = Duration::from_secs(10);
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("it can be trusted");
        let trusting = Web {
            client: OnceLock::from(Web::trusting(roots)),
        };
        let answer = trusting.post(post.clone(), limit).await.expect("an answer");
        assert_eq!(
            (answer.status, answer.body.as_ref()),
            (StatusCode::OK, b"ok".as_slice())
        );
        let refused = Web::default()
            .post(post, limit)
            .await
            .expect_err("it is a stranger");
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }

    #[test]
    fn what_is_shown_of_an_answer_is_short_and_on_one_line() {
        let answer = |body: &str| Answer {
            status: StatusCode::FORBIDDEN,
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        assert_eq!(answer("").shown(), "403 Forbidden");
        assert_eq!(answer(" not\n yet ").shown(), "403 Forbidden: not yet");
        let long = answer(&"ä".repeat(1000)).shown();
        assert_eq!(long.chars().count(), "403 Forbidden: ".len() + SHOWN + 1);
    }
}
