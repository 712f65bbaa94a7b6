//! The Services as this worker was told of them. In: changes. Out: the load of a Service that a pod dials, and who is
//! concerned by a change. Load is counted only for what somebody dials: a cluster has far more Services than that.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::addr::ServiceAddr;
use crate::balance::ServiceLoad;
use crate::table::{Change, Service};

#[derive(Default)]
pub(super) struct Services {
    listed: FxHashMap<ServiceAddr, Arc<Service>>,
    dialled: FxHashMap<ServiceAddr, Rc<ServiceLoad>>,
}

/// What a splitter may have to do with.
#[derive(Default)]
pub(super) struct Concerned {
    /// Services that are no longer ours, or another's at the same address.
    pub(super) vanished: Vec<Rc<ServiceLoad>>,
    /// Some endpoint that somebody holds is no longer current.
    pub(super) endpoints: bool,
}

impl Services {
    pub(super) fn apply(&mut self, now: Instant, changes: &[Change]) -> Concerned {
        let mut concerned = Concerned::default();
        for Change { addr, service } in changes {
            if let Some(load) = self.dialled.get(addr) {
                match service {
                    Some(service) if service.name == load.service().name => {
                        concerned.endpoints |= load.update(now, Arc::clone(service));
                    }
                    Some(_) | None => concerned.vanished.extend(self.dialled.remove(addr)),
                }
            }
            match service {
                Some(service) => drop(self.listed.insert(*addr, Arc::clone(service))),
                None => drop(self.listed.remove(addr)),
            }
        }
        concerned
    }

    /// The Service at an address, if it has endpoints.
    pub(super) fn dial(&mut self, addr: ServiceAddr, rng: &mut fastrand::Rng) -> Option<Rc<ServiceLoad>> {
        let listed = self.listed.get(&addr).filter(|service| !service.endpoints.is_empty())?;
        let load = self.dialled.entry(addr).or_insert_with(|| ServiceLoad::new(Arc::clone(listed), rng));
        Some(Rc::clone(load))
    }

    /// All that were dialled since they were listed.
    pub(super) fn dialled(&self) -> impl Iterator<Item = &Rc<ServiceLoad>> {
        self.dialled.values()
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::addr::EndpointAddr;
    use crate::balance::Standing;
    use crate::table::{Endpoint, Policy, Scope, ServicePortName};

    fn addr() -> ServiceAddr {
        ServiceAddr::new(([10, 96, 0, 10], 50051).into())
    }

    fn listed(name: &str, endpoints: &[u8]) -> [Change; 1] {
        let endpoint = |last: &u8| {
            let addr = EndpointAddr::new(([10, 1, 0, *last], 1).into());
            Endpoint { addr, identity: addr.to_string().into(), place: None }
        };
        let service = Service {
            id: 1,
            addr: addr(),
            name: ServicePortName { namespace: "shop".into(), service: name.into(), port: "".into() },
            balancing: Policy::RoundRobin.into(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            scope: Scope::All,
            usable: 0,
        };
        [Change { addr: addr(), service: Some(Arc::new(service)) }]
    }

    fn concerns(services: &mut Services, changes: &[Change]) -> (bool, usize) {
        let Concerned { vanished, endpoints } = services.apply(Instant::now(), changes);
        (endpoints, vanished.len())
    }

    #[test]
    fn load_is_counted_for_what_was_dialled_only() {
        let (mut services, rng) = (Services::default(), &mut fastrand::Rng::with_seed(1));
        assert!(services.dial(addr(), rng).is_none(), "not listed");
        services.apply(Instant::now(), &listed("cart", &[]));
        assert!(services.dial(addr(), rng).is_none(), "without endpoints");
        services.apply(Instant::now(), &listed("cart", &[1, 2]));
        assert_eq!(services.dialled().count(), 0);
        let load = services.dial(addr(), rng).unwrap();
        assert_eq!(load.endpoints().len(), 2);
        assert!(Rc::ptr_eq(&load, &services.dial(addr(), rng).unwrap()), "all pods share it");
        services.apply(Instant::now(), &listed("cart", &[1, 2, 3]));
        assert_eq!(load.endpoints().len(), 3, "it follows the changes");
    }

    #[test]
    fn splitters_are_told_only_when_an_endpoint_leaves_that_somebody_holds() {
        let (mut services, rng) = (Services::default(), &mut fastrand::Rng::with_seed(1));
        services.apply(Instant::now(), &listed("cart", &[1, 2]));
        assert_eq!(concerns(&mut services, &listed("cart", &[2])), (false, 0), "nobody has dialled it");
        let load = services.dial(addr(), rng).unwrap();
        assert_eq!(concerns(&mut services, &listed("cart", &[2, 3])), (false, 0), "a new one");
        assert_eq!(concerns(&mut services, &listed("cart", &[2])), (false, 0), "one without streams");
        let held = load.pick(Instant::now(), rng, |_| Standing::Good).unwrap();
        assert_eq!(concerns(&mut services, &listed("cart", &[4])), (true, 0));
        assert!(!held.endpoint().is_current());
    }

    #[test]
    fn an_address_that_is_anothers_has_lost_its_service() {
        let (mut services, rng) = (Services::default(), &mut fastrand::Rng::with_seed(1));
        services.apply(Instant::now(), &listed("cart", &[1]));
        let cart = services.dial(addr(), rng).unwrap();
        assert_eq!(concerns(&mut services, &listed("till", &[1])), (false, 1));
        assert!(!Rc::ptr_eq(&cart, &services.dial(addr(), rng).unwrap()));
        assert_eq!(concerns(&mut services, &[Change { addr: addr(), service: None }]), (false, 1));
        assert!(services.dial(addr(), rng).is_none());
        assert_eq!(concerns(&mut services, &[Change { addr: addr(), service: None }]), (false, 0));
    }
}
