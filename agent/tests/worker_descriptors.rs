//! A process without a free descriptor. Alone in its binary, because the limit is the whole process's.
//! Needs root (CAP_SYS_ADMIN).

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

#[path = "worker/support.rs"]
mod support;

use support::{World, eventually, patient, receive, send};

#[test]
fn connections_wait_without_a_busy_loop_until_there_is_a_descriptor_again() {
    let world = World::new();
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    world.set_endpoints(&[backend.local_addr().unwrap()]);
    let pod = world.pod();
    let clients: Vec<Socket> = (0..3).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), maximum: before.maximum }).unwrap();
    for client in &clients {
        client.connect(&pod.into()).unwrap();
    }
    let beats = world.beats.load(Ordering::Relaxed);
    eventually(|| world.beats.load(Ordering::Relaxed) > beats + 5);
    let report = world.pod_report();
    let since = world.beats.load(Ordering::Relaxed) - beats;
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(report.accepted, 0);
    // One try a back-off, which is as long as a beat, and one for each connection that came.
    assert!((1..=2 * since + 3).contains(&report.accepts_failed), "{} tries in {since} beats", report.accepts_failed);
    for client in clients {
        let mut client = patient(TcpStream::from(client));
        send(&mut client, b"x");
        assert_eq!(receive(&mut patient(backend.accept().unwrap().0), 1), b"x");
    }
    assert_eq!(world.pod_report().accepted, 3);
}
