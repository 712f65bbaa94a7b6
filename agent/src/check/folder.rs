//! `--source DIR`. In: the folder; out: a line for what it holds, and one for each problem in it.

use std::collections::BTreeMap;
use std::path::Path;

use super::item::Item;
use crate::table::object::Kind;
use crate::table::{Catalog, Problem, Update};
use crate::watch::Source;

const NAME: &str = "source";

pub(super) async fn items(folder: &Path) -> Vec<Item> {
    let mut source = match Source::dir(folder) {
        Ok(source) => source,
        Err(error) => return vec![Item::fail(NAME, format!("{error:#}"), "give --source a folder of Kubernetes YAML")],
    };
    let updates = source.next().await;
    let mut items = judge(folder, &updates, source.problems());
    // What can be read may still say what is not understood.
    let mut catalog = Catalog::new(None);
    catalog.apply(updates);
    items.extend(catalog.problems().map(warning));
    items
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
    items.extend(problems.iter().map(warning));
    items
}

fn warning(problem: &Problem) -> Item {
    let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
    Item::warn(NAME, format!("{}: {field}{}", problem.place, problem.message), problem.cure.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::item::Level;

    #[tokio::test]
    async fn a_word_that_is_not_understood_is_a_warning_like_a_file_that_cannot_be_read() {
        let folder = std::env::temp_dir().join(format!("sluice-check-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let head = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n";
        let rest = "spec:\n  clusterIP: 10.96.0.10\n  ports: [{name: grpc, port: 50051}]\n";
        let text = format!("{head}    sluice.dev/load-balancer: best\n{rest}");
        std::fs::write(folder.join("a.yaml"), text).unwrap();
        std::fs::write(folder.join("b.yaml"), "apiVersion: v1\nkind: Sevice\n").unwrap();
        let items = items(&folder).await;
        std::fs::remove_dir_all(&folder).unwrap();
        let warned: Vec<_> = items.iter().filter(|item| item.level == Level::Warn).map(|item| &*item.found).collect();
        assert_eq!(warned.len(), 2, "{warned:?}");
        assert!(warned[0].contains("b.yaml") && warned[0].contains("no kind Sevice"), "{warned:?}");
        assert!(warned[1].contains("default/a") && warned[1].contains("\"best\" is unreadable"), "{warned:?}");
    }
}
