//! Request and response bodies of the HTTP API, shared by server and client. Field names are the API's own, in camel case.
//!
//! Bodies with values wipe them when they are dropped, and none of them can be printed.

pub mod environment;
pub mod error;
pub mod management;
pub mod pod;
pub mod session;
