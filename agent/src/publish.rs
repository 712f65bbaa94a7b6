//! Brings a new table to the workers and to the kernel, in the order that never sends a client to a worker that does
//! not know its Service. In: tables. Out: steps, and their execution over two functions. It builds no table.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::addr::ServiceAddr;
use crate::table::Table;

/// One step from an old table to a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// New connections to the address are left alone from now on.
    ForgetInKernel(ServiceAddr),
    /// All workers hold the table when the step ends.
    Workers(Arc<Table>),
    /// New connections to the address are redirected from now on.
    AnnounceInKernel(ServiceAddr, u32),
}

/// The steps from one table to another: out of the kernel, to the workers, into the kernel. The kernel knows exactly
/// the Services that have endpoints; what does not change takes no step.
pub fn plan(old: &Table, new: &Table) -> Vec<Step> {
    steps(&announced(old), Some(old), new)
}

/// From what the kernel holds in truth, and what the workers hold if that is known.
fn steps(in_kernel: &BTreeMap<ServiceAddr, u32>, old: Option<&Table>, new: &Table) -> Vec<Step> {
    let wanted = announced(new);
    let forget = in_kernel.keys().filter(|addr| !wanted.contains_key(addr)).map(|addr| Step::ForgetInKernel(*addr));
    let workers = (old != Some(new)).then(|| Step::Workers(Arc::new(new.clone())));
    let missing = wanted.iter().filter(|(addr, id)| in_kernel.get(addr) != Some(id));
    let announce = missing.map(|(addr, id)| Step::AnnounceInKernel(*addr, *id));
    forget.chain(workers).chain(announce).collect()
}

/// What the kernel is to know of a table.
fn announced(table: &Table) -> BTreeMap<ServiceAddr, u32> {
    let with_endpoints = table.services.values().filter(|service| !service.endpoints.is_empty());
    with_endpoints.map(|service| (service.addr, service.id)).collect()
}

/// One change of the kernel's SERVICES map. To forget what is not there is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelChange {
    Forget(ServiceAddr),
    Announce(ServiceAddr, u32),
}

/// Carries plans out, and remembers what was carried out in truth.
pub struct Publisher<W, K> {
    workers: W,
    kernel: K,
    /// What all workers hold; None while that is uncertain.
    published: Option<Table>,
    /// What the kernel's map holds.
    in_kernel: BTreeMap<ServiceAddr, u32>,
}

impl<W, K, F> Publisher<W, K>
where
    W: FnMut(Arc<Table>) -> F,
    F: Future<Output = ()>,
    K: FnMut(KernelChange) -> anyhow::Result<()>,
{
    /// `workers` gives a table to all workers, and its future ends when each has taken it; before, they hold an empty
    /// one. `kernel` changes the map, which is empty now.
    pub fn new(workers: W, kernel: K) -> Self {
        Self { workers, kernel, published: Some(Table::default()), in_kernel: BTreeMap::new() }
    }

    /// Brings the table to workers and kernel. What the kernel refuses is logged and tried again with the next table,
    /// be it the same one. A dropped future leaves a state from which the next call goes on.
    pub async fn publish(&mut self, table: &Table) {
        for step in steps(&self.in_kernel, self.published.as_ref(), table) {
            match step {
                Step::ForgetInKernel(addr) => self.forget(addr),
                Step::Workers(table) => self.give_to_workers(table).await,
                Step::AnnounceInKernel(addr, id) => self.announce(addr, id),
            }
        }
    }

    fn forget(&mut self, addr: ServiceAddr) {
        match (self.kernel)(KernelChange::Forget(addr)) {
            Ok(()) => {
                self.in_kernel.remove(&addr);
            }
            Err(error) => {
                tracing::warn!(%addr, error = format!("{error:#}"), "Service stays in the kernel's map until the next change");
            }
        }
    }

    async fn give_to_workers(&mut self, mut table: Arc<Table>) {
        // The kernel sends clients to what it would not forget: the workers must not drop that.
        for (addr, old) in self.published.iter().flat_map(|it| &it.services) {
            if self.in_kernel.contains_key(addr) && !table.services.contains_key(addr) {
                Arc::make_mut(&mut table).services.insert(*addr, old.clone());
            }
        }
        if self.published.as_ref() != Some(&*table) {
            self.published = None;
            (self.workers)(table.clone()).await;
            self.published = Some(Arc::unwrap_or_clone(table));
        }
    }

    fn announce(&mut self, addr: ServiceAddr, id: u32) {
        match (self.kernel)(KernelChange::Announce(addr, id)) {
            Ok(()) => {
                self.in_kernel.insert(addr, id);
            }
            Err(error) => {
                tracing::warn!(%addr, error = format!("{error:#}"), "Service stays with kube-proxy until the next change");
            }
        }
    }
}
