//! The worker on real sockets: everything but HTTP/2, which `worker_http2.rs` has. Needs root (CAP_SYS_ADMIN).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluice_agent::detect::PREFACE;
use sluice_agent::worker::{Pod, Settings, spawn};

#[path = "worker/support.rs"]
mod support;

use support::*;

const MEBIBYTE: usize = 1024 * 1024;
/// A server's first SETTINGS, empty.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A client and the endpoint that it was relayed to, past detection.
fn relayed(world: &World, backend: &Backend) -> (TcpStream, TcpStream) {
    world.set_endpoints(&[backend.addr]);
    let mut client = connect(world.pod());
    send(&mut client, b"hello");
    let mut server = backend.accept();
    assert_eq!(receive(&mut server, 5), b"hello");
    (client, server)
}

#[test]
fn what_is_not_http2_passes_both_ways() {
    let world = World::new();
    world.set_endpoints(&[echo()]);
    let mut client = connect(world.pod());
    for request in [&b"GET / HTTP/1.1\r\nhost: echo\r\n\r\n"[..], b"\x16\x03\x01 like TLS", b"P"] {
        send(&mut client, request);
        assert_eq!(receive(&mut client, request.len()), request);
    }
    assert_eq!(world.pod_report().opaque_connections, 1);
}

#[test]
fn a_clients_half_close_reaches_the_endpoint_and_the_answer_still_comes() {
    let (world, backend) = (World::new(), Backend::new());
    let (mut client, mut server) = relayed(&world, &backend);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive_all(&mut server), b"");
    send(&mut server, b"the answer");
    assert_eq!(receive(&mut client, 10), b"the answer");
    drop(server);
    assert_eq!(receive_all(&mut client), b"");
    world.until(|pod| pod.opaque_connections == 0);
}

#[test]
fn an_endpoints_half_close_leaves_the_clients_direction_open() {
    let (world, backend) = (World::new(), Backend::new());
    let (mut client, mut server) = relayed(&world, &backend);
    send(&mut server, b"bye");
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive_all(&mut client), b"bye");
    send(&mut client, b"more");
    assert_eq!(receive(&mut server, 4), b"more");
    drop(client);
    assert_eq!(receive_all(&mut server), b"");
    world.until(|pod| pod.opaque_connections == 0);
}

#[test]
fn a_client_that_only_ends_its_direction_still_gets_the_servers_words() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let mut client = connect(world.pod());
    client.shutdown(Shutdown::Write).unwrap();
    let mut server = backend.accept();
    assert_eq!(receive_all(&mut server), b"");
    send(&mut server, b"Tue Jan 2");
    drop(server);
    assert_eq!(receive_all(&mut client), b"Tue Jan 2");
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let mut client = connect(world.pod());
    let mut server = backend.accept();
    send(&mut server, b"220 mail ESMTP\r\n");
    assert_eq!(receive(&mut client, 16), b"220 mail ESMTP\r\n");
    send(&mut client, b"EHLO client\r\n");
    assert_eq!(receive(&mut server, 13), b"EHLO client\r\n");
}

#[test]
fn a_greeting_that_looks_like_settings_is_held_back_until_the_client_has_spoken() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let mut client = connect(world.pod());
    let mut server = backend.accept();
    send(&mut server, SETTINGS);
    client.set_nonblocking(true).unwrap();
    for _ in 0..20 {
        world.until(|pod| pod.undetected_connections == 1);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    client.set_nonblocking(false).unwrap();
    send(&mut client, b"not the preface");
    assert_eq!(receive(&mut client, SETTINGS.len()), SETTINGS);
    assert_eq!(receive(&mut server, 15), b"not the preface");
}

#[test]
fn what_an_undecided_endpoint_may_say_is_bounded() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let mut client = connect(world.pod());
    let mut server = backend.accept();
    let sent = noise(4, 40 * MEBIBYTE);
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            send(&mut server, SETTINGS);
            send(&mut server, &sent);
            assert_eq!(receive(&mut server, 1), b"x");
        }
    });
    // Much more than the sockets between hold: the writer is blocked by now or will be.
    world.until(|pod| pod.undetected_connections == 1);
    assert!(!writer.is_finished());
    send(&mut client, b"x");
    assert_eq!(receive(&mut client, SETTINGS.len()), SETTINGS);
    assert!(receive(&mut client, sent.len()) == sent);
    writer.join().unwrap();
}

