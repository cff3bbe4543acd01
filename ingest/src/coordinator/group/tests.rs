//! One test for each cell of the table of states and events, and for each rule with a code of its own.

use bytes::Bytes;
use kafka_protocol::ResponseError as Code;

use super::*;

mod simulation;

const LIMITS: Limits = Limits { min_session_ms: 6_000, max_session_ms: 1_800_000, initial_delay_ms: 0, max_size: 8 };
const SESSION_MS: i32 = 10_000;
const REBALANCE_MS: i32 = 60_000;

/// A group, a clock that is moved by hand, and the store that says yes to everything.
struct Bench {
    group: Group,
    now: i64,
    tokens: u64,
    joins: BTreeMap<Token, JoinReply>,
    syncs: BTreeMap<Token, SyncReply>,
    stores: Vec<(Ticket, GroupMetadata)>,
}

fn request(name: &str) -> JoinRequest {
    JoinRequest {
        member_id: String::new(),
        new_member_id: name.to_owned(),
        instance_id: None,
        client_id: "client".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout_ms: SESSION_MS,
        rebalance_timeout_ms: REBALANCE_MS,
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), Bytes::from_static(b"topics"))],
        require_member_id: false,
        can_skip_assignment: false,
    }
}

fn known(name: &str) -> JoinRequest {
    JoinRequest { member_id: name.to_owned(), ..request("unused") }
}

fn of_instance(name: &str, instance: &str) -> JoinRequest {
    JoinRequest { instance_id: Some(instance.to_owned()), ..request(name) }
}

fn changed(request: JoinRequest) -> JoinRequest {
    let protocols = vec![("range".to_owned(), Bytes::from_static(b"other topics"))];
    JoinRequest { protocols, ..request }
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self {
            group: Group::new(limits),
            now: 1_000,
            tokens: 0,
            joins: BTreeMap::new(),
            syncs: BTreeMap::new(),
            stores: Vec::new(),
        }
    }

    fn empty() -> Self {
        Self::new(LIMITS)
    }

    /// `a` leads, `b` follows; both wait.
    fn completing() -> Self {
        let mut bench = Self::empty();
        bench.join(request("a"));
        bench.join(request("b"));
        bench.join(known("a"));
        assert_eq!(bench.group.state(), State::CompletingRebalance);
        assert_eq!(bench.group.generation(), 2);
        bench
    }

    fn stable() -> Self {
        let mut bench = Self::completing();
        bench.sync("b", &[]);
        bench.sync("a", &[("a", "0"), ("b", "1")]);
        bench.store(true);
        assert_eq!(bench.group.state(), State::Stable);
        bench
    }

    /// `c` wants in, `a` and `b` have not come back.
    fn preparing() -> Self {
        let mut bench = Self::stable();
        bench.join(request("c"));
        assert_eq!(bench.group.state(), State::PreparingRebalance);
        bench
    }

    fn collect(&mut self) {
        let Effects { joins, syncs, store } = self.group.take_effects();
        for (token, reply) in joins {
            assert!(self.joins.insert(token, reply).is_none(), "join answered twice");
        }
        for (token, reply) in syncs {
            assert!(self.syncs.insert(token, reply).is_none(), "sync answered twice");
        }
        self.stores.extend(store);
    }

    fn join(&mut self, request: JoinRequest) -> Token {
        self.tokens += 1;
        self.group.join(self.now, Token(self.tokens), request);
        self.collect();
        Token(self.tokens)
    }

    fn sync_of(&mut self, member: &str, generation: i32, list: &[(&str, &str)]) -> Token {
        self.tokens += 1;
        let assignments = list.iter().map(|(id, part)| ((*id).to_owned(), Bytes::from((*part).to_owned()))).collect();
        let request = SyncRequest {
            member_id: member.to_owned(),
            instance_id: None,
            generation,
            protocol_type: None,
            protocol: None,
            assignments,
        };
        self.group.sync(self.now, Token(self.tokens), request);
        self.collect();
        Token(self.tokens)
    }

    fn sync(&mut self, member: &str, list: &[(&str, &str)]) -> Token {
        self.sync_of(member, self.group.generation(), list)
    }

    /// Finishes every storing.
    fn store(&mut self, ok: bool) {
        for (ticket, _) in std::mem::take(&mut self.stores) {
            self.group.on_stored(self.now, ticket, ok);
        }
        self.collect();
    }

    fn beat(&mut self, member: &str) -> Result<(), Code> {
        let generation = self.group.generation();
        self.group.heartbeat(self.now, member, None, generation)
    }

    fn commit(&mut self, member_id: &str, generation: i32) -> Result<(), Code> {
        self.group.check_commit(self.now, Committer { member_id, instance_id: None, generation })
    }

    fn leave(&mut self, member: &str) -> Result<(), Code> {
        let leaving = Leaving { member_id: member.to_owned(), instance_id: None };
        let answer = self.group.leave(self.now, &[leaving]);
        self.collect();
        answer.and_then(|mut answers| answers.remove(0))
    }

    fn pass(&mut self, ms: i64) {
        self.now += ms;
        self.group.on_tick(self.now);
        self.collect();
    }

    fn joined(&self, token: Token) -> &Joined {
        self.joins[&token].as_ref().unwrap()
    }

    fn refused(&self, token: Token) -> Code {
        self.joins[&token].as_ref().unwrap_err().error
    }

    fn waits(&self, token: Token) -> bool {
        !self.joins.contains_key(&token) && !self.syncs.contains_key(&token)
    }
}

