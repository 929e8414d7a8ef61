//! What the chart renders: the least rights, nothing secret, and nothing that it does not know.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::{Journey, Output, Program, checkout, helm};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::alone(
            "the_rendered_roles_are_the_least",
            the_rendered_roles_are_the_least,
        ),
        Journey::alone(
            "the_chart_renders_nothing_secret",
            the_chart_renders_nothing_secret,
        ),
        Journey::alone(
            "the_chart_refuses_what_it_does_not_know",
            the_chart_refuses_what_it_does_not_know,
        ),
        Journey::alone(
            "every_map_of_the_values_refuses_unknown_keys",
            every_map_of_the_values_refuses_unknown_keys,
        ),
        Journey::alone(
            "the_webhook_configuration_is_as_narrow_as_it_should_be",
            the_webhook_configuration_is_narrow,
        ),
        Journey::alone(
            "sqlite_is_a_set_of_one_and_postgres_a_deployment_with_a_budget",
            the_workload_follows_the_database,
        ),
        Journey::alone(
            "a_value_of_the_chart_reaches_what_it_is_for",
            a_value_reaches_what_it_is_for,
        ),
    ]
}

/// One rule: kind and name of its role, API group, resources, the one name that it is about, verbs.
type Rule = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
    &'static [&'static str],
);

/// Everything that the operator may do.
const OPERATOR_MAY: &[Rule] = &[
    (
        "ClusterRole",
        "barekey",
        "barekey.dev",
        &["barekeyprojects", "barekeystages"],
        "",
        &["get", "list", "patch", "watch"],
    ),
    (
        "ClusterRole",
        "barekey",
        "barekey.dev",
        &["barekeyprojects/status", "barekeystages/status"],
        "",
        &["patch"],
    ),
    (
        "ClusterRole",
        "barekey",
        "authentication.k8s.io",
        &["tokenreviews"],
        "",
        &["create"],
    ),
    ("ClusterRole", "barekey", "", &["pods"], "", &["get"]),
    (
        "ClusterRole",
        "barekey",
        "events.k8s.io",
        &["events"],
        "",
        &["create"],
    ),
    (
        "ClusterRole",
        "barekey",
        "admissionregistration.k8s.io",
        &["mutatingwebhookconfigurations"],
        "00-barekey",
        &["get", "patch"],
    ),
    (
        "Role",
        "barekey",
        "coordination.k8s.io",
        &["leases"],
        "barekey",
        &["get", "update"],
    ),
    // The hook before deletion, for as long as it runs.
    (
        "ClusterRole",
        "barekey-uninstall",
        "admissionregistration.k8s.io",
        &["mutatingwebhookconfigurations"],
        "00-barekey",
        &["delete"],
    ),
    (
        "ClusterRole",
        "barekey-uninstall",
        "barekey.dev",
        &["barekeyprojects", "barekeystages"],
        "",
        &["list", "patch"],
    ),
    (
        "Role",
        "barekey-uninstall",
        "coordination.k8s.io",
        &["leases"],
        "barekey",
        &["get", "update"],
    ),
];

fn the_rendered_roles_are_the_least() {
    let objects = render(&usual());
    let mut found = BTreeSet::new();
    for role in of_kind(&objects, &["Role", "ClusterRole"]) {
        for rule in role["rules"].as_array().expect("a role has rules") {
            let keys: Vec<_> = rule.as_object().expect("a rule is a map").keys().collect();
            assert!(
                keys.iter()
                    .all(|key| ["apiGroups", "resources", "resourceNames", "verbs"]
                        .contains(&key.as_str())),
                "a kind of rule that this test does not know: {rule}"
            );
            found.insert(
                json!([
                    role["kind"],
                    role["metadata"]["name"],
                    texts(&rule["apiGroups"]),
                    texts(&rule["resources"]),
                    texts(&rule["resourceNames"]),
                    texts(&rule["verbs"]),
                ])
                .to_string(),
            );
        }
    }
    let allowed: BTreeSet<_> = OPERATOR_MAY
        .iter()
        .map(|(kind, role, group, resources, name, verbs)| {
            let names: Vec<_> = Some(name)
                .into_iter()
                .filter(|name| !name.is_empty())
                .collect();
            json!([kind, role, [group], resources, names, verbs]).to_string()
        })
        .collect();
    assert_eq!(found, allowed);

    // Each role is bound to the account of its own name, in the operator's namespace, and to nobody else.
    for binding in of_kind(&objects, &["RoleBinding", "ClusterRoleBinding"]) {
        let name = &binding["metadata"]["name"];
        assert_eq!(binding["roleRef"]["name"], *name);
        assert_eq!(
            binding["subjects"],
            json!([{"kind": "ServiceAccount", "name": name, "namespace": "vault"}])
        );
    }
    let accounts = of_kind(&objects, &["ServiceAccount"]);
    assert_eq!(accounts.len(), 2);
    assert!(
        accounts
            .iter()
            .all(|account| account["automountServiceAccountToken"] == json!(false))
    );
}

