//! A real Kubernetes cluster of two nodes on this machine: the control plane in the machine's own network namespace, each
//! node in namespaces of its own, in a zone of its own. In: a folder with the programs; out: `kubectl`, images, commands
//! on a node. It outlives the process that made it, and goes without a trace with [`Cluster::down`], a signal while it is
//! made, or the next [`Cluster::up`]. Builds no program (`cargo xtask cluster` does) and runs no DNS. Needs root.

mod control_plane;
mod kube_node;
mod network;
mod pki;
mod state;

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, thread};

use anyhow::{Context, Result, bail};

pub use self::kube_node::KubeNode;
use self::kube_node::NODES;
pub(crate) use self::state::traces;
use crate::cleanup::{complain, wait_for_cleaner};
use crate::image::Image;
use crate::node::require_root;

/// The program of the sandbox containers and of the tests' own images, in the folder of programs.
const PROBE: &str = "probe";
/// Written last: whoever finds it may use the cluster.
const READY: &str = "ready";

/// A cluster that is up. Dropping it changes nothing.
#[derive(Debug)]
pub struct Cluster {
    programs: PathBuf,
}

/// Removes a cluster that is not made to its end, also on panic.
struct Unfinished;

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = state::remove().and_then(|()| state::remove_on_signal(false)) {
            complain(&error);
        }
    }
}

impl Cluster {
    /// The cluster that is up on this machine; an error if there is none, or one of its processes is dead.
    pub fn attach() -> Result<Self> {
        require_root()?;
        let programs = match fs::read_to_string(state::path(READY)) {
            Ok(programs) => programs,
            Err(_) if Self::exists() => {
                bail!("the cluster was never made to its end; start anew: cargo xtask cluster up")
            }
            Err(_) => bail!("no cluster is up: cargo xtask cluster up"),
        };
        let dead = state::dead();
        if !dead.is_empty() {
            bail!(
                "the cluster is half dead: {} ended; start anew: cargo xtask cluster up\n{}",
                dead.join(", "),
                state::log_end(&dead[0])
            );
        }
        Ok(Self { programs: PathBuf::from(programs) })
    }

    /// Whether there is anything of a cluster on this machine, dead or alive.
    pub fn exists() -> bool {
        !traces().is_empty()
    }

    /// Brings up a cluster; a dead one is removed first, a living one is an error. `programs` has etcd, kubectl, the
    /// other five of Kubernetes and `probe`; `say` is told what takes a while. It is removed if it fails, and if SIGINT,
    /// SIGTERM or SIGHUP ends this process before [`Cluster::keep`].
    pub fn up(programs: &Path, say: impl Fn(&str)) -> Result<Self> {
        require_root()?;
        let _lock = state::lock()?;
        if Self::attach().is_ok() {
            bail!("a cluster is up already: cargo xtask cluster down");
        }
        state::remove_on_signal(true)?;
        if Self::exists() {
            say("removing what is left of a dead cluster");
            state::remove()?;
        }
        let unfinished = Unfinished;
        let cluster = Self { programs: programs.to_owned() };
        cluster.make(&say).context("cannot bring up the cluster; what there was of it is removed again")?;
        std::mem::forget(unfinished);
        Ok(cluster)
    }

    /// From now on a signal that ends this process leaves the cluster alone.
    pub fn keep(&self) -> Result<()> {
        state::remove_on_signal(false)
    }

    /// From now on a signal that ends this process removes whatever there is of a cluster, whoever made it.
    pub fn remove_on_signal() -> Result<()> {
        state::remove_on_signal(true)
    }

    /// Removes the cluster and whatever is left of one: processes, containers, namespaces, mounts, links, cgroups, files.
    /// Fine if there is none. A signal meanwhile does not stop it halfway.
    pub fn down() -> Result<()> {
        require_root()?;
        wait_for_cleaner();
        let _lock = state::lock()?;
        state::remove_on_signal(true)?;
        let removed = state::remove();
        state::remove_on_signal(false)?;
        removed
    }

