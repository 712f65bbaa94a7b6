//! A node of the cluster: a network and a mount namespace with containerd, kubelet and kube-proxy in them. In: its place
//! in the cluster; out: commands that run where these do. The namespaces live as long as the processes in them.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::control_plane::option;
use super::{Cluster, network, pki, state};

/// What each node has for itself: folders which its programs find at their usual places.
const OWN_FOLDERS: [&str; 5] = ["/run", "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet", "/var/log"];

/// Kernel settings which a kubelet changes, with the values it wants. It is given files in their place: the machine keeps
/// its own.
const TUNABLES: [(&str, &str); 6] = [
    ("/proc/sys/kernel/keys/root_maxbytes", "25000000"),
    ("/proc/sys/kernel/keys/root_maxkeys", "1000000"),
    ("/proc/sys/kernel/panic", "10"),
    ("/proc/sys/kernel/panic_on_oops", "1"),
    ("/proc/sys/vm/overcommit_memory", "1"),
    ("/proc/sys/vm/panic_on_oom", "0"),
];

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KubeNode {
    name: &'static str,
    zone: &'static str,
    /// The last part of its addresses.
    number: u8,
}

pub(super) const NODES: [KubeNode; 2] =
    [KubeNode { name: "node-a", zone: "zone-a", number: 1 }, KubeNode { name: "node-b", zone: "zone-b", number: 2 }];

