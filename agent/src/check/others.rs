//! Other products at sluice's hooks. In: the kubepods group and those above it; out: a line for each product and group,
//! with what it means for both sides. A child's programs run before its parent's, those of one group as attached.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::item::Item;
use super::privileges::Privileges;
use crate::intercept::{self, Attached, Terms};
use crate::pods;

const NAME: &str = "other programs";

/// Whose programs they are, by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Product {
    Sluice,
    Cilium,
    Calico,
    Kmesh,
    Merbridge,
    Unknown,
}

impl Product {
    fn of(program: &str) -> Self {
        let begins = |prefix: &str| program.starts_with(prefix);
        match () {
            () if begins("sluice_") => Product::Sluice,
            () if begins("cil_sock") || begins("sock4_") || begins("sock6_") => Product::Cilium,
            () if begins("calico_") || begins("cali_") => Product::Calico,
            () if begins("cgroup_connect") || begins("kmesh") => Product::Kmesh,
            () if begins("mb_") => Product::Merbridge,
            () => Product::Unknown,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Product::Sluice => "a sluice-agent",
            Product::Cilium => "Cilium's socket load balancer",
            Product::Calico => "Calico's connect-time load balancer",
            Product::Kmesh => "Kmesh",
            Product::Merbridge => "Merbridge",
            Product::Unknown => "another product",
        }
    }

    /// Whether it takes connections to where a mesh treats them, rather than to an endpoint.
    fn is_mesh(self) -> bool {
        matches!(self, Product::Kmesh | Product::Merbridge)
    }
}

/// What is attached to one group.
struct Level {
    group: PathBuf,
    /// The group that sluice attaches to, rather than one above.
    ours: bool,
    attached: Vec<Attached>,
}

pub(super) fn items(privileges: &Privileges, kubepods: &Path) -> Vec<Item> {
    if let Some(lacks) = privileges.lacks_net_admin() {
        return vec![Item::not_tried(NAME, lacks)];
    }
    let mut levels = Vec::new();
    for group in kubepods.ancestors().take_while(|group| pods::is_cgroup2(group).unwrap_or(false)) {
        match intercept::attached(group) {
            Ok(attached) => levels.push(Level { group: group.to_owned(), ours: group == kubepods, attached }),
            Err(error) => {
                let (_, cure) = privileges.why_not_bpf(false);
                return vec![Item::warn(NAME, format!("{error:#}"), cure)];
            }
        }
    }
    let items = judge(&levels);
    if items.is_empty() {
        let top = levels.last().map_or(kubepods, |level| &level.group);
        return vec![Item::ok(
            NAME,
            format!("none at sluice's hooks, from {} up to {}", kubepods.display(), top.display()),
        )];
    }
    items
}

fn judge(levels: &[Level]) -> Vec<Item> {
    levels.iter().flat_map(|level| terms(level).into_iter().chain(products(level))).collect()
}

/// What keeps sluice from attaching, or others from running.
fn terms(level: &Level) -> Option<Item> {
    let of = |terms| level.attached.iter().find(move |attached| attached.terms == terms);
    let group = level.group.display();
    // A group takes programs on one kind of terms only.
    let refusing = of(Terms::Exclusive).or_else(|| of(Terms::Overridable).filter(|_| level.ours));
    if let Some(Attached { hook, programs, .. }) = refusing {
        return Some(Item::fail(
            NAME,
            format!("{} at {hook} of {group} does not allow another: sluice cannot be attached", programs.join(", ")),
            "have its product attach it with BPF_F_ALLOW_MULTI (a bpf_link, or `bpftool cgroup attach … multi`); newer \
             versions of Calico and Cilium do",
        ));
    }
    of(Terms::Overridable).map(|Attached { hook, programs, .. }| {
        Item::warn(
            NAME,
            format!(
                "{} at {hook} of {group} gives way to programs below: it would not run for pods",
                programs.join(", ")
            ),
            "have its product attach it with BPF_F_ALLOW_MULTI",
        )
    })
}

fn products(level: &Level) -> Vec<Item> {
    let mut found: BTreeMap<Product, (Vec<&str>, bool)> = BTreeMap::new();
    for Attached { hook, programs, .. } in &level.attached {
        for program in programs {
            let (names, redirects) = found.entry(Product::of(program)).or_default();
            if !names.contains(&program.as_str()) {
                names.push(program);
            }
            *redirects |= hook.redirects();
        }
    }
    let item = |(product, (programs, redirects)): (Product, (Vec<&str>, bool))| {
        let who = format!("{} at {} ({})", product.name(), level.group.display(), programs.join(", "));
        judge_product(product, who, level.ours, redirects)
    };
    found.into_iter().map(item).collect()
}

