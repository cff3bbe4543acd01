//! Points in time as people write them, in queries, parameters and on the command line.
//!
//! | written | means |
//! |---|---|
//! | `2015-05-17T10:05:03Z`, `2015-05-17`, `1431857103000` | RFC 3339, the first moment of a day in UTC, milliseconds since 1970 |
//! | `now`, `now-15m`, `now+1h-30s` | the moment of the request, and what lies before or after it |
//! | `now/d`, `now-1d/d` | rounded to the unit, in UTC: to its first millisecond, or to its last where a bound includes it from above or excludes it from below; where it is asked for as a whole, all of the unit |
//! | `2015-05-17\|\|+1M/d` | the same from another moment |
//!
//! Units are `y`, `M` (month), `w` (from Monday), `d`, `h` or `H`, `m` (minute) and `s`, as in Elasticsearch and
//! Grafana. Months and years keep the day where the month has it, else they take its last.

use std::fmt;

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, TimeDelta, Timelike, Utc};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use thermocline_ingest::model::Timestamp;

use crate::message::parse_time;

/// Most steps and roundings in one expression.
const STEPS_MAX: usize = 16;
/// How much of a text that is no time an error repeats, in characters.
const SHOWN_LEN_MAX: usize = 64;

/// A moment, or how to get to one from the moment of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeExpr {
    /// None is the moment of the request.
    anchor: Option<Timestamp>,
    steps: Vec<Step>,
}

/// Which end of a unit rounding goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Its first millisecond.
    Down,
    /// Its last millisecond.
    Up,
}

/// A text that is not a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    #[error("{0:?} is not a time; write it like 2015-05-17, \"2015-05-17T10:05:03Z\", 1431857103000 or now-15m")]
    NoTime(String),
    #[error("{0:?} is not a time; a + has to be written as %2B in a URL")]
    Plus(String),
    #[error("{found:?} in the time {text:?} is not a unit; units are y, M, w, d, h, m and s")]
    Unit { text: String, found: String },
    #[error("the time {text:?} has more than {max} steps", max = STEPS_MAX)]
    Steps { text: String },
    #[error("a time lies beyond the years that a calendar has")]
    Calendar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// So many units, forward or back.
    Move(i64, Unit),
    Round(Unit),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Year,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
}

impl TimeExpr {
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        let shown = || text.chars().take(SHOWN_LEN_MAX).collect::<String>();
        let (anchor, steps) = match (text.strip_prefix("now"), text.split_once("||")) {
            (Some(steps), _) => (None, steps),
            (None, Some((anchor, steps))) => (Some(anchor), steps),
            (None, None) => (Some(text), ""),
        };
        let anchor = anchor.map(parse_time).transpose().map_err(|_| TimeError::NoTime(shown()))?;
        let steps = parse_steps(steps).map_err(|error| match error {
            StepError::Unit(found) => TimeError::Unit { text: shown(), found },
            StepError::Steps => TimeError::Steps { text: shown() },
            StepError::NoStep if text.contains(' ') => TimeError::Plus(shown()),
            StepError::NoStep => TimeError::NoTime(shown()),
        })?;
        Ok(Self { anchor, steps })
    }

    /// Whether it means another moment in a later request.
    pub fn is_relative(&self) -> bool {
        self.anchor.is_none()
    }

    /// The moment meant by a request made at `now`.
    pub fn at(&self, now: Timestamp, rounding: Rounding) -> Result<Timestamp, TimeError> {
        let anchor = self.anchor.unwrap_or(now);
        if self.steps.is_empty() {
            return Ok(anchor);
        }
        let mut time = DateTime::from_timestamp_millis(anchor.0).ok_or(TimeError::Calendar)?;
        for step in &self.steps {
            time = match *step {
                Step::Move(count, unit) => moved(time, count, unit),
                Step::Round(unit) => rounded(time, unit, rounding),
            }
            .ok_or(TimeError::Calendar)?;
        }
        Ok(Timestamp(time.timestamp_millis()))
    }
}

impl From<Timestamp> for TimeExpr {
    fn from(time: Timestamp) -> Self {
        Self { anchor: Some(time), steps: Vec::new() }
    }
}

enum StepError {
    NoStep,
    Unit(String),
    Steps,
}

