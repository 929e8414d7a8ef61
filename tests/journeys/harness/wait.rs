//! The one way in which journeys wait: they look again, until what they wait for is there.

use std::panic::Location;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Long enough for anything that works, on a machine with a compiler on both cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Looks until `look` has an answer, for at most [`LIMIT`].
#[track_caller]
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    wait_for(what, LIMIT, look)
}

/// Looks until `look` has an answer. `Err` says what is seen instead, and becomes part of the failure after `limit`.
#[track_caller]
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    const PAUSE_MAX: Duration = Duration::from_millis(500);
    let place = Location::caller();
    let began = Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        match look() {
            Ok(answer) => return answer,
            Err(seen) if began.elapsed() > limit => {
                panic!(
                    "{place}: waited {} s for {what}, but: {seen}",
                    limit.as_secs()
                )
            }
            Err(_) => sleep(pause),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
