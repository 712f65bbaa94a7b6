//! What endpoints do: refuse, fail, leave, and take their time.

use anyhow::ensure;
use testbed::ServiceSpec;
use testbed::scene::{PORT, SOON, in_turn, serve};

use super::Cause;
use super::Move::{Below, Rises};
use crate::peers::ADD;
use crate::scene::{calls, load};

pub(super) const CAUSES: &[Cause] = &[
    Cause {
        what: "an endpoint that refuses connections, beside one that is well",
        moves: &[
            ("sluice_dials_failed_total", "default/client", Rises),
            ("sluice_ejections_total", "cause=\"unreachable\"", Rises),
            ("sluice_endpoint_ejected_by", "default/half:grpc", Rises),
        ],
        bring: |stage| {
            let (well, closed) = (stage.backend("half-1", &[])?, stage.node.pod("half-2")?);
            let half = serve(&stage.node, in_turn("half"), [&well.pod, &closed])?;
            stage.wait_known(&half, 2)?;
            calls(&stage.client.pod, &half, &["--rpcs", "50"])?;
            stage.going_on.push(Box::new((well, closed, half)));
            Ok(())
        },
    },
    Cause {
        what: "no endpoint that can be reached",
        moves: &[("sluice_streams_failed_total", "default/client", Rises)],
        bring: |stage| {
            let closed = stage.node.pod("closed")?;
            let service = serve(&stage.node, in_turn("closed"), [&closed])?;
            stage.wait_known(&service, 1)?;
            let answer = stage.client.connect(service.address4())?.call(ADD, &[])?;
            ensure!(answer.grpc.as_deref() == Some("14"), "{answer:?}");
            stage.stays.push(Box::new((closed, service)));
            Ok(())
        },
    },
    Cause {
        what: "an endpoint whose calls fail, beside one that is well",
        moves: &[
            ("sluice_ejections_total", "cause=\"failing\"", Rises),
            ("sluice_endpoint_ejected_by", "default/flaky:grpc", Rises),
        ],
        bring: |stage| {
            let endpoints = vec![stage.backend("flaky-1", &[])?, stage.backend("flaky-2", &["--error-rate", "1"])?];
            let service = stage.serve(in_turn("flaky"), endpoints)?;
            calls(&stage.client.pod, &service, &["--rpcs", "100"])?;
            stage.stays.push(Box::new(service));
            Ok(())
        },
    },
    Cause {
        what: "an endpoint that ends its connections by age",
        moves: &[("sluice_endpoint_goaways_total", "default/client", Rises)],
        bring: |stage| {
            let endpoints = vec![stage.backend("aged", &["--max-connection-age", "200ms"])?];
            let service = stage.serve(in_turn("aged"), endpoints)?;
            calls(&stage.client.pod, &service, &["--rate", "50", "--duration", "1s"])?;
            stage.stays.push(Box::new(service));
            Ok(())
        },
    },
    Cause {
        what: "an endpoint that refuses streams, beside one that is well",
        moves: &[
            ("sluice_streams_replayed_total", "default/client", Rises),
            ("sluice_replays_denied_total", "default/client", Rises),
        ],
        bring: |stage| {
            let (well, refuses) = (stage.backend("picky-1", &[])?, stage.node.pod("picky-2")?);
            let server = stage.abuser(&refuses, &["server", "refuse-all", &PORT.to_string()])?;
            refuses.wait_listening(PORT, SOON)?;
            // Not ejected, so that it goes on.
            let spec = in_turn("picky").annotation("sluice.dev/ejection", "off");
            let service = serve(&stage.node, spec, [&well.pod, &refuses])?;
            stage.wait_known(&service, 2)?;
            calls(&stage.client.pod, &service, &["--rpcs", "3000"])?;
            stage.going_on.push(Box::new((well, server, refuses, service)));
            Ok(())
        },
    },
    Cause {
        what: "an endpoint that is slow",
        moves: &[
            ("sluice_endpoint_latency_seconds", "default/uneven:grpc", Rises),
            ("sluice_endpoint_weight", "default/uneven:grpc", Below(0.9)),
        ],
        bring: |stage| {
            let endpoints = vec![stage.backend("uneven-1", &[])?, stage.backend("uneven-2", &["--delay", "100ms"])?];
            let service = stage.serve(ServiceSpec::grpc("uneven", PORT), endpoints)?;
            let load = load(&stage.client.pod, &service, &["--rate", "100", "--duration", "60s", "--streams", "50"])?;
            stage.going_on.push(Box::new((service, load)));
            Ok(())
        },
    },
];
