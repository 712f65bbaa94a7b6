//! What the kernel can do. In: what this process may do; out: lines for the release, for bpf(2), for kinds of maps, for
//! the programs through the verifier, and for an attachment to an empty group of our own. No pod is touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::level_filters::LevelFilter;

use super::item::Item;
use super::privileges::Privileges;
use crate::intercept::{self, Intercept, Refusal, Settings};
use crate::pods;

const CALL: &str = "bpf(2)";
const MAPS: &str = "BPF maps";
const PROGRAMS: &str = "BPF programs";
const ATTACH: &str = "BPF attachment";

/// The oldest kernel that has all of it.
const NEWER: &str = "boot a kernel of Linux 5.15 or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET";

pub(super) fn items(privileges: &Privileges) -> Vec<Item> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "of an unknown release".into());
    let mut items = vec![Item::ok("kernel", format!("Linux {}, {}", release.trim(), std::env::consts::ARCH))];
    if let Some(lacks) = privileges.lacks_bpf() {
        items.extend([CALL, MAPS, PROGRAMS, ATTACH].map(|name| Item::not_tried(name, lacks)));
        return items;
    }
    items.push(system_call(privileges, intercept::system_call()));
    if !items[1].is_ok() {
        items.extend([MAPS, PROGRAMS, ATTACH].map(|name| Item::not_tried(name, CALL)));
        return items;
    }
    items.push(types(Path::new("/sys/kernel/btf/vmlinux").exists()));
    let maps = maps(privileges, intercept::map_kinds());
    let there = maps.is_ok();
    items.push(maps);
    if !there {
        items.extend([PROGRAMS, ATTACH].map(|name| Item::not_tried(name, MAPS)));
        return items;
    }
    match Intercept::load(&Settings { own_cgroup: None, log_level: LevelFilter::OFF }) {
        Ok(intercept) => {
            items.push(Item::ok(PROGRAMS, "the verifier takes all of them, and their maps can be made"));
            items.push(attachment(intercept));
        }
        Err(error) => {
            items.push(refused(privileges, &error));
            items.push(Item::not_tried(ATTACH, PROGRAMS));
        }
    }
    items
}

fn system_call(privileges: &Privileges, answer: io::Result<()>) -> Item {
    match answer {
        Ok(()) => Item::ok(CALL, "answers"),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                let (why, cure) = privileges.why_not_bpf(true);
                Item::fail(CALL, format!("not permitted, though the capabilities are there: {why}"), cure)
            }
            Some(libc::ENOSYS) => {
                Item::fail(CALL, "this kernel has none, or a sandbox (such as gVisor) hides it", NEWER)
            }
            _ => Item::fail(CALL, format!("does not answer: {error}"), NEWER),
        },
    }
}

fn maps(privileges: &Privileges, kinds: impl Iterator<Item = (&'static str, io::Result<bool>)>) -> Item {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for (name, answer) in kinds {
        match answer {
            Ok(true) => there.push(name),
            Ok(false) => missing.push(name),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                let (why, cure) = privileges.why_not_bpf(false);
                return Item::fail(MAPS, format!("a map of kind {name} is not permitted: {why}"), cure);
            }
            Err(error) => return Item::fail(MAPS, format!("a map of kind {name} cannot be made: {error}"), NEWER),
        }
    }
    if missing.is_empty() {
        Item::ok(MAPS, there.join(", "))
    } else {
        Item::fail(MAPS, format!("this kernel does not have: {}", missing.join(", ")), NEWER)
    }
}

/// The programs bring their own types and read no structure of the kernel's.
fn types(there: bool) -> Item {
    let found =
        if there { "described in /sys/kernel/btf/vmlinux" } else { "not described (no /sys/kernel/btf/vmlinux)" };
    Item::ok("kernel types (BTF)", format!("{found}; sluice does not need it"))
}

fn refused(privileges: &Privileges, error: &anyhow::Error) -> Item {
    let cause = error.root_cause();
    match error.downcast_ref::<Refusal>() {
        Some(refusal) if refusal.not_permitted => {
            let (why, cure) = privileges.why_not_bpf(false);
            Item::fail(PROGRAMS, format!("{}, though the capabilities are there: {why}", refusal.what), cure)
        }
        Some(refusal) => Item::fail(PROGRAMS, format!("{}: {cause}", refusal.what), refusal.cure.clone()),
        None => Item::fail(PROGRAMS, format!("{error:#}"), NEWER),
    }
}

