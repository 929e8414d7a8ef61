//! Who is told what about a stage.

use super::*;

#[test]
fn a_name_that_the_stage_does_not_hold_is_warned_about() {
    let pod = with(
        pod(),
        "/metadata/annotations/barekey.dev~1variables",
        json!("TOKEN,SOON"),
    );
    let (_, injection) = try_inject(&pod, AgentDelivery::Init, &stage(), Some(&names())).unwrap();
    assert_eq!(injection.warnings.len(), 1, "{:?}", injection.warnings);
    assert!(
        injection.warnings[0].contains("BarekeyStage shop/backend-production has no variable SOON")
    );
}

#[test]
fn of_many_names_at_once_it_is_not_told_which_the_stage_holds() {
    let warnings = |count: usize| {
        let listed = (1..count).map(|number| format!("GUESS_{number}"));
        let listed = Vec::from_iter(listed.chain(["TOKEN".to_owned()])).join(",");
        let annotation = "/metadata/annotations/barekey.dev~1variables";
        let bare = with(pod(), "/spec/containers/0/env", json!([]));
        let pod = with(bare, annotation, json!(listed));
        let (_, injection) =
            try_inject(&pod, AgentDelivery::Init, &stage(), Some(&names())).unwrap();
        injection.warnings
    };
    assert_eq!(warnings(WARNINGS_MAX).len(), WARNINGS_MAX - 1);
    let [told] = &warnings(WARNINGS_MAX + 1)[..] else {
        panic!("one warning for all");
    };
    assert!(told.contains("does not have all 17 variables"), "{told}");
    assert!(!told.contains("GUESS") && !told.contains("TOKEN"), "{told}");
}

#[test]
fn a_stage_that_is_absent_and_one_that_grants_nothing_read_the_same() {
    let request = request(&pod()).unwrap();
    let mut foreign = stage();
    foreign.access[0].service_accounts = vec!["other".parse().unwrap()];
    foreign.ready = false;
    let absent = check_access(&request, None).unwrap_err().to_string();
    assert_eq!(
        check_access(&request, Some(&foreign))
            .unwrap_err()
            .to_string(),
        absent
    );
    assert!(
        absent.contains("the service account api of namespace shop"),
        "{absent}"
    );
    assert!(absent.contains("spec.access"), "{absent}");
}

#[test]
fn a_stage_that_is_not_ready_is_told_to_those_it_grants_something() {
    let mut stage = stage();
    stage.ready = false;
    let told = check_access(&request(&pod()).unwrap(), Some(&stage))
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("kubectl describe -n shop bks backend-production"),
        "{told}"
    );
    stage.ready = true;
    stage.id = None;
    assert!(check_access(&request(&pod()).unwrap(), Some(&stage)).is_err());
}

#[test]
fn a_name_listed_or_referred_to_that_is_not_granted_is_refused() {
    let granting = stage_granting(Some(&["TOKEN"]));
    let told = check_access(&request(&pod()).unwrap(), Some(&granting))
        .unwrap_err()
        .to_string();
    assert!(told.contains("the variable DATABASE_URL"), "{told}");
    let listing = with(
        pod(),
        "/metadata/annotations/barekey.dev~1variables",
        json!("DB_USER"),
    );
    let told = check_access(
        &request(&listing).unwrap(),
        Some(&stage_granting(Some(&["DATABASE_URL"]))),
    )
    .unwrap_err()
    .to_string();
    assert!(told.contains("the variable DB_USER"), "{told}");
    assert!(
        check_access(
            &request(&listing).unwrap(),
            Some(&stage_granting(Some(&["D*"])))
        )
        .is_ok()
    );
}

#[test]
fn the_default_service_account_counts_as_one() {
    let mut pod = without(
        without(pod(), "/spec/serviceAccountName"),
        "/spec/serviceAccount",
    );
    let told = check_access(&request(&pod).unwrap(), Some(&stage()))
        .unwrap_err()
        .to_string();
    assert!(told.contains("the service account default of"), "{told}");
    pod["spec"]["serviceAccountName"] = json!("");
    assert!(request(&pod).is_ok());
}

#[test]
fn a_stage_of_another_namespace_is_looked_for_there() {
    let pod = with(
        pod(),
        "/metadata/annotations/barekey.dev~1stage",
        json!("vaults/production"),
    );
    let request = request(&pod).unwrap();
    assert_eq!(request.stage().0.as_str(), "vaults");
    assert_eq!(request.stage().1.as_str(), "production");
}
