//! Points in time as Elasticsearch writes them: ISO 8601 in parts, milliseconds, and date math.
//!
//! ```text
//! time  = ( "now" | date "||" ) step*  |  date  |  milliseconds
//! date  = yyyy [ -MM [ -dd [ "T" HH [ :mm [ :ss [ .fraction ]]] [ zone ]]]]
//! step  = ( "+" | "-" ) number unit  |  "/" unit          unit = y M w d h H m s
//! ```
//!
//! What a date leaves out, and what `/` cuts off, is filled downwards, or upwards for the bounds `gt` and `lte`, as
//! Elasticsearch does: `lte: 2015-05-17` includes that day. A number is milliseconds since the Unix epoch.

use chrono::{
    DateTime, Datelike, Days, FixedOffset, Months, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeDelta, Utc,
};
use thermocline_ingest::model::Timestamp;

use crate::time::{Rounding, TimeExpr};

/// Longest text that is looked at.
const TEXT_LEN_MAX: usize = 128;

/// The formats a request may name for its dates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DateFormat {
    /// `strict_date_optional_time||epoch_millis`, which is the default, and its relatives.
    #[default]
    IsoOrMillis,
    Millis,
    Seconds,
}

impl DateFormat {
    /// None where the format is not known.
    pub fn named(name: &str) -> Option<Self> {
        let mut known = None;
        for part in name.split("||") {
            let format = match part {
                "strict_date_optional_time"
                | "date_optional_time"
                | "strict_date_optional_time_nanos"
                | "strict_date_time"
                | "date_time"
                | "iso8601" => Self::IsoOrMillis,
                "epoch_millis" => Self::Millis,
                "epoch_second" => Self::Seconds,
                _ => return None,
            };
            known = Some(match known {
                None => format,
                Some(before) if before == format => format,
                Some(Self::Seconds) => return None,
                Some(_) if format == Self::Seconds => return None,
                Some(_) => Self::IsoOrMillis,
            });
        }
        known
    }

    /// How a field's time is written.
    pub fn write(self, millis: i64) -> String {
        self.write_in(millis, utc())
    }

    /// How a bucket's time is written, seen from `zone`.
    pub fn write_in(self, millis: i64, zone: FixedOffset) -> String {
        match self {
            Self::IsoOrMillis if zone.local_minus_utc() == 0 => iso(millis),
            Self::IsoOrMillis => {
                let time = DateTime::<Utc>::from_timestamp_millis(millis).filter(|time| in_four_digits(time.year()));
                let local = time.map(|time| time.with_timezone(&zone).format("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string());
                local.unwrap_or_else(|| millis.to_string())
            }
            Self::Millis => millis.to_string(),
            Self::Seconds => millis.div_euclid(1000).to_string(),
        }
    }
}

/// RFC 3339 in UTC with milliseconds; a number where the year has not four digits.
pub(crate) fn iso(millis: i64) -> String {
    let time = DateTime::<Utc>::from_timestamp_millis(millis).filter(|time| in_four_digits(time.year()));
    time.map_or_else(|| millis.to_string(), |time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

fn in_four_digits(year: i32) -> bool {
    (0..=9999).contains(&year)
}

pub(crate) fn utc() -> FixedOffset {
    Utc.fix()
}

/// A fixed offset from UTC: `Z`, `UTC`, `+02:00`, `-0330`, `+02`. None for names of places, whose offset changes.
pub(crate) fn zone(text: &str) -> Option<FixedOffset> {
    if matches!(text, "Z" | "z" | "UTC" | "utc" | "GMT" | "Etc/UTC") {
        return FixedOffset::east_opt(0);
    }
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, text.get(1..)?),
        b'-' => (-1, text.get(1..)?),
        _ => return None,
    };
    let digits: String = rest.chars().filter(|c| *c != ':').collect();
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes) = match digits.len() {
        1 | 2 => (digits.parse::<i32>().ok()?, 0),
        4 => (digits.get(..2)?.parse().ok()?, digits.get(2..)?.parse().ok()?),
        _ => return None,
    };
    if hours > 18 || minutes > 59 {
        return None;
    }
    FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60))
}

/// Reads a point in time, in milliseconds; None where it is not one. `default_zone` is for dates without a zone and for
/// what `/d` and larger units cut off.
pub(crate) fn parse(
    text: &str,
    format: DateFormat,
    round: Rounding,
    now: i64,
    default_zone: FixedOffset,
) -> Option<i64> {
    let text = text.trim();
    if text.len() > TEXT_LEN_MAX {
        return None;
    }
    if let Some(steps) = text.strip_prefix("now") {
        return math(now, steps, round, default_zone);
    }
    if let Some((anchor, steps)) = text.split_once("||") {
        // The anchor is taken as it stands; only what follows rounds.
        let anchor = absolute(anchor, format, Rounding::Down, default_zone)?;
        return math(anchor, steps, round, default_zone);
    }
    absolute(text, format, round, default_zone)
}

