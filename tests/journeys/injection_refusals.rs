//! Pods that are refused, each with what would pass; and what tricks gain: nothing.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::{Installation, Journey, Namespace, Request, Response, eventually, get};
use crate::injection_setting::{PRINT_HASH, Setting, asking, pod, spec};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared(
            "what_a_pod_cannot_have_is_refused_with_what_to_write",
            what_a_pod_cannot_have,
        ),
        Journey::shared(
            "a_probe_that_names_a_variable_is_refused",
            a_probe_that_names_a_variable,
        ),
        Journey::shared(
            "an_account_without_access_is_refused",
            an_account_without_access,
        ),
        Journey::shared(
            "access_taken_away_refuses_the_next_start",
            access_taken_away,
        ),
        Journey::shared("a_hand_written_token_reads_nothing", a_hand_written_token),
        Journey::shared("a_review_that_a_pod_posts_gains_nothing", a_posted_review),
        Journey::shared("what_is_no_review_is_refused_and_told_so", no_review_at_all),
        Journey::shared("a_dry_run_changes_nothing", a_dry_run),
    ]
}

fn what_a_pod_cannot_have(namespace: &Namespace) {
    Installation::shared();
    namespace.make_service_account("shop");
    let plain = || pod("refused", &json!({}), &spec(PRINT_HASH));
    let annotated = |key: &str, value: &str| {
        let mut pod = asking("refused", PRINT_HASH);
        pod["metadata"]["annotations"][key] = json!(value);
        pod
    };
    let changed = |mut pod: Value, pointer: &str, value: Value| {
        *pod.pointer_mut(pointer).expect("the field is there") = value;
        pod
    };
    let entry = json!([{"name": "BAREKEY_ALLOWANCE", "value": "{\"v\":1,\"stage\":\"stg_1\"}"}]);
    let with_entry = |mut pod: Value| {
        pod["spec"]["containers"][0]["env"] = entry.clone();
        pod
    };
    for (manifest, told) in [
        (
            changed(
                asking("refused", ""),
                "/spec/containers/0/command",
                json!(null),
            ),
            "container app has no command, and this version of barekey cannot learn the entrypoint of its image: set command",
        ),
        (
            annotated("barekey.dev/stgae", "x"),
            "annotation barekey.dev/stgae is not known: did you mean barekey.dev/stage?",
        ),
        (
            annotated("barekey.dev/on-change", "restart"),
            "annotation barekey.dev/on-change is not in this version of barekey: remove it",
        ),
        (
            annotated("barekey.dev/mode", "file"),
            "barekey.dev/mode: \"file\" is not in this version of barekey: write wrap",
        ),
        (
            annotated("barekey.dev/containers", "apps"),
            "barekey.dev/containers names \"apps\", and the pod has app",
        ),
        (
            with_entry(asking("refused", PRINT_HASH)),
            "container app sets BAREKEY_ALLOWANCE, which only barekey's webhook writes",
        ),
        (
            with_entry(plain()),
            "container app sets BAREKEY_ALLOWANCE, which only barekey's webhook writes",
        ),
    ] {
        let refusal = namespace.refuse(manifest.to_string());
        assert!(
            refusal.contains(&format!("pod {}/refused: {told}", namespace.name())),
            "{refusal}"
        );
        assert_eq!(namespace.get("pod/refused"), None);
    }
    // A misspelt key alone is looked at too.
    let alone = pod(
        "refused",
        &json!({"barekey.dev/stgae": "x"}),
        &spec(PRINT_HASH),
    );
    let refusal = namespace.refuse(alone.to_string());
    assert!(
        refusal.contains("did you mean barekey.dev/stage?"),
        "{refusal}"
    );
}

fn a_probe_that_names_a_variable(namespace: &Namespace) {
    Setting::make(namespace);
    let probing = |name: &str, text: &str| {
        let mut pod = asking(name, "exec sleep infinity");
        pod["spec"]["containers"][0]["livenessProbe"] =
            json!({"exec": {"command": ["/bin/sh", "-c", text]}});
        pod.to_string()
    };
    let blind = probing("blind", "test -n \"$DATABASE_URL\"");
    let refusal = namespace.refuse(blind.clone());
    assert!(
        refusal.contains("container app: its livenessProbe names a variable of the stage"),
        "{refusal}"
    );
    assert!(!refusal.contains("DATABASE_URL"), "{refusal}");
    // A name that the pod itself asks for is told.
    let mut blind: Value = serde_json::from_str(&blind).unwrap();
    blind["metadata"]["annotations"]["barekey.dev/variables"] = json!("DATABASE_URL");
    let refusal = namespace.refuse(blind.to_string());
    assert!(
        refusal.contains("container app: its livenessProbe names DATABASE_URL"),
        "{refusal}"
    );
    namespace.apply(probing("fine", "test -d /proc/1"));
    namespace.wait_pod("fine");
}

