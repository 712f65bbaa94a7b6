//! What this process may do. In: /proc/self; out: a line for each capability and for what confines the process, and for
//! `run` an error that names all that is missing. Whether the kernel agrees, the other checks try.

use std::fs;

use anyhow::{Context, Result, bail};

use super::item::Item;

/// Numbers of linux/capability.h.
const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Number, name, and what needs it.
const NEEDED: [(u32, &str, &str); 5] = [
    (BPF, "CAP_BPF", "loads the kernel programs"),
    (PERFMON, "CAP_PERFMON", "lets them read the kernel's socket fields"),
    (NET_ADMIN, "CAP_NET_ADMIN", "attaches them to the pods' cgroup"),
    (SYS_ADMIN, "CAP_SYS_ADMIN", "opens listeners inside pods' network namespaces"),
    (SYS_PTRACE, "CAP_SYS_PTRACE", "finds the namespaces of pods' processes in /proc"),
];

/// The first user namespace (`PROC_USER_INIT_INO` of linux/proc_ns.h), as its link reads.
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// What this process may do, and what stands in its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Privileges {
    effective: u64,
    uid: u32,
    no_new_privileges: bool,
    /// A seccomp filter is there.
    filtered: bool,
    first_user_namespace: bool,
    /// The profile or context of AppArmor or SELinux; none where nothing confines.
    label: Option<String>,
    /// `integrity` or `confidentiality`.
    lockdown: Option<String>,
}

impl Privileges {
    pub(super) fn read() -> Result<Self> {
        let path = "/proc/self/status";
        let status = fs::read_to_string(path).context("cannot read /proc/self/status: is /proc mounted?")?;
        let mut privileges = parse(&status).context("/proc/self/status names no effective capabilities (CapEff)")?;
        privileges.first_user_namespace =
            fs::read_link("/proc/self/ns/user").is_ok_and(|link| link.as_os_str() == FIRST_USER_NAMESPACE);
        privileges.label = confining(&fs::read_to_string("/proc/self/attr/current").unwrap_or_default());
        privileges.lockdown = lockdown(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default());
        Ok(privileges)
    }

    /// The first of these capabilities that is missing.
    fn lacks(&self, needed: &[u32]) -> Option<&'static str> {
        needed
            .iter()
            .find(|bit| !self.holds(**bit))
            .and_then(|bit| NEEDED.iter().find(|it| it.0 == *bit))
            .map(|it| it.1)
    }

    /// What loading and attaching programs lacks.
    pub(super) fn lacks_bpf(&self) -> Option<&'static str> {
        self.lacks(&[BPF, PERFMON, NET_ADMIN])
    }

    /// What looking at the programs of others lacks.
    pub(super) fn lacks_net_admin(&self) -> Option<&'static str> {
        self.lacks(&[NET_ADMIN])
    }

    /// What opening another process's namespace lacks.
    pub(super) fn lacks_ptrace(&self) -> Option<&'static str> {
        self.lacks(&[SYS_PTRACE])
    }

    /// What entering a namespace lacks.
    pub(super) fn lacks_admin(&self) -> Option<&'static str> {
        self.lacks(&[SYS_ADMIN])
    }

    fn holds(&self, capability: u32) -> bool {
        self.effective & (1 << capability) != 0 || self.implies(capability)
    }

    /// CAP_SYS_ADMIN stands for those that were split off from it (Linux 5.8), and the kernel takes it for
    /// CAP_NET_ADMIN where programs are concerned.
    fn implies(&self, capability: u32) -> bool {
        self.effective & (1 << SYS_ADMIN) != 0 && matches!(capability, BPF | PERFMON | NET_ADMIN)
    }

    /// Why bpf(2) says no to a process with all capabilities, and the cure. `before`: the answer came from before the
    /// kernel's own code, as a seccomp filter's does.
    pub(super) fn why_not_bpf(&self, before: bool) -> (String, String) {
        let seen = |what: &str, cure: &str| (what.to_owned(), cure.to_owned());
        if !self.first_user_namespace {
            return seen("the process is in a user namespace, whose capabilities do not count for BPF", USER_NAMESPACE);
        }
        if before && self.filtered {
            return seen("its seccomp filter forbids bpf(2)", SECCOMP);
        }
        if let Some(label) = &self.label {
            return (format!("it is confined by the security module's profile {label}"), SECURITY_MODULE.to_owned());
        }
        if self.lockdown.as_deref() == Some("confidentiality") {
            return seen(
                "the kernel is locked down (confidentiality)",
                "boot with lockdown=integrity or none (/sys/kernel/security/lockdown)",
            );
        }
        if self.filtered {
            return seen("most likely its seccomp filter", SECCOMP);
        }
        seen("no reason is visible from here", "the node's audit log (ausearch -m avc, dmesg) names who said no")
    }

    /// Why a namespace of another process may not be opened or entered by a process with all capabilities.
    pub(super) fn why_not_namespace(&self) -> (String, String) {
        if !self.first_user_namespace {
            return (
                "the process is in a user namespace, whose capabilities do not count for the node's processes".into(),
                USER_NAMESPACE.into(),
            );
        }
        if let Some(label) = &self.label {
            return (format!("it is confined by the security module's profile {label}"), SECURITY_MODULE.into());
        }
        if self.filtered {
            return ("most likely its seccomp filter".into(), SECCOMP.into());
        }
        ("no reason is visible from here".into(), "the node's audit log (dmesg) names who said no".into())
    }
}

