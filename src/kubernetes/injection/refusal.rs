//! Why a pod is refused: every problem at once, each with what would pass. Never a value.

use std::fmt;

use crate::domain::names::{NameError, Namespace, ObjectName, VariableName};

use super::pod::PodName;

/// How many problems one refusal tells.
const PROBLEMS_SHOWN_MAX: usize = 8;

/// A pod that is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The pod.
    pub(crate) pod: PodName,
    /// What is wrong with it; at least one.
    pub(crate) problems: Problems,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {}: ", self.pod)?;
        for (index, problem) in self.problems.told.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{problem}")?;
        }
        match self.problems.more {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// What is wrong with a pod. Keeps what a refusal tells and counts the rest, so that no pod makes a long list of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Problems {
    told: Vec<Problem>,
    more: usize,
}

impl Problems {
    /// One more.
    pub(crate) fn push(&mut self, problem: Problem) {
        if self.told.len() < PROBLEMS_SHOWN_MAX {
            self.told.push(problem);
        } else {
            self.more += 1;
        }
    }

    /// Those of another part of the pod.
    pub(crate) fn absorb(&mut self, others: Self) {
        self.more += others.more;
        self.extend(others.told);
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Those that are told.
    #[cfg(test)]
    pub(super) fn told(&self) -> &[Problem] {
        &self.told
    }
}

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        for problem in problems {
            self.push(problem);
        }
    }
}

impl FromIterator<Problem> for Problems {
    fn from_iter<I: IntoIterator<Item = Problem>>(problems: I) -> Self {
        let mut all = Self::default();
        all.extend(problems);
        all
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self::from_iter([problem])
    }
}

