//! One file's text.

use super::super::parse::parse;
use super::{place, shop};
use crate::table::Problem;

fn keys(text: &str) -> Vec<String> {
    let parsed = parse(&"a.yaml".into(), text).unwrap_or_else(|problem| panic!("{problem}"));
    parsed.iter().map(|it| format!("{} at {}", it.object.key(), it.line)).collect()
}

fn problem(text: &str) -> Problem {
    parse(&"a.yaml".into(), text).expect_err("a problem")
}

/// The place, field and cure of what is wrong, and the words that the message must have.
#[track_caller]
fn wrong(text: &str, at: (u64, u64), field: &str, message: &str, cure: &str) {
    let problem = problem(text);
    assert_eq!(place(&problem), ("a.yaml".into(), at.0, at.1), "{problem}");
    assert_eq!(problem.field, field, "{problem}");
    assert!(problem.message.contains(message), "{problem}");
    assert!(!problem.message.contains(" at line "), "{problem}");
    assert!(problem.cure.contains(cure), "{problem}");
}

#[test]
fn documents_lists_and_json_are_read() {
    assert_eq!(keys(&shop("cart", "10.1.0.1")), ["Service shop/cart at 1", "EndpointSlice shop/cart-1 at 11"]);
    let list = "# comment\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: Deployment, apiVersion: apps/v1, spec: {ports: 7}}\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n- {metadata: {name: p}, kind: Pod, apiVersion: v1}\n";
    assert_eq!(keys(list), ["Service default/a at 2", "Pod default/p at 2"]);
    let typed = r#"{"apiVersion": "v1", "kind": "NamespaceList", "items": [{"metadata": {"name": "shop"}}]}"#;
    assert_eq!(keys(typed), ["Namespace shop at 1"]);
    let tabs = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\n\t\t\"name\": \"p\"\n\t}\n}\n";
    assert_eq!(keys(tabs), ["Pod default/p at 1"]);
    assert_eq!(keys("kind: List\napiVersion: v1\nitems: []\n"), [""; 0]);
    assert_eq!(keys("kind: List\napiVersion: v1\nitems: null\n"), [""; 0]);
}

#[test]
fn line_ends_of_windows_and_a_byte_order_mark_are_no_obstacle() {
    let text = format!("\u{feff}{}", shop("cart", "10.1.0.1").replace('\n', "\r\n"));
    assert_eq!(keys(&text), ["Service shop/cart at 1", "EndpointSlice shop/cart-1 at 11"]);
}

#[test]
fn other_kinds_are_passed_over_in_silence() {
    for text in [
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {}\nspec: {ports: nonsense}\n",
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {}\n",
        "apiVersion: v1\nkind: ConfigMap\ndata: {a: |\n  text\n  }\n",
        "replicas: 3\n",
        "apiVersion: v2\nname: a-chart\n",
        "resources: [a.yaml]\n",
        "",
        "---\n---\n# nothing\n...\n",
        "%YAML 1.2\n---\n",
    ] {
        let parsed = parse(&"a.yaml".into(), text);
        // A document that is no YAML at all is no "other kind".
        if !text.contains("ConfigMap") {
            assert_eq!(parsed.unwrap_or_else(|problem| panic!("{text}: {problem}")), [], "{text}");
        }
    }
}

#[test]
fn deeply_nested_schemas_of_others_are_no_problem() {
    let deep = format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nspec: {}1{}\n",
        "{a: ".repeat(100),
        "}".repeat(100)
    );
    assert_eq!(keys(&deep), [""; 0]);
}

#[test]
fn a_file_nested_without_end_is_a_problem_and_no_crash() {
    for open in ["{a: ", "[", "- ", "? "] {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  {}", open.repeat(20_000));
        assert!(!problem(&text).message.is_empty(), "{open}");
    }
}

#[test]
fn a_wrong_value_is_named_with_line_column_field_and_cure() {
    let good = shop("cart", "10.1.0.1");
    wrong(&good.replace("port: 8080", "port: 80800"), (24, 3), "ports[0].port", "80800", "1 to 65535");
    wrong(&good.replace("port: 50051", "port: 0"), (10, 5), "spec.ports[0].port", "0", "1 to 65535");
    wrong(&good.replace("port: 50051", "port: -5"), (10, 5), "spec.ports[0].port", "-5", "1 to 65535");
    wrong(&good.replace("port: 50051", "port: http"), (10, 11), "spec.ports[0].port", "", "1 to 65535");
    wrong(&good.replace("10.1.0.1", "10.1.0.300"), (21, 15), "endpoints[0].addresses[0]", "10.1.0.300", "IPv4 or IPv6");
    wrong(&good.replace("10.1.0.1", "0.0.0.0"), (21, 15), "endpoints[0].addresses[0]", "0.0.0.0", "IPv4 or IPv6");
    wrong(&good.replace("10.96.0.10", "10.96.0"), (7, 3), "spec.clusterIP", "10.96.0", "IP address, or None");
    wrong(
        &good.replace("port: 50051", "port: 1\n    protocol: tcp"),
        (11, 15),
        "spec.ports[0].protocol",
        "tcp",
        "TCP, UDP or SCTP",
    );
    wrong(&good.replace("IPv4", "ipv4"), (19, 14), "addressType", "ipv4", "IPv4 or IPv6");
    wrong(&good.replace("  name: cart\n", ""), (4, 3), "metadata", "missing field `name`", "add the field");
    wrong(&good.replace("    port: 50051\n", ""), (9, 5), "spec.ports[0]", "missing field `port`", "add the field");
}

