//! Parts of ours that are there before: copies, what was written by hand, and what gives it back.

use proptest::prelude::*;

use super::*;

#[test]
fn entries_of_ours_written_by_hand_are_refused_with_and_without_a_stage() {
    for entry in [
        "BAREKEY_ALLOWANCE",
        "BAREKEY_AGENT_SETTINGS",
        "BAREKEY_AGENT_X",
    ] {
        let by_hand = with(
            pod(),
            "/spec/containers/0/env/-",
            json!({"name": entry, "value": "{}"}),
        );
        for pod in [
            by_hand.clone(),
            without(by_hand, "/metadata/annotations/barekey.dev~1stage"),
        ] {
            assert!(
                refused(&pod).contains(&format!(
                    "container app sets {entry}, which only barekey's webhook writes"
                )),
                "{entry}"
            );
        }
    }
    // All other names with our prefix are the users' own, such as those of the command line in a CI job.
    injected(&with(
        pod(),
        "/spec/containers/0/env/-",
        json!({"name": "BAREKEY_ORG", "value": "acme"}),
    ));
}

#[test]
fn an_allowance_by_hand_in_a_container_that_is_left_out_is_refused() {
    let pod = with(
        pod(),
        "/spec/initContainers",
        json!([{"name": "istio-init", "env": [{"name": "BAREKEY_ALLOWANCE", "value": "{}"}]}]),
    );
    assert!(refused(&pod).contains("container istio-init sets BAREKEY_ALLOWANCE"));
}

#[test]
fn a_pod_without_annotations_passes_as_it_is_and_hears_of_a_token_that_reads_nothing() {
    let plain = without(pod(), "/metadata/annotations/barekey.dev~1stage");
    let Asked::Nothing { warnings } = read(&plain, &"shop".parse().unwrap(), AUDIENCE).unwrap()
    else {
        panic!("it asks for nothing");
    };
    assert!(warnings.is_empty());
    let token = with(
        plain,
        "/spec/volumes/-",
        json!({"name": "barekey-token", "projected": {"sources": [
        {"serviceAccountToken": {"audience": AUDIENCE, "path": "token"}}]}}),
    );
    let Asked::Nothing { warnings } = read(&token, &"shop".parse().unwrap(), AUDIENCE).unwrap()
    else {
        panic!("it asks for nothing");
    };
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("reads nothing"), "{warnings:?}");
}

#[test]
fn a_copy_is_injected_anew_and_comes_out_the_same() {
    let once = injected(&pod());
    assert_eq!(injected(&once), once);
    let (again, injection) =
        try_inject(&once, AgentDelivery::Init, &stage(), Some(&names())).unwrap();
    assert_eq!(again, once);
    assert!(injection.patch.is_empty());
}

#[test]
fn a_copy_gets_the_present_settings_and_loses_an_altered_allowance() {
    let mut copy = injected(&pod());
    let env = copy["spec"]["containers"][0]["env"].as_array_mut().unwrap();
    env.iter_mut()
        .find(|it| it["name"] == ALLOWANCE_ENTRY)
        .unwrap()["value"] = json!(r#"{"v":1,"stage":"stg_other","references":["ROOT_PASSWORD"]}"#);
    copy["spec"]["initContainers"][0]["image"] = json!("evil");
    assert_eq!(injected(&copy), injected(&pod()));
}

#[test]
fn a_copy_without_its_stage_is_refused_with_what_to_remove() {
    let copy = without(injected(&pod()), "/metadata/annotations/barekey.dev~1stage");
    let told = refused(&copy);
    for part in [
        "without barekey.dev/stage",
        "the entry BAREKEY_ALLOWANCE of container app",
        "/run/barekey.dev/agent/barekey run -- at the start of the command of container app",
        "the init container barekey-agent",
        "the volume barekey-token",
        "the annotation barekey.dev/injected-ca",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn a_copy_whose_parts_do_not_fit_is_refused() {
    let copy = injected(&pod());
    let no_mount = with(copy.clone(), "/spec/containers/0/volumeMounts", json!([]));
    assert!(refused(&no_mount).contains("lacks a mount of the agent"));
    let mut no_entries = copy.clone();
    no_entries["spec"]["containers"][0]["env"] = json!([]);
    assert!(refused(&no_entries).contains("starts the agent without its entries"));
    let no_volumes = with(copy, "/spec/volumes", json!([]));
    assert!(refused(&no_volumes).contains("which only barekey's webhook writes"));
}

#[test]
fn a_debugging_copy_with_a_shell_in_place_of_the_program_is_injected() {
    let mut copy = injected(&pod());
    copy["spec"]["containers"][0]["command"] = json!(["sh", "-c", "echo $$"]);
    copy["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .remove("args");
    copy["spec"]
        .as_object_mut()
        .unwrap()
        .remove("initContainers");
    let becomes = injected(&copy);
    assert_eq!(
        becomes["spec"]["containers"][0]["command"],
        json!([
            "/run/barekey.dev/agent/barekey",
            "run",
            "--",
            "sh",
            "-c",
            "echo $$$$"
        ])
    );
    assert_eq!(
        entry(&becomes["spec"]["containers"][0], "URL"),
        "x://$$(DB)/y"
    );
}

fn dollared() -> impl Strategy<Value = String> {
    "[ab$()]{0,10}"
}

fn any_container(index: usize) -> impl Strategy<Value = Value> {
    (
        prop::collection::vec(dollared(), 1..4),
        prop::collection::vec(dollared(), 0..3),
        prop::collection::vec(("[A-C$()]{1,4}", prop::option::of(dollared())), 0..4),
        prop::collection::vec("/[a-c]{1,3}", 0..3),
    )
        .prop_map(move |(command, args, env, mounts)| {
            let mut container = json!({"name": format!("c{index}"), "command": command});
            let map = container.as_object_mut().unwrap();
            if !args.is_empty() {
                map.insert("args".to_owned(), json!(args));
            }
            if !env.is_empty() {
                let entries: Vec<Value> = env.into_iter().map(|(name, value)| match value {
                    Some(value) => json!({"name": name, "value": value}),
                    None => json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
                }).collect();
                map.insert("env".to_owned(), json!(entries));
            }
            if !mounts.is_empty() {
                let mounts: Vec<Value> = mounts.into_iter().map(|path| json!({"name": "v", "mountPath": path})).collect();
                map.insert("volumeMounts".to_owned(), json!(mounts));
            }
            container
        })
}

proptest! {
    #[test]
    fn bringing_an_injected_pod_back_gives_what_was_written(
        app in any_container(0),
        init in prop::option::of(any_container(1)),
        image in any::<bool>(),
    ) {
        let mut pod = json!({
            "metadata": {"annotations": {"barekey.dev/stage": "backend-production"}},
            "spec": {"containers": [app], "serviceAccountName": "api"},
        });
        if let Some(init) = init {
            pod["spec"]["initContainers"] = json!([init]);
        }
        let delivery = if image { AgentDelivery::Image } else { AgentDelivery::Init };
        let (becomes, _) = try_inject(&pod, delivery, &stage(), Some(&names())).unwrap();
        prop_assert_eq!(&crate::kubernetes::injection::copies::restore(&becomes).unwrap(), &pod);
        let (again, injection) = try_inject(&becomes, delivery, &stage(), Some(&names())).unwrap();
        prop_assert_eq!(again, becomes);
        prop_assert!(injection.patch.is_empty());
    }
}