const USER_NAMESPACE: &str = "in a pod do not set hostUsers: false; elsewhere run it outside of any user namespace";
const SECCOMP: &str =
    "in a pod securityContext.seccompProfile.type: Unconfined, or a profile that allows bpf and setns";
const SECURITY_MODULE: &str = "in a pod securityContext.appArmorProfile.type: Unconfined (AppArmor), or \
                               seLinuxOptions.type: spc_t (SELinux)";

/// For `run`: an error that names each missing capability, what it is for and the cure.
pub fn require() -> Result<()> {
    let privileges = Privileges::read()?;
    let missing: Vec<_> = privileges.missing().map(|(name, purpose)| format!("{name} ({purpose})")).collect();
    if !missing.is_empty() {
        bail!(
            "missing privileges: {}; run as root, in a pod with runAsUser: 0 and these under \
             securityContext.capabilities.add",
            missing.join(", ")
        );
    }
    Ok(())
}

impl Privileges {
    fn missing(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        NEEDED.into_iter().filter(|(bit, ..)| !self.holds(*bit)).map(|(_, name, purpose)| (name, purpose))
    }
}

pub(super) fn items(privileges: &Privileges) -> Vec<Item> {
    let mut items: Vec<_> = NEEDED.into_iter().map(|needed| capability(privileges, needed)).collect();
    items.push(user(privileges));
    items.push(confinement(privileges));
    items
}

fn capability(privileges: &Privileges, (bit, name, purpose): (u32, &'static str, &'static str)) -> Item {
    let short = name.trim_start_matches("CAP_");
    if privileges.effective & (1 << bit) != 0 {
        Item::ok(name, purpose)
    } else if privileges.implies(bit) {
        Item::ok(name, format!("{purpose}; CAP_SYS_ADMIN stands in for it"))
    } else if privileges.uid != 0 {
        Item::fail(
            name,
            format!("missing: {purpose}"),
            format!(
                "run it as root (this is user {}); in a pod securityContext.runAsUser: 0 and capabilities.add: [{short}], \
                 since added capabilities reach root alone",
                privileges.uid
            ),
        )
    } else {
        Item::fail(
            name,
            format!("missing: {purpose}"),
            format!(
                "in a pod securityContext.capabilities.add: [{short}]; elsewhere run it as root with {name} allowed"
            ),
        )
    }
}

fn user(privileges: &Privileges) -> Item {
    let user = if privileges.uid == 0 { "root".into() } else { format!("user {}", privileges.uid) };
    if privileges.first_user_namespace {
        Item::ok("user", user)
    } else {
        Item::fail(
            "user",
            format!("{user} of a user namespace: its capabilities do not count on the node"),
            USER_NAMESPACE,
        )
    }
}

/// Good or bad by what it forbids, which the other items tell.
fn confinement(privileges: &Privileges) -> Item {
    let seccomp = if privileges.filtered { "a seccomp filter" } else { "no seccomp filter" };
    let new = if privileges.no_new_privileges { "no_new_privs set" } else { "no_new_privs not set" };
    let label = privileges.label.as_deref().map_or("no security module's profile".into(), |it| format!("profile {it}"));
    let lockdown = privileges.lockdown.as_ref().map(|it| format!(", kernel lockdown: {it}")).unwrap_or_default();
    Item::ok("confinement", format!("{seccomp}, {new}, {label}{lockdown}"))
}

fn parse(status: &str) -> Option<Privileges> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    Some(Privileges {
        effective: u64::from_str_radix(field("CapEff")?, 16).ok()?,
        // Real, effective, saved, of the file system.
        uid: field("Uid")?.split_whitespace().nth(1)?.parse().ok()?,
        no_new_privileges: field("NoNewPrivs") == Some("1"),
        filtered: field("Seccomp") == Some("2"),
        first_user_namespace: true,
        label: None,
        lockdown: None,
    })
}