    fn make(&self, say: &impl Fn(&str)) -> Result<()> {
        say("making two nodes");
        network::is_free()?;
        state::make(&NODES.map(|node| node.name()))?;
        pki::make()?;
        pki::kubeconfig("admin", "/O=system:masters/CN=admin")?;
        control_plane::start_etcd(&self.programs)?;
        let holders = [NODES[0].hold()?, NODES[1].hold()?];
        network::make(holders)?;
        say("starting the control plane");
        control_plane::start_api_server(&self.programs)?;
        let probe = Image::of_program("sluice-probe", "1", &self.programs.join(PROBE))?;
        let archive = state::path("probe.tar");
        probe.write(&archive)?;
        for node in NODES {
            node.start_containerd((&probe.reference(), &archive))?;
        }
        self.wait_for_api_server()?;
        control_plane::start_controllers(&self.programs)?;
        say("starting the nodes");
        for node in NODES {
            node.start_kubelet(&self.programs)?;
        }
        state::wait_for("the nodes to register", || {
            self.check_alive()?;
            let nodes = self.kubectl(&["get", "nodes", "--output=name"]).unwrap_or_default();
            // No pod is admitted without it.
            let account = self.kubectl(&["get", "serviceaccount", "default", "--output=name"]).unwrap_or_default();
            Ok(nodes.lines().count() == NODES.len() && !account.is_empty())
        })?;
        NODES.iter().try_for_each(|node| node.tell_zone(self))?;
        self.wait(&["--for=condition=Ready", "nodes", "--all"]).with_context(|| {
            NODES
                .map(|node| format!("{}:\n{}", node.name(), state::log_end(&format!("kubelet-{}", node.name()))))
                .join("\n")
        })?;
        self.write_tools()?;
        let programs = self.programs.to_str().context("a folder of programs in UTF-8")?;
        state::write(READY, programs).map(drop)
    }

    fn check_alive(&self) -> Result<()> {
        match &state::dead()[..] {
            [] => Ok(()),
            [name, ..] => bail!("{name} died:\n{}", state::log_end(name)),
        }
    }

    /// A command for each node, for whoever works in a shell: `node-a ctr images list`.
    fn write_tools(&self) -> Result<()> {
        state::folder("bin")?;
        for node in NODES {
            let command = node.command("")?;
            let words = |word: &std::ffi::OsStr| word.to_string_lossy().into_owned();
            let enter: Vec<_> = command.get_args().map(words).filter(|word| !word.is_empty()).collect();
            let script = format!(
                "#!/bin/sh\n# Runs a command, or a shell, where {}'s kubelet and containerd run, in this folder if it is there.\n\
                 export CONTAINERD_NAMESPACE=k8s.io CONTAINERD_SNAPSHOTTER=native\n\
                 [ $# -gt 0 ] || set -- \"${{SHELL:-/bin/sh}}\"\nexec nsenter {} sh -c 'cd \"$0\" 2>/dev/null; exec \"$@\"' \"$PWD\" \"$@\"\n",
                node.name(),
                enter.join(" ")
            );
            let file = state::write(Path::new("bin").join(node.name()), script)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        state::path("pki/admin.kubeconfig")
    }

    /// Where the API server listens: no proxy of the machine's knows it.
    pub fn api_server_ip(&self) -> Ipv4Addr {
        network::CONTROL_PLANE
    }

    /// Folders for a shell's PATH: kubectl and helm; `node-a` and `node-b`, which run a command on that node.
    pub fn tools(&self) -> [PathBuf; 2] {
        [self.programs.clone(), state::path("bin")]
    }

    /// Variables with which kubectl and helm use this cluster and keep their caches in its folder, which goes with it.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let mut all = vec![("KUBECONFIG", self.kubeconfig()), ("KUBECACHEDIR", state::path("cache/kubectl"))];
        for (name, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            all.push((name, state::path("cache/helm").join(folder)));
        }
        all
    }

    /// A folder for files that go with the cluster, beside its own.
    pub fn folder(&self) -> Result<PathBuf> {
        state::folder("tests")
    }

