//! `sluice-agent check` against the kernel itself: what it says on a node that has everything, and that for each thing
//! taken away exactly that one fails, with the cure.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_agent::intercept::{Intercept, Settings};
use testbed::{Launch, Node, find_tool};
use tracing::level_filters::LevelFilter;

fn agent() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE_AGENT") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let path = own.ancestors().nth(2).context("this test lies in target/PROFILE/deps")?.join("sluice-agent");
    ensure!(path.is_file(), "no {}: cargo build -p sluice-agent, or set SLUICE_AGENT=PATH", path.display());
    Ok(path)
}

/// What the command said.
struct Said {
    code: Option<i32>,
    report: Value,
}

impl Said {
    fn items(&self) -> impl Iterator<Item = &Value> {
        self.report["items"].as_array().into_iter().flatten()
    }

    fn item(&self, name: &str) -> Result<&Value> {
        self.items().find(|item| item["name"] == name).with_context(|| format!("no line {name} in {}", self.report))
    }

    fn found(&self, name: &str) -> Result<&str> {
        self.item(name)?["found"].as_str().context("text")
    }

    fn failed(&self) -> Vec<&str> {
        self.items().filter(|item| item["level"] == "fail").filter_map(|item| item["name"].as_str()).collect()
    }

    /// This alone fails, the cure has these words, and the status says so.
    fn ensure_only_fails(&self, name: &str, cure: &str) -> Result<()> {
        ensure!(self.failed() == [name], "{:#}", self.report);
        let given = self.item(name)?["cure"].as_str().context("a cure")?;
        ensure!(given.contains(cure), "{given}");
        ensure!(self.code == Some(1), "status {:?}", self.code);
        Ok(())
    }

    fn ensure_nothing_fails(&self) -> Result<()> {
        ensure!(self.failed().is_empty() && self.code == Some(0), "status {:?}: {:#}", self.code, self.report);
        Ok(())
    }
}

/// Runs `launch` with the command line of a check at its end.
fn said(launch: Launch) -> Result<Said> {
    let output = launch.output()?;
    let report = serde_json::from_slice(&output.stdout).with_context(|| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(Said { code: output.status.code(), report })
}

/// The arguments of a check of this node, as JSON.
fn check(node: &Node) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let (source, kubepods) = (text(node.source_dir()), text(&node.kubepods()));
    ["check", "--output", "json", "--source", &source, "--cgroup", &kubepods].map(str::to_owned).to_vec()
}

/// A check below another program with arguments of its own.
fn below(node: &Node, program: &str, args: &[&str]) -> Result<Said> {
    said(node.command(program).args(args).arg(agent()?).args(check(node)))
}

/// A check in a mount namespace of its own, after a command of the shell.
fn after(node: &Node, command: &str) -> Result<Said> {
    below(node, "unshare", &["--mount", "sh", "-c", &format!("{command} && exec \"$0\" \"$@\"")])
}

#[test]
fn a_node_that_has_everything_passes_and_text_says_the_same_as_json() -> Result<()> {
    let node = Node::new()?;
    let _pod = node.pod("client")?;
    let json = said(node.command(agent()?).args(check(&node)))?;
    json.ensure_nothing_fails()?;
    ensure!(json.found("pods' cgroup")?.ends_with("(given by --cgroup), 1 pod"), "{}", json.report);
    ensure!(json.found("processes of pods")?.ends_with("found, and their namespaces can be opened"), "{}", json.report);
    ensure!(json.found("source")?.contains("Pod 1"), "{}", json.report);

    let text = node.command(agent()?).args(check(&node)).arg("--output=text").output()?;
    // The later flag is refused rather than taken.
    ensure!(text.status.code() == Some(2));
    let words = check(&node).into_iter().filter(|word| word != "--output" && word != "json");
    let text = node.command(agent()?).args(words).read()?;
    ensure!(!text.contains('\x1b'), "colours are for terminals");
    let lines = text.lines().filter(|line| !line.starts_with("      cure: ")).count();
    ensure!(lines == json.items().count() + 1, "{text}");
    ensure!(text.trim_end().ends_with("0 failed: this node is fit for sluice"), "{text}");
    Ok(())
}

#[test]
fn without_a_source_the_node_alone_is_looked_at_and_that_is_said() -> Result<()> {
    let node = Node::new()?;
    let kubepods = node.kubepods().display().to_string();
    let bare = node.command(agent()?).args(["check", "--output", "json", "--cgroup", &kubepods]);
    let said = said(bare)?;
    said.ensure_nothing_fails()?;
    ensure!(said.item("source")?["level"] == "warn" && said.found("source")?.contains("tried"), "{}", said.report);
    Ok(())
}