/// AppArmor says `unconfined`, or `profile (mode)`; SELinux a context, of which some confine nothing; without either
/// there is nothing to read.
fn confining(label: &str) -> Option<String> {
    let label = label.trim_end_matches(['\0', '\n']);
    let free = label.is_empty()
        || label == "unconfined"
        || label == "kernel"
        || label.ends_with("(complain)")
        || ["unconfined_t", "spc_t", "kernel_t", "init_t", "unconfined_service_t"]
            .iter()
            .any(|kind| label.split(':').nth(2) == Some(kind));
    (!free).then(|| label.to_owned())
}

/// `none [integrity] confidentiality`: the one in brackets holds.
fn lockdown(file: &str) -> Option<String> {
    let holds = file.split_once('[')?.1.split_once(']')?.0;
    (holds != "none").then(|| holds.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::check::item::Level;

    /// A process with these capabilities and nothing in its way.
    pub(crate) fn with(capabilities: u64) -> Privileges {
        let status = format!(
            "Name:\tx\nUid:\t0\t0\t0\t0\nCapPrm:\t0\nCapEff:\t{capabilities:016x}\nNoNewPrivs:\t0\nSeccomp:\t0\n"
        );
        parse(&status).unwrap()
    }

    const ALL: u64 = 0x1ff_ffff_ffff;

    #[test]
    fn root_has_all_and_others_hear_what_they_lack() {
        let lacking = |capabilities| with(capabilities).missing().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(lacking(ALL).is_empty());
        assert_eq!(lacking(0).len(), NEEDED.len());
        assert_eq!(lacking(ALL & !(1 << SYS_PTRACE)), ["CAP_SYS_PTRACE"]);
        assert!(lacking(1 << SYS_ADMIN | 1 << SYS_PTRACE).is_empty(), "CAP_SYS_ADMIN stands for three others");
        assert_eq!(lacking(ALL & !(1 << SYS_ADMIN)), ["CAP_SYS_ADMIN"]);
        assert_eq!(parse("Name:\tx\n"), None);
    }

    #[test]
    fn each_missing_capability_fails_alone_and_its_cure_names_it() {
        let without = with(ALL & !(1 << SYS_ADMIN) & !(1 << BPF));
        let failed: Vec<_> = items(&without).into_iter().filter(|item| item.level == Level::Fail).collect();
        assert_eq!(failed.iter().map(|item| &*item.name).collect::<Vec<_>>(), ["CAP_BPF", "CAP_SYS_ADMIN"]);
        assert!(failed[0].cure.as_ref().unwrap().contains("capabilities.add: [BPF]"));
        let other = Privileges { uid: 1000, ..without };
        assert!(items(&other)[0].cure.as_ref().unwrap().contains("runAsUser: 0"));
    }

    #[test]
    fn a_user_namespace_fails_and_is_the_first_reason_for_any_refusal() {
        let inside = Privileges { first_user_namespace: false, filtered: true, ..with(ALL) };
        assert_eq!(user(&inside).level, Level::Fail);
        assert!(inside.why_not_bpf(true).0.contains("user namespace"));
        assert!(inside.why_not_namespace().1.contains("hostUsers"));
    }

    #[test]
    fn the_reasons_for_a_refusal_are_told_apart() {
        let free = with(ALL);
        let filtered = Privileges { filtered: true, ..free.clone() };
        let confined = Privileges { label: Some("cri-containerd.apparmor.d (enforce)".into()), ..filtered.clone() };
        let locked = Privileges { lockdown: Some("confidentiality".into()), ..free.clone() };
        assert!(filtered.why_not_bpf(true).1.contains("seccompProfile"));
        assert!(
            confined.why_not_bpf(true).1.contains("seccompProfile"),
            "before the kernel's code only a filter stands"
        );
        assert!(confined.why_not_bpf(false).1.contains("appArmorProfile"));
        assert!(confined.why_not_namespace().0.contains("cri-containerd"));
        assert!(locked.why_not_bpf(false).1.contains("lockdown"));
        assert!(free.why_not_bpf(false).1.contains("audit log"));
    }

    #[test]
    fn what_confines_is_told_from_what_does_not() {
        for free in [
            "",
            "unconfined\n",
            "unconfined_u:unconfined_r:unconfined_t:s0\0",
            "system_u:system_r:spc_t:s0",
            "x (complain)",
        ] {
            assert_eq!(confining(free), None, "{free}");
        }
        assert_eq!(confining("cri-containerd.apparmor.d (enforce)\n").unwrap(), "cri-containerd.apparmor.d (enforce)");
        assert!(confining("system_u:system_r:container_t:s0:c1,c2").is_some());
        assert_eq!(lockdown("none [integrity] confidentiality\n").unwrap(), "integrity");
        assert_eq!(lockdown("[none] integrity confidentiality\n"), None);
        assert_eq!(lockdown(""), None);
    }
}
