//! Quantities with a unit, as people write them: `128MiB`, `1h30m`, `unlimited`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes. Written as `512`, `64KiB`, `128MiB`, `2GiB`, `1TiB` or with decimal `kB`/`MB`/`GB`/`TB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// A span of time. Written as one or more numbers with `ms`, `s`, `m`, `h` or `d`, largest first: `1h30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(Duration);

/// A quantity that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {what}; write it like {example}")]
pub struct ParseQuantityError {
    value: String,
    what: &'static str,
    example: &'static str,
}

const BYTE_UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

const DURATION_UNITS_MS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl ByteSize {
    pub const fn bytes(n: u64) -> Self {
        Self(n)
    }
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    /// The size as an in-memory length; saturates where the address space is smaller.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl HumanDuration {
    pub const fn millis(n: u64) -> Self {
        Self(Duration::from_millis(n))
    }
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }
    pub const fn as_duration(self) -> Duration {
        self.0
    }
    /// Whole milliseconds; saturates at `i64::MAX`, as Kafka counts time in signed milliseconds.
    pub fn as_millis(self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = ParseQuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error =
            || ParseQuantityError { value: s.to_owned(), what: "byte size", example: "512, 64KiB, 128MiB or 2GiB" };
        let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, unit) = s.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let factor = match unit.trim() {
            "" => 1,
            unit => BYTE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?.1,
        };
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

impl FromStr for HumanDuration {
    type Err = ParseQuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error = || ParseQuantityError { value: s.to_owned(), what: "duration", example: "250ms, 30s, 1h30m or 7d" };
        let mut rest = s.trim();
        let mut total_ms: u64 = 0;
        let mut previous_unit_ms = u64::MAX;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let number: u64 = rest[..digits].parse().map_err(|_| error())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let unit = DURATION_UNITS_MS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or_else(error)?;
            if unit.1 >= previous_unit_ms {
                return Err(error());
            }
            previous_unit_ms = unit.1;
            total_ms = number.checked_mul(unit.1).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(error)?;
            rest = &rest[letters..];
        }
        Ok(Self::millis(total_ms))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = BYTE_UNITS[..4].iter().rev().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match exact {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (name, factor) in DURATION_UNITS_MS.iter().rev() {
            let count = rest / u128::from(*factor);
            if count > 0 {
                write!(f, "{count}{name}")?;
                rest -= count * u128::from(*factor);
            }
        }
        Ok(())
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(ByteSize, HumanDuration);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes_read_back_as_written() {
        for (text, bytes) in [("0", 0), ("512", 512), ("64KiB", 65_536), ("1GB", 1_000_000_000), ("2TiB", 2 << 40)] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize::bytes(bytes)));
        }
        assert_eq!(ByteSize::mib(128).to_string(), "128MiB");
        assert_eq!(ByteSize::bytes(1500).to_string(), "1500");
    }

    #[test]
    fn durations_read_back_as_written() {
        for (text, ms) in [("0s", 0), ("250ms", 250), ("1h30m", 5_400_000), ("7d", 604_800_000)] {
            let duration: HumanDuration = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(duration.as_millis(), ms);
            assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for bad in ["", "MiB", "1.5GiB", "-1", "10XB", "99999999999999999999", "20000000TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        for bad in ["", "10", "5x", "1m1h", "s", "1h 30m"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
        let message = "10XB".parse::<ByteSize>().map_err(|e| e.to_string());
        assert_eq!(message, Err("\"10XB\" is not a byte size; write it like 512, 64KiB, 128MiB or 2GiB".to_owned()));
    }
}