#[test]
fn settings_that_run_would_refuse_fail_before_it_starts() -> Result<()> {
    let node = Node::new()?;
    for (variable, flag) in [("SLUICE_LOG=blah=x", "--log"), ("SLUICE_LIMIT=stream-window=2000000", "--limit")] {
        let said = below(&node, "env", &[variable])?;
        said.ensure_only_fails("settings", "SLUICE_LOG")?;
        ensure!(said.found("settings")?.contains(flag), "{}", said.report);
    }
    Ok(())
}

#[test]
fn what_failed_stands_at_the_end_where_a_log_is_read() -> Result<()> {
    let node = Node::new()?;
    let words = check(&node).into_iter().filter(|word| word != "--output" && word != "json");
    let output = node.command("env").arg("SLUICE_LOG=blah").arg(agent()?).args(words).output()?;
    let text = String::from_utf8(output.stdout)?;
    let (_, end) = text.split_once("\nto be mended:\n").with_context(|| text.clone())?;
    ensure!(end.lines().count() == 3 && end.starts_with("fail  settings"), "{text}");
    ensure!(end.trim_end().ends_with("sluice cannot serve this node yet"), "{text}");
    Ok(())
}

#[test]
fn a_dropped_capability_fails_alone_and_the_cure_names_it() -> Result<()> {
    let node = Node::new()?;
    let _pod = node.pod("client")?;
    for (dropped, name) in [("-sys_admin", "SYS_ADMIN"), ("-sys_ptrace", "SYS_PTRACE")] {
        let said = below(&node, "setpriv", &["--bounding-set", dropped])?;
        said.ensure_only_fails(&format!("CAP_{name}"), &format!("capabilities.add: [{name}]"))?;
        ensure!(said.item("BPF attachment")?["level"] == "ok", "{}", said.report);
    }
    for dropped in ["-bpf", "-perfmon", "-net_admin"] {
        let said = below(&node, "setpriv", &["--bounding-set", &format!("-sys_admin,{dropped}")])?;
        ensure!(said.failed().len() == 2 && said.failed().contains(&"CAP_SYS_ADMIN"), "{}", said.report);
    }
    Ok(())
}

#[test]
fn sys_admin_stands_in_for_the_capabilities_split_off_from_it() -> Result<()> {
    let node = Node::new()?;
    let said = below(&node, "setpriv", &["--bounding-set", "-bpf,-perfmon,-net_admin"])?;
    said.ensure_nothing_fails()?;
    for tried in ["BPF maps", "BPF programs", "BPF attachment"] {
        ensure!(said.item(tried)?["level"] == "ok", "{}", said.report);
    }
    ensure!(said.found("CAP_BPF")?.contains("CAP_SYS_ADMIN stands in"), "{}", said.report);
    Ok(())
}

#[test]
fn a_container_without_the_nodes_cgroups_is_told_which_mount_to_take() -> Result<()> {
    let node = Node::new()?;
    let said = after(&node, "umount --all --types cgroup2")?;
    said.ensure_only_fails("cgroup v2", "hostPath")
}

#[test]
fn the_kernels_description_of_its_types_is_not_needed() -> Result<()> {
    let node = Node::new()?;
    let said = after(&node, "mount -t tmpfs none /sys/kernel/btf")?;
    said.ensure_nothing_fails()?;
    ensure!(said.found("kernel types (BTF)")?.starts_with("not described"), "{}", said.report);
    ensure!(said.item("BPF programs")?["level"] == "ok", "{}", said.report);
    Ok(())
}

/// As containerd and CRI-O start pods on a node with cgroup v2 alone: the container reads its own group as `/`, has that
/// one mounted, and the node's tree where its manifest wants it.
#[test]
fn kubepods_is_found_from_within_a_cgroup_namespace_of_the_pods_own() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("agent")?;
    let arguments = check(&node).into_iter().take(5);
    let own = said(pod.command("unshare").arg("--cgroup").arg(agent()?).args(arguments.clone()))?;
    own.ensure_nothing_fails()?;
    let kubepods = node.kubepods().display().to_string();
    let found = format!("{kubepods} (above this process's own group), 1 pod, this one among them");
    ensure!(own.found("pods' cgroup")? == found, "{}", own.report);
    ensure!(own.found("cgroup namespace")?.contains("the container's own"), "{}", own.report);

    let mounts = sluice_agent::pods::v2_mounts(&std::fs::read_to_string("/proc/self/mountinfo")?);
    let mount = mounts.first().context("cgroup v2 is mounted")?.point.display().to_string();
    let host = node.folder().join("host-cgroup");
    std::fs::create_dir(&host)?;
    let host = host.display().to_string();
    let script =
        format!("mount --bind {mount} {host} && umount {mount} && mount -t cgroup2 none {mount} && exec \"$0\" \"$@\"");
    let launch = pod.command("unshare").args(["--cgroup", "--mount", "sh", "-c", &script]).arg(agent()?);
    let as_pod = said(launch.args(arguments))?;
    as_pod.ensure_nothing_fails()?;
    let expected = found.replace(&mount, &host);
    ensure!(as_pod.found("pods' cgroup")? == expected, "{:#}", as_pod.report);
    Ok(())
}

