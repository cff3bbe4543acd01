use std::cmp::Ordering;

use proptest::prelude::*;
use tantivy::collector::DocSetCollector;
use tantivy::query::Query;

use super::*;
use crate::search::testing::{Doc, Leaves, split_with};

/// Numbers of every kind, many near the borders between kinds.
fn number() -> impl Strategy<Value = LiteralValue> {
    let two_53 = 1_i64 << 53;
    prop_oneof![
        3 => (-3_i64..4).prop_map(LiteralValue::I64),
        3 => (-6_i64..7).prop_map(|halves| LiteralValue::F64(halves as f64 / 2.0)),
        2 => (two_53 - 3..two_53 + 4).prop_map(LiteralValue::I64),
        1 => (i64::MAX - 2..=i64::MAX).prop_map(LiteralValue::I64),
        1 => (i64::MIN..i64::MIN + 3).prop_map(LiteralValue::I64),
        1 => (u64::MAX - 2..=u64::MAX).prop_map(LiteralValue::U64),
        1 => (1_u64 << 63..(1_u64 << 63) + 3).prop_map(LiteralValue::U64),
        1 => prop::sample::select(vec![1e300, -1e300, 0.1, -0.1, 1e-300, 2.5e15]).prop_map(LiteralValue::F64),
        1 => any::<i64>().prop_map(LiteralValue::I64),
    ]
}

fn bound() -> impl Strategy<Value = Bound<LiteralValue>> {
    prop_oneof![
        2 => number().prop_map(Bound::Included),
        2 => number().prop_map(Bound::Excluded),
        1 => Just(Bound::Unbounded),
    ]
}

fn json(number: &LiteralValue) -> serde_json::Value {
    match number {
        LiteralValue::I64(number) => (*number).into(),
        LiteralValue::U64(number) => (*number).into(),
        LiteralValue::F64(number) => (*number).into(),
        other => panic!("{other:?} is no number"),
    }
}

fn compare(a: &LiteralValue, b: &LiteralValue) -> Ordering {
    match (Number::of(a).unwrap(), Number::of(b).unwrap()) {
        (Number::Int(a), Number::Int(b)) => a.cmp(&b),
        (Number::Float(a), Number::Float(b)) => a.partial_cmp(&b).unwrap(),
        (Number::Int(_), Number::Float(_)) => compare(b, a).reverse(),
        (Number::Float(a), Number::Int(b)) => {
            (a.floor() as i128).cmp(&b).then(if a.fract() == 0.0 { Ordering::Equal } else { Ordering::Greater })
        }
    }
}

fn contains(lower: &Bound<LiteralValue>, upper: &Bound<LiteralValue>, number: &LiteralValue) -> bool {
    let above = match lower {
        Bound::Included(bound) => compare(number, bound) != Ordering::Less,
        Bound::Excluded(bound) => compare(number, bound) == Ordering::Greater,
        Bound::Unbounded => true,
    };
    let below = match upper {
        Bound::Included(bound) => compare(number, bound) != Ordering::Greater,
        Bound::Excluded(bound) => compare(number, bound) == Ordering::Less,
        Bound::Unbounded => true,
    };
    above && below
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever kinds the numbers of a path have, dictionary and column choose those that lie in the range.
    #[test]
    fn ranges_are_exact(
        numbers in prop::collection::vec(prop::collection::vec(number(), 0..3), 1..20),
        ranges in prop::collection::vec((bound(), bound()), 12),
    ) {
        let doc = |(offset, numbers): (i64, &Vec<LiteralValue>)| {
            let numbers: Vec<_> = numbers.iter().map(json).collect();
            Doc { offset, json: serde_json::json!({"a": {"b": numbers, "c": "text"}, "a.bb": 1}), ..Doc::default() }
        };
        let docs: Vec<Doc> = (0..).zip(&numbers).map(doc).collect();
        for leaves in [Leaves::Indexed, Leaves::InColumns] {
            let split = split_with(false, leaves, &docs).unwrap();
            for (lower, upper) in ranges.iter().filter(|range| **range != (Bound::Unbounded, Bound::Unbounded)) {
                let number = |bound: &Bound<LiteralValue>| bound.as_ref().map(|number| Number::of(number).unwrap());
                let path = Path::new(split.fields.json, "a.b");
                let range = NumberRange { path, lower: number(lower), upper: number(upper) };
                let query: Box<dyn Query> = match leaves {
                    Leaves::Indexed => range.in_dictionary(),
                    Leaves::InColumns => Box::new(range),
                };
                let mut found: Vec<u32> =
                    split.searcher.search(&query, &DocSetCollector).unwrap().into_iter().map(|doc| doc.doc_id).collect();
                found.sort_unstable();
                let expected: Vec<u32> = (0..)
                    .zip(&numbers)
                    .filter(|(_, numbers)| numbers.iter().any(|number| contains(lower, upper, number)))
                    .map(|(doc, _)| doc)
                    .collect();
                prop_assert_eq!(found, expected, "{:?} to {:?}, {:?}", lower, upper, leaves);
            }
        }
    }
}
