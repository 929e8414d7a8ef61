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
