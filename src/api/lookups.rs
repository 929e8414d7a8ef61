//! Which credentials are looked up: how many at once, and none of an address that sent too many that were refused.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::error::{ApiError, Code};
use super::limits;
use crate::domain::shares::{self, Share, Shares};
use crate::vault::credentials::PresentedToken;

/// Counts refused credentials by address, and holds an address up that sends too many, one after the other or at once. A
/// credential that was recognised since the start is not held up by its neighbours' failures. A pod's is looked up anew each
/// time, so it takes its address's share all the same; a new one finds a small share where its neighbours failed.
pub(crate) struct Lookups {
    addresses: Failures,
    /// Those of IPv6 once more, so that going from address to address is no way around.
    networks: Failures,
    tokens: Shares,
    pods: Shares,
    /// Those of pods at an address that sent too many refused credentials.
    suspects: Shares,
    /// Keyed 64-bit hashes, made with a key of this process: good for being let past the limiter, never for being let in.
    recognised: RwLock<HashSet<u64>>,
    hasher: RandomState,
}

impl Lookups {
    /// With the limits of [`limits`].
    pub(crate) fn new() -> Self {
        Self {
            addresses: Failures::new(
                limits::FAILED_TOKENS_PER_SECOND,
                limits::FAILED_TOKENS_BURST,
            ),
            networks: Failures::new(
                limits::FAILED_TOKENS_NETWORK_PER_SECOND,
                limits::FAILED_TOKENS_NETWORK_BURST,
            ),
            tokens: Shares::new(limits::LOOKUPS),
            pods: Shares::new(limits::POD_LOOKUPS),
            suspects: Shares::new(limits::SUSPECT_LOOKUPS),
            recognised: RwLock::default(),
            hasher: RandomState::new(),
        }
    }

    /// Lets a credential be looked up, while what comes back is held; `None` is for an API token that was recognised before.
    ///
    /// # Errors
    /// A 429, when the address must wait or too many others of it are looked up.
    pub(crate) fn begin(
        &self,
        address: Option<IpAddr>,
        token: &PresentedToken,
    ) -> Result<Option<Share>, ApiError> {
        let known = self.knows(self.hasher.hash_one(token.reveal()));
        if known && token.is_api_token() {
            return Ok(None);
        }
        let Some(peer) = address else {
            return Ok(None);
        };
        let network = shares::network(peer).and_then(|network| self.networks.must_wait(network));
        let wait = self.addresses.must_wait(peer).max(network);
        let lookups = match wait {
            Some(wait) if token.is_api_token() => return Err(too_many(wait)),
            // Every new pod has a new token: it must not wait for what its neighbours send.
            Some(_) if !known => &self.suspects,
            _ if token.is_api_token() => &self.tokens,
            _ => &self.pods,
        };
        let lookup = lookups.take(address, 1).ok_or_else(|| {
            ApiError::new(
                Code::RateLimited,
                "too many credentials from this address are being looked up right now; try again",
            )
            .retry_after(limits::LOOKUPS_RETRY_SECONDS)
        })?;
        Ok(Some(lookup))
    }

    fn knows(&self, hash: u64) -> bool {
        self.recognised
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&hash)
    }

    /// Remembers a credential that was recognised.
    pub(crate) fn recognised(&self, token: &PresentedToken) {
        let hash = self.hasher.hash_one(token.reveal());
        if self.knows(hash) {
            return;
        }
        let mut recognised = self
            .recognised
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if recognised.len() >= limits::RECOGNISED_TOKENS_KEPT {
            recognised.clear();
        }
        recognised.insert(hash);
    }

    /// Counts a refused credential, which is no longer one that was recognised; `Some` when the address has sent too many
    /// and must wait so long.
    pub(crate) fn failed(
        &self,
        address: Option<IpAddr>,
        token: &PresentedToken,
    ) -> Option<Duration> {
        let hash = self.hasher.hash_one(token.reveal());
        if self.knows(hash) {
            self.recognised
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&hash);
        }
        let address = address?;
        let network = shares::network(address).and_then(|network| self.networks.count(network));
        self.addresses.count(address).max(network)
    }
}

/// Refused credentials of senders, each under one address.
struct Failures {
    limiter: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
    waiting: RwLock<HashMap<IpAddr, Instant>>,
    /// How many were counted since those that have been quiet were dropped.
    counted: AtomicUsize,
}

impl Failures {
    fn new(per_second: u32, burst: u32) -> Self {
        let one = NonZeroU32::MIN;
        let per_second = NonZeroU32::new(per_second).unwrap_or(one);
        let burst = NonZeroU32::new(burst).unwrap_or(one);
        Self {
            limiter: RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst)),
            clock: DefaultClock::default(),
            waiting: RwLock::default(),
            counted: AtomicUsize::new(0),
        }
    }

    /// How long a sender must wait before a credential of it is looked at; `None` for not at all.
    fn must_wait(&self, sender: IpAddr) -> Option<Duration> {
        let until = {
            let waiting = self.waiting.read().unwrap_or_else(PoisonError::into_inner);
            *waiting.get(&sender)?
        };
        until.checked_duration_since(Instant::now())
    }

    /// Counts one; `Some` when the sender has sent too many and must wait so long.
    fn count(&self, sender: IpAddr) -> Option<Duration> {
        if self.counted.fetch_add(1, Ordering::Relaxed) >= limits::FAILED_ADDRESSES_KEPT {
            self.forget_quiet();
        }
        let refused = self.limiter.check_key(&sender).err()?;
        let wait = refused.wait_time_from(self.clock.now());
        let mut waiting = self.waiting.write().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(sender, Instant::now() + wait);
        Some(wait)
    }

    /// Drops the counters that are as good as new. Looks at every one of them, so it is called once in many counts.
    fn forget_quiet(&self) {
        self.counted.store(0, Ordering::Relaxed);
        self.limiter.retain_recent();
        let now = Instant::now();
        let mut waiting = self.waiting.write().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, until| *until > now);
    }
}

