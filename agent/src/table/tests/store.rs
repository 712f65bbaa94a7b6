//! What updates make of the objects known before.

use super::super::store::{Changed, Store};
use super::*;

fn pod(uid: &str) -> Object {
    objects(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, uid: {uid}}}")).remove(0)
}

#[test]
fn a_reset_replaces_all_objects_of_its_kind_and_no_other() {
    let mut store = Store::default();
    for update in updates(&cart("", "", GRPC)) {
        assert_eq!(store.apply(update).len(), 1);
    }
    let services = objects(&cart("", "", GRPC).replace("name: cart", "name: basket"));
    let service = services.into_iter().find(|it| it.kind() == Kind::Service).unwrap();
    let reset = Update::Reset { kind: Kind::Service, objects: vec![service.clone()], unreadable: Vec::new() };
    let changed = store.apply(reset.clone());
    let names = |of: fn(&Changed) -> &Option<Object>| {
        changed.iter().filter_map(|it| of(it).as_ref()).map(|it| it.metadata().name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((names(|it| &it.old), names(|it| &it.new)), (vec!["cart".to_owned()], vec!["basket".to_owned()]));
    assert_eq!(store.apply(reset), [], "a second one tells no difference");
    assert_eq!(store.services.keys().map(|(_, name)| &**name).collect::<Vec<_>>(), ["basket"]);
    assert_eq!(store.slices.len(), 1);
}

#[test]
fn a_late_deletion_of_an_objects_predecessor_is_ignored() {
    let mut store = Store::default();
    assert_eq!(store.apply(Update::Apply(pod("u-1"))).len(), 1);
    assert_eq!(store.apply(Update::Apply(pod("u-2"))).len(), 1);
    let key = pod("u-2").key();
    assert_eq!(store.apply(Update::Delete { key: key.clone(), uid: Some("u-1".into()) }), []);
    assert_eq!(store.pods.len(), 1);
    let gone = Changed { old: Some(pod("u-2")), new: None };
    assert_eq!(store.apply(Update::Delete { key, uid: Some("u-2".into()) }), [gone]);
    assert!(store.pods.is_empty());
}
