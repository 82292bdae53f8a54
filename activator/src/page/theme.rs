//! How the waiting page looks and what it says: ours, or what a ConfigMap puts in its place. Pure.
//!
//! Words are text, and become HTML by escaping. A style is put after ours. A whole page is a template with a few named
//! places, of which the script and the refresh without script must be there, or the page would not go on. Nothing can be
//! loaded from elsewhere, and no other script runs: the page's Content-Security-Policy sees to it, and what would run into
//! it is refused here by name.

use std::collections::BTreeMap;

/// Longest word or sentence, in bytes.
const LONGEST_TEXT: usize = 1_000;
/// Longest style, in bytes.
const LONGEST_STYLE: usize = 32 * 1024;
/// Longest template, in bytes.
const LONGEST_PAGE: usize = 64 * 1024;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The keys of a ConfigMap that are words, with what we say.
const WORDS: [(&str, &str); 11] = [
    ("lang", "en"),
    ("title", "{service} is waking up"),
    (
        "message",
        "It was asleep, because nobody had used it for a while. This page continues by itself as soon as it is ready.",
    ),
    ("asleep", "Asking for it to be started"),
    ("waking", "A start has been asked for"),
    ("starting", "Starting"),
    ("ready", "Ready: opening it"),
    ("failed", "It has not started"),
    ("again", "Try again"),
    ("noscript", "This page looks again every 3 seconds."),
    ("progress", "Progress"),
];

/// What is wrong with a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ThemeError {
    /// A key that means nothing.
    #[error("unknown key `{0}`: it may be page.html, style.css, {words}", words = words())]
    Unknown(String),
    /// A value beyond its bound.
    #[error("{key}: {length} bytes are more than {most}")]
    TooLong {
        /// The key.
        key: String,
        /// What it has.
        length: usize,
        /// What it may have.
        most: usize,
    },
    /// A value with something in it that cannot be.
    #[error("{key}: {what}")]
    Refused {
        /// The key.
        key: String,
        /// What, and what to do.
        what: String,
    },
}

fn words() -> String {
    WORDS.map(|(name, _)| name).join(", ")
}

/// A named place in a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Lang,
    Title,
    Message,
    Service,
    Status,
    Style,
    Script,
    Noscript,
}

impl Place {
    const ALL: [(&'static str, Self); 8] = [
        ("lang", Self::Lang),
        ("title", Self::Title),
        ("message", Self::Message),
        ("service", Self::Service),
        ("status", Self::Status),
        ("style", Self::Style),
        ("script", Self::Script),
        ("noscript", Self::Noscript),
    ];
}

/// A piece of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Html(String),
    At(Place),
}

/// How the page looks and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Theme {
    pieces: Vec<Piece>,
    style: String,
    words: BTreeMap<&'static str, String>,
}

/// What the page tells of.
#[derive(Clone, Debug)]
pub(crate) struct Shown<'a> {
    /// The Service's name.
    pub(crate) service: &'a str,
    /// `asleep`, `waking`, `starting`, `ready`.
    pub(crate) phase: &'static str,
    /// One sentence with numbers; may be empty.
    pub(crate) reason: &'a str,
    /// How long somebody waits already.
    pub(crate) elapsed_ms: u128,
    /// What style and script are allowed by: letters and digits.
    pub(crate) nonce: &'a str,
    /// The query with which the page was opened, if any.
    pub(crate) query: Option<&'a str>,
}

impl Default for Theme {
    fn default() -> Self {
        let pieces = template("page.html", PAGE);
        Self {
            // Our own template is good: a test reads it.
            pieces: pieces.unwrap_or_default(),
            style: String::new(),
            words: WORDS.map(|(key, text)| (key, text.to_owned())).into(),
        }
    }
}

impl Theme {
    /// Reads a ConfigMap.
    ///
    /// # Errors
    /// The first key that cannot be used, and why. Nothing of it is used then.
    pub(crate) fn read(data: &BTreeMap<String, String>) -> Result<Self, ThemeError> {
        let mut theme = Self::default();
        for (key, value) in data {
            match key.as_str() {
                "page.html" => {
                    bound(key, value, LONGEST_PAGE)?;
                    theme.pieces = template(key, value)?;
                }
                "style.css" => {
                    bound(key, value, LONGEST_STYLE)?;
                    theme.style = style(key, value)?;
                }
                _ => {
                    let word = WORDS.iter().find(|(name, _)| name == key);
                    let Some((name, _)) = word else {
                        return Err(ThemeError::Unknown(key.chars().take(80).collect()));
                    };
                    bound(key, value, LONGEST_TEXT)?;
                    let text = value.trim();
                    if *name == "lang" && !is_language(text) {
                        return Err(refused(key, "it must be a language tag such as en or pt-BR"));
                    }
                    theme.words.insert(name, text.to_owned());
                }
            }
        }
        Ok(theme)
    }

    /// The page.
    pub(crate) fn render(&self, shown: &Shown<'_>) -> String {
        let mut page = String::with_capacity(12 * 1024);
        for piece in &self.pieces {
            match piece {
                Piece::Html(html) => page.push_str(html),
                Piece::At(place) => self.fill(*place, shown, &mut page),
            }
        }
        page
    }

