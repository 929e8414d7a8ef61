//! Keys.

/// The master key (KEK).
pub struct MasterKey(#[allow(dead_code)] zeroize::Zeroizing<[u8; 32]>);