#[test]
fn the_agent_itself_serves_its_node_from_within_a_cgroup_namespace_of_its_own() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("agent")?;
    let launch = pod.command("unshare").arg("--cgroup").arg(agent()?).args(["run", "--admin=127.0.0.1:0", "--source"]);
    let mut agent = launch.arg(node.source_dir()).stderr(Stdio::piped()).spawn()?;
    let attached = BufReader::new(agent.stderr().context("no stderr")?).lines().map_while(std::io::Result::ok);
    let attached = attached.into_iter().find(|line| line.contains("attached")).context("it ended")?;
    ensure!(attached.contains(&format!("cgroup={}", node.kubepods().display())), "{attached}");
    Ok(())
}

#[test]
fn a_seccomp_filter_before_bpf_is_named_as_the_cause() -> Result<()> {
    // Loads the number of the call, compares it with bpf's, and answers EPERM or lets it pass.
    const FILTER: &str = "
import ctypes, os, platform, struct, sys
number = {'x86_64': 321, 'aarch64': 280}[platform.machine()]
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(steps), ctypes.addressof(code)))
if ctypes.CDLL(None, use_errno=True).prctl(22, 2, program, 0, 0) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
";
    let node = Node::new()?;
    let said = below(&node, "python3", &["-c", FILTER])?;
    said.ensure_only_fails("bpf(2)", "seccompProfile")?;
    ensure!(said.found("confinement")?.starts_with("a seccomp filter"), "{}", said.report);
    Ok(())
}

#[test]
fn a_user_namespace_is_named_as_the_cause() -> Result<()> {
    let node = Node::new()?;
    let said = below(&node, "unshare", &["--user", "--map-root-user"])?;
    ensure!(said.failed().contains(&"user") && said.failed().contains(&"BPF maps"), "{:#}", said.report);
    for failed in said.items().filter(|item| item["level"] == "fail") {
        ensure!(failed["cure"].as_str().is_some_and(|cure| cure.contains("hostUsers")), "{failed:#}");
    }
    Ok(())
}

fn loaded() -> Result<Intercept> {
    Intercept::load(&Settings { own_cgroup: None, log_level: LevelFilter::OFF })
}

#[test]
fn another_agent_at_the_same_cgroup_is_seen_by_name() -> Result<()> {
    let node = Node::new()?;
    let none = said(node.command(agent()?).args(check(&node)))?;
    ensure!(none.found("other programs")?.starts_with("none at sluice's hooks"), "{}", none.report);
    let mut other = loaded()?;
    other.attach(&node.kubepods())?;
    let seen = said(node.command(agent()?).args(check(&node)))?;
    seen.ensure_nothing_fails()?;
    let found = seen.found("other programs")?;
    ensure!(found.starts_with("a sluice-agent") && found.contains("sluice_connect4"), "{found}");
    Ok(())
}

/// An exclusive program, as old versions of other products attach theirs; the kernel's own refusal confirms the verdict.
#[test]
fn a_program_that_tolerates_no_other_above_the_pods_fails_before_the_agent_does() -> Result<()> {
    let node = Node::new()?;
    let mut owner = loaded()?;
    let system = node.cgroup().join("system");
    owner.attach(&system)?;
    let bpftool = |args: &[&str]| -> Result<String> {
        let output =
            Command::new(find_tool("bpftool").context("no bpftool: apt-get install bpftool")?).args(args).output()?;
        ensure!(output.status.success(), "bpftool {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let shown: Value = serde_json::from_str(&bpftool(&["-j", "cgroup", "show", &system.display().to_string()])?)?;
    let connect4 = shown.as_array().into_iter().flatten().find(|program| program["name"] == "sluice_connect4");
    let id = connect4.context("sluice_connect4")?["id"].to_string();
    bpftool(&["cgroup", "attach", &node.cgroup().display().to_string(), "connect4", "id", &id])?;

    let said = said(node.command(agent()?).args(check(&node)))?;
    ensure!(said.failed().first() == Some(&"other programs"), "{:#}", said.report);
    ensure!(said.item("other programs")?["cure"].as_str().is_some_and(|cure| cure.contains("BPF_F_ALLOW_MULTI")));
    let refused = loaded()?.attach(&node.kubepods()).err().context("the kernel must refuse it as well")?;
    ensure!(format!("{refused:#}").contains("sluice_connect4"), "{refused:#}");
    Ok(())
}
