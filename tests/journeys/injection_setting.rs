//! What the journeys of injection start from: a stage with one value, and pods that ask for it.

use serde_json::{Value, json};

use crate::harness::{Installation, Namespace, Organization, secret_text, sha256_hex};

/// Prints the SHA-256 of the value, and never the value.
pub(crate) const PRINT_HASH: &str = "printf %s \"$DATABASE_URL\" | sha256sum";

/// The stage `development` of the project `shop`, as `examples/first-value` declares it: the service account `shop` may read
/// all of it.
pub(crate) struct Setting {
    /// The organization.
    pub(crate) organization: Organization,
    /// What `DATABASE_URL` holds.
    value: String,
}

impl Setting {
    /// Makes all of it in a namespace.
    #[track_caller]
    pub(crate) fn make(namespace: &Namespace) -> Self {
        let installation = Installation::shared();
        let organization = installation.organization(namespace);
        namespace.apply_example("first-value/barekey.yaml");
        namespace.make_service_account("shop");
        namespace.wait_ready("bks/development");
        let setting = Self {
            organization,
            value: secret_text("value"),
        };
        setting.set("DATABASE_URL", &setting.value);
        setting
    }

    /// Writes another variable of the stage.
    #[track_caller]
    pub(crate) fn set(&self, name: &str, value: &str) {
        let api = Installation::shared().api();
        api.set(&self.organization, "shop", "development", name, value);
    }

    /// Asks the API for `DATABASE_URL`.
    #[track_caller]
    pub(crate) fn evaluate(&self) {
        let target =
            json!({"projectSlug": "shop", "stageSlug": "development", "name": "DATABASE_URL"});
        let api = Installation::shared().api();
        let request = api.post("/v1/env/evaluate");
        let request = request.bearer(&self.organization.owner).json(&target);
        assert!(request.send().ok()["value"] == self.value.as_str());
    }

    /// The SHA-256 of `DATABASE_URL`.
    pub(crate) fn hash(&self) -> String {
        sha256_hex(&self.value)
    }

    /// Whether a text holds `DATABASE_URL` as it is.
    pub(crate) fn leaks_into(&self, text: &str) -> bool {
        text.contains(&self.value)
    }

    /// Waits until a pod has ended well, and holds what it printed against the value.
    #[track_caller]
    pub(crate) fn printed_by(&self, namespace: &Namespace, pod: &str) {
        namespace.wait_phase(pod, "Succeeded");
        self.is_in(&namespace.logs(pod));
    }

    /// The first word of a text must be the SHA-256 of the value.
    #[track_caller]
    pub(crate) fn is_in(&self, printed: &str) {
        assert_eq!(
            printed.split_whitespace().next(),
            Some(self.hash().as_str())
        );
    }
}

/// A container that runs a script in a shell, and that Pod Security `restricted` lets through.
pub(crate) fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name, "image": "docker.io/library/busybox:stable",
        "command": ["/bin/sh", "-c"], "args": [script],
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    })
}

/// The spec of a pod with one such container, as the service account `shop`.
pub(crate) fn spec(script: &str) -> Value {
    json!({
        "serviceAccountName": "shop",
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container("app", script)],
    })
}

/// A pod with annotations.
pub(crate) fn pod(name: &str, annotations: &Value, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    })
}

/// A pod that asks for every variable of the stage.
pub(crate) fn asking(name: &str, script: &str) -> Value {
    pod(
        name,
        &json!({"barekey.dev/stage": "development"}),
        &spec(script),
    )
}
