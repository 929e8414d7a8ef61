//! What owners of resources and pods are told: events of `events.k8s.io/v1` with constant reasons.
//!
//! Telling never fails: an event that cannot be written is a line in the log. Whoever has somebody to answer does not wait for
//! it either. The operator may only create events, so a repeated one is left out for a while instead of being counted up in
//! the cluster.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::domain::causes::with_causes;
use crate::kubernetes::{GROUP, KubernetesSettings, timed};
use crate::vault::Clock;

/// The longest note that the API server takes, in bytes.
const NOTE_BYTES_MAX: usize = 1024;
/// How long the same event on the same object is left out.
const REPEAT_AFTER_MS: i64 = 6 * 60 * 1000;
/// How many told events are remembered: the newest.
const REMEMBERED_MAX: usize = 4096;
/// How long one event may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Where events of objects without a namespace go.
const CLUSTER_EVENTS_NAMESPACE: &str = "default";

/// How serious an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Good to know.
    Normal,
    /// Somebody should look.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One thing to tell.
#[derive(Debug)]
pub struct Message<'a> {
    /// How serious it is.
    pub severity: Severity,
    /// Why, in one constant word.
    pub reason: &'static str,
    /// What was being done, in one constant word.
    pub action: &'static str,
    /// The sentence. Never a value.
    pub note: &'a str,
}

/// What was told when: so that it is not told again and again.
#[derive(Default)]
struct Told(HashMap<(String, &'static str, String), i64>);

impl Told {
    /// Whether this is new; if so, it counts as told.
    fn is_new(&mut self, uid: &str, reason: &'static str, note: &str, now_ms: i64) -> bool {
        self.0.retain(|_, at_ms| now_ms - *at_ms < REPEAT_AFTER_MS);
        let key = (uid.to_owned(), reason, note.to_owned());
        if self.0.contains_key(&key) {
            return false;
        }
        if self.0.len() >= REMEMBERED_MAX {
            let oldest = self.0.iter().min_by_key(|(_, at_ms)| **at_ms);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(key, now_ms);
        true
    }
}

/// Tells events. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    client: Client,
    instance: String,
    clock: Arc<dyn Clock>,
    told: Arc<Mutex<Told>>,
}

impl Events {
    /// Events that name this pod as their reporter.
    pub fn new(client: Client, settings: &KubernetesSettings, clock: Arc<dyn Clock>) -> Self {
        Self {
            client,
            instance: settings.pod_name.clone(),
            clock,
            told: Arc::default(),
        }
    }

    /// Tells `message` about the object.
    pub async fn tell(&self, about: ObjectReference, message: Message<'_>) {
        if let Some(event) = self.new_event(&about, &message) {
            self.write(event).await;
        }
    }

    /// The same, in a task of its own: the API server may take its time.
    pub fn tell_meanwhile(&self, about: &ObjectReference, message: &Message<'_>) {
        if let Some(event) = self.new_event(about, message) {
            let events = self.clone();
            tokio::spawn(async move { events.write(event).await });
        }
    }

    /// The event, unless it was told a short while ago.
    fn new_event(&self, about: &ObjectReference, message: &Message<'_>) -> Option<Event> {
        let now_ms = self.clock.now_ms();
        self.is_new(about, message, now_ms)
            .then(|| self.event(about, message, now_ms))
    }

    async fn write(&self, event: Event) {
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Err(error) = timed(TIMEOUT, api.create(&PostParams::default(), &event)).await {
            let about = event.regarding.unwrap_or_default();
            tracing::warn!(
                reason = event.reason.unwrap_or_default(),
                object = about.name.unwrap_or_default(),
                namespace,
                problem = with_causes(&error),
                "an event was not written"
            );
        }
    }

    fn is_new(&self, about: &ObjectReference, message: &Message<'_>, now_ms: i64) -> bool {
        let uid = about.uid.as_deref().unwrap_or_default();
        let mut told = match self.told.lock() {
            Ok(told) => told,
            Err(poisoned) => poisoned.into_inner(),
        };
        told.is_new(uid, message.reason, message.note, now_ms)
    }

    fn event(&self, about: &ObjectReference, message: &Message<'_>, now_ms: i64) -> Event {
        let time = Timestamp::from_millisecond(now_ms).unwrap_or_default();
        let name = about.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", name.get(..200).unwrap_or(name))),
                namespace: Some(
                    about
                        .namespace
                        .clone()
                        .unwrap_or_else(|| CLUSTER_EVENTS_NAMESPACE.to_owned()),
                ),
                ..ObjectMeta::default()
            },
            action: Some(message.action.to_owned()),
            event_time: Some(MicroTime(time)),
            note: Some(cut(message.note, NOTE_BYTES_MAX).to_owned()),
            reason: Some(message.reason.to_owned()),
            regarding: Some(about.clone()),
            reporting_controller: Some(format!("{GROUP}/operator")),
            reporting_instance: Some(cut(&self.instance, 128).to_owned()),
            type_: Some(message.severity.as_str().to_owned()),
            ..Event::default()
        }
    }
}

/// The start of `text` that fits into `bytes_max` bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_event_is_left_out_for_a_while_and_another_one_is_not() {
        let mut told = Told::default();
        assert!(told.is_new("uid-1", "NotOwned", "a", 0));
        assert!(!told.is_new("uid-1", "NotOwned", "a", REPEAT_AFTER_MS - 1));
        assert!(told.is_new("uid-1", "NotOwned", "b", 1));
        assert!(told.is_new("uid-2", "NotOwned", "a", 1));
        assert!(told.is_new("uid-1", "Ready", "a", 1));
        assert!(told.is_new("uid-1", "NotOwned", "a", REPEAT_AFTER_MS));
    }

    #[test]
    fn what_was_told_does_not_grow_without_end() {
        let mut told = Told::default();
        for n in 0..REMEMBERED_MAX + 10 {
            assert!(told.is_new(&n.to_string(), "NotOwned", "a", 0));
        }
        assert_eq!(told.0.len(), REMEMBERED_MAX);
    }

    #[test]
    fn what_was_told_last_is_left_out_however_much_was_told_before() {
        let mut told = Told::default();
        for n in 0..REMEMBERED_MAX {
            let at_ms = i64::try_from(n).unwrap();
            assert!(told.is_new(&n.to_string(), "NotOwned", "a", at_ms));
        }
        let now_ms = i64::try_from(REMEMBERED_MAX).unwrap();
        assert!(told.is_new("newest", "NotOwned", "a", now_ms));
        assert!(!told.is_new("newest", "NotOwned", "a", now_ms));
        // For it the oldest was forgotten, and no other.
        assert!(!told.is_new("1", "NotOwned", "a", now_ms));
        assert!(told.is_new("0", "NotOwned", "a", now_ms));
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("häuser", 2), "h");
        assert_eq!(cut("häuser", 3), "hä");
        assert_eq!(cut("ab", 1024), "ab");
    }
}
