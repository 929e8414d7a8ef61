//! Who may read what a stage holds: living pods that were injected, with a token of their own, as long as they have access.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::harness::{
    Installation, Journey, Namespace, Place, Program, Response, eventually, get, kubectl,
    secret_text, wait_for,
};
use crate::injection_setting::{PRINT_HASH, Setting, asking};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared("a_token_proves_one_living_pod", a_token_proves_one_pod),
        Journey::shared(
            "a_token_that_was_signed_too_early_or_elsewhere_proves_nothing",
            signed_tokens,
        )
        .inside(),
        Journey::shared("access_ends_with_what_declared_it", access_ends),
        Journey::changing(
            "pods_wait_while_the_cluster_does_not_say_who_they_are",
            identity_unavailable,
        ),
    ]
}

/// A stage that the service account `api` may read, with one variable, and an injected pod `web` that runs as it.
fn injected_pod(namespace: &Namespace, installation: &Installation) {
    let organization = installation.organization(namespace);
    for (kind, name, spec) in [
        (
            "BarekeyProject",
            "backend",
            json!({"organization": organization.slug}),
        ),
        (
            "BarekeyStage",
            "staging",
            json!({"project": "backend", "access": [{"serviceAccounts": ["api"]}]}),
        ),
    ] {
        let resource = json!({
            "apiVersion": "barekey.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec,
        });
        namespace.apply(resource.to_string());
    }
    namespace.wait_ready("bks/staging");
    installation.api().set(
        &organization,
        "backend",
        "staging",
        "URL",
        &secret_text("value"),
    );
    namespace.make_service_account("api");
    namespace.apply(pod("web", &json!({"barekey.dev/stage": "staging"})));
    namespace.wait_pod("web");
}

fn pod(name: &str, annotations: &Value) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "serviceAccountName": "api",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app", "image": "docker.io/library/busybox:stable",
                "command": ["sleep"], "args": ["infinity"],
            }],
        },
    })
    .to_string()
}

fn audience() -> String {
    format!("barekey.{}.svc", Installation::shared().namespace())
}

fn uid(namespace: &Namespace, resource: &str) -> String {
    let found = namespace.get(resource).expect("is there");
    found["metadata"]["uid"].as_str().expect("a UID").to_owned()
}

/// A token of the service account `api`, bound to a pod.
fn bound_token(namespace: &Namespace, pod: &str, audience: &str) -> String {
    let uid = uid(namespace, &format!("pod/{pod}"));
    let token = namespace
        .kubectl(["create", "token", "api", "--audience", audience])
        .args(["--bound-object-kind", "Pod"])
        .args(["--bound-object-name", pod])
        .args(["--bound-object-uid", &uid])
        .secret()
        .succeed();
    token.trim().to_owned()
}

fn ask(installation: &Installation, token: &str) -> Response {
    installation
        .api()
        .post("/v1/pod/values")
        .bearer(token)
        .json(&json!({"v": 1}))
        .send()
}

fn refused_for(answer: &Response, word: &str) {
    answer.refused(401, "UNAUTHORIZED");
    assert!(answer.text().contains(word), "{}", answer.text());
}

