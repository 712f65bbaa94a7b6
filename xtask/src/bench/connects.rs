//! What connect() costs in a client pod, with and without the agent's programs at its cgroup. In: addresses; out,
//! microseconds of each kind of connect, measured by a process of the pod itself: this program, started again.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use socket2::{Domain, Socket, Type};
use testbed::{Node, ServiceSpec};

use super::figures::{Figure, Row, Section, Shown, figure};
use super::peers::{Entrant, Peer};
use super::site::{PORT, Programs};
use crate::scene::{self, Backends};

/// The hidden task by which this program measures in a pod.
pub(crate) const TASK: &str = "measure-connects";
const CONNECTS: u32 = 4000;
/// Measured apart, and not counted: caches, and the first of everything.
const WARM_UP: u32 = 200;

#[derive(Args)]
pub(crate) struct Options {
    kind: Kind,
    address: SocketAddr,
    count: u32,
}

/// How it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// TCP, until it is connected
    Tcp,
    /// TCP, the call alone, which does not wait
    TcpCall,
    /// UDP: a route and the programs, no packet
    Udp,
}

/// What is dialled, and how. A Service's ClusterIP leads into sluice, or by kube-proxy's rules to a pod where sluice is not.
const MEASURED: [(Kind, bool, Figure); 5] = [
    (Kind::Tcp, true, figure("tcp_service_us", "TCP to Service", "µs", 2, Shown::Spread)),
    (Kind::Tcp, false, figure("tcp_pod_us", "TCP to pod", "µs", 2, Shown::Spread)),
    (Kind::TcpCall, false, figure("tcp_call_pod_us", "TCP to pod, call alone", "µs", 2, Shown::Spread)),
    (Kind::Udp, true, figure("udp_service_us", "UDP to Service", "µs", 3, Shown::Spread)),
    (Kind::Udp, false, figure("udp_pod_us", "UDP to pod", "µs", 3, Shown::Spread)),
];

/// Connects from a pod on one node, which has no agent, then each entrant's agent, in turn.
pub(crate) fn section(entrants: &[Entrant], programs: &Programs, rounds: u8) -> Result<Section> {
    let node = Node::new()?;
    let backends = Backends::start(&node, "echo", 1, PORT, |pod| scene::echo_server(pod, &programs.loadtest, PORT))?;
    let pod = SocketAddr::new(backends.pods[0].ip4().into(), PORT);
    let service = node.service(ServiceSpec::grpc("echo", PORT))?;
    service.add_endpoint(&backends.pods[0])?;
    let client = node.pod("client")?;
    // Also when it has been built anew meanwhile.
    let own = format!("/proc/{}/exe", std::process::id());
    let measure = || -> Result<Vec<(Figure, f64)>> {
        let one = |(kind, to_service, figure): &(Kind, bool, Figure)| {
            let address = if *to_service { service.address4() } else { pod };
            let kind = kind.to_possible_value().context("each kind has a name")?;
            let launch =
                client.command(&own).args([TASK, kind.get_name(), &address.to_string(), &CONNECTS.to_string()]);
            let said = launch.read()?;
            Ok((*figure, said.trim().parse().with_context(|| format!("not a number: {said:?}"))?))
        };
        MEASURED.iter().map(one).collect()
    };

    let agents: Vec<_> = entrants.iter().filter(|entrant| entrant.peer == Peer::Sluice).collect();
    let mut without = Row::new("without", None);
    let mut with: Vec<_> = agents.iter().map(|entrant| Row::new(&entrant.name, None)).collect();
    for round in 0..=rounds {
        let measured = measure()?;
        if round > 0 {
            without.add(&measured);
        }
        for (row, entrant) in with.iter_mut().zip(&agents) {
            let agent = node.agent().binary(&entrant.agent).workers(1).start()?;
            let measured = measure()?;
            let verdicts = agent.status()?["kernel_verdicts"].take();
            for verdict in ["redirected", "not_service", "not_tcp"] {
                let said = verdicts[verdict].as_u64().unwrap_or_default();
                ensure!(said >= u64::from(CONNECTS), "{}: {verdict} {said} times of {CONNECTS}", entrant.name);
            }
            if round > 0 {
                row.add(&measured);
            }
        }
    }
    let differences: Vec<_> = with.iter().map(|row| difference(row, &without)).collect();
    let about = format!(
        "{CONNECTS} connects of each kind, one after the other, {rounds} rounds: microseconds of connect(), mean without the \
         slowest hundredth. To a Service's ClusterIP (with sluice to its listener in the pod) and to a pod's address. UDP \
         sends no packet: the difference is what the programs cost that leave it alone. Without: while no other agent runs \
         on the machine, since the kernel asks everywhere once something is attached anywhere."
    );
    Ok(Section {
        name: "connects".to_owned(),
        about,
        leading: MEASURED[0].2,
        rows: std::iter::once(without).chain(with).chain(differences).collect(),
    })
}

/// What a row's connects cost more than those without, round by round.
fn difference(row: &Row, without: &Row) -> Row {
    let mut difference = Row::new(&format!("{} − without", row.name), None);
    for (_, _, figure) in MEASURED {
        for more in row.paired(without, figure, |with, without| with - without) {
            difference.add(&[(figure, more)]);
        }
    }
    difference
}

/// The hidden task: prints microseconds.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    measure(options.kind, options.address, WARM_UP)?;
    let mut times = measure(options.kind, options.address, options.count)?;
    println!("{}", mean_of_most(&mut times));
    Ok(ExitCode::SUCCESS)
}

fn measure(kind: Kind, address: SocketAddr, count: u32) -> Result<Vec<Duration>> {
    (0..count).map(|_| connect(kind, address).with_context(|| format!("cannot connect to {address}"))).collect()
}

/// One connect. Nothing is left of it: TCP is closed by a reset.
fn connect(kind: Kind, address: SocketAddr) -> Result<Duration, Error> {
    let stream = if kind == Kind::Udp { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(address), stream, None)?;
    if kind != Kind::Udp {
        socket.set_linger(Some(Duration::ZERO))?;
    }
    socket.set_nonblocking(kind == Kind::TcpCall)?;
    let address = address.into();
    let start = Instant::now();
    let connected = socket.connect(&address);
    let took = start.elapsed();
    match connected {
        // EINPROGRESS has no kind of its own in stable Rust.
        Err(error) if !(kind == Kind::TcpCall && is_in_progress(&error)) => Err(error),
        _ => Ok(took),
    }
}

fn is_in_progress(error: &Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(115)
}

/// Microseconds; interrupts and other processes make the slowest hundredth.
fn mean_of_most(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let most = &times[..(times.len() * 99).div_ceil(100)];
    most.iter().map(Duration::as_secs_f64).sum::<f64>() * 1e6 / most.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_hundredth_does_not_count() {
        let mut times = vec![Duration::from_micros(2); 99];
        times.insert(50, Duration::from_secs(1));
        assert!((mean_of_most(&mut times) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_difference_is_that_of_each_round() {
        let figure = MEASURED[0].2;
        let (mut without, mut with) = (Row::new("without", None), Row::new("sluice", None));
        for (least, more) in [(10.0, 11.0), (20.0, 20.5)] {
            without.add(&[(figure, least)]);
            with.add(&[(figure, more)]);
        }
        assert_eq!(difference(&with, &without).samples(figure), [1.0, 0.5]);
    }

    #[test]
    fn connects_are_measured_on_loopback() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for kind in Kind::value_variants() {
            assert_eq!(measure(*kind, address, 3).unwrap().len(), 3, "{kind:?}");
        }
    }
}