#[test]
fn both_sides_may_be_silent_for_as_long_as_they_like() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let mut client = connect(world.pod());
    let mut server = backend.accept();
    let beats = world.beats.load(Ordering::Relaxed);
    eventually(|| world.beats.load(Ordering::Relaxed) > beats + 5);
    send(&mut client, b"at last");
    assert_eq!(receive(&mut server, 7), b"at last");
    assert_eq!(world.pod_report().dials_failed, 0);
}

#[test]
fn a_preface_that_stops_is_relayed_as_it_came() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let mut client = connect(world.pod());
    send(&mut client, &PREFACE[..10]);
    let mut server = backend.accept();
    assert_eq!(receive(&mut server, 10), &PREFACE[..10]);
    send(&mut server, b"what?");
    assert_eq!(receive(&mut client, 5), b"what?");
}

#[test]
fn mebibytes_cross_both_ways_at_once_unharmed() {
    let (world, backend) = (World::new(), Backend::new());
    let (client, server) = relayed(&world, &backend);
    let (up, down) = (noise(1, 8 * MEBIBYTE), noise(2, 8 * MEBIBYTE));
    let sender = |stream: &TcpStream, bytes: &[u8]| {
        let (mut stream, bytes) = (stream.try_clone().unwrap(), bytes.to_vec());
        std::thread::spawn(move || {
            stream.write_all(&bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        })
    };
    let senders = [sender(&client, &up), sender(&server, &down)];
    let receiver = |mut stream: TcpStream| std::thread::spawn(move || receive_all(&mut stream));
    let (at_server, at_client) = (receiver(server), receiver(client));
    assert!(at_server.join().unwrap() == up);
    assert!(at_client.join().unwrap() == down);
    for sender in senders {
        sender.join().unwrap();
    }
    world.until(|pod| pod.opaque_connections == 0);
}

#[test]
fn a_reader_that_stalls_stops_the_writer_and_loses_nothing() {
    let (world, backend) = (World::new(), Backend::new());
    let (client, mut server) = relayed(&world, &backend);
    client.set_nonblocking(true).unwrap();
    let chunk = noise(3, 64 * 1024);
    let (mut sent, mut refused) = (0, 0);
    // Refused while the worker has done what it can: several beats apart.
    while refused < 3 {
        match (&client).write(&chunk) {
            Ok(n) => (sent, refused) = (sent + n, 0),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                let beats = world.beats.load(Ordering::Relaxed);
                eventually(|| world.beats.load(Ordering::Relaxed) > beats + 1);
                refused += 1;
            }
        }
        assert!(sent < 64 * MEBIBYTE, "nothing bounds what waits");
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive_all(&mut server).len(), sent);
}

#[test]
fn an_endpoint_that_cannot_be_dialled_is_replaced_by_another() {
    let world = World::new();
    let ((dead, _held), alive) = (nobody(), Backend::new());
    world.set_endpoints(&[dead, alive.addr]);
    let pod = world.pod();
    for _ in 0..4 {
        let mut client = connect(pod);
        send(&mut client, b"x");
        assert_eq!(receive(&mut alive.accept(), 1), b"x");
    }
    assert!(world.pod_report().dials_failed >= 1);
}

#[test]
fn a_client_is_reset_when_no_endpoint_can_be_dialled() {
    let world = World::new();
    let ((first, _held), (second, _held2)) = (nobody(), nobody());
    world.set_endpoints(&[first, second]);
    let pod = world.pod();
    let mut client = connect(pod);
    send(&mut client, b"x");
    assert!(was_reset(&mut client));
    assert_eq!(world.pod_report().dials_failed, 2);
}

#[test]
fn a_reset_is_passed_on_as_a_reset_in_both_directions() {
    let (world, backend) = (World::new(), Backend::new());
    let (client, mut server) = relayed(&world, &backend);
    reset(client);
    assert!(was_reset(&mut server));
    let mut client = connect(world.pod());
    send(&mut client, b"x");
    let mut server = backend.accept();
    assert_eq!(receive(&mut server, 1), b"x");
    reset(server);
    assert!(was_reset(&mut client));
}

#[test]
fn a_removed_pod_keeps_nothing_open() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let (cookie, pod) = world.pod_that_dials(service_addr().socket_addr());
    let mut client = connect(pod);
    send(&mut client, b"x");
    let mut server = backend.accept();
    assert_eq!(receive(&mut server, 1), b"x");
    let mut silent = connect(pod);
    wait(world.handle.remove_pod(cookie));
    assert!(is_over(&mut client) && is_over(&mut server) && is_over(&mut silent));
    assert_eq!(TcpStream::connect(pod).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(wait(world.handle.report()).pods.is_empty());
}

