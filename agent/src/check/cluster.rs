//! `--source kube`. In: a kubeconfig or the pod's ServiceAccount, and this node's name; out: lines for the API server,
//! for each right that the agent uses, and for this node's own object. Changes nothing in the cluster.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};

use super::item::Item;
use crate::watch::kube::{Fault, client, way};

const SERVER: &str = "API server";
const NODE: &str = "node";

/// The label that hints are about.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The first version that serves discovery.k8s.io/v1, and the first that knows all fields of the manifests.
const OLDEST: (u32, u32) = (1, 21);
const OLDEST_OF_MANIFESTS: (u32, u32) = (1, 30);

/// How long the API server may take for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Verbs on a resource that the agent uses.
struct Right {
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    /// What is lost without it, where sluice serves all the same.
    spared: Option<&'static str>,
}

const WATCH: &[&str] = &["list", "watch"];

const RIGHTS: [Right; 6] = [
    Right { group: "", resource: "services", verbs: WATCH, spared: None },
    Right { group: "discovery.k8s.io", resource: "endpointslices", verbs: WATCH, spared: None },
    Right { group: "", resource: "namespaces", verbs: WATCH, spared: None },
    Right { group: "", resource: "pods", verbs: WATCH, spared: None },
    Right { group: "", resource: "nodes", verbs: WATCH, spared: None },
    Right {
        group: "events.k8s.io",
        resource: "events",
        verbs: &["create"],
        spared: Some("objects with mistakes get no Event, the agent's status alone tells of them"),
    },
];

pub(super) async fn items(kubeconfig: Option<&Path>, node_name: Option<&str>) -> Vec<Item> {
    // `run` does not start without.
    let Some(name) = node_name else { return vec![nameless()] };
    let way = match way(kubeconfig).await {
        Ok(way) => way,
        Err(error) => return vec![no_way(&error, kubeconfig)],
    };
    let url = way.cluster_url.to_string();
    let client = match client(way) {
        Ok(client) => client,
        Err(error) => return vec![no_way(&error, kubeconfig)],
    };
    let version = match answer(client.apiserver_version()).await {
        Ok(version) => server(&url, &version.git_version, &version.major, &version.minor),
        Err(fault) => return vec![no_version(&url, fault)],
    };
    let mut items = vec![version];
    for right in &RIGHTS {
        match denied(&client, right).await {
            Ok(denied) => items.push(judge_right(right, &denied)),
            Err(fault) => {
                items.push(unasked(&fault));
                break;
            }
        }
    }
    items.push(match own_node(&client, name).await {
        Ok(zone) => node(name, zone),
        Err(fault) => Item::fail(
            NODE,
            format!("{name} cannot be looked up: {}", fault.what),
            "see RBAC: the agent lists and watches nodes",
        ),
    });
    items
}

/// An answer in time.
async fn answer<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, Fault> {
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(answer) => answer.map_err(|error| Fault::of(&error, None)),
        Err(_) => Err(Fault::silence(ANSWER_WITHIN)),
    }
}

/// The whole chain on one line; errors of the client repeat their causes, which are left out.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(|cause| cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ")) {
        if !words.contains(&cause) {
            words += if words.is_empty() { "" } else { ": " };
            words += &cause;
        }
    }
    words
}

/// A server that refuses us, or is not the one, is a fault of ours; one that is away comes back, and the agent waits for it as
/// long as it takes: an init step that failed would only delay that.
fn no_version(url: &str, fault: Fault) -> Item {
    if fault.lasts {
        return Item::fail(SERVER, format!("{url}: {}", fault.what), fault.cure);
    }
    let found = format!("{url}: {}; the agent waits for it, and kube-proxy serves until then", fault.what);
    Item::warn(SERVER, found, fault.cure)
}

/// What is said of the way there cannot be used.
fn no_way(error: &anyhow::Error, kubeconfig: Option<&Path>) -> Item {
    const IN_A_POD: &str = "automountServiceAccountToken of the Pod and its ServiceAccount must not be false";
    const ELSEWHERE: &str = "give --kubeconfig FILE, one with which `kubectl --kubeconfig FILE get nodes` works; without a \
                             cluster use --source DIR";
    let in_a_pod = kubeconfig.is_none() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    Item::fail(SERVER, in_words(error), if in_a_pod { IN_A_POD } else { ELSEWHERE })
}

