//! What a pod asks for in its annotations.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::domain::names::{NamePattern, VariableName};
use crate::domain::reference::{StageReference, is_reserved_entry};

use super::pod;
use super::refusal::{Problem, Problems, shown};

/// Every annotation of ours starts so.
pub(super) const PREFIX: &str = "barekey.dev/";
/// Asks for injection.
pub(super) const STAGE: &str = "barekey.dev/stage";
/// Which variables.
pub(super) const VARIABLES: &str = "barekey.dev/variables";
/// Into which containers.
pub(super) const CONTAINERS: &str = "barekey.dev/containers";
/// How.
pub(super) const MODE: &str = "barekey.dev/mode";
/// Mark: the id of the stage.
pub(super) const INJECTED_STAGE: &str = "barekey.dev/injected-stage";
/// Mark: the stage's revision at admission.
pub(super) const INJECTED_REVISION: &str = "barekey.dev/injected-revision";
/// Mark: the id of the certificate authority that the pod trusts.
pub(super) const INJECTED_CA: &str = "barekey.dev/injected-ca";
/// Label: the pod was injected.
pub(super) const INJECTED: &str = "barekey.dev/injected";

/// The keys that ask for something in this version.
const ASKING: [&str; 4] = [STAGE, VARIABLES, CONTAINERS, MODE];
/// Keys that a later version knows.
const LATER: [&str; 3] = [
    "barekey.dev/path",
    "barekey.dev/on-change",
    "barekey.dev/seed",
];
/// Keys that the webhook writes.
pub(super) const MARKS: [&str; 3] = [INJECTED_STAGE, INJECTED_REVISION, INJECTED_CA];
/// Keys of ours that mean something elsewhere and nothing on a pod.
const ELSEWHERE: [&str; 1] = ["barekey.dev/confirm-delete"];
/// The most that our annotations may have together, keys and values: what the API server takes of all annotations.
const BYTES_MAX: usize = 256 * 1024;
/// The most items of one list.
const ITEMS_MAX: usize = 1024;
/// Modes of `barekey.dev/mode` that a later version knows.
const LATER_MODES: [&str; 3] = ["auto", "file", "envfile"];

/// What a pod asks for, read from its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wishes {
    /// The stage.
    pub(super) stage: StageReference,
    /// Which variables become environment variables; `None` for all.
    pub(super) variables: Option<BTreeSet<NamePattern>>,
    /// New name → name in the stage.
    pub(super) rename: BTreeMap<VariableName, VariableName>,
    /// The containers that are named; `None` for the default.
    pub(super) containers: Option<BTreeSet<String>>,
}

/// Reads the annotations of a pod; `None` when none of them asks for anything.
///
/// # Errors
/// Every problem that there is.
pub(super) fn read(pod: &Value) -> Result<Option<Wishes>, Problems> {
    let bytes = pod::annotations(pod)
        .filter(|(key, _)| key.starts_with(PREFIX))
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if bytes > BYTES_MAX {
        return Err(Problems::from(Problem::AnnotationsTooLong {
            bytes,
            bytes_max: BYTES_MAX,
        }));
    }
    let mut problems: Problems = pod::annotations(pod)
        .filter_map(|(key, _)| unknown(key))
        .collect();
    let Some(stage) = pod::annotation(pod, STAGE) else {
        problems.extend(
            [VARIABLES, CONTAINERS, MODE]
                .into_iter()
                .filter(|key| pod::annotation(pod, key).is_some())
                .map(|key| Problem::NoStage {
                    key: key.to_owned(),
                }),
        );
        return if problems.is_empty() {
            Ok(None)
        } else {
            Err(problems)
        };
    };

    let stage = keep(
        stage.trim().parse().map_err(Problem::StageName),
        &mut problems,
    );
    let selection = match pod::annotation(pod, VARIABLES).map(select) {
        None => Some((None, BTreeMap::new())),
        Some(Ok((variables, rename))) => Some((Some(variables), rename)),
        Some(Err(more)) => {
            problems.absorb(more);
            None
        }
    };
    let containers = match pod::annotation(pod, CONTAINERS) {
        None => Some(None),
        Some(text) => keep(named_containers(text), &mut problems).map(Some),
    };
    if let Some(problem) = pod::annotation(pod, MODE).and_then(refused_mode) {
        problems.push(problem);
    }

    match (stage, selection, containers) {
        (Some(stage), Some((variables, rename)), Some(containers)) if problems.is_empty() => {
            Ok(Some(Wishes {
                stage,
                variables,
                rename,
                containers,
            }))
        }
        _ => Err(problems),
    }
}

