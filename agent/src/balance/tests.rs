use super::*;
use crate::addr::ServiceAddr;
use crate::table::{Endpoint, Scope, ServicePortName};

fn service(policy: Policy, endpoints: &[(&str, &str)]) -> Arc<Service> {
    let endpoint = |(addr, identity): &(&str, &str)| Endpoint {
        addr: EndpointAddr::new(addr.parse().unwrap()),
        identity: (*identity).into(),
        place: None,
    };
    listing(policy, endpoints.iter().map(endpoint))
}

pub(super) fn listing(policy: Policy, endpoints: impl Iterator<Item = Endpoint>) -> Arc<Service> {
    Arc::new(Service {
        id: 1,
        addr: ServiceAddr::new("10.96.0.10:50051".parse().unwrap()),
        name: ServicePortName { namespace: "default".into(), service: "echo".into(), port: "grpc".into() },
        balancing: policy.into(),
        endpoints: endpoints.collect(),
        scope: Scope::All,
        usable: 0,
    })
}

const THREE: &[(&str, &str)] = &[("10.1.0.1:1", "a"), ("10.1.0.2:1", "b"), ("10.1.0.3:1", "c")];

fn good(_: &Rc<EndpointLoad>) -> Standing {
    Standing::Good
}

fn counts(load: &ServiceLoad, rng: &mut fastrand::Rng, calls: usize) -> Vec<(EndpointAddr, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..calls {
        *counts.entry(load.pick(Instant::now(), rng, good).unwrap().endpoint().addr()).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

#[test]
fn equal_endpoints_get_equal_shares_under_either_policy() {
    for policy in Policy::ALL {
        let rng = &mut fastrand::Rng::with_seed(7);
        let load = ServiceLoad::new(service(policy, THREE), rng);
        for (endpoint, count) in counts(&load, rng, 3_000) {
            assert_eq!(count, 1_000, "{endpoint} under {policy:?}");
        }
    }
}

#[test]
fn least_request_prefers_the_endpoint_with_fewer_open_streams() {
    let rng = &mut fastrand::Rng::with_seed(7);
    let load = ServiceLoad::new(service(Policy::LeastRequest, THREE), rng);
    let mut held: Vec<Picked> = (0..3_000).map(|_| load.pick(Instant::now(), rng, good).unwrap()).collect();
    let busy = held[0].endpoint().addr();
    held.retain(|picked| picked.endpoint().addr() == busy);
    let again: Vec<Picked> = (0..120).map(|_| load.pick(Instant::now(), rng, good).unwrap()).collect();
    let on_busy = again.iter().filter(|picked| picked.endpoint().addr() == busy).count();
    assert_eq!(on_busy, 0);
}

#[test]
fn a_stream_counts_until_it_is_dropped() {
    let rng = &mut fastrand::Rng::with_seed(7);
    let load = ServiceLoad::new(service(Policy::RoundRobin, &THREE[..1]), rng);
    let first = load.pick(Instant::now(), rng, good).unwrap();
    let second = load.pick(Instant::now(), rng, good).unwrap();
    let endpoint = Rc::clone(first.endpoint());
    assert_eq!(endpoint.open(), 2);
    drop((first, second));
    assert_eq!(endpoint.open(), 0);
}

#[test]
fn a_new_endpoint_takes_its_turn_and_a_removed_one_is_no_longer_current() {
    let rng = &mut fastrand::Rng::with_seed(7);
    let load = ServiceLoad::new(service(Policy::RoundRobin, &THREE[..2]), rng);
    let leaving = load.pick(Instant::now(), rng, good).unwrap();
    let stays: Vec<_> = THREE.iter().copied().filter(|(a, _)| *a != leaving.endpoint().addr().to_string()).collect();
    load.update(Instant::now(), service(Policy::RoundRobin, &stays));
    assert!(!leaving.endpoint().is_current());
    assert_eq!(leaving.endpoint().open(), 1);
    assert_eq!(counts(&load, rng, 10).iter().map(|(_, n)| *n).collect::<Vec<_>>(), [5, 5]);
}

#[test]
fn a_reused_address_with_another_identity_is_another_endpoint() {
    let rng = &mut fastrand::Rng::with_seed(7);
    let load = ServiceLoad::new(service(Policy::RoundRobin, &[("10.1.0.1:1", "a")]), rng);
    let old = load.pick(Instant::now(), rng, good).unwrap();
    load.update(Instant::now(), service(Policy::RoundRobin, &[("10.1.0.1:1", "b")]));
    let new = load.pick(Instant::now(), rng, good).unwrap();
    assert!(!Rc::ptr_eq(old.endpoint(), new.endpoint()));
    assert!(!old.endpoint().is_current() && new.endpoint().is_current());
}

#[test]
fn the_endpoint_against_which_the_least_speaks_is_chosen_whatever_its_turn_and_load() {
    let rng = &mut fastrand::Rng::with_seed(7);
    let until = Instant::now();
    let later = until + std::time::Duration::from_secs(1);
    let worse =
        [Standing::Untested, Standing::Ejected(until), Standing::Ejected(later), Standing::Slow, Standing::Tried];
    for policy in Policy::ALL {
        for (i, best) in [Standing::Good].iter().chain(&worse).enumerate() {
            for rest in &worse[i.min(4)..] {
                let load = ServiceLoad::new(service(policy, THREE), rng);
                let wanted = THREE[1].0.parse().map(EndpointAddr::new).unwrap();
                let standing = |endpoint: &Rc<EndpointLoad>| if endpoint.addr() == wanted { *best } else { *rest };
                let held: Vec<Picked> = (0..9).map(|_| load.pick(Instant::now(), rng, standing).unwrap()).collect();
                let on_wanted = held.iter().filter(|picked| picked.endpoint().addr() == wanted).count();
                assert!(on_wanted == 9 || best == rest, "{best:?} against {rest:?}: {on_wanted} of 9");
            }
        }
    }
}

#[test]
fn those_that_are_left_share_evenly_what_another_does_not_get_and_others_who_may_go_there_see_nothing_of_it() {
    let rng = &mut fastrand::Rng::with_seed(7);
    for policy in Policy::ALL {
        let load = ServiceLoad::new(service(policy, THREE), rng);
        let out: EndpointAddr = THREE[1].0.parse().map(EndpointAddr::new).unwrap();
        let standing = |endpoint: &Rc<EndpointLoad>| {
            if endpoint.addr() == out { Standing::Ejected(Instant::now()) } else { Standing::Good }
        };
        let (mut counts, mut others) = (std::collections::BTreeMap::new(), std::collections::BTreeMap::new());
        for _ in 0..9_000 {
            *counts.entry(load.pick(Instant::now(), rng, standing).unwrap().endpoint().addr()).or_insert(0) += 1;
            *others.entry(load.pick(Instant::now(), rng, good).unwrap().endpoint().addr()).or_insert(0) += 1;
        }
        let counts: Vec<i32> = counts.into_values().collect();
        assert!(counts.len() == 2 && counts.iter().all(|n| (4_350..4_650).contains(n)), "{counts:?} under {policy:?}");
        assert_eq!(others.into_values().collect::<Vec<i32>>(), [3_000; 3], "under {policy:?}");
    }
}

#[test]
fn a_service_without_endpoints_picks_none() {
    let rng = &mut fastrand::Rng::with_seed(7);
    assert!(ServiceLoad::new(service(Policy::RoundRobin, &[]), rng).pick(Instant::now(), rng, good).is_none());
}

#[test]
fn an_endpoint_that_only_fails_takes_no_longer_for_that() {
    let rng = &mut fastrand::Rng::with_seed(7);
    let load = ServiceLoad::new(service(Policy::Ewma, &THREE[..1]), rng);
    let (begin, ms) = (Instant::now(), Duration::from_millis(1));
    let endpoint = &load.endpoints()[0];
    for n in 0..10_000 {
        load.answered(begin + ms * n, endpoint, 3 * ms, Outcome::Down);
    }
    let latency = endpoint.latency().unwrap();
    assert!((latency.as_secs_f64() / 0.003 - 1.0).abs() < 0.01, "{latency:?}");
    assert_eq!((load.weight(begin, endpoint), endpoint.failed()), (1.0, 10_000));
}

#[test]
fn after_a_pause_calls_are_in_turn_again_whoever_was_ahead() {
    let rng = &mut fastrand::Rng::with_seed(7);
    let (load, begin) = (ServiceLoad::new(service(Policy::LeastRequest, THREE), rng), Instant::now());
    let mut held: Vec<Picked> = (0..300).map(|_| load.pick(begin, rng, good).unwrap()).collect();
    let busy = held[0].endpoint().addr();
    held.retain(|picked| picked.endpoint().addr() == busy);
    for _ in 0..100 {
        assert_ne!(load.pick(begin, rng, good).unwrap().endpoint().addr(), busy);
    }
    held.clear();
    let mut counts = std::collections::BTreeMap::new();
    for n in 0..30 {
        let picked = load.pick(begin + Duration::from_secs(1) + Duration::from_millis(n), rng, good).unwrap();
        *counts.entry(picked.endpoint().addr()).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [10, 10, 10]);
}
