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
/// How often windows that are past are let go of at most, in milliseconds: it takes a look at all of them.
const SWEEP_INTERVAL_MS: i64 = 1000;
/// Of how many callers refusals are told apart.
const CALLERS_MAX: usize = 10_000;

/// Which caller's refusals, of which chain.
type Key = (Chain, &'static str, String);

/// The refusals of the callers of late, as far as their groups are durable.
#[derive(Default)]
pub(crate) struct Refusals {
    windows: HashMap<Key, Window>,
    /// When the first of those that are over is past; there is nothing due before.
    due_ms: Option<i64>,
    /// When windows that are past were last let go of.
    swept_ms: i64,
}

/// What one group comes to count. It is put in place when the group is durable, and forgotten when it is not.
#[derive(Default)]
pub(crate) struct Tally(HashMap<Key, Window>);

#[derive(Clone)]
struct Window {
    actor: Actor,
    since_ms: i64,
    recorded: u32,
    over: u64,
    /// How many of those stand in the count that this group records.
    counted: u64,
}

impl Window {
    fn past_ms(&self) -> i64 {
        self.since_ms.saturating_add(WINDOW_MS)
    }

    fn is_past(&self, now_ms: i64) -> bool {
        now_ms >= self.past_ms()
    }
}

impl Refusals {
    /// The counts that a group that begins now records, with its tally; `all` for those of windows that are not past yet too.
    pub(crate) fn begin(&self, now_ms: i64, all: bool) -> (Tally, Vec<(Chain, AuditEvent)>) {
        let mut tally = Tally::default();
        let mut due = Vec::new();
        if self.due_ms.is_none_or(|due_ms| now_ms < due_ms && !all) {
            return (tally, due);
        }
        for (key, window) in &self.windows {
            if window.over == 0 || !(all || window.is_past(now_ms)) {
                continue;
            }
            let actor = window.actor.clone();
            let over = window.over;
            let event = count_event(Action::RefusalsCounted, actor, Outcome::Refused, over);
            due.push((key.0.clone(), event));
            let mut window = window.clone();
            window.counted = over;
            tally.0.insert(key.clone(), window);
        }
        (tally, due)
    }

    /// Whether an event is recorded by itself; it is counted otherwise.
    pub(crate) fn admit(
        &self,
        tally: &mut Tally,
        chain: &Chain,
        event: &AuditEvent,
        now_ms: i64,
    ) -> bool {
        if event.outcome != Outcome::Refused || event.action.is_count() {
            return true;
        }
        let key_of = |actor: &Actor| (chain.clone(), actor.kind, actor.id.clone());
        let mut actor = event.actor.clone();
        let mut key = key_of(&actor);
        let is_known = |key: &Key| tally.0.contains_key(key) || self.windows.contains_key(key);
        if !is_known(&key) && self.windows.len() + tally.0.len() >= CALLERS_MAX {
            actor = nobody();
            key = key_of(&actor);
        }
        let before = self.windows.get(&key);
        let window = tally.0.entry(key).or_insert_with(|| {
            before.cloned().unwrap_or(Window {
                actor,
                since_ms: now_ms,
                recorded: 0,
                over: 0,
                counted: 0,
            })
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

    /// The group of a tally is durable: what it counted is, and the windows begin anew whose count it recorded.
    pub(crate) fn settle(&mut self, tally: Tally, now_ms: i64) {
        let mut recorded = false;
        for (key, mut window) in tally.0 {
            if window.counted > 0 {
                recorded = true;
                window.over -= window.counted;
                window.counted = 0;
                window.recorded = 0;
                window.since_ms = now_ms;
            }
            if window.over > 0 {
                let past_ms = window.past_ms();
                self.due_ms = Some(self.due_ms.map_or(past_ms, |due_ms| due_ms.min(past_ms)));
            }
            self.windows.insert(key, window);
        }
        if recorded {
            let over = self.windows.values().filter(|window| window.over > 0);
            self.due_ms = over.map(Window::past_ms).min();
        }
        if self.windows.len() >= CALLERS_MAX && now_ms >= self.swept_ms + SWEEP_INTERVAL_MS {
            self.swept_ms = now_ms;
            self.windows
                .retain(|_, window| window.over > 0 || !window.is_past(now_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::audit::{Origin, Source};

    fn refused(id: &str) -> AuditEvent {
        let actor = Actor {
            kind: "token",
            id: id.to_owned(),
            name: id.to_owned(),
        };
        AuditEvent {
            origin: Origin {
                source: Source::Api,
                ip: String::new(),
                user_agent: String::new(),
                request_id: String::new(),
            },
            ..count_event(Action::ReadRefused, actor, Outcome::Refused, 1)
        }
    }

    /// How many of `count` refusals are recorded one by one, with the counts that are due.
    fn group(
        refusals: &mut Refusals,
        id: &str,
        count: usize,
        now_ms: i64,
        durable: bool,
    ) -> (usize, Vec<String>) {
        let (mut tally, due) = refusals.begin(now_ms, false);
        let event = refused(id);
        let admitted = (0..count)
            .filter(|_| refusals.admit(&mut tally, &Chain::Installation, &event, now_ms))
            .count();
        if durable {
            refusals.settle(tally, now_ms);
        }
        (
            admitted,
            due.into_iter().map(|(_, event)| event.detail).collect(),
        )
    }

    #[test]
    fn a_group_that_was_taken_back_counts_nothing() {
        let mut refusals = Refusals::default();
        for _ in 0..3 {
            assert_eq!(group(&mut refusals, "a", 70, 0, false), (60, vec![]));
        }
        assert_eq!(group(&mut refusals, "a", 70, 0, true), (60, vec![]));
        let later = WINDOW_MS;
        for durable in [false, true] {
            let (_, due) = group(&mut refusals, "a", 0, later, durable);
            assert_eq!(due, ["count=10"]);
        }
        assert_eq!(group(&mut refusals, "a", 1, later, true), (1, vec![]));
    }

    #[test]
    fn what_comes_while_a_count_is_recorded_is_in_the_next_one() {
        let mut refusals = Refusals::default();
        group(&mut refusals, "a", 61, 0, true);
        let (admitted, due) = group(&mut refusals, "a", 2, WINDOW_MS, true);
        assert_eq!((admitted, due), (0, vec!["count=1".to_owned()]));
        let (_, due) = group(&mut refusals, "a", 0, 2 * WINDOW_MS, true);
        assert_eq!(due, ["count=2"]);
    }

    #[test]
    fn callers_beyond_those_that_are_told_apart_share_a_window() {
        let mut refusals = Refusals::default();
        for at in 0..CALLERS_MAX {
            group(&mut refusals, &at.to_string(), 1, 0, true);
        }
        assert_eq!(group(&mut refusals, "x", 59, 0, true).0, 59);
        assert_eq!(group(&mut refusals, "y", 59, 0, true).0, 1);
        // One who is known keeps a window of their own.
        assert_eq!(group(&mut refusals, "7", 59, 0, true).0, 59);
        assert_eq!(group(&mut refusals, "y", 59, WINDOW_MS, true).0, 0);
        assert_eq!(group(&mut refusals, "z", 59, 2 * WINDOW_MS, true).0, 59);
    }
}
