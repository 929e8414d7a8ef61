//! Turns at something of which little is done at once: whoever asks waits among their own kind first, who have a part of all
//! places, so that whoever else comes finds one.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many kinds are known before those that nobody asks for any more are forgotten.
const KINDS_KEPT: usize = 1024;

/// The places, of all and of each kind.
pub(super) struct Turns<K> {
    all: Arc<Semaphore>,
    /// How many places one kind has.
    own: u32,
    kinds: Mutex<HashMap<K, Weak<Semaphore>>>,
}

/// Held as long as a turn lasts.
#[derive(Debug)]
pub(super) struct Turn {
    _all: OwnedSemaphorePermit,
    _own: Option<OwnedSemaphorePermit>,
}

impl<K: Eq + Hash> Turns<K> {
    /// `all` places, `own` of which one kind may have.
    pub(super) fn new(all: u32, own: u32) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all as usize)),
            own,
            kinds: Mutex::default(),
        }
    }

    /// Waits for so many places: among its own kind first, of which it may want all, and then among all. What is of no kind
    /// waits among all only.
    ///
    /// `None` when there will be no more turns.
    pub(super) async fn take(&self, kind: Option<K>, places: u32) -> Option<Turn> {
        let own = match kind {
            Some(kind) => {
                let own = self.of(kind).acquire_many_owned(places.min(self.own));
                Some(own.await.ok()?)
            }
            None => None,
        };
        let all = Arc::clone(&self.all).acquire_many_owned(places).await;
        Some(Turn {
            _all: all.ok()?,
            _own: own,
        })
    }

    fn of(&self, kind: K) -> Arc<Semaphore> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = kinds.get(&kind).and_then(Weak::upgrade) {
            return own;
        }
        if kinds.len() >= KINDS_KEPT {
            kinds.retain(|_, own| own.strong_count() > 0);
        }
        let own = Arc::new(Semaphore::new(self.own as usize));
        kinds.insert(kind, Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn one_kind_waits_among_its_own_and_another_finds_a_place() {
        let turns = Turns::new(4, 2);
        let take = |kind| turns.take(Some(kind), 1).now_or_never().flatten();
        let first = [take("a"), take("a")];
        assert!(first.iter().all(Option::is_some));
        assert!(take("a").is_none());
        let second = [take("b"), take("b")];
        assert!(second.iter().all(Option::is_some));
        assert!(take("c").is_none(), "there are four in all");
        drop(first);
        assert!(take("c").is_some() && take("a").is_some());
    }

    #[test]
    fn those_that_wait_among_their_own_do_not_stand_before_others() {
        let turns = Turns::new(2, 1);
        let held = turns.take(Some("a"), 1).now_or_never();
        let mut waiting: Vec<_> = (0..100)
            .map(|_| Box::pin(turns.take(Some("a"), 1)))
            .collect();
        for wait in &mut waiting {
            assert!(wait.now_or_never().is_none());
        }
        assert!(turns.take(Some("b"), 1).now_or_never().is_some());
        drop(held);
        assert!(waiting.swap_remove(0).now_or_never().is_some());
    }

    #[test]
    fn kinds_that_nobody_asks_for_are_forgotten() {
        let turns = Turns::new(1, 1);
        for kind in 0..3 * KINDS_KEPT {
            assert!(turns.take(Some(kind), 1).now_or_never().is_some());
        }
        assert!(turns.kinds.lock().unwrap().len() <= KINDS_KEPT);
    }
}
