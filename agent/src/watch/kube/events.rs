//! Warning Events on objects that sluice cannot make sense of, where `kubectl describe` shows them. In: the problems that
//! last; out: one Event a problem in the whole cluster, however many agents see it: its name follows from the problem,
//! and who comes second is told that it is there. An Event that cannot be posted costs nothing else.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::table::object::Key;
use crate::table::{Place, Problem};

/// Who reports, in the field that is made for controllers' names.
const CONTROLLER: &str = "sluice.dev/agent";
/// The API server forgets Events after an hour (`--event-ttl`): what lasts longer is posted again.
const AGAIN: Duration = Duration::from_secs(3600);
/// Longest `note` that the API takes, in bytes.
const MAX_NOTE: usize = 1024;
/// Room in the name for a dot and the hash; names have up to 253 characters.
const MAX_STEM: usize = 200;

/// A problem of an object, and the object's UID, without which nobody finds the Event.
type Reported = (Problem, Arc<str>);

/// Posts Events in the background, as long as this lives.
pub struct Events {
    lasting: watch::Sender<Vec<Reported>>,
    task: AbortHandle,
}

impl Events {
    /// `instance` is who posts: the agent's Pod or node. To be called within a tokio runtime.
    pub fn start(client: Client, instance: &str) -> Self {
        let (lasting, news) = watch::channel(Vec::new());
        let task = tokio::spawn(post_all(client, instance.to_owned(), news)).abort_handle();
        Self { lasting, task }
    }

    /// These problems last now. Those of objects without a known UID are not posted.
    pub fn report<'a>(&self, problems: impl Iterator<Item = &'a Problem>, uid: impl Fn(&Key) -> Option<Arc<str>>) {
        let now: Vec<Reported> = problems
            .filter_map(|problem| match &problem.place {
                Place::Object(key) => Some((problem.clone(), uid(key)?)),
                Place::File { .. } | Place::Api(_) => None,
            })
            .collect();
        self.lasting.send_if_modified(|lasting| {
            let differs = *lasting != now;
            *lasting = now;
            differs
        });
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn post_all(client: Client, instance: String, mut news: watch::Receiver<Vec<Reported>>) {
    let mut posted: HashSet<Reported> = HashSet::new();
    let mut warned = false;
    loop {
        let lasting = news.borrow_and_update().clone();
        posted.retain(|it| lasting.contains(it));
        for reported in lasting {
            if posted.contains(&reported) {
                continue;
            }
            let event = event(&reported, &instance);
            let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
            let api: Api<Event> = Api::namespaced(client.clone(), namespace);
            match api.create(&PostParams::default(), &event).await {
                Ok(_) => {}
                // Posted by another agent, or by an earlier life of this one.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) if warned => tracing::debug!(%error, "an Event was not posted"),
                Err(error) => {
                    warned = true;
                    tracing::warn!(
                        %error,
                        cure = "allow the agent's ServiceAccount to create events in events.k8s.io",
                        "Events on objects with problems are not posted; `status` shows the problems"
                    );
                }
            }
            posted.insert(reported);
        }
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN) => posted.clear(),
        }
    }
}

fn event((problem, uid): &Reported, instance: &str) -> Event {
    let Place::Object(key) = &problem.place else { unreachable!("only objects' problems are reported") };
    let mut hasher = DefaultHasher::new();
    (problem, uid).hash(&mut hasher);
    let stem: String = key.name.chars().take(MAX_STEM).collect();
    // The Events of objects without a namespace are in this one (kubectl looks there).
    let namespace = if key.namespace.is_empty() { "default" } else { &key.namespace };
    let annotation = problem.field.starts_with("metadata.annotations");
    let mut note = format!("{}: {} (cure: {})", problem.field, problem.message, problem.cure);
    note.truncate(note.floor_char_boundary(MAX_NOTE));
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{stem}.{:016x}", hasher.finish())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(if annotation { "UnreadableAnnotation" } else { "UnusableField" }.to_owned()),
        action: Some("Redirect".to_owned()),
        note: Some(note),
        event_time: Some(MicroTime(Timestamp::now())),
        regarding: Some(ObjectReference {
            api_version: Some(key.kind.api_version().to_owned()),
            kind: Some(key.kind.name().to_owned()),
            namespace: Some(key.namespace.to_string()).filter(|it| !it.is_empty()),
            name: Some(key.name.to_string()),
            uid: Some(uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::object::Kind;

    fn problem(name: &str) -> Problem {
        Problem {
            place: Place::Object(Key { kind: Kind::Service, namespace: "shop".into(), name: name.into() }),
            field: "metadata.annotations[sluice.dev/redirect]".to_owned(),
            message: "\"maybe\" is unreadable, the default applies".to_owned(),
            cure: "write \"true\"".to_owned(),
        }
    }

    #[test]
    fn every_agent_gives_a_problem_the_same_name_and_every_problem_another() {
        let name = |problem: &Problem, uid: &str, instance| {
            event(&(problem.clone(), uid.into()), instance).metadata.name.unwrap()
        };
        let first = name(&problem("cart"), "u1", "node-a");
        assert!(first.starts_with("cart."), "{first}");
        assert_eq!(first, name(&problem("cart"), "u1", "node-b"));
        assert_ne!(first, name(&problem("cart"), "u2", "node-a"), "another object of the same name");
        let other = Problem { message: "\"perhaps\" is unreadable, the default applies".to_owned(), ..problem("cart") };
        assert_ne!(first, name(&other, "u1", "node-a"));
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let long = Problem { message: "ä".repeat(MAX_NOTE), ..problem("cart") };
        let note = event(&(long, "u".into()), "n").note.unwrap();
        assert!(note.len() <= MAX_NOTE && note.len() > MAX_NOTE - 4, "{}", note.len());
    }

    #[test]
    fn an_event_on_a_namespace_is_where_kubectl_looks_for_it() {
        let place = Place::Object(Key { kind: Kind::Namespace, namespace: "".into(), name: "shop".into() });
        let event = event(&(Problem { place, ..problem("x") }, "u".into()), "n");
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.regarding.unwrap().namespace, None);
    }
}
