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

/// One line for each Service that comes, goes or has other endpoints.
fn log_changes(old: &Table, new: &Table) {
    for gone in old.services.values().filter(|it| !new.services.contains_key(&it.addr)) {
        tracing::info!(service = %gone.name, addr = %gone.addr, "Service is no longer redirected");
    }
    for service in new.services.values() {
        let before = old.services.get(&service.addr);
        if before.is_none_or(|it| it.endpoints != service.endpoints) {
            let endpoints = service.endpoints.len();
            tracing::info!(service = %service.name, addr = %service.addr, endpoints, "endpoints have changed");
        }
    }
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
            if let Some(old) = self.published.take() {
                log_changes(&old, &table);
            }
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::net::SocketAddr;

    use super::*;
    use crate::addr::EndpointAddr;
    use crate::table::{Endpoint, Policy, Service, ServicePortName};

    fn addr(port: u16) -> ServiceAddr {
        ServiceAddr::new(SocketAddr::from(([10, 96, 0, 10], port)))
    }

    /// A table of Services, each a port (and id) with the last byte of its endpoints.
    fn table(services: &[(u16, &[u8])]) -> Table {
        let endpoint = |last: &u8| {
            let addr = EndpointAddr::new(SocketAddr::from(([10, 1, 0, *last], 8080)));
            Endpoint { addr, identity: addr.to_string().into() }
        };
        let service = |(port, endpoints): &(u16, &[u8])| {
            let name =
                ServicePortName { namespace: "shop".into(), service: "cart".into(), port: port.to_string().into() };
            let endpoints = endpoints.iter().map(endpoint).collect();
            let (id, addr) = (u32::from(*port), addr(*port));
            (addr, Arc::new(Service { id, addr, name, policy: Policy::RoundRobin, endpoints }))
        };
        Table { services: services.iter().map(service).collect() }
    }

    fn workers(services: &[(u16, &[u8])]) -> Step {
        Step::Workers(Arc::new(table(services)))
    }

    #[test]
    fn a_new_service_enters_the_kernel_after_the_workers_hold_it() {
        let steps = plan(&table(&[]), &table(&[(1, &[1])]));
        assert_eq!(steps, [workers(&[(1, &[1])]), Step::AnnounceInKernel(addr(1), 1)]);
    }

    #[test]
    fn a_service_leaves_the_kernel_before_the_workers_drop_it() {
        assert_eq!(plan(&table(&[(1, &[1])]), &table(&[])), [Step::ForgetInKernel(addr(1)), workers(&[])]);
    }

    #[test]
    fn a_service_that_loses_its_last_endpoint_leaves_the_kernel_and_stays_with_the_workers() {
        let steps = plan(&table(&[(1, &[1])]), &table(&[(1, &[])]));
        assert_eq!(steps, [Step::ForgetInKernel(addr(1)), workers(&[(1, &[])])]);
        let steps = plan(&table(&[(1, &[])]), &table(&[(1, &[2])]));
        assert_eq!(steps, [workers(&[(1, &[2])]), Step::AnnounceInKernel(addr(1), 1)]);
        assert_eq!(plan(&table(&[]), &table(&[(1, &[])])), [workers(&[(1, &[])])]);
    }

    #[test]
    fn changed_endpoints_concern_the_workers_only() {
        assert_eq!(plan(&table(&[(1, &[1])]), &table(&[(1, &[1, 2])])), [workers(&[(1, &[1, 2])])]);
    }

    #[test]
    fn what_is_unchanged_takes_no_step() {
        assert_eq!(plan(&table(&[(1, &[1]), (2, &[])]), &table(&[(1, &[1]), (2, &[])])), []);
    }

    #[test]
    fn departures_come_first_and_arrivals_last_in_order_of_address() {
        let new: &[(u16, &[u8])] = &[(4, &[1]), (2, &[1]), (5, &[1])];
        let expected = [
            Step::ForgetInKernel(addr(1)),
            Step::ForgetInKernel(addr(3)),
            workers(new),
            Step::AnnounceInKernel(addr(4), 4),
            Step::AnnounceInKernel(addr(5), 5),
        ];
        assert_eq!(plan(&table(&[(3, &[1]), (1, &[1]), (2, &[1])]), &table(new)), expected);
    }

    /// Workers and kernel as a log, with the kernel refusing while it is told to.
    #[derive(Default)]
    struct World {
        log: RefCell<Vec<String>>,
        refuses: RefCell<bool>,
    }

    impl World {
        fn publisher<'a>(
            &'a self,
        ) -> Publisher<impl FnMut(Arc<Table>) -> Taken<'a>, impl FnMut(KernelChange) -> anyhow::Result<()>> {
            let workers = |table: Arc<Table>| Taken { world: self, table, polled: false };
            let kernel = |change: KernelChange| {
                anyhow::ensure!(!*self.refuses.borrow(), "refused");
                self.log.borrow_mut().push(match change {
                    KernelChange::Forget(addr) => format!("-{}", addr.port()),
                    KernelChange::Announce(addr, _) => format!("+{}", addr.port()),
                });
                Ok(())
            };
            Publisher::new(workers, kernel)
        }

        fn log(&self) -> Vec<String> {
            self.log.take()
        }
    }

    /// Ends at its second poll, as workers do that answer later.
    struct Taken<'a> {
        world: &'a World,
        table: Arc<Table>,
        polled: bool,
    }

    impl Future for Taken<'_> {
        type Output = ();

        fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
            if !self.polled {
                self.polled = true;
                cx.waker().wake_by_ref();
                return std::task::Poll::Pending;
            }
            let mut ports: Vec<u16> = self.table.services.keys().map(|addr| addr.port()).collect();
            ports.sort_unstable();
            self.world.log.borrow_mut().push(format!("workers {ports:?}"));
            std::task::Poll::Ready(())
        }
    }

    fn run(future: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
    }

    #[test]
    fn the_kernel_is_told_only_when_all_workers_have_answered() {
        let world = World::default();
        let mut publisher = world.publisher();
        run(async {
            publisher.publish(&table(&[(1, &[1])])).await;
            assert_eq!(world.log(), ["workers [1]", "+1"]);
            publisher.publish(&table(&[(2, &[1])])).await;
            assert_eq!(world.log(), ["-1", "workers [2]", "+2"]);
            publisher.publish(&table(&[(2, &[1])])).await;
            assert_eq!(world.log(), [""; 0]);
        });
    }

    #[test]
    fn what_the_kernel_refuses_to_announce_is_tried_again() {
        let world = World::default();
        let mut publisher = world.publisher();
        run(async {
            world.refuses.replace(true);
            publisher.publish(&table(&[(1, &[1])])).await;
            assert_eq!(world.log(), ["workers [1]"]);
            world.refuses.replace(false);
            publisher.publish(&table(&[(1, &[1])])).await;
            assert_eq!(world.log(), ["+1"]);
        });
    }

    #[test]
    fn the_workers_keep_what_the_kernel_would_not_forget() {
        let world = World::default();
        let mut publisher = world.publisher();
        run(async {
            publisher.publish(&table(&[(1, &[1]), (2, &[1])])).await;
            world.log();
            world.refuses.replace(true);
            publisher.publish(&table(&[(2, &[1, 2])])).await;
            publisher.publish(&table(&[(2, &[1, 2])])).await;
            assert_eq!(world.log(), ["workers [1, 2]"]);
            world.refuses.replace(false);
            publisher.publish(&table(&[(2, &[1, 2])])).await;
            assert_eq!(world.log(), ["-1", "workers [2]"]);
        });
    }

    #[test]
    fn a_publication_that_was_given_up_is_made_up_for() {
        let world = World::default();
        let mut publisher = world.publisher();
        run(async {
            publisher.publish(&table(&[(1, &[1])])).await;
            world.log();
            // The workers may or may not have taken the second table when the wait for them ends.
            let second = table(&[(1, &[1]), (2, &[1])]);
            tokio::select! {
                biased;
                () = publisher.publish(&second) => panic!("the workers have not answered yet"),
                () = std::future::ready(()) => {}
            }
            publisher.publish(&table(&[(1, &[1])])).await;
            assert_eq!(world.log(), ["workers [1]"]);
        });
    }
}
