//! The source against a small API server: pages, resumed watches, bookmarks, lost history, refusals, absence. What a real
//! API server does is seen on a real cluster.

use std::path::Path;
use std::time::{Duration, Instant};

use kube::{Client, Config};
use serde_json::{Value, json};

use super::{Kube, PAGE};
use crate::table::object::{Key, Kind};
use crate::table::{Catalog, Update};

mod api;

use api::{Api, parameter};

/// Long enough for a loaded machine; what is waited for comes at once, as a rule.
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    api: Api,
    kube: Kube,
    catalog: Catalog,
}

fn client(api: &Api, token_file: Option<&Path>) -> Client {
    let mut config = Config::new(format!("http://{}", api.address).parse().unwrap());
    config.auth_info.token_file = token_file.map(|file| file.to_str().unwrap().to_owned());
    super::client::client(config).unwrap()
}

impl World {
    async fn new(prepare: impl FnOnce(&Api)) -> Self {
        let api = Api::start().await;
        api.put("nodes", "", "n1", json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "z1" } } }));
        prepare(&api);
        let kube = Kube::start(client(&api, None), "n1");
        Self { api, kube, catalog: Catalog::default() }
    }

    async fn synced(prepare: impl FnOnce(&Api)) -> Self {
        let mut world = Self::new(prepare).await;
        world.until(|world| world.kube.missing().next().is_none()).await;
        world
    }

    /// Takes updates until this holds; those updates.
    async fn until(&mut self, mut holds: impl FnMut(&Self) -> bool) -> Vec<Update> {
        let mut all = Vec::new();
        let waiting = async {
            while !holds(self) {
                let updates = self.kube.next().await;
                all.extend(updates.iter().cloned());
                self.catalog.apply(updates);
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it did not come to hold");
        all
    }

    fn age(&self, kind: Kind) -> Duration {
        self.kube.sync_ages().find(|(of, _)| *of == kind).unwrap().1
    }

    fn has(&self, name: &str) -> bool {
        let key = Key { kind: Kind::Service, namespace: "shop".into(), name: name.into() };
        self.catalog.uid(&key).is_some()
    }

    async fn report(&self, second: &Kube) {
        self.kube.report(&self.catalog);
        second.report(&self.catalog);
        // Both have asked, whoever was first.
        self.wait(|api| api.asked_to_post().is_multiple_of(2) && api.asked_to_post() > 0).await;
    }

    async fn events(&self, count: usize) -> Vec<Value> {
        self.wait(|api| api.posted().len() >= count).await;
        let posted = self.api.posted();
        assert_eq!(posted.len(), count, "{posted:?}");
        posted
    }

    async fn wait(&self, holds: impl Fn(&Api) -> bool) {
        let waiting = async {
            while !holds(&self.api) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it did not come to hold");
    }

    fn put_service(&self, name: &str) {
        self.api.put("services", "shop", name, service());
    }
}

fn service() -> Value {
    json!({ "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] } })
}

#[tokio::test]
async fn it_is_synced_when_all_pages_of_all_kinds_are_read_and_each_kind_is_told_at_once() {
    let count = PAGE as usize * 2 + 1;
    let mut world =
        World::new(|api| (0..count).for_each(|n| api.put("services", "shop", &format!("s{n}"), service()))).await;
    assert_eq!(world.kube.missing().count(), Kind::ALL.len());
    assert!(!world.age(Kind::Service).is_zero(), "it is waited for");
    let updates = world.until(|world| world.kube.missing().next().is_none()).await;
    let sizes = updates.iter().filter_map(|update| match update {
        Update::Reset { kind: Kind::Service, objects, .. } => Some(objects.len()),
        _ => None,
    });
    assert_eq!(sizes.collect::<Vec<_>>(), [count]);
    assert!(world.has("s0") && world.has(&format!("s{}", count - 1)));
    let pages = world.api.take_requests("services");
    assert_eq!(pages.iter().filter(|it| parameter(it, "limit") == Some("250")).count(), 3, "{pages:?}");
}

#[tokio::test]
async fn only_this_nodes_pods_and_its_own_node_are_asked_for() {
    let world = World::synced(|_| {}).await;
    assert!(world.api.take_requests("pods").iter().all(|it| it.contains("fieldSelector=spec.nodeName%3Dn1")));
    assert!(world.api.take_requests("nodes").iter().all(|it| it.contains("fieldSelector=metadata.name%3Dn1")));
}

#[tokio::test]
async fn changes_come_as_they_happen() {
    let mut world = World::synced(|_| {}).await;
    world.put_service("cart");
    world.until(|world| world.has("cart")).await;
    world.api.delete("services", "shop", "cart");
    world.until(|world| !world.has("cart")).await;
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_from_the_last_bookmark_without_a_list() {
    let mut world = World::synced(|_| {}).await;
    world.put_service("cart");
    world.until(|world| world.has("cart")).await;
    world.api.bookmark("services");
    let marked = world.api.version();
    // One more object shows that the bookmark was read: events come in order.
    world.put_service("mark");
    world.until(|world| world.has("mark")).await;
    world.api.take_requests("services");

    world.api.go_away().await;
    world.api.come_back().await;
    world.put_service("later");
    world.until(|world| world.has("later")).await;
    let requests = world.api.take_requests("services");
    assert!(requests.iter().all(|it| parameter(it, "watch").is_some()), "no list: {requests:?}");
    let from: u64 = parameter(&requests[0], "resourceVersion").unwrap().parse().unwrap();
    assert!(from > marked, "from {from}, marked {marked}");
}

#[tokio::test]
async fn history_that_is_lost_makes_one_list_and_what_went_meanwhile_is_gone() {
    let mut world = World::synced(|api| {
        api.put("services", "shop", "stays", service());
        api.put("services", "shop", "goes", service());
    })
    .await;
    world.api.go_away().await;
    world.api.delete("services", "shop", "goes");
    world.api.compact();
    world.api.take_requests("services");
    world.api.come_back().await;
    let updates = world.until(|world| !world.has("goes")).await;
    assert!(world.has("stays"));
    let of_services = |it: &&Update| !matches!(it, Update::Reset { kind, .. } if *kind != Kind::Service);
    assert_eq!(updates.iter().filter(of_services).count(), 1, "one re-list, told once: {updates:?}");
}

#[tokio::test]
async fn history_that_was_put_back_is_listed_anew() {
    let mut world = World::synced(|api| {
        api.put("services", "shop", "stays", service());
        api.put("services", "shop", "goes", service());
    })
    .await;
    world.api.go_away().await;
    world.api.restore(("services", "shop", "goes"));
    world.api.come_back().await;
    world.until(|world| !world.has("goes")).await;
    assert!(world.has("stays"));
}

#[tokio::test]
async fn an_api_server_that_is_away_is_a_problem_that_goes_by_itself_and_nothing_is_forgotten() {
    let mut world = World::synced(|api| api.put("services", "shop", "cart", service())).await;
    assert!(Kind::ALL.into_iter().all(|kind| world.age(kind).is_zero()));
    let left = Instant::now();
    world.api.go_away().await;
    world.until(|world| world.kube.problems().len() == Kind::ALL.len()).await;
    for kind in Kind::ALL {
        let age = world.age(kind);
        assert!(!age.is_zero() && age <= left.elapsed() && age < world.age(kind), "{kind}: {age:?}");
    }
    let problem = world.kube.problems()[0].to_string();
    assert!(problem.contains("refused") && problem.contains("the last known objects serve on"), "{problem}");
    assert!(world.has("cart"));
    world.api.come_back().await;
    world.put_service("later");
    world.until(|world| world.has("later")).await;
    // Of the kinds of which there is no news, too.
    world.until(|world| world.kube.problems().is_empty()).await;
    assert!(Kind::ALL.into_iter().all(|kind| world.age(kind).is_zero()));
}

#[tokio::test]
async fn what_is_forbidden_is_named_with_its_cure_and_taken_up_when_it_is_allowed() {
    let mut world = World::new(|api| api.forbid("endpointslices", true)).await;
    world.until(|world| !world.kube.problems().is_empty()).await;
    let problem = world.kube.problems()[0].to_string();
    assert!(!problem.contains("last known"), "nothing is known yet: {problem}");
    assert!(
        problem.contains("endpointslices is forbidden") && problem.contains("list and watch endpointslices"),
        "{problem}"
    );
    assert!(world.kube.missing().any(|kind| kind == Kind::EndpointSlice));
    world.until(|world| world.kube.missing().count() == 1).await;
    assert!(!world.age(Kind::EndpointSlice).is_zero() && world.age(Kind::Service).is_zero());
    world.api.forbid("endpointslices", false);
    world.until(|world| world.kube.problems().is_empty() && world.kube.missing().next().is_none()).await;
}

/// The client library reads the file again when its token is 50 s old, and so long this takes.
#[tokio::test]
async fn a_token_that_is_rotated_in_its_file_is_taken_up() {
    let file = std::env::temp_dir().join(format!("sluice-token-{}", std::process::id()));
    std::fs::write(&file, "first").unwrap();
    let api = Api::start().await;
    api.require_token("first");
    let kube = Kube::start(client(&api, Some(&file)), "n1");
    let mut world = World { api, kube, catalog: Catalog::default() };
    world.until(|world| world.kube.missing().next().is_none()).await;

    std::fs::write(&file, "second").unwrap();
    world.api.require_token("second");
    world.api.go_away().await;
    world.api.come_back().await;
    world.put_service("cart");
    let refused = |world: &World| world.kube.problems().iter().any(|it| it.message.contains("does not accept"));
    world.until(refused).await;
    let taken_up = async {
        while !world.has("cart") {
            let updates = world.kube.next().await;
            world.catalog.apply(updates);
        }
    };
    tokio::time::timeout(4 * PATIENCE, taken_up).await.expect("the new token was never read");
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn an_object_that_cannot_be_read_costs_only_itself_and_what_was_known_of_it_stays() {
    let mut world = World::synced(|api| api.put("services", "shop", "cart", service())).await;
    world.api.put(
        "services",
        "shop",
        "cart",
        json!({ "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 0 }] } }),
    );
    world.put_service("other");
    world.until(|world| world.has("other")).await;
    let problem = world.kube.problems()[0].to_string();
    assert!(problem.starts_with("Service shop/cart: spec.ports[0].port:"), "{problem}");
    assert!(world.has("cart"));

    // A list does not forget it either.
    world.api.go_away().await;
    world.api.compact();
    world.api.come_back().await;
    world.put_service("third");
    world.until(|world| world.has("third")).await;
    assert!(world.has("cart"));

    world.api.put("services", "shop", "cart", service());
    world.until(|world| world.kube.problems().is_empty()).await;
}

#[tokio::test]
async fn an_unreadable_annotation_is_one_event_however_many_agents_post_it() {
    let annotated = |value: &str| {
        let mut object = service();
        object["metadata"]["annotations"]["sluice.dev/redirect"] = value.into();
        object
    };
    let mut world = World::synced(|api| api.put("services", "shop", "cart", annotated("maybe"))).await;
    let second = Kube::start(client(&world.api, None), "n2");
    world.report(&second).await;
    let posted = world.events(1).await;
    assert_eq!(posted[0]["regarding"]["uid"], "uid-shop-cart");
    assert_eq!((&posted[0]["type"], &posted[0]["reason"]), (&json!("Warning"), &json!("UnreadableAnnotation")));

    // Each agent posts in order: when the second problem is there, nobody posts the first one any more.
    world.api.put("services", "shop", "cart", annotated("perhaps"));
    world.until(|world| world.catalog.problems().any(|it| it.message.contains("perhaps"))).await;
    world.report(&second).await;
    let posted = world.events(2).await;
    assert!(posted[1]["note"].as_str().unwrap().contains("perhaps"), "{posted:?}");
}
