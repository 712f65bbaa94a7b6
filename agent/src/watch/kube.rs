//! The cluster as a source: follows Services, EndpointSlices, Namespaces, this node's Pods and its Node object at the API
//! server. In: the API server's answers; out: updates, in the order of the changes of each kind. While the API server is
//! away, what was last known stays. One task a kind; none blocks another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::table::object::{EndpointSlice, Key, Kind, Namespace, Node, Pod, Service};
use crate::table::{Catalog, Problem, Problems, Update};

mod client;
mod events;
mod fault;
mod follow;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{client, way};
use events::Events;
pub use fault::Fault;
use follow::{News, follow};
use wire::{Watched, Wire};

/// Objects in one page of a list: a slice may hold 1,000 endpoints, so a page can take some MB while it is read.
const PAGE: u32 = 250;
/// News taken at once, and that may wait: changes that come together are published together.
const BATCH: usize = 1024;

/// The API server's objects.
pub struct Kube {
    news: Receiver<News>,
    batch: Vec<News>,
    started: Instant,
    /// Kinds that were not listed yet.
    missing: BTreeSet<Kind>,
    /// Kinds that cannot be followed, why, and since when.
    down: BTreeMap<Kind, (Problem, Instant)>,
    unreadable: BTreeMap<Key, Problem>,
    problems: Problems,
    events: Events,
    /// End with this.
    _followers: JoinSet<()>,
}

impl Kube {
    /// Begins to follow the cluster's objects as the node of this name sees them. To be called within a tokio runtime.
    pub fn start(client: Client, node: &str) -> Self {
        let (sender, news) = mpsc::channel(BATCH);
        let mut followers = JoinSet::new();
        let all = watcher::Config::default().page_size(PAGE);
        let here = all.clone().fields(&format!("spec.nodeName={node}"));
        let own = all.clone().fields(&format!("metadata.name={node}"));
        spawn::<Service>(&mut followers, &client, all.clone(), &sender);
        spawn::<EndpointSlice>(&mut followers, &client, all.clone(), &sender);
        spawn::<Namespace>(&mut followers, &client, all, &sender);
        spawn::<Pod>(&mut followers, &client, here, &sender);
        spawn::<Node>(&mut followers, &client, own, &sender);
        Self {
            news,
            batch: Vec::new(),
            started: Instant::now(),
            missing: Kind::ALL.into(),
            down: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            problems: Problems::default(),
            events: Events::start(client, node),
            _followers: followers,
        }
    }

    /// Waits for changes. None at all: only the problems have changed, or a list is still missing. Nothing is lost when
    /// the future is dropped.
    pub async fn next(&mut self) -> Vec<Update> {
        loop {
            if self.news.recv_many(&mut self.batch, BATCH).await == 0 {
                // The followers never end by themselves.
                return std::future::pending().await;
            }
            let news = std::mem::take(&mut self.batch);
            let updates: Vec<Update> = news.into_iter().filter_map(|news| self.take(news)).collect();
            let down = self.down.values().map(|(problem, _)| problem);
            let problems = down.chain(self.unreadable.values()).cloned().collect();
            if self.problems.replace(problems) | !updates.is_empty() {
                return updates;
            }
        }
    }

    fn take(&mut self, news: News) -> Option<Update> {
        match news {
            News::Listed { kind, objects, unreadable } => {
                self.missing.remove(&kind);
                self.unreadable.retain(|key, _| key.kind != kind);
                let keys = unreadable.iter().map(|(key, _)| key.clone()).collect();
                self.unreadable.extend(unreadable);
                tracing::debug!(%kind, objects = objects.len(), "listed");
                Some(Update::Reset { kind, objects, unreadable: keys })
            }
            News::Applied(object) => {
                self.unreadable.remove(&object.key());
                Some(Update::Apply(object))
            }
            News::Unreadable(key, problem) => {
                self.unreadable.insert(key, problem);
                None
            }
            News::Deleted(key, uid) => {
                self.unreadable.remove(&key);
                Some(Update::Delete { key, uid })
            }
            News::Down(kind, problem, since) => {
                self.down.insert(kind, (problem, since));
                None
            }
            News::Up(kind) => {
                self.down.remove(&kind);
                None
            }
        }
    }

    /// Kinds of which nothing is known yet. Empty: synced.
    pub fn missing(&self) -> impl Iterator<Item = Kind> {
        self.missing.iter().copied()
    }

    /// How long ago each kind was last followed, or since when it is waited for; zero: it is followed.
    pub fn sync_ages(&self) -> impl Iterator<Item = (Kind, Duration)> {
        Kind::ALL.into_iter().map(|kind| {
            let since = match self.missing.contains(&kind) {
                true => Some(self.started),
                false => self.down.get(&kind).map(|(_, since)| *since),
            };
            (kind, since.map_or(Duration::ZERO, |since| since.elapsed()))
        })
    }

    /// Posts an Event for each problem of an object that is new.
    pub fn report(&self, catalog: &Catalog) {
        self.events.report(catalog.problems().chain(self.problems()), |key| catalog.uid(key));
    }

    /// What is wrong at the API server now.
    pub fn problems(&self) -> &[Problem] {
        self.problems.list()
    }
}

fn spawn<T: Watched>(followers: &mut JoinSet<()>, client: &Client, config: watcher::Config, news: &Sender<News>) {
    let api: Api<Wire<T>> = Api::all(client.clone());
    let news = news.clone();
    let span = tracing::debug_span!("watch", kind = T::KIND.name());
    followers.spawn(follow(move || watcher(api.clone(), config.clone()), news).instrument(span));
}
