//! `--source kube`. In: a kubeconfig or the pod's ServiceAccount, and this node's name; out: lines for the API server,
//! for each right that the agent uses, and for this node's own object. Changes nothing in the cluster.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};

use super::item::Item;
use crate::watch::kube::connect;

const SERVER: &str = "API server";
const NODE: &str = "node";

/// The label that hints are about.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The first version that serves discovery.k8s.io/v1.
const OLDEST: (u32, u32) = (1, 21);

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
    let client = match connect(kubeconfig).await {
        Ok(client) => client,
        Err(error) => return vec![unreachable(&error)],
    };
    let version = match answer(client.apiserver_version()).await {
        Ok(version) => server(&version.git_version, &version.major, &version.minor),
        Err(error) => return vec![no_version(&error)],
    };
    let mut items = vec![version];
    for right in &RIGHTS {
        match denied(&client, right).await {
            Ok(denied) => items.push(judge_right(right, &denied)),
            Err(error) => {
                items.push(unasked(&error));
                break;
            }
        }
    }
    items.push(match node_name {
        None => nameless(),
        Some(name) => match own_node(&client, name).await {
            Ok(zone) => node(name, zone),
            Err(error) => Item::fail(
                NODE,
                format!("{name} cannot be looked up: {}", in_words(&error)),
                "see RBAC: the agent lists and watches nodes",
            ),
        },
    });
    items
}

/// An answer in time.
async fn answer<T>(asked: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        // The client shows all fields of the answer; these two tell.
        Ok(Err(kube::Error::Api(status))) => anyhow::bail!("{} (HTTP {})", status.message, status.code),
        Ok(answer) => Ok(answer?),
        Err(_) => anyhow::bail!("no answer within {} s", ANSWER_WITHIN.as_secs()),
    }
}

/// The whole chain; errors of the client repeat their causes, which are left out.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !words.contains(&cause) {
            words += if words.is_empty() { "" } else { ": " };
            words += &cause;
        }
    }
    words
}

/// A server that refuses us is a fault of ours; one that is away comes back, and the agent waits for it as long as it takes:
/// an init step that failed would only delay that.
fn no_version(error: &anyhow::Error) -> Item {
    match error.downcast_ref() {
        Some(kube::Error::Api(_)) => unreachable(error),
        _ => Item::warn(
            SERVER,
            format!("{}; the agent waits for it, and kube-proxy serves until then", in_words(error)),
            "see that the API server runs, and that NetworkPolicies let the agent reach it",
        ),
    }
}

fn unreachable(error: &anyhow::Error) -> Item {
    Item::fail(
        SERVER,
        in_words(error),
        "in a pod: automountServiceAccountToken must not be false, and NetworkPolicies must let the agent reach the API \
         server; elsewhere give --kubeconfig FILE. Without a cluster use --source DIR",
    )
}

fn server(shown: &str, major: &str, minor: &str) -> Item {
    // Some providers write `33+`.
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    match number(major).zip(number(minor)) {
        Some(version) if version < OLDEST => Item::fail(
            SERVER,
            format!("Kubernetes {shown} has no EndpointSlices of discovery.k8s.io/v1"),
            format!("upgrade the cluster to {}.{} or newer", OLDEST.0, OLDEST.1),
        ),
        _ => Item::ok(SERVER, format!("Kubernetes {shown}")),
    }
}

/// The verbs of a right that are refused.
async fn denied(client: &Client, right: &Right) -> anyhow::Result<Vec<&'static str>> {
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

fn unasked(error: &anyhow::Error) -> Item {
    Item::fail(
        "RBAC",
        format!("the API server does not say what the agent may do: {}", in_words(error)),
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
async fn own_node(client: &Client, name: &str) -> anyhow::Result<Option<Option<String>>> {
    // As the agent does: its rights are list and watch.
    let nodes: Api<Node> = Api::all(client.clone());
    let found = answer(nodes.list(&ListParams::default().fields(&format!("metadata.name={name}")))).await?;
    Ok(found.items.first().map(|node| node.labels().get(ZONE).cloned()))
}

fn nameless() -> Item {
    Item::warn(
        NODE,
        "not named: the agent cannot tell its own node's endpoints and zone",
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
    use super::*;
    use crate::check::item::Level;

    #[test]
    fn a_server_without_endpoint_slices_fails() {
        assert_eq!(server("v1.20.15", "1", "20").level, Level::Fail);
        for (major, minor) in [("1", "21"), ("1", "33+"), ("2", "0"), ("", "")] {
            assert_eq!(server("v", major, minor).level, Level::Ok, "{major}.{minor}");
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
        assert_eq!(nameless().level, Level::Warn);
        assert_eq!(node("a", None).level, Level::Fail);
        assert_eq!(node("a", Some(None)).level, Level::Warn);
        assert_eq!(node("a", Some(Some("eu-1".into()))), Item::ok(NODE, "a, zone eu-1"));
    }
}
