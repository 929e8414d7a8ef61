//! `barekey`: the command for people, and the agent in pods.

fn main() {}
