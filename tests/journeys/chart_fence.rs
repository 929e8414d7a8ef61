//! The fence of the operator: what its own token may do, and what the API server's policies keep it from.

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::chart_policies::plain;
use crate::harness::{Installation, Journey, Namespace, Program, kubectl};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared(
            "the_operators_token_gains_nothing_else",
            the_operators_token_gains_nothing_else,
        ),
        Journey::shared(
            "of_the_webhook_configuration_the_operator_changes_the_ca_alone",
            the_operator_changes_the_ca_alone,
        ),
    ]
}

const CONFIGURATION: &str = "mutatingwebhookconfiguration/00-barekey";

fn the_operators_token_gains_nothing_else(namespace: &Namespace) {
    let installation = Installation::shared();
    let operator = Operator::new(installation);
    namespace.apply_example("first-value/barekey.yaml");
    namespace.apply(plain("bystander").to_string());
    namespace.wait_pod("bystander");

    // What it may: so that what follows is refused for the right reason.
    operator.kubectl(["get", CONFIGURATION]).succeed();
    operator.kubectl(["get", "barekeystages", "-A"]).succeed();
    let name = namespace.name();
    operator
        .kubectl(["get", "pod", "bystander", "-n", name])
        .succeed();

    let own = installation.namespace();
    let pod = plain("planted").to_string();
    let stage = json!({"apiVersion": "barekey.dev/v1alpha1", "kind": "BarekeyStage",
        "metadata": {"name": "planted"}, "spec": {"project": "planted"}})
    .to_string();
    let acts: &[(&str, &[&str], &str)] = &[
        ("read all Secrets", &["get", "secrets", "-A"], ""),
        (
            "read the master key",
            &["get", "secret", "barekey-master-key", "-n", own],
            "",
        ),
        ("read ConfigMaps", &["get", "configmaps", "-n", name], ""),
        (
            "mint a token",
            &["create", "token", "default", "-n", name],
            "",
        ),
        (
            "mint its own token",
            &["create", "token", "barekey", "-n", own],
            "",
        ),
        (
            "be somebody else",
            &[
                "get",
                "secrets",
                "-A",
                "--as",
                "system:admin",
                "--as-group",
                "system:masters",
            ],
            "",
        ),
        ("list pods", &["get", "pods", "-A"], ""),
        (
            "enter a pod",
            &["exec", "bystander", "-n", name, "--", "true"],
            "",
        ),
        ("read a pod's log", &["logs", "bystander", "-n", name], ""),
        ("create a pod", &["create", "-n", name, "-f", "-"], &pod),
        (
            "delete a pod",
            &["delete", "pod", "bystander", "-n", name, "--wait=false"],
            "",
        ),
        (
            "change a pod",
            &["label", "pod", "bystander", "-n", name, "a=b"],
            "",
        ),
        (
            "change its own workload",
            &["scale", installation.workload(), "-n", own, "--replicas=0"],
            "",
        ),
        (
            "declare a stage",
            &["create", "-n", name, "-f", "-"],
            &stage,
        ),
        (
            "grant itself a stage's values",
            &[
                "patch",
                "barekeystage",
                "development",
                "-n",
                name,
                "--type=merge",
                "--patch",
                r#"{"spec":{"access":[{"serviceAccounts":["default"]}]}}"#,
            ],
            "",
        ),
        (
            "confirm a deletion",
            &[
                "annotate",
                "barekeystage",
                "development",
                "-n",
                name,
                "barekey.dev/confirm-delete=development",
            ],
            "",
        ),
        (
            "hold a stage by a foreign finalizer",
            &[
                "patch",
                "barekeystage",
                "development",
                "-n",
                name,
                "--type=merge",
                "--patch",
                r#"{"metadata":{"finalizers":["example.com/held"]}}"#,
            ],
            "",
        ),
        (
            "delete a stage",
            &["delete", "barekeystage", "development", "-n", name],
            "",
        ),
        (
            "list webhook configurations",
            &["get", "mutatingwebhookconfigurations"],
            "",
        ),
        (
            "delete its webhook configuration",
            &["delete", CONFIGURATION],
            "",
        ),
        (
            "delete a policy",
            &["delete", "validatingadmissionpolicy", "barekey-injected"],
            "",
        ),
        (
            "take the fence down",
            &[
                "delete",
                "validatingadmissionpolicybinding",
                "barekey-operator-fence",
            ],
            "",
        ),
        (
            "give itself more",
            &[
                "create",
                "clusterrolebinding",
                "planted",
                "--clusterrole=cluster-admin",
                "--serviceaccount=barekey:barekey",
            ],
            "",
        ),
        (
            "read Leases of others",
            &["get", "leases", "-n", "kube-system"],
            "",
        ),
        ("list namespaces", &["get", "namespaces"], ""),
        ("read nodes", &["get", "nodes"], ""),
    ];
    for (act, args, stdin) in acts {
        let refusal = operator.kubectl(*args).stdin(*stdin).output();
        let refused =
            !refusal.status.success() && refusal.stderr.to_lowercase().contains("forbidden");
        assert!(refused, "{act}: {refusal}");
    }
    assert!(namespace.get("pod/bystander").is_some());

    // The right to patch is there, for the finalizer: of the rest of the metadata only the policy keeps it away.
    for (what, change) in [
        ("a label", json!({"labels": {"planted": "x"}})),
        ("an annotation", json!({"annotations": {"planted": "x"}})),
        ("an owner", json!({"ownerReferences": [owner()]})),
        ("a finalizer", json!({"finalizers": ["planted.example/x"]})),
    ] {
        for resource in ["barekeystage/development", "barekeyproject/shop"] {
            let patch = json!({"metadata": change}).to_string();
            let refusal = operator
                .kubectl([
                    "patch",
                    resource,
                    "-n",
                    name,
                    "--type=merge",
                    "--dry-run=server",
                ])
                .args(["--patch", &patch])
                .output();
            let refused = !refusal.status.success()
                && refusal.stderr.contains("barekey-operator-resources")
                && refusal
                    .stderr
                    .contains("only the finalizer barekey.dev/cleanup");
            assert!(refused, "{what} of {resource}: {refusal}");
        }
    }

    // Whatever rights the operator's account has or may come to have, and the one that uninstalls: the policy alone refuses
    // them here, as members of the group that may do everything.
    let stage = stage.replace("planted", "another");
    let grant = r#"{"spec":{"access":[{"serviceAccounts":["default"]}]}}"#;
    let acts: &[(&[&str], &str)] = &[
        (
            &[
                "patch",
                "barekeystage/development",
                "--type=merge",
                "-p",
                grant,
            ],
            "",
        ),
        (&["delete", "barekeystage/development", "--wait=false"], ""),
        (&["create", "-f", "-"], &stage),
    ];
    for account in ["barekey", "barekey-uninstall"] {
        let user = format!("system:serviceaccount:{own}:{account}");
        for (act, stdin) in acts {
            let refusal = namespace
                .kubectl(*act)
                .args([
                    "--dry-run=server",
                    "--as",
                    &user,
                    "--as-group",
                    "system:masters",
                ])
                .stdin(*stdin)
                .output();
            let refused =
                !refusal.status.success() && refusal.stderr.contains("barekey-operator-resources");
            assert!(refused, "{account}: {act:?}: {refusal}");
        }
    }
}