fn parse_steps(text: &str) -> Result<Vec<Step>, StepError> {
    let mut steps = Vec::new();
    let mut rest = text;
    while let Some(sign) = rest.chars().next() {
        if steps.len() == STEPS_MAX {
            return Err(StepError::Steps);
        }
        rest = rest.get(sign.len_utf8()..).unwrap_or_default();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (count, after) = rest.split_at(digits);
        let unit = after.chars().next().ok_or(StepError::NoStep)?;
        rest = after.get(unit.len_utf8()..).unwrap_or_default();
        let unit = Unit::of(unit).ok_or_else(|| StepError::Unit(unit.to_string()))?;
        // Without a number it is one.
        let count = if count.is_empty() { Ok(1) } else { count.parse::<i64>() };
        steps.push(match (sign, count) {
            ('+', Ok(count)) => Step::Move(count, unit),
            ('-', Ok(count)) => Step::Move(-count, unit),
            ('/', _) if digits == 0 => Step::Round(unit),
            _ => return Err(StepError::NoStep),
        });
    }
    Ok(steps)
}

impl Unit {
    fn of(letter: char) -> Option<Self> {
        Some(match letter {
            'y' => Self::Year,
            'M' => Self::Month,
            'w' => Self::Week,
            'd' => Self::Day,
            'h' | 'H' => Self::Hour,
            'm' => Self::Minute,
            's' => Self::Second,
            _ => return None,
        })
    }
}

fn moved(time: DateTime<Utc>, count: i64, unit: Unit) -> Option<DateTime<Utc>> {
    let seconds = |each: i64| time.checked_add_signed(TimeDelta::try_seconds(count.checked_mul(each)?)?);
    let months = |each: u32| {
        let months = Months::new(u32::try_from(count.unsigned_abs()).ok()?.checked_mul(each)?);
        if count < 0 { time.checked_sub_months(months) } else { time.checked_add_months(months) }
    };
    match unit {
        Unit::Year => months(12),
        Unit::Month => months(1),
        Unit::Week => seconds(7 * 86_400),
        Unit::Day => seconds(86_400),
        Unit::Hour => seconds(3_600),
        Unit::Minute => seconds(60),
        Unit::Second => seconds(1),
    }
}

fn rounded(time: DateTime<Utc>, unit: Unit, rounding: Rounding) -> Option<DateTime<Utc>> {
    let (date, hour, minute, second) = (time.date_naive(), time.hour(), time.minute(), time.second());
    let start = match unit {
        Unit::Year => NaiveDate::from_ymd_opt(date.year(), 1, 1)?.and_hms_opt(0, 0, 0),
        Unit::Month => date.with_day(1)?.and_hms_opt(0, 0, 0),
        Unit::Week => {
            let days = Days::new(date.weekday().num_days_from_monday().into());
            date.checked_sub_days(days)?.and_hms_opt(0, 0, 0)
        }
        Unit::Day => date.and_hms_opt(0, 0, 0),
        Unit::Hour => date.and_hms_opt(hour, 0, 0),
        Unit::Minute => date.and_hms_opt(hour, minute, 0),
        Unit::Second => date.and_hms_opt(hour, minute, second),
    }?
    .and_utc();
    match rounding {
        Rounding::Down => Some(start),
        Rounding::Up => moved(start, 1, unit)?.checked_sub_signed(TimeDelta::milliseconds(1)),
    }
}

