use super::*;
use crate::addr::ServiceAddr;
use crate::table::{Endpoint, Policy, Scope, Service, ServicePortName};
use std::sync::Arc;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn listing(id: u8, endpoints: &[(&str, &str)]) -> Arc<Service> {
    let endpoint = |(addr, identity): &(&str, &str)| Endpoint {
        addr: EndpointAddr::new(addr.parse().unwrap()),
        identity: (*identity).into(),
        place: None,
    };
    Arc::new(Service {
        id: id.into(),
        addr: ServiceAddr::new(([10, 96, 0, id], 50051).into()),
        name: ServicePortName { namespace: "default".into(), service: "echo".into(), port: "grpc".into() },
        balancing: Policy::RoundRobin.into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        scope: Scope::All,
        usable: 0,
    })
}

const TWO: &[(&str, &str)] = &[("10.1.0.1:1", "a"), ("10.1.0.2:1", "b")];

fn world() -> (Rc<ServiceLoad>, Reach, fastrand::Rng, Instant) {
    let mut rng = fastrand::Rng::with_seed(7);
    (ServiceLoad::new(listing(1, TWO), &mut rng), Reach::default(), rng, Instant::now())
}

fn until(reach: &Reach, endpoint: &Rc<EndpointLoad>) -> Instant {
    let Standing::Ejected(until) = reach.standing(endpoint) else { panic!("it is not ejected") };
    until
}

#[test]
fn back_offs_double_from_one_second_to_a_minute_and_a_quarter_of_each_is_chance() {
    let (service, reach, mut rng, mut now) = world();
    let endpoint = &service.endpoints()[0];
    let mut back_offs = Vec::new();
    for _ in 0..40 {
        reach.failed(now, endpoint, &mut rng);
        back_offs.push(until(&reach, endpoint) - now);
        now = until(&reach, endpoint);
    }
    for (back_off, seconds) in back_offs.iter().zip([1, 2, 4, 8, 16, 32].into_iter().chain(std::iter::repeat(60))) {
        let nominal = seconds * SECOND;
        assert!((nominal * 3 / 4..=nominal).contains(back_off), "{back_off:?} of {nominal:?}");
    }
    assert_ne!(back_offs[20], back_offs[21]);
    assert_eq!(reach.ejected()[0].failures, 40);
}

#[test]
fn a_success_forgets_all_failures() {
    let (service, reach, mut rng, now) = world();
    let endpoint = &service.endpoints()[0];
    for n in 0..5 {
        reach.failed(now + n * MINUTE, endpoint, &mut rng);
    }
    reach.connected(endpoint);
    assert!(reach.is_clear());
    let later = now + 5 * MINUTE;
    reach.failed(later, endpoint, &mut rng);
    assert!(until(&reach, endpoint) <= later + FIRST_BACK_OFF);
}

#[test]
fn dials_that_fail_together_are_one_failure() {
    let (service, reach, mut rng, now) = world();
    let endpoint = &service.endpoints()[0];
    reach.failed(now, endpoint, &mut rng);
    let first = until(&reach, endpoint);
    for _ in 0..9 {
        reach.failed(first - Duration::from_nanos(1), endpoint, &mut rng);
    }
    assert_eq!((until(&reach, endpoint), reach.ejected()[0].failures), (first, 1));
}

#[test]
fn after_its_back_off_an_endpoint_is_probed_once_until_the_probe_has_ended() {
    let (service, reach, mut rng, now) = world();
    let endpoints = service.endpoints();
    reach.failed(now, &endpoints[0], &mut rng);
    let due = until(&reach, &endpoints[0]);
    assert!(reach.probe(due - Duration::from_nanos(1), &service).is_none());
    assert!(Rc::ptr_eq(&reach.probe(due, &service).unwrap(), &endpoints[0]));
    // It is still ejected, and has its probe.
    assert_eq!(until(&reach, &endpoints[0]), due);
    assert!(!reach.is_due(due + SECOND, &endpoints[0]));
    assert!(reach.probe(due + SECOND, &service).is_none());
    reach.failed(due + SECOND, &endpoints[0], &mut rng);
    let next = until(&reach, &endpoints[0]);
    assert!(next > due + 2 * SECOND && reach.probe(next, &service).is_some());
    // Nothing was ever heard of that one.
    assert!(reach.probe(next + PROBE_AT_MOST, &service).is_some());
}

