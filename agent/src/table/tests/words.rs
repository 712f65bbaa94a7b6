//! Whose word on redirection holds: the Service's, its Namespace's, a Pod's; and that what none of them can say is a problem.

use super::*;

#[test]
fn the_services_word_wins_over_its_namespaces() {
    let namespace = |word: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{sluice.dev/redirect: '{word}'}}}}\n"
        )
    };
    let of = |service: &str, word: &str| {
        let annotation = if service.is_empty() { String::new() } else { format!("sluice.dev/redirect: '{service}'") };
        let built = built(&format!("{}{}", cart(&annotation, "", GRPC), namespace(word)));
        built.left_alone.first().map(|it| it.reason.clone())
    };
    assert_eq!(of("", "false"), Some(Reason::OptedOutByNamespace));
    assert_eq!(of("true", "false"), None);
    assert_eq!(of("grpc", "false"), None);
    assert_eq!(of("false", "true"), Some(Reason::OptedOutByService));
    assert_eq!(of("", "true"), None);
}

#[test]
fn what_a_namespace_or_pod_cannot_say_is_a_problem_and_the_default_applies() {
    for word in ["no", "off", "disabled", "grpc", "true, api"] {
        for head in [
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, ",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, uid: u, ",
        ] {
            let object = format!("---\n{head}annotations: {{sluice.dev/redirect: '{word}'}}}}\n");
            let built = built(&format!("{}{object}", cart("", "", GRPC)));
            assert_eq!(built.table.services.len(), 1, "{word}: the port's own word");
            let [problem] = &problems(&built)[..] else { panic!("{word}: {:?}", problems(&built)) };
            assert!(
                problem.contains(&format!("\"{word}\" is unreadable")) && problem.contains("\"false\""),
                "{problem}"
            );
        }
    }
    let balanced = "---\napiVersion: v1\nkind: Namespace
metadata: {name: shop, annotations: {sluice.dev/load-balancer: least-request}}\n";
    let built = built(&format!("{}{balanced}", cart("", "", GRPC)));
    assert!(problems(&built)[0].contains("has no effect"), "{:?}", problems(&built));
    assert_eq!(built.table.services.values().next().unwrap().balancing.policy, Policy::Ewma);
}