impl KubeNode {
    /// As Kubernetes names it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its label `topology.kubernetes.io/zone`.
    pub fn zone(&self) -> &'static str {
        self.zone
    }

    /// A program in the node's namespaces, where `ctr` finds the node's containerd. Everything else is the machine's: its
    /// files, processes and cgroups.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let pid = self.holder()?.to_string();
        let mut command = state::command("nsenter");
        command.env("CONTAINERD_NAMESPACE", "k8s.io").env("CONTAINERD_SNAPSHOTTER", "native");
        command.args(["--target", &pid, "--mount", "--net", "--"]).arg(program);
        Ok(command)
    }

    /// The cgroup (version 2) of the node's pods.
    pub fn kubepods(&self) -> Result<std::path::PathBuf> {
        Ok(crate::cgroup::v2_mount()?.join(state::CGROUP).join(self.name).join("kubepods"))
    }

    /// The process that holds the namespaces.
    pub(super) fn holder(&self) -> Result<u32> {
        state::process(self.name).with_context(|| format!("{} does not run: cargo xtask cluster up", self.name))
    }

    fn own(&self, folder: &str) -> String {
        format!("{}{folder}", self.name)
    }

    /// Makes the namespaces, and folders of the node's own in place of the machine's.
    pub(super) fn hold(&self) -> Result<u32> {
        for folder in OWN_FOLDERS {
            state::mount_point(folder)?;
            state::folder(self.own(folder))?;
        }
        let mut holder = state::command("unshare");
        holder.args(["--mount", "--net", "--", "sleep", "infinity"]);
        let pid = state::spawn(self.name, holder)?;
        // Until then what is mounted might reach the machine's own mounts.
        state::wait_for(&format!("the namespaces of {}", self.name), || {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            Ok(comm.with_context(|| state::log_end(self.name))?.trim() == "sleep")
        })?;
        // Shared, because containers want to see what is mounted later.
        let mut script = String::from("mount --make-rshared /\n");
        for folder in OWN_FOLDERS {
            script += &format!("mount --bind {} {folder}\n", state::path(self.own(folder)).display());
        }
        for (number, (setting, value)) in TUNABLES.iter().enumerate() {
            let file = state::write(format!("{}/setting-{number}", self.name), format!("{value}\n"))?;
            script += &format!("if [ -e {setting} ]; then mount --bind {} {setting}; fi\n", file.display());
        }
        state::run(self.command("sh")?.args(["-euc", &script]), "")?;
        Ok(pid)
    }

    /// Starts containerd and gives it the image of the sandbox containers, an archive.
    pub(super) fn start_containerd(&self, sandbox: (&str, &Path)) -> Result<()> {
        let (reference, archive) = sandbox;
        state::folder(self.own("/var/lib/cni/net.d"))?;
        state::write(self.own("/var/lib/cni/net.d/pods.conflist"), network::cni(self.number).to_string())?;
        let config = state::write(self.own("/var/lib/containerd/config.toml"), containerd_config(reference))?;
        let mut containerd = self.command("containerd")?;
        containerd.arg("--config").arg(config);
        let name = self.process_name("containerd");
        state::spawn(&name, containerd)?;
        state::wait_for(&format!("{name} to listen"), || {
            anyhow::ensure!(state::process(&name).is_some(), "it died:\n{}", state::log_end(&name));
            Ok(state::output(self.command("ctr")?.arg("version"), b"").is_ok())
        })?;
        self.import_image(archive)
    }

    /// Starts kubelet and kube-proxy, which need the API server.
    pub(super) fn start_kubelet(&self, programs: &Path) -> Result<()> {
        let name = self.name;
        let identity = format!("/O=system:nodes/CN=system:node:{name}");
        let config = state::write(self.own("/var/lib/kubelet/config.json"), self.kubelet_config().to_string())?;
        let mut kubelet = self.command(programs.join("kubelet"))?;
        option(&mut kubelet, "config", config.display());
        option(&mut kubelet, "kubeconfig", pki::kubeconfig(&self.process_name("kubelet"), &identity)?.display());
        option(&mut kubelet, "hostname-override", name);
        option(&mut kubelet, "node-ip", network::node_ips(self.number));
        state::spawn(&self.process_name("kubelet"), kubelet)?;

        let mut proxy = self.command(programs.join("kube-proxy"))?;
        let kubeconfig = pki::kubeconfig(&self.process_name("kube-proxy"), "/CN=system:kube-proxy")?;
        option(&mut proxy, "kubeconfig", kubeconfig.display());
        option(&mut proxy, "hostname-override", name);
        option(&mut proxy, "proxy-mode", "nftables");
        option(&mut proxy, "cluster-cidr", network::PODS);
        option(&mut proxy, "oom-score-adj", 0);
        // Connection tracking's limits are the whole machine's, and none of a node's business.
        for limit in ["max-per-core", "tcp-timeout-established", "tcp-timeout-close-wait"] {
            option(&mut proxy, &format!("conntrack-{limit}"), 0);
        }
        state::spawn(&self.process_name("kube-proxy"), proxy).map(drop)
    }

    /// Gives the node its zone, as a cloud's controller does: after kube-proxy has begun to listen for it. kube-proxy
    /// 1.36 registers who is told of the zone *after* it asked for the node's events, and a node that has its zone by
    /// then is, about once in a thousand starts, a node without a zone to it for as long as it runs.
    pub(super) fn tell_zone(&self, cluster: &Cluster) -> Result<()> {
        let name = self.process_name("kube-proxy");
        state::wait_for(&format!("{name} to listen for its node's zone"), || {
            anyhow::ensure!(state::process(&name).is_some(), "it died:\n{}", state::log_end(&name));
            Ok(state::log(&name).contains("Starting node config controller"))
        })?;
        let zone = format!("topology.kubernetes.io/zone={}", self.zone);
        cluster.kubectl(&["label", "node", self.name, &zone]).map(drop)
    }

    /// Gives an image, an archive of `docker save` or OCI layout, to the node's containerd.
    pub(super) fn import_image(&self, archive: &Path) -> Result<()> {
        let bytes = std::fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
        let mut ctr = self.command("ctr")?;
        ctr.args(["images", "import", "--snapshotter", "native", "-"]);
        state::output(&mut ctr, &bytes).map(drop)
    }

    fn process_name(&self, program: &str) -> String {
        format!("{program}-{}", self.name)
    }

    fn kubelet_config(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": pki::file("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}/{}", state::CGROUP, self.name),
            // Beside version 1 or with swap a cluster runs as well.
            "failCgroupV1": false,
            "failSwapOn": false,
            "enforceNodeAllocatable": [],
            "oomScoreAdj": 0,
            // A full disk is the machine's trouble, not a reason to evict a test's pods.
            "evictionHard": { "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%" },
            "imageGCHighThresholdPercent": 100,
            // The default is a folder below /usr.
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        })
    }
}

/// Debian's containerd 1.6, at its usual places, which are the node's own.
fn containerd_config(sandbox_image: &str) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  # Without CAP_SYS_RESOURCE nothing gets a lower score than its parent's.
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/var/lib/cni/net.d"

  # Copies instead of overlays: works on every file system.
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
"#
    )
}
