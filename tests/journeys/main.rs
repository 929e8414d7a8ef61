//! Whole-system journeys on a real Kubernetes: one file each, named by what a user gets.
//!
//! `make test` runs them inside our own node (`tests/cluster/node`). With `KUBECONFIG` and
//! `BAREKEY_IMAGE_LOADER` (a command that takes image files) they run on that cluster instead, and
//! what needs the inside of a node, or root on Debian where they have not that, is listed as not run there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a journey that cannot go on panics, and the harness says where"
)]

mod canary;
mod chart_fence;
mod chart_policies;
mod chart_postgres;
mod chart_release;
mod chart_rendered;
mod cluster;
mod documents;
mod harness;
mod injection_outages;
mod injection_refusals;
mod injection_setting;
mod injection_values;
mod kube_administration;
mod kube_certificates;
mod kube_deletion;
mod kube_identity;
mod kube_ownership;
mod kube_resources;
mod vault_alone;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::run(
        [
            chart_rendered::journeys(),
            chart_fence::journeys(),
            chart_policies::journeys(),
            chart_release::journeys(),
            chart_postgres::journeys(),
            cluster::journeys(),
            documents::journeys(),
            injection_values::journeys(),
            injection_refusals::journeys(),
            injection_outages::journeys(),
            kube_resources::journeys(),
            kube_ownership::journeys(),
            kube_deletion::journeys(),
            kube_identity::journeys(),
            kube_certificates::journeys(),
            kube_administration::journeys(),
            vault_alone::journeys(),
            canary::journeys(),
        ]
        .into_iter()
        .flatten()
        .collect(),
    )
}