fn a_token_proves_one_pod(namespace: &Namespace) {
    let installation = Installation::shared();
    injected_pod(namespace, installation);
    let token = bound_token(namespace, "web", &audience());
    let values = ask(installation, &token).ok();
    assert_eq!(values["values"].as_array().map(Vec::len), Some(1));
    assert_eq!(values["values"][0]["name"], "URL");
    let whoami = |token: &str| {
        let api = installation.api();
        let request = api.get("/v1/cli/session");
        request.bearer(token).send()
    };
    let mut session = whoami(&token).ok();
    session["requestId"].take();
    let wanted = json!({"source": "pod", "namespace": namespace.name(), "serviceAccount": "api", "pod": "web", "requestId": null});
    assert_eq!(session, wanted);

    let other = bound_token(namespace, "web", "https://kubernetes.default.svc");
    refused_for(&ask(installation, &other), "audience");
    refused_for(&whoami(&other), "audience");
    let unbound = namespace.make_token("api", &audience());
    refused_for(&ask(installation, &unbound), "not bound to a pod");
    for malformed in ["a.b.c", "eyJhbGciOiJub25lIn0.e30."] {
        ask(installation, malformed).refused(401, "UNAUTHORIZED");
    }

    // A pod of the same account that was never injected.
    namespace.apply(pod("plain", &json!({})));
    namespace.wait_pod("plain");
    let plain = bound_token(namespace, "plain", &audience());
    let answer = ask(installation, &plain);
    answer.refused(403, "FORBIDDEN");
    namespace.wait_event(&["Pod/plain", "AccessRefused", "BAREKEY_ALLOWANCE"]);

    // The API server remembers a good token for a few seconds; the pod itself is looked at each time.
    ask(installation, &token).ok();
    namespace.delete_pod_now("web");
    ask(installation, &token).refused(401, "UNAUTHORIZED");
    whoami(&token).refused(401, "UNAUTHORIZED");
    // Nor does a new pod of the name inherit it, as soon as it is there.
    namespace.apply(pod("web", &json!({"barekey.dev/stage": "staging"})));
    ask(installation, &token).refused(401, "UNAUTHORIZED");
}

fn signed_tokens(namespace: &Namespace) {
    let installation = Installation::shared();
    injected_pod(namespace, installation);
    let discovery = kubectl(["get", "--raw", "/.well-known/openid-configuration"]).succeed();
    let discovery: Value = serde_json::from_str(&discovery).expect("kubectl prints JSON");
    let issuer = &discovery["issuer"];
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let claims = |issuer: &Value, end: u64| {
        json!({
            "iss": issuer, "aud": [audience()], "exp": end, "iat": now - 7200, "nbf": now - 7200,
            "sub": format!("system:serviceaccount:{}:api", namespace.name()),
            "kubernetes.io": {
                "namespace": namespace.name(),
                "serviceaccount": {"name": "api", "uid": uid(namespace, "serviceaccount/api")},
                "pod": {"name": "web", "uid": uid(namespace, "pod/web")},
            },
        })
    };
    // The same, in time: so it is the end that is refused below.
    ask(installation, &sign(&claims(issuer, now + 600))).ok();
    refused_for(
        &ask(installation, &sign(&claims(issuer, now - 600))),
        "expired",
    );
    let elsewhere = json!("https://kubernetes.example.org");
    refused_for(
        &ask(installation, &sign(&claims(&elsewhere, now + 600))),
        "issued",
    );
}

/// A token with the key that the cluster signs tokens of service accounts with.
fn sign(claims: &Value) -> String {
    let file = Place::inside().join("pki/sa.key");
    let key = PrivateKeyDer::from_pem_file(&file).expect("the cluster's key");
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("a key");
    let signer = key
        .choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])
        .expect("a key on the curve P-256");
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    // Without a key id the API server tries every key that it has.
    let header = encode(br#"{"alg":"ES256"}"#);
    let signed = format!("{header}.{}", encode(claims.to_string().as_bytes()));
    let signature = signer.sign(signed.as_bytes()).expect("signs");
    format!("{signed}.{}", encode(&two_numbers(&signature)))
}

/// A signature as a token has it, two numbers of 32 bytes, from the DER of both.
fn two_numbers(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut both = Vec::new();
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let (number, after) = rest[2..].split_at(length);
        let significant = number.strip_prefix(&[0]).unwrap_or(number);
        both.extend(std::iter::repeat_n(0, 32 - significant.len()));
        both.extend(significant);
        rest = after;
    }
    both
}

