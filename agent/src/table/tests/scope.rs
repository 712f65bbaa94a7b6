//! Which endpoints are used from this node: kube-proxy's rules for hints, Local and termination, case by case. The
//! node is `n1` in zone `a`, unless a case says otherwise.

use super::*;

const READY: &str = "conditions: {ready: true}";
const ENDING: &str = "conditions: {ready: false, serving: true, terminating: true}";
const DOWN: &str = "conditions: {ready: false}";

/// The endpoint of 10.1.0.`last`: its conditions, the node it runs on, the zones and nodes that it is hinted for.
fn at(last: u8, conditions: &str, node: &str, zones: &[&str], nodes: &[&str]) -> String {
    let names = |of: &[&str]| of.iter().map(|it| format!("{{name: {it}}}")).collect::<Vec<_>>().join(", ");
    let (zones, nodes) = (names(zones), names(nodes));
    format!(
        "{{addresses: [10.1.0.{last}], {conditions}, nodeName: {node}, hints: {{forZones: [{zones}], forNodes: [{nodes}]}}}}"
    )
}

fn node(name: &str, zone: Option<&str>) -> String {
    let labels = zone.map(|zone| format!(", labels: {{topology.kubernetes.io/zone: {zone}}}")).unwrap_or_default();
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}{labels}}}\n")
}

fn service(spec: &str) -> String {
    cart("", spec, GRPC).split("---").next().unwrap().to_owned()
}

const LOCAL: &str = "internalTrafficPolicy: Local,";

/// The mode, the last bytes of the endpoints used, and how many are usable anywhere.
fn used(built: &Built) -> (Scope, Vec<u8>, u32) {
    let service = &built.table.services[&service_addr("10.96.0.10:50051")];
    let last = |it: &Endpoint| it.addr.to_string().split(['.', ':']).nth(3).unwrap().parse().unwrap();
    (service.scope, service.endpoints.iter().map(last).collect(), service.usable)
}

fn seen_from(own: Option<&str>, zone: Option<&str>, spec: &str, endpoints: &[String]) -> Built {
    let slices = slices(&[("IPv4", &endpoints.join(", "), "{name: grpc, port: 8080}")]);
    // Another node's zone is none of ours.
    let nodes = format!("{}{}", node("n0", Some("other")), node("n1", zone));
    built_on(own, &format!("{}{slices}{nodes}", service(spec)))
}

fn here(spec: &str, endpoints: &[String]) -> (Scope, Vec<u8>, u32) {
    used(&seen_from(Some("n1"), Some("a"), spec, endpoints))
}

#[test]
fn endpoints_hinted_for_our_zone_are_used_and_no_others() {
    let in_two =
        [at(1, READY, "n1", &["a"], &[]), at(2, READY, "n2", &["b"], &[]), at(3, READY, "n3", &["b", "a"], &[])];
    assert_eq!(here("", &in_two), (Scope::SameZone, vec![1, 3], 3));
}

#[test]
fn hints_for_our_node_come_before_those_for_our_zone() {
    let both = [at(1, READY, "n1", &["a"], &["n1"]), at(2, READY, "n2", &["a"], &["n2"])];
    assert_eq!(here("", &both), (Scope::SameNode, vec![1], 2));
}

#[test]
fn without_a_hint_for_our_node_the_hints_for_our_zone_bind() {
    let none_for_us = [at(1, READY, "n2", &["a"], &["n2"]), at(2, READY, "n3", &["b"], &["n3"])];
    assert_eq!(here("", &none_for_us), (Scope::SameZone, vec![1], 2));
    let one_lacks_it =
        [at(1, READY, "n1", &["a"], &["n1"]), at(2, READY, "n2", &["a"], &[]), at(3, READY, "n3", &["b"], &["n3"])];
    assert_eq!(here("", &one_lacks_it), (Scope::SameZone, vec![1, 2], 3));
}

#[test]
fn all_are_used_where_no_endpoint_is_hinted_for_us() {
    let elsewhere = [at(1, READY, "n2", &["b"], &["n2"]), at(2, READY, "n3", &["c"], &["n3"])];
    assert_eq!(here("", &elsewhere), (Scope::All, vec![1, 2], 2));
}

#[test]
fn all_are_used_where_one_ready_endpoint_lacks_hints() {
    let one_lacks = [at(1, READY, "n1", &["a"], &["n1"]), at(2, READY, "n2", &[], &[])];
    assert_eq!(here("", &one_lacks), (Scope::All, vec![1, 2], 2));
    let unsaid = [
        at(1, READY, "n1", &["a"], &[]),
        "{addresses: [10.1.0.2]}".to_owned(),
        "{addresses: [10.1.0.3], hints: null}".to_owned(),
    ];
    assert_eq!(here("", &unsaid), (Scope::All, vec![1, 2, 3], 3));
}

#[test]
fn all_are_used_where_our_zone_or_node_is_unknown() {
    let hinted = [at(1, READY, "n1", &["a"], &[]), at(2, READY, "n2", &["b"], &[])];
    let all = (Scope::All, vec![1, 2], 2);
    assert_eq!(used(&seen_from(Some("n1"), None, "", &hinted)), all, "a node without the label");
    assert_eq!(used(&seen_from(Some("n1"), Some("''"), "", &hinted)), all, "an empty label");
    assert_eq!(used(&seen_from(Some("n7"), Some("a"), "", &hinted)), all, "a node that is not listed");
    assert_eq!(used(&seen_from(None, Some("a"), "", &hinted)), all, "no name of our own");
    let for_nodes = [at(1, READY, "n1", &[], &["n1"]), at(2, READY, "n2", &[], &["n2"])];
    assert_eq!(used(&seen_from(None, Some("a"), "", &for_nodes)), all);
    assert_eq!(used(&seen_from(Some("n1"), None, "", &for_nodes)), (Scope::SameNode, vec![1], 2), "needs no zone");
}

