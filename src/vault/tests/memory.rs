//! What memory holds of stages, and that nobody is answered of what is past.

use futures::future::join_all;

use super::*;
use crate::domain::access::TokenCaller;
use crate::domain::variable::DeclaredType;
use crate::vault::cache::Environment;
use crate::vault::loads::STAGES_BYTES_MAX;
use crate::vault::pods::PodReadError;

on_both_databases!(
    many_who_ask_for_one_cold_stage_load_it_once,
    asking_for_what_is_not_there_keeps_the_stage_in_memory,
    what_is_not_in_an_old_stage_is_looked_for_in_the_new_one,
    a_stage_that_nobody_uses_leaves_its_room,
);

async fn shop(place: &Place) -> Acme {
    let acme = Acme::on(place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    acme.vault.core().cache.forget_all();
    acme
}

fn token(caller: &Caller) -> &TokenCaller {
    match caller {
        Caller::Token(token) => token,
        Caller::Pod(pod) => panic!("{pod:?}"),
    }
}

async fn environment(acme: &Acme) -> Arc<Environment> {
    let stage = target("shop", "development");
    let found = acme.vault.environment(token(&acme.owner), &stage, false);
    found.await.unwrap().unwrap().0
}

async fn many_who_ask_for_one_cold_stage_load_it_once(place: Place) {
    let acme = shop(&place).await;
    let loaded = join_all((0..40).map(|_| environment(&acme))).await;
    for other in &loaded {
        assert!(Arc::ptr_eq(&loaded[0], other));
    }
    assert!(Arc::ptr_eq(&loaded[0], &environment(&acme).await));
}

async fn asking_for_what_is_not_there_keeps_the_stage_in_memory(place: Place) {
    let acme = shop(&place).await;
    let held = environment(&acme).await;
    let typed = [Ask {
        name: "A".parse().unwrap(),
        declared_type: Some(DeclaredType::Json),
    }];
    let stage = target("shop", "development");
    for asks in [[ask("NONE")], typed] {
        let refused = acme
            .vault
            .evaluate(&acme.owner, &origin(), &stage, &asks, None)
            .await;
        assert!(
            matches!(
                refused,
                Err(ReadError::NoVariable { .. } | ReadError::WrongType { .. })
            ),
            "{refused:?}"
        );
        assert!(Arc::ptr_eq(&held, &environment(&acme).await));
    }
}

async fn what_is_not_in_an_old_stage_is_looked_for_in_the_new_one(place: Place) {
    let acme = shop(&place).await;
    let old = environment(&acme).await;
    acme.write("development", vec![entry("B", "y")])
        .await
        .unwrap();
    // As a load does that began before the write and ends after it.
    acme.vault.core().cache.hold_environment(old);
    assert_eq!(acme.read("development", "B").await.unwrap(), "y");
    let new = environment(&acme).await;
    assert_eq!(new.variables.as_ref().unwrap().len(), 2);
    // And what is newer stays.
    let mut past = new.stage.clone();
    past.epoch -= 1;
    acme.vault.core().cache.forget_past_stage(&past);
    assert!(Arc::ptr_eq(&new, &environment(&acme).await));
}

async fn a_stage_that_nobody_uses_leaves_its_room(place: Place) {
    let acme = shop(&place).await;
    let loads = &acme.vault.core().loads;
    assert_eq!(loads.free(), STAGES_BYTES_MAX);
    let held = environment(&acme).await;
    assert_eq!(loads.free(), STAGES_BYTES_MAX - held.bytes());
    acme.vault.core().cache.forget_all();
    assert_eq!(loads.free(), STAGES_BYTES_MAX - held.bytes());
    drop(held);
    assert_eq!(loads.free(), STAGES_BYTES_MAX);
}

/// What the writer of a file knows of a stage is not what readers find: each attempt of a read is overtaken.
async fn overtake(acme: &Acme) {
    acme.tamper("UPDATE stages SET epoch = epoch + 1").await;
}

#[tokio::test]
async fn a_read_that_is_always_overtaken_is_done_inside_a_group() {
    let place = Place::sqlite();
    let acme = shop(&place).await;
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    overtake(&acme).await;
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    overtake(&acme).await;
    let stage = target("shop", "development");
    let pulled = acme
        .vault
        .pull(&acme.owner, &origin(), &stage, Some("key"))
        .await;
    assert_eq!(pulled.unwrap().len(), 1);
    let billing = acme.caller(Role::Billing, None, None).await;
    overtake(&acme).await;
    let refused = read(&acme.vault, &billing, "development", "A").await;
    assert!(matches!(refused, Err(ReadError::Refused(_))), "{refused:?}");
    assert_eq!(acme.count("variables.read").await, 3);
    assert_eq!(acme.count("read.refused").await, 1);
    let mut db = acme.intruder().await;
    let statement = "SELECT units FROM usage WHERE meter = 'dynamic_requests'";
    let units = db.row(statement, cells![]).await.unwrap().unwrap();
    assert_eq!(units.integer(0).unwrap(), 3);
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_pod_that_is_always_overtaken_reads_inside_a_group() {
    let place = Place::sqlite();
    let acme = shop(&place).await;
    let vault = &acme.vault;
    let stage = acme.backend().await;
    let text = format!(r#"{{"v":1,"stage":"{stage}"}}"#);
    let of = |account| pod("team-a", account, vec![Allowance::parse(&text).unwrap()]);
    let reads = async |account| vault.read_for_pod(&of(account), &origin()).await;
    assert_eq!(reads("api").await.unwrap().len(), 1);
    overtake(&acme).await;
    assert_eq!(reads("api").await.unwrap().len(), 1);
    overtake(&acme).await;
    assert!(matches!(
        reads("web").await,
        Err(PodReadError::NoAccess { .. })
    ));
    assert_eq!(acme.count("variables.read").await, 2);
    assert_eq!(acme.count("read.refused").await, 1);
    assert_eq!(acme.findings().await, Vec::<String>::new());
}