fn the_chart_renders_nothing_secret() {
    for values in [usual(), postgres(), everything()] {
        let objects = render(&values);
        let kinds: BTreeSet<_> = objects
            .iter()
            .map(|object| object["kind"].as_str().expect("an object has a kind"))
            .collect();
        let known = BTreeSet::from([
            "ClusterRole",
            "ClusterRoleBinding",
            "CustomResourceDefinition",
            "Deployment",
            "Job",
            "Lease",
            "MutatingWebhookConfiguration",
            "PodDisruptionBudget",
            "Role",
            "RoleBinding",
            "Service",
            "ServiceAccount",
            "StatefulSet",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ]);
        assert!(kinds.is_subset(&known), "{kinds:?}");
        // Rendering twice gives the same: nothing in it is made up.
        assert_eq!(objects, render(&values));
    }
}

fn the_chart_refuses_what_it_does_not_know() {
    let cases: &[(&str, Value, &[&str])] = &[
        (
            "no master key",
            json!({"masterKey": {"secret": {"name": ""}}}),
            &[
                "head -c 32 /dev/urandom | base64",
                "masterKey.secret.name",
                "masterKey.file",
            ],
        ),
        (
            "two master keys",
            json!({"masterKey": {"file": "/keys/master"}}),
            &["masterKey.secret.name and masterKey.file"],
        ),
        (
            "a master key itself",
            json!({"masterKey": {"value": "AAAA"}}),
            &["/masterKey", "'value' not allowed"],
        ),
        (
            "two replicas on SQLite",
            json!({"replicas": 2}),
            &["/replicas", "must be 1"],
        ),
        (
            "no replica on PostgreSQL",
            json!({"replicas": 0, "database": {"kind": "postgres", "postgres": {"urlSecret": {"name": "url"}}}}),
            &["/replicas"],
        ),
        (
            "another database",
            json!({"database": {"kind": "mysql"}}),
            &["/database/kind", "sqlite", "postgres"],
        ),
        (
            "PostgreSQL without a URL",
            json!({"database": {"kind": "postgres"}}),
            &["database.postgres.urlSecret.name"],
        ),
        (
            "two CAs",
            json!({"database": {"kind": "postgres", "postgres": {
                "urlSecret": {"name": "url"}, "ca": {"secret": "a", "configMap": "b"}}}}),
            &["database.postgres.ca.configMap and database.postgres.ca.secret"],
        ),
        (
            "an unknown value",
            json!({"replicaCount": 1}),
            &["'replicaCount' not allowed"],
        ),
        (
            "an organization that is no slug",
            json!({"organizations": {"Acme Inc": {"namespaces": ["shop"]}}}),
            &["/organizations", "'Acme Inc' not allowed"],
        ),
        (
            "an organization that nobody speaks for",
            json!({"organizations": {"acme": {"namespaces": []}}}),
            &["/organizations/acme/namespaces"],
        ),
        (
            "another way of delivery",
            json!({"agent": {"delivery": "auto"}}),
            &["/agent/delivery", "init", "image"],
        ),
        (
            "an image by a name that is none",
            json!({"image": {"digest": "latest"}}),
            &["/image/digest"],
        ),
        (
            "a volume for many nodes",
            json!({"database": {"sqlite": {"storage": {"accessMode": "ReadWriteMany"}}}}),
            &["/database/sqlite/storage/accessMode"],
        ),
    ];
    for (case, values, words) in cases {
        let refusal = template(&over(usual(), values)).output();
        assert!(!refusal.status.success(), "{case} should be refused");
        for word in *words {
            assert!(
                refusal.stderr.contains(word),
                "{case}: no {word:?} in {}",
                refusal.stderr
            );
        }
    }
}

/// Every map of values.yaml, at every depth: an unknown key in it is refused, unless it is one that Kubernetes checks.
fn every_map_of_the_values_refuses_unknown_keys() {
    const FREE: &[&str] = &[
        "/affinity",
        "/nodeSelector",
        "/organizations",
        "/podAnnotations",
        "/podLabels",
        "/resources",
        "/resources/limits",
        "/resources/requests",
        "/serviceAccount/annotations",
    ];
    let file = checkout().join("charts/barekey/values.yaml");
    let text = std::fs::read_to_string(file).expect("the chart has values");
    let values: Value = serde_yaml::from_str(&text).expect("they are YAML");
    let mut maps = Vec::new();
    maps_below("", &values, &mut maps);
    assert!(maps.len() > 15, "{maps:?}");
    for path in maps.iter().filter(|path| !FREE.contains(&path.as_str())) {
        let mut planted = json!({"doesNotExist": 1});
        for key in path.rsplit('/').filter(|key| !key.is_empty()) {
            planted = json!({key: planted});
        }
        let refusal = template(&over(usual(), &planted)).output();
        assert!(
            !refusal.status.success() && refusal.stderr.contains("'doesNotExist' not allowed"),
            "{path} takes a key that nothing reads: {refusal}"
        );
    }
}

