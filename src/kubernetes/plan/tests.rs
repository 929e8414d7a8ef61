//! What is decided, and what is said of it.

mod finding;
mod projects;
mod stages;

use serde_json::{Value, json};

use super::*;

fn organizations() -> Organizations {
    r#"{"acme":{"namespaces":["shop"]}}"#.parse().unwrap()
}

fn project_from(change: Value) -> BarekeyProject {
    let mut object = json!({
        "apiVersion": "barekey.dev/v1alpha1",
        "kind": "BarekeyProject",
        "metadata": {
            "name": "backend", "namespace": "shop", "uid": "1", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z"
        },
        "spec": {"organization": "acme"}
    });
    merge(&mut object, change);
    serde_json::from_value(object).unwrap()
}

fn stage_from(change: Value) -> BarekeyStage {
    let mut object = json!({
        "apiVersion": "barekey.dev/v1alpha1",
        "kind": "BarekeyStage",
        "metadata": {
            "name": "production", "namespace": "shop", "uid": "2", "generation": 5,
            "creationTimestamp": "2026-01-01T00:00:00Z"
        },
        "spec": {"project": "backend"}
    });
    merge(&mut object, change);
    serde_json::from_value(object).unwrap()
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

fn deleting(finalizer: bool) -> Value {
    json!({"metadata": {
        "deletionTimestamp": "2026-01-02T00:00:00Z",
        "finalizers": if finalizer { vec![FINALIZER] } else { vec![] }
    }})
}

fn with(mut first: Value, second: Value) -> Value {
    merge(&mut first, second);
    first
}

fn refusal(plan: ProjectPlan) -> Finding {
    match plan {
        ProjectPlan::Refuse { finding, .. } => finding,
        other => panic!("{other:?}"),
    }
}

fn stage_refusal(plan: StagePlan) -> Finding {
    match plan {
        StagePlan::Refuse { finding, .. } => finding,
        other => panic!("{other:?}"),
    }
}

fn plan_one(project: &BarekeyProject) -> ProjectPlan {
    plan_project(project, [project], &organizations())
}

fn plan_one_stage(stage: &BarekeyStage) -> StagePlan {
    let project = project_from(json!({}));
    plan_stage(stage, Some(&project), [stage], &organizations())
}