/// Attaches everything to an empty group below the process's own, and takes it off again.
fn attachment(mut intercept: Intercept) -> Item {
    let Some(own) = pods::own_group() else {
        return Item::ok(ATTACH, "not tried: this process's own cgroup is not mounted here");
    };
    let group = match EmptyGroup::make(&own) {
        Ok(group) => group,
        Err(error) => {
            let found = format!("not tried: no group for a trial can be made below {} ({error})", own.display());
            return Item::ok(ATTACH, found);
        }
    };
    attached(&own, intercept.attach(&group.0))
}

fn attached(own: &Path, outcome: anyhow::Result<()>) -> Item {
    let Err(error) = outcome else {
        return Item::ok(ATTACH, format!("tried on an empty group below {}", own.display()));
    };
    match error.downcast_ref::<Refusal>() {
        // The same process may load them.
        Some(refusal) if refusal.not_permitted => Item::fail(
            ATTACH,
            format!("{}: not permitted", refusal.what),
            "see other programs: one that allows no other at a group above; otherwise the node's audit log tells which \
             security module forbids it",
        ),
        Some(refusal) => Item::fail(ATTACH, format!("{}: {}", refusal.what, error.root_cause()), refusal.cure.clone()),
        None => Item::fail(ATTACH, format!("{error:#}"), NEWER),
    }
}

/// A cgroup without processes, removed when dropped.
struct EmptyGroup(PathBuf);

impl EmptyGroup {
    fn make(above: &Path) -> io::Result<Self> {
        let path = above.join(format!("sluice-check-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for EmptyGroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("sluice-agent: cannot remove the empty cgroup {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::privileges::tests::with;
    use super::*;
    use crate::check::item::Level;

    const ROOT: u64 = u64::MAX >> 23;

    fn denied() -> io::Error {
        io::Error::from_raw_os_error(libc::EPERM)
    }

    #[test]
    fn a_system_call_that_is_not_there_is_told_from_one_that_is_forbidden() {
        let root = with(ROOT);
        assert_eq!(system_call(&root, Ok(())).level, Level::Ok);
        let missing = system_call(&root, Err(io::Error::from_raw_os_error(libc::ENOSYS)));
        assert!(missing.level == Level::Fail && missing.cure.unwrap().contains("CONFIG_BPF_SYSCALL"));
        let forbidden = system_call(&root, Err(denied()));
        assert!(forbidden.level == Level::Fail && forbidden.cure.unwrap().contains("audit log"));
    }

    #[test]
    fn kinds_of_maps_that_are_missing_are_named() {
        let root = with(ROOT);
        let item = maps(&root, [("hash", Ok(true)), ("ring buffer", Ok(false))].into_iter());
        assert!(item.level == Level::Fail && item.found.ends_with("ring buffer"), "{item:?}");
        assert_eq!(maps(&root, [("hash", Ok(true)), ("array", Ok(true))].into_iter()).found, "hash, array");
        assert_eq!(maps(&root, [("hash", Err(denied()))].into_iter()).level, Level::Fail);
    }

    #[test]
    fn a_kernel_without_its_types_will_do() {
        assert_eq!(types(false).level, Level::Ok);
    }

    #[test]
    fn what_the_kernel_refuses_comes_with_its_own_cure() {
        let refusal = |not_permitted| {
            let refusal = Refusal { what: "no program".into(), cure: "a newer kernel".into(), not_permitted };
            anyhow::Error::new(io::Error::from_raw_os_error(libc::EINVAL)).context(refusal)
        };
        let item = refused(&with(ROOT), &refusal(false));
        assert_eq!(item.cure.unwrap(), "a newer kernel");
        assert!(refused(&with(ROOT), &refusal(true)).cure.unwrap().contains("audit log"));
        let own = Path::new("/sys/fs/cgroup/own");
        assert_eq!(attached(own, Err(refusal(false))).cure.unwrap(), "a newer kernel");
        assert!(attached(own, Err(refusal(true))).cure.unwrap().contains("see other programs"));
        assert!(attached(own, Ok(())).is_ok());
    }
}
