//! Journeys, their three groups, and the run of them all.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

use libtest_mimic::{Arguments, Completion, Trial};

use super::{Installation, Namespace, Place};

/// How many shared journeys run at a time: they mostly wait for pods.
const SHARED_AT_ONCE: usize = 6;

/// One way through the system, as a user goes it.
pub(crate) struct Journey {
    name: &'static str,
    group: Group,
    needs_inside: bool,
    needs_root: bool,
    walk: Walk,
}

/// When a journey runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    /// Beside others, on the one installation that all share.
    Shared,
    /// Alone, since it changes the installation.
    Changing,
    /// After everything else.
    Last,
}

#[derive(Clone, Copy)]
enum Walk {
    InNamespace(fn(&Namespace)),
    Alone(fn()),
}

impl Journey {
    /// Runs beside others, in a namespace of its own.
    pub(crate) fn shared(name: &'static str, walk: fn(&Namespace)) -> Self {
        Self::new(name, Group::Shared, Walk::InNamespace(walk))
    }

    /// Runs beside others and needs no cluster, but what is on this machine.
    pub(crate) fn alone(name: &'static str, walk: fn()) -> Self {
        Self::new(name, Group::Shared, Walk::Alone(walk))
    }

    /// Runs when no other does: it restarts, upgrades or removes the installation, or the node's parts. It leaves the
    /// installation running.
    pub(crate) fn changing(name: &'static str, walk: fn(&Namespace)) -> Self {
        Self::new(name, Group::Changing, Walk::InNamespace(walk))
    }

    /// Runs after all others, which have left their traces.
    pub(crate) fn last(name: &'static str, walk: fn(&Namespace)) -> Self {
        Self::new(name, Group::Last, Walk::InNamespace(walk))
    }

    /// Needs what only the inside of our own node has: its files, keys and network.
    pub(crate) fn inside(self) -> Self {
        Self {
            needs_inside: true,
            ..self
        }
    }

    /// Mounts, becomes another user or starts Debian's PostgreSQL on this machine.
    pub(crate) fn by_root(self) -> Self {
        Self {
            needs_root: true,
            ..self
        }
    }

    fn new(name: &'static str, group: Group, walk: Walk) -> Self {
        Self {
            name,
            group,
            needs_inside: false,
            needs_root: false,
            walk,
        }
    }

    fn namespace(&self) -> Option<String> {
        matches!(self.walk, Walk::InNamespace(_)).then(|| namespace_of(self.name))
    }

    fn into_trial(self) -> Trial {
        let Self {
            name,
            needs_inside,
            needs_root,
            walk,
            ..
        } = self;
        Trial::ignorable_test(name, move || {
            if needs_inside && Place::get().node().is_none() {
                return Ok(Completion::ignored_with(
                    "not run here: needs the inside of our own node",
                ));
            }
            if needs_root && !Place::get().is_root_on_debian() {
                return Ok(Completion::ignored_with(
                    "not run here: needs root on Debian",
                ));
            }
            let began = Instant::now();
            match walk {
                Walk::InNamespace(walk) => walk(&Namespace::make(&namespace_of(name))),
                Walk::Alone(walk) => walk(),
            }
            println!("     {name} took {:.1} s", began.elapsed().as_secs_f32());
            Ok(Completion::Completed)
        })
    }
}

/// Runs the groups one after the other, whatever fails in one.
pub(crate) fn run(journeys: Vec<Journey>) -> ExitCode {
    let arguments = Arguments::from_args();
    if !arguments.list {
        Place::get();
    }
    let namespaces: Vec<_> = journeys.iter().filter_map(Journey::namespace).collect();
    let distinct: BTreeSet<_> = namespaces.iter().collect();
    assert_eq!(
        distinct.len(),
        namespaces.len(),
        "two journeys would share a namespace: {namespaces:?}"
    );
    Installation::speak_for(namespaces);

    let mut failed = false;
    let mut rest = journeys;
    for group in [Group::Shared, Group::Changing, Group::Last] {
        let (of_group, others): (Vec<Journey>, _) =
            rest.into_iter().partition(|journey| journey.group == group);
        rest = others;
        if of_group.is_empty() {
            continue;
        }
        let arguments = Arguments {
            test_threads: Some(match group {
                Group::Shared => arguments.test_threads.unwrap_or(SHARED_AT_ONCE),
                Group::Changing | Group::Last => 1,
            }),
            ..arguments.clone()
        };
        let trials: Vec<Journey> = of_group;
        failed |= libtest_mimic::run(
            &arguments,
            trials.into_iter().map(Journey::into_trial).collect(),
        )
        .has_failed();
    }
    if !arguments.list {
        Place::get().leave();
    }
    if failed {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}

/// The namespace of a journey: its name, as far as an organization's slug is long.
fn namespace_of(name: &str) -> String {
    const BYTES_MAX: usize = 48;
    let mut text = name.replace('_', "-");
    while text.len() > BYTES_MAX {
        text.truncate(text.rfind('-').unwrap_or(BYTES_MAX));
    }
    text
}
