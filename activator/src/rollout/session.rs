//! Clients that stay with their pool, by a cookie: `EPOCH:ID:BAD:ATTEMPT:POOL`. Pure.
//!
//! A session is counted in the epoch in which it was assigned, once when its first request ends, and as bad once, with its
//! first bad answer. Any activator may answer the next request, so the cookie itself says what was counted already.

use crds::route::RouteAffinity;
use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};

/// A client's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// In which it was assigned.
    pub(super) epoch: u32,
    /// Random.
    pub(super) id: u64,
    /// This request is its first.
    pub(super) is_new: bool,
    /// A bad answer of it has been counted.
    pub(super) was_bad: bool,
}

impl Session {
    /// A client comes for the first time.
    pub(super) fn new(epoch: u32) -> Self {
        Self {
            epoch,
            id: fastrand::u64(..),
            is_new: true,
            was_bad: false,
        }
    }
}

/// The cookie.
#[derive(Debug)]
pub(super) struct Affinity {
    name: String,
    attempt: String,
    max_age: u64,
}

impl Affinity {
    /// # Errors
    /// Says what cannot be in a cookie.
    pub(super) fn of(affinity: &RouteAffinity, attempt: &str) -> Result<Self, String> {
        // RFC 6265 §4.1.1: a cookie's name is a token, as a field's is.
        if HeaderName::try_from(&affinity.cookie).is_err() {
            let name = &affinity.cookie;
            return Err(format!(
                "rollout.affinity.cookie is \"{name}\", which is no name of a cookie"
            ));
        }
        let is_plain = |letter: u8| letter.is_ascii_alphanumeric() || b"-._".contains(&letter);
        if !attempt.bytes().all(is_plain) {
            return Err(format!(
                "rollout.attempt is \"{attempt}\", which cannot be in a cookie"
            ));
        }
        Ok(Self {
            name: affinity.cookie.clone(),
            attempt: attempt.to_owned(),
            max_age: affinity.max_age_seconds,
        })
    }

    /// The session of this attempt that a request belongs to, and its pool.
    pub(super) fn read<'a>(&self, headers: &'a HeaderMap) -> Option<(Session, &'a str)> {
        let fields = headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|field| field.to_str().ok());
        let mut cookies = fields.flat_map(|field| field.split(';')).filter_map(|cookie| {
            let (name, value) = cookie.trim().split_once('=')?;
            (name == self.name).then_some(value)
        });
        cookies.find_map(|value| {
            let mut parts = value.splitn(5, ':');
            let session = Session {
                epoch: parts.next()?.parse().ok()?,
                id: u64::from_str_radix(parts.next()?, 16).ok()?,
                is_new: false,
                was_bad: parts.next()? == "1",
            };
            let (attempt, pool) = (parts.next()?, parts.next()?);
            (attempt == self.attempt).then_some((session, pool))
        })
    }

    /// The field that gives a client its cookie. `None`: the pool's name cannot be in one.
    pub(super) fn write(&self, session: &Session, pool: &str, is_bad: bool) -> Option<HeaderValue> {
        let Self {
            name,
            attempt,
            max_age,
        } = self;
        let Session { epoch, id, .. } = session;
        let bad = u8::from(is_bad || session.was_bad);
        let age = if *max_age > 0 {
            format!("; Max-Age={max_age}")
        } else {
            String::new()
        };
        let text =
            format!("{name}={epoch}:{id:016x}:{bad}:{attempt}:{pool}; Path=/{age}; HttpOnly; SameSite=Lax");
        HeaderValue::try_from(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affinity() -> Affinity {
        let asked = RouteAffinity {
            cookie: "x-rev".into(),
            max_age_seconds: 60,
        };
        Affinity::of(&asked, "1-18c").expect("a cookie")
    }

    fn read(cookies: &[&str]) -> Option<(Session, String)> {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(COOKIE, cookie.parse().expect("a field"));
        }
        affinity()
            .read(&headers)
            .map(|(session, pool)| (session, pool.to_owned()))
    }

    #[test]
    fn what_is_written_can_be_read() {
        let session = Session::new(7);
        for (is_bad, was_bad) in [(false, false), (true, true)] {
            let field = affinity().write(&session, "web.1-a", is_bad).expect("a field");
            let text = field.to_str().expect("text");
            assert!(
                text.ends_with("; Path=/; Max-Age=60; HttpOnly; SameSite=Lax"),
                "{text}"
            );
            let cookie = text.split(';').next().expect("a cookie");
            let (back, pool) = read(&["a=b", &format!("c=d; {cookie}; e")]).expect("a session");
            let wanted = Session {
                is_new: false,
                was_bad,
                ..session.clone()
            };
            assert_eq!((back, pool.as_str()), (wanted, "web.1-a"));
        }
    }

    #[test]
    fn what_is_no_session_of_this_attempt_is_none() {
        for cookie in [
            "x-rev=",
            "x-rev=1",
            "x-rev=1:ff:0:2-18c:web",
            "x-rev=-1:ff:0:1-18c:web",
            "x-rev=1:xyz:0:1-18c:web",
            "x-rev=1:ff:0:1-18c",
            "y-rev=1:ff:0:1-18c:web",
            "x-rev",
        ] {
            assert_eq!(read(&[cookie]), None, "{cookie}");
        }
        assert!(read(&["x-rev=junk", "x-rev=1:ff:0:1-18c:web"]).is_some());
    }

    #[test]
    fn what_cannot_be_a_cookie_is_named() {
        let asked = |cookie: &str| RouteAffinity {
            cookie: cookie.into(),
            max_age_seconds: 0,
        };
        for (cookie, attempt, named) in [
            ("a b", "1", "\"a b\""),
            ("", "1", "\"\""),
            ("a", "1;2", "\"1;2\""),
        ] {
            let error = Affinity::of(&asked(cookie), attempt).expect_err("refused");
            assert!(error.contains(named), "{error}");
        }
    }
}