#[test]
fn join_of_a_newcomer() {
    let mut empty = Bench::empty();
    let token = empty.join(request("a"));
    let joined = empty.joined(token).clone();
    assert_eq!((joined.generation, joined.leader.as_str(), joined.members.len()), (1, "a", 1));
    assert_eq!(joined.members[0].metadata, Bytes::from_static(b"topics"));

    for (mut bench, from) in [
        (Bench::preparing(), State::PreparingRebalance),
        (Bench::completing(), State::CompletingRebalance),
        (Bench::stable(), State::Stable),
    ] {
        assert_eq!(bench.group.state(), from);
        let generation = bench.group.generation();
        let token = bench.join(request("d"));
        assert!(bench.waits(token));
        assert_eq!(bench.group.state(), State::PreparingRebalance);
        assert_eq!(bench.group.generation(), generation, "the generation rises when the join phase completes");
    }
}

#[test]
fn join_of_a_known_member_that_says_nothing_new() {
    let mut empty = Bench::empty();
    let token = empty.join(known("a"));
    assert_eq!(empty.refused(token), Code::UnknownMemberId);

    let mut preparing = Bench::preparing();
    let token = preparing.join(known("a"));
    assert!(preparing.waits(token));

    let mut completing = Bench::completing();
    let leader = completing.join(known("a"));
    let follower = completing.join(known("b"));
    assert_eq!((completing.joined(leader).generation, completing.joined(leader).members.len()), (2, 2));
    assert!(completing.joined(follower).members.is_empty());
    assert_eq!(completing.group.state(), State::CompletingRebalance);

    let mut stable = Bench::stable();
    let follower = stable.join(known("b"));
    assert_eq!(stable.joined(follower).generation, 2);
    assert_eq!(stable.group.state(), State::Stable);
    let leader = stable.join(known("a"));
    assert!(stable.waits(leader));
    assert_eq!(stable.group.state(), State::PreparingRebalance);
}

#[test]
fn join_of_a_known_member_with_a_new_subscription() {
    for mut bench in [Bench::preparing(), Bench::completing(), Bench::stable()] {
        let token = bench.join(changed(known("b")));
        assert!(bench.waits(token));
        assert_eq!(bench.group.state(), State::PreparingRebalance);
    }
}

