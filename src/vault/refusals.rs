//! How many refusals of one caller are recorded one by one. Whoever may do nothing is not to fill the database: what is over
//! is recorded as a count.

use std::collections::HashMap;

use super::counts::{count_event, nobody};
use super::records::Chain;
use crate::domain::access::Actor;
use crate::domain::audit::{Action, AuditEvent, Outcome};

/// How long a caller's refusals are counted together, in milliseconds.
pub(crate) const WINDOW_MS: i64 = 60_000;
/// How many refusals of one caller are recorded one by one in [`WINDOW_MS`].
pub(crate) const RECORDED_MAX: u32 = 60;
/// Of how many callers refusals are told apart.
const CALLERS_MAX: usize = 10_000;

/// The refusals of the callers of late.
#[derive(Default)]
pub(crate) struct Refusals(HashMap<(Chain, &'static str, String), Window>);

struct Window {
    actor: Actor,
    since_ms: i64,
    recorded: u32,
    over: u64,
    /// How many of those stand in the count that is being recorded.
    counted: u64,
}

impl Window {
    fn is_past(&self, now_ms: i64) -> bool {
        now_ms.saturating_sub(self.since_ms) >= WINDOW_MS
    }
}

impl Refusals {
    /// Whether an event is recorded by itself; it is counted otherwise.
    pub(crate) fn admit(&mut self, chain: &Chain, event: &AuditEvent, now_ms: i64) -> bool {
        if event.outcome != Outcome::Refused || event.action.is_count() {
            return true;
        }
        if self.0.len() >= CALLERS_MAX {
            self.0
                .retain(|_, window| window.over > 0 || !window.is_past(now_ms));
        }
        let mut actor = event.actor.clone();
        if self.0.len() >= CALLERS_MAX {
            actor = nobody();
        }
        let key = (chain.clone(), actor.kind, actor.id.clone());
        let window = self.0.entry(key).or_insert_with(|| Window {
            actor,
            since_ms: now_ms,
            recorded: 0,
            over: 0,
            counted: 0,
        });
        if window.over == 0 && window.is_past(now_ms) {
            window.since_ms = now_ms;
            window.recorded = 0;
        }
        if window.recorded < RECORDED_MAX {
            window.recorded += 1;
            true
        } else {
            window.over += 1;
            false
        }
    }

    /// The counts that are to be recorded now; `all` for those of windows that are not over yet too.
    pub(crate) fn due(&mut self, now_ms: i64, all: bool) -> Vec<(Chain, AuditEvent)> {
        let mut due = Vec::new();
        for ((chain, ..), window) in &mut self.0 {
            let is_due = window.over > 0 && (all || window.is_past(now_ms));
            window.counted = if is_due { window.over } else { 0 };
            if is_due {
                let actor = window.actor.clone();
                let event = count_event(
                    Action::RefusalsCounted,
                    actor,
                    Outcome::Refused,
                    window.over,
                );
                due.push((chain.clone(), event));
            }
        }
        due
    }

    /// What was due is recorded: the callers' next windows begin.
    pub(crate) fn settle(&mut self, now_ms: i64) {
        for window in self.0.values_mut().filter(|window| window.counted > 0) {
            window.over -= window.counted;
            window.counted = 0;
            window.recorded = 0;
            window.since_ms = now_ms;
        }
    }
}