fn an_account_without_access(namespace: &Namespace) {
    Setting::make(namespace);
    let mut template = asking("web", PRINT_HASH);
    template["metadata"] = json!({
        "labels": {"of": "web"}, "annotations": {"barekey.dev/stage": "development"},
    });
    template["spec"]["serviceAccountName"] = json!("default");
    template["spec"]["restartPolicy"] = json!("Always");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"of": "web"}},
            "template": {"metadata": template["metadata"], "spec": template["spec"]},
        },
    });
    namespace.apply(deployment.to_string());
    let account = format!(
        "the service account default of namespace {}",
        namespace.name()
    );
    namespace.wait_event(&["ReplicaSet/web", "FailedCreate", &account, "spec.access"]);
    assert!(namespace.list("pods").is_empty());

    // Of a stage that is not there it is told the same.
    let refusal = |stage: &str| {
        let mut pod = asking("web", PRINT_HASH);
        pod["spec"]["serviceAccountName"] = json!("default");
        pod["metadata"]["annotations"]["barekey.dev/stage"] = json!(stage);
        namespace.refuse(pod.to_string())
    };
    assert_eq!(
        refusal("development").replace("/development", "/absent"),
        refusal("absent")
    );

    // Once it has access, the workload recovers by itself.
    let access = json!({"spec": {"access": [{"serviceAccounts": ["shop", "default"]}]}});
    namespace
        .kubectl([
            "patch",
            "bks/development",
            "--type=merge",
            "--patch",
            &access.to_string(),
        ])
        .succeed();
    eventually("a pod of the deployment", || {
        match namespace.list("pods").len() {
            0 => Err("there is none".to_owned()),
            _ => Ok(()),
        }
    });
}

fn access_taken_away(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    let mut running = asking(
        "running",
        &format!("{PRINT_HASH}; trap 'exit 0' TERM; sleep infinity & wait"),
    );
    running["spec"]["restartPolicy"] = json!("Always");
    namespace.apply(running.to_string());
    namespace.wait_pod("running");
    setting.is_in(&namespace.logs("running"));

    let access = json!({"spec": {"access": []}}).to_string();
    namespace
        .kubectl([
            "patch",
            "bks/development",
            "--type=merge",
            "--patch",
            &access,
        ])
        .succeed();
    namespace.wait_ready("bks/development");
    let refusal = namespace.refuse(asking("new", PRINT_HASH).to_string());
    assert!(refusal.contains("spec.access"), "{refusal}");

    // What runs keeps running; what starts again is refused, and says why.
    let pod = namespace.get("pod/running").expect("it is there");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    // Its own shell may end with the container before kubectl has heard of it: what follows shows that it was killed.
    namespace.exec("running", &["kill", "1"]).output();
    let message = eventually("a start that is refused", || {
        let pod = namespace.get("pod/running").ok_or("it is gone")?;
        let status = &pod["status"]["containerStatuses"][0];
        [&status["state"], &status["lastState"]]
            .iter()
            .find_map(|state| state["terminated"]["message"].as_str().map(str::to_owned))
            .ok_or_else(|| status.to_string())
    });
    assert!(message.contains("spec.access"), "{message}");
    namespace.wait_event(&["Pod/running", "AccessRefused", "spec.access"]);
}

