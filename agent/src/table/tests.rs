//! The table's promises: YAML in, table, reasons and problems out.

use std::net::SocketAddr;
use std::sync::Arc;

use super::object::{Kind, Object};
use super::*;
use crate::watch::parse::parse;

fn objects(yaml: &str) -> Vec<Object> {
    let parsed = parse(&"test.yaml".into(), yaml).unwrap_or_else(|problem| panic!("{problem}"));
    parsed.into_iter().map(|it| it.object).collect()
}

fn updates(yaml: &str) -> impl Iterator<Item = Update> {
    objects(yaml).into_iter().map(Update::Apply)
}

fn built(yaml: &str) -> Built {
    built_on(None, yaml)
}

/// As seen from a node.
fn built_on(node: Option<&str>, yaml: &str) -> Built {
    let mut catalog = Catalog::new(node.map(Arc::from));
    catalog.apply(updates(yaml));
    catalog.built()
}

mod duplicates;
mod random;
mod runtime;
mod scope;
mod store;
mod words;

fn service_addr(text: &str) -> ServiceAddr {
    ServiceAddr::new(text.parse::<SocketAddr>().unwrap())
}

/// The endpoints behind an address, as text; panics where the address is not in the table.
fn endpoints(built: &Built, addr: &str) -> Vec<String> {
    let service = &built.table.services[&service_addr(addr)];
    service.endpoints.iter().map(|it| it.addr.to_string()).collect()
}

/// Each port that is left alone, with the reason.
fn reasons(built: &Built) -> Vec<(String, Reason)> {
    built.left_alone.iter().map(|it| (it.name.to_string(), it.reason.clone())).collect()
}

fn problems(built: &Built) -> Vec<String> {
    built.problems.iter().map(ToString::to_string).collect()
}

/// Service shop/cart at 10.96.0.10 with what is given, and one ready endpoint for each port name.
fn cart(annotations: &str, spec: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: cart, namespace: shop, annotations: {{{annotations}}}}}
spec: {{clusterIP: 10.96.0.10, {spec} ports: [{ports}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: cart-1, namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}
addressType: IPv4
endpoints: [{{addresses: [10.1.0.1]}}]
ports: [{{name: grpc, port: 8080}}, {{name: grpc-web, port: 8081}}, {{name: h2c, port: 8082}}, {{name: api, port: 8083}}, {{name: '', port: 8084}}]
"
    )
}

const GRPC: &str = "{name: grpc, port: 50051}";

/// Slices of shop/cart, each with its type, endpoints and ports.
fn slices(rows: &[(&str, &str, &str)]) -> String {
    let slice = |(index, (family, endpoints, ports)): (usize, &(&str, &str, &str))| {
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: cart-{index}, namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}
addressType: {family}
endpoints: [{endpoints}]
ports: [{ports}]
"
        )
    };
    rows.iter().enumerate().map(slice).collect()
}

fn cart_with_slices(rows: &[(&str, &str, &str)]) -> Built {
    let service = "apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIPs: [10.96.0.10, 'fd00::10'], ports: [{name: grpc, port: 50051}]}
";
    built(&format!("{service}{}", slices(rows)))
}

#[test]
fn a_port_is_selected_by_app_protocol_name_or_annotation() {
    let by_field = [
        "{appProtocol: kubernetes.io/h2c, port: 1}",
        "{appProtocol: grpc, port: 1}",
        "{name: grpc, port: 1}",
        "{name: grpc-web, port: 1}",
        "{name: h2c, port: 1}",
    ];
    for port in by_field {
        let built = built(&cart("", "", port));
        assert_eq!(built.table.services.len(), 1, "{port}");
        assert_eq!(built.left_alone, [], "{port}");
    }
    for port in ["{name: api, port: 1}", "{port: 1}", "{name: grpcweb, port: 1}", "{appProtocol: http, port: 1}"] {
        let built = built(&cart("", "", port));
        assert!(built.table.services.is_empty(), "{port}");
        assert_eq!(built.left_alone[0].reason, Reason::NotSelected, "{port}");
        assert_eq!(built.left_alone[0].addr, Some(service_addr("10.96.0.10:1")));
    }
}

