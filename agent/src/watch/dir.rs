//! A folder of manifests, watched by inotify. In: the folder. Out: updates whenever what the files say together has
//! changed. Each event, shortly after, makes the folder be read as a whole; a file that is open for writing waits for
//! its writer. A folder that is gone leaves what serves as it is until it is back.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::files::{Files, Read};
use crate::table::{Place, Problem, Problems, Update};

/// From the first sign of a change to the reading: an editor's or a copy's steps come as one change.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How often the folder is read without a sign, for what inotify does not tell: a file changed behind a symlink, a
/// symlink to the folder that points elsewhere, a network file system.
const UNASKED: Duration = Duration::from_secs(10);
/// How often a folder that is gone is looked for.
const GONE: Duration = Duration::from_millis(200);
/// The largest file that is read. A cluster's largest object is 1.5 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// The watched folder.
pub struct Dir {
    path: PathBuf,
    inotify: AsyncFd<Inotify>,
    /// None while the folder is gone.
    watch: Option<WatchDescriptor>,
    files: Files,
    gone: Option<Problem>,
    problems: Problems,
    /// Files that have been written to and not closed since, with the time of the last write.
    being_written: HashMap<OsString, Instant>,
    /// None: not read yet.
    read_at: Option<Instant>,
}

impl Dir {
    /// Opens the folder for watching; it must be there. To be called within a tokio runtime.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let usable =
            || format!("--source {}: not a readable folder; name one that holds Kubernetes YAML", path.display());
        fs::read_dir(path).with_context(usable)?;
        let watching = "inotify is not available; see the limit fs.inotify.max_user_instances";
        let inotify = Inotify::init().context(watching)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that do not own their descriptor; Inotify does"
        )]
        let inotify = AsyncFd::new(inotify).context(watching)?;
        let mut dir = Self {
            path: path.to_owned(),
            inotify,
            watch: None,
            files: Files::default(),
            gone: None,
            problems: Problems::default(),
            being_written: HashMap::new(),
            read_at: None,
        };
        let limit =
            || format!("--source {}: cannot be watched; see the limit fs.inotify.max_user_watches", path.display());
        dir.follow().with_context(limit)?;
        Ok(dir)
    }

    /// The next changes; the first call tells all there is, at once. No update at all: only the problems have changed.
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Vec<Update> {
        let Some(mut read_at) = self.read_at else {
            return self.read().0;
        };
        loop {
            tokio::select! {
                ready = self.inotify.readable_mut() => {
                    match ready {
                        Ok(mut guard) => guard.clear_ready(),
                        Err(error) => tracing::warn!(%error, "inotify"),
                    }
                    if self.take_events() {
                        read_at = read_at.min(Instant::now() + DEBOUNCE);
                        self.read_at = Some(read_at);
                    }
                }
                () = sleep_until(read_at) => {
                    let (updates, changed) = self.read();
                    if changed {
                        return updates;
                    }
                    read_at = self.read_at.unwrap_or(read_at);
                }
            }
        }
    }

    /// Whether it was read once.
    pub fn was_read(&self) -> bool {
        self.read_at.is_some()
    }

    /// What is wrong with the folder and its files now.
    pub fn problems(&self) -> &[Problem] {
        self.problems.list()
    }

    /// Reads the folder; tells the updates and whether these or the problems are new.
    fn read(&mut self) -> (Vec<Update>, bool) {
        self.take_events();
        let now = Instant::now();
        self.being_written.retain(|_, last| now < *last + UNASKED);
        // The watch comes before the reading, so that no change falls between the two.
        let read = self.follow().and_then(|()| self.read_files());
        let mut next = now + UNASKED;
        let updates = match read {
            Ok(mut read) => {
                // A file that was written to while it was read is read again when its writer is done.
                if self.take_events() {
                    next = now + DEBOUNCE;
                }
                for (name, read) in &mut read {
                    if self.being_written.contains_key(OsString::from(&**name).as_os_str()) {
                        *read = Read::BeingWritten;
                    }
                }
                self.gone = None;
                self.files.update(read)
            }
            Err(error) => {
                next = now + GONE;
                self.gone = Some(self.is_gone(&error));
                Vec::new()
            }
        };
        self.read_at = Some(next);
        let problems = self.files.problems().into_iter().chain(self.gone.clone()).collect();
        let changed = self.problems.replace(problems) | !updates.is_empty();
        (updates, changed)
    }

    /// Watches what the path names now, which may be another folder than before.
    fn follow(&mut self) -> io::Result<()> {
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut watches = self.inotify.get_ref().watches();
        let found = watches.add(&self.path, mask);
        if self.watch.as_ref() != found.as_ref().ok() {
            self.being_written.clear();
            if let Some(old) = self.watch.take() {
                // The kernel has removed it already where the folder was deleted.
                let _ = watches.remove(old);
            }
        }
        self.watch = Some(found?);
        Ok(())
    }

    /// Takes all waiting events and tells whether the folder is worth reading.
    fn take_events(&mut self) -> bool {
        let mut worth = false;
        let mut buffer = [0; 4096];
        // WouldBlock: there are no more.
        while let Ok(events) = self.inotify.get_mut().read_events(&mut buffer) {
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    self.being_written.clear();
                    worth = true;
                } else if Some(&event.wd) == self.watch.as_ref() {
                    let name = event.name.unwrap_or_default();
                    if event.mask.contains(EventMask::MODIFY) {
                        self.being_written.insert(name.to_owned(), Instant::now());
                    } else {
                        worth = true;
                        if !event.mask.contains(EventMask::ATTRIB) {
                            self.being_written.remove(name);
                        }
                    }
                    if event.mask.contains(EventMask::IGNORED) {
                        self.watch = None;
                    }
                }
            }
        }
        worth
    }

    fn read_files(&self) -> io::Result<BTreeMap<Arc<str>, Read>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(known) = manifest_name(&name)
                && let Some(read) = self.read_file(&entry.path(), &name)
            {
                files.insert(known, read);
            }
        }
        Ok(files)
    }

    /// None: no file, or no longer.
    fn read_file(&self, path: &Path, name: &OsString) -> Option<Read> {
        if self.being_written.contains_key(name) {
            return Some(Read::BeingWritten);
        }
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // A symlink that leads nowhere is a file that cannot be read; a file that was just deleted is none.
            Err(_) if fs::symlink_metadata(path).is_err() => return None,
            Err(error) => return Some(Read::Unreadable(error.to_string())),
        };
        if metadata.is_dir() {
            return None;
        }
        if !metadata.is_file() {
            return Some(Read::Unreadable("not a regular file".to_owned()));
        }
        if metadata.len() > MAX_BYTES {
            return Some(Read::Unreadable(format!("larger than {} MiB", MAX_BYTES >> 20)));
        }
        match fs::read(path) {
            Ok(content) => Some(Read::Content(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Read::Unreadable(error.to_string())),
        }
    }

    fn is_gone(&self, error: &io::Error) -> Problem {
        Problem {
            place: Place::File { file: self.path.to_string_lossy().into(), line: 0, column: 0 },
            field: String::new(),
            message: format!("the folder cannot be read, its last objects serve on: {error}"),
            cure: "bring the folder back, or give --source another one".to_owned(),
        }
    }
}

/// The name of a file that may hold manifests: no dotfile, and one of three endings.
fn manifest_name(name: &OsString) -> Option<Arc<str>> {
    let name = name.to_str()?;
    let ending = name.rsplit_once('.')?.1;
    let ours = matches!(ending, "yaml" | "yml" | "json") && !name.starts_with('.');
    ours.then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_folder_that_has_the_name_now_is_the_one_watched() {
        let root = std::env::temp_dir().join(format!("sluice-follow-{}", std::process::id()));
        let (path, away) = (root.join("manifests"), root.join("away"));
        fs::create_dir_all(&path).unwrap();
        let mut dir = Dir::open(&path).unwrap();
        dir.read();
        fs::write(path.join("a.yaml"), "").unwrap();
        assert!(dir.take_events());

        fs::rename(&path, &away).unwrap();
        dir.read();
        fs::create_dir(&path).unwrap();
        dir.read();
        dir.take_events();
        fs::write(away.join("b.yaml"), "").unwrap();
        assert!(!dir.take_events(), "the old folder");
        fs::write(path.join("b.yaml"), "").unwrap();
        assert!(dir.take_events(), "the new folder");
        fs::remove_dir_all(&root).unwrap();
    }
}