fn absolute(text: &str, format: DateFormat, round: Rounding, default_zone: FixedOffset) -> Option<i64> {
    match format {
        DateFormat::Millis => text.parse().ok(),
        DateFormat::Seconds => text.parse::<i64>().ok()?.checked_mul(1000),
        DateFormat::IsoOrMillis => {
            date(text, round, default_zone).or_else(|| text.parse().ok().filter(|_| text.len() != 4))
        }
    }
}

/// ISO 8601, from the year on as far as it is given.
fn date(text: &str, round: Rounding, default_zone: FixedOffset) -> Option<i64> {
    let (day, time) = match text.split_once(['T', ' ']) {
        Some((day, time)) => (day, Some(time)),
        None => (text, None),
    };
    let mut parts = day.split('-');
    let year = number(parts.next()?, 4)?;
    let month = parts.next().map(|part| number(part, 2)).map_or(Some(None), |part| part.map(Some))?;
    let day = parts.next().map(|part| number(part, 2)).map_or(Some(None), |part| part.map(Some))?;
    if parts.next().is_some() {
        return None;
    }
    let first = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month.unwrap_or(1), day.unwrap_or(1))?;
    let Some(time) = time else {
        let end = match (month, day) {
            (None, _) => first.checked_add_months(Months::new(12)),
            (Some(_), None) => first.checked_add_months(Months::new(1)),
            _ => first.checked_add_days(Days::new(1)),
        };
        return filled(first.and_time(NaiveTime::MIN), end?.and_time(NaiveTime::MIN), round, default_zone);
    };
    let zone_at = time.find(['Z', 'z', '+', '-']);
    let (clock, offset) = match zone_at.and_then(|at| Some((time.get(..at)?, time.get(at..)?))) {
        Some((clock, offset)) => (clock, zone(offset)?),
        None => (time, default_zone),
    };
    let (start, length) = clock_time(clock)?;
    let start = first.and_time(start);
    filled(start, start.checked_add_signed(length)?, round, offset)
}

/// The first moment that `HH[:mm[:ss[.fraction]]]` can mean, and how long it goes on.
fn clock_time(clock: &str) -> Option<(NaiveTime, TimeDelta)> {
    let (clock, fraction) = match clock.split_once(['.', ',']) {
        Some((clock, fraction)) => (clock, Some(fraction)),
        None => (clock, None),
    };
    let mut parts = clock.split(':');
    let hour = number(parts.next()?, 2)?;
    let minute = parts.next().map(|part| number(part, 2)).map_or(Some(None), |part| part.map(Some))?;
    let second = parts.next().map(|part| number(part, 2)).map_or(Some(None), |part| part.map(Some))?;
    if parts.next().is_some() || (fraction.is_some() && second.is_none()) {
        return None;
    }
    let millis = match fraction {
        None => 0,
        Some(digits) if (1..=9).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            format!("{digits:0<3}").get(..3)?.parse().ok()?
        }
        Some(_) => return None,
    };
    let length = match (minute, second, fraction) {
        (None, ..) => TimeDelta::hours(1),
        (_, None, _) => TimeDelta::minutes(1),
        (_, _, None) => TimeDelta::seconds(1),
        _ => TimeDelta::milliseconds(1),
    };
    Some((NaiveTime::from_hms_milli_opt(hour, minute.unwrap_or(0), second.unwrap_or(0), millis)?, length))
}

