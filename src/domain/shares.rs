//! Shares of what is bounded: many peers take from one whole, and no one of them gets all of it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much there is, and how much of it one peer gets.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How much there is in all.
    pub all: usize,
    /// How much one address gets.
    pub address: usize,
    /// How much the addresses of one /64 network of IPv6 get together.
    pub network: usize,
    /// How much of all is kept for addresses that have little.
    pub kept: usize,
    /// How much is little.
    pub little: usize,
}

/// What peers share. Cheap to clone.
#[derive(Clone)]
pub struct Shares(Arc<Inner>);

struct Inner {
    bounds: Bounds,
    taken: Mutex<Taken>,
}

/// Who has how much; nobody has nothing.
#[derive(Default)]
struct Taken {
    all: usize,
    addresses: HashMap<IpAddr, usize>,
    networks: HashMap<IpAddr, usize>,
}

impl Shares {
    /// All of it, free.
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Inner {
            bounds,
            taken: Mutex::default(),
        }))
    }

    /// Takes so much for an address; `None` when it has its share, or others have the rest.
    ///
    /// Who has no address that is known is bound by what there is in all, without what is kept.
    pub fn take(&self, address: Option<IpAddr>, count: usize) -> Option<Share> {
        let mut share = Share {
            shares: self.clone(),
            address,
            count: 0,
        };
        share.grow(count).then_some(share)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What somebody took. It goes back when this is dropped.
pub struct Share {
    shares: Shares,
    address: Option<IpAddr>,
    count: usize,
}

impl Share {
    /// Takes more; without it, what was taken stays as it is.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        let bounds = self.shares.0.bounds;
        let mut taken = self.shares.taken();
        let with_more = |has: Option<&usize>| has.copied().unwrap_or(0).saturating_add(more);
        let network = self.address.and_then(network);
        let by_address = self.address.map(|it| with_more(taken.addresses.get(&it)));
        let by_network = network.map(|it| with_more(taken.networks.get(&it)));
        let all = with_more(Some(&taken.all));
        let kept = if by_address.is_some_and(|has| has <= bounds.little) {
            0
        } else {
            bounds.kept
        };
        if all > bounds.all.saturating_sub(kept)
            || by_address.is_some_and(|has| has > bounds.address)
            || by_network.is_some_and(|has| has > bounds.network)
        {
            return false;
        }
        taken.all = all;
        if let (Some(address), Some(has)) = (self.address, by_address) {
            taken.addresses.insert(address, has);
        }
        if let (Some(network), Some(has)) = (network, by_network) {
            taken.networks.insert(network, has);
        }
        self.count += more;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all = taken.all.saturating_sub(self.count);
        if let Some(address) = self.address {
            give_back(&mut taken.addresses, address, self.count);
            if let Some(network) = network(address) {
                give_back(&mut taken.networks, network, self.count);
            }
        }
    }
}

fn give_back(taken: &mut HashMap<IpAddr, usize>, whose: IpAddr, count: usize) {
    if let Some(has) = taken.get_mut(&whose) {
        *has = has.saturating_sub(count);
        if *has == 0 {
            taken.remove(&whose);
        }
    }
}

/// The /64 network of an address of IPv6, in which whoever has one address may have them all.
pub fn network(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(six) => {
            let network = six.to_bits() & !u128::from(u64::MAX);
            Some(IpAddr::V6(Ipv6Addr::from_bits(network)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        all: 10,
        address: 5,
        network: 7,
        kept: 2,
        little: 1,
    };

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn one_address_gets_its_share_and_the_others_the_rest() {
        let shares = Shares::new(BOUNDS);
        let one = shares.take(address("192.0.2.1"), 5).unwrap();
        assert!(shares.take(address("192.0.2.1"), 1).is_none());
        let other = shares.take(address("192.0.2.2"), 3).unwrap();
        drop(one);
        assert!(shares.take(address("192.0.2.1"), 5).is_some());
        drop(other);
        assert_eq!(shares.taken().all, 0);
        assert!(shares.taken().addresses.is_empty(), "nothing is left of it");
    }

    #[test]
    fn what_is_kept_goes_to_those_that_have_little() {
        let shares = Shares::new(BOUNDS);
        let _one = shares.take(address("192.0.2.1"), 5);
        let _two = shares.take(address("192.0.2.2"), 3);
        assert!(shares.take(address("192.0.2.2"), 1).is_none());
        assert!(shares.take(address("192.0.2.3"), 2).is_none());
        assert!(shares.take(None, 1).is_none());
        let last = ["192.0.2.3", "192.0.2.4"].map(|it| shares.take(address(it), 1));
        assert!(last.iter().all(Option::is_some));
        assert!(shares.take(address("192.0.2.5"), 1).is_none(), "all is all");
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_share_what_is_more_than_one_gets() {
        let shares = Shares::new(BOUNDS);
        let _one = shares.take(address("2001:db8:1:2::1"), 5).unwrap();
        let two = shares.take(address("2001:db8:1:2:ffff::9"), 2);
        assert!(shares.take(address("2001:db8:1:2::3"), 1).is_none());
        assert!(shares.take(address("2001:db8:1:3::1"), 1).is_some());
        drop(two);
        assert!(shares.take(address("2001:db8:1:2::3"), 2).is_some());
    }

    #[test]
    fn a_share_that_may_not_grow_stays_and_goes_back_whole() {
        let shares = Shares::new(BOUNDS);
        let mut share = shares.take(address("192.0.2.1"), 2).unwrap();
        assert!(share.grow(3));
        assert!(!share.grow(1));
        assert_eq!(shares.taken().all, 5);
        drop(share);
        assert_eq!(shares.taken().all, 0);
    }
}
