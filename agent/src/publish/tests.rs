//! The order of steps, and what becomes of those that fail: workers and kernel as a log.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::*;
use crate::addr::EndpointAddr;
use crate::table::{Endpoint, Policy, Scope, ServicePortName};

fn addr(port: u16) -> ServiceAddr {
    ServiceAddr::new(SocketAddr::from(([10, 96, 0, 10], port)))
}

/// The Service at a port (which is its id too) has endpoints with these last bytes.
fn has(port: u16, endpoints: &[u8]) -> Change {
    let endpoint = |last: &u8| {
        let addr = EndpointAddr::new(SocketAddr::from(([10, 1, 0, *last], 8080)));
        Endpoint { addr, identity: addr.to_string().into(), place: None }
    };
    let name = ServicePortName { namespace: "shop".into(), service: "cart".into(), port: port.to_string().into() };
    let service = Service {
        id: port.into(),
        addr: addr(port),
        name,
        balancing: Policy::RoundRobin.into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        scope: Scope::All,
        usable: 0,
    };
    Change { addr: addr(port), service: Some(Arc::new(service)) }
}

fn gone(port: u16) -> Change {
    Change { addr: addr(port), service: None }
}

type Workers<'a> = Box<dyn FnMut(Arc<[Change]>) -> Taken<'a> + 'a>;
type Kernel<'a> = Box<dyn FnMut(KernelChange) -> anyhow::Result<()> + 'a>;

/// Workers and kernel as a log, with the kernel refusing while it is told to.
#[derive(Default)]
struct World {
    log: RefCell<Vec<String>>,
    refuses: Cell<bool>,
}

impl World {
    fn publisher(&self) -> Publisher<Workers<'_>, Kernel<'_>> {
        let workers = |changes: Arc<[Change]>| Taken { world: self, changes, polled: false };
        let kernel = |change: KernelChange| {
            anyhow::ensure!(!self.refuses.get(), "refused");
            self.log.borrow_mut().push(match change {
                KernelChange::Forget(addr) => format!("kernel -{}", addr.port()),
                KernelChange::Announce(addr, id) => {
                    assert_eq!(id, u32::from(addr.port()));
                    format!("kernel +{}", addr.port())
                }
            });
            Ok(())
        };
        Publisher::new(Box::new(workers), Box::new(kernel))
    }

    fn log(&self) -> Vec<String> {
        self.log.take()
    }
}

/// Ends at its second poll, as workers do that answer later.
struct Taken<'a> {
    world: &'a World,
    changes: Arc<[Change]>,
    polled: bool,
}

impl Future for Taken<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.polled {
            self.polled = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let change = |it: &Change| match &it.service {
            Some(service) => format!(" {}:{}", it.addr.port(), service.endpoints.len()),
            None => format!(" -{}", it.addr.port()),
        };
        let changes: String = self.changes.iter().map(change).collect();
        self.world.log.borrow_mut().push(format!("workers{changes}"));
        Poll::Ready(())
    }
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

/// Each batch of changes with the steps that come of it.
fn follows(batches: Vec<(Vec<Change>, &[&str])>) {
    let world = World::default();
    let mut publisher = world.publisher();
    run(async {
        for (changes, steps) in batches {
            publisher.publish(changes).await;
            assert_eq!(world.log(), steps);
            assert!(!publisher.is_behind());
        }
    });
}

#[test]
fn a_new_service_enters_the_kernel_after_the_workers_hold_it() {
    follows(vec![(vec![has(1, &[1])], &["workers 1:1", "kernel +1"])]);
}

#[test]
fn a_service_leaves_the_kernel_before_the_workers_drop_it() {
    follows(vec![
        (vec![has(1, &[1])], &["workers 1:1", "kernel +1"]),
        (vec![gone(1)], &["kernel -1", "workers -1"]),
        (vec![has(1, &[1])], &["workers 1:1", "kernel +1"]),
    ]);
}

