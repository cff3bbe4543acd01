//! Arithmetic of a `bucket_script`: numbers, `params.<name>`, `+ - * /` and parentheses. All numbers are floating.
//!
//! ```text
//! sum      = product ( ( "+" | "-" ) product )*
//! product  = factor ( ( "*" | "/" ) factor )*
//! factor   = "-" factor | "(" sum ")" | number | "params." name
//! ```

/// Longest expression, in bytes.
const EXPRESSION_LEN_MAX: usize = 1024;
/// Parentheses and signs inside each other.
const NESTING_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expression {
    Number(f64),
    /// By its name behind `params.`.
    Variable(String),
    Negative(Box<Expression>),
    Binary(Operation, Box<Expression>, Box<Expression>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
}

struct Parser<'a> {
    rest: &'a str,
    nesting_left: usize,
}

impl Expression {
    /// Fails with what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > EXPRESSION_LEN_MAX {
            return Err(format!("{} bytes exceed the limit of {EXPRESSION_LEN_MAX}", text.len()));
        }
        let mut parser = Parser { rest: text.trim_start(), nesting_left: NESTING_MAX };
        let parsed = parser.sum()?;
        if parser.rest.is_empty() { Ok(parsed) } else { Err(parser.unexpected()) }
    }

    /// None where a variable has no value.
    pub fn value(&self, variable: &impl Fn(&str) -> Option<f64>) -> Option<f64> {
        Some(match self {
            Self::Number(number) => *number,
            Self::Variable(name) => variable(name)?,
            Self::Negative(inner) => -inner.value(variable)?,
            Self::Binary(operation, left, right) => {
                let (left, right) = (left.value(variable)?, right.value(variable)?);
                match operation {
                    Operation::Add => left + right,
                    Operation::Subtract => left - right,
                    Operation::Multiply => left * right,
                    Operation::Divide => left / right,
                }
            }
        })
    }

    /// The names of its variables.
    pub fn variables(&self) -> Vec<&str> {
        match self {
            Self::Number(_) => Vec::new(),
            Self::Variable(name) => vec![name],
            Self::Negative(inner) => inner.variables(),
            Self::Binary(_, left, right) => [left.variables(), right.variables()].concat(),
        }
    }
}

impl Parser<'_> {
    fn unexpected(&self) -> String {
        let rest: String = self.rest.chars().take(20).collect();
        match rest.as_str() {
            "" => "it ends where a number or params.<name> should stand".to_owned(),
            rest => format!("{rest:?} is not arithmetic over numbers and params.<name>"),
        }
    }

    fn take(&mut self, sign: char) -> bool {
        let found = self.rest.strip_prefix(sign);
        self.rest = found.map_or(self.rest, str::trim_start);
        found.is_some()
    }

    fn sum(&mut self) -> Result<Expression, String> {
        self.chain(&[('+', Operation::Add), ('-', Operation::Subtract)], Self::product)
    }

    fn product(&mut self) -> Result<Expression, String> {
        self.chain(&[('*', Operation::Multiply), ('/', Operation::Divide)], Self::factor)
    }

    fn chain(
        &mut self,
        signs: &[(char, Operation)],
        part: fn(&mut Self) -> Result<Expression, String>,
    ) -> Result<Expression, String> {
        let mut left = part(self)?;
        while let Some((_, operation)) = signs.iter().find(|(sign, _)| self.take(*sign)) {
            left = Expression::Binary(*operation, Box::new(left), Box::new(part(self)?));
        }
        Ok(left)
    }

    fn factor(&mut self) -> Result<Expression, String> {
        self.nesting_left = self
            .nesting_left
            .checked_sub(1)
            .ok_or_else(|| format!("more than {NESTING_MAX} parentheses and signs lie inside each other"))?;
        let factor = if self.take('-') {
            Expression::Negative(Box::new(self.factor()?))
        } else if self.take('(') {
            let inner = self.sum()?;
            if !self.take(')') {
                return Err("a parenthesis is not closed".to_owned());
            }
            inner
        } else if let Some(rest) = self.rest.strip_prefix("params.") {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (name, behind) = rest.split_at(end);
            if name.is_empty() {
                return Err(self.unexpected());
            }
            self.rest = behind.trim_start();
            Expression::Variable(name.to_owned())
        } else {
            let end = self.rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(self.rest.len());
            let (number, behind) = self.rest.split_at(end);
            let number = number.parse().map_err(|_| self.unexpected())?;
            self.rest = behind.trim_start();
            Expression::Number(number)
        };
        self.nesting_left += 1;
        Ok(factor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(text: &str) -> Result<Option<f64>, String> {
        let variable = |name: &str| match name {
            "a" => Some(6.0),
            "b_1" => Some(4.0),
            _ => None,
        };
        Expression::parse(text).map(|expression| expression.value(&variable))
    }

    #[test]
    fn arithmetic_is_as_at_school() {
        for (text, expected) in [
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("8 - 4 - 2", 2.0),
            ("8 / 4 / 2", 1.0),
            ("-params.a + 1", -5.0),
            (" params.a/params.b_1*100.0 ", 150.0),
            ("2 - -(3)", 5.0),
        ] {
            assert_eq!(value(text), Ok(Some(expected)), "{text}");
        }
        assert_eq!(value("params.none + 1"), Ok(None));
        assert_eq!(Expression::parse("params.a + 2 * -params.b").unwrap().variables(), ["a", "b"]);
    }

    #[test]
    fn everything_else_is_refused() {
        for (text, named) in [
            ("", "ends"),
            ("1 +", "ends"),
            ("(1", "not closed"),
            ("1)", "\")\""),
            ("a", "\"a\""),
            ("params.", "params."),
            ("Math.max(1, 2)", "Math"),
            ("1 > 2", "> 2"),
            ("params.a; params.b", "; params.b"),
            ("1.2.3", "1.2.3"),
        ] {
            assert!(value(text).unwrap_err().contains(named), "{text}: {:?}", value(text));
        }
        assert!(value(&"(".repeat(NESTING_MAX + 1)).unwrap_err().contains("inside each other"));
        assert!(value(&"-".repeat(NESTING_MAX + 1)).unwrap_err().contains("inside each other"));
        assert!(value(&format!("1{}", " ".repeat(EXPRESSION_LEN_MAX))).unwrap_err().contains("1024"));
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "[-+*/(). 0-9a-z]{0,24}|(params\\.a|[-+*/()1 ]){0,12}") {
            let _ = value(&text);
        }
    }
}
