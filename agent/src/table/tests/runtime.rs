//! What changes while the agent runs, and that nothing else is told.

use super::*;

/// `Service=endpoints` of each change, with `-` for one that is gone.
fn told(changes: &Changes) -> Vec<String> {
    let change = |it: &Change| match &it.service {
        Some(service) => format!("{}={}", service.name, service.endpoints.len()),
        None => format!("-{}", it.addr),
    };
    changes.services.iter().map(change).collect()
}

fn namespace(word: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{word}}}}}\n")
}

fn pod(name: &str, node: &str, spec: &str, word: &str, phase: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}, annotations: {{{word}}}}}
spec: {{nodeName: {node}{spec}}}\nstatus: {{phase: {phase}}}\n"
    )
}

const NO: &str = "sluice.dev/redirect: 'false'";
const YES: &str = "sluice.dev/redirect: 'true'";

#[test]
fn the_services_and_its_namespaces_words_are_heeded_at_run_time() {
    let mut catalog = Catalog::default();
    let mut after = |yaml: &str| told(&catalog.apply(updates(yaml)));
    let none: [&str; 0] = [];
    assert_eq!(after(&cart("", "", GRPC)), ["shop/cart:grpc=1"]);
    assert_eq!(after(&namespace(NO)), ["-10.96.0.10:50051"]);
    assert_eq!(after(&namespace(NO)), none);
    assert_eq!(after(&cart(YES, "", GRPC)), ["shop/cart:grpc=1"]);
    assert_eq!(after(&namespace("")), none, "the Service has its own word");
    assert_eq!(after(&cart(NO, "", GRPC)), ["-10.96.0.10:50051"]);
    assert_eq!(after(&namespace(YES)), none);
    assert_eq!(
        after(&cart("", "", "{name: api, port: 50051}")),
        ["shop/cart:api=1"],
        "the Namespace's word selects all"
    );
    let key = objects(&namespace("")).remove(0).key();
    assert_eq!(told(&catalog.apply([Update::Delete { key, uid: None }])), ["-10.96.0.10:50051"]);
}

#[test]
fn a_pods_word_is_heeded_at_run_time() {
    let mut catalog = Catalog::default();
    let mut after = |yaml: &str| {
        let changes = catalog.apply(updates(yaml));
        assert_eq!(changes.services, []);
        (changes.pods, catalog.pods().opted_out.len())
    };
    assert_eq!(after(&pod("a", "n1", "", NO, "Running")), (true, 1));
    assert_eq!(after(&pod("a", "n1", "", NO, "Running")), (false, 1));
    assert_eq!(after(&pod("a", "n1", "", "", "Running")), (true, 0));
    assert_eq!(after(&pod("a", "n1", "", NO, "Pending")), (true, 1));
    assert_eq!(after(&pod("a", "n1", "", NO, "Failed")), (true, 0), "it will not connect any more");
}

#[test]
fn pods_of_other_nodes_are_none_of_ours() {
    let pods =
        [pod("a", "n1", "", NO, "Running"), pod("b", "n2", "", NO, "Running"), pod("c", "null", "", NO, "Running")];
    let opted_out = |own: Option<&str>| {
        let mut catalog = Catalog::new(own.map(Arc::from));
        catalog.apply(updates(&pods.concat()));
        let mut uids: Vec<_> = catalog.pods().opted_out.iter().map(ToString::to_string).collect();
        uids.sort_unstable();
        (uids, catalog.pods().name("u-b").is_some())
    };
    assert_eq!(opted_out(None), (vec!["u-a".to_owned(), "u-b".to_owned(), "u-c".to_owned()], true));
    assert_eq!(
        opted_out(Some("n1")),
        (vec!["u-a".to_owned(), "u-c".to_owned()], false),
        "c may be in a manifest by hand"
    );
    let mut catalog = Catalog::new(Some("n1".into()));
    catalog.apply([Update::Reset { kind: Kind::Pod, objects: objects(&pods.concat()), unreadable: Vec::new() }]);
    assert_eq!(catalog.pods().opted_out.len(), 2);
}

#[test]
fn pods_on_the_hosts_network_are_known_as_such() {
    let mut catalog = Catalog::new(Some("n1".into()));
    let pods = [
        pod("a", "n1", ", hostNetwork: true", "", "Running"),
        pod("b", "n1", ", hostNetwork: false", "", "Running"),
        pod("c", "n1", "", "", "Running"),
        pod("d", "n1", ", hostNetwork: true", "", "Succeeded"),
    ];
    assert!(catalog.apply(updates(&pods.concat())).pods);
    assert_eq!(catalog.pods().host_network, ["u-a".into()].into());
    assert_eq!(catalog.pods().name("u-a").map(|it| &**it), Some("shop/a"));
}

