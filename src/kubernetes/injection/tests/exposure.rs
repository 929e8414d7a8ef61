//! Probes, hooks and arguments.

use super::*;

#[test]
fn a_probe_or_hook_that_names_a_variable_is_refused_wherever_it_is() {
    let command = json!({"exec": {"command": ["sh", "-c", "psql \"$DB_USER\""]}});
    for (pointer, check) in [
        ("/livenessProbe", "livenessProbe"),
        ("/readinessProbe", "readinessProbe"),
        ("/startupProbe", "startupProbe"),
        ("/lifecycle/preStop", "preStop hook"),
        ("/lifecycle/postStart", "postStart hook"),
    ] {
        let base = with(pod(), "/spec/containers/0/lifecycle", json!({}));
        let told = refused(&with(
            base,
            &format!("/spec/containers/0{pointer}"),
            command.clone(),
        ));
        assert!(
            told.contains(&format!(
                "container app: its {check} names a variable of the stage"
            )),
            "{told}"
        );
    }
}

#[test]
fn a_probe_is_held_against_the_names_that_its_own_container_gets() {
    let probing = |text: &str| {
        with(
            pod(),
            "/spec/containers/0/livenessProbe",
            json!({"exec": {"command": ["sh", "-c", text]}}),
        )
    };
    let listing = |pod, variables: &str| {
        with(
            pod,
            "/metadata/annotations/barekey.dev~1variables",
            json!(variables),
        )
    };
    for (pod, names_it) in [
        (probing("echo $TOKEN"), true),
        (probing("printenv TOKEN"), true),
        (probing("echo $TOKENS ${MY_TOKEN}"), false),
        (probing("echo $LEVEL"), false),
        (probing("echo $DB"), true),
        (probing("echo $ABSENT"), false),
        (probing("ls $PATH"), false),
        (listing(probing("ls $PATH"), "PATH"), true),
        (listing(probing("echo $TOKEN"), "DB_*"), false),
        (listing(probing("echo $DB_USER"), "DB_*"), true),
        (listing(probing("echo $USER"), "USER=DB_USER"), true),
        (listing(probing("echo $LEVEL"), "LEVEL=DB_USER"), false),
        (listing(probing("echo $SOON"), "SOON"), true),
    ] {
        let result = try_inject(&pod, AgentDelivery::Init, &stage(), Some(&names()));
        let told = result.as_ref().err().map(ToString::to_string);
        assert_eq!(
            told.is_some(),
            names_it,
            "{} {told:?}",
            pod["spec"]["containers"][0]["livenessProbe"]
        );
    }
}

#[test]
fn a_probe_is_told_the_name_that_the_pod_asks_for_and_none_that_the_stage_holds() {
    let command = json!({"exec": {"command": ["sh", "-c", "echo $TOKEN $DB_USER $GUESS"]}});
    let probing = with(pod(), "/spec/containers/0/livenessProbe", command);
    let guessing = refused(&probing);
    for name in ["TOKEN", "DB_USER", "GUESS"] {
        assert!(!guessing.contains(name), "{guessing}");
    }
    let annotation = "/metadata/annotations/barekey.dev~1variables";
    let asking = refused(&with(probing, annotation, json!("DB_USER,TOK*")));
    assert!(asking.contains("livenessProbe names DB_USER"), "{asking}");
    assert!(!asking.contains("TOKEN"), "{asking}");
}

#[test]
fn a_probe_over_variables_that_the_account_may_not_read_is_fine() {
    let pod = with(
        pod(),
        "/spec/containers/0/livenessProbe",
        json!({"exec": {"command": ["echo", "$TOKEN"]}}),
    );
    assert!(
        try_inject(
            &pod,
            AgentDelivery::Init,
            &stage_granting(Some(&["DATABASE_URL"])),
            Some(&names())
        )
        .is_ok()
    );
}

#[test]
fn without_an_answer_of_the_vault_a_probe_that_could_name_a_variable_is_refused_for_now() {
    let pod = with(
        pod(),
        "/spec/containers/0/livenessProbe",
        json!({"exec": {"command": ["cat", "/tmp/ok"]}}),
    );
    assert!(
        try_inject(&pod, AgentDelivery::Init, &stage(), None)
            .unwrap_err()
            .to_string()
            .contains("does not answer right now")
    );
    let listed = with(
        pod,
        "/metadata/annotations/barekey.dev~1variables",
        json!("TOKEN"),
    );
    assert!(try_inject(&listed, AgentDelivery::Init, &stage(), None).is_ok());
}