#[test]
fn sync_in_every_state() {
    let mut empty = Bench::empty();
    let token = empty.sync("a", &[]);
    assert_eq!(empty.syncs[&token], Err(Code::UnknownMemberId));

    let mut preparing = Bench::preparing();
    let token = preparing.sync("a", &[]);
    assert_eq!(preparing.syncs[&token], Err(Code::RebalanceInProgress));

    let mut completing = Bench::completing();
    let follower = completing.sync("b", &[]);
    assert!(completing.waits(follower));
    let leader = completing.sync("a", &[("a", "0"), ("b", "1"), ("stranger", "2")]);
    assert!(completing.waits(leader), "not before it is durable");
    assert_eq!(completing.stores[0].1.members[1].assignment, Bytes::from_static(b"1"));
    completing.store(true);
    assert_eq!(completing.syncs[&follower].as_ref().unwrap().assignment, Bytes::from_static(b"1"));
    assert_eq!(completing.syncs[&leader].as_ref().unwrap().assignment, Bytes::from_static(b"0"));

    let mut stable = Bench::stable();
    let token = stable.sync("b", &[]);
    assert_eq!(stable.syncs[&token].as_ref().unwrap().assignment, Bytes::from_static(b"1"));
    let token = stable.sync_of("b", 1, &[]);
    assert_eq!(stable.syncs[&token], Err(Code::IllegalGeneration));
}

#[test]
fn sync_checks_the_protocol_where_it_is_given() {
    let mut bench = Bench::completing();
    for (kind, name, wrong) in [("connect", "range", true), ("consumer", "sticky", true), ("consumer", "range", false)]
    {
        bench.tokens += 1;
        let token = Token(bench.tokens);
        let request = SyncRequest {
            member_id: "b".to_owned(),
            instance_id: None,
            generation: 2,
            protocol_type: Some(kind.to_owned()),
            protocol: Some(name.to_owned()),
            assignments: Vec::new(),
        };
        bench.group.sync(bench.now, token, request);
        bench.collect();
        assert_eq!(bench.syncs.get(&token).cloned(), wrong.then_some(Err(Code::InconsistentGroupProtocol)));
    }
}

#[test]
fn an_assignment_that_cannot_be_stored_starts_over() {
    let mut bench = Bench::completing();
    let follower = bench.sync("b", &[]);
    let leader = bench.sync("a", &[("a", "0"), ("b", "1")]);
    bench.store(false);
    assert_eq!(bench.syncs[&leader], Err(Code::CoordinatorNotAvailable));
    assert_eq!(bench.syncs[&follower], Err(Code::CoordinatorNotAvailable));
    assert_eq!(bench.group.state(), State::PreparingRebalance);
}

#[test]
fn waiting_followers_hear_of_a_new_rebalance() {
    let mut bench = Bench::completing();
    let follower = bench.sync("b", &[]);
    bench.join(request("c"));
    assert_eq!(bench.syncs[&follower], Err(Code::RebalanceInProgress));
}

#[test]
fn heartbeat_in_every_state() {
    assert_eq!(Bench::empty().beat("a"), Err(Code::UnknownMemberId));
    assert_eq!(Bench::preparing().beat("a"), Err(Code::RebalanceInProgress));
    assert_eq!(Bench::completing().beat("a"), Ok(()));
    let mut stable = Bench::stable();
    assert_eq!(stable.beat("a"), Ok(()));
    assert_eq!(stable.beat("z"), Err(Code::UnknownMemberId));
    assert_eq!(stable.group.heartbeat(stable.now, "a", None, 1), Err(Code::IllegalGeneration));
}

#[test]
fn commit_in_every_state() {
    let mut empty = Bench::empty();
    assert_eq!(empty.commit("", -1), Ok(()));
    assert_eq!(empty.commit("a", 1), Err(Code::UnknownMemberId));
    assert_eq!(Bench::preparing().commit("a", 2), Ok(()));
    assert_eq!(Bench::completing().commit("a", 2), Err(Code::RebalanceInProgress));
    let mut stable = Bench::stable();
    assert_eq!(stable.commit("a", 2), Ok(()));
    assert_eq!(stable.commit("a", 1), Err(Code::IllegalGeneration));
    assert_eq!(stable.commit("", -1), Err(Code::UnknownMemberId));
    stable.leave("b").unwrap();
    assert_eq!(stable.commit("b", 2), Err(Code::UnknownMemberId), "a member that was removed must hear of it");
}

