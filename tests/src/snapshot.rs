//! What is on the machine that sluice, a simulated node or a cluster could leave behind: in, nothing; out, names that can
//! be compared. Reads only; what other live processes' nodes have is not counted.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cgroup;
use crate::cleanup;
use crate::cluster;
use crate::netns::find_tool;

/// The kernel takes namespaces and BPF objects down in the background after their last user is gone.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// What is there at one moment: one line per thing, e.g. `cgroup sluice-node-7-1234-0/kubepods`, `bpf program sluice_connect4 17`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Of the machine as the calling process sees it: processes and network namespaces of this process and its
    /// descendants, named namespaces, links and nftables tables of its network namespace, cgroups and folders of simulated
    /// nodes and of the cluster, BPF programs and links.
    pub fn take() -> Result<Self> {
        let mut things = BTreeSet::new();
        processes(&mut things)?;
        names("named netns", Path::new("/run/netns"), &mut things);
        names("link", Path::new("/proc/self/net/dev_snmp6"), &mut things);
        for line in run("nft", &["list", "tables"])?.lines() {
            things.insert(format!("nft {line}"));
        }
        let groups = cgroup::v2_mount()?;
        for group in cgroup::children(&groups).iter().filter(|group| is_ours(group)) {
            cgroups(&groups, group, &mut things);
        }
        for folder in cgroup::children(&std::env::temp_dir()).iter().filter(|folder| is_ours(folder)) {
            things.insert(format!("folder {}", folder.display()));
        }
        things.extend(cluster::traces().iter().map(|path| format!("cluster {}", path.display())));
        let others = held_by_others();
        bpf("prog", &others, &mut things)?;
        bpf("link", &others, &mut things)?;
        Ok(Self { things })
    }

    /// What is there now and was not in `before`.
    pub fn new_since(&self, before: &Snapshot) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }

    /// Takes snapshots until nothing is there that was not in this one; an error names what stays.
    pub fn wait_until_restored(&self) -> Result<()> {
        let deadline = Instant::now() + SETTLES_WITHIN;
        loop {
            let left = Snapshot::take()?.new_since(self);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("left behind:\n  {}", left.join("\n  "));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// This process and its descendants, and the network namespaces they are in or hold.
fn processes(things: &mut BTreeSet<String>) -> Result<()> {
    let own = fs::read_link("/proc/self/ns/net").context("cannot read /proc/self/ns/net")?;
    for pid in entries(Path::new("/proc")).iter().filter_map(|name| name.parse::<u64>().ok()) {
        if !is_descendant(pid) {
            continue;
        }
        let proc = format!("/proc/{pid}");
        if pid != u64::from(std::process::id()) {
            let name = fs::read_to_string(format!("{proc}/comm")).unwrap_or_default();
            things.insert(format!("process {pid} {}", name.trim()));
        }
        let held = entries(Path::new(&proc).join("fd").as_path())
            .into_iter()
            .map(|fd| format!("{proc}/fd/{fd}"))
            .chain([format!("{proc}/ns/net")])
            .filter_map(|link| fs::read_link(link).ok())
            .filter(|target| target.to_string_lossy().starts_with("net:[") && *target != own);
        things.extend(held.map(|target| format!("netns {}", target.display())));
    }
    Ok(())
}

/// A group and those below.
fn cgroups(root: &Path, path: &Path, things: &mut BTreeSet<String>) {
    things.insert(format!("cgroup {}", path.strip_prefix(root).unwrap_or(path).display()));
    for child in cgroup::children(path) {
        cgroups(root, &child, things);
    }
}

/// Whether this is a simulated node's, and of this process or a dead one.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    cleanup::owner(&name)
        .is_some_and(|(pid, _)| pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists())
}

/// BPF objects with their ids, less those that other live processes hold.
fn bpf(kind: &str, others: &BTreeSet<String>, things: &mut BTreeSet<String>) -> Result<()> {
    let list: Value = serde_json::from_str(&run("bpftool", &["-j", kind, "show"])?).context("bpftool's JSON")?;
    for object in list.as_array().into_iter().flatten() {
        let id = &object["id"];
        if !others.contains(&format!("{kind} {id}")) {
            let name = object["name"].as_str().or(object["type"].as_str()).unwrap_or("?");
            things.insert(format!("bpf {kind} {name} {id}"));
        }
    }
    Ok(())
}

/// Kind and id of the BPF objects behind the descriptors of processes that are not this one's descendants.
fn held_by_others() -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    for pid in entries(Path::new("/proc")).iter().filter_map(|name| name.parse::<u64>().ok()) {
        if is_descendant(pid) {
            continue;
        }
        let folder = format!("/proc/{pid}/fdinfo");
        for fd in entries(Path::new(&folder)) {
            // proc_pid_fdinfo(5): `prog_id:` and `link_id:`, a link with its program.
            let text = fs::read_to_string(format!("{folder}/{fd}")).unwrap_or_default();
            let ids = text.lines().filter_map(|line| line.split_once("_id:"));
            held.extend(ids.map(|(kind, id)| format!("{kind} {}", id.trim())));
        }
    }
    held
}

fn is_descendant(pid: u64) -> bool {
    let mut pid = pid;
    while pid > 1 {
        if pid == u64::from(std::process::id()) {
            return true;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        pid = parent.unwrap_or(0);
    }
    false
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(find_tool(program).unwrap_or_else(|| program.into()))
        .args(args)
        .output()
        .with_context(|| format!("cannot start {program}: apt-get install bpftool nftables"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn names(kind: &str, folder: &Path, things: &mut BTreeSet<String>) {
    things.extend(entries(folder).into_iter().map(|name| format!("{kind} {name}")));
}

fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
