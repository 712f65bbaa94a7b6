//! etcd, the API server, the controllers and the scheduler, in the machine's own network namespace. In: the folder with
//! the programs; out: processes that listen on loopback (etcd) and on the cluster's bridge (the API server) only.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::network::{CONTROL_PLANE, SERVICES};
use super::pki::{self, file};
use super::state;

/// Not etcd's usual port, which the machine's own may have.
pub(super) const ETCD: &str = "https://127.0.0.1:12379";
const ETCD_PEERS: &str = "https://127.0.0.1:12380";

pub(super) const API_SERVER: &str = "kube-apiserver";

pub(super) fn start_etcd(programs: &Path) -> Result<()> {
    let mut etcd = state::command(programs.join("etcd"));
    // Tests need no crash safety, and many machines sync slowly.
    etcd.args(["--unsafe-no-fsync", "--name=sluice", "--log-level=warn"]);
    option(&mut etcd, "data-dir", state::folder("etcd")?.display());
    option(&mut etcd, "listen-client-urls", ETCD);
    option(&mut etcd, "advertise-client-urls", ETCD);
    option(&mut etcd, "listen-peer-urls", ETCD_PEERS);
    option(&mut etcd, "initial-advertise-peer-urls", ETCD_PEERS);
    option(&mut etcd, "initial-cluster", format_args!("sluice={ETCD_PEERS}"));
    // Every user of this machine reaches loopback; only who may read the keys gets further.
    for side in ["", "peer-"] {
        option(&mut etcd, &format!("{side}client-cert-auth"), true);
        option(&mut etcd, &format!("{side}trusted-ca-file"), file("ca.crt"));
        option(&mut etcd, &format!("{side}cert-file"), file("etcd.crt"));
        option(&mut etcd, &format!("{side}key-file"), file("etcd.key"));
    }
    state::spawn("etcd", etcd).map(drop)
}

pub(super) fn start_api_server(programs: &Path) -> Result<()> {
    let mut server = state::command(programs.join(API_SERVER));
    option(&mut server, "etcd-servers", ETCD);
    for (name, path) in ["etcd-cafile", "etcd-certfile", "etcd-keyfile"].into_iter().zip(pki::etcd_client()) {
        option(&mut server, name, path);
    }
    option(&mut server, "bind-address", CONTROL_PLANE);
    // Pods reach it there, as the endpoint of the `kubernetes` Service.
    option(&mut server, "advertise-address", CONTROL_PLANE);
    option(&mut server, "service-cluster-ip-range", SERVICES);
    option(&mut server, "tls-cert-file", file("kube-apiserver.crt"));
    option(&mut server, "tls-private-key-file", file("kube-apiserver.key"));
    option(&mut server, "client-ca-file", file("ca.crt"));
    option(&mut server, "kubelet-client-certificate", file("kubelet-client.crt"));
    option(&mut server, "kubelet-client-key", file("kubelet-client.key"));
    // Nodes' names are no names of this machine's resolver.
    option(&mut server, "kubelet-preferred-address-types", "InternalIP");
    option(&mut server, "service-account-issuer", "https://kubernetes.default.svc");
    option(&mut server, "service-account-key-file", file("service-accounts.crt"));
    option(&mut server, "service-account-signing-key-file", file("service-accounts.key"));
    option(&mut server, "authorization-mode", "Node,RBAC");
    option(&mut server, "enable-admission-plugins", "NodeRestriction");
    option(&mut server, "allow-privileged", true);
    state::spawn(API_SERVER, server).map(drop)
}

pub(super) fn start_controllers(programs: &Path) -> Result<()> {
    let name = "kube-controller-manager";
    let mut controllers = state::command(programs.join(name));
    option(&mut controllers, "kubeconfig", pki::kubeconfig(name, "/CN=system:kube-controller-manager")?.display());
    option(&mut controllers, "use-service-account-credentials", true);
    option(&mut controllers, "service-account-private-key-file", file("service-accounts.key"));
    option(&mut controllers, "root-ca-file", file("ca.crt"));
    option(&mut controllers, "leader-elect", false);
    option(&mut controllers, "secure-port", 0);
    // The default is a folder below /usr.
    option(&mut controllers, "flex-volume-plugin-dir", state::path("volume-plugins").display());
    state::spawn(name, controllers)?;

    let name = "kube-scheduler";
    let mut scheduler = state::command(programs.join(name));
    option(&mut scheduler, "kubeconfig", pki::kubeconfig(name, "/CN=system:kube-scheduler")?.display());
    option(&mut scheduler, "leader-elect", false);
    option(&mut scheduler, "secure-port", 0);
    state::spawn(name, scheduler).map(drop)
}

/// Whether the API server serves; an error if it died.
pub(super) fn is_ready(mut kubectl: Command) -> Result<bool> {
    for name in ["etcd", API_SERVER] {
        if state::process(name).is_none() {
            bail!("{name} died:\n{}", state::log_end(name));
        }
    }
    Ok(state::output(kubectl.args(["get", "--raw", "/readyz"]), b"").is_ok_and(|answer| answer == "ok"))
}

/// `--NAME=VALUE`.
pub(super) fn option(command: &mut Command, name: &str, value: impl std::fmt::Display) {
    command.arg(format!("--{name}={value}"));
}