#[test]
fn leaving_in_every_state() {
    assert_eq!(Bench::empty().leave("a"), Err(Code::UnknownMemberId));

    let mut preparing = Bench::preparing();
    preparing.join(known("a"));
    preparing.leave("b").unwrap();
    assert_eq!(preparing.group.state(), State::CompletingRebalance, "it was the last one waited for");

    let mut completing = Bench::completing();
    completing.leave("b").unwrap();
    assert_eq!(completing.group.state(), State::PreparingRebalance);

    let mut stable = Bench::stable();
    stable.leave("b").unwrap();
    assert_eq!(stable.group.state(), State::PreparingRebalance);
    stable.leave("a").unwrap();
    assert_eq!(stable.group.state(), State::Empty);
    assert!(stable.stores.pop().is_some_and(|(_, stored)| stored.members.is_empty()), "an empty group is stored");
}

#[test]
fn a_dead_group_sends_everybody_away() {
    let mut bench = Bench::empty();
    bench.group.bury();
    let join = bench.join(request("a"));
    assert_eq!(bench.refused(join), Code::CoordinatorNotAvailable);
    let sync = bench.sync("a", &[]);
    assert_eq!(bench.syncs[&sync], Err(Code::CoordinatorNotAvailable));
    assert_eq!(bench.beat("a"), Err(Code::CoordinatorNotAvailable));
    assert_eq!(bench.commit("", -1), Err(Code::CoordinatorNotAvailable));
    assert_eq!(bench.leave("a"), Err(Code::CoordinatorNotAvailable));
}

#[test]
fn sessions_end_without_heartbeats() {
    let mut bench = Bench::stable();
    bench.pass(i64::from(SESSION_MS) - 1);
    bench.beat("a").unwrap();
    bench.pass(1);
    assert_eq!(bench.beat("b"), Err(Code::UnknownMemberId));
    assert_eq!(bench.group.state(), State::PreparingRebalance);
    assert_eq!(bench.beat("a"), Err(Code::RebalanceInProgress));
}

#[test]
fn who_does_not_rejoin_in_time_is_dropped() {
    let mut bench = Bench::preparing();
    let waiting = bench.join(known("a"));
    for _ in 0..12 {
        bench.pass(5_000);
        let _ = bench.beat("b");
    }
    let joined = bench.joined(waiting);
    assert_eq!((joined.generation, joined.leader.as_str(), joined.members.len()), (3, "a", 2));
}

#[test]
fn who_does_not_sync_in_time_is_dropped() {
    let mut bench = Bench::completing();
    let follower = bench.sync("b", &[]);
    for _ in 0..12 {
        bench.pass(5_000);
        let _ = bench.beat("a");
    }
    assert_eq!(bench.syncs[&follower], Err(Code::RebalanceInProgress));
    assert_eq!(bench.beat("a"), Err(Code::UnknownMemberId));
    let rejoined = bench.join(known("b"));
    assert_eq!(bench.joined(rejoined).leader, "b");
}

#[test]
fn the_first_join_waits_for_others_and_newcomers_extend_it() {
    let mut bench = Bench::new(Limits { initial_delay_ms: 3_000, ..LIMITS });
    let first = bench.join(request("a"));
    bench.pass(2_000);
    let second = bench.join(request("b"));
    bench.pass(1_000);
    assert!(bench.waits(first) && bench.waits(second));
    bench.pass(3_000);
    assert_eq!(bench.joined(first).members.len(), 2);
    assert_eq!(bench.joined(second).generation, 1);
}

#[test]
fn a_dynamic_newcomer_comes_back_with_its_id() {
    let mut bench = Bench::empty();
    let token = bench.join(JoinRequest { require_member_id: true, ..request("a") });
    assert_eq!(bench.joins[&token], Err(JoinRefusal { error: Code::MemberIdRequired, member_id: "a".to_owned() }));
    assert_eq!(bench.group.state(), State::Empty);
    assert!(!bench.group.is_vacant());
    let token = bench.join(known("a"));
    assert_eq!(bench.joined(token).generation, 1);

    let mut late = Bench::empty();
    late.join(JoinRequest { require_member_id: true, ..request("a") });
    late.pass(i64::from(SESSION_MS));
    assert!(late.group.is_vacant());
    let token = late.join(known("a"));
    assert_eq!(late.refused(token), Code::UnknownMemberId);

    let mut fixed = Bench::empty();
    let token = fixed.join(JoinRequest { require_member_id: true, ..of_instance("a", "i") });
    assert_eq!(fixed.joined(token).generation, 1, "a static member needs no second round");
}