#[test]
fn a_relist_tells_its_differences_only_and_once() {
    let many = |n: std::ops::Range<u8>| -> Vec<Object> {
        n.flat_map(|i| {
            let yaml =
                cart("", "", GRPC).replace("cart", &format!("s{i}")).replace("10.96.0.10", &format!("10.96.0.{i}"));
            objects(&yaml)
        })
        .collect()
    };
    let reset = |all: &[Object]| {
        [Kind::Service, Kind::EndpointSlice].map(|kind| {
            let objects = all.iter().filter(|it| it.kind() == kind).cloned().collect();
            Update::Reset { kind, objects, unreadable: Vec::new() }
        })
    };
    let mut catalog = Catalog::default();
    assert_eq!(catalog.apply(reset(&many(1..9))).services.len(), 8);
    assert_eq!(catalog.apply(reset(&many(1..9))), Changes::default());
    let changes = catalog.apply(reset(&many(2..10)));
    assert_eq!(told(&changes), ["-10.96.0.1:50051", "shop/s9:grpc=1"]);
}

#[test]
fn zero_endpoints_are_told_at_once() {
    let mut catalog = Catalog::default();
    catalog.apply(updates(&cart("", "", GRPC)));
    let empty = cart("", "", GRPC).replace("{addresses: [10.1.0.1]}", "");
    assert_eq!(told(&catalog.apply(updates(&empty))), ["shop/cart:grpc=0"]);
    catalog.apply(updates(&cart("", "", GRPC)));
    let key = objects(&cart("", "", GRPC)).remove(1).key();
    assert_eq!(told(&catalog.apply([Update::Delete { key, uid: None }])), ["shop/cart:grpc=0"]);
    assert_eq!(catalog.built().left_alone[0].reason, Reason::NoEndpoints);
}

#[test]
fn a_slice_that_is_given_to_another_service_changes_both() {
    let second = cart("", "", GRPC).replace("cart", "till").replace("10.96.0.10", "10.96.0.11");
    let mut catalog = Catalog::default();
    catalog.apply(updates(&format!("{}---\n{second}", cart("", "", GRPC))));
    let moved = objects(&cart("", "", GRPC).replace("service-name: cart", "service-name: till")).remove(1);
    let moved = catalog.apply([Update::Apply(moved)]);
    // The endpoint was till's already: its address counts once, and till is as it was.
    assert_eq!(told(&moved), ["shop/cart:grpc=0"]);
    let key = objects(&second).remove(1).key();
    assert_eq!(catalog.apply([Update::Delete { key, uid: None }]), Changes::default(), "the moved one still lists it");
}

#[test]
fn an_address_goes_to_the_next_service_by_name_when_the_first_goes() {
    let named = |name: &str| cart("", "", GRPC).replace("cart", name);
    let mut catalog = Catalog::default();
    catalog.apply(updates(&named("b")));
    let id = catalog.table().services[&service_addr("10.96.0.10:50051")].id;
    assert_eq!(catalog.apply(updates(&named("c"))), Changes::default());
    assert_eq!(problems(&catalog.built()).len(), 1);
    assert_eq!(told(&catalog.apply(updates(&named("a")))), ["shop/a:grpc=1"], "an earlier name takes over");
    assert_eq!(reasons(&catalog.built()).len(), 2);
    assert!(problems(&catalog.built()).iter().all(|it| it.contains("shop/a:grpc is served")));
    for (gone, next) in [("a", "shop/b:grpc=1"), ("b", "shop/c:grpc=1")] {
        let key = objects(&named(gone)).remove(0).key();
        assert_eq!(told(&catalog.apply([Update::Delete { key, uid: None }])), [next]);
    }
    assert_eq!(catalog.table().services[&service_addr("10.96.0.10:50051")].id, id, "the address is the same");
    assert_eq!((reasons(&catalog.built()), problems(&catalog.built())), (vec![], vec![]));
}

#[test]
fn what_makes_no_difference_is_not_told() {
    let mut catalog = Catalog::default();
    catalog.apply(updates(&cart("", "", GRPC)));
    let before = catalog.table().services[&service_addr("10.96.0.10:50051")].endpoints.clone();
    let not_ready = slices(&[("IPv4", "{addresses: [10.1.0.9], conditions: {ready: false}}", "{name: grpc, port: 1}")]);
    assert_eq!(catalog.apply(updates(&not_ready)), Changes::default());
    let other_namespace = namespace(NO).replace("name: shop", "name: other");
    assert_eq!(catalog.apply(updates(&other_namespace)), Changes::default());
    assert!(Arc::ptr_eq(&before, &catalog.table().services[&service_addr("10.96.0.10:50051")].endpoints));
}

#[test]
fn problems_come_and_go_with_their_objects() {
    let mut catalog = Catalog::default();
    let bad = cart("sluice.dev/redirect: 'yes!'", "", GRPC).replace("addressType: IPv4", "addressType: FQDN");
    let slice = objects(&bad.replace("[10.1.0.1]", "[cart.example.org]"));
    catalog.apply(slice.into_iter().map(Update::Apply));
    catalog.apply(updates(&namespace("sluice.dev/redirect: ','")));
    catalog.apply(updates(&pod("a", "n1", "", "sluice.dev/redirekt: 'x'", "Running")));
    let places: Vec<_> = catalog.built().problems.iter().map(|it| it.place.to_string()).collect();
    assert_eq!(places, ["Service shop/cart", "EndpointSlice shop/cart-1", "Pod shop/a", "Namespace shop"]);
    catalog.apply(updates(&cart("", "", GRPC)));
    catalog.apply(updates(&namespace("")));
    catalog.apply(updates(&pod("a", "n1", "", "", "Running")));
    assert_eq!(problems(&catalog.built()), Vec::<String>::new());
}