fn keep<T>(result: Result<T, Problem>, problems: &mut Problems) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

fn unknown(key: &str) -> Option<Problem> {
    let known = [ASKING.as_slice(), &MARKS, &ELSEWHERE];
    if !key.starts_with(PREFIX) || known.iter().any(|keys| keys.contains(&key)) {
        return None;
    }
    if LATER.contains(&key) {
        return Some(Problem::LaterAnnotation {
            key: key.to_owned(),
        });
    }
    let nearest = ASKING
        .into_iter()
        .min_by_key(|candidate| edits_between(key, candidate))
        .unwrap_or(STAGE);
    Some(Problem::UnknownAnnotation {
        key: shown(key),
        nearest,
    })
}

type Selection = (BTreeSet<NamePattern>, BTreeMap<VariableName, VariableName>);

/// Reads `barekey.dev/variables`.
fn select(text: &str) -> Result<Selection, Problems> {
    if let Some(problem) = too_many(VARIABLES, text) {
        return Err(Problems::from(problem));
    }
    let mut variables = BTreeSet::new();
    let mut rename = BTreeMap::new();
    let mut problems = Problems::default();
    for item in text.split(',').map(str::trim) {
        let bad = || Problem::VariableItem { item: shown(item) };
        if item.is_empty() {
            problems.push(Problem::EmptyItem {
                key: VARIABLES,
                default: "every variable that the service account may read",
            });
        } else if let Some((new, old)) = item.split_once('=') {
            match (
                new.trim().parse::<VariableName>(),
                old.trim().parse::<VariableName>(),
            ) {
                (Ok(new), Ok(old)) => {
                    if let Some(before) = rename.insert(new.clone(), old.clone())
                        && before != old
                    {
                        problems.push(Problem::SetTwice { name: new });
                    }
                }
                _ => problems.push(bad()),
            }
        } else {
            match item.parse::<NamePattern>() {
                Ok(pattern) => {
                    variables.insert(pattern);
                }
                Err(_) => problems.push(bad()),
            }
        }
    }
    for name in rename.keys() {
        if variables.contains(&NamePattern::Exact(name.clone())) {
            problems.push(Problem::SetTwice { name: name.clone() });
        }
    }
    let named = variables.iter().filter_map(|pattern| match pattern {
        NamePattern::Exact(name) => Some(name),
        NamePattern::Prefix(_) => None,
    });
    problems.extend(
        named
            .chain(rename.keys())
            .filter(|name| is_reserved_entry(name.as_str()))
            .map(|name| Problem::ReservedVariable { name: name.clone() }),
    );
    if problems.is_empty() {
        Ok((variables, rename))
    } else {
        Err(problems)
    }
}

fn too_many(key: &'static str, text: &str) -> Option<Problem> {
    let count = text.split(',').count();
    (count > ITEMS_MAX).then_some(Problem::TooMany {
        what: key,
        count,
        items: "items",
        count_max: ITEMS_MAX,
        instead: "name fewer, or leave the annotation out for all",
    })
}

fn named_containers(text: &str) -> Result<BTreeSet<String>, Problem> {
    if let Some(problem) = too_many(CONTAINERS, text) {
        return Err(problem);
    }
    text.split(',')
        .map(|item| match item.trim() {
            "" => Err(Problem::EmptyItem {
                key: CONTAINERS,
                default: "every container but known proxies",
            }),
            name => Ok(name.to_owned()),
        })
        .collect()
}

