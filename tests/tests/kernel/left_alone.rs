//! Connects that the programs leave alone: each arrives at the address that was dialled, under the right counter.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use sluice_agent::intercept::{PodEntry, Settings, Verdict};

use crate::world::{Agent, CLUSTER_IP4, CLUSTER_IP6, Family, QUIET, World, accept, in_world, peer, tcp};

/// An agent, and a Service that it serves.
fn agent_and_service(world: &World<'_>, ip: &str) -> (Agent, TcpListener, SocketAddr) {
    let agent = world.agent();
    let (server, service) = world.server(ip);
    agent.serve(service);
    (agent, server, service)
}

/// A connect to `service` arrives at `server`, and `verdict` says why.
fn assert_left_alone(agent: &Agent, server: &TcpListener, service: SocketAddr, verdict: Verdict) {
    let before = agent.count(verdict);
    let client = TcpStream::connect(service).unwrap();
    accept(server);
    assert_eq!(client.peer_addr().unwrap(), service);
    assert_eq!(agent.count(verdict), before + 1, "{}", verdict.name());
    assert_eq!(agent.count(Verdict::Redirected), 0);
    assert_eq!(agent.count(Verdict::FlowRecorded), 0);
}

#[test]
fn udp_to_a_services_address_goes_where_it_was_sent() {
    in_world(|world| {
        let (agent, _server, service) = agent_and_service(world, CLUSTER_IP4);
        let server = UdpSocket::bind(service).unwrap();

        let client = UdpSocket::bind((CLUSTER_IP4, 0)).unwrap();
        client.connect(service).unwrap();
        client.send(b"datagram").unwrap();

        let mut buffer = [0; 16];
        assert_eq!(server.recv(&mut buffer).unwrap(), 8);
        assert_eq!(client.peer_addr().unwrap(), service);
        assert_eq!(agent.count(Verdict::NotTcp), 1);
        assert_eq!(agent.count(Verdict::PeerRestored), 0);
    });
}

#[test]
fn another_port_of_a_clusterip_is_no_service() {
    in_world(|world| {
        for ip in [CLUSTER_IP4, CLUSTER_IP6] {
            let (agent, _server, _service) = agent_and_service(world, ip);
            let (other, addr) = world.server(ip);
            assert_left_alone(&agent, &other, addr, Verdict::NotService);
        }
    });
}

#[test]
fn a_connect_that_is_refused_is_refused_as_ever() {
    in_world(|world| {
        let agent = world.agent();
        let (server, addr) = world.server(CLUSTER_IP4);
        drop(server);
        let error = TcpStream::connect(addr).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(agent.count(Verdict::NotService), 1);
    });
}

#[test]
fn a_socket_bound_to_a_device_keeps_its_destination() {
    in_world(|world| {
        let (agent, server, service) = agent_and_service(world, CLUSTER_IP4);

        let client = tcp(service);
        client.bind_device(Some(b"lo")).unwrap();
        client.connect(&service.into()).unwrap();

        accept(&server);
        assert_eq!(peer(&client), service);
        assert_eq!(agent.count(Verdict::BoundToDevice), 1);
    });
}

#[test]
fn the_agents_own_connects_are_left_alone() {
    in_world(|world| {
        let agent = world.agent_with(&Settings { own_cgroup: Some(world.cgroup.id()), ..QUIET });
        let (server, service) = world.server(CLUSTER_IP4);
        agent.serve(service);
        assert_left_alone(&agent, &server, service, Verdict::OwnTraffic);
    });
}

#[test]
fn an_unenrolled_namespace_is_left_alone_and_reported() {
    in_world(|world| {
        let (mut agent, server, service) = agent_and_service(world, CLUSTER_IP4);
        agent.intercept.pods().unwrap().remove(world.netns).unwrap();
        agent.intercept.pods().unwrap().remove(world.netns).expect("what is not there is removed");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _inside = runtime.enter();
        let mut unenrolled = agent.intercept.unenrolled().unwrap();

        for _ in 0..2 {
            assert_left_alone(&agent, &server, service, Verdict::PodNotEnrolled);
        }

        for _ in 0..2 {
            let record = runtime.block_on(unenrolled.next()).unwrap();
            assert_eq!(record.netns_cookie, world.netns.0);
            assert_eq!(record.cgroup_id, world.cgroup.id());
            assert_eq!(record.pid, std::process::id());
        }
        agent.intercept.pods().unwrap().insert(world.netns, agent.entry()).unwrap();
        let _client = TcpStream::connect(service).unwrap();
        assert!(agent.accept(Family::V4, world.netns).is_some(), "the next connect after enrolment is ours");
    });
}

#[test]
fn a_pod_that_opted_out_is_left_alone() {
    in_world(|world| {
        let (agent, server, service) = agent_and_service(world, CLUSTER_IP4);
        let entry = PodEntry { opted_out: true, ..agent.entry() };
        agent.intercept.pods().unwrap().insert(world.netns, entry).unwrap();
        assert_left_alone(&agent, &server, service, Verdict::PodOptedOut);
    });
}

#[test]
fn a_family_without_a_listener_is_left_alone() {
    in_world(|world| {
        let (agent, server, service) = agent_and_service(world, CLUSTER_IP6);
        let entry = PodEntry { port6: None, ..agent.entry() };
        agent.intercept.pods().unwrap().insert(world.netns, entry).unwrap();
        assert_left_alone(&agent, &server, service, Verdict::NoListener);
    });
    in_world(|world| {
        let (agent, server, service) = agent_and_service(world, CLUSTER_IP4);
        let entry = PodEntry { port4: None, ..agent.entry() };
        agent.intercept.pods().unwrap().insert(world.netns, entry).unwrap();
        assert_left_alone(&agent, &server, service, Verdict::NoListener);
    });
}

#[test]
fn a_worker_without_a_fresh_heartbeat_gets_no_connection() {
    in_world(|world| {
        let (mut agent, server, service) = agent_and_service(world, CLUSTER_IP4);
        agent.heartbeat.stop();
        assert_left_alone(&agent, &server, service, Verdict::WorkerStale);
        // One nanosecond after boot.
        agent.heartbeat.stamp(1);
        assert_left_alone(&agent, &server, service, Verdict::WorkerStale);
        // A worker that there is no heartbeat for.
        let entry = PodEntry { worker: u32::MAX, ..agent.entry() };
        agent.intercept.pods().unwrap().insert(world.netns, entry).unwrap();
        assert_left_alone(&agent, &server, service, Verdict::WorkerStale);

        agent.intercept.pods().unwrap().insert(world.netns, agent.entry()).unwrap();
        // A machine may stop for longer than a heartbeat is fresh; it does not do so for ever.
        while agent.count(Verdict::Redirected) == 0 {
            agent.heartbeat.beat();
            drop(TcpStream::connect(service).unwrap());
        }
        assert!(agent.accept(Family::V4, world.netns).is_some());
    });
}
