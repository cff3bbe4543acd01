//! What time does to a group. The caller wakes it at [`Group::next_deadline_ms`] or later.

use super::{Group, Phase};

impl Group {
    /// The earliest moment at which time changes anything.
    pub fn next_deadline_ms(&self) -> Option<i64> {
        let phase = match self.phase {
            Phase::Preparing { deadline_ms, .. } => Some(deadline_ms),
            Phase::Completing { sync_deadline_ms } | Phase::Stable { sync_deadline_ms } => sync_deadline_ms,
            Phase::Empty | Phase::Dead => None,
        };
        let sessions = self.members.values().filter_map(|member| member.session_deadline_ms).min();
        let promises = self.pending.values().copied().min();
        [phase, sessions, promises].into_iter().flatten().min()
    }

    /// Lets everything happen that is due.
    pub fn on_tick(&mut self, now_ms: i64) {
        self.expire_sessions(now_ms);
        match self.phase {
            Phase::Preparing { deadline_ms, initial_left_ms } if deadline_ms <= now_ms => {
                self.join_deadline(now_ms, initial_left_ms);
            }
            Phase::Completing { sync_deadline_ms: Some(due) } | Phase::Stable { sync_deadline_ms: Some(due) }
                if due <= now_ms =>
            {
                self.sync_deadline(now_ms);
            }
            _ => {}
        }
    }

    fn expire_sessions(&mut self, now_ms: i64) {
        let promises = self.pending.len();
        self.pending.retain(|_, deadline| *deadline > now_ms);
        let expired: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.session_deadline_ms.is_some_and(|deadline| deadline <= now_ms))
            .map(|(id, _)| id.clone())
            .collect();
        for member_id in &expired {
            self.remove_member(now_ms, member_id);
        }
        if !expired.is_empty() {
            self.after_removal(now_ms);
        } else if promises > self.pending.len() {
            self.try_complete_join(now_ms);
        }
    }

    /// Members that were told their generation and never asked for their part are dropped.
    fn sync_deadline(&mut self, now_ms: i64) {
        let late: Vec<String> =
            self.members.iter().filter(|(_, member)| member.owes_sync).map(|(id, _)| id.clone()).collect();
        for member_id in &late {
            self.remove_member(now_ms, member_id);
        }
        if late.is_empty() {
            if let Phase::Completing { sync_deadline_ms } | Phase::Stable { sync_deadline_ms } = &mut self.phase {
                *sync_deadline_ms = None;
            }
        } else {
            self.prepare_rebalance(now_ms);
        }
    }
}