#[test]
fn a_pod_that_is_added_again_gets_its_new_listener_and_keeps_its_connections() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let (cookie, pod) = world.pod_that_dials(service_addr().socket_addr());
    let mut client = connect(pod);
    send(&mut client, b"x");
    let mut server = backend.accept();
    assert_eq!(receive(&mut server, 1), b"x");
    let again = world.listen(cookie);
    // The kernel still sends connections to the old one until it is told of the new one.
    for listener in [pod, again] {
        send(&mut connect(listener), b"y");
        assert_eq!(receive(&mut backend.accept(), 1), b"y");
    }
    eventually(|| TcpStream::connect(pod).is_err());
    send(&mut client, b"z");
    assert_eq!(receive(&mut server, 1), b"z");
    assert_eq!(world.pod_report().listeners, 1);
}

#[test]
fn a_service_that_is_not_ours_any_more_is_dialled_as_the_pod_would_have() {
    let (world, backend) = (World::new(), Backend::new());
    let (_, pod) = world.pod_that_dials(backend.addr);
    let mut client = connect(pod);
    let mut server = backend.accept();
    send(&mut client, PREFACE);
    assert_eq!(receive(&mut server, PREFACE.len()), PREFACE);
    send(&mut server, b"ok");
    assert_eq!(receive(&mut client, 2), b"ok");
}

#[test]
fn a_service_that_leaves_the_table_keeps_its_opaque_connections() {
    let (world, backend) = (World::new(), Backend::new());
    let (mut client, mut server) = relayed(&world, &backend);
    wait(world.handle.change_services(gone()));
    send(&mut client, b"still");
    assert_eq!(receive(&mut server, 5), b"still");
    assert!(wait(world.handle.report()).services.is_empty());
}

#[test]
fn new_connections_follow_the_table() {
    let (world, first, second) = (World::new(), Backend::new(), Backend::new());
    let pod = world.pod();
    for (wanted, other) in [(&first, &second), (&second, &first)] {
        world.set_endpoints(&[wanted.addr]);
        for _ in 0..3 {
            let mut client = connect(pod);
            send(&mut client, b"x");
            assert_eq!(receive(&mut wanted.accept(), 1), b"x");
        }
        assert!(other.has_none());
    }
}

#[test]
fn a_connection_that_the_kernel_knows_nothing_of_is_closed() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let mut client = connect(world.pod_without_flows());
    assert!(is_over(&mut client));
    assert_eq!(world.pod_report().without_flow, 1);
    assert!(backend.has_none());
}

#[test]
fn a_thousand_connections_are_served_at_once() {
    let world = World::new();
    let pod = world.pod();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::{TcpListener, TcpStream};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.handle.change_services(listed(&[listener.local_addr().unwrap()])).await.unwrap();
        let echo = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        let mut clients = Vec::new();
        for i in 0..1_000u32 {
            let mut stream = TcpStream::connect(pod).await.unwrap();
            stream.write_all(&[b"number ".as_slice(), &i.to_be_bytes()].concat()).await.unwrap();
            clients.push((i, stream));
        }
        for (i, stream) in &mut clients {
            let mut bytes = [0; 11];
            stream.read_exact(&mut bytes).await.unwrap();
            assert_eq!(bytes[7..], i.to_be_bytes());
        }
        assert_eq!(world.handle.report().await.unwrap().pods[0].opaque_connections, 1_000);
        drop(clients);
        echo.abort();
    });
    drop(runtime);
    world.until(|pod| pod.opaque_connections == 0);
}

#[test]
fn the_heartbeat_goes_on_under_load() {
    let world = World::new();
    world.set_endpoints(&[echo()]);
    let pod = world.pod();
    for seed in 0..4 {
        let stream = connect(pod);
        let mut writer = stream.try_clone().unwrap();
        let chunk = noise(seed, 256 * 1024);
        std::thread::spawn(move || while writer.write_all(&chunk).is_ok() {});
        std::thread::spawn(move || std::io::copy(&mut &stream, &mut std::io::sink()));
    }
    world.until(|pod| pod.opaque_connections == 4);
    let beats = world.beats.load(Ordering::Relaxed);
    eventually(|| world.beats.load(Ordering::Relaxed) > beats + 10);
}