#[test]
fn joins_that_cannot_be() {
    let cases = [
        (JoinRequest { session_timeout_ms: 5_999, ..request("x") }, Code::InvalidSessionTimeout),
        (JoinRequest { session_timeout_ms: 1_800_001, ..request("x") }, Code::InvalidSessionTimeout),
        (JoinRequest { protocol_type: "connect".to_owned(), ..request("x") }, Code::InconsistentGroupProtocol),
        (JoinRequest { protocols: Vec::new(), ..request("x") }, Code::InconsistentGroupProtocol),
        (
            JoinRequest { protocols: vec![("sticky".to_owned(), Bytes::new())], ..request("x") },
            Code::InconsistentGroupProtocol,
        ),
        (known("z"), Code::UnknownMemberId),
        (JoinRequest { instance_id: Some("nobody".to_owned()), ..known("a") }, Code::UnknownMemberId),
        (JoinRequest { client_id: "c".repeat(40_000), ..request("x") }, Code::InvalidRequest),
        (
            JoinRequest {
                protocols: vec![("range".to_owned(), Bytes::from(vec![0; GROUP_BYTES_MAX]))],
                ..request("x")
            },
            Code::GroupMaxSizeReached,
        ),
    ];
    for (request, code) in cases {
        let mut bench = Bench::stable();
        let token = bench.join(request);
        assert_eq!(bench.refused(token), code);
        assert_eq!(bench.group.state(), State::Stable);
    }
}

#[test]
fn a_full_group_takes_nobody() {
    let mut bench = Bench::new(Limits { max_size: 2, ..LIMITS });
    bench.join(request("a"));
    bench.join(JoinRequest { require_member_id: true, ..request("b") });
    let token = bench.join(request("c"));
    assert_eq!(bench.refused(token), Code::GroupMaxSizeReached, "a promised place is taken");
    bench.join(known("b"));
    let token = bench.join(known("a"));
    assert_eq!(bench.joined(token).members.len(), 2);
}

#[test]
fn the_protocol_most_members_like_wins() {
    let offers = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), Bytes::new())).collect::<Vec<_>>();
    let mut bench = Bench::new(Limits { initial_delay_ms: 10, ..LIMITS });
    bench.join(JoinRequest { protocols: offers(&["x", "range", "sticky"]), ..request("a") });
    bench.join(JoinRequest { protocols: offers(&["sticky", "range"]), ..request("b") });
    let token = bench.join(JoinRequest { protocols: offers(&["sticky", "range", "y"]), ..request("c") });
    bench.pass(10);
    bench.pass(10);
    assert_eq!(bench.joined(token).protocol, "sticky");
}

#[test]
fn the_leader_stays_and_another_follows_it() {
    let mut bench = Bench::stable();
    bench.join(request("0"));
    bench.join(known("b"));
    let leader = bench.join(known("a"));
    assert_eq!(bench.joined(leader).leader, "a");
    bench.leave("a").unwrap();
    bench.join(known("b"));
    let token = bench.join(known("0"));
    assert_eq!(bench.joined(token).leader, "0");
}

