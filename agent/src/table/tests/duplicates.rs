//! One address more than once, and endpoints that Kubernetes writes in unusual ways.

use super::*;

const PORT: &str = "{name: grpc, port: 1}";

/// Address and identity of each endpoint.
fn identities(built: &Built) -> Vec<(String, String)> {
    let service = &built.table.services[&service_addr("10.96.0.10:50051")];
    service.endpoints.iter().map(|it| (it.addr.to_string(), it.identity.to_string())).collect()
}

fn one(addr: &str, identity: &str) -> Vec<(String, String)> {
    vec![(addr.to_owned(), identity.to_owned())]
}

#[test]
fn an_endpoint_in_two_slices_during_a_rebalancing_counts_once_and_ready_wins() {
    let ready = "{addresses: [10.1.0.1], conditions: {ready: true}, targetRef: {uid: u-1}}";
    let stale = "{addresses: [10.1.0.1], conditions: {ready: false}, targetRef: {uid: u-1}}";
    let ending = "{addresses: [10.1.0.1], conditions: {ready: false, terminating: true}, targetRef: {uid: u-1}}";
    for (first, second) in [(ready, stale), (stale, ready), (ready, ready), (ending, ready), (ready, ending)] {
        let built = cart_with_slices(&[("IPv4", first, PORT), ("IPv4", second, PORT)]);
        assert_eq!(identities(&built), one("10.1.0.1:1", "u-1"), "{first} {second}");
        assert_eq!(built.table.services[&service_addr("10.96.0.10:50051")].usable, 1);
    }
    for rows in [[("IPv4", stale, PORT), ("IPv4", ending, PORT)], [("IPv4", ending, PORT), ("IPv4", stale, PORT)]] {
        assert_eq!(identities(&cart_with_slices(&rows)), one("10.1.0.1:1", "u-1"), "it still serves");
    }
}

#[test]
fn an_address_that_a_new_pod_has_got_is_the_new_pods() {
    let old = "{addresses: [10.1.0.1], conditions: {ready: false, terminating: true}, targetRef: {uid: old}}";
    let new = "{addresses: [10.1.0.1], targetRef: {uid: new}}";
    for (first, second) in [(old, new), (new, old)] {
        let built = cart_with_slices(&[("IPv4", first, PORT), ("IPv4", second, PORT)]);
        assert_eq!(identities(&built), one("10.1.0.1:1", "new"));
    }
    let mut catalog = Catalog::default();
    let slice = |uid: &str| {
        let endpoint = format!("{{addresses: [10.1.0.1], targetRef: {{uid: {uid}}}}}");
        cart("", "", GRPC).replace("{addresses: [10.1.0.1]}", &endpoint)
    };
    catalog.apply(updates(&slice("old")));
    assert_eq!(
        catalog.apply(updates(&slice("new"))).services.len(),
        1,
        "another endpoint, though the address is the same"
    );
    assert_eq!(identities(&catalog.built()), one("10.1.0.1:8080", "new"));
}

#[test]
fn what_must_be_reached_before_it_is_ready_is_ready_in_its_slice() {
    // publishNotReadyAddresses: the control plane writes ready whatever the Pod says, even while it terminates.
    let built = cart_with_slices(&[(
        "IPv4",
        "{addresses: [10.1.0.1], conditions: {ready: true, serving: false, terminating: true}}, {addresses: [10.1.0.2]}",
        PORT,
    )]);
    assert_eq!(endpoints(&built, "10.96.0.10:50051"), ["10.1.0.1:1", "10.1.0.2:1"]);
}

#[test]
fn a_service_without_selector_is_served_from_slices_made_by_hand() {
    // No targetRef, no nodeName, no conditions, a name of its own, addresses outside of the cluster.
    let slice = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: legacy, namespace: shop, labels: {kubernetes.io/service-name: cart, endpointslice.kubernetes.io/managed-by: me}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.7]}, {addresses: [192.0.2.8], conditions: {ready: false}}]
ports: [{name: grpc, port: 443}]
";
    let service = cart("", "", GRPC).split("---").next().unwrap().to_owned();
    assert_eq!(identities(&built(&format!("{service}{slice}"))), one("192.0.2.7:443", "192.0.2.7:443"));
}

#[test]
fn a_pod_is_among_the_endpoints_of_its_own_service() {
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, uid: u-1}\nspec: {nodeName: n1}\n";
    let slice = slices(&[(
        "IPv4",
        "{addresses: [10.1.0.1], nodeName: n1, targetRef: {kind: Pod, uid: u-1}}, {addresses: [10.1.0.2], nodeName: n1}",
        PORT,
    )]);
    let service = cart("", "", GRPC).split("---").next().unwrap().to_owned();
    let built = built_on(Some("n1"), &format!("{service}{slice}{pod}"));
    assert_eq!(endpoints(&built, "10.96.0.10:50051"), ["10.1.0.1:1", "10.1.0.2:1"]);
}

#[test]
fn a_dual_stack_service_may_lack_endpoints_in_one_family() {
    let mut catalog = Catalog::default();
    let both = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}
spec: {clusterIPs: [10.96.0.10, 'fd00::10'], ports: [{name: grpc, port: 50051}]}\n";
    let four = slices(&[("IPv4", "{addresses: [10.1.0.1]}", PORT)]);
    catalog.apply(updates(&format!("{both}{four}")));
    assert_eq!(catalog.built().left_alone.len(), 1);
    let six = slices(&[("IPv6", "{addresses: ['fd00:1::1']}", PORT)]).replace("name: cart-0", "name: cart-6");
    let changes = catalog.apply(updates(&six));
    assert_eq!(changes.services.iter().map(|it| it.addr.to_string()).collect::<Vec<_>>(), ["[fd00::10]:50051"]);
    assert_eq!(catalog.built().left_alone, []);
}
