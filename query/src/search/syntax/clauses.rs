//! What clauses side by side mean together.

use crate::search::ast::QueryNode;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    And,
    Or,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occur {
    Must,
    Should,
    MustNot,
}

/// One of several clauses side by side.
pub(super) struct Clause {
    /// What stands before it, if anything.
    pub link: Option<Link>,
    pub sign: Option<Occur>,
    pub node: QueryNode,
}

pub(super) fn not(node: QueryNode) -> QueryNode {
    boolean(Vec::new(), Vec::new(), vec![node])
}

pub(super) fn boolean(must: Vec<QueryNode>, should: Vec<QueryNode>, must_not: Vec<QueryNode>) -> QueryNode {
    QueryNode::Bool { must, should, must_not, filter: Vec::new(), minimum_should_match: 0 }
}

/// Clauses side by side. Those that are linked with AND form a group; a group or clause that has an OR beside it is
/// optional, every other one required.
pub(super) fn combine(clauses: Vec<Clause>) -> QueryNode {
    type Group = Vec<(Option<Occur>, QueryNode)>;
    let mut groups: Vec<(Option<Link>, Group)> = Vec::new();
    for Clause { link, sign, node } in clauses {
        match (link, groups.last_mut()) {
            (Some(Link::And), Some((_, group))) => group.push((sign, node)),
            _ => groups.push((link, vec![(sign, node)])),
        }
    }
    let is_or: Vec<bool> = groups.iter().map(|(link, _)| *link == Some(Link::Or)).collect();
    let is_optional = |group: usize| is_or.get(group) == Some(&true) || is_or.get(group + 1) == Some(&true);
    let mut parts = Vec::new();
    for (index, (_, mut group)) in groups.into_iter().enumerate() {
        let optional = is_optional(index);
        let several = group.len() > 1;
        parts.extend(match group.pop() {
            // Optional and excluded: optional that it is not so.
            Some((Some(Occur::MustNot), node)) if !several && optional => Some((Occur::Should, not(node))),
            Some((sign, node)) if !several => {
                Some((sign.unwrap_or(if optional { Occur::Should } else { Occur::Must }), node))
            }
            Some(last) => {
                group.push(last);
                let required = group.into_iter().map(|(sign, node)| (sign.unwrap_or(Occur::Must), node));
                Some((if optional { Occur::Should } else { Occur::Must }, join(required.collect())))
            }
            None => None,
        });
    }
    join(parts)
}

fn join(mut parts: Vec<(Occur, QueryNode)>) -> QueryNode {
    if parts.len() == 1
        && let Some((_, node)) = parts.pop_if(|(occur, _)| *occur != Occur::MustNot)
    {
        return node;
    }
    let (mut must, mut should, mut must_not) = (Vec::new(), Vec::new(), Vec::new());
    for (occur, node) in parts {
        match (occur, node) {
            // What must not be is excluded here rather than taken from every message.
            (Occur::Must, QueryNode::Bool { must: m, should: s, must_not: mut n, filter: f, .. })
                if m.is_empty() && s.is_empty() && f.is_empty() && !n.is_empty() =>
            {
                must_not.append(&mut n);
            }
            (Occur::Must, node) => must.push(node),
            (Occur::Should, node) => should.push(node),
            (Occur::MustNot, node) => must_not.push(node),
        }
    }
    boolean(must, should, must_not)
}