fn server(url: &str, shown: &str, major: &str, minor: &str) -> Item {
    // Some providers write `33+`.
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    match number(major).zip(number(minor)) {
        Some(version) if version < OLDEST => Item::fail(
            SERVER,
            format!("Kubernetes {shown} has no EndpointSlices of discovery.k8s.io/v1"),
            format!("upgrade the cluster to {}.{} or newer", OLDEST.0, OLDEST.1),
        ),
        Some(version) if version < OLDEST_OF_MANIFESTS => Item::warn(
            SERVER,
            format!("Kubernetes {shown} at {url} does not know all fields of sluice's manifests"),
            format!("upgrade the cluster to {}.{} or newer", OLDEST_OF_MANIFESTS.0, OLDEST_OF_MANIFESTS.1),
        ),
        _ => Item::ok(SERVER, format!("Kubernetes {shown} at {url}")),
    }
}

/// The verbs of a right that are refused.
async fn denied(client: &Client, right: &Right) -> Result<Vec<&'static str>, Fault> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut denied = Vec::new();
    for verb in right.verbs {
        let asked = ResourceAttributes {
            group: Some(right.group.into()),
            resource: Some(right.resource.into()),
            verb: Some((*verb).into()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(asked), ..Default::default() },
            ..Default::default()
        };
        let review = answer(reviews.create(&PostParams::default(), &review)).await?;
        if !review.status.is_some_and(|status| status.allowed) {
            denied.push(*verb);
        }
    }
    Ok(denied)
}

fn unasked(fault: &Fault) -> Item {
    Item::fail(
        "RBAC",
        format!("the API server does not say what the agent may do: {}", fault.what),
        "see that it accepts the agent's ServiceAccount or kubeconfig, and that these may create selfsubjectaccessreviews \
         (the built-in ClusterRole system:basic-user says so)",
    )
}

fn judge_right(right: &Right, denied: &[&str]) -> Item {
    let Right { group, resource, verbs, spared } = right;
    let name = format!("RBAC: {resource}");
    if denied.is_empty() {
        return Item::ok(name, verbs.join(", "));
    }
    let cure = format!(
        "add to the ClusterRole of the agent's ServiceAccount: {{apiGroups: [\"{group}\"], resources: [{resource}], \
         verbs: [{}]}}",
        verbs.join(", ")
    );
    let not = if denied.len() == 1 { "not" } else { "neither" };
    let found = format!("may {not} {} {resource} of the whole cluster", denied.join(" nor "));
    match spared {
        None => Item::fail(name, found, cure),
        Some(lost) => Item::warn(name, format!("{found}: {lost}"), cure),
    }
}

/// The zone of the node's object: none where there is no such object, and in it none where it has no zone.
async fn own_node(client: &Client, name: &str) -> Result<Option<Option<String>>, Fault> {
    // As the agent does: its rights are list and watch.
    let nodes: Api<Node> = Api::all(client.clone());
    let found = answer(nodes.list(&ListParams::default().fields(&format!("metadata.name={name}")))).await?;
    Ok(found.items.first().map(|node| node.labels().get(ZONE).cloned()))
}

fn nameless() -> Item {
    Item::fail(
        NODE,
        "not named, and --source kube needs it: the API server was not tried",
        "give --node-name; in a pod SLUICE_NODE_NAME from the field spec.nodeName",
    )
}