#[test]
fn a_service_that_loses_its_last_endpoint_leaves_the_kernel_and_stays_with_the_workers() {
    follows(vec![
        (vec![has(1, &[])], &["workers 1:0"]),
        (vec![has(1, &[2])], &["workers 1:1", "kernel +1"]),
        (vec![has(1, &[])], &["kernel -1", "workers 1:0"]),
        (vec![gone(1)], &["workers -1"]),
    ]);
}

#[test]
fn changed_endpoints_concern_the_workers_only() {
    follows(vec![
        (vec![has(1, &[1]), has(2, &[1])], &["workers 1:1 2:1", "kernel +1", "kernel +2"]),
        (vec![has(1, &[1, 2])], &["workers 1:2"]),
    ]);
}

#[test]
fn where_nothing_changes_nobody_is_told() {
    follows(vec![(vec![], &[]), (vec![has(1, &[1])], &["workers 1:1", "kernel +1"]), (vec![], &[])]);
}

#[test]
fn departures_come_first_and_arrivals_last_in_order_of_address() {
    follows(vec![
        (
            vec![has(3, &[1]), has(1, &[1]), has(2, &[1])],
            &["workers 1:1 2:1 3:1", "kernel +1", "kernel +2", "kernel +3"],
        ),
        (
            vec![has(5, &[1]), gone(3), has(4, &[1]), gone(1)],
            &["kernel -1", "kernel -3", "workers -1 -3 4:1 5:1", "kernel +4", "kernel +5"],
        ),
    ]);
}

#[test]
fn what_the_kernel_refuses_to_announce_is_tried_again() {
    let world = World::default();
    let mut publisher = world.publisher();
    run(async {
        world.refuses.set(true);
        publisher.publish(vec![has(1, &[1])]).await;
        assert_eq!(world.log(), ["workers 1:1"]);
        assert!(publisher.is_behind());
        world.refuses.set(false);
        publisher.publish(vec![]).await;
        assert_eq!(world.log(), ["workers 1:1", "kernel +1"]);
        assert!(!publisher.is_behind());
    });
}

#[test]
fn the_workers_keep_what_the_kernel_would_not_forget() {
    let world = World::default();
    let mut publisher = world.publisher();
    run(async {
        publisher.publish(vec![has(1, &[1]), has(2, &[1])]).await;
        world.log();
        world.refuses.set(true);
        publisher.publish(vec![gone(1), has(2, &[1, 2])]).await;
        assert_eq!(world.log(), ["workers 2:2"]);
        assert!(publisher.is_behind());
        world.refuses.set(false);
        publisher.publish(vec![has(2, &[1])]).await;
        assert_eq!(world.log(), ["kernel -1", "workers -1 2:1"]);
        assert!(!publisher.is_behind());
    });
}

#[test]
fn a_service_that_comes_back_before_the_kernel_would_forget_it_just_stays() {
    let world = World::default();
    let mut publisher = world.publisher();
    run(async {
        publisher.publish(vec![has(1, &[1])]).await;
        world.log();
        world.refuses.set(true);
        publisher.publish(vec![gone(1)]).await;
        world.refuses.set(false);
        publisher.publish(vec![has(1, &[2])]).await;
        assert_eq!(world.log(), ["workers 1:1"]);
        assert!(!publisher.is_behind());
    });
}

#[test]
fn a_publication_that_was_given_up_is_made_up_for() {
    let world = World::default();
    let mut publisher = world.publisher();
    run(async {
        publisher.publish(vec![has(1, &[1])]).await;
        world.log();
        // The workers may or may not have taken the second one when the wait for them ends.
        tokio::select! {
            biased;
            () = publisher.publish(vec![has(2, &[1]), has(3, &[1])]) => panic!("the workers have not answered yet"),
            () = std::future::ready(()) => {}
        }
        assert!(publisher.is_behind());
        publisher.publish(vec![gone(2)]).await;
        assert_eq!(world.log(), ["workers -2 3:1", "kernel +3"]);
    });
}