#[test]
fn probes_that_ask_over_the_network_are_fine() {
    let pod = with(
        pod(),
        "/spec/containers/0/livenessProbe",
        json!({"httpGet": {"path": "/TOKEN", "port": 80}}),
    );
    assert!(try_inject(&pod, AgentDelivery::Init, &stage(), None).is_ok());
}

#[test]
fn a_probe_sees_the_pods_own_entries_as_the_kubelet_makes_them() {
    let env = json!([
        {"name": "PORT", "value": "8080"},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "CONFIGURED", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"name": "DB", "value": "barekey:DATABASE_URL"},
        {"name": "PLAIN", "value": "pa$word-$$(PORT)"},
        {"name": "URL", "value": "http://$(IP):$(PORT)"},
        {"name": "NESTED", "value": "$(URL)/$(KUBERNETES_SERVICE_HOST)"},
        {"name": "OF_DB", "value": "$(DB)?x"},
        {"name": "OF_OF_DB", "value": "$(OF_DB)"},
        {"name": "OF_CONFIGURED", "value": "$(CONFIGURED)"},
        {"name": "OF_STAGE", "value": "$(TOKEN)"},
        {"name": "OF_LATER", "value": "$(LATER)"},
        {"name": "LATER", "value": "x"},
    ]);
    let entries = [
        ("PLAIN", true),
        ("URL", true),
        ("NESTED", true),
        ("OF_DB", false),
        ("OF_OF_DB", false),
        ("OF_CONFIGURED", false),
        ("OF_STAGE", false),
        ("OF_LATER", false),
    ];
    let pod = with(pod(), "/spec/containers/0/env", env.clone());
    let becomes = injected(&pod);
    let container = &becomes["spec"]["containers"][0];
    for (name, left_to_the_kubelet) in entries {
        let written = env
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["name"] == name)
            .unwrap();
        let written = written["value"].as_str().unwrap();
        let expands = agent_settings(container).expand.contains(name);
        assert_eq!(expands, !left_to_the_kubelet, "{name}");
        let now = entry(container, name);
        assert_eq!(now == written, left_to_the_kubelet, "{name}");

        let probing = with(
            pod.clone(),
            "/spec/containers/0/livenessProbe",
            json!({"exec": {"command": ["sh", "-c", format!("test \"${name}\"")]}}),
        );
        if left_to_the_kubelet {
            injected(&probing);
        } else {
            let told = refused(&probing);
            assert!(
                told.contains(&format!(
                    "livenessProbe names {name}, which refers by $(NAME)"
                )),
                "{told}"
            );
        }
    }
    // What cannot be a variable of the stage, since the pod lists others, is the kubelet's.
    let listed = with(
        pod,
        "/metadata/annotations/barekey.dev~1variables",
        json!("DB_*"),
    );
    let expand = |pod: &Value| agent_settings(&injected(pod)["spec"]["containers"][0]).expand;
    assert!(!expand(&listed).contains("OF_STAGE"));
    // What `envFrom` sets may be a reference.
    let from = with(
        listed,
        "/spec/containers/0/envFrom",
        json!([{"configMapRef": {"name": "c"}, "prefix": "TO"}]),
    );
    assert!(expand(&from).contains("OF_STAGE"));
}

#[test]
fn a_value_that_lands_in_arguments_is_warned_about() {
    let pod = with(
        pod(),
        "/spec/containers/0/args",
        json!(["--token=$(TOKEN)", "--db=$(DB)", "$(LEVEL)", "$$(DB_USER)"]),
    );
    let (_, injection) = try_inject(&pod, AgentDelivery::Init, &stage(), Some(&names())).unwrap();
    let [asked, others] = &injection.warnings[..] else {
        panic!("{:?}", injection.warnings);
    };
    assert!(asked.contains("$(DB) puts a value"), "{asked}");
    assert!(others.contains("refer by $(NAME)"), "{others}");
    assert!(
        !others.contains("TOKEN"),
        "the stage alone says so: {others}"
    );
}
