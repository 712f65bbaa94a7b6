//! What clients do: calls of all kinds, other protocols, and harm; and somebody who looks at them.

use std::io::Write;
use std::net::{Ipv6Addr, TcpListener};

use anyhow::{Context, ensure};
use testbed::scene::{PORT, in_turn, serve};

use super::Cause;
use super::Move::Rises;
use crate::cli::Cli;
use crate::peers::ADD;
use crate::scene::enrolled;

pub(super) const CAUSES: &[Cause] = &[
    Cause {
        what: "calls that succeed",
        moves: &[
            ("sluice_kernel_verdicts_total", "\"redirected\"", Rises),
            ("sluice_rpcs_total", "grpc_method=\"Add\",grpc_code=\"OK\"", Rises),
            ("sluice_rpc_duration_seconds", "grpc_service=\"shop.Cart\"", Rises),
            ("sluice_rpc_request_bytes_total", "default/shop:grpc", Rises),
            ("sluice_rpc_response_bytes_total", "default/shop:grpc", Rises),
            ("sluice_endpoint_rpcs_total", "default/shop:grpc", Rises),
            ("sluice_endpoint_connections", "default/shop:grpc", Rises),
            ("sluice_connections_accepted_total", "default/client", Rises),
            ("sluice_endpoint_dials_total", "default/client", Rises),
            ("sluice_streams_total", "default/client", Rises),
            ("sluice_connections", "\"http2\"", Rises),
        ],
        bring: |stage| {
            let connection = stage.connect()?;
            (0..5).try_for_each(|_| connection.call(ADD, &[]).map(drop))?;
            stage.going_on.push(Box::new(connection));
            Ok(())
        },
    },
    Cause {
        what: "calls that fail, by the endpoint's fault and not",
        moves: &[
            ("sluice_rpcs_total", "UNAVAILABLE", Rises),
            ("sluice_rpcs_total", "NOT_FOUND", Rises),
            ("sluice_endpoint_failures_total", "default/shop:grpc", Rises),
        ],
        bring: |stage| {
            let connection = stage.connect()?;
            for status in ["14", "5"] {
                ensure!(connection.call(ADD, &[("x-status", status)])?.grpc.as_deref() == Some(status));
            }
            Ok(())
        },
    },
    Cause {
        what: "calls that are open",
        moves: &[
            ("sluice_rpcs_in_flight", "default/shop:grpc", Rises),
            ("sluice_open_streams", "default/client", Rises),
            ("sluice_endpoint_open_streams", "default/shop:grpc", Rises),
        ],
        bring: |stage| {
            let connection = stage.connect()?;
            let open = connection.open(ADD, &[])?;
            stage.going_on.push(Box::new((connection, open)));
            Ok(())
        },
    },
    Cause {
        what: "requests that are not gRPC",
        moves: &[("sluice_http_requests_total", "code=\"4xx\"", Rises)],
        bring: |stage| {
            ensure!(stage.connect()?.call("/picture.png", &[("x-http", "404")])?.http == 404);
            Ok(())
        },
    },
    Cause {
        what: "a connection of another protocol",
        moves: &[("sluice_connections", "\"opaque\"", Rises)],
        bring: |stage| {
            let mute = stage.node.pod("mute")?;
            let listener = mute.run_in_netns(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))??;
            let service = serve(&stage.node, in_turn("mute"), [&mute])?;
            stage.wait_known(&service, 1)?;
            let mut stream = stage.client.dial(service.address4())?;
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
            stage.going_on.push(Box::new((mute, listener, service, stream)));
            Ok(())
        },
    },
    Cause {
        what: "a client that breaks HTTP/2",
        moves: &[("sluice_protocol_errors_total", "default/client", Rises)],
        bring: |stage| {
            // The preface, empty SETTINGS, and DATA on stream 0.
            let mut stream = stage.client.dial(stage.shop.address4())?;
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0")?;
            stage.going_on.push(Box::new(stream));
            Ok(())
        },
    },
    Cause {
        what: "a client that floods",
        moves: &[
            ("sluice_floods_total", "default/client", Rises),
            ("sluice_limited_total", "limit=\"continuations\"", Rises),
        ],
        bring: |stage| {
            let target = stage.shop.address4().to_string();
            let status = stage.abuser(&stage.client.pod, &["client", "continuation", &target, "0.5"])?.wait()?;
            ensure!(status.success(), "{status}");
            Ok(())
        },
    },
    Cause {
        what: "connects to a pod's listener that the kernel did not redirect",
        moves: &[("sluice_connections_without_flow_total", "default/client", Rises)],
        bring: |stage| {
            let line = enrolled(&stage.agent, &stage.client.pod)?;
            let port = u16::try_from(line["port4"].as_u64().context("a port")?)?;
            stage.client.dial(([127, 0, 0, 1], port).into()).map(drop)
        },
    },
    Cause {
        what: "somebody who looks at calls",
        moves: &[("sluice_taps", "", Rises)],
        bring: |stage| {
            let tap = Cli::new(&stage.node, &stage.agent).tap(&[])?;
            stage.going_on.push(Box::new(tap));
            Ok(())
        },
    },
];