#[test]
fn a_stream_of_one_service_causes_no_dial_for_another() {
    let (service, reach, mut rng, now) = world();
    let other = ServiceLoad::new(listing(2, TWO), &mut rng);
    reach.failed(now, &service.endpoints()[0], &mut rng);
    assert!(reach.probe(now + MINUTE, &other).is_none());
    assert!(reach.probe(now + MINUTE, &service).is_some());
}

#[test]
fn several_endpoints_are_probed_one_after_the_other_in_the_order_of_their_back_offs() {
    let (service, reach, mut rng, now) = world();
    let endpoints = service.endpoints();
    reach.failed(now, &endpoints[1], &mut rng);
    reach.failed(now + SECOND, &endpoints[0], &mut rng);
    let probed: Vec<_> = std::iter::from_fn(|| reach.probe(now + MINUTE, &service)).map(|e| e.addr()).collect();
    assert_eq!(probed, [endpoints[1].addr(), endpoints[0].addr()]);
}

#[test]
fn what_one_pod_cannot_reach_is_no_other_pods_affair() {
    let (service, reach, mut rng, now) = world();
    let other = Reach::default();
    reach.failed(now, &service.endpoints()[0], &mut rng);
    assert!(!reach.is_clear() && other.is_clear());
    assert_eq!(other.standing(&service.endpoints()[0]), Standing::Good);
}

#[test]
fn an_endpoint_that_left_is_forgotten_and_one_with_another_identity_at_its_address_is_fresh() {
    let (service, reach, mut rng, now) = world();
    let old = Rc::clone(&service.endpoints()[0]);
    reach.failed(now, &old, &mut rng);
    service.update(Instant::now(), listing(1, &[("10.1.0.1:1", "c"), TWO[1]]));
    assert_eq!(reach.ejected(), []);
    reach.prune();
    assert!(reach.is_clear());
    assert_eq!(reach.standing(&service.endpoints()[0]), Standing::Good);
    // A dial that was under way when it left.
    reach.failed(now, &old, &mut rng);
    assert!(reach.is_clear());
}

#[test]
fn a_service_that_vanished_takes_its_ejected_endpoints_along() {
    let (service, reach, mut rng, now) = world();
    reach.failed(now, &service.endpoints()[0], &mut rng);
    drop(service);
    assert_eq!(reach.ejected(), []);
    reach.prune();
    assert!(reach.is_clear());
}

#[test]
fn what_was_ejected_for_failing_is_back_with_the_first_call_after_ejection_was_switched_off() {
    let (service, reach, mut rng, now) = world();
    let failing = Rc::clone(&service.endpoints()[0]);
    let fail = |rng: &mut _| reach.ended(now, &service, &failing, now, Outcome::Down, rng);
    (0..5).for_each(|_| fail(&mut rng));
    assert_eq!(reach.ejected().len(), 1);
    assert!(reach.trial(now, &service).is_none() && !reach.is_clear(), "it backs off");
    let mut off = Service::clone(&listing(1, TWO));
    (off.balancing.ejection.failures, off.balancing.ejection.rate) = (0, 0);
    service.update(now, Arc::new(off));
    assert!(reach.trial(now, &service).is_none(), "no trial: it is back");
    assert!(reach.is_clear() && reach.ejected().is_empty());
    (0..100).for_each(|_| fail(&mut rng));
    assert!(reach.is_clear());
    service.update(now, listing(1, TWO));
    (0..5).for_each(|_| fail(&mut rng));
    assert_eq!(reach.ejected().len(), 1, "it is on again");
    let changes: Vec<_> = std::iter::from_fn(|| reach.poll_change()).collect();
    let addr = failing.addr();
    assert_eq!(
        changes,
        [
            Change::Ejected(addr, Cause::Failing),
            Change::Back(addr, Cause::Failing),
            Change::Ejected(addr, Cause::Failing)
        ]
    );
}

#[test]
fn an_ejection_and_its_end_are_told_once_each() {
    let (service, reach, mut rng, now) = world();
    let endpoint = &service.endpoints()[0];
    reach.connected(endpoint);
    for n in 0..4 {
        reach.failed(now + n * MINUTE, endpoint, &mut rng);
    }
    reach.connected(endpoint);
    reach.connected(endpoint);
    let told: Vec<_> = std::iter::from_fn(|| reach.poll_change()).collect();
    assert_eq!(
        told,
        [Change::Ejected(endpoint.addr(), Cause::Unreachable), Change::Back(endpoint.addr(), Cause::Unreachable)]
    );
}
