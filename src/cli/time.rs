//! Points in time and in a log, as people type them.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use chrono::{DateTime, SecondsFormat, Utc};
use thermocline_ingest::model::Timestamp;
use thermocline_query::time::{Rounding, TimeError, TimeExpr};

/// A point in time within the years that a calendar has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(DateTime<Utc>);

/// A point in time as queries have it: RFC 3339, a date (its midnight in UTC), milliseconds, or relative like
/// `now-15m`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct When(TimeExpr);

/// Where a replay begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    Beginning,
    Offset(i64),
    Time(When),
}

/// Text that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write {0} like 2015-05-17, 2015-05-17T10:05:00Z or now-15m")]
pub struct ParseTimeError(&'static str);

impl Moment {
    /// `None` beyond the years that a calendar has.
    pub fn from_millis(millis: i64) -> Option<Self> {
        DateTime::from_timestamp_millis(millis).map(Self)
    }
}

impl When {
    /// Whether it means another moment in a later command.
    pub fn is_relative(&self) -> bool {
        self.0.is_relative()
    }

    /// The moment meant by a command that began at `now`.
    pub fn moment(&self, now: Timestamp) -> anyhow::Result<Moment> {
        let time = self.0.at(now, Rounding::Down)?;
        Moment::from_millis(time.0).context("a time is beyond the years that a calendar has")
    }
}

impl FromStr for When {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TimeExpr::parse(text).map(Self)
    }
}

/// RFC 3339 in UTC with milliseconds.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl FromStr for Position {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "beginning" => Ok(Self::Beginning),
            _ if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => text
                .parse()
                .map(Self::Offset)
                .map_err(|_| ParseTimeError("an offset up to 9223372036854775807, or a time")),
            // Negative offsets are no times either.
            _ if text.parse::<i64>().is_ok() => Err(ParseTimeError("an offset from 0, or a time")),
            _ => {
                text.parse().map(Self::Time).map_err(|_| ParseTimeError("an offset, \"beginning\", or a date or time"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2015-05-20T12:00:00Z
    const NOW: Timestamp = Timestamp(1_432_123_200_000);

    fn moment(text: &str) -> anyhow::Result<String> {
        Ok(text.parse::<When>()?.moment(NOW)?.to_string())
    }

    #[test]
    fn dates_and_times_are_read() {
        for (text, expected) in [
            ("2015-05-17", "2015-05-17T00:00:00.000Z"),
            ("2015-05-17T10:05:00Z", "2015-05-17T10:05:00.000Z"),
            ("2015-05-17T10:05:00.25+02:00", "2015-05-17T08:05:00.250Z"),
            ("now-15m", "2015-05-20T11:45:00.000Z"),
            ("now/d", "2015-05-20T00:00:00.000Z"),
        ] {
            assert_eq!(moment(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "yesterday", "2015-13-01", "2015-05-17T10:05:00", "17.5.2015"] {
            assert!(moment(bad).unwrap_err().to_string().contains("is not a time"), "{bad}");
        }
    }

    #[test]
    fn positions_are_told_apart() {
        assert_eq!("beginning".parse(), Ok(Position::Beginning));
        assert_eq!("0".parse(), Ok(Position::Offset(0)));
        assert_eq!("2015".parse(), Ok(Position::Offset(2015)));
        for time in ["2015-05-17", "now-1h"] {
            assert_eq!(time.parse::<Position>(), Ok(Position::Time(time.parse().unwrap())));
        }
        for bad in ["", "-1", "end", "99999999999999999999"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