#[test]
fn true_selects_all_tcp_ports_and_a_list_the_named_ones() {
    let ports =
        "{name: api, port: 1}, {name: web, port: 2}, {name: dns, port: 3, protocol: UDP}, {name: grpc, port: 4}";
    let all = built(&cart("sluice.dev/redirect: 'true'", "", ports));
    let left = [
        ("shop/cart:web".to_owned(), Reason::NoEndpoints),
        ("shop/cart:dns".to_owned(), Reason::NotTcp(object::Protocol::Udp)),
    ];
    assert_eq!(reasons(&all), left);
    assert_eq!(all.table.services.len(), 3);

    let named = built(&cart("sluice.dev/redirect: 'api, web'", "", ports));
    let mut addrs: Vec<_> = named.table.services.keys().map(|it| it.port()).collect();
    addrs.sort_unstable();
    assert_eq!(addrs, [1, 2, 4], "a list adds to what the ports say themselves");
    assert_eq!(problems(&named), Vec::<String>::new());
}

#[test]
fn what_cannot_be_redirected_is_left_alone_with_its_reason() {
    let cases = [
        ("clusterIP: None,", GRPC, Reason::Headless),
        ("clusterIPs: [None],", GRPC, Reason::Headless),
        ("type: ExternalName,", GRPC, Reason::ExternalName),
        ("clusterIP: '',", GRPC, Reason::NoClusterIp),
        ("sessionAffinity: ClientIP,", GRPC, Reason::SessionAffinity),
        ("internalTrafficPolicy: Local,", GRPC, Reason::OwnNodeUnknown),
        ("", "{name: grpc, port: 1, protocol: UDP}", Reason::NotTcp(object::Protocol::Udp)),
        ("", "{name: grpc, port: 1, protocol: SCTP}", Reason::NotTcp(object::Protocol::Sctp)),
    ];
    for (spec, port, reason) in cases {
        let yaml = cart("", spec, port);
        // YAML allows a key once only.
        let yaml = if spec.starts_with("clusterIP:") { yaml.replace("clusterIP: 10.96.0.10, ", "") } else { yaml };
        let built = built(&yaml);
        assert!(built.table.services.is_empty(), "{spec} {port}");
        assert_eq!(reasons(&built), [("shop/cart:grpc".to_owned(), reason)], "{spec} {port}");
        assert!(!built.left_alone[0].reason.cure().is_empty());
    }
}

#[test]
fn a_port_that_is_not_tcp_is_told_so_whatever_else_speaks_against_it() {
    let redirect = |word: &str| format!("sluice.dev/redirect: '{word}'");
    for (annotation, spec) in [
        (String::new(), ""),
        (redirect("false"), ""),
        (redirect("yes!"), ""),
        (String::new(), "sessionAffinity: ClientIP,"),
    ] {
        let built = built(&cart(&annotation, spec, "{name: dns, port: 1, protocol: UDP}"));
        let udp = Reason::NotTcp(object::Protocol::Udp);
        assert_eq!(reasons(&built), [("shop/cart:dns".to_owned(), udp)], "{annotation} {spec}");
    }
}

#[test]
fn an_unreadable_annotation_is_a_problem_and_the_default_applies() {
    for value in ["yes!", "True", "", "a,,b", "-"] {
        let grpc = built(&cart(&format!("sluice.dev/redirect: '{value}'"), "", GRPC));
        assert_eq!(grpc.table.services.len(), 1, "{value}: the port's name still selects it");
        let said = problems(&grpc);
        let start = format!("Service shop/cart: metadata.annotations[sluice.dev/redirect]: \"{value}\" is unreadable");
        assert!(said.len() == 1 && said[0].starts_with(&start) && said[0].contains("\"true\", \"false\""), "{said:?}");

        let api = built(&cart(&format!("sluice.dev/redirect: '{value}'"), "", "{name: api, port: 1}"));
        assert_eq!(reasons(&api), [("shop/cart:api".to_owned(), Reason::UnreadableAnnotation)]);
    }
}

