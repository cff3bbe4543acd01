//! Points in time and in a log, as people type them.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat, Utc};

/// A point in time: RFC 3339, or a date, which means its midnight in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(DateTime<Utc>);

/// Where a replay begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    Beginning,
    Offset(i64),
    Time(Moment),
}

/// Text that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write {0} like 2015-05-17 or 2015-05-17T10:05:00Z")]
pub struct ParseTimeError(&'static str);

impl Moment {
    /// `None` beyond the years that a calendar has.
    pub fn from_millis(millis: i64) -> Option<Self> {
        DateTime::from_timestamp_millis(millis).map(Self)
    }
}

impl FromStr for Moment {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
            return Ok(Self(date.and_time(NaiveTime::MIN).and_utc()));
        }
        let time = DateTime::parse_from_rfc3339(text).map_err(|_| ParseTimeError("a date or time"))?;
        Ok(Self(time.to_utc()))
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
            _ => {
                text.parse().map(Self::Time).map_err(|_| ParseTimeError("an offset, \"beginning\", or a date or time"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> String {
        text.parse::<Moment>().map_or_else(|e| e.to_string(), |moment| moment.to_string())
    }

    #[test]
    fn dates_and_times_are_read() {
        assert_eq!(moment("2015-05-17"), "2015-05-17T00:00:00.000Z");
        assert_eq!(moment("2015-05-17T10:05:00Z"), "2015-05-17T10:05:00.000Z");
        assert_eq!(moment("2015-05-17T10:05:00.25+02:00"), "2015-05-17T08:05:00.250Z");
        for bad in ["", "yesterday", "2015-13-01", "2015-05-17T10:05:00", "17.5.2015"] {
            assert_eq!(moment(bad), "write a date or time like 2015-05-17 or 2015-05-17T10:05:00Z", "{bad}");
        }
    }

    #[test]
    fn positions_are_told_apart() {
        assert_eq!("beginning".parse(), Ok(Position::Beginning));
        assert_eq!("0".parse(), Ok(Position::Offset(0)));
        assert_eq!("2015".parse(), Ok(Position::Offset(2015)));
        assert_eq!("2015-05-17".parse::<Position>(), "2015-05-17".parse().map(Position::Time));
        for bad in ["", "-1", "end", "99999999999999999999"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