fn the_operator_changes_the_ca_alone(_: &Namespace) {
    let installation = Installation::shared();
    installation.ca();
    let operator = Operator::new(installation);
    let patch = |patch: &Value| {
        operator
            .kubectl([
                "patch",
                CONFIGURATION,
                "--type=json",
                "--dry-run=server",
                "-p",
            ])
            .args([patch.to_string()])
            .output()
    };
    let replace = |path: &str, value: Value| json!([{"op": "replace", "path": format!("/webhooks/0/{path}"), "value": value}]);

    let allowed = patch(&replace("clientConfig/caBundle", json!("Z28=")));
    // The API server parses no CA; it takes any bytes.
    assert!(allowed.status.success(), "{allowed}");

    let mut second = configuration()["webhooks"][0].clone();
    second["name"] = json!("other.barekey.dev");
    let cases = [
        (
            "rules",
            replace(
                "rules",
                json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"], "scope": "*"}]),
            ),
        ),
        ("failurePolicy", replace("failurePolicy", json!("Ignore"))),
        ("matchPolicy", replace("matchPolicy", json!("Exact"))),
        ("matchConditions", replace("matchConditions", json!([]))),
        (
            "the only matchCondition",
            replace("matchConditions/0/expression", json!("true")),
        ),
        ("namespaceSelector", replace("namespaceSelector", json!({}))),
        (
            "objectSelector",
            replace("objectSelector", json!({"matchLabels": {"a": "b"}})),
        ),
        (
            "reinvocationPolicy",
            replace("reinvocationPolicy", json!("IfNeeded")),
        ),
        ("timeoutSeconds", replace("timeoutSeconds", json!(1))),
        ("sideEffects", replace("sideEffects", json!("NoneOnDryRun"))),
        (
            "admissionReviewVersions",
            replace("admissionReviewVersions", json!(["v1beta1", "v1"])),
        ),
        (
            "the service",
            replace("clientConfig/service/name", json!("other")),
        ),
        (
            "the path",
            replace("clientConfig/service/path", json!("/other")),
        ),
        (
            "a URL in place of the service",
            json!([{"op": "remove", "path": "/webhooks/0/clientConfig/service"},
                {"op": "add", "path": "/webhooks/0/clientConfig/url", "value": "https://evil.example/"}]),
        ),
        (
            "a second webhook",
            json!([{"op": "add", "path": "/webhooks/-", "value": second}]),
        ),
        (
            "no webhook",
            json!([{"op": "replace", "path": "/webhooks", "value": []}]),
        ),
        (
            "a label",
            json!([{"op": "add", "path": "/metadata/labels/planted", "value": "x"}]),
        ),
        (
            "an annotation",
            json!([{"op": "add", "path": "/metadata/annotations/planted", "value": "x"}]),
        ),
        (
            "an owner",
            json!([{"op": "add", "path": "/metadata/ownerReferences", "value": [owner()]}]),
        ),
        (
            "a finalizer",
            json!([{"op": "add", "path": "/metadata/finalizers", "value": ["planted.example/x"]}]),
        ),
    ];
    for (what, change) in cases {
        let refusal = patch(&change);
        let refused = !refusal.status.success()
            && refusal.stderr.contains("barekey-operator-fence")
            && refusal.stderr.contains("may change only caBundle");
        assert!(refused, "{what}: {refusal}");
    }
}

