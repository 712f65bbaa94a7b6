//! Signs of life from the cgroup tree. In: the kubepods directory; out: which pods stirred and which are gone. A pod's
//! directory is watched for containers' groups, each group's `cgroup.events` for the moment a process enters. Looks at
//! no process.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use futures_util::{FutureExt, StreamExt};
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};

use super::layout::{self, Group, PodUid};
use super::look::children;

/// Bytes; room for about 100 events a read.
const BUFFER: usize = 4096;

/// Signs taken at once; a busy tree must not keep the agent from its other work.
const BATCH: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// A container's group came, went, or got its first or lost its last process.
    Stirred(PodUid),
    Gone(PodUid),
}

enum Watched {
    /// Where kubepods itself is: a removed group does not tell of its own removal.
    AboveAll,
    /// kubepods itself or a QoS class.
    Level(PathBuf),
    Pod(PodUid),
    /// A group's `cgroup.events`.
    Events(PodUid),
}

struct PodDir {
    path: PathBuf,
    watch: WatchDescriptor,
    /// By group: the pod's own and its containers'.
    events: HashMap<PathBuf, WatchDescriptor>,
}

pub(super) struct Tree {
    root: PathBuf,
    events: EventStream<[u8; BUFFER]>,
    watched: HashMap<WatchDescriptor, Watched>,
    pods: HashMap<PodUid, PodDir>,
}

impl Tree {
    pub(super) fn new(root: &Path) -> Result<Self> {
        let events = Inotify::init()
            .and_then(|inotify| inotify.into_event_stream([0; BUFFER]))
            .context("cannot watch the cgroup tree: raise the sysctl fs.inotify.max_user_instances")?;
        Ok(Self { root: root.to_owned(), events, watched: HashMap::new(), pods: HashMap::new() })
    }

    /// The pod's directory.
    pub(super) fn path(&self, uid: &PodUid) -> Option<&Path> {
        self.pods.get(uid).map(|pod| pod.path.as_path())
    }

    /// Walks the whole tree: every pod stirs, those that went unnoticed are gone. Repeats harmlessly.
    pub(super) fn scan(&mut self) -> Result<Vec<Sign>> {
        let lost: Vec<_> = self.pods.iter().filter(|(_, pod)| !pod.path.is_dir()).map(|(uid, _)| uid.clone()).collect();
        let mut signs = Vec::new();
        for uid in lost {
            self.forget_pod(&uid);
            signs.push(Sign::Gone(uid));
        }
        let root = self.root.clone();
        if let Some(above) = root.parent()
            && let Some(wd) = self.watch(above, WatchMask::DELETE | WatchMask::ONLYDIR)?
        {
            self.watched.insert(wd, Watched::AboveAll);
        }
        if !root.is_dir() {
            return Err(self.gone());
        }
        self.add_level(&root, &mut signs)?;
        Ok(signs)
    }

