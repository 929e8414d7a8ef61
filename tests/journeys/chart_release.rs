//! Installing, upgrading and uninstalling, in any order: nothing hangs, nothing is lost, nothing is left that blocks pods.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Installation, Journey, Namespace, Organization, Program, checkout, eventually, get, helm,
    kubectl, secret_text, sha256_hex,
};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared("a_second_release_is_refused", a_second_release_is_refused),
        Journey::changing(
            "values_outlive_a_release_and_are_found_by_one_of_another_name",
            values_outlive_a_release,
        ),
        Journey::changing(
            "definitions_applied_with_kubectl_first_are_left_as_they_are",
            definitions_applied_first,
        ),
        Journey::changing(
            "uninstalling_needs_neither_operator_nor_definitions",
            uninstalling_needs_nothing,
        ),
        Journey::changing(
            "a_namespace_deleted_before_the_release_blocks_no_pods_for_long",
            namespace_deleted_first,
        ),
        Journey::changing(
            "an_upgrade_refuses_annotated_pods_for_seconds_and_then_no_more",
            an_upgrade_refuses_for_seconds,
        ),
        Journey::changing(
            "the_operators_own_namespace_may_enforce_restricted",
            the_operators_namespace_may_be_restricted,
        ),
        Journey::last(
            "every_secret_of_the_cluster_is_somebody_elses",
            every_secret_is_somebody_elses,
        ),
    ]
}

const KINDS: [&str; 2] = ["barekeyprojects.barekey.dev", "barekeystages.barekey.dev"];

fn a_second_release_is_refused(namespace: &Namespace) {
    Installation::shared();
    let refusal = helm(["install", "second", "--namespace", namespace.name()])
        .args(["--set", "masterKey.secret.name=key"])
        .args([checkout().join("charts/barekey")])
        .fail();
    assert!(
        refusal
            .stderr
            .contains("release barekey in namespace barekey is installed here already"),
        "{refusal}"
    );
    helm(["status", "second", "--namespace", namespace.name()]).fail();
}

fn values_outlive_a_release(namespace: &Namespace) {
    let installation = Installation::shared();
    let (organization, value) = first_value(installation, namespace);
    assert_eq!(namespace.value_in_a_pod(), sha256_hex(&value));
    // One that holds a finalizer.
    namespace.apply(
        json!({"apiVersion": "barekey.dev/v1alpha1", "kind": "BarekeyStage", "metadata": {"name": "staging"},
            "spec": {"project": "shop", "deletionPolicy": "Delete"}})
        .to_string(),
    );
    eventually("the finalizer", || {
        let stage = namespace.get("barekeystage/staging").ok_or("no stage")?;
        let finalizers = stage["metadata"]["finalizers"].to_string();
        if finalizers.contains("barekey.dev/cleanup") {
            Ok(())
        } else {
            Err(finalizers)
        }
    });

    installation.uninstall();
    nothing_is_left_in_the_way(namespace);
    // Nobody is there to take a finalizer away, and nobody has to.
    namespace.delete("barekeystage/staging");
    assert!(namespace.get("barekeystage/development").is_some());

    let other = installation.named("another-name");
    other.install(&json!({}));
    let notes = helm(["get", "notes", "another-name", "-n", "barekey"]).succeed();
    for kind in KINDS {
        assert!(
            notes.contains(&format!("definition {kind} was there before")),
            "{notes}"
        );
    }
    namespace.wait_ready("barekeystage/development");
    assert_eq!(namespace.value_in_a_pod(), sha256_hex(&value));
    let api = other.api();
    let again = api
        .barekey(&organization.owner, &["env", "get", "DATABASE_URL"])
        .env("BAREKEY_ORG", &organization.slug)
        .env("BAREKEY_PROJECT", "shop")
        .env("BAREKEY_STAGE", "development")
        .secret()
        .succeed();
    assert_eq!(sha256_hex(again.trim_end_matches('\n')), sha256_hex(&value));
    drop(api);

    // What the notes say makes the definitions the release's own.
    for kind in KINDS {
        kubectl([
            "label",
            "--overwrite",
            "crd",
            kind,
            "app.kubernetes.io/managed-by=Helm",
        ])
        .succeed();
        kubectl([
            "annotate",
            "--overwrite",
            "crd",
            kind,
            "meta.helm.sh/release-name=another-name",
        ])
        .args(["meta.helm.sh/release-namespace=barekey"])
        .succeed();
    }
    other.install(&json!({}));
    let manifest = helm(["get", "manifest", "another-name", "-n", "barekey"]).succeed();
    assert_eq!(
        manifest.matches("kind: CustomResourceDefinition").count(),
        2
    );
    other.uninstall();
    for kind in KINDS {
        assert!(get(["crd", kind]).is_some(), "{kind} is kept");
    }
    installation.install(&json!({}));
    namespace.wait_ready("barekeystage/development");
}