#[test]
fn only_ready_endpoints_count_for_the_hints() {
    let lacking_but_down =
        [at(1, READY, "n1", &["a"], &[]), at(2, DOWN, "n2", &[], &[]), at(3, ENDING, "n3", &[], &[])];
    assert_eq!(here("", &lacking_but_down), (Scope::SameZone, vec![1], 1));
    let ours_is_ending = [at(1, ENDING, "n1", &["a"], &[]), at(2, READY, "n2", &["b"], &[])];
    assert_eq!(here("", &ours_is_ending), (Scope::All, vec![2], 1));
}

#[test]
fn where_none_is_ready_those_that_end_are_used_whatever_their_hints() {
    let ending = [
        at(1, ENDING, "n1", &["a"], &["n1"]),
        at(2, ENDING, "n2", &["b"], &["n2"]),
        at(3, DOWN, "n1", &["a"], &["n1"]),
    ];
    assert_eq!(here("", &ending), (Scope::All, vec![1, 2], 2));
}

#[test]
fn local_means_endpoints_on_our_own_node_whatever_the_hints() {
    let mixed = [
        at(1, READY, "n1", &["b"], &["n2"]),
        at(2, READY, "n2", &["a"], &["n1"]),
        "{addresses: [10.1.0.3]}".to_owned(),
    ];
    assert_eq!(here(LOCAL, &mixed), (Scope::Local, vec![1], 3));
}

#[test]
fn local_falls_back_to_our_own_that_end_before_ready_ones_elsewhere() {
    let ours_ends = [at(1, ENDING, "n1", &[], &[]), at(2, READY, "n2", &[], &[]), at(3, DOWN, "n1", &[], &[])];
    assert_eq!(here(LOCAL, &ours_ends), (Scope::Local, vec![1], 1));
    let both = [at(1, ENDING, "n1", &[], &[]), at(2, READY, "n1", &[], &[])];
    assert_eq!(here(LOCAL, &both), (Scope::Local, vec![2], 1));
}

#[test]
fn a_local_service_without_endpoints_here_is_left_alone_and_says_so() {
    let elsewhere = [at(1, READY, "n2", &[], &[]), at(2, ENDING, "n2", &[], &[])];
    let built = seen_from(Some("n1"), Some("a"), LOCAL, &elsewhere);
    assert_eq!(used(&built), (Scope::Local, vec![], 1));
    assert_eq!(reasons(&built), [("shop/cart:grpc".to_owned(), Reason::NoLocalEndpoints)]);
}

#[test]
fn a_local_service_is_left_alone_with_its_cure_while_our_node_is_unknown() {
    let built = seen_from(None, None, LOCAL, &[at(1, READY, "n1", &[], &[])]);
    assert!(built.table.services.is_empty());
    assert_eq!(reasons(&built), [("shop/cart:grpc".to_owned(), Reason::OwnNodeUnknown)]);
    assert!(built.left_alone[0].reason.cure().contains("--node-name"));
}

#[test]
fn hints_are_judged_for_each_port_and_family_by_itself() {
    let yaml = "apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIPs: [10.96.0.10, 'fd00::10'], ports: [{name: grpc, port: 50051}, {name: grpc-admin, port: 2}]}
";
    let slices = slices(&[
        (
            "IPv4",
            &[at(1, READY, "n1", &["a"], &[]), at(2, READY, "n2", &["b"], &[])].join(", "),
            "{name: grpc, port: 1}",
        ),
        ("IPv4", "{addresses: [10.1.0.3]}, {addresses: [10.1.0.4]}", "{name: grpc-admin, port: 2}"),
        ("IPv6", "{addresses: ['fd00:1::1'], hints: {forZones: [{name: b}]}}", "{name: grpc, port: 1}"),
    ]);
    let built = built_on(Some("n1"), &format!("{yaml}{slices}{}", node("n1", Some("a"))));
    assert_eq!(endpoints(&built, "10.96.0.10:50051"), ["10.1.0.1:1"]);
    assert_eq!(endpoints(&built, "10.96.0.10:2"), ["10.1.0.3:2", "10.1.0.4:2"]);
    assert_eq!(endpoints(&built, "[fd00::10]:50051"), ["[fd00:1::1]:1"]);
}

#[test]
fn a_node_that_moves_to_another_zone_uses_other_endpoints() {
    let slices = slices(&[(
        "IPv4",
        &[at(1, READY, "n1", &["a"], &[]), at(2, READY, "n2", &["b"], &[])].join(", "),
        "{name: grpc, port: 8080}",
    )]);
    let mut catalog = Catalog::new(Some("n1".into()));
    catalog.apply(updates(&format!("{}{slices}", service(""))));
    assert_eq!(used(&catalog.built()), (Scope::All, vec![1, 2], 2));
    for (zone, endpoint) in [("a", 1), ("b", 2)] {
        assert_eq!(catalog.apply(updates(&node("n1", Some(zone)))).services.len(), 1);
        assert_eq!(used(&catalog.built()), (Scope::SameZone, vec![endpoint], 2));
    }
    assert_eq!(catalog.apply(updates(&node("n2", Some("a")))), Changes::default(), "another node");
    let key = objects(&node("n1", None)).remove(0).key();
    catalog.apply([Update::Delete { key, uid: None }]);
    assert_eq!(used(&catalog.built()), (Scope::All, vec![1, 2], 2));
}