fn number(digits: &str, len: usize) -> Option<u32> {
    let is_number = digits.len() == len && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

fn filled(start: NaiveDateTime, end: NaiveDateTime, round: Rounding, zone: FixedOffset) -> Option<i64> {
    let shift = i64::from(zone.local_minus_utc()) * 1000;
    let millis = match round {
        Rounding::Down => start.and_utc().timestamp_millis(),
        Rounding::Up => end.and_utc().timestamp_millis().checked_sub(1)?,
    };
    millis.checked_sub(shift)
}

/// Steps and rounding from `anchor`, as every other time of a request has them; units are cut off in `zone`.
fn math(anchor: i64, steps: &str, round: Rounding, zone: FixedOffset) -> Option<i64> {
    let shift = i64::from(zone.local_minus_utc()) * 1000;
    let local = anchor.checked_add(shift)?;
    let steps = TimeExpr::parse(&format!("{local}||{steps}")).ok()?;
    steps.at(Timestamp(local), round).ok()?.0.checked_sub(shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2015-05-17T10:05:03.250Z, a Sunday.
    const NOW: i64 = 1_431_857_103_250;

    fn read(text: &str, round: Rounding) -> Option<String> {
        parse(text, DateFormat::IsoOrMillis, round, NOW, zone("Z")?).map(iso)
    }

    #[test]
    fn what_is_left_out_is_filled() {
        for (text, down, up) in [
            ("2015", "2015-01-01T00:00:00.000Z", "2015-12-31T23:59:59.999Z"),
            ("2015-02", "2015-02-01T00:00:00.000Z", "2015-02-28T23:59:59.999Z"),
            ("2015-05-17", "2015-05-17T00:00:00.000Z", "2015-05-17T23:59:59.999Z"),
            ("2015-05-17T10", "2015-05-17T10:00:00.000Z", "2015-05-17T10:59:59.999Z"),
            ("2015-05-17T10:05", "2015-05-17T10:05:00.000Z", "2015-05-17T10:05:59.999Z"),
            ("2015-05-17T10:05:03Z", "2015-05-17T10:05:03.000Z", "2015-05-17T10:05:03.999Z"),
            ("2015-05-17T10:05:03.25+02:00", "2015-05-17T08:05:03.250Z", "2015-05-17T08:05:03.250Z"),
            ("2015-05-17T10:05:03.123456789Z", "2015-05-17T10:05:03.123Z", "2015-05-17T10:05:03.123Z"),
            ("1431857103250", "2015-05-17T10:05:03.250Z", "2015-05-17T10:05:03.250Z"),
            ("now", "2015-05-17T10:05:03.250Z", "2015-05-17T10:05:03.250Z"),
            ("now-15m", "2015-05-17T09:50:03.250Z", "2015-05-17T09:50:03.250Z"),
            ("now-1M+2d", "2015-04-19T10:05:03.250Z", "2015-04-19T10:05:03.250Z"),
            ("now/d", "2015-05-17T00:00:00.000Z", "2015-05-17T23:59:59.999Z"),
            ("now/w", "2015-05-11T00:00:00.000Z", "2015-05-17T23:59:59.999Z"),
            ("now-1h/h", "2015-05-17T09:00:00.000Z", "2015-05-17T09:59:59.999Z"),
            ("2015-01-31||+1M", "2015-02-28T00:00:00.000Z", "2015-02-28T00:00:00.000Z"),
            ("2015-02-12||/M", "2015-02-01T00:00:00.000Z", "2015-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(read(text, Rounding::Down).as_deref(), Some(down), "{text}");
            assert_eq!(read(text, Rounding::Up).as_deref(), Some(up), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "x",
            "nowish",
            "now-",
            "now-1",
            "now-1x",
            "now/2d",
            "now/",
            "2015-13-01",
            "2015-5-7",
            "2015-05-17T25",
            "2015-05-17T10:05:03.Z",
            "2015-05-17T10.5",
            "2015-05-17T10:05:03+99",
            "15-05-17",
            "now+99999999999999y",
            "now+4000000000y",
            &"9".repeat(200),
        ] {
            assert_eq!(read(text, Rounding::Down), None, "{text}");
        }
    }

    #[test]
    fn formats_and_zones() {
        let utc = zone("UTC").unwrap();
        assert_eq!(parse("10", DateFormat::Seconds, Rounding::Up, NOW, utc), Some(10_000));
        assert_eq!(parse("-10", DateFormat::Millis, Rounding::Up, NOW, utc), Some(-10));
        assert_eq!(parse("2015", DateFormat::Millis, Rounding::Up, NOW, utc), Some(2015));
        let berlin = zone("+02:00").unwrap();
        assert_eq!(
            parse("2015-05-17", DateFormat::IsoOrMillis, Rounding::Down, NOW, berlin).map(iso).unwrap(),
            "2015-05-16T22:00:00.000Z"
        );
        assert_eq!(
            parse("now/d", DateFormat::IsoOrMillis, Rounding::Down, NOW, berlin).map(iso).unwrap(),
            "2015-05-16T22:00:00.000Z"
        );
        assert_eq!(zone("-0330").unwrap().local_minus_utc(), -12_600);
        for name in ["Europe/Berlin", "+", "+1:2:3", "+2500", "x"] {
            assert_eq!(zone(name), None, "{name}");
        }
        assert_eq!(DateFormat::named("strict_date_optional_time||epoch_millis"), Some(DateFormat::IsoOrMillis));
        assert_eq!(DateFormat::named("epoch_millis"), Some(DateFormat::Millis));
        assert_eq!(DateFormat::named("yyyy-MM-dd"), None);
        assert_eq!(DateFormat::Millis.write(NOW), "1431857103250");
        assert_eq!(iso(i64::MAX), i64::MAX.to_string());
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "\\PC{0,40}", math in "(now|2015-05-17\\|\\|)([+-][0-9]{0,12}[yMwdhms]|/[yMwdhms]){0,4}", now in any::<i64>()) {
            for round in [Rounding::Down, Rounding::Up] {
                let _ = parse(&text, DateFormat::IsoOrMillis, round, now, zone("-05:00").unwrap());
                let _ = parse(&math, DateFormat::IsoOrMillis, round, now, zone("-05:00").unwrap());
            }
        }

        #[test]
        fn what_iso_writes_is_read(millis in 0_i64..253_402_300_799_999) {
            prop_assert_eq!(parse(&iso(millis), DateFormat::IsoOrMillis, Rounding::Down, NOW, zone("Z").unwrap()), Some(millis));
        }
    }
}