#[test]
fn an_address_of_another_type_than_the_slices_is_named_with_its_place() {
    let good = shop("cart", "10.1.0.1");
    let two = good.replace("- addresses: [10.1.0.1]", "- addresses: [10.1.0.1]\n- addresses: ['fd00::1']");
    wrong(&two, (22, 15), "endpoints[1].addresses[0]", "fd00::1 is no IPv4 address", "addressType");
    wrong(
        &good.replace("10.1.0.1", "backend"),
        (21, 15),
        "endpoints[0].addresses[0]",
        "backend is no IPv4 address",
        "",
    );
    let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv6,\n endpoints: [{addresses: [10.1.0.1]}]}";
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Pod, metadata: {{name: a}}}}\n- {slice}\n"
    );
    wrong(&list, (6, 27), "items[1].endpoints[0].addresses[0]", "10.1.0.1 is no IPv6 address", "");
}

#[test]
fn lines_count_from_the_beginning_of_the_file() {
    let text = format!("# one\n# two\n---\n{}---\n{}", shop("a", "10.1.0.1"), shop("b", "10.1.0.x"));
    wrong(&text, (49, 15), "endpoints[0].addresses[0]", "10.1.0.x", "");
}

#[test]
fn an_annotation_without_quotes_is_a_mistake_with_its_cure() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    sluice.dev/redirect: false\n";
    wrong(text, (6, 26), "metadata.annotations.sluice.dev/redirect", "false", "quotes");
    let others = text.replace("sluice.dev/redirect: false", "example.org/port: 5");
    assert_eq!(keys(&others), ["Pod default/a at 1"], "what other annotations hold is not our business");
}

#[test]
fn names_that_old_yaml_took_for_booleans_are_names() {
    for name in ["n", "y", "no", "on"] {
        assert_eq!(
            keys(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n")),
            [format!("Pod default/{name} at 1")]
        );
    }
}

#[test]
fn broken_yaml_is_a_problem_with_its_line() {
    let broken = problem("apiVersion: v1\nkind: Pod\nmetadata:\n  name: [a\n");
    assert!(place(&broken).1 >= 4, "{broken}");
    assert!(broken.cure.contains("kubectl"), "{broken}");
    wrong("just words\n", (1, 1), "", "mapping", "YAML");
    let twice = problem("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nmetadata: {name: b}\n");
    assert_eq!(place(&twice).1, 4, "{twice}");
    assert!(twice.cure.contains("remove one"), "{twice}");
}

#[test]
fn an_endpoint_slice_of_a_wrong_api_version_is_not_overlooked() {
    let text = shop("cart", "10.1.0.1").replace("discovery.k8s.io/v1", "v1");
    wrong(&text, (11, 0), "apiVersion", "EndpointSlice needs apiVersion discovery.k8s.io/v1", "apiVersion:");
    wrong(
        "kind: Service\nmetadata: {name: a}\n",
        (1, 0),
        "apiVersion",
        "Service needs apiVersion v1",
        "apiVersion: v1",
    );
    wrong("apiVersion: v1\nmeta", (2, 1), "", "", "YAML");
    wrong("apiVersion: v1\n", (1, 0), "", "without a kind", "add kind");
}

#[test]
fn a_kind_that_its_api_group_does_not_have_is_a_slip_and_not_overlooked() {
    let good = shop("cart", "10.1.0.1");
    wrong(&good.replace("kind: Service", "kind: Sevice"), (1, 0), "kind", "v1 has no kind Sevice", "api-resources");
    wrong(&good.replace("kind: Service", "kind: service"), (1, 0), "kind", "no kind service", "Service");
    wrong(&good.replace("EndpointSlice", "Endpointslice"), (11, 0), "kind", "no kind Endpointslice", "EndpointSlice");
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pood, metadata: {name: a}}\n";
    wrong(list, (1, 0), "items[0]", "v1 has no kind Pood", "");
}

#[test]
fn a_service_without_ports_and_a_slice_without_endpoints_lack_a_field() {
    let good = shop("cart", "10.1.0.1");
    let portless = good.replacen("  ports:", "  port:", 1);
    let found = problem(&portless);
    assert_eq!((found.field.as_str(), found.message.as_str()), ("spec", "missing field `ports`"), "{found}");
    assert!((6..=8).contains(&place(&found).1), "{found}");
    let endless = problem(&good.replace("endpoints:", "endpoint:"));
    assert!(endless.message.contains("missing field `endpoints`"), "{endless}");
    assert_eq!(endless.cure, "add the field");
    for text in [
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: ExternalName, externalName: b}\n",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints: null\n",
    ] {
        assert_eq!(keys(text).len(), 1, "{text}");
    }
}

#[test]
fn what_the_parser_tells_programmers_is_left_out() {
    let twice = problem("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nmetadata: {name: b}\n");
    assert_eq!(twice.message, "duplicate mapping key: metadata");
    let null = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    sluice.dev/load-balancer:\n";
    assert_eq!(problem(null).message, "cannot deserialize null into string");
}

#[test]
fn no_cut_and_no_stray_byte_makes_the_parser_panic() {
    let text = format!(
        "apiVersion: v1\nkind: List\nitems: [{{apiVersion: v1, kind: Pod, metadata: {{name: p}}}}]\n---\n{}",
        shop("cart", "10.1.0.1")
    );
    for end in 0..=text.len() {
        let _ = parse(&"a.yaml".into(), &text[..end]);
    }
    for stray in ["{", "]", ":", "\t", "&a ", "*a ", "!", "|", "-", "\u{0}", "\"", "%"] {
        for at in (0..text.len()).step_by(11) {
            let _ = parse(&"a.yaml".into(), &format!("{}{stray}{}", &text[..at], &text[at..]));
        }
    }
}
