//! Who is compared: names, what each needs of the machine, and how a call reaches it. In: nothing; out: facts.

use std::path::PathBuf;

use clap::ValueEnum;

/// A way from the client to the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// No proxy: the connection goes to one endpoint, by the node's firewall rules; no sluice on the node either
    KubeProxy,
    /// sluice, a stream at a time
    Sluice,
    /// sluice for connections that it cannot look into (TLS): bytes both ways
    SluiceOpaque,
    /// HAProxy as a sidecar, HTTP/2 on both sides
    Haproxy,
    /// HAProxy as a sidecar, TCP: bytes both ways, each connection to the next endpoint
    HaproxyTcp,
    /// The same for TLS connections, as sluice-opaque has them
    HaproxyTls,
    /// nginx as a sidecar, grpc_pass
    Nginx,
    /// Envoy as a sidecar, HTTP/2 on both sides
    Envoy,
}

impl Peer {
    pub(crate) const ALL: [Self; 8] = [
        Self::KubeProxy,
        Self::Sluice,
        Self::SluiceOpaque,
        Self::Haproxy,
        Self::HaproxyTcp,
        Self::HaproxyTls,
        Self::Nginx,
        Self::Envoy,
    ];

    /// As the command line and the tables call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KubeProxy => "kube-proxy",
            Self::Sluice => "sluice",
            Self::SluiceOpaque => "sluice-opaque",
            Self::Haproxy => "haproxy",
            Self::HaproxyTcp => "haproxy-tcp",
            Self::HaproxyTls => "haproxy-tls",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// An agent on the node instead of a sidecar in the pod.
    pub(crate) fn is_sluice(self) -> bool {
        matches!(self, Self::Sluice | Self::SluiceOpaque)
    }

    /// Relays bytes it cannot read: the client speaks TLS to the endpoints.
    pub(crate) fn is_opaque(self) -> bool {
        matches!(self, Self::SluiceOpaque | Self::HaproxyTls)
    }

    /// The sluice that does the same job.
    pub(crate) fn counterpart(self) -> Self {
        if self.is_opaque() { Self::SluiceOpaque } else { Self::Sluice }
    }

    /// Programs it needs, with the Debian package of each.
    pub(crate) fn tools(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::KubeProxy | Self::Sluice | Self::Envoy => &[],
            // HAProxy ends the endpoints' TLS.
            Self::SluiceOpaque | Self::HaproxyTls => &[("haproxy", "haproxy"), ("openssl", "openssl")],
            Self::Haproxy | Self::HaproxyTcp => &[("haproxy", "haproxy")],
            Self::Nginx => &[("nginx", "nginx-light")],
        }
    }
}

/// One that takes part: a peer, and for sluice which build of it.
#[derive(Clone, Debug)]
pub(crate) struct Entrant {
    pub(crate) peer: Peer,
    /// `sluice`, or `sluice@COMMIT` for another build than the present one.
    pub(crate) name: String,
    pub(crate) agent: PathBuf,
}

impl Entrant {
    /// The row that this one is compared with: the present sluice that does the same job.
    pub(crate) fn baseline(&self) -> Option<String> {
        let name = self.peer.counterpart().name();
        (self.name != name).then(|| name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_the_same_name_on_the_command_line_and_in_tables() {
        for peer in Peer::ALL {
            assert_eq!(peer.to_possible_value().unwrap().get_name(), peer.name());
        }
        assert_eq!(Peer::ALL.len(), Peer::value_variants().len());
    }

    #[test]
    fn each_is_compared_with_the_present_sluice_that_does_the_same_job() {
        let of = |peer, name: &str| Entrant { peer, name: name.into(), agent: PathBuf::new() }.baseline();
        assert_eq!(of(Peer::Sluice, "sluice"), None);
        assert_eq!(of(Peer::Sluice, "sluice@abc").as_deref(), Some("sluice"));
        assert_eq!(of(Peer::HaproxyTls, "haproxy-tls").as_deref(), Some("sluice-opaque"));
        assert_eq!(of(Peer::HaproxyTcp, "haproxy-tcp").as_deref(), Some("sluice"));
        assert_eq!(of(Peer::Nginx, "nginx").as_deref(), Some("sluice"));
    }
}