fn the_webhook_configuration_is_narrow() {
    let values = over(usual(), &json!({"exemptNamespaces": ["legacy"]}));
    let objects = render(&values);
    let [configuration] = of_kind(&objects, &["MutatingWebhookConfiguration"])[..] else {
        panic!("one configuration")
    };
    assert_eq!(configuration["metadata"]["name"], "00-barekey");
    let webhooks = configuration["webhooks"].as_array().expect("a list");
    assert_eq!(webhooks.len(), 1);
    let webhook = &webhooks[0];
    // Without caBundle: the operator's own stays through upgrades.
    assert_eq!(
        webhook["clientConfig"],
        json!({"service": {"name": "barekey", "namespace": "vault", "path": "/admission/pods", "port": 443}})
    );
    assert_eq!(
        webhook["rules"],
        json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "Namespaced"}])
    );
    for (field, value) in [
        ("failurePolicy", json!("Fail")),
        ("matchPolicy", json!("Equivalent")),
        ("reinvocationPolicy", json!("Never")),
        ("sideEffects", json!("None")),
        ("timeoutSeconds", json!(10)),
    ] {
        assert_eq!(webhook[field], value, "{field}");
    }
    assert_eq!(
        webhook["namespaceSelector"]["matchExpressions"],
        json!([{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "vault", "legacy"]}])
    );
    assert_eq!(webhook["matchConditions"].as_array().map(Vec::len), Some(1));
    for policy in of_kind(&objects, &["ValidatingAdmissionPolicy"]) {
        let warns = policy["metadata"]["name"] == "barekey-exempt";
        let expected = if warns { "Ignore" } else { "Fail" };
        assert_eq!(
            policy["spec"]["failurePolicy"], expected,
            "{}",
            policy["metadata"]["name"]
        );
    }
}

