//! The way to the API server. In: a kubeconfig, or what a pod is given; out: a client, or an error that names what is
//! missing and the cure. It asks the API server nothing yet. A token that is rotated in its file is read again by the
//! client library within a minute.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Longer than the API server is silent on a healthy watch: it sends a bookmark about once a minute. A server that
/// vanished without closing its connections is noticed after this time.
const SILENCE: Duration = Duration::from_secs(100);
/// A server that does not answer the first packet is tried again rather than waited for.
pub(super) const CONNECT: Duration = Duration::from_secs(3);

/// The way to the cluster: of `kubeconfig` if one is named, else of `$KUBECONFIG` or `~/.kube/config` if there is one,
/// else of the pod's ServiceAccount.
pub async fn way(kubeconfig: Option<&Path>) -> Result<Config> {
    Ok(match kubeconfig {
        Some(path) => {
            let place = || format!("--kubeconfig {}: give a file as `kubectl config view` shows one", path.display());
            let read = Kubeconfig::read_from(path).with_context(place)?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.with_context(place)?
        }
        None => Config::infer().await.context(
            "--source kube: found no way to an API server; in a pod, give it a ServiceAccount whose token is mounted, \
             elsewhere name a kubeconfig with --kubeconfig",
        )?,
    })
}

/// A client with times that suit one who watches.
pub fn client(mut config: Config) -> Result<Client> {
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    config.connect_timeout = Some(CONNECT);
    // Its pauses double up to many minutes, unseen: with a balancer before the API server that answers 503 while that is
    // away, we would be blind for as long after. Whoever asks tries again by himself.
    config.default_retry = false;
    Client::try_from(config).context("--source kube: what is configured for the API server cannot be used")
}
