//! Brings changed Services to the workers and to the kernel, in the order that never sends a client to a worker that
//! does not know its Service: out of the kernel, to the workers, into the kernel. In: changes. Out: calls of two
//! functions. It knows what the kernel holds, and what could not be carried out yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::addr::ServiceAddr;
use crate::table::{Change, Service};

/// One change of the kernel's SERVICES map. To forget what is not there is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelChange {
    /// New connections to the address are left alone from now on.
    Forget(ServiceAddr),
    /// New connections to the address are redirected from now on.
    Announce(ServiceAddr, u32),
}

/// Carries changes out, and those that it could not with the next ones.
pub struct Publisher<W, K> {
    workers: W,
    kernel: K,
    /// What the kernel's map holds.
    in_kernel: HashMap<ServiceAddr, u32>,
    /// What workers and kernel are to hold and may not hold yet.
    unsettled: BTreeMap<ServiceAddr, Option<Arc<Service>>>,
}

/// The kernel knows exactly the Services that have endpoints.
fn announced(service: Option<&Arc<Service>>) -> Option<u32> {
    service.filter(|it| !it.endpoints.is_empty()).map(|it| it.id)
}

impl<W, K, F> Publisher<W, K>
where
    W: FnMut(Arc<[Change]>) -> F,
    F: Future<Output = ()>,
    K: FnMut(KernelChange) -> anyhow::Result<()>,
{
    /// `workers` gives changes to all workers, and its future ends when each has taken them; a change that they know
    /// already is none. `kernel` changes the map, which is empty now.
    pub fn new(workers: W, kernel: K) -> Self {
        Self { workers, kernel, in_kernel: HashMap::new(), unsettled: BTreeMap::new() }
    }

    /// Brings changes to workers and kernel. What the kernel refuses is logged and tried again by the next call, be it
    /// one without changes. A dropped future leaves a state from which the next call goes on.
    pub async fn publish(&mut self, changes: Vec<Change>) {
        self.unsettled.extend(changes.into_iter().map(|it| (it.addr, it.service)));
        if !self.unsettled.is_empty() {
            self.settle().await;
        }
    }

    #[tracing::instrument(name = "publish", level = "debug", skip_all, fields(service_ports = self.unsettled.len()))]
    async fn settle(&mut self) {
        for (addr, service) in &self.unsettled {
            if self.in_kernel.contains_key(addr) && announced(service.as_ref()).is_none() {
                match (self.kernel)(KernelChange::Forget(*addr)) {
                    Ok(()) => drop(self.in_kernel.remove(addr)),
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(%addr, error, "Service stays in the kernel's map until the next change");
                    }
                }
            }
        }
        // The kernel sends clients to what it would not forget: the workers must not drop that.
        let held = |addr, service: &Option<_>| service.is_none() && self.in_kernel.contains_key(addr);
        let to_workers = self.unsettled.iter().filter(|(addr, service)| !held(addr, service));
        let to_workers = to_workers.map(|(addr, service)| Change { addr: *addr, service: service.clone() });
        let to_workers: Arc<[Change]> = to_workers.collect();
        if !to_workers.is_empty() {
            (self.workers)(to_workers).await;
        }

        let (kernel, in_kernel) = (&mut self.kernel, &mut self.in_kernel);
        self.unsettled.retain(|addr, service| match announced(service.as_ref()) {
            wanted if wanted == in_kernel.get(addr).copied() => false,
            None => true,
            Some(id) => match kernel(KernelChange::Announce(*addr, id)) {
                Ok(()) => {
                    in_kernel.insert(*addr, id);
                    false
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(%addr, error, "Service stays with kube-proxy until the next change");
                    true
                }
            },
        });
    }

    /// Whether something could not be carried out, and waits for the next call.
    pub fn is_behind(&self) -> bool {
        !self.unsettled.is_empty()
    }
}

#[cfg(test)]
mod tests;