/// `redirects`: it has a program at a connect hook.
fn judge_product(product: Product, who: String, ours: bool, redirects: bool) -> Item {
    if product == Product::Sluice {
        return Item::ok(
            NAME,
            format!("{who}: serves this node now; of two, as in an upgrade, the later one stands by"),
        );
    }
    if !redirects {
        return Item::ok(NAME, format!("{who}: has no part in where connections go"));
    }
    let opt_out = "annotate the Namespaces or Pods that it shall serve with sluice.dev/redirect: \"false\"";
    match (ours, product.is_mesh()) {
        (true, _) => Item::warn(
            NAME,
            format!(
                "{who}: runs before sluice, which finds the address that it wrote and leaves such connections alone"
            ),
            "have that product attach to the root cgroup, or switch off its load balancing at connect()",
        ),
        (false, true) => Item::warn(
            NAME,
            format!("{who}: runs after sluice and takes no part in the connections that sluice redirects"),
            opt_out,
        ),
        (false, false) => Item::ok(
            NAME,
            format!(
                "{who}: runs after sluice, finds a loopback address there and lets it be; serves all that sluice leaves alone"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::item::Level as Verdict;
    use crate::intercept::Hook;

    fn level(ours: bool, hook: Hook, terms: Terms, program: &str) -> Level {
        let group = if ours { "/sys/fs/cgroup/kubepods.slice" } else { "/sys/fs/cgroup" };
        Level { group: group.into(), ours, attached: vec![Attached { hook, terms, programs: vec![program.into()] }] }
    }

    fn one(level: Level) -> Item {
        let items = judge(&[level]);
        assert_eq!(items.len(), 1, "{items:?}");
        items.into_iter().next().unwrap()
    }

    /// The kernel keeps 15 bytes of a name.
    #[test]
    fn socket_load_balancers_at_the_root_are_fine_and_explained() {
        for (program, name) in
            [("cil_sock4_conne", "Cilium"), ("calico_connect_", "Calico"), ("who_knows", "another product")]
        {
            let item = one(level(false, Hook::Connect4, Terms::Shared, program));
            assert_eq!(item.level, Verdict::Ok);
            assert!(item.found.starts_with(name) && item.found.contains("after sluice"), "{}", item.found);
        }
    }

    #[test]
    fn what_rewrites_before_sluice_is_a_warning() {
        for program in ["cil_sock4_conne", "who_knows"] {
            let item = one(level(true, Hook::Connect6, Terms::Shared, program));
            assert_eq!(item.level, Verdict::Warn);
            assert!(item.cure.unwrap().contains("root cgroup"));
        }
    }

    #[test]
    fn a_mesh_at_the_root_loses_connections_to_sluice_and_the_cure_is_to_opt_out() {
        for program in ["cgroup_connect4", "mb_sock4_connec"] {
            let item = one(level(false, Hook::Connect4, Terms::Shared, program));
            assert_eq!(item.level, Verdict::Warn);
            assert!(item.cure.unwrap().contains("sluice.dev/redirect: \"false\""));
        }
    }

    #[test]
    fn another_sluice_is_an_upgrade() {
        assert_eq!(one(level(true, Hook::Connect4, Terms::Shared, "sluice_connect4")).level, Verdict::Ok);
    }

    #[test]
    fn a_program_that_only_watches_is_listed() {
        let item = one(level(true, Hook::SockOps, Terms::Shared, "tcp_stats"));
        assert!(item.level == Verdict::Ok && item.found.contains("tcp_stats"));
    }

    #[test]
    fn a_program_that_allows_no_other_fails() {
        for (ours, terms) in [(true, Terms::Exclusive), (false, Terms::Exclusive), (true, Terms::Overridable)] {
            let items = judge(&[level(ours, Hook::Connect4, terms, "calico_connect_")]);
            assert_eq!(items[0].level, Verdict::Fail, "{ours} {terms:?}");
        }
        let above = judge(&[level(false, Hook::Connect4, Terms::Overridable, "old")]);
        assert_eq!(above[0].level, Verdict::Warn, "it would silently not run for pods any more");
    }
}
