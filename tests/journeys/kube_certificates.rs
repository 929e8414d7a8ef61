//! Who trusts the operator, who leads, and what is published outside the database.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Installation, Journey, Namespace, Program, eventually, get, kubectl, wait_for,
};
use crate::injection_setting::{PRINT_HASH, Setting, asking};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared("the_ca_is_the_one_that_signs_the_operator", ca_signs),
        Journey::shared("audit_heads_are_published_on_the_lease", audit_heads),
        Journey::changing("a_wiped_ca_bundle_is_written_again", wiped_bundle),
        Journey::changing(
            "a_restart_keeps_the_values_the_ca_and_the_lease",
            restart_keeps_all,
        ),
        Journey::changing(
            "an_operator_that_was_killed_leads_again",
            killed_leads_again,
        )
        .inside(),
    ]
}

fn lease() -> Value {
    get([
        "--namespace",
        Installation::shared().namespace(),
        "lease/barekey",
    ])
    .expect("the chart renders a Lease")
}

fn ca_signs(_namespace: &Namespace) {
    let installation = Installation::shared();
    // The CLI and every request of a journey trust the published CA alone.
    let answer = installation.api().get("/openapi.json").send();
    assert_eq!(answer.status, 200);
    let bundle = installation.ca();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1);
}

fn audit_heads(namespace: &Namespace) {
    let installation = Installation::shared();
    installation.organization(namespace);
    wait_for("a head of a chain", Duration::from_secs(60), || {
        let lease = lease();
        let text = lease["metadata"]["annotations"]["barekey.dev/audit-heads"]
            .as_str()
            .ok_or("there is no annotation")?;
        let heads: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let whole = heads.as_array().is_some_and(|heads| {
            !heads.is_empty()
                && heads.iter().all(|head| {
                    head["chain"].is_string()
                        && head["epoch"].is_i64()
                        && head["sequence"].is_i64()
                        && head["mac"].is_string()
                })
        });
        if whole {
            Ok(())
        } else {
            Err(heads.to_string())
        }
    });
}

fn wiped_bundle(_namespace: &Namespace) {
    let installation = Installation::shared();
    let before = installation.ca();
    let wipe = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]).to_string();
    kubectl([
        "patch",
        "mutatingwebhookconfiguration/00-barekey",
        "--type=json",
        "--patch",
        &wipe,
    ])
    .succeed();
    let began = Instant::now();
    let after = installation.ca();
    assert_eq!(before, after);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "written again after {:?}",
        began.elapsed()
    );
}

fn restart_keeps_all(namespace: &Namespace) {
    let installation = Installation::shared();
    let setting = Setting::make(namespace);
    let script = format!("trap 'exit 0' TERM; {PRINT_HASH}; while :; do sleep 1; done");
    let mut pod = asking("older", &script);
    pod["spec"]["restartPolicy"] = "Always".into();
    namespace.apply(pod.to_string());
    let started = |times: i64| {
        eventually(&format!("start {times} of the container"), || {
            let pod = namespace.get("pod/older").ok_or("there is no pod")?;
            let status = &pod["status"]["containerStatuses"][0];
            let printed = || namespace.logs("older");
            if status["restartCount"] == times - 1
                && status["ready"] == true
                && !printed().is_empty()
            {
                Ok((pod, printed()))
            } else {
                Err(status.to_string())
            }
        })
    };
    let (first, printed) = started(1);
    setting.is_in(&printed);

    let before = installation.ca();
    installation.restart();
    assert_eq!(installation.ca(), before);
    // The same pod, with the CA in its spec, gets the same value from the operator that is there now.
    namespace.exec("older", &["kill", "1"]).succeed();
    let (second, printed) = started(2);
    assert_eq!(first["metadata"]["uid"], second["metadata"]["uid"]);
    setting.is_in(&printed);
    eventually("a pod that holds the Lease", || {
        let lease = lease();
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        if installation.pods().iter().any(|pod| pod == holder) {
            Ok(())
        } else {
            Err(format!("{holder:?} holds it"))
        }
    });
}

fn killed_leads_again(namespace: &Namespace) {
    let installation = Installation::shared();
    let holder = lease()["spec"]["holderIdentity"].take();
    let holder = holder.as_str().expect("somebody leads");
    let pod = format!("pod/{holder}");
    let status = || {
        let found = get(["--namespace", installation.namespace(), &pod]).expect("it is there");
        found["status"]["containerStatuses"][0].clone()
    };
    let before = status()["restartCount"].as_i64();
    // A pod that is deleted by force is still told to stop, and gives the Lease back.
    Program::new("pkill")
        .args(["--signal", "KILL", "--full", "^/barekey-operator serve"])
        .succeed();
    eventually("its next start", || {
        let status = status();
        if status["restartCount"].as_i64() > before && status["ready"] == true {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    let organization = installation.organization(namespace);
    let project = json!({
        "apiVersion": "barekey.dev/v1alpha1", "kind": "BarekeyProject",
        "metadata": {"name": "backend"}, "spec": {"organization": organization.slug},
    });
    namespace.apply(project.to_string());
    wait_for(
        "a leader that acts",
        Duration::from_secs(30),
        || match namespace.condition("bkp/backend", "Ready") {
            Some(condition) if condition.status == "True" => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
}