/// The refusal of whoever must wait so long.
pub(crate) fn too_many(wait: Duration) -> ApiError {
    let seconds = u32::try_from(wait.as_secs())
        .unwrap_or(u32::MAX)
        .saturating_add(1);
    ApiError::new(
        Code::RateLimited,
        "too many refused credentials from this address; wait, then send one that is good",
    )
    .retry_after(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presented(text: &str) -> PresentedToken {
        PresentedToken::new(text.to_owned())
    }

    #[test]
    fn an_address_that_fails_too_often_waits_and_its_recognised_neighbour_does_not() {
        let lookups = Lookups::new();
        let address = Some("192.0.2.1".parse().unwrap());
        let (good, bad) = (presented("bk_api_good"), presented("bk_api_bad"));
        lookups.recognised(&good);
        for attempt in 0..limits::FAILED_TOKENS_BURST {
            assert_eq!(lookups.failed(address, &bad), None, "attempt {attempt}");
        }
        let waited = (0..limits::FAILED_TOKENS_BURST).find_map(|_| lookups.failed(address, &bad));
        assert!(waited.is_some());
        assert!(lookups.begin(address, &bad).is_err());
        assert!(lookups.begin(address, &good).is_ok());
        let other = Some("192.0.2.2".parse().unwrap());
        assert!(lookups.begin(other, &bad).is_ok());
        lookups.failed(address, &good);
        assert!(lookups.begin(address, &good).is_err(), "it was revoked");
    }

    #[test]
    fn credentials_that_are_sent_at_once_do_not_all_pass_before_the_first_is_counted() {
        let lookups = Lookups::new();
        let address = Some("192.0.2.1".parse().unwrap());
        let bad = presented("bk_api_bad");
        let mut under_way: Vec<_> = (0..limits::LOOKUPS.address)
            .map(|_| lookups.begin(address, &bad).unwrap())
            .collect();
        let refused = lookups.begin(address, &bad).err().unwrap();
        assert_eq!(refused.code(), Code::RateLimited);
        lookups.recognised(&presented("bk_api_good"));
        assert!(lookups.begin(address, &presented("bk_api_good")).is_ok());
        let other = Some("192.0.2.2".parse().unwrap());
        assert!(lookups.begin(other, &bad).is_ok());
        under_way.pop();
        assert!(lookups.begin(address, &bad).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_network_fail_each_for_itself_and_more_of_them_together() {
        let lookups = Lookups::new();
        let bad = presented("bk_api_bad");
        let pod = |number: u32| -> Option<IpAddr> {
            Some(format!("2001:db8:1:2::{number:x}").parse().unwrap())
        };
        let fails = |address| {
            (0..=limits::FAILED_TOKENS_BURST).any(|_| lookups.failed(address, &bad).is_some())
        };
        assert!(fails(pod(1)));
        assert!(lookups.begin(pod(1), &bad).is_err());
        assert!(lookups.begin(pod(2), &bad).is_ok(), "its neighbour");
        let together = limits::FAILED_TOKENS_NETWORK_BURST * 2;
        assert!((3..together).any(|number| lookups.failed(pod(number), &bad).is_some()));
        assert!(lookups.begin(pod(together), &bad).is_err());
        let elsewhere = Some("2001:db8:1:3::1".parse().unwrap());
        assert!(lookups.begin(elsewhere, &bad).is_ok());
    }

    #[test]
    fn addresses_that_fail_once_and_stay_quiet_are_forgotten() {
        let lookups = Failures::new(1000, 1);
        let address = |number: usize| IpAddr::from(u128::try_from(number).unwrap().to_be_bytes());
        for number in 0..limits::FAILED_ADDRESSES_KEPT {
            assert_eq!(lookups.count(address(number)), None);
        }
        std::thread::sleep(Duration::from_millis(20));
        let later = address(limits::FAILED_ADDRESSES_KEPT);
        lookups.count(later);
        assert!(lookups.count(later).is_some(), "it was counted");
        assert_eq!(lookups.limiter.len(), 1);
    }

    #[test]
    fn one_address_does_not_get_all_look_ups_of_pods_however_good_its_token_is() {
        let lookups = Lookups::new();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| Some(text.parse().unwrap()));
        let token = presented("a.pod.token");
        lookups.recognised(&token);
        let under_way: Vec<_> = (0..limits::POD_LOOKUPS.address)
            .map(|_| lookups.begin(one, &token).unwrap().unwrap())
            .collect();
        let refused = lookups.begin(one, &token).err().unwrap();
        assert_eq!(refused.code(), Code::RateLimited);
        assert!(lookups.begin(other, &token).is_ok());
        drop(under_way);
        assert!(lookups.begin(one, &token).is_ok());
    }
    #[test]
    fn a_new_pod_is_looked_up_behind_an_address_that_failed_too_often() {
        let lookups = Lookups::new();
        let address = Some("192.0.2.1".parse().unwrap());
        let invented = presented("an.invented.token");
        let waits = |_| lookups.failed(address, &invented).is_some();
        assert!((0..=limits::FAILED_TOKENS_BURST).any(waits));
        assert!(lookups.begin(address, &presented("bk_api_new")).is_err());
        let fresh = presented("a.fresh.token");
        let under_way: Vec<_> = (0..limits::SUSPECT_LOOKUPS.address)
            .map(|_| lookups.begin(address, &fresh).unwrap().unwrap())
            .collect();
        assert!(lookups.begin(address, &fresh).is_err());
        drop(under_way);
        assert!(lookups.begin(address, &fresh).is_ok());
    }
}