/// A text as above, or milliseconds since 1970 as a number.
impl<'de> Deserialize<'de> for TimeExpr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ExprVisitor;
        impl Visitor<'_> for ExprVisitor {
            type Value = TimeExpr;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time")
            }
            fn visit_i64<E: de::Error>(self, ms: i64) -> Result<TimeExpr, E> {
                Ok(Timestamp(ms).into())
            }
            fn visit_u64<E: de::Error>(self, ms: u64) -> Result<TimeExpr, E> {
                i64::try_from(ms).map(|ms| Timestamp(ms).into()).map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TimeExpr, E> {
                TimeExpr::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(ExprVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Wednesday.
    const NOW: &str = "2015-05-20T10:05:03.250Z";

    fn at(text: &str, rounding: Rounding) -> Result<String, TimeError> {
        let now = parse_time(NOW).unwrap();
        let time = TimeExpr::parse(text)?.at(now, rounding)?;
        Ok(DateTime::from_timestamp_millis(time.0).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
    }

    #[test]
    fn moments_are_reached_from_now() {
        for (text, down, up) in [
            ("2015-05-17T10:05:03Z", "2015-05-17T10:05:03.000Z", "2015-05-17T10:05:03.000Z"),
            ("2015-05-17", "2015-05-17T00:00:00.000Z", "2015-05-17T00:00:00.000Z"),
            ("1431857103000", "2015-05-17T10:05:03.000Z", "2015-05-17T10:05:03.000Z"),
            ("now", NOW, NOW),
            ("now-15m", "2015-05-20T09:50:03.250Z", "2015-05-20T09:50:03.250Z"),
            ("now+1h-30s", "2015-05-20T11:04:33.250Z", "2015-05-20T11:04:33.250Z"),
            ("now-d", "2015-05-19T10:05:03.250Z", "2015-05-19T10:05:03.250Z"),
            ("now/d", "2015-05-20T00:00:00.000Z", "2015-05-20T23:59:59.999Z"),
            ("now-1d/d", "2015-05-19T00:00:00.000Z", "2015-05-19T23:59:59.999Z"),
            ("now/d+8h", "2015-05-20T08:00:00.000Z", "2015-05-21T07:59:59.999Z"),
            ("now/w", "2015-05-18T00:00:00.000Z", "2015-05-24T23:59:59.999Z"),
            ("now/M", "2015-05-01T00:00:00.000Z", "2015-05-31T23:59:59.999Z"),
            ("now/y", "2015-01-01T00:00:00.000Z", "2015-12-31T23:59:59.999Z"),
            ("now/h", "2015-05-20T10:00:00.000Z", "2015-05-20T10:59:59.999Z"),
            ("now/H", "2015-05-20T10:00:00.000Z", "2015-05-20T10:59:59.999Z"),
            ("now/m", "2015-05-20T10:05:00.000Z", "2015-05-20T10:05:59.999Z"),
            ("now/s", "2015-05-20T10:05:03.000Z", "2015-05-20T10:05:03.999Z"),
            ("2015-01-31||+1M", "2015-02-28T00:00:00.000Z", "2015-02-28T00:00:00.000Z"),
            ("2016-02-29||-1y", "2015-02-28T00:00:00.000Z", "2015-02-28T00:00:00.000Z"),
            ("2015-05-17||/M", "2015-05-01T00:00:00.000Z", "2015-05-31T23:59:59.999Z"),
        ] {
            assert_eq!(at(text, Rounding::Down).as_deref(), Ok(down), "{text}");
            assert_eq!(at(text, Rounding::Up).as_deref(), Ok(up), "{text}");
        }
    }

    #[test]
    fn only_now_is_relative() {
        for (text, is_relative) in
            [("now", true), ("now-1d/d", true), ("2015-05-17", false), ("2015-05-17||+1M", false), ("5", false)]
        {
            assert_eq!(TimeExpr::parse(text).map(|time| time.is_relative()), Ok(is_relative), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for (text, part) in [
            ("", "is not a time"),
            ("yesterday", "is not a time"),
            ("2015-13-01", "is not a time"),
            ("nowadays", "is not a time"),
            ("now 1h", "%2B"),
            ("now-", "is not a time"),
            ("now-15", "is not a time"),
            ("now-15x", "\"x\" in the time"),
            ("now/2d", "is not a time"),
            ("now-99999999999999999999d", "is not a time"),
            ("now-9000000000000000000s", "calendar"),
            ("now-999999999y", "calendar"),
            ("9223372036854775807||+1d", "calendar"),
            (&format!("now{}", "+1d".repeat(STEPS_MAX + 1)), "steps"),
        ] {
            let error = at(text, Rounding::Up).expect_err(text);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(
            parts in prop::collection::vec(prop::sample::select(vec!["now", "-", "+", "/", "||", "9", "99999999", "y", "M", "w", "d", "m", "é", "2015-05-17"]), 0..12),
            now in any::<i64>(),
        ) {
            if let Ok(time) = TimeExpr::parse(&parts.concat()) {
                let (down, up) = (time.at(Timestamp(now), Rounding::Down), time.at(Timestamp(now), Rounding::Up));
                if let (Ok(down), Ok(up)) = (down, up) {
                    prop_assert!(down <= up);
                }
            }
        }
    }
}
