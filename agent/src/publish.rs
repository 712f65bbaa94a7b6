//! Brings a new table to the workers and to the kernel, in the order that never sends a client to a worker that does
//! not know its Service. In: tables. Out: steps, and their execution over two functions. It builds no table.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::addr::ServiceAddr;
use crate::table::{Service, Table};

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
    steps(&announced(old), old, new)
}

/// Like [`plan`], from what the kernel holds in truth.
fn steps(in_kernel: &BTreeMap<ServiceAddr, u32>, old: &Table, new: &Table) -> Vec<Step> {
    let wanted = announced(new);
    let forget = in_kernel.keys().filter(|addr| !wanted.contains_key(addr)).map(|addr| Step::ForgetInKernel(*addr));
    let workers = (old != new).then(|| Step::Workers(Arc::new(new.clone())));
    let missing = wanted.iter().filter(|(addr, id)| in_kernel.get(addr) != Some(id));
    let announce = missing.map(|(addr, id)| Step::AnnounceInKernel(*addr, *id));
    forget.chain(workers).chain(announce).collect()
}

/// What the kernel is to know of a table.
fn announced(table: &Table) -> BTreeMap<ServiceAddr, u32> {
    let with_endpoints = table.services.values().filter(|service| !service.endpoints.is_empty());
    with_endpoints.map(|service| (service.addr, service.id)).collect()
}

/// One change of the kernel's SERVICES map. Forgetting what is not there is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelChange {
    Forget(ServiceAddr),
    Announce(ServiceAddr, u32),
}

/// Carries plans out, and remembers what was carried out in truth.
pub struct Publisher<W, K> {
    workers: W,
    kernel: K,
    /// What the workers hold.
    published: Table,
    /// What the kernel's map holds.
    in_kernel: BTreeMap<ServiceAddr, u32>,
}

impl<W, K, F> Publisher<W, K>
where
    W: FnMut(Arc<Table>) -> F,
    F: Future<Output = ()>,
    K: FnMut(KernelChange) -> anyhow::Result<()>,
{
    /// `workers` gives all workers a table, its future ends when each has taken it. `kernel` changes the map, which is
    /// empty now.
    pub fn new(workers: W, kernel: K) -> Self {
        Self { workers, kernel, published: Table::default(), in_kernel: BTreeMap::new() }
    }

    /// Brings the table to workers and kernel. What the kernel refuses is logged and tried again with the next table.
    /// A dropped future leaves a state from which the next call goes on.
    pub async fn publish(&mut self, table: &Table) {
        let target = self.with_those_stuck(table);
        for step in steps(&self.in_kernel, &self.published, &target) {
            match step {
                Step::ForgetInKernel(addr) => self.forget(addr),
                Step::Workers(_) => self.to_workers(table).await,
                Step::AnnounceInKernel(addr, id) => self.announce(addr, id),
            }
        }
    }
}