    /// A program with [`Cluster::environment`] and nothing of the caller's.
    pub fn command(&self, program: &str) -> Command {
        let ours = self.programs.join(program);
        let mut command = state::command(if ours.is_file() { &ours } else { Path::new(program) });
        command.envs(self.environment());
        command
    }

    /// Runs kubectl and gives what it says; an error with its complaint if it fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        state::output(self.command("kubectl").args(args), b"")
    }

    /// Runs `probe` on this machine with lines for its standard input, and gives what it says.
    pub fn probe(&self, args: &[&str], lines: &str) -> Result<String> {
        state::output(self.command(PROBE).args(args), lines.as_bytes())
    }

    /// Writes past the API server: lines of `PUT KEY VALUE` and `DELETE KEY` for etcd.
    pub fn store(&self, lines: &str) -> Result<String> {
        let [authority, certificate, key] = pki::etcd_client();
        self.probe(&["store", control_plane::ETCD, &authority, &certificate, &key], lines)
    }

    /// Applies objects, YAML or JSON.
    pub fn apply(&self, objects: &str) -> Result<String> {
        state::output(self.command("kubectl").args(["apply", "--filename=-"]), objects.as_bytes())
    }

    /// `kubectl wait` with as much time as a slow machine takes: `wait(&["--for=condition=Ready", "pod/x"])`.
    pub fn wait(&self, args: &[&str]) -> Result<()> {
        let said = state::output(self.command("kubectl").args(["wait", "--timeout=300s"]).args(args), b"");
        said.map(drop).with_context(|| self.what_goes_on())
    }

    /// Waits until all pods of `deployment/x` or `ds/x` are those that it describes, and ready.
    pub fn wait_rolled_out(&self, namespace: &str, object: &str) -> Result<()> {
        let said = self.kubectl(&["--namespace", namespace, "rollout", "status", object, "--timeout=300s"]);
        said.map(drop).with_context(|| self.what_goes_on())
    }

    /// For an error: pods, what they and the nodes say of themselves, and the last words of those who should have acted.
    fn what_goes_on(&self) -> String {
        let said = |args: &[&str]| self.kubectl(args).unwrap_or_else(|error| format!("{error:#}\n"));
        let pods = said(&["get", "pods", "--all-namespaces", "--output=wide"]);
        let conditions = said(&["describe", "nodes"]);
        let events = said(&["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]);
        let events: Vec<_> = events.lines().collect();
        let events = events[events.len().saturating_sub(60)..].join("\n");
        let acting = ["kube-controller-manager", "kube-scheduler", "kubelet-node-a", "kubelet-node-b"];
        let logs = acting.map(|name| format!("{name}:\n{}", state::log_end(name))).join("\n");
        format!("the pods:\n{pods}\nthe nodes:\n{conditions}\nthe last events:\n{events}\n{logs}")
    }

    /// Asks every 100 ms until the answer is yes, for five minutes, or an error.
    pub fn wait_until(&self, what: &str, done: impl FnMut() -> Result<bool>) -> Result<()> {
        state::wait_for(what, done)
    }

    /// Gives an image archive to both nodes. Pods name it with `imagePullPolicy: Never`.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        thread::scope(|scope| {
            let imports = NODES.map(|node| scope.spawn(move || node.import_image(archive)));
            imports
                .into_iter()
                .try_for_each(|import| import.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// The image of `probe`, which every node has from the start.
    pub fn probe_image(&self) -> &'static str {
        "sluice-probe:1"
    }

    pub fn nodes(&self) -> [KubeNode; 2] {
        NODES
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<KubeNode> {
        NODES
            .into_iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("the nodes are node-a and node-b, not {name}"))
    }

    /// Ends the API server as a crash would; etcd, the nodes and all pods stay.
    pub fn stop_api_server(&self) -> Result<()> {
        state::kill(control_plane::API_SERVER)
    }

    /// Starts it again and waits until it serves.
    pub fn start_api_server(&self) -> Result<()> {
        control_plane::start_api_server(&self.programs)?;
        self.wait_for_api_server()
    }

    fn wait_for_api_server(&self) -> Result<()> {
        state::wait_for("the API server", || control_plane::is_ready(self.command("kubectl")))
    }
}