    fn fill(&self, place: Place, shown: &Shown<'_>, page: &mut String) {
        let nonce = shown.nonce;
        match place {
            Place::Lang => page.push_str(&self.word("lang", shown)),
            Place::Title => page.push_str(&self.word("title", shown)),
            Place::Message => page.push_str(&self.word("message", shown)),
            Place::Service => page.push_str(&escape(shown.service)),
            Place::Status => page.push_str(&self.status(shown)),
            Place::Style => {
                let own = &self.style;
                page.push_str(&format!("<style nonce=\"{nonce}\">\n{STYLE}{own}</style>"));
            }
            Place::Script => page.push_str(&format!("<script nonce=\"{nonce}\">\n{SCRIPT}</script>")),
            Place::Noscript => {
                // With a query, so that an address with a `#` is opened again and not only looked up in the page. The
                // path is left to the browser: on the way here it may have been another.
                let query = shown.query.map(|query| format!("; url=?{}", escape(query)));
                let query = query.unwrap_or_default();
                page.push_str(&format!(
                    "<noscript><meta http-equiv=\"refresh\" content=\"3{query}\"></noscript>"
                ));
            }
        }
    }

    /// The part that changes. Its words for later phases stand beside it, so that the script has none of its own.
    fn status(&self, shown: &Shown<'_>) -> String {
        let later: String = ["asleep", "waking", "starting", "ready", "failed"]
            .map(|phase| format!(" data-{phase}=\"{}\"", self.word(phase, shown)))
            .concat();
        format!(
            "<div id=\"dormouse\" data-phase=\"{phase}\" data-elapsed=\"{elapsed}\"{later}>\n\
             <div class=\"dm-bar\" role=\"progressbar\" aria-label=\"{progress}\"></div>\n\
             <p class=\"dm-text\" role=\"status\" aria-live=\"polite\">{text}</p>\n\
             <p class=\"dm-more\"><span class=\"dm-reason\">{reason}</span> \
             <span class=\"dm-elapsed\" aria-hidden=\"true\"></span></p>\n\
             <p class=\"dm-again\" hidden><a href=\"\">{again}</a></p>\n\
             <noscript><p>{noscript} <a href=\"\">{again}</a></p></noscript>\n\
             </div>",
            phase = shown.phase,
            elapsed = shown.elapsed_ms,
            progress = self.word("progress", shown),
            text = self.word(shown.phase, shown),
            reason = escape(shown.reason),
            again = self.word("again", shown),
            noscript = self.word("noscript", shown),
        )
    }

    /// A word with the Service's name in it, as HTML.
    fn word(&self, key: &str, shown: &Shown<'_>) -> String {
        let text = self.words.get(key).map_or("", String::as_str);
        escape(&text.replace("{service}", shown.service))
    }
}

/// Text as HTML, also within quotes.
fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            letter => html.push(letter),
        }
    }
    html
}

fn bound(key: &str, value: &str, most: usize) -> Result<(), ThemeError> {
    if value.len() <= most {
        return Ok(());
    }
    Err(ThemeError::TooLong {
        key: key.to_owned(),
        length: value.len(),
        most,
    })
}

fn refused(key: &str, what: impl Into<String>) -> ThemeError {
    ThemeError::Refused {
        key: key.to_owned(),
        what: what.into(),
    }
}