#[test]
fn a_problem_is_one_line_whatever_an_annotation_holds() {
    let said = problems(&built(&cart("sluice.dev/redirect: \"a\\nb\\u001b[2J\"", "", GRPC)));
    assert!(said[0].contains(r#""a\nb\u{1b}[2J" is unreadable"#), "{said:?}");
}

#[test]
fn a_list_with_an_unknown_port_name_is_a_problem_that_names_the_ports() {
    let built = built(&cart("sluice.dev/redirect: 'api,yes'", "", "{name: api, port: 1}"));
    assert_eq!(built.table.services.len(), 1);
    let said = problems(&built);
    assert!(
        said.len() == 1 && said[0].contains("no port named \"yes\"") && said[0].contains("its ports are api"),
        "{said:?}"
    );
}

#[test]
fn a_misspelt_annotation_is_a_problem() {
    let said = problems(&built(&cart("sluice.dev/redirekt: 'true', other.dev/x: 'y'", "", GRPC)));
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("metadata.annotations[sluice.dev/redirekt]: sluice has no such annotation"), "{said:?}");
}

#[test]
fn the_load_balancer_annotation_chooses_the_policy() {
    let policy = |value: &str| {
        let built = built(&cart(&format!("sluice.dev/load-balancer: '{value}'"), "", GRPC));
        (built.table.services[&service_addr("10.96.0.10:50051")].balancing.policy, built.problems.len())
    };
    assert_eq!(policy("round-robin"), (Policy::RoundRobin, 0));
    assert_eq!(policy("least-request"), (Policy::LeastRequest, 0));
    assert_eq!(policy("ewma"), (Policy::Ewma, 0));
    assert_eq!(policy("random"), (Policy::default(), 1));
}

#[test]
fn a_pods_false_opts_out_its_own_connections_only() {
    let pods = "---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, uid: u-a, annotations: {sluice.dev/redirect: 'false'}}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop, uid: u-b, annotations: {sluice.dev/redirect: 'true'}}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: shop, uid: u-c, annotations: {sluice.dev/redirect: grpc}}
";
    let mut catalog = Catalog::default();
    assert!(catalog.apply(updates(&format!("{}{pods}", cart("sluice.dev/redirect: 'true'", "", GRPC)))).pods);
    assert_eq!(catalog.pods().opted_out, ["u-a".into()].into());
    let built = catalog.built();
    assert_eq!(built.table.services.len(), 1);
    let said = problems(&built);
    assert!(said.len() == 1 && said[0].starts_with("Pod shop/c: "), "{said:?}");
}

#[test]
fn a_pod_without_uid_that_opts_out_is_a_problem() {
    let said = problems(&built(
        "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {sluice.dev/redirect: 'false'}}}",
    ));
    assert!(said.len() == 1 && said[0].starts_with("Pod default/a: metadata.uid: "), "{said:?}");
}

#[test]
fn all_slices_of_a_service_are_merged_and_each_address_counts_once() {
    let built = cart_with_slices(&[
        ("IPv4", "{addresses: [10.1.0.2]}, {addresses: [10.1.0.1]}", "{name: grpc, port: 8080}"),
        ("IPv4", "{addresses: [10.1.0.3]}, {addresses: [10.1.0.1]}", "{name: grpc, port: 8080}"),
    ]);
    assert_eq!(endpoints(&built, "10.96.0.10:50051"), ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"]);
}

#[test]
fn a_named_target_port_may_differ_from_slice_to_slice() {
    let built = cart_with_slices(&[
        ("IPv4", "{addresses: [10.1.0.1]}", "{name: grpc, port: 8080}, {name: other, port: 1}"),
        ("IPv4", "{addresses: [10.1.0.2]}", "{name: grpc, port: 9090}"),
        ("IPv4", "{addresses: [10.1.0.3]}", "{name: grpc, port: 9090, protocol: UDP}, {name: other, port: 2}"),
    ]);
    assert_eq!(endpoints(&built, "10.96.0.10:50051"), ["10.1.0.1:8080", "10.1.0.2:9090"]);
}

#[test]
fn a_port_without_name_matches_the_slices_port_without_name() {
    let unnamed = built(&cart("", "", "{port: 1, appProtocol: grpc}"));
    assert_eq!(endpoints(&unnamed, "10.96.0.10:1"), ["10.1.0.1:8084"]);
    let yaml = cart("", "", "{port: 1, appProtocol: grpc}").replace("name: '', port", "name: null, port");
    assert_eq!(endpoints(&built(&yaml), "10.96.0.10:1"), ["10.1.0.1:8084"]);
}

#[test]
fn unsaid_conditions_mean_ready_and_serving_and_not_terminating() {
    let built = cart_with_slices(&[(
        "IPv4",
        "{addresses: [10.1.0.1]}, {addresses: [10.1.0.2], conditions: {}}, {addresses: [10.1.0.3], conditions: {ready: null}},
         {addresses: [10.1.0.4], conditions: null}, {addresses: [10.1.0.5], conditions: {ready: false}}",
        "{name: grpc, port: 1}",
    )]);
    assert_eq!(endpoints(&built, "10.96.0.10:50051"), ["10.1.0.1:1", "10.1.0.2:1", "10.1.0.3:1", "10.1.0.4:1"]);
}

#[test]
fn terminating_endpoints_serve_only_where_none_is_ready() {
    let ending = "{addresses: [10.1.0.1], conditions: {ready: false, serving: true, terminating: true}},
        {addresses: [10.1.0.2], conditions: {ready: false, terminating: true}},
        {addresses: [10.1.0.3], conditions: {ready: false, serving: false, terminating: true}},
        {addresses: [10.1.0.4], conditions: {ready: false, serving: true}}";
    let alone = cart_with_slices(&[("IPv4", ending, "{name: grpc, port: 1}")]);
    assert_eq!(endpoints(&alone, "10.96.0.10:50051"), ["10.1.0.1:1", "10.1.0.2:1"]);

    let ready = ("IPv4", "{addresses: [10.1.0.9], conditions: {ready: true}}", "{name: grpc, port: 1}");
    let both = cart_with_slices(&[("IPv4", ending, "{name: grpc, port: 1}"), ready]);
    assert_eq!(endpoints(&both, "10.96.0.10:50051"), ["10.1.0.9:1"]);
}

#[test]
fn each_cluster_ip_gets_the_endpoints_of_its_own_family() {
    let built = cart_with_slices(&[
        ("IPv4", "{addresses: [10.1.0.1]}", "{name: grpc, port: 1}"),
        ("IPv6", "{addresses: ['fd00:1::1']}", "{name: grpc, port: 1}"),
    ]);
    assert_eq!(endpoints(&built, "10.96.0.10:50051"), ["10.1.0.1:1"]);
    assert_eq!(endpoints(&built, "[fd00::10]:50051"), ["[fd00:1::1]:1"]);
}

#[test]
fn a_service_without_endpoints_stays_in_the_table_and_says_so() {
    let built = cart_with_slices(&[("IPv4", "{addresses: [10.1.0.1]}", "{name: grpc, port: 1}")]);
    assert_eq!(endpoints(&built, "[fd00::10]:50051"), Vec::<String>::new());
    let left = LeftAlone {
        name: built.table.services[&service_addr("[fd00::10]:50051")].name.clone(),
        addr: Some(service_addr("[fd00::10]:50051")),
        reason: Reason::NoEndpoints,
    };
    assert_eq!(built.left_alone, [left]);
}

#[test]
fn slices_of_dns_names_are_ignored_with_a_problem() {
    let built = cart_with_slices(&[
        ("FQDN", "{addresses: [cart.example.org]}", "{name: grpc, port: 1}"),
        ("IPv4", "{addresses: [10.1.0.1]}", "{name: grpc, port: 1}"),
    ]);
    assert_eq!(endpoints(&built, "10.96.0.10:50051"), ["10.1.0.1:1"]);
    let said = problems(&built);
    assert!(said.len() == 1 && said[0].starts_with("EndpointSlice shop/cart-0: addressType: "), "{said:?}");
}

#[test]
fn slices_of_another_namespace_or_service_do_not_count() {
    let yaml = cart("", "", GRPC).replace("name: cart-1, namespace: shop", "name: cart-1, namespace: other");
    assert_eq!(reasons(&built(&yaml)), [("shop/cart:grpc".to_owned(), Reason::NoEndpoints)]);
    let yaml = cart("", "", GRPC).replace("service-name: cart", "service-name: till");
    assert_eq!(reasons(&built(&yaml)), [("shop/cart:grpc".to_owned(), Reason::NoEndpoints)]);
}

#[test]
fn an_endpoint_is_known_by_its_pods_uid_or_else_by_its_address() {
    let built = cart_with_slices(&[(
        "IPv4",
        "{addresses: [10.1.0.1], targetRef: {kind: Pod, uid: u-1, name: cart-1}}, {addresses: [10.1.0.2], targetRef: {kind: Pod, uid: u-2}}, \
         {addresses: [10.1.0.3], targetRef: {kind: Pod, name: cart-3}}, {addresses: [10.1.0.4]}, \
         {addresses: [10.1.0.5], targetRef: {kind: Node, uid: u-5, name: n1}}",
        "{name: grpc, port: 1}",
    )]);
    let service = &built.table.services[&service_addr("10.96.0.10:50051")];
    let known: Vec<_> = service.endpoints.iter().map(|it| (&*it.identity, it.pod())).collect();
    let nobody = |addr| (addr, None);
    let [third, fourth] = ["10.1.0.3:1", "10.1.0.4:1"].map(nobody);
    assert_eq!(known, [("u-1 cart-1", Some("cart-1")), ("u-2", None), third, fourth, ("u-5", None)]);
}

#[test]
fn of_two_services_at_one_address_the_first_by_name_is_served() {
    let second =
        cart("", "", GRPC).replace("name: cart", "name: basket").replace("service-name: cart", "service-name: basket");
    for yaml in [format!("{}---\n{second}", cart("", "", GRPC)), format!("{second}---\n{}", cart("", "", GRPC))] {
        let built = built(&yaml);
        let service = &built.table.services[&service_addr("10.96.0.10:50051")];
        assert_eq!(service.name.to_string(), "shop/basket:grpc");
        assert_eq!(reasons(&built), [("shop/cart:grpc".to_owned(), Reason::AddressTaken(service.name.clone()))]);
        let said = problems(&built);
        assert!(
            said.len() == 1 && said[0].contains("shop/cart:grpc and shop/basket:grpc are both at 10.96.0.10:50051"),
            "{said:?}"
        );
    }
}

#[test]
fn an_address_keeps_its_id_and_no_id_is_given_twice() {
    let mut catalog = Catalog::default();
    let mut with = |ports: &str| {
        catalog.apply(updates(&cart("", "", ports)));
        let mut ids: Vec<_> = catalog.table().services.values().map(|it| (it.addr.port(), it.id)).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(with("{name: grpc, port: 1}"), [(1, 1)]);
    assert_eq!(with("{name: h2c, port: 2}, {name: grpc, port: 1}"), [(1, 1), (2, 2)]);
    assert_eq!(with("{name: h2c, port: 2}"), [(2, 2)]);
    assert_eq!(with("{name: grpc, port: 1}"), [(1, 3)]);
}

#[test]
fn the_order_in_which_objects_arrive_makes_no_difference() {
    let yaml =
        format!("{}{}", cart("", "", GRPC), slices(&[("IPv4", "{addresses: [10.1.0.7]}", "{name: grpc, port: 1}")]));
    let mut backwards = Catalog::default();
    for update in objects(&yaml).into_iter().rev().map(Update::Apply) {
        backwards.apply([update]);
    }
    assert_eq!(backwards.built(), built(&yaml));
}

#[test]
fn problems_are_told_as_new_only_once() {
    let problem = |name: &str| Problem {
        place: Place::Object(object::Key { kind: Kind::Service, namespace: "shop".into(), name: name.into() }),
        field: String::new(),
        message: "is wrong".to_owned(),
        cure: "put it right".to_owned(),
    };
    let mut problems = Problems::default();
    assert!(problems.replace(vec![problem("b"), problem("a")]));
    assert!(!problems.replace(vec![problem("a"), problem("b")]));
    assert_eq!(problems.list(), [problem("a"), problem("b")]);
    assert!(problems.replace(vec![]));
    assert_eq!(problems.list()[..], []);
}

#[test]
fn the_shape_of_the_api_servers_json_is_read() {
    let json = r#"{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"a-x","namespace":"default",
        "uid":"u","resourceVersion":"7","labels":{"kubernetes.io/service-name":"a"},"managedFields":[{"manager":"m","fieldsV1":{"f:a":{}}}]},
        "addressType":"IPv4","endpoints":null,"ports":null}"#;
    let slice: object::EndpointSlice = serde_json::from_str(json).unwrap();
    assert_eq!((slice.endpoints.len(), slice.ports.len()), (0, 0));
    assert_eq!(slice.metadata.labels.service_name, Some(Arc::from("a")));

    let json = r#"{"addresses":["10.1.0.1"],"conditions":{"ready":true},"nodeName":"n1","zone":"z1","hostname":"h",
        "hints":{"forZones":[{"name":"z1"}],"forNodes":[{"name":"n1"}]},"deprecatedTopology":{"a":"b"},
        "targetRef":{"kind":"Pod","namespace":"default","name":"a-1","uid":"u-1"}}"#;
    let endpoint: object::SliceEndpoint = serde_json::from_str(json).unwrap();
    let hints = endpoint.hints.as_deref().unwrap();
    let place = object::Place { node: Some("n1".into()), zone: Some("z1".into()) };
    assert_eq!((endpoint.place.as_deref(), endpoint.target.as_deref()), (Some(&place), Some("u-1 a-1")));
    assert_eq!((&*hints.zones, &*hints.nodes), (&[Arc::from("z1")][..], &[Arc::from("n1")][..]));
    let again: object::SliceEndpoint = serde_json::from_str(json).unwrap();
    assert!(Arc::ptr_eq(endpoint.hints.as_ref().unwrap(), again.hints.as_ref().unwrap()), "equal hints are held once");
    assert!(Arc::ptr_eq(endpoint.place.as_ref().unwrap(), again.place.as_ref().unwrap()), "and equal places");

    let json = r#"{"metadata":{"name":"n1","labels":{"topology.kubernetes.io/zone":"z1","kubernetes.io/os":"linux"}},
        "spec":{"podCIDR":"10.1.0.0/24"},"status":{"phase":"Running"}}"#;
    let node: object::Node = serde_json::from_str(json).unwrap();
    assert_eq!(node.metadata.labels.zone.as_deref(), Some("z1"));
    assert_eq!(Object::Node(Arc::new(node)).key().to_string(), "Node n1");
}

#[test]
fn an_endpoint_is_small_in_memory() {
    // A cluster's hundred thousand are held by every agent.
    assert_eq!(size_of::<object::SliceEndpoint>(), 56);
    assert_eq!(size_of::<Endpoint>(), 56);
}