fn definitions_applied_first(namespace: &Namespace) {
    let installation = Installation::shared();
    installation.uninstall();
    for kind in KINDS {
        kubectl(["delete", "--wait", "--timeout=60s", "crd", kind]).succeed();
    }
    kubectl(["apply", "-f"])
        .args([checkout().join("crds")])
        .succeed();
    for kind in KINDS {
        kubectl([
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            kind,
        ])
        .succeed();
    }
    // Resources of ours that were there before the operator.
    namespace.apply_example("first-value/barekey.yaml");

    installation.install(&json!({}));
    installation.organization(namespace);
    namespace.wait_ready("barekeyproject/shop");
    namespace.wait_ready("barekeystage/development");
    for kind in KINDS {
        let definition = get(["crd", kind]).expect("it was applied");
        let owner = &definition["metadata"]["annotations"]["meta.helm.sh/release-name"];
        assert_eq!(*owner, Value::Null, "{kind} is not Helm's");
    }
    installation.install(&json!({}));
    // And from here on without: nothing of the chart speaks of them.
    installation.install(&json!({"crds": {"install": false}}));
    assert!(get(["crd", KINDS[0]]).is_some());
    installation.install(&json!({}));
}

fn uninstalling_needs_nothing(namespace: &Namespace) {
    let installation = Installation::shared();
    first_value(installation, namespace);
    namespace
        .kubectl(["patch", "barekeystage/development", "--type=merge", "-p"])
        .args([r#"{"spec":{"deletionPolicy":"Delete"}}"#])
        .succeed();
    eventually("the finalizer", || {
        let stage = namespace
            .get("barekeystage/development")
            .ok_or("no stage")?;
        let finalizers = stage["metadata"]["finalizers"].to_string();
        if finalizers.contains("barekey.dev/cleanup") {
            Ok(())
        } else {
            Err(finalizers)
        }
    });
    installation.stop();
    installation.uninstall();
    nothing_is_left_in_the_way(namespace);
    namespace.delete("barekeystage/development");
    namespace.delete("barekeyproject/shop");

    // Again, and this time the definitions are gone as well.
    installation.install(&json!({}));
    for kind in KINDS {
        kubectl(["delete", "--wait", "--timeout=60s", "crd", kind]).succeed();
    }
    installation.uninstall();
    nothing_is_left_in_the_way(namespace);
    installation.install(&json!({}));
}

fn namespace_deleted_first(namespace: &Namespace) {
    let installation = Installation::shared();
    namespace.make_service_account("shop");
    namespace.restrict();
    delete_the_release_by_its_namespace(installation);
    namespace.refuse(annotated().to_string());
    // The same name in the same namespace takes over what is left.
    installation.make_anew();
    let (_, value) = first_value(installation, namespace);
    assert_eq!(namespace.value_in_a_pod(), sha256_hex(&value));

    // And another one is told what to do first.
    delete_the_release_by_its_namespace(installation);
    let refusal = helm(["install", "second", "--namespace", namespace.name()])
        .args(["--set", "masterKey.secret.name=key"])
        .args([checkout().join("charts/barekey")])
        .fail();
    let told = "Release barekey is gone from namespace barekey";
    assert!(refusal.stderr.contains(told), "{refusal}");
    let mut lines = refusal.stderr.lines().map(str::trim);
    let remove = lines.find(|line| line.starts_with("kubectl delete "));
    let remove = remove.expect("a command");
    Program::new("sh").args(["-c", remove]).succeed();
    nothing_is_left_in_the_way(namespace);
    installation.make_anew();
}

#[track_caller]
fn delete_the_release_by_its_namespace(installation: &Installation) {
    kubectl(["delete", "namespace", "--wait", installation.namespace()]).succeed();
    let answer = installation.helm_uninstall().fail();
    assert!(answer.stderr.contains("not found"), "{answer}");
}

fn an_upgrade_refuses_for_seconds(namespace: &Namespace) {
    let installation = Installation::shared();
    let (_, value) = first_value(installation, namespace);
    namespace.make_service_account("shop");
    let probe = || {
        let asked = Instant::now();
        let output = namespace
            .kubectl([
                "create",
                "--dry-run=server",
                "--request-timeout=1s",
                "-f",
                "-",
            ])
            .stdin(annotated().to_string())
            .output();
        (asked, output.status.success())
    };
    assert!(probe().1, "an annotated pod is admitted before");

    let mut answers = Vec::new();
    thread::scope(|scope| {
        let more = json!({"podAnnotations": {"example.com/upgrade": "1"}});
        let upgrade = scope.spawn(move || installation.install(&more));
        while !upgrade.is_finished() {
            answers.push(probe());
        }
        upgrade.join().expect("the upgrade goes through");
    });
    answers.push(eventually("an annotated pod after the upgrade", || {
        let (asked, admitted) = probe();
        if admitted {
            Ok((asked, admitted))
        } else {
            Err("refused".to_owned())
        }
    }));
    // From the first question that was refused to the next that was not.
    let mut longest = Duration::ZERO;
    let mut since = None;
    for (asked, admitted) in &answers {
        match (since, admitted) {
            (None, false) => since = Some(*asked),
            (Some(first), true) => {
                longest = longest.max(asked.duration_since(first));
                since = None;
            }
            _ => {}
        }
    }
    let refused = answers.iter().filter(|(_, admitted)| !admitted).count();
    println!(
        "     an upgrade refused annotated pods for {:.1} s ({refused} of {} asked)",
        longest.as_secs_f32(),
        answers.len()
    );
    // Two to five seconds on two idle cores.
    assert!(longest < Duration::from_secs(20), "{longest:?}");
    assert_eq!(namespace.value_in_a_pod(), sha256_hex(&value));
    installation.install(&json!({}));
}

fn the_operators_namespace_may_be_restricted(_: &Namespace) {
    let installation = Installation::shared();
    let label = |value: &str| {
        kubectl([
            "label",
            "--overwrite",
            "namespace",
            installation.namespace(),
        ])
        .args([format!("pod-security.kubernetes.io/enforce{value}")])
        .succeed();
    };
    label("=restricted");
    installation.restart();
    // The hook's pod as well.
    installation.uninstall();
    installation.install(&json!({}));
    label("-");
}

fn every_secret_is_somebody_elses(_: &Namespace) {
    let installation = Installation::shared();
    let list = get(["secrets", "--all-namespaces", "--show-managed-fields"]).expect("a list");
    let secrets = list["items"].as_array().expect("a list");
    let mut kinds = Vec::new();
    for secret in secrets {
        let name = format!(
            "{}/{}",
            secret["metadata"]["namespace"], secret["metadata"]["name"]
        );
        let fields = secret["metadata"]["managedFields"].as_array();
        let writers: Vec<_> = fields
            .into_iter()
            .flatten()
            .map(|field| field["manager"].as_str().unwrap_or_default())
            .collect();
        assert!(!writers.is_empty(), "{name} does not say who wrote it");
        let kind = secret["type"].as_str().unwrap_or_default();
        // Helm writes its records, and what a chart renders as well.
        let known = |writer: &&str| match *writer {
            "helm" | "Helm" => kind == "helm.sh/release.v1",
            other => other.starts_with("kubectl"),
        };
        assert!(
            writers.iter().all(known),
            "{name}, of type {kind}, was written by {writers:?}"
        );
        kinds.push(kind);
    }
    // It would find nothing if there were nothing.
    assert!(kinds.contains(&"helm.sh/release.v1"), "{kinds:?}");
    assert!(kinds.contains(&"Opaque"), "{kinds:?}");
    // Helm keeps what was rendered; the master key is not in it.
    let manifest = helm(["get", "all", "barekey", "-n", "barekey"])
        .secret()
        .succeed();
    assert!(manifest.contains("barekey-master-key"));
    assert!(!manifest.contains(installation.master_key()));
}

// ---- steps ---------------------------------------------------------------------------------------------------------

/// Goes the way of `examples/first-value`; the value is random.
#[track_caller]
fn first_value(installation: &Installation, namespace: &Namespace) -> (Organization, String) {
    let organization = installation.organization(namespace);
    namespace.restrict();
    namespace.apply_example("first-value/barekey.yaml");
    namespace.wait_ready("barekeyproject/shop");
    namespace.wait_ready("barekeystage/development");
    let value = secret_text("value");
    installation
        .api()
        .set(&organization, "shop", "development", "DATABASE_URL", &value);
    (organization, value)
}

/// Pods are created as if nobody had ever been here, and nothing of the release or its hook is there.
#[track_caller]
fn nothing_is_left_in_the_way(namespace: &Namespace) {
    namespace.make_service_account("shop");
    for resource in [
        "mutatingwebhookconfiguration/00-barekey",
        "validatingadmissionpolicy/barekey-injected",
        "validatingadmissionpolicy/barekey-exempt",
        "validatingadmissionpolicy/barekey-operator-fence",
        "validatingadmissionpolicy/barekey-operator-resources",
        "validatingadmissionpolicybinding/barekey-injected",
        "validatingadmissionpolicybinding/barekey-exempt",
        "validatingadmissionpolicybinding/barekey-operator-fence",
        "validatingadmissionpolicybinding/barekey-operator-resources",
        "clusterrole/barekey",
        "clusterrole/barekey-uninstall",
        "clusterrolebinding/barekey",
        "clusterrolebinding/barekey-uninstall",
    ] {
        assert!(get([resource]).is_none(), "{resource} is left");
    }
    eventually("an empty namespace", || {
        let left = kubectl([
            "get",
            "pods,jobs,statefulsets,services,serviceaccounts,roles,rolebindings,leases",
            "-n",
            "barekey",
        ])
        .args(["-l", "app.kubernetes.io/name=barekey", "-o", "name"])
        .succeed();
        if left.trim().is_empty() {
            Ok(())
        } else {
            Err(left)
        }
    });
    eventually("an annotated pod that is admitted as it is", || {
        let output = namespace
            .kubectl(["create", "--dry-run=server", "-o", "json", "-f", "-"])
            .stdin(annotated().to_string())
            .output();
        if output.status.success() && !output.stdout.contains("BAREKEY_ALLOWANCE") {
            Ok(())
        } else {
            Err(output.to_string())
        }
    });
}

/// A pod that asks for the example's stage, as an account that may read it.
fn annotated() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "late", "annotations": {"barekey.dev/stage": "development"}},
        "spec": {
            "serviceAccountName": "shop",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "main", "image": "docker.io/library/busybox:stable", "command": ["true"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}})
}
