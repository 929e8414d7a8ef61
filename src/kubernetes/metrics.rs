//! What the Kubernetes side counts. No organization, stage, variable, namespace or name is a label.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::kubernetes::plan::Reason;

/// Which kind was reconciled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Kind {
    /// BarekeyProject.
    Project,
    /// BarekeyStage.
    Stage,
}

/// How a reconcile ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReconcileOutcome {
    /// With that finding.
    Found(Reason),
    /// The resource was let go.
    Gone,
    /// The API server or the database could not be asked.
    Failed,
}

impl EncodeLabelValue for ReconcileOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Found(reason) => reason.as_str(),
            Self::Gone => "Gone",
            Self::Failed => "Failed",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

/// The labels of a reconcile.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// The kind.
    pub kind: Kind,
    /// How it ended.
    pub outcome: ReconcileOutcome,
}

/// How the look at a pod's token ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum IdentityOutcome {
    /// A living pod.
    Recognised,
    /// Refused without asking the API server.
    RefusedEarly,
    /// Refused after asking.
    Refused,
    /// Too many waited.
    Busy,
    /// The API server could not be asked.
    Unavailable,
}

/// The labels of a look at a pod's token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct IdentityLabels {
    /// How it ended.
    pub outcome: IdentityOutcome,
}

/// How the review of a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum AdmissionOutcome {
    /// The pod was injected.
    Injected,
    /// The pod is created as it is.
    Unchanged,
    /// The pod was refused.
    Refused,
    /// It was no review.
    Malformed,
}

/// The labels of a review of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AdmissionLabels {
    /// How it ended.
    pub outcome: AdmissionOutcome,
}

/// What the Kubernetes side counts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Reconciles, by kind and outcome.
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// Looks at pods' tokens, by outcome.
    pub identities: Family<IdentityLabels, Counter>,
    /// Reviews of pods, by outcome.
    pub admissions: Family<AdmissionLabels, Counter>,
    /// 1 while this replica leads.
    pub leads: Gauge,
    /// 1 once every BarekeyProject and BarekeyStage was listed.
    pub resources_listed: Gauge,
    /// 1 while a handshake with our own listener verifies against the live webhook configuration.
    pub certificate_verified: Gauge,
    /// When the serving certificate ends, in seconds since 1970.
    pub certificate_expires_seconds: Gauge,
}

impl Metrics {
    /// Makes the counters and puts them into `registry`, as `barekey_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("barekey");
        registry.register(
            "reconciles",
            "Reconciles of custom resources, by kind and outcome",
            metrics.reconciles.clone(),
        );
        registry.register(
            "pod_identities",
            "Looks at tokens of pods, by outcome",
            metrics.identities.clone(),
        );
        registry.register(
            "admissions",
            "Reviews of pods, by outcome",
            metrics.admissions.clone(),
        );
        registry.register(
            "leads",
            "1 while this replica holds the Lease",
            metrics.leads.clone(),
        );
        registry.register(
            "resources_listed",
            "1 once every BarekeyProject and BarekeyStage was listed",
            metrics.resources_listed.clone(),
        );
        registry.register(
            "certificate_verified",
            "1 while the own listener's certificate verifies against the live webhook configuration",
            metrics.certificate_verified.clone(),
        );
        registry.register(
            "certificate_expires_seconds",
            "When the serving certificate ends, in seconds since 1970",
            metrics.certificate_expires_seconds.clone(),
        );
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_begins_as_ours_do() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let labels = ReconcileLabels {
            kind: Kind::Stage,
            outcome: ReconcileOutcome::Found(Reason::NotOwned),
        };
        metrics.reconciles.get_or_create(&labels).inc();
        metrics.leads.set(1);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "barekey_reconciles_total{kind=\"Stage\",outcome=\"NotOwned\"} 1",
            "barekey_leads 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("barekey_"), "{line}");
        }
    }
}
