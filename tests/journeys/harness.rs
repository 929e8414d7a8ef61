//! What journeys are made of: programs, waiting, namespaces, the installation, HTTP.

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
pub(crate) use installation::{Installation, KEPT_LOGS, Organization, token};
pub(crate) use journey::{Journey, run};
pub(crate) use namespace::Namespace;
pub(crate) use place::{OURS, Place, barekey, checkout, example, get, helm, kubectl, load};
pub(crate) use program::{Background, Output, Program};
pub(crate) use random::{random_bytes, random_text, secret_text, secrets, sha256_hex};
pub(crate) use wait::{eventually, wait_for};
