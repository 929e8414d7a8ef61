//! A namespace of a journey's own, and what one does in it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use serde_json::{Value, json};

use super::place::OURS;
use super::{Program, eventually, example, get, kubectl};

/// A namespace. It stays when the journey ends, for the last journeys to search.
pub(crate) struct Namespace {
    name: String,
}

/// A condition in a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// `True`, `False` or `Unknown`.
    pub(crate) status: String,
    /// The constant.
    pub(crate) reason: String,
    /// The sentence.
    pub(crate) message: String,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Kind and name of the object, as in `Pod/web`.
    pub(crate) about: String,
    /// The constant.
    pub(crate) reason: String,
    /// The sentence.
    pub(crate) message: String,
}

impl Namespace {
    /// Makes it, and waits until pods can be made in it.
    #[track_caller]
    pub(crate) fn make(name: &str) -> Self {
        let labels = json!({OURS: ""});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        kubectl(["apply", "-f", "-"])
            .stdin(namespace.to_string())
            .succeed();
        let namespace = Self {
            name: name.to_owned(),
        };
        eventually("the default service account", || {
            namespace
                .get("serviceaccount/default")
                .ok_or("there is none".to_owned())
        });
        namespace
    }

    /// Another one beside it, for journeys between two; its name is this one's with `-suffix`.
    #[track_caller]
    pub(crate) fn beside(&self, suffix: &str) -> Self {
        Self::make(&format!("{}-{suffix}", self.name))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// From now on enforces the Pod Security level `restricted`.
    #[track_caller]
    pub(crate) fn restrict(&self) {
        let label = "pod-security.kubernetes.io/enforce=restricted";
        kubectl(["label", "--overwrite", "namespace", &self.name, label]).succeed();
    }

    /// kubectl in this namespace.
    pub(crate) fn kubectl(&self, args: impl IntoIterator<Item: AsRef<std::ffi::OsStr>>) -> Program {
        kubectl(["--namespace", &self.name]).args(args)
    }

    /// Applies YAML or JSON; must be accepted.
    #[track_caller]
    pub(crate) fn apply(&self, manifest: impl Into<String>) -> String {
        self.kubectl(["apply", "-f", "-"])
            .stdin(manifest.into())
            .succeed()
    }

    /// Applies YAML or JSON; must be refused. Answers what the API server says.
    #[track_caller]
    pub(crate) fn refuse(&self, manifest: impl Into<String>) -> String {
        self.kubectl(["apply", "-f", "-"])
            .stdin(manifest.into())
            .fail()
            .stderr
    }

    /// Applies a file of `examples/` with this namespace's own organization in the place of `acme`.
    #[track_caller]
    pub(crate) fn apply_example(&self, path: &str) -> String {
        self.apply(self.example(path))
    }

    /// The text of a file of `examples/`, with this namespace's own organization in the place of `acme`.
    #[track_caller]
    pub(crate) fn example(&self, path: &str) -> String {
        example(path).replace(
            "organization: acme",
            &format!("organization: {}", self.name),
        )
    }

    /// An object as `kind/name`; `None` when it is not there.
    #[track_caller]
    pub(crate) fn get(&self, resource: &str) -> Option<Value> {
        get(["--namespace", &self.name, resource])
    }

    /// All objects of a kind.
    #[track_caller]
    pub(crate) fn list(&self, kind: &str) -> Vec<Value> {
        match get(["--namespace", &self.name, kind]).map(|mut list| list["items"].take()) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        }
    }

    /// Deletes an object (`kind/name`) and waits until it is gone.
    #[track_caller]
    pub(crate) fn delete(&self, resource: &str) {
        self.kubectl(["delete", "--ignore-not-found", "--wait", resource])
            .succeed();
    }

    /// Deletes a pod at once.
    #[track_caller]
    pub(crate) fn delete_pod_now(&self, name: &str) {
        self.kubectl([
            "delete",
            "pod",
            "--ignore-not-found",
            "--wait",
            "--grace-period=1",
            name,
        ])
        .succeed();
    }

    /// Makes a service account.
    #[track_caller]
    pub(crate) fn make_service_account(&self, name: &str) {
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.apply(account.to_string());
    }

    /// A condition of an object, once its controller has seen the object's newest generation.
    #[track_caller]
    pub(crate) fn condition(&self, resource: &str, kind: &str) -> Option<Condition> {
        condition(&self.get(resource)?, kind)
    }

    /// Waits until a condition of an object has a status and reason.
    #[track_caller]
    pub(crate) fn wait_condition(
        &self,
        resource: &str,
        kind: &str,
        status: &str,
        reason: &str,
    ) -> Condition {
        eventually(
            &format!("{resource} {kind}={status} for {reason}"),
            || match self.condition(resource, kind) {
                Some(condition) if condition.status == status && condition.reason == reason => {
                    Ok(condition)
                }
                other => Err(format!("{other:?}")),
            },
        )
    }

