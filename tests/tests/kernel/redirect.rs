//! Connects that are redirected, and what the application and the agent see of them.

use std::net::{SocketAddr, TcpStream};
use std::thread;

use sluice_agent::intercept::Verdict;
use socket2::{Domain, Protocol, Socket, Type};

use crate::world::{CLUSTER_IP4, CLUSTER_IP6, Family, accept, disconnect, in_world, peer, tcp};

#[test]
fn an_ipv4_connect_to_a_service_arrives_at_the_pods_listener() {
    in_world(|world| {
        let mut agent = world.agent();
        let (_server, service) = world.server(CLUSTER_IP4);
        agent.serve(service);

        let client = TcpStream::connect(service).unwrap();

        assert_eq!(client.peer_addr().unwrap(), service, "the application sees what it dialled");
        assert_eq!(agent.accept(Family::V4, world.netns).unwrap().socket_addr(), service);
        for verdict in [Verdict::Redirected, Verdict::FlowRecorded, Verdict::PeerRestored] {
            assert_eq!(agent.count(verdict), 1, "{}", verdict.name());
        }
    });
}

#[test]
fn an_ipv6_connect_to_a_service_arrives_at_the_pods_listener() {
    in_world(|world| {
        let mut agent = world.agent();
        let (_server, service) = world.server(CLUSTER_IP6);
        agent.serve(service);

        let client = TcpStream::connect(service).unwrap();

        assert_eq!(client.peer_addr().unwrap(), service);
        assert_eq!(agent.accept(Family::V6, world.netns).unwrap().socket_addr(), service);
        assert_eq!(agent.count(Verdict::PeerRestored), 1);
    });
}

#[test]
fn a_v4_mapped_connect_is_the_ipv4_connect() {
    in_world(|world| {
        let mut agent = world.agent();
        let (_server, service) = world.server(CLUSTER_IP4);
        agent.serve(service);
        let mapped: SocketAddr = format!("[::ffff:{CLUSTER_IP4}]:{}", service.port()).parse().unwrap();

        let client = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap();
        client.connect(&mapped.into()).unwrap();

        assert_eq!(peer(&client), mapped, "in the family of the socket");
        assert_eq!(agent.accept(Family::V4, world.netns).unwrap().socket_addr(), service);
        assert_eq!(agent.count(Verdict::FlowRecorded), 1);
    });
}

#[test]
fn a_socket_bound_to_the_pods_address_is_redirected_too() {
    in_world(|world| {
        let mut agent = world.agent();
        let (_server, service) = world.server(CLUSTER_IP4);
        agent.serve(service);

        let client = tcp(service);
        client.bind(&SocketAddr::new(CLUSTER_IP4.parse().unwrap(), 0).into()).unwrap();
        client.connect(&service.into()).unwrap();

        assert_eq!(agent.accept(Family::V4, world.netns).unwrap().socket_addr(), service);
    });
}

#[test]
fn a_flow_is_taken_once_and_is_unknown_for_a_connect_to_the_listener_itself() {
    in_world(|world| {
        let mut agent = world.agent();
        let (_server, service) = world.server(CLUSTER_IP4);
        agent.serve(service);

        let _client = TcpStream::connect(service).unwrap();
        let (_accepted, source) = accept(&agent.listener4);
        assert!(agent.flows.take(world.netns, source).is_some());
        assert_eq!(agent.flows.take(world.netns, source), None);

        let _stranger = TcpStream::connect(agent.listener4.local_addr().unwrap()).unwrap();
        assert_eq!(agent.accept(Family::V4, world.netns), None);
    });
}

#[test]
fn every_one_of_thousands_of_connects_has_its_flow_when_it_is_accepted() {
    const THREADS: usize = 4;
    const CONNECTS: usize = 1_000;
    in_world(|world| {
        let mut agent = world.agent();
        let services = [0, 1].map(|_| world.server(CLUSTER_IP4));
        for (_, service) in &services {
            agent.serve(*service);
        }
        thread::scope(|scope| {
            for n in 0..THREADS {
                let service = services[n % 2].1;
                scope.spawn(move || {
                    for _ in 0..CONNECTS {
                        drop(TcpStream::connect(service).unwrap());
                    }
                });
            }
            let mut accepted = [0; 2];
            for _ in 0..THREADS * CONNECTS {
                let (_stream, source) = agent.listener4.accept().unwrap();
                let destination = agent.flows.take(world.netns, source).expect("a flow").socket_addr();
                accepted[services.iter().position(|(_, service)| *service == destination).unwrap()] += 1;
            }
            assert_eq!(accepted, [THREADS / 2 * CONNECTS; 2]);
        });
        assert_eq!(agent.count(Verdict::Redirected), (THREADS * CONNECTS) as u64);
        assert_eq!(agent.count(Verdict::FlowRecorded), (THREADS * CONNECTS) as u64);
        assert_eq!(agent.count(Verdict::FlowLost), 0);
    });
}

#[test]
fn a_socket_connected_elsewhere_afterwards_shows_its_true_peer() {
    in_world(|world| {
        let mut agent = world.agent();
        let (_service_server, service) = world.server(CLUSTER_IP4);
        let (elsewhere_server, elsewhere) = world.server(CLUSTER_IP4);
        agent.serve(service);

        let client = tcp(service);
        client.connect(&service.into()).unwrap();
        assert_eq!(peer(&client), service);
        assert!(agent.accept(Family::V4, world.netns).is_some());

        disconnect(&client);
        client.connect(&elsewhere.into()).unwrap();
        assert_eq!(peer(&client), elsewhere);
        accept(&elsewhere_server);
        assert_eq!(agent.count(Verdict::FlowRecorded), 1, "the second connect is no flow");

        disconnect(&client);
        client.connect(&service.into()).unwrap();
        assert_eq!(peer(&client), service);
        assert_eq!(agent.accept(Family::V4, world.netns).unwrap().socket_addr(), service);
    });
}

#[test]
fn a_service_counts_from_its_entry_to_its_removal() {
    in_world(|world| {
        let mut agent = world.agent();
        let (server, service) = world.server(CLUSTER_IP4);
        let mut services = agent.intercept.services().unwrap();
        let entry = sluice_agent::addr::ServiceAddr::new(service);

        services.insert(entry, 42).unwrap();
        assert_eq!(services.all().unwrap(), [(entry, 42)]);
        let _redirected = TcpStream::connect(service).unwrap();
        assert!(agent.accept(Family::V4, world.netns).is_some());

        services.remove(entry).unwrap();
        services.remove(entry).expect("what is not there is removed");
        assert_eq!(services.all().unwrap(), []);
        let _direct = TcpStream::connect(service).unwrap();
        accept(&server);
    });
}