fn refused_mode(text: &str) -> Option<Problem> {
    let mode = text.trim();
    if mode == "wrap" {
        return None;
    }
    let later = mode.contains('=') || LATER_MODES.contains(&mode);
    Some(if later {
        Problem::LaterMode { mode: shown(mode) }
    } else {
        Problem::UnknownMode { mode: shown(mode) }
    })
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour to make one text from the other.
///
/// At most 64 characters of the first are looked at: what is longer is near to nothing.
fn edits_between(given: &str, wanted: &str) -> usize {
    let given: Vec<char> = given.chars().take(64).collect();
    let wanted: Vec<char> = wanted.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=wanted.len()).collect();
    for (row, letter) in given.iter().enumerate() {
        let mut this = vec![row + 1];
        for (column, other) in wanted.iter().enumerate() {
            let cost =
                |cells: &[usize], at: usize| cells.get(at).copied().unwrap_or(usize::MAX - 1);
            let mut best = (cost(&last, column) + usize::from(letter != other))
                .min(cost(&last, column + 1) + 1)
                .min(cost(&this, column) + 1);
            let swapped = row > 0
                && column > 0
                && given.get(row - 1) == Some(other)
                && wanted.get(column - 1) == Some(letter);
            if swapped {
                best = best.min(cost(&before_last, column - 1) + 1);
            }
            this.push(best);
        }
        before_last = std::mem::replace(&mut last, this);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(annotations: Value) -> Value {
        json!({"metadata": {"annotations": annotations}})
    }

    fn problems(annotations: Value) -> Vec<String> {
        read(&pod(annotations))
            .expect_err("it is refused")
            .told()
            .iter()
            .map(Problem::to_string)
            .collect()
    }

    #[test]
    fn a_pod_without_annotations_of_ours_asks_for_nothing() {
        for annotations in [json!(null), json!({}), json!({"example.com/stage": "x"})] {
            assert_eq!(read(&pod(annotations)), Ok(None));
        }
        assert_eq!(
            read(&pod(json!({"barekey.dev/confirm-delete": "x"}))),
            Ok(None)
        );
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_nearest_right_one() {
        for (key, nearest) in [
            ("barekey.dev/stag", "barekey.dev/stage"),
            ("barekey.dev/satge", "barekey.dev/stage"),
            ("barekey.dev/Stage", "barekey.dev/stage"),
            ("barekey.dev/variable", "barekey.dev/variables"),
            ("barekey.dev/container", "barekey.dev/containers"),
            ("barekey.dev/mod", "barekey.dev/mode"),
        ] {
            let told = problems(json!({key: "x", "barekey.dev/stage": "a"}));
            assert_eq!(
                told,
                [format!(
                    "annotation {key} is not known: did you mean {nearest}?"
                )]
            );
        }
    }

    #[test]
    fn keys_and_modes_of_later_versions_are_refused_as_such() {
        for key in ["path", "on-change", "seed"] {
            let told =
                problems(json!({format!("barekey.dev/{key}"): "x", "barekey.dev/stage": "a"}));
            assert!(told[0].contains("not in this version"), "{told:?}");
        }
        for mode in ["auto", "file", "envfile", "app=wrap"] {
            let told = problems(json!({"barekey.dev/mode": mode, "barekey.dev/stage": "a"}));
            assert!(told[0].contains("not in this version"), "{told:?}");
        }
        let told = problems(json!({"barekey.dev/mode": "warp", "barekey.dev/stage": "a"}));
        assert!(told[0].contains("is not known: write wrap"), "{told:?}");
    }

    #[test]
    fn other_keys_without_a_stage_are_refused() {
        let told = problems(json!({"barekey.dev/variables": "A"}));
        assert!(told[0].contains("add barekey.dev/stage"), "{told:?}");
    }

    #[test]
    fn variables_are_names_prefixes_and_renames() {
        let wishes = read(&pod(json!({
            "barekey.dev/stage": "backend/production",
            "barekey.dev/variables": "A, DB_*,URL=DATABASE_URL , A",
            "barekey.dev/containers": "app, init",
            "barekey.dev/mode": "wrap",
        })))
        .unwrap()
        .unwrap();
        assert_eq!(wishes.stage.to_string(), "backend/production");
        assert_eq!(
            wishes.variables,
            Some(["A", "DB_*"].iter().map(|it| it.parse().unwrap()).collect())
        );
        assert_eq!(
            wishes.rename,
            [("URL".parse().unwrap(), "DATABASE_URL".parse().unwrap())].into()
        );
        assert_eq!(
            wishes.containers,
            Some(["app".to_owned(), "init".to_owned()].into())
        );
    }

    #[test]
    fn renames_alone_leave_nothing_else_to_be_set() {
        let wishes = read(&pod(
            json!({"barekey.dev/stage": "a", "barekey.dev/variables": "B=C"}),
        ))
        .unwrap()
        .unwrap();
        assert_eq!(wishes.variables, Some(BTreeSet::new()));
    }

    #[test]
    fn what_is_no_list_of_variables_is_refused_by_item() {
        for (variables, told) in [
            ("", "empty item"),
            ("A,,B", "empty item"),
            ("A B", "\"A B\" is none of NAME"),
            ("*", "\"*\" is none of NAME"),
            ("A=", "\"A=\" is none of NAME"),
            ("A=B_*", "\"A=B_*\" is none of NAME"),
            ("A,A=B", "sets A twice"),
            ("A=B,A=C", "sets A twice"),
            ("BAREKEY_ALLOWANCE", "belongs to barekey's agent"),
            ("BAREKEY_AGENT_X=B", "belongs to barekey's agent"),
        ] {
            let all =
                problems(json!({"barekey.dev/stage": "a", "barekey.dev/variables": variables}));
            assert!(
                all.iter().any(|it| it.contains(told)),
                "{variables}: {all:?}"
            );
        }
    }

    #[test]
    fn a_stage_that_is_no_name_is_refused() {
        for stage in ["", "a/b/c", "A", "/a", "a/", "../a"] {
            let told = problems(json!({"barekey.dev/stage": stage}));
            assert!(
                told[0].starts_with("barekey.dev/stage is not"),
                "{stage}: {told:?}"
            );
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let told = problems(json!({
            "barekey.dev/stage": "A",
            "barekey.dev/variables": "1",
            "barekey.dev/containers": "",
            "barekey.dev/mode": "x",
            "barekey.dev/zzz": "x",
        }));
        assert_eq!(told.len(), 5, "{told:?}");
    }

    #[test]
    fn a_list_of_1024_items_is_read_and_a_longer_one_is_refused_at_once() {
        for (key, allowed) in [("variables", "A"), ("containers", "a")] {
            let list = |items: usize| {
                let text = vec![allowed; items].join(",");
                json!({"barekey.dev/stage": "a", format!("barekey.dev/{key}"): text})
            };
            assert!(read(&pod(list(1024))).is_ok(), "{key}");
            let told = problems(list(1025));
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(
                told[0].starts_with(&format!(
                    "barekey.dev/{key} has 1025 items, more than 1024: name fewer"
                )),
                "{told:?}"
            );
        }
    }

    #[test]
    fn annotations_of_ours_above_256_kib_are_refused_and_those_of_others_do_not_count() {
        let large = "x".repeat(BYTES_MAX);
        let told = problems(json!({"barekey.dev/stage": "a", "barekey.dev/mode": large}));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("more than 262144"), "{told:?}");
        let others = json!({"barekey.dev/stage": "a", "example.com/large": large});
        assert!(read(&pod(others)).is_ok());
    }

    #[test]
    fn edits_count_swapped_neighbours_once() {
        for (one, other, edits) in [
            ("", "ab", 2),
            ("ab", "", 2),
            ("ab", "ba", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edits_between(one, other), edits, "{one} {other}");
        }
    }
}
