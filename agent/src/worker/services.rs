//! The Services as this worker was told of them. In: changes. Out: the load of a Service that a pod dials, and who is
//! concerned by a change. Load is counted only for what somebody dials: a cluster has far more Services than that.

use std::rc::Rc;
use std::sync::Arc;

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
    pub(super) fn apply(&mut self, changes: &[Change]) -> Concerned {
        let mut concerned = Concerned::default();
        for Change { addr, service } in changes {
            if let Some(load) = self.dialled.get(addr) {
                match service {
                    Some(service) if service.name == load.service().name => {
                        concerned.endpoints |= load.update(Arc::clone(service));
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