#[test]
fn a_draining_worker_refuses_new_connections_and_lets_relayed_ones_end() {
    let (world, backend) = (World::new(), Backend::new());
    world.set_endpoints(&[backend.addr]);
    let pod = world.pod();
    let mut client = connect(pod);
    send(&mut client, b"x");
    let mut server = backend.accept();
    let mut done = world.handle.drain(Instant::now() + 10 * HANG);
    eventually(|| TcpStream::connect(pod).is_err());
    assert_eq!(receive(&mut server, 1), b"x");
    send(&mut server, b"the rest");
    assert_eq!(receive(&mut client, 8), b"the rest");
    assert!(done.try_recv().is_err(), "a connection is still open");
    // The tries above were connections too until the listener closed.
    drop((client, server, backend));
    wait(done);
}

#[test]
fn what_waits_in_the_backlog_when_draining_begins_is_served() {
    let world = World::new();
    world.set_endpoints(&[echo()]);
    let pod = world.pod();
    let held = world.hold();
    let mut clients: Vec<_> = (0..100).map(|_| connect(pod)).collect();
    let done = world.handle.drain(Instant::now() + 10 * HANG);
    drop(held);
    for client in &mut clients {
        send(client, b"still in time");
        assert_eq!(receive(client, 13), b"still in time");
    }
    drop(clients);
    wait(done);
    assert_eq!(world.pod_report().accepted, 100);
}

#[test]
fn a_drain_that_takes_too_long_ends_with_resets() {
    let (world, backend) = (World::new(), Backend::new());
    let (mut client, mut server) = relayed(&world, &backend);
    wait(world.handle.drain(Instant::now() + Duration::from_millis(150)));
    assert!(was_reset(&mut client) && was_reset(&mut server));
}

#[test]
fn a_worker_ends_with_its_last_handle_and_closes_what_it_has() {
    let (world, backend) = (World::new(), Backend::new());
    let (mut client, mut server) = relayed(&world, &backend);
    let World { handle, thread, .. } = world;
    drop(handle.clone());
    wait(handle.report());
    drop(handle);
    thread.join().unwrap();
    assert!(is_over(&mut client) && is_over(&mut server));
}

#[test]
fn a_panic_ends_the_thread_so_that_its_watcher_can_end_the_process() {
    let (handle, thread) =
        spawn(0, Settings::default(), Box::new(|_, _| panic!("on purpose")), Box::new(|| {})).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    wait(handle.add_pod(pod(sluice_agent::addr::NetnsCookie(1), listener)));
    let mut client = connect(addr);
    assert!(is_over(&mut client));
    thread.join().unwrap_err();
    handle.report().blocking_recv().unwrap_err();
}

#[test]
fn an_ipv6_pod_reaches_an_ipv6_endpoint() {
    let (world, backend) = (World::new(), Backend::at("[::1]:0"));
    world.set_endpoints(&[backend.addr]);
    let (cookie, _) = world.pod_that_dials(service_addr().socket_addr());
    let listener6 = std::net::TcpListener::bind("[::1]:0").unwrap();
    let listener4 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let through = [listener6.local_addr().unwrap(), listener4.local_addr().unwrap()];
    wait(world.handle.add_pod(Pod { listener6: Some(listener6), ..pod(cookie, listener4) }));
    for listener in through {
        send(&mut connect(listener), b"x");
        assert_eq!(receive(&mut backend.accept(), 1), b"x");
    }
}

#[test]
fn connections_leave_from_the_pods_own_namespace() {
    let world = World::new();
    let (listeners, inside) = std::sync::mpsc::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    let pod_thread = std::thread::spawn(move || {
        #[allow(deprecated, reason = "this thread holds no other borrowed descriptor")]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("needs root (CAP_SYS_ADMIN)");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success(), "cannot set loopback up inside the namespace");
        let endpoint = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let (to, through) = (endpoint.local_addr().unwrap(), listener.local_addr().unwrap());
        listeners.send((listener, netns, to)).unwrap();
        finished.recv().unwrap();
        let mut client = connect(through);
        send(&mut client, b"from inside");
        let mut server = patient(endpoint.accept().unwrap().0);
        assert_eq!(receive(&mut server, 11), b"from inside");
    });
    let (listener, netns, to) = inside.recv().unwrap();
    world.set_endpoints(&[to]);
    let (cookie, _) = world.pod_that_dials(service_addr().socket_addr());
    let listening = Pod { netns: netns.into(), ..pod(cookie, listener) };
    wait(world.handle.add_pod(listening));
    finish.send(()).unwrap();
    pod_thread.join().unwrap();
}