fn a_hand_written_token(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    let installation = Installation::shared();
    let audience = format!("barekey.{}.svc", installation.namespace());
    let token_volume = json!([{"name": "token", "projected": {"sources": [
        {"serviceAccountToken": {"audience": audience, "path": "token"}}]}}]);
    let mut by_hand = pod("by-hand", &json!({}), &spec("exec sleep infinity"));
    by_hand["spec"]["volumes"] = token_volume;
    by_hand["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "token", "mountPath": "/token"}]);
    let said = namespace
        .kubectl(["apply", "-f", "-"])
        .stdin(by_hand.to_string())
        .output();
    assert!(said.status.success(), "{said}");
    assert!(
        said.stderr.contains("it reads nothing"),
        "a warning: {said}"
    );
    namespace.wait_pod("by-hand");
    let token = namespace
        .exec("by-hand", &["cat", "/token/token"])
        .succeed();
    let answer = installation
        .api()
        .post("/v1/pod/values")
        .bearer(token.trim())
        .json(&json!({"v": 1}))
        .send();
    answer.refused(403, "FORBIDDEN");
    assert!(!setting.leaks_into(answer.text()));
    namespace.wait_event(&["Pod/by-hand", "AccessRefused", "BAREKEY_ALLOWANCE"]);
}

fn a_posted_review(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    let server = format!("barekey.{}.svc", Installation::shared().namespace());
    // A pod of the account that may read the stage, with a token for the vault, and never injected.
    let mut poster = pod("poster", &json!({}), &spec("exec sleep infinity"));
    poster["spec"]["volumes"] = json!([{"name": "token", "projected": {"sources": [
        {"serviceAccountToken": {"audience": server, "path": "token"}}]}}]);
    let mount = json!([{"name": "token", "mountPath": "/run/barekey.dev/token"}]);
    poster["spec"]["containers"][0]["volumeMounts"] = mount;
    namespace.apply(poster.to_string());
    namespace.apply(asking("injected", "exec sleep infinity").to_string());
    for pod in ["poster", "injected"] {
        namespace.wait_pod(pod);
    }
    let token = |pod: &str| {
        namespace
            .exec(pod, &["cat", "/run/barekey.dev/token/token"])
            .succeed()
    };
    let ca = Installation::shared().ca();
    let post = |pod: &str, path: &str, body: &Value| {
        from_inside(namespace, pod, &server, |port| {
            Request::post(&format!("https://localhost:{port}{path}"))
                .trusting(&ca)
                .bearer(token(pod).trim())
                .json(body)
                .send()
        })
    };
    let review = |pod: Value| {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "1", "operation": "CREATE", "namespace": namespace.name(),
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "userInfo": {"username": "system:admin", "groups": ["system:masters"]},
                "object": pod,
            },
        })
    };
    let answer = post(
        "poster",
        "/admission/pods",
        &review(asking("forged", PRINT_HASH)),
    );
    assert!(!setting.leaks_into(answer.text()));
    let response = answer.ok()["response"].take();
    assert_eq!(response["allowed"], true, "{response}");
    let patch = STANDARD
        .decode(response["patch"].as_str().expect("a patch"))
        .expect("base64");
    let patch = String::from_utf8(patch).expect("UTF-8");
    assert!(!setting.leaks_into(&patch));
    assert!(
        !patch.contains("bk_") && !patch.contains("eyJ"),
        "a token is in the patch"
    );
    assert_eq!(namespace.get("pod/forged"), None);

    // All that it got is an allowance, and an allowance counts in the spec of an injected pod alone.
    let allowance = allowance_in(&patch);
    assert!(allowance["stage"].is_string(), "{allowance}");
    for body in [
        json!({"v": 1}),
        json!({"v": 1, "allowance": allowance}),
        json!({"v": 1, "allowances": [allowance]}),
        allowance,
    ] {
        let answer = post("poster", "/v1/pod/values", &body);
        assert!(!setting.leaks_into(answer.text()));
        assert!(
            matches!(answer.status, 400 | 403),
            "{} to {body}",
            answer.status
        );
    }
    namespace.wait_event(&["Pod/poster", "AccessRefused", "BAREKEY_ALLOWANCE"]);
    // The same words from a pod that was injected: so it is the pod that counts.
    let answer = post("injected", "/v1/pod/values", &json!({"v": 1}));
    answer.ok();
    assert!(setting.leaks_into(answer.text()));
}

/// Makes a request over a port of this machine, from which a program in the pod carries every byte to `server` and back.
#[track_caller]
fn from_inside(
    namespace: &Namespace,
    pod: &str,
    server: &str,
    request: impl FnOnce(u16) -> Response,
) -> Response {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut carrier = Command::new("kubectl");
    carrier
        .args(["exec", "-i", "--namespace", namespace.name(), pod, "--"])
        .args(["nc", server, "443"]);
    let carrying = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let end = || Stdio::from(OwnedFd::from(stream.try_clone().expect("another end")));
        carrier.stdin(end()).stdout(end()).spawn().expect("kubectl")
    });
    let answer = request(port);
    let mut carrier = carrying.join().expect("it carries");
    carrier.kill().expect("it can be ended");
    carrier.wait().expect("it ends");
    answer
}