fn the_workload_follows_the_database() {
    let objects = render(&usual());
    let [set] = of_kind(&objects, &["StatefulSet", "Deployment"])[..] else {
        panic!("one workload")
    };
    assert_eq!(
        (&set["kind"], &set["spec"]["replicas"]),
        (&json!("StatefulSet"), &json!(1))
    );
    let claim = &set["spec"]["volumeClaimTemplates"][0]["spec"];
    assert_eq!(claim["accessModes"], json!(["ReadWriteOnce"]));
    assert_eq!(claim["storageClassName"], Value::Null);
    assert!(of_kind(&objects, &["PodDisruptionBudget"]).is_empty());

    let storage = json!({"database": {"sqlite": {"storage": {
        "className": "fast", "size": "5Gi", "accessMode": "ReadWriteOncePod"}}}});
    let objects = render(&over(usual(), &storage));
    let claim = &of_kind(&objects, &["StatefulSet"])[0]["spec"]["volumeClaimTemplates"][0]["spec"];
    assert_eq!(
        *claim,
        json!({"accessModes": ["ReadWriteOncePod"], "storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}})
    );

    let objects = render(&postgres());
    let [deployment] = of_kind(&objects, &["StatefulSet", "Deployment"])[..] else {
        panic!("one workload")
    };
    assert_eq!(
        (&deployment["kind"], &deployment["spec"]["replicas"]),
        (&json!("Deployment"), &json!(3))
    );
    assert_eq!(of_kind(&objects, &["PodDisruptionBudget"]).len(), 1);
    let environment = environment(deployment);
    assert_eq!(
        environment["BAREKEY_DATABASE"]["valueFrom"],
        json!({"secretKeyRef": {"name": "database", "key": "url"}})
    );
}

fn a_value_reaches_what_it_is_for() {
    let objects = render(&everything());
    let set = of_kind(&objects, &["StatefulSet"])[0];
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(
        pod["containers"][0]["image"],
        format!("mirror.example:5000/a/operator@sha256:{}", "0".repeat(64))
    );
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!(pod["priorityClassName"], "high");
    assert_eq!(
        pod["tolerations"],
        json!([{"key": "a", "operator": "Exists"}])
    );
    assert_eq!(pod["terminationGracePeriodSeconds"], 12);
    // The platform chooses the ids.
    assert_eq!(
        pod["securityContext"],
        json!({"runAsNonRoot": true, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}})
    );
    let environment = environment(set);
    for (name, value) in [
        ("BAREKEY_MASTER_KEY_FILE", "/keys/master"),
        (
            "BAREKEY_ORGANIZATIONS",
            r#"{"acme":{"namespaces":["shop","backend"]}}"#,
        ),
        ("BAREKEY_AGENT_IMAGE", "mirror.example:5000/a/agent:7"),
        ("BAREKEY_AGENT_IMAGE_PULL_POLICY", "Always"),
        ("BAREKEY_AGENT_IMAGE_PULL_SECRETS", "one,two"),
        ("BAREKEY_AGENT_DELIVERY", "image"),
        ("BAREKEY_ACCEPT_DATABASE_RISK", "fsync-off,sslmode"),
        ("BAREKEY_VALUE_BYTES_MAX", "1048576"),
        ("BAREKEY_LOG", "trace"),
        ("BAREKEY_LOG_FORMAT", "json"),
    ] {
        assert_eq!(environment[name]["value"], value, "{name}");
    }
    assert!(of_kind(&objects, &["CustomResourceDefinition"]).is_empty());
}

// ---- rendering -----------------------------------------------------------------------------------------------------

fn usual() -> Value {
    json!({"masterKey": {"secret": {"name": "master-key"}}})
}

fn postgres() -> Value {
    over(
        usual(),
        &json!({"replicas": 3, "database": {"kind": "postgres", "postgres": {
            "urlSecret": {"name": "database"}, "ca": {"configMap": "database-ca"}}}}),
    )
}

/// Every value another one than the default.
fn everything() -> Value {
    json!({
        "masterKey": {"file": "/keys/master"},
        "organizations": {"acme": {"namespaces": ["shop", "backend"]}},
        "database": {"acceptRisk": ["fsync-off", "sslmode"]},
        "valueBytesMax": 1_048_576,
        "registry": "mirror.example:5000",
        "image": {"repository": "a/operator", "tag": "8", "digest": format!("sha256:{}", "0".repeat(64)), "pullPolicy": "Never"},
        "imagePullSecrets": [{"name": "pull"}],
        "agent": {"delivery": "image", "image": {
            "repository": "a/agent", "tag": "7", "pullPolicy": "Always", "pullSecrets": ["one", "two"]}},
        "exemptNamespaces": ["legacy"],
        "log": {"level": "trace", "format": "json"},
        "serviceAccount": {"annotations": {"a": "b"}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
        "priorityClassName": "high",
        "terminationGracePeriodSeconds": 12,
        "podSecurityContext": {"runAsUser": null, "runAsGroup": null, "fsGroup": null},
        "extraVolumes": [{"name": "keys", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "keys", "mountPath": "/keys"}],
        "crds": {"install": false},
    })
}

fn template(values: &Value) -> Program {
    helm([
        "template",
        "release",
        "--namespace",
        "vault",
        "--values",
        "-",
    ])
    .args([checkout().join("charts/barekey")])
    .stdin(values.to_string())
}

/// Every object that the chart renders with `values`, hooks included.
#[track_caller]
fn render(values: &Value) -> Vec<Value> {
    let output: Output = template(values).output();
    assert!(output.status.success(), "{output}");
    let objects: Vec<Value> =
        serde_yaml::from_multiple(&output.stdout).expect("the chart renders YAML");
    assert!(objects.len() > 15, "{}", objects.len());
    objects
}

fn of_kind<'a>(objects: &'a [Value], kinds: &[&str]) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| {
            object["kind"]
                .as_str()
                .is_some_and(|kind| kinds.contains(&kind))
        })
        .collect()
}

/// The environment of a workload's one container, by name.
fn environment(workload: &Value) -> BTreeMap<&str, &Value> {
    let entries = workload["spec"]["template"]["spec"]["containers"][0]["env"].as_array();
    entries
        .expect("the operator has an environment")
        .iter()
        .map(|entry| (entry["name"].as_str().expect("an entry has a name"), entry))
        .collect()
}

/// The texts of a list, sorted; none of what is absent.
fn texts(list: &Value) -> Vec<&str> {
    let mut texts: Vec<_> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    texts.sort_unstable();
    texts
}

/// Paths of all maps, as the schema's messages write them.
fn maps_below(path: &str, value: &Value, found: &mut Vec<String>) {
    if let Some(map) = value.as_object() {
        found.push(path.to_owned());
        for (key, value) in map {
            maps_below(&format!("{path}/{key}"), value, found);
        }
    }
}

/// `values` with `more` laid over, map by map.
fn over(mut values: Value, more: &Value) -> Value {
    fn lay(values: &mut Value, more: &Value) {
        match (values, more) {
            (Value::Object(values), Value::Object(more)) => {
                for (key, value) in more {
                    lay(values.entry(key).or_insert(Value::Null), value);
                }
            }
            (values, more) => *values = more.clone(),
        }
    }
    lay(&mut values, more);
    values
}