/// The operator's account, by a token of its own.
struct Operator {
    kubeconfig: NamedTempFile,
}

impl Operator {
    fn new(installation: &Installation) -> Self {
        let token = installation
            .kubectl(["create", "token", "barekey"])
            .secret()
            .succeed();
        let view = [
            "config",
            "view",
            "--raw",
            "--minify",
            "--flatten",
            "-o",
            "json",
        ];
        let mut config: Value =
            serde_json::from_str(&kubectl(view).secret().succeed()).expect("kubectl prints JSON");
        // Nothing of the administrator's: a client certificate would win over the token.
        config["users"][0]["user"] = json!({"token": token.trim()});
        let kubeconfig = NamedTempFile::new().expect("a file can be made");
        std::fs::write(&kubeconfig, config.to_string()).expect("a file can be written");
        let operator = Self { kubeconfig };
        let who = operator.kubectl(["auth", "whoami", "-o", "json"]).succeed();
        assert!(
            who.contains("system:serviceaccount:barekey:barekey"),
            "{who}"
        );
        operator
    }

    fn kubectl(&self, args: impl IntoIterator<Item: AsRef<std::ffi::OsStr>>) -> Program {
        kubectl(args).env("KUBECONFIG", self.kubeconfig.path())
    }
}

/// An owner with which an object would be deleted.
fn owner() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "name": "absent", "uid": "00000000-0000-4000-8000-000000000000"})
}

fn configuration() -> Value {
    crate::harness::get([CONFIGURATION]).expect("the webhook configuration is there")
}
