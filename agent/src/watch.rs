//! Where the objects come from: the API server, or a folder of manifests. Out: updates for the store, and what is wrong
//! with the source. It does not look into the objects; the table does.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::config::{Site, SourceSpec};
use crate::table::{Catalog, Problem, Update};

mod dir;
mod files;
pub mod kube;
pub mod parse;
#[cfg(test)]
mod tests;

pub use dir::Dir;
use kube::Kube;

/// A source of objects.
pub enum Source {
    /// `--source kube`
    Kube(Box<Kube>),
    /// `--source DIR`
    Dir(Box<Dir>),
}

impl Source {
    /// What `--source` names. To be called within a tokio runtime; fails where there is no such folder or no way to an
    /// API server, but not where that is away.
    pub async fn open(site: &Site) -> Result<Self> {
        match &site.source {
            None => bail!("--source is missing: give kube, or a folder of Kubernetes YAML"),
            Some(SourceSpec::Dir(path)) => Self::dir(path),
            Some(SourceSpec::Kube) => {
                let node = site.node_name.as_deref().context(
                    "--source kube needs --node-name (or SLUICE_NODE_NAME): the node whose pods are served; in a pod, \
                     take it from the downward API (fieldPath: spec.nodeName)",
                )?;
                let way = kube::way(site.kubeconfig.as_deref()).await?;
                tracing::info!(url = %way.cluster_url, "API server");
                Ok(Source::Kube(Box::new(Kube::start(kube::client(way)?, node))))
            }
        }
    }

    /// A folder of Kubernetes YAML or JSON. To be called within a tokio runtime; fails where there is no such folder.
    pub fn dir(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Ok(Source::Dir(Box::new(Dir::open(path.as_ref())?)))
    }

    /// Waits for changes. An empty answer means that only [`Source::problems`] or [`Source::missing`] has changed.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Vec<Update> {
        match self {
            Source::Kube(kube) => kube.next().await,
            Source::Dir(dir) => dir.next().await,
        }
    }

    /// The kinds of which not all objects are known yet, by name. None: the source is synced, and stays so.
    pub fn missing(&self) -> Vec<&'static str> {
        match self {
            Source::Kube(kube) => kube.missing().map(|kind| kind.plural()).collect(),
            Source::Dir(dir) if dir.was_read() => Vec::new(),
            Source::Dir(_) => vec!["manifests"],
        }
    }

    /// How long ago the objects of each kind were last followed; zero: they are.
    pub fn sync_ages(&self) -> Vec<(&'static str, Duration)> {
        match self {
            Source::Kube(kube) => kube.sync_ages().map(|(kind, age)| (kind.plural(), age)).collect(),
            Source::Dir(_) => vec![("manifests", Duration::ZERO)],
        }
    }

    /// What is wrong with the source now; each is logged when it comes and when it goes.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Source::Kube(kube) => kube.problems(),
            Source::Dir(dir) => dir.problems(),
        }
    }

    /// Tells the cluster what is wrong with its objects, where there is a cluster.
    pub fn report(&self, catalog: &Catalog) {
        if let Source::Kube(kube) = self {
            kube.report(catalog);
        }
    }
}
