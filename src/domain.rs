//! What barekey is about, without I/O, clock or randomness.

pub mod access;
pub mod audit;
pub mod causes;
pub mod declaration;
pub mod names;
pub mod operation;
pub mod plaintext;
pub mod reference;
pub mod shares;
pub mod variable;