fn is_language(tag: &str) -> bool {
    (2..=35).contains(&tag.len())
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Checks a style.
fn style(key: &str, css: &str) -> Result<String, ThemeError> {
    let small = css.to_ascii_lowercase();
    if small.contains("</") {
        return Err(refused(key, "`</` would end it; it is a style and nothing else"));
    }
    if small.contains("@import") {
        return Err(refused(
            key,
            "@import loads from elsewhere, which the page may not; put the rules here",
        ));
    }
    for (at, _) in small.match_indices("url(") {
        let target = small[at + 4..].trim_start().trim_start_matches(['"', '\'']);
        if !target.starts_with("data:image/") {
            return Err(refused(
                key,
                "url(…) loads from elsewhere, which the page may not; write the picture as data:image/…",
            ));
        }
    }
    Ok(css.to_owned())
}

/// Takes a template apart.
fn template(key: &str, html: &str) -> Result<Vec<Piece>, ThemeError> {
    let small = html.to_ascii_lowercase();
    if small.contains("<script") {
        return Err(refused(
            key,
            "only {{script}} runs on the page; take other scripts out",
        ));
    }
    let mut pieces = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find("{{") {
        let (before, after) = rest.split_at(start);
        let Some(end) = after.find("}}") else {
            return Err(refused(key, "`{{` without `}}`"));
        };
        let name = after[2..end].trim();
        let place = Place::ALL.iter().find(|(known, _)| *known == name);
        let Some((_, place)) = place else {
            let known = Place::ALL.map(|(known, _)| format!("{{{{{known}}}}}")).join(", ");
            let name: String = name.chars().take(80).collect();
            return Err(refused(
                key,
                format!("{{{{{name}}}}} is no place; there are {known}"),
            ));
        };
        pieces.push(Piece::Html(before.to_owned()));
        pieces.push(Piece::At(*place));
        rest = &after[end + 2..];
    }
    pieces.push(Piece::Html(rest.to_owned()));
    for (name, place) in Place::ALL {
        let needed = matches!(place, Place::Script | Place::Noscript | Place::Status);
        let times = pieces.iter().filter(|piece| **piece == Piece::At(place)).count();
        if needed && times != 1 {
            return Err(refused(
                key,
                format!("{{{{{name}}}}} is there {times} times; the page needs it once to go on by itself"),
            ));
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Shown<'static> {
        Shown {
            service: "web",
            phase: "starting",
            reason: "0 of 1 pods are ready",
            elapsed_ms: 1200,
            nonce: "abc",
            query: None,
        }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn our_own_page_has_everything_once() {
        let page = Theme::default().render(&shown());
        for (part, times) in [
            ("<title>web is waking up</title>", 1),
            ("<style nonce=\"abc\">", 1),
            ("<script nonce=\"abc\">", 1),
            ("<meta http-equiv=\"refresh\" content=\"3\">", 1),
            ("data-phase=\"starting\"", 1),
            ("role=\"status\"", 1),
            ("0 of 1 pods are ready", 1),
            ("{{", 0),
            ("http://", 0),
            ("https://", 0),
        ] {
            assert_eq!(page.matches(part).count(), times, "{part}");
        }
        let own = Theme::default();
        assert_eq!(template("page.html", PAGE).as_ref(), Ok(&own.pieces));
        assert_eq!(style("style.css", STYLE).as_deref(), Ok(STYLE));
    }

    #[test]
    fn words_are_escaped_wherever_they_stand() {
        let theme = Theme::read(&map(&[
            ("title", "\"><script>alert(1)</script>"),
            ("starting", "' onclick='x"),
            ("message", "a & b"),
            ("lang", "de"),
        ]))
        .expect("a theme");
        let page = theme.render(&shown());
        assert!(
            !page.contains("<script>") && !page.contains("' onclick"),
            "{page}"
        );
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("a &amp; b"));
        assert!(page.contains("<html lang=\"de\">"));
    }

    #[test]
    fn without_a_script_the_same_query_is_asked_again() {
        let shown = Shown {
            query: Some("a=1&b=\"><script>"),
            ..shown()
        };
        let page = Theme::default().render(&shown);
        let wanted = "content=\"3; url=?a=1&amp;b=&quot;&gt;&lt;script&gt;\"";
        assert!(page.contains(wanted), "{page}");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let long = "x".repeat(1001);
        let good = "{{status}}{{script}}{{noscript}}";
        let rows: [(&str, &str, &str); 13] = [
            ("titel", "x", "unknown key `titel`"),
            ("title", &long, "title: 1001 bytes are more than 1000"),
            ("lang", "e\"", "lang: it must be a language tag"),
            ("style.css", "a{}</style><b>", "style.css: `</` would end it"),
            (
                "style.css",
                "@IMPORT 'x'",
                "style.css: @import loads from elsewhere",
            ),
            (
                "style.css",
                "a{background:url( 'https://x/y')}",
                "style.css: url(…) loads from elsewhere",
            ),
            (
                "page.html",
                "{{status}}{{noscript}}",
                "page.html: {{script}} is there 0 times",
            ),
            (
                "page.html",
                "{{script}}{{noscript}}",
                "page.html: {{status}} is there 0 times",
            ),
            (
                "page.html",
                "{{status}}{{script}}",
                "page.html: {{noscript}} is there 0 times",
            ),
            (
                "page.html",
                "{{status}}{{status}}{{script}}{{noscript}}",
                "page.html: {{status}} is there 2 times",
            ),
            (
                "page.html",
                "{{nonce}}",
                "page.html: {{nonce}} is no place; there are {{lang}}",
            ),
            ("page.html", "{{status", "page.html: `{{` without `}}`"),
            (
                "page.html",
                "<SCRIPT src=x></SCRIPT>",
                "page.html: only {{script}} runs",
            ),
        ];
        for (key, value, wanted) in rows {
            let error = Theme::read(&map(&[(key, value)])).expect_err(key).to_string();
            assert!(error.starts_with(wanted), "{key} {value:.40}: {error}");
        }
        assert!(
            Theme::read(&map(&[
                ("page.html", good),
                ("style.css", "a{background:url(data:image/png;base64,x)}")
            ]))
            .is_ok()
        );
    }

    #[test]
    fn a_page_of_ones_own_is_used_as_it_is() {
        let theme = Theme::read(&map(&[(
            "page.html",
            "<h1>{{ service }}</h1>{{style}}{{status}}{{script}}{{noscript}}",
        )]))
        .expect("a theme");
        let page = theme.render(&shown());
        assert!(page.starts_with("<h1>web</h1><style"), "{page}");
    }
}