fn node(name: &str, found: Option<Option<String>>) -> Item {
    match found {
        None => Item::fail(
            NODE,
            format!("the cluster has no Node {name}"),
            "give --node-name the name that `kubectl get nodes` shows; in a pod SLUICE_NODE_NAME from the field \
             spec.nodeName",
        ),
        Some(None) => Item::warn(
            NODE,
            format!("{name} has no zone: hints of EndpointSlices for zones are not honoured"),
            format!("kubectl label node {name} {ZONE}=…, if the cluster has zones"),
        ),
        Some(Some(zone)) => Item::ok(NODE, format!("{name}, zone {zone}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::check::item::Level;

    /// What is found at a server that answers everything with this.
    async fn found_at(status: &'static str, body: &'static str) -> Vec<Item> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let _ = connection.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = connection.write_all((head + body).as_bytes()).await;
            }
        });
        found_by(&server).await
    }

    async fn found_by(server: &str) -> Vec<Item> {
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }],
            "clusters": [{ "name": "x", "cluster": { "server": server } }],
            "users": [{ "name": "x", "user": { "token": "garbage" } }],
        });
        let name = format!("sluice-check-{}-{}", std::process::id(), server.rsplit(':').next().unwrap());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, config.to_string()).unwrap();
        let items = items(Some(&file), Some("n1")).await;
        std::fs::remove_file(&file).unwrap();
        items
    }

    #[tokio::test]
    async fn a_server_that_refuses_the_agent_fails_and_one_that_is_sick_or_away_may_come_back() {
        let refusal = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#;
        for (status, body, words) in [
            ("401 Unauthorized", refusal, "Unauthorized (HTTP 401)"),
            ("403 Forbidden", "<html>blocked</html>", "is no API server"),
            ("200 OK", "<html>please log in</html>", "does not speak as an API server"),
        ] {
            let items = found_at(status, body).await;
            assert!(items.len() == 1 && items[0].level == Level::Fail, "{items:?}");
            assert!(items[0].found.contains(words) && items[0].found.contains("http://127.0.0.1:"), "{items:?}");
        }
        let sick = found_at("503 Service Unavailable", "later").await;
        assert_eq!(sick[0].level, Level::Warn, "{sick:?}");
        let away = found_by("http://127.0.0.1:1").await;
        assert!(away[0].level == Level::Warn && away[0].found.contains("refused"), "{away:?}");
    }

    #[tokio::test]
    async fn a_node_without_a_name_fails_before_the_api_server_is_tried() {
        assert_eq!(items(Some(Path::new("/none")), None).await, [nameless()]);
        let unusable = items(Some(Path::new("/none")), Some("n1")).await;
        assert!(
            unusable[0].level == Level::Fail && unusable[0].cure.as_ref().unwrap().starts_with("give --kubeconfig")
        );
    }

    #[test]
    fn a_server_without_endpoint_slices_fails_and_one_too_old_for_the_manifests_is_named() {
        assert_eq!(server("u", "v1.20.15", "1", "20").level, Level::Fail);
        for (major, minor) in [("1", "21"), ("1", "29+")] {
            assert_eq!(server("u", "v", major, minor).level, Level::Warn, "{major}.{minor}");
        }
        for (major, minor) in [("1", "30"), ("1", "33+"), ("2", "0"), ("", "")] {
            assert_eq!(server("u", "v", major, minor).level, Level::Ok, "{major}.{minor}");
        }
    }

    #[test]
    fn a_missing_right_fails_with_the_rule_to_add() {
        let slices = &RIGHTS[1];
        assert_eq!(judge_right(slices, &[]), Item::ok("RBAC: endpointslices", "list, watch"));
        let item = judge_right(slices, &["watch"]);
        assert_eq!(item.level, Level::Fail);
        assert_eq!(item.found, "may not watch endpointslices of the whole cluster");
        let rule = "{apiGroups: [\"discovery.k8s.io\"], resources: [endpointslices], verbs: [list, watch]}";
        assert!(item.cure.unwrap().ends_with(rule));
    }

    #[test]
    fn events_can_be_spared() {
        let item = judge_right(&RIGHTS[5], &["create"]);
        assert!(item.level == Level::Warn && item.cure.unwrap().contains("verbs: [create]"));
    }

    #[test]
    fn a_node_needs_a_name_that_the_cluster_knows_and_should_have_a_zone() {
        assert_eq!(nameless().level, Level::Fail);
        assert_eq!(node("a", None).level, Level::Fail);
        assert_eq!(node("a", Some(None)).level, Level::Warn);
        assert_eq!(node("a", Some(Some("eu-1".into()))), Item::ok(NODE, "a, zone eu-1"));
    }
}
