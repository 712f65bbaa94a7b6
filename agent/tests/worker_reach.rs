//! Opaque connections and endpoints that cannot be dialled, on real sockets. Needs root (CAP_SYS_ADMIN).

#[path = "worker/support.rs"]
mod support;

use support::*;

#[test]
fn an_opaque_connection_does_not_wait_for_an_endpoint_that_does_not_answer_dials() {
    let world = World::impatient();
    let ((silent, _held), alive) = (black_hole(), Backend::new());
    world.set_endpoints(&[silent, alive.addr]);
    let pod = world.pod();
    for _ in 0..10 {
        let mut client = connect(pod);
        send(&mut client, b"x");
        assert_eq!(receive(&mut alive.accept(), 1), b"x");
    }
    let report = world.pod_report();
    assert_eq!(report.ejected.iter().map(|ejected| ejected.addr.socket_addr()).collect::<Vec<_>>(), [silent]);
}

#[test]
fn an_opaque_connection_waits_for_a_slow_endpoint_when_the_others_refuse() {
    let world = World::impatient();
    let ((silent, held), (refusing, _held)) = (black_hole(), nobody());
    world.set_endpoints(&[silent, refusing]);
    let pod = world.pod();
    let mut clients = [connect(pod), connect(pod)];
    clients.iter_mut().for_each(|client| send(client, b"x"));
    world.until(|pod| pod.ejected.iter().any(|ejected| ejected.addr.socket_addr() == refusing));
    let listener = &held[0];
    let mut came = 0;
    while came < 2 {
        let (socket, _) = listener.accept().unwrap();
        let mut stream = patient(socket.into());
        // The fillers of the backlog have nothing to say.
        if held.iter().skip(1).all(|filler| filler.local_addr().ok() != peer_of(&stream)) {
            assert_eq!(receive(&mut stream, 1), b"x");
            came += 1;
        }
    }
}

fn peer_of(stream: &std::net::TcpStream) -> Option<socket2::SockAddr> {
    stream.peer_addr().ok().map(Into::into)
}

#[test]
fn an_endpoint_that_refuses_is_ejected_for_opaque_connections_and_streams_alike() {
    let world = World::new();
    let ((dead, _held), alive) = (nobody(), Backend::new());
    world.set_endpoints(&[dead, alive.addr]);
    let pod = world.pod();
    let mut opaque = connect(pod);
    send(&mut opaque, b"x");
    alive.accept();
    let _more: Vec<_> = (0..7)
        .map(|_| {
            let mut opaque = connect(pod);
            send(&mut opaque, b"x");
            (alive.accept(), opaque)
        })
        .collect();
    assert_eq!(world.pod_report().ejected.len(), 1);
    // HTTP/2 with one request goes where the opaque ones went; the four share an endpoint connection.
    let preface = sluice_agent::splitter::PREFACE;
    let _clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = connect(pod);
            send(&mut client, preface);
            send(&mut client, &[0, 0, 0, 4, 0, 0, 0, 0, 0]);
            // :method GET, :scheme http, :path / of the static table.
            send(&mut client, &[0, 0, 3, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84]);
            client
        })
        .collect();
    // Kept open: an endpoint that closes before its SETTINGS cannot be reached either, and then the dead one is as good.
    let mut carrier = alive.accept();
    assert_eq!(receive(&mut carrier, preface.len()), preface);
    // Once; or twice on a machine that stood still for the back-off, which makes the second the probe.
    let dials = world.pod_report().dials_failed;
    assert!(dials <= 2, "{dials}");
}