fn access_ends(namespace: &Namespace) {
    let installation = Installation::shared();
    injected_pod(namespace, installation);
    let token = bound_token(namespace, "web", &audience());
    let reads = |wanted: u16| {
        eventually(&format!("the answer {wanted}"), || {
            let answer = ask(installation, &token);
            if answer.status == wanted {
                Ok(answer)
            } else {
                Err(format!("status {}", answer.status))
            }
        })
    };
    let access = |accounts: &Value| {
        let patch = json!({"spec": {"access": accounts}}).to_string();
        namespace
            .kubectl(["patch", "bks/staging", "--type=merge", "--patch", &patch])
            .succeed();
    };
    let all = json!([{"serviceAccounts": ["api"]}]);
    reads(200);
    access(&json!([{"serviceAccounts": ["other"]}]));
    reads(403).refused(403, "FORBIDDEN");
    namespace.wait_event(&["Pod/web", "AccessRefused", "spec.access"]);
    access(&all);
    reads(200);

    // A resource without a finalizer that is deleted; what it granted ends, and what it held does not.
    let stage = namespace.get("bks/staging").expect("is there");
    assert_eq!(stage["metadata"]["finalizers"], Value::Null);
    namespace.delete("bks/staging");
    // Well before anybody would look at it again by itself.
    wait_for(
        "the end of its access",
        Duration::from_secs(8),
        || match ask(installation, &token).status {
            403 => Ok(()),
            status => Err(format!("status {status}")),
        },
    );
    let again = json!({
        "apiVersion": "barekey.dev/v1alpha1", "kind": "BarekeyStage",
        "metadata": {"name": "staging"}, "spec": stage["spec"],
    });
    namespace.apply(again.to_string());
    reads(200);
}

fn identity_unavailable(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    let installation = Installation::shared();
    namespace.apply(asking("web", &format!("{PRINT_HASH}; exec sleep infinity")).to_string());
    namespace.wait_pod("web");
    let token = namespace
        .exec("web", &["cat", "/run/barekey.dev/token/token"])
        .succeed();
    let token = token.trim();
    let wait_answer = |status: u16| {
        eventually(&format!("the answer {status}"), || {
            let answer = ask(installation, token);
            let found = answer.status;
            (found == status)
                .then_some(answer)
                .ok_or_else(|| format!("status {found}"))
        })
    };
    for right in ["tokenreviews", "pods"] {
        wait_answer(200);
        let withheld = Withheld::from_the_operator(right);
        let answer = wait_answer(503);
        answer.refused(503, "IDENTITY_UNAVAILABLE");
        let seconds = answer
            .headers
            .get("retry-after")
            .expect("when to ask again");
        let seconds: u32 = seconds.to_str().unwrap().parse().expect("a number");
        assert!(seconds > 0);
        assert!(!setting.leaks_into(answer.text()));

        // A container that starts meanwhile waits for its values, and starts its program with them.
        let late = format!("late-{right}");
        namespace.apply(asking(&late, PRINT_HASH).to_string());
        namespace.wait_pod(&late);
        assert_eq!(namespace.logs(&late), "", "its program has not started");
        drop(withheld);
        setting.printed_by(namespace, &late);
    }
    wait_answer(200);
}

/// A right of the operator's that it has not got until this guard goes.
struct Withheld {
    rules: Value,
}

impl Withheld {
    #[track_caller]
    fn from_the_operator(resource: &str) -> Self {
        let role = get(["clusterrole/barekey"]).expect("the chart renders it");
        let rules = role["rules"].clone();
        let mut left = rules.as_array().expect("a list").clone();
        left.retain(|rule| rule["resources"] != json!([resource]));
        assert_eq!(left.len() + 1, rules.as_array().map_or(0, Vec::len));
        let withheld = Self { rules };
        Self::patch(&json!(left)).succeed();
        withheld
    }

    /// As Helm, which is to find its own field when it comes again.
    fn patch(rules: &Value) -> Program {
        let patch = json!({"rules": rules}).to_string();
        kubectl(["patch", "clusterrole/barekey", "--field-manager=helm"]).args([
            "--type=merge",
            "--patch",
            &patch,
        ])
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        // A second panic would end the run.
        let output = Self::patch(&self.rules).output();
        if !output.status.success() {
            eprintln!("the operator's rights are not restored: {output}");
        }
    }
}