#[test]
fn a_static_member_comes_back_without_a_rebalance() {
    for can_skip_assignment in [false, true] {
        let mut bench = Bench::empty();
        bench.join(of_instance("a", "i"));
        bench.sync("a", &[("a", "0")]);
        bench.store(true);
        let token = bench.join(JoinRequest { can_skip_assignment, ..of_instance("b", "i") });
        assert!(bench.waits(token), "the new id is durable first");
        assert_eq!(bench.stores[0].1.members[0].member_id, "b");
        bench.store(true);
        let joined = bench.joined(token).clone();
        assert_eq!((joined.generation, joined.member_id.as_str()), (1, "b"));
        assert_eq!(joined.skip_assignment, can_skip_assignment);
        // Before version 9 the former leader id keeps the client from assigning.
        assert_eq!(
            (joined.leader.as_str(), joined.members.len()),
            if can_skip_assignment { ("b", 1) } else { ("a", 0) }
        );
        assert_eq!(bench.group.state(), State::Stable);
        let old = bench.group.heartbeat(bench.now, "a", Some("i"), 1);
        assert_eq!(old, Err(Code::FencedInstanceId));
        let sync = bench.sync("b", &[]);
        assert_eq!(bench.syncs[&sync].as_ref().unwrap().assignment, Bytes::from_static(b"0"));
    }
}

#[test]
fn static_members_leave_by_instance_and_are_fenced_by_it() {
    let mut bench = Bench::empty();
    bench.join(of_instance("a", "i"));
    let leaving =
        |member: &str, instance: &str| Leaving { member_id: member.to_owned(), instance_id: Some(instance.to_owned()) };
    let answers = bench.group.leave(bench.now, &[leaving("z", "i"), leaving("", "nobody"), leaving("", "i")]).unwrap();
    assert_eq!(answers, [Err(Code::FencedInstanceId), Err(Code::UnknownMemberId), Ok(())]);
    assert_eq!(bench.group.state(), State::Empty);
}

#[test]
fn an_absent_static_member_is_kept_until_its_session_ends() {
    let mut bench = Bench::empty();
    bench.join(JoinRequest { session_timeout_ms: 200_000, ..of_instance("a", "i") });
    let second = bench.join(request("b"));
    bench.pass(i64::from(REBALANCE_MS));
    let joined = bench.joined(second);
    assert_eq!((joined.leader.as_str(), joined.members.len()), ("b", 2));
    bench.sync("b", &[("b", "0"), ("a", "1")]);
    bench.store(true);
    for _ in 0..40 {
        bench.pass(5_000);
        let _ = bench.beat("b");
    }
    assert_eq!(bench.group.heartbeat(bench.now, "a", Some("i"), 2), Err(Code::UnknownMemberId));
}

#[test]
fn a_restored_group_goes_on_in_its_generation() {
    let mut bench = Bench::completing();
    bench.sync("a", &[("a", "0"), ("b", "1")]);
    let stored = bench.stores[0].1.clone();
    let mut restored = Bench::empty();
    restored.group = Group::restore(LIMITS, &stored, restored.now);
    assert_eq!(restored.group.state(), State::Stable);
    assert_eq!(restored.commit("b", 2), Ok(()));
    assert_eq!(restored.beat("a"), Ok(()));
    let sync = restored.sync("b", &[]);
    assert_eq!(restored.syncs[&sync].as_ref().unwrap().assignment, Bytes::from_static(b"1"));
    restored.pass(i64::from(SESSION_MS));
    assert_eq!(restored.group.state(), State::Empty);
}

#[test]
fn a_description_shows_subscriptions_only_when_stable() {
    let stable = Bench::stable().group.describe();
    assert_eq!((stable.state.as_str(), stable.protocol.as_str()), ("Stable", "range"));
    assert_eq!(stable.members[1].assignment, Bytes::from_static(b"1"));
    assert_eq!(stable.members[1].metadata, Bytes::from_static(b"topics"));
    let preparing = Bench::preparing().group.describe();
    assert_eq!((preparing.state.as_str(), preparing.protocol.as_str()), ("PreparingRebalance", ""));
    assert!(preparing.members.iter().all(|member| member.assignment.is_empty() && member.metadata.is_empty()));
}

#[test]
fn a_stopping_broker_answers_who_waits() {
    let mut bench = Bench::completing();
    let sync = bench.sync("b", &[]);
    bench.group.release_waiting(bench.now, Code::CoordinatorNotAvailable);
    bench.collect();
    assert_eq!(bench.syncs[&sync], Err(Code::CoordinatorNotAvailable));
}