/// The allowance that a patch would write into the first container.
fn allowance_in(patch: &str) -> Value {
    fn find(value: &Value) -> Option<&str> {
        match value {
            Value::Object(map) if map.get("name") == Some(&json!("BAREKEY_ALLOWANCE")) => {
                map.get("value")?.as_str()
            }
            Value::Object(map) => map.values().find_map(find),
            Value::Array(list) => list.iter().find_map(find),
            _ => None,
        }
    }
    let patch: Value = serde_json::from_str(patch).expect("JSON");
    serde_json::from_str(find(&patch).expect("an allowance")).expect("JSON")
}

fn no_review_at_all(_: &Namespace) {
    let api = Installation::shared().api();
    for bad in ["", "{}", "[]", "{\"kind\":\"AdmissionReview\"}", "\u{0}"] {
        let answer = api.post("/admission/pods").body(bad).send();
        assert_eq!(answer.status, 400, "{bad}");
        assert!(
            answer.text().contains("AdmissionReview"),
            "{}",
            answer.text()
        );
        assert!(
            answer.text().contains("\"code\":\"INVALID_"),
            "{}",
            answer.text()
        );
    }
}

fn a_dry_run(namespace: &Namespace) {
    let installation = Installation::shared();
    let setting = Setting::make(namespace);
    let chain = installation.audit_chain(&setting.organization);
    // It counts: a read is one record.
    let first = installation.newest_record(&chain);
    setting.evaluate();
    let records = installation.newest_record(&chain);
    assert_eq!(records, first + 1);
    let stage = || {
        let stage = namespace.get("bks/development").expect("is there");
        (stage["metadata"].clone(), stage["status"].clone())
    };
    let before = eventually("the revision in the status", || {
        let found = stage();
        if found.1["revision"].is_number() {
            Ok(found)
        } else {
            Err(found.1.to_string())
        }
    });
    let service = ["--namespace", installation.namespace(), "service/barekey"];
    let service = get(service).expect("the chart renders a Service");
    let address = service["spec"]["clusterIP"].as_str().expect("an address");
    let shown = eventually("an injected pod that knows the vault's address", || {
        let shown = namespace
            .kubectl(["apply", "--dry-run=server", "-o", "json", "-f", "-"])
            .stdin(asking("dry", PRINT_HASH).to_string())
            .succeed();
        assert!(shown.contains("BAREKEY_ALLOWANCE"), "it is injected");
        let known = shown.contains(address);
        known
            .then_some(shown)
            .ok_or_else(|| "it does not".to_owned())
    });
    assert!(!setting.leaks_into(&shown));
    assert_eq!(namespace.get("pod/dry"), None);
    let refusal = namespace
        .kubectl(["apply", "--dry-run=server", "-f", "-"])
        .stdin(
            pod(
                "dry",
                &json!({"barekey.dev/stage": "absent"}),
                &spec(PRINT_HASH),
            )
            .to_string(),
        )
        .fail()
        .stderr;
    assert!(refusal.contains("spec.access"), "{refusal}");

    assert_eq!(stage(), before);
    assert_eq!(installation.newest_record(&chain), records);
    // Events take a moment: when a later one of ours comes, those of before it would be there.
    namespace.apply(pod("later", &json!({}), &spec("sleep 60")).to_string());
    namespace.wait_pod("later");
    let later = namespace.get("pod/later").expect("is there");
    let token = namespace
        .kubectl(["create", "token", "shop", "--audience"])
        .args([format!("barekey.{}.svc", installation.namespace())])
        .args(["--bound-object-kind", "Pod", "--bound-object-name", "later"])
        .args([
            "--bound-object-uid",
            later["metadata"]["uid"].as_str().expect("a UID"),
        ])
        .secret()
        .succeed();
    let api = installation.api();
    let read = api.post("/v1/pod/values");
    let read = read.bearer(token.trim()).json(&json!({"v": 1}));
    read.send().refused(403, "FORBIDDEN");
    namespace.wait_event(&["Pod/later", "AccessRefused"]);
    let events = namespace.events();
    let about_dry = events.iter().filter(|event| event.about == "Pod/dry");
    assert_eq!(about_dry.count(), 0, "{events:#?}");
}
