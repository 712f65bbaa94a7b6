//! Where the objects come from: a folder of manifests (and, in time, the API server). Out: updates for the store, and
//! what is wrong with the source. It does not look into the objects; the table does.

use std::path::Path;

use crate::table::{Problem, Update};

mod dir;
mod files;
pub(crate) mod parse;
#[cfg(test)]
mod tests;

pub use dir::Dir;

/// A source of objects.
pub enum Source {
    /// `--source DIR`
    Dir(Dir),
}

impl Source {
    /// A folder of Kubernetes YAML or JSON. To be called within a tokio runtime; fails where there is no such folder.
    pub fn dir(path: impl AsRef<Path>) -> anyhow::Result<Self> {
        Dir::open(path.as_ref()).map(Source::Dir)
    }

    /// Waits for changes. The first call returns all objects there are: after it, the source is synced. An empty answer
    /// means that only [`Source::problems`] has changed. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Vec<Update> {
        match self {
            Source::Dir(dir) => dir.next().await,
        }
    }

    /// What is wrong with the source now; each is logged when it comes and when it goes.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Source::Dir(dir) => dir.problems(),
        }
    }
}