    /// Waits for the next signs. May be cancelled: nothing is lost.
    pub(super) async fn signs(&mut self) -> Result<Vec<Sign>> {
        let mut signs = Vec::new();
        let mut next = Some(self.events.next().await);
        while let Some(event) = next {
            let event =
                event.context("the cgroup tree's events ended")?.context("cannot read the cgroup tree's events")?;
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                tracing::warn!("the kernel dropped events of the cgroup tree; scanning it again");
                signs.extend(self.scan()?);
            } else {
                self.event(&event.wd, event.mask, event.name.as_deref(), &mut signs)?;
            }
            next = if signs.len() < BATCH { self.events.next().now_or_never() } else { None };
        }
        Ok(signs)
    }

    fn event(
        &mut self,
        wd: &WatchDescriptor,
        mask: EventMask,
        name: Option<&OsStr>,
        signs: &mut Vec<Sign>,
    ) -> Result<()> {
        let created = mask.contains(EventMask::CREATE | EventMask::ISDIR);
        let deleted = mask.contains(EventMask::DELETE | EventMask::ISDIR);
        match (self.watched.get(wd), name) {
            (Some(Watched::Level(path)), Some(name)) if created => {
                let path = path.join(name);
                self.add(&path, signs)?;
            }
            (Some(Watched::Level(path)), Some(name)) if deleted => {
                let path = path.join(name);
                self.remove(&path, signs);
            }
            (Some(Watched::AboveAll), name) if deleted && name == self.root.file_name() => return Err(self.gone()),
            (Some(Watched::Pod(uid)), Some(name)) if created || deleted => {
                let uid = uid.clone();
                if let Some(group) = self.path(&uid).map(|path| path.join(name)) {
                    if created { self.watch_events(&uid, group) } else { self.unwatch_events(&uid, &group) }
                }
                signs.push(Sign::Stirred(uid));
            }
            (Some(Watched::Events(uid)), _) => signs.push(Sign::Stirred(uid.clone())),
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, signs: &mut Vec<Sign>) -> Result<()> {
        match path.file_name().and_then(OsStr::to_str).map_or(Group::Other, layout::classify) {
            Group::QosClass => self.add_level(path, signs),
            Group::Pod(uid) => self.add_pod(uid, path, signs),
            Group::Other => Ok(()),
        }
    }

    fn remove(&mut self, path: &Path, signs: &mut Vec<Sign>) {
        match path.file_name().and_then(OsStr::to_str).map_or(Group::Other, layout::classify) {
            Group::QosClass => {
                let of_path = |watched: &Watched| matches!(watched, Watched::Level(level) if level == path);
                let wd = self.watched.iter().find(|(_, watched)| of_path(watched)).map(|(wd, _)| wd.clone());
                wd.into_iter().for_each(|wd| self.unwatch(wd));
            }
            Group::Pod(uid) => {
                self.forget_pod(&uid);
                signs.push(Sign::Gone(uid));
            }
            Group::Other => {}
        }
    }

    fn gone(&self) -> anyhow::Error {
        anyhow!(
            "the cgroup {} is gone; restart the agent with the group that holds the node's pods",
            self.root.display()
        )
    }

    /// Watches first and lists then, so that nothing comes in between unseen.
    fn add_level(&mut self, path: &Path, signs: &mut Vec<Sign>) -> Result<()> {
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        let Some(wd) = self.watch(path, mask)? else { return Ok(()) };
        self.watched.insert(wd, Watched::Level(path.to_owned()));
        for child in children(path) {
            self.add(&child, signs)?;
        }
        Ok(())
    }

    fn add_pod(&mut self, uid: PodUid, path: &Path, signs: &mut Vec<Sign>) -> Result<()> {
        let Some(watch) = self.watch(path, WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR)? else {
            return Ok(());
        };
        self.watched.insert(watch.clone(), Watched::Pod(uid.clone()));
        let events = self.pods.remove(&uid).map(|known| known.events).unwrap_or_default();
        self.pods.insert(uid.clone(), PodDir { path: path.to_owned(), watch, events });
        self.watch_events(&uid, path.to_owned());
        for child in children(path) {
            self.watch_events(&uid, child);
        }
        signs.push(Sign::Stirred(uid));
        Ok(())
    }

    /// Without this watch a pod is found by its own first connect only; so a failure is no reason to stop.
    fn watch_events(&mut self, uid: &PodUid, group: PathBuf) {
        match self.watch(&group.join("cgroup.events"), WatchMask::MODIFY) {
            Ok(Some(wd)) => {
                self.watched.insert(wd.clone(), Watched::Events(uid.clone()));
                if let Some(pod) = self.pods.get_mut(uid) {
                    pod.events.insert(group, wd);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(pod = %uid, "{error:#}"),
        }
    }

    fn unwatch_events(&mut self, uid: &PodUid, group: &Path) {
        if let Some(wd) = self.pods.get_mut(uid).and_then(|pod| pod.events.remove(group)) {
            self.unwatch(wd);
        }
    }

    fn forget_pod(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.remove(uid) else { return };
        self.unwatch(pod.watch);
        for wd in pod.events.into_values() {
            self.unwatch(wd);
        }
    }

    /// `None`: the path is gone already.
    fn watch(&mut self, path: &Path, mask: WatchMask) -> Result<Option<WatchDescriptor>> {
        match self.events.watches().add(path, mask) {
            Ok(wd) => Ok(Some(wd)),
            // ENODEV: the group was removed between look-up and open.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| {
                format!("cannot watch {}: raise the sysctl fs.inotify.max_user_watches", path.display())
            }),
        }
    }

    fn unwatch(&mut self, wd: WatchDescriptor) {
        self.watched.remove(&wd);
        // The watch of a removed directory or file stays until it is taken back; an error here is of no use to anybody.
        _ = self.events.watches().remove(wd);
    }
}