    /// Waits until an object is Ready, whatever the reason.
    #[track_caller]
    pub(crate) fn wait_ready(&self, resource: &str) {
        eventually(&format!("{resource} Ready"), || {
            match self.condition(resource, "Ready") {
                Some(condition) if condition.status == "True" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// Waits until a pod is in a phase (`Running`, `Succeeded`, `Failed`).
    #[track_caller]
    pub(crate) fn wait_phase(&self, pod: &str, phase: &str) -> Value {
        eventually(&format!("pod {pod} {phase}"), || {
            let found = self
                .get(&format!("pod/{pod}"))
                .ok_or("there is no such pod")?;
            if found["status"]["phase"] == phase {
                Ok(found)
            } else {
                Err(found["status"].to_string())
            }
        })
    }

    /// Waits until all containers of a pod are ready.
    #[track_caller]
    pub(crate) fn wait_pod(&self, pod: &str) {
        self.wait_ready(&format!("pod/{pod}"));
    }

    /// Waits until a workload (`deployment/web`) has rolled out.
    #[track_caller]
    pub(crate) fn wait_rollout(&self, workload: &str) {
        self.kubectl(["rollout", "status", "--timeout=150s", workload])
            .succeed();
    }

    /// A command in a pod's first container. It may print values: its output is not shown in failures.
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> Program {
        self.kubectl(["exec", "-i", pod, "--"])
            .args(command)
            .secret()
    }

    /// What a pod's first container logged.
    #[track_caller]
    pub(crate) fn logs(&self, pod: &str) -> String {
        self.kubectl(["logs", pod]).secret().succeed()
    }

    /// The SHA-256 that the pod of `examples/first-value` prints, once it is admitted.
    #[track_caller]
    pub(crate) fn value_in_a_pod(&self) -> String {
        self.delete_pod_now("shop");
        eventually("the pod to be admitted", || {
            let output = self
                .kubectl(["apply", "-f", "-"])
                .stdin(self.example("first-value/pod.yaml"))
                .output();
            output
                .status
                .success()
                .then_some(())
                .ok_or_else(|| output.to_string())
        });
        self.wait_phase("shop", "Succeeded");
        let printed = self.logs("shop");
        printed
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    /// All events of this namespace.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Event> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let event = |event: Value| Event {
            about: format!(
                "{}/{}",
                text(&event["regarding"]["kind"]),
                text(&event["regarding"]["name"])
            ),
            reason: text(&event["reason"]),
            message: text(&event["note"]),
        };
        self.list("events.v1.events.k8s.io")
            .into_iter()
            .map(event)
            .collect()
    }

    /// Waits for an event with all `words` in its reason and message.
    #[track_caller]
    pub(crate) fn wait_event(&self, words: &[&str]) -> Event {
        eventually(&format!("an event with {words:?}"), || {
            let events = self.events();
            let found = events.iter().find(|event| {
                let text = format!("{} {} {}", event.about, event.reason, event.message);
                words.iter().all(|word| text.contains(word))
            });
            found.cloned().ok_or_else(|| format!("{events:#?}"))
        })
    }

    /// A token of a service account, from the API server, bound to nothing.
    #[track_caller]
    pub(crate) fn make_token(&self, account: &str, audience: &str) -> String {
        let token = self
            .kubectl(["create", "token", account, "--audience", audience])
            .secret()
            .succeed();
        token.trim().to_owned()
    }
}

/// What a journey that failed leaves to look at.
impl Drop for Namespace {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        // A second panic here would end the whole run.
        let shown = catch_unwind(AssertUnwindSafe(|| {
            for what in ["pods", "barekeyprojects,barekeystages", "events"] {
                let found = self.kubectl(["get", what, "-o", "wide"]).output();
                eprintln!(
                    "---- {what} in {}\n{}{}",
                    self.name, found.stdout, found.stderr
                );
            }
        }));
        drop(shown);
    }
}

/// A condition in an object's status; none that is about an older generation.
pub(super) fn condition(object: &Value, kind: &str) -> Option<Condition> {
    let generation = object["metadata"]["generation"].as_i64();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == kind)?;
    let seen = found["observedGeneration"]
        .as_i64()
        .or(object["status"]["observedGeneration"].as_i64());
    if seen.is_some() && seen < generation {
        return None;
    }
    Some(Condition {
        status: text(&found["status"]),
        reason: text(&found["reason"]),
        message: text(&found["message"]),
    })
}
