//! What journeys are made of: programs, waiting, namespaces, the installation, HTTP.
#![allow(
    dead_code,
    unused_imports,
    reason = "a tool box: not every journey needs every tool"
)]

mod forward;
mod http;
mod installation;
mod journey;
mod namespace;
mod place;
mod program;
mod random;
mod wait;

pub(crate) use forward::Forward;
pub(crate) use http::{Request, Response};
pub(crate) use installation::{Installation, Organization};
pub(crate) use journey::{Journey, run};
pub(crate) use namespace::{Condition, Event, Namespace};
pub(crate) use place::{
    Place, barekey, barekey_operator, checkout, example, get, helm, kubectl, load,
};
pub(crate) use program::{Background, Output, Program};
pub(crate) use random::{random_bytes, random_text, secret_text, secrets, sha256_hex};
pub(crate) use wait::{LIMIT, eventually, wait_for};
