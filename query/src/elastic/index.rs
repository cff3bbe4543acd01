//! Index expressions: names, `*` wildcards, comma lists, `-` to leave out. An index is a topic.

use thermocline_ingest::model::TopicName;

use super::error::ElasticError;

/// Most names and patterns in one expression.
const PARTS_MAX: usize = 1024;

/// What a request says about indices that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexOptions {
    /// Names that do not exist are left out instead of refused.
    pub ignore_unavailable: bool,
    /// An expression that names nothing finds nothing instead of being refused.
    pub allow_no_indices: bool,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { ignore_unavailable: false, allow_no_indices: true }
    }
}

/// The topics of `all` that `expression` names, in the order of `all`.
pub(crate) fn resolve(
    expression: &str,
    all: &[TopicName],
    options: IndexOptions,
) -> Result<Vec<TopicName>, ElasticError> {
    let parts: Vec<&str> = expression.split(',').map(str::trim).collect();
    if parts.len() > PARTS_MAX {
        let reason = format!("an index expression of {} parts exceeds the limit of {PARTS_MAX}", parts.len());
        return Err(ElasticError::illegal(reason));
    }
    let mut chosen = vec![false; all.len()];
    for (position, part) in parts.iter().enumerate() {
        let (pattern, choose) = match part.strip_prefix('-') {
            // A leading dash is part of a name, as in Elasticsearch.
            Some(rest) if position > 0 => (rest, false),
            _ => (*part, true),
        };
        let is_everything = matches!(pattern, "_all" | "" | "*");
        let is_pattern = is_everything || pattern.contains('*');
        let mut found = false;
        for (name, chosen) in all.iter().zip(&mut chosen) {
            if is_everything || (is_pattern && matches(pattern, name.as_str())) || name.as_str() == pattern {
                found = true;
                *chosen = choose;
            }
        }
        if !found && choose && !is_pattern && !options.ignore_unavailable {
            return Err(ElasticError::no_such_index(pattern));
        }
    }
    let named: Vec<_> = all.iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(name, _)| name.clone()).collect();
    if named.is_empty() && !options.allow_no_indices {
        return Err(ElasticError::no_such_index(expression));
    }
    Ok(named)
}

/// Whether `name` fits `pattern`, in which `*` stands for any characters. Linear in time for each star.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut rest = rest;
    while let Some((middle, after)) = rest.split_once('*') {
        let Some(at) = left.find(middle) else { return false };
        left = left.get(at + middle.len()..).unwrap_or_default();
        rest = after;
    }
    left.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(expression: &str, options: IndexOptions) -> Result<String, ElasticError> {
        let all: Vec<_> =
            ["clicks", "logs-2015", "logs-2016", "orders"].map(|name| TopicName::new(name).unwrap()).into();
        let found = resolve(expression, &all, options)?;
        Ok(found.iter().map(TopicName::as_str).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn expressions_name_topics() {
        for (expression, wanted) in [
            ("orders", "orders"),
            ("orders,clicks,orders", "clicks orders"),
            ("_all", "clicks logs-2015 logs-2016 orders"),
            ("*", "clicks logs-2015 logs-2016 orders"),
            ("", "clicks logs-2015 logs-2016 orders"),
            ("logs-*", "logs-2015 logs-2016"),
            ("*s-*5", "logs-2015"),
            ("logs-*,-logs-2016", "logs-2015"),
            ("*,-logs*,-x*", "clicks orders"),
            ("none*", ""),
        ] {
            assert_eq!(names(expression, IndexOptions::default()).as_deref(), Ok(wanted), "{expression}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_or_left_out() {
        let error = names("orders,none", IndexOptions::default()).unwrap_err();
        assert_eq!((error.status, error.kind), (404, "index_not_found_exception"));
        let lenient = IndexOptions { ignore_unavailable: true, ..IndexOptions::default() };
        assert_eq!(names("orders,none", lenient).as_deref(), Ok("orders"));
        assert_eq!(names("-orders", lenient).as_deref(), Ok(""));
        let strict = IndexOptions { allow_no_indices: false, ..lenient };
        assert_eq!(names("none", strict).unwrap_err().status, 404);
        assert_eq!(names(&"a,".repeat(PARTS_MAX), lenient).unwrap_err().status, 400);
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, wanted) in [
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("*a", "a", true),
            ("a*a", "a", false),
            ("ab*ba", "aba", false),
            ("**", "x", true),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
    }
}
