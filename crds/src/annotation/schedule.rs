//! The grammar of `schedule`: when how many pods are kept at least.
//!
//! ```text
//! schedule = entry *( ";" entry )
//! entry    = days hours [ zone ] "min=" number [ "except" date *( "," date ) ]
//! days     = "daily" | day [ "-" day ] *( "," day [ "-" day ] )
//! hours    = HH:MM "-" HH:MM        24:00 is the day's end; an end before its start is on the next day
//! zone     = IANA name; UTC when left out
//! date     = YYYY-MM-DD
//! ```

use super::table::MOST_PODS;

/// Most entries of one schedule: a fortnight of special days and then some.
const MOST_ENTRIES: usize = 32;
/// Most dates of one entry: a year of single days.
const MOST_DATES: usize = 366;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Whether `text` is a schedule.
///
/// # Errors
/// What is wrong with which part.
pub(super) fn check(text: &str) -> Result<(), String> {
    let entries: Vec<&str> = text.split(';').collect();
    if entries.len() > MOST_ENTRIES {
        return Err(format!("{} entries are more than {MOST_ENTRIES}", entries.len()));
    }
    entries.into_iter().try_for_each(entry)
}

fn entry(text: &str) -> Result<(), String> {
    let mut words = text.split_whitespace().peekable();
    days(words.next().ok_or("an entry is empty")?)?;
    hours(words.next().ok_or("the hours are missing")?)?;
    if let Some(name) = words.next_if(|word| !word.starts_with("min=")) {
        zone(name)?;
    }
    let min = words
        .next()
        .and_then(|word| word.strip_prefix("min="))
        .ok_or("`min=NUMBER` is missing")?;
    if !min
        .parse::<u32>()
        .is_ok_and(|pods| (1..=MOST_PODS).contains(&pods))
    {
        return Err(format!(
            "min is a whole number from 1 to {MOST_PODS}, not `{}`",
            super::shorten(min)
        ));
    }
    match words.next() {
        None => return Ok(()),
        Some("except") => dates(words.next().ok_or("the dates after `except` are missing")?)?,
        Some(word) => return Err(format!("`{}` is not expected there", super::shorten(word))),
    }
    match words.next() {
        None => Ok(()),
        Some(word) => Err(format!(
            "`{}` is not expected there; dates are joined by commas",
            super::shorten(word)
        )),
    }
}

fn days(text: &str) -> Result<(), String> {
    if text == "daily" {
        return Ok(());
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        for day in [first, last] {
            if !DAYS.contains(&day) {
                return Err(format!(
                    "`{}` is not a day: Mon, Tue, … Sun, or daily",
                    super::shorten(day)
                ));
            }
        }
    }
    Ok(())
}

fn hours(text: &str) -> Result<(), String> {
    let wrong = || format!("`{}` are not hours: HH:MM-HH:MM", super::shorten(text));
    let (from, to) = text.split_once('-').ok_or_else(wrong)?;
    let (from, to) = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
    if from == to || from == 24 * 60 {
        return Err(format!("`{text}` has no length; a whole day is 00:00-24:00"));
    }
    Ok(())
}

/// Minutes since midnight, `0..=1440`.
fn minute(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let two_digits = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (hour, minute) = (two_digits(hour)?, two_digits(minute)?);
    (hour < 24 && minute < 60 || hour == 24 && minute == 0).then_some(hour * 60 + minute)
}

/// The name's form is always checked; that the zone exists, only where the machine has a time-zone database.
fn zone(text: &str) -> Result<(), String> {
    let form = text.len() <= 64
        && text.split('/').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphabetic())
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
        });
    let exists = || jiff::tz::db().is_definitively_empty() || jiff::tz::db().get(text).is_ok();
    if form && exists() {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a time zone, such as Europe/Berlin",
        super::shorten(text)
    ))
}

fn dates(text: &str) -> Result<(), String> {
    let all: Vec<&str> = text.split(',').collect();
    if all.len() > MOST_DATES {
        return Err(format!("{} dates are more than {MOST_DATES}", all.len()));
    }
    for date in all {
        let form = date.len() == 10 && date.is_ascii();
        if !form || date.parse::<jiff::civil::Date>().is_err() {
            return Err(format!("`{}` is not a date: YYYY-MM-DD", super::shorten(date)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        let rows: &[(&str, Option<&str>)] = &[
            ("Mon-Fri 08:00-18:00 Europe/Berlin min=1", None),
            ("Mon-Fri 08:00-18:00 min=1", None),
            ("daily 00:00-24:00 min=100000", None),
            ("Sat,Sun 22:00-06:00 UTC min=2", None),
            ("Fri-Mon,Wed 09:30-10:00 min=1", None),
            ("Mon 08:00-18:00 min=1 except 2026-12-24,2026-12-25", None),
            (
                "Mon 08:00-18:00 min=1; Tue 08:00-12:00 America/New_York min=3",
                None,
            ),
            ("", Some("an entry is empty")),
            ("Mon 08:00-18:00 min=1;", Some("an entry is empty")),
            ("Monday 08:00-18:00 min=1", Some("`Monday` is not a day")),
            ("mon 08:00-18:00 min=1", Some("`mon` is not a day")),
            ("Mon- 08:00-18:00 min=1", Some("`` is not a day")),
            ("Mon", Some("the hours are missing")),
            ("Mon 8:00-18:00 min=1", Some("are not hours")),
            ("Mon 08:00-24:01 min=1", Some("are not hours")),
            ("Mon 08:60-18:00 min=1", Some("are not hours")),
            ("Mon 08:00-08:00 min=1", Some("has no length")),
            ("Mon 24:00-08:00 min=1", Some("has no length")),
            ("Mon 08:00-18:00", Some("`min=NUMBER` is missing")),
            ("Mon 08:00-18:00 Europe/Berlin", Some("`min=NUMBER` is missing")),
            ("Mon 08:00-18:00 Berlin/Europe min=1", Some("is not a time zone")),
            (
                "Mon 08:00-18:00 ../../etc/passwd min=1",
                Some("is not a time zone"),
            ),
            ("Mon 08:00-18:00 min=0", Some("min is a whole number")),
            ("Mon 08:00-18:00 min=100001", Some("min is a whole number")),
            ("Mon 08:00-18:00 min=x", Some("min is a whole number")),
            ("Mon 08:00-18:00 min=1 max=3", Some("`max=3` is not expected")),
            ("Mon 08:00-18:00 min=1 except", Some("the dates after `except`")),
            ("Mon 08:00-18:00 min=1 except 2026-02-30", Some("is not a date")),
            (
                "Mon 08:00-18:00 min=1 except 2026-12-24, 2026-12-25",
                Some("is not a date"),
            ),
            (
                "Mon 08:00-18:00 min=1 except 2026-12-24 2026-12-25",
                Some("joined by commas"),
            ),
        ];
        for (text, want) in rows {
            match (check(text), want) {
                (Ok(()), None) => {}
                (Err(got), Some(part)) => assert!(got.contains(part), "{text}: {got}"),
                (got, want) => panic!("{text}: {got:?}, wanted {want:?}"),
            }
        }
    }
}
