//! Who wins, what entries become, and `$(VAR)` as Kubernetes documents it.

use proptest::prelude::*;

use super::*;

fn expanded(text: &str) -> String {
    let known: BTreeMap<&[u8], &[u8]> = BTreeMap::from([
        (b"VAR_A".as_slice(), b"A".as_slice()),
        (b"VAR_B", b"B"),
        (b"VAR_REF", b"$(VAR_A)"),
        (b"EMPTY", b""),
    ]);
    String::from_utf8(expand(text.as_bytes(), |name| known.get(name).copied())).unwrap()
}

#[test]
fn references_expand_as_kubernetes_documents_them() {
    let vectors = [
        ("", ""),
        ("plain", "plain"),
        ("$(VAR_A)", "A"),
        ("___$(VAR_B)___", "___B___"),
        ("$(VAR_A)-$(VAR_A)", "A-A"),
        ("$(VAR_A)$(VAR_B)", "AB"),
        ("$(EMPTY)", ""),
        // What was put in is not expanded again.
        ("$(VAR_REF)", "$(VAR_A)"),
        // Escapes.
        ("$$", "$"),
        ("$$$", "$$"),
        ("$$$$", "$$"),
        ("$$(VAR_A)", "$(VAR_A)"),
        ("$$$(VAR_A)", "$A"),
        ("$$$$(VAR_A)", "$$(VAR_A)"),
        ("$$$$$$$(VAR_A)", "$$$A"),
        ("$$VAR_A", "$VAR_A"),
        // A backslash escapes nothing.
        ("\\$(VAR_A)", "\\A"),
        ("\\\\$(VAR_A)", "\\\\A"),
        // A name that is not defined stays as it is written.
        ("$(NONE)", "$(NONE)"),
        ("$()", "$()"),
        ("$( VAR_A)", "$( VAR_A)"),
        // No nesting: the first `)` closes.
        ("$(VAR_A$(VAR_B))", "$(VAR_A$(VAR_B))"),
        // Not a reference.
        ("$", "$"),
        ("a$", "a$"),
        ("$(", "$("),
        ("$(VAR_A", "$(VAR_A"),
        ("$(VAR_A$$", "$(VAR_A$"),
        ("$)", "$)"),
        ("$VAR_A", "$VAR_A"),
        ("${VAR_A}", "${VAR_A}"),
        ("$(VAR_A}", "$(VAR_A}"),
        ("50$ü", "50$ü"),
    ];
    for (text, expected) in vectors {
        assert_eq!(expanded(text), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn a_text_with_every_dollar_doubled_expands_to_itself(text in proptest::collection::vec(any::<u8>(), 0..64)) {
        let doubled: Vec<u8> = text
            .iter()
            .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'$' { 2 } else { 1 }))
            .collect();
        prop_assert_eq!(expand(&doubled, |_| Some(b"value".as_slice())), text);
    }

    #[test]
    fn a_text_whose_names_are_unknown_loses_only_doubled_dollars(text in "[$()A]{0,24}") {
        let kept = expand(text.as_bytes(), |_| None);
        let without = |text: &[u8]| -> Vec<u8> { text.iter().copied().filter(|byte| *byte != b'$').collect() };
        prop_assert_eq!(without(&kept), without(text.as_bytes()));
        prop_assert!(kept.len() <= text.len());
    }
}

fn environment(entries: &[(&str, &str)]) -> Environment {
    entries
        .iter()
        .map(|(name, value)| {
            (
                name.as_bytes().to_vec(),
                Plaintext::from((*value).to_owned()),
            )
        })
        .collect()
}

fn values(entries: &[(&str, &str)]) -> BTreeMap<VariableName, Plaintext> {
    entries
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), Plaintext::from((*value).to_owned())))
        .collect()
}

fn allowance(json: serde_json::Value) -> Allowance {
    let mut form = serde_json::json!({"v": 1, "stage": "stg_1"});
    form.as_object_mut()
        .unwrap()
        .extend(json.as_object().unwrap().clone());
    Allowance::parse(&form.to_string()).unwrap()
}

fn settings(json: serde_json::Value) -> AgentSettings {
    let mut form = serde_json::json!({
        "v": 1, "server": "barekey.barekey.svc", "port": 443, "ca": "", "token": "/t", "waitSeconds": 60,
    });
    form.as_object_mut()
        .unwrap()
        .extend(json.as_object().unwrap().clone());
    AgentSettings::parse(&form.to_string()).unwrap()
}

fn composed(
    entries: &[(&str, &str)],
    command: &[&str],
    allowed: serde_json::Value,
    told: serde_json::Value,
    stage: &[(&str, &str)],
) -> Result<(BTreeMap<String, String>, Vec<String>), ComposeError> {
    let command: Vec<Vec<u8>> = command
        .iter()
        .map(|word| word.as_bytes().to_vec())
        .collect();
    let text = |value: &Plaintext| value.reveal_text().unwrap().to_owned();
    compose(
        environment(entries),
        &command,
        &allowance(allowed),
        &settings(told),
        &values(stage),
    )
    .map(|composed| {
        (
            composed
                .environment
                .iter()
                .map(|(name, value)| (String::from_utf8(name.clone()).unwrap(), text(value)))
                .collect(),
            composed.command.iter().map(text).collect(),
        )
    })
}