/// One thing that is wrong with a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// A key with our prefix that nobody knows.
    #[error("annotation {key} is not known: did you mean {nearest}?")]
    UnknownAnnotation {
        /// The key.
        key: String,
        /// The nearest key of this version.
        nearest: &'static str,
    },
    /// A key that a later version will know.
    #[error("annotation {key} is not in this version of barekey: remove it")]
    LaterAnnotation {
        /// The key.
        key: String,
    },
    /// Keys without the one that asks for injection.
    #[error(
        "annotation {key} says nothing without barekey.dev/stage: add barekey.dev/stage: [NAMESPACE/]NAME of a BarekeyStage, or remove it"
    )]
    NoStage {
        /// The key.
        key: String,
    },
    /// Annotations of ours that are longer than the API server lets any be.
    #[error(
        "the barekey.dev/ annotations have {bytes} bytes, more than {bytes_max}: list fewer names, or write PREFIX_* for many"
    )]
    AnnotationsTooLong {
        /// Their length, keys and values.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// More of something than is looked at.
    #[error("{what} has {count} {items}, more than {count_max}: {instead}")]
    TooMany {
        /// Where.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// Of what.
        items: &'static str,
        /// The limit.
        count_max: usize,
        /// What would pass.
        instead: &'static str,
    },
    /// What we would write is longer than the API server stores.
    #[error(
        "what is added to the containers would have more than {bytes_max} bytes: list fewer names in barekey.dev/variables, or fewer containers in barekey.dev/containers"
    )]
    PodTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// The stage is no name.
    #[error("barekey.dev/stage is not [NAMESPACE/]NAME of a BarekeyStage: {0}")]
    StageName(NameError),
    /// A list without items, or with an empty one.
    #[error(
        "{key} has an empty item: separate names by commas, or leave the annotation out for {default}"
    )]
    EmptyItem {
        /// The key.
        key: &'static str,
        /// What holds without the annotation.
        default: &'static str,
    },
    /// An item of `barekey.dev/variables` that is none.
    #[error("barekey.dev/variables: {item:?} is none of NAME, PREFIX_* and NEW=OLD")]
    VariableItem {
        /// The item, cut.
        item: String,
    },
    /// One name of the environment set from two variables.
    #[error("barekey.dev/variables sets {name} twice: keep one of them")]
    SetTwice {
        /// The name.
        name: VariableName,
    },
    /// A variable under a name that belongs to the agent.
    #[error(
        "barekey.dev/variables sets {name}, a name that belongs to barekey's agent: rename it with NEW={name}"
    )]
    ReservedVariable {
        /// The name.
        name: VariableName,
    },
    /// A mode of a later version.
    #[error(
        "barekey.dev/mode: {mode:?} is not in this version of barekey: write wrap, or leave the annotation out"
    )]
    LaterMode {
        /// The mode, cut.
        mode: String,
    },
    /// No mode at all.
    #[error("barekey.dev/mode: {mode:?} is not known: write wrap, or leave the annotation out")]
    UnknownMode {
        /// The mode, cut.
        mode: String,
    },
    /// A container that is named and not there.
    #[error("barekey.dev/containers names {name:?}, and the pod has {there}")]
    NoSuchContainer {
        /// The name, cut.
        name: String,
        /// The containers that there are.
        there: String,
    },
    /// Nothing to inject into.
    #[error(
        "every container is a known proxy, and no value would reach a program: name the container in barekey.dev/containers"
    )]
    NoContainer,
    /// A container whose program only its image knows.
    #[error(
        "container {container} has no command, and this version of barekey cannot learn the entrypoint of its image: set command to what the image runs (args stay as they are), or name the other containers in barekey.dev/containers"
    )]
    NoCommand {
        /// The container.
        container: String,
    },
    /// An entry that only the webhook writes.
    #[error(
        "container {container} sets {entry}, which only barekey's webhook writes: remove it, and annotate the pod with barekey.dev/stage"
    )]
    ReservedEntry {
        /// The container.
        container: String,
        /// The entry.
        entry: String,
    },
    /// Parts of an injected pod that do not fit together.
    #[error(
        "the pod copies parts of an injected one, and they do not fit together ({what}): remove {parts}"
    )]
    BrokenCopy {
        /// What does not fit.
        what: String,
        /// What is there of ours.
        parts: String,
    },
    /// Parts of an injected pod, and nothing that asks for injection.
    #[error(
        "the pod is a copy of an injected one without barekey.dev/stage: copy that annotation too, or remove {parts}"
    )]
    CopyWithoutStage {
        /// What is there of ours.
        parts: String,
    },
    /// A reference to no variable.
    #[error(
        "container {container}: the value of {entry} starts with barekey: and names no variable: write barekey:NAME with a name of the form [A-Za-z_][A-Za-z0-9_]*"
    )]
    BadReference {
        /// The container.
        container: String,
        /// The entry.
        entry: String,
    },
    /// A reference in a container that is left out.
    #[error(
        "container {container} refers to a variable in {entry} and is not injected: add it to barekey.dev/containers, or change the value"
    )]
    ReferenceLeftOut {
        /// The container.
        container: String,
        /// The entry.
        entry: String,
    },
    /// A service account that has no name of one.
    #[error("spec.serviceAccountName names no service account: {0}")]
    AccountName(NameError),
    /// A pod for Windows nodes.
    #[error(
        "the pod runs on Windows, where barekey has no agent: remove the barekey.dev/ annotations, or the choice of Windows"
    )]
    Windows,
    /// A volume or init container of one of our names.
    #[error("the pod has {what} named {name}, a name that belongs to barekey: rename it")]
    NameTaken {
        /// Which kind of thing.
        what: &'static str,
        /// The name.
        name: &'static str,
    },
    /// A mount where ours go.
    #[error("container {container} mounts {path}, which belongs to barekey: mount it elsewhere")]
    PathTaken {
        /// The container.
        container: String,
        /// The path.
        path: String,
    },
    /// An exec probe or hook that would not see the value it names.
    #[error(
        "container {container}: its {check} names {variable}, a variable that only the program itself has: let {check} ask the program (httpGet, tcpSocket, grpc, or a command without it)"
    )]
    Probe {
        /// The container.
        container: String,
        /// Which probe or hook.
        check: &'static str,
        /// The variable.
        variable: String,
    },
    /// An exec probe or hook that would not see a value, of a variable that the pod's spec does not ask for by name. It is not
    /// told which: whoever posts a review may have guessed many.
    #[error(
        "container {container}: its {check} names a variable of the stage, which only the program itself has: let {check} ask the program (httpGet, tcpSocket, grpc, or a command without it); `barekey env list` shows the names"
    )]
    ProbeOfStage {
        /// The container.
        container: String,
        /// Which probe or hook.
        check: &'static str,
    },
    /// An exec probe or hook that would see an entry of the pod as it was written, since the agent expands it.
    #[error(
        "container {container}: its {check} names {entry}, which refers by $(NAME) to what may be a value of the stage (a variable, or barekey:NAME in a ConfigMap or Secret), so that only the program itself has its value: let {check} ask the program (httpGet, tcpSocket, grpc, or a command without it), or, where it is the name of a variable, list in barekey.dev/variables what the container needs, without that name"
    )]
    ProbeOfEntry {
        /// The container.
        container: String,
        /// Which probe or hook.
        check: &'static str,
        /// The entry.
        entry: String,
    },
    /// An exec probe or hook, while nobody can say which variables there are.
    #[error(
        "container {container}: the vault does not answer right now, so nobody knows whether its {check} names a variable: try again, or list the names in barekey.dev/variables"
    )]
    ProbeUndecided {
        /// The container.
        container: String,
        /// Which probe or hook.
        check: &'static str,
    },
    /// What we would write is longer than a program's environment takes.
    #[error(
        "container {container}: {entry} would have {bytes} bytes, more than {bytes_max}: list fewer names in barekey.dev/variables, or set fewer entries"
    )]
    EntryTooLong {
        /// The container.
        container: String,
        /// The entry.
        entry: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The stage grants the account nothing, or is not there. One text for both, since an outsider may not know which.
    #[error(
        "no BarekeyStage {stage} grants the service account {account} of namespace {namespace} anything: check the name in barekey.dev/stage, and that spec.access of the stage lists this namespace and account"
    )]
    NoAccess {
        /// The stage, as `NAMESPACE/NAME`.
        stage: String,
        /// The service account.
        account: ObjectName,
        /// Its namespace.
        namespace: Namespace,
    },
    /// A variable that the account may not read. Told only to an account that the stage grants something.
    #[error(
        "BarekeyStage {stage} does not grant the service account {account} of namespace {namespace} the variable {variable}: add it to spec.access of the stage, or ask for others in barekey.dev/variables"
    )]
    VariableNotGranted {
        /// The stage, as `NAMESPACE/NAME`.
        stage: String,
        /// The service account.
        account: ObjectName,
        /// Its namespace.
        namespace: Namespace,
        /// The variable.
        variable: VariableName,
    },
    /// A stage that the controller has not made, or not made yet. Told only to an account that the stage grants something,
    /// and without its conditions: whoever posts a review may name any account.
    #[error(
        "BarekeyStage {namespace}/{name} is not Ready: wait until it is; kubectl describe -n {namespace} bks {name} says why"
    )]
    StageNotReady {
        /// The stage's namespace.
        namespace: Namespace,
        /// Its name.
        name: ObjectName,
    },
}

/// A text for a message: at most 64 characters of it.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
