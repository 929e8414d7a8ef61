//! `barekey-operator`: the vault, the operator and the webhook.

fn main() {}
