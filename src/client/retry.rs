//! When a call is made again: pauses that grow and differ between callers, within a time limit.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::Patience;

/// The pause after the first failure is at most this long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// No pause of our own choice is longer.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The tries of one call.
pub(super) struct Retry {
    deadline: Instant,
    tries_left: u32,
    pause_max: Duration,
}

impl Retry {
    pub(super) fn new(patience: Patience) -> Self {
        Self {
            deadline: Instant::now() + patience.total,
            tries_left: patience.tries_max.saturating_sub(1),
            pause_max: FIRST_PAUSE,
        }
    }

    /// When patience ends.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits before the next try: as long as the server asked, or a growing time of our own. `false`: no more tries.
    pub(super) async fn pause(&mut self, retry_after: Option<Duration>) -> bool {
        let Some(tries_left) = self.tries_left.checked_sub(1) else {
            return false;
        };
        self.tries_left = tries_left;
        let pause = pause(self.pause_max, retry_after, random_fraction());
        self.pause_max = (self.pause_max * 2).min(PAUSE_MAX);
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}

/// A pause of half to the whole of `pause_max`; or what the server asked for and up to half as much again, so that the
/// callers that it sent away together do not come back together.
fn pause(pause_max: Duration, retry_after: Option<Duration>, fraction: f64) -> Duration {
    match retry_after {
        Some(asked) => asked + asked.max(pause_max).mul_f64(0.5 * fraction),
        None => pause_max.mul_f64(0.5 + 0.5 * fraction),
    }
}

/// A random number from 0 to 1.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        // Without randomness callers are only less well spread.
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_between_half_and_the_whole_of_its_maximum() {
        let maximum = Duration::from_millis(200);
        assert_eq!(pause(maximum, None, 0.0), maximum / 2);
        assert_eq!(pause(maximum, None, 1.0), maximum);
    }

    #[test]
    fn a_pause_is_never_shorter_than_the_server_asks() {
        let asked = Duration::from_secs(4);
        assert_eq!(pause(FIRST_PAUSE, Some(asked), 0.0), asked);
        assert_eq!(pause(FIRST_PAUSE, Some(asked), 1.0), Duration::from_secs(6));
        assert_eq!(
            pause(FIRST_PAUSE, Some(Duration::ZERO), 1.0),
            FIRST_PAUSE / 2
        );
    }
}
