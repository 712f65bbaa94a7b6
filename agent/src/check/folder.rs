//! `--source DIR`. In: the folder; out: a line for what it holds, and one for each problem in it.

use std::collections::BTreeMap;
use std::path::Path;

use super::item::Item;
use crate::table::object::Kind;
use crate::table::{Problem, Update};
use crate::watch::Source;

const NAME: &str = "source";

pub(super) async fn items(folder: &Path) -> Vec<Item> {
    let mut source = match Source::dir(folder) {
        Ok(source) => source,
        Err(error) => return vec![Item::fail(NAME, format!("{error:#}"), "give --source a folder of Kubernetes YAML")],
    };
    let updates = source.next().await;
    judge(folder, &updates, source.problems())
}

fn judge(folder: &Path, updates: &[Update], problems: &[Problem]) -> Vec<Item> {
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    for update in updates {
        match update {
            Update::Apply(object) => *counts.entry(object.key().kind).or_default() += 1,
            Update::Reset { kind, objects, .. } => *counts.entry(*kind).or_default() += objects.len(),
            Update::Delete { .. } => {}
        }
    }
    let counted: Vec<_> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    let shown = folder.display();
    let mut items = vec![if counted.is_empty() {
        Item::warn(
            NAME,
            format!("{shown} holds no object that sluice reads"),
            "put Services and EndpointSlices there, as `kubectl get services,endpointslices -o yaml` prints them",
        )
    } else if counts.contains_key(&Kind::Service) {
        Item::ok(NAME, format!("{shown}: {}", counted.join(", ")))
    } else {
        Item::warn(NAME, format!("{shown}: {}, and no Service", counted.join(", ")), "put Services there")
    }];
    items.extend(problems.iter().map(|problem| {
        let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
        Item::warn(NAME, format!("{}: {field}{}", problem.place, problem.message), problem.cure.clone())
    }));
    items
}
