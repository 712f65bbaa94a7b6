//! What the agent learns of: Services, pods, and files that are broken.

use std::any::Any;
use std::fs;

use testbed::scene::{PORT, in_turn, serve};
use testbed::{PodSpec, PortSpec, ServiceSpec};

use super::Cause;
use super::Move::Rises;
use crate::peers::Endpoint;

pub(super) const CAUSES: &[Cause] = &[
    Cause {
        what: "a Service, another that is left alone, and pods appear, one of which opted out",
        moves: &[
            ("sluice_services", "", Rises),
            ("sluice_services_left_alone", "", Rises),
            ("sluice_endpoints", "default/more:grpc", Rises),
            ("sluice_pods", "worker=", Rises),
            ("sluice_pods_opted_out", "", Rises),
        ],
        bring: |stage| {
            let endpoint = Endpoint::start(&stage.node, "more-1")?;
            let more = serve(&stage.node, in_turn("more"), [&endpoint.pod])?;
            let plain = ServiceSpec::new("plain").port(PortSpec::new("web", PORT));
            let plain = serve(&stage.node, plain, [&endpoint.pod])?;
            let out = stage.node.pod(PodSpec::new("out").annotation("sluice.dev/redirect", "false"))?;
            stage.stays.extend([Box::new(endpoint) as Box<dyn Any>, Box::new((more, plain, out))]);
            Ok(())
        },
    },
    Cause {
        what: "a manifest that nobody can read",
        moves: &[("sluice_problems", "", Rises)],
        bring: |stage| Ok(fs::write(stage.node.source_dir().join("broken.yaml"), "kind: [Service\n")?),
    },
];