fn environment_of(
    entries: &[(&str, &str)],
    allowed: serde_json::Value,
    told: serde_json::Value,
    stage: &[(&str, &str)],
) -> BTreeMap<String, String> {
    composed(entries, &[], allowed, told, stage).unwrap().0
}

fn entries(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

use serde_json::json;

#[test]
fn the_pods_own_names_win_over_the_stages_and_the_stages_over_the_images() {
    assert_eq!(
        environment_of(
            &[
                ("OWN", "pod"),
                ("CM_KEY", "configmap"),
                ("IMAGE", "image"),
                ("LANG", "C")
            ],
            json!({}),
            json!({"own": ["OWN"], "prefixes": ["CM_"]}),
            &[
                ("OWN", "s"),
                ("CM_KEY", "s"),
                ("CM_NEW", "s"),
                ("IMAGE", "s"),
                ("NEW", "s")
            ],
        ),
        entries(&[
            ("OWN", "pod"),
            ("CM_KEY", "configmap"),
            ("CM_NEW", "s"),
            ("IMAGE", "s"),
            ("LANG", "C"),
            ("NEW", "s")
        ]),
    );
}

#[test]
fn an_own_name_that_is_not_there_does_not_hide_the_stages() {
    // Such as an optional key of a ConfigMap that does not exist.
    assert_eq!(
        environment_of(
            &[],
            json!({}),
            json!({"own": ["OPTIONAL"]}),
            &[("OPTIONAL", "s")]
        ),
        entries(&[("OPTIONAL", "s")]),
    );
}

#[test]
fn reserved_names_are_set_only_when_named_exactly() {
    let stage = [
        ("PATH", "/stage"),
        ("LD_PRELOAD", "x.so"),
        ("HOME", "/h"),
        ("KUBERNETES_SERVICE_HOST", "evil"),
    ];
    let image = [("PATH", "/bin"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1")];
    assert_eq!(
        environment_of(&image, json!({}), json!({}), &stage),
        entries(&image)
    );
    assert_eq!(
        environment_of(
            &image,
            json!({"variables": ["KUBERNETES_*", "LD_*", "HOME"]}),
            json!({}),
            &stage
        ),
        entries(&[
            ("PATH", "/bin"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("HOME", "/h")
        ]),
    );
    assert_eq!(
        environment_of(
            &image,
            json!({"variables": ["PATH", "LD_PRELOAD"]}),
            json!({}),
            &stage
        ),
        entries(&[
            ("PATH", "/stage"),
            ("LD_PRELOAD", "x.so"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        ]),
    );
}

#[test]
fn the_agents_entries_are_gone_and_a_stage_cannot_set_them() {
    assert_eq!(
        environment_of(
            &[
                ("BAREKEY_ALLOWANCE", "{}"),
                ("BAREKEY_AGENT_SETTINGS", "{}"),
                ("BAREKEY_AGENT_X", "x"),
                ("BAREKEY_API_URL", "mine")
            ],
            json!({}),
            json!({"own": ["BAREKEY_API_URL", "BAREKEY_ALLOWANCE", "BAREKEY_AGENT_SETTINGS"]}),
            &[
                ("BAREKEY_AGENT_SETTINGS", "s"),
                ("BAREKEY_ALLOWANCE", "s"),
                ("BAREKEY_TOKEN", "s")
            ],
        ),
        entries(&[("BAREKEY_API_URL", "mine"), ("BAREKEY_TOKEN", "s")]),
    );
}

#[test]
fn a_rename_sets_the_new_name_alone_unless_the_pod_sets_it() {
    let allowed = json!({"variables": [], "rename": {"DATABASE_URL": "DB", "OWN": "DB"}});
    assert_eq!(
        environment_of(
            &[("OWN", "pod"), ("DATABASE_URL", "image")],
            allowed,
            json!({"own": ["OWN"]}),
            &[("DB", "s")]
        ),
        entries(&[("OWN", "pod"), ("DATABASE_URL", "s")]),
    );
}

#[test]
fn only_patterns_of_the_allowance_are_set() {
    assert_eq!(
        environment_of(
            &[],
            json!({"variables": ["DB_*", "KEY"]}),
            json!({}),
            &[("DB_URL", "u"), ("KEY", "k"), ("OTHER", "o")]
        ),
        entries(&[("DB_URL", "u"), ("KEY", "k")]),
    );
}

#[test]
fn an_exact_reference_is_replaced_and_nothing_else_that_looks_like_one() {
    assert_eq!(
        environment_of(
            &[
                ("A", "barekey:DB"),
                ("B", "x barekey:DB"),
                ("C", "barekey:"),
                ("D", "barekey:a b"),
                ("CM", "barekey:KEY")
            ],
            json!({"variables": ["KEY"], "references": ["DB"]}),
            json!({"own": ["A", "B", "C", "D"], "prefixes": ["CM"]}),
            &[("DB", "$(KEY)"), ("KEY", "barekey:DB")],
        ),
        entries(&[
            ("A", "$(KEY)"),
            ("B", "x barekey:DB"),
            ("C", "barekey:"),
            ("D", "barekey:a b"),
            ("CM", "barekey:DB"),
            ("KEY", "barekey:DB")
        ]),
    );
}

#[test]
fn everything_that_is_missing_or_not_covered_is_named_at_once() {
    let error = composed(
        &[("CM_A", "barekey:HIDDEN"), ("E", "barekey:GONE")],
        &[],
        json!({"variables": ["A", "B", "P_*"], "rename": {"N": "OLD"}, "references": ["GONE"]}),
        json!({"own": ["E"], "prefixes": ["CM_"]}),
        &[("A", "a"), ("HIDDEN", "h")],
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no B, GONE, OLD,"), "{text}");
    assert!(text.contains("CM_A asks for barekey:HIDDEN"), "{text}");
    assert!(text.contains("add HIDDEN to"), "{text}");
}

#[test]
fn a_value_with_nul_is_refused_by_its_name() {
    let error = composed(&[], &[], json!({}), json!({}), &[("A", "se\0cret")]).unwrap_err();
    assert_eq!(error.with_nul, BTreeSet::from(["A".to_owned()]));
    assert!(!error.to_string().contains("cret"));
}

#[test]
fn an_own_entry_sees_earlier_entries_env_from_the_stage_and_services_but_not_the_image() {
    let told = json!({
        "own": ["FIRST", "SECOND", "THIRD", "HIDDEN"], "expand": ["SECOND", "THIRD"], "prefixes": ["CM_"],
    });
    let entries_of_container = [
        ("FIRST", "1"),
        (
            "SECOND",
            "$(FIRST) $(CM_A) $(STAGE) $(REDIS_PORT_6379_TCP_ADDR) $(REDIS_SERVICE_HOST) $(LANG) $(THIRD) $(APP_PORT) $$(FIRST)",
        ),
        ("THIRD", "$(SECOND)!"),
        ("HIDDEN", "$(FIRST)"),
        ("CM_A", "cm"),
        ("LANG", "C"),
        ("APP_PORT", "8080"),
        ("REDIS_SERVICE_HOST", "10.1.1.1"),
        ("REDIS_PORT_6379_TCP_ADDR", "10.1.1.1"),
    ];
    let all = environment_of(&entries_of_container, json!({}), told, &[("STAGE", "s")]);
    let second = "1 cm s 10.1.1.1 10.1.1.1 $(LANG) $(THIRD) $(APP_PORT) $(FIRST)";
    assert_eq!(all["SECOND"], second);
    assert_eq!(all["THIRD"], format!("{second}!"));
    // The kubelet settled what is not in `expand`, such as a value from a ConfigMap's key.
    assert_eq!(all["HIDDEN"], "$(FIRST)");
}

#[test]
fn an_own_entry_can_wrap_the_stages_value_of_its_own_name() {
    assert_eq!(
        environment_of(
            &[("DATABASE_URL", "$(DATABASE_URL)?sslmode=verify-full")],
            json!({}),
            json!({"own": ["DATABASE_URL"], "expand": ["DATABASE_URL"]}),
            &[("DATABASE_URL", "postgres://db")],
        ),
        entries(&[("DATABASE_URL", "postgres://db?sslmode=verify-full")]),
    );
}

#[test]
fn the_command_sees_the_pods_and_the_stages_names_and_not_the_images() {
    let (_, command) = composed(
        &[("OWN", "own"), ("LANG", "C"), ("REF", "barekey:KEY")],
        &[
            "/bin/$(OWN)",
            "--key=$(KEY)",
            "$(LANG)",
            "$(REF)",
            "$$(OWN)",
            "$(NONE)",
            "",
        ],
        json!({"variables": ["KEY"]}),
        json!({"own": ["OWN", "REF"]}),
        &[("KEY", "k")],
    )
    .unwrap();
    assert_eq!(
        command,
        [
            "/bin/own", "--key=k", "$(LANG)", "k", "$(OWN)", "$(NONE)", ""
        ]
    );
}

#[test]
fn the_path_is_settled_unless_a_value_can_change_it() {
    let settled = |path: &str, allowed, told| {
        path_is_settled(
            &environment(&[("PATH", path)]),
            &allowance(allowed),
            &settings(told),
        )
    };
    assert!(settled("/bin", json!({}), json!({})));
    assert!(settled(
        "/bin",
        json!({"variables": ["PATH"]}),
        json!({"own": ["PATH"]})
    ));
    assert!(!settled("/bin", json!({"variables": ["PATH"]}), json!({})));
    assert!(!settled(
        "/bin",
        json!({"rename": {"PATH": "P"}}),
        json!({})
    ));
    assert!(!settled(
        "$(A)",
        json!({}),
        json!({"own": ["PATH"], "expand": ["PATH"]})
    ));
    assert!(!settled("barekey:P", json!({}), json!({"own": ["PATH"]})));
}
