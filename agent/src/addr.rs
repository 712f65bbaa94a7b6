//! Address newtypes: one per role, so that a client's destination is never taken for an endpoint.
//! IPv4-mapped IPv6 addresses are canonical IPv4 in all of them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            pub fn new(addr: SocketAddr) -> Self {
                Self(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
            }

            pub fn socket_addr(self) -> SocketAddr {
                self.0
            }

            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

role! {
    /// A ClusterIP and a Service's port: what clients dial.
    ServiceAddr
}
role! {
    /// A pod's (or another backend's) address and target port: where calls go.
    EndpointAddr
}
role! {
    /// What a redirected connection had dialled, as the kernel remembers it.
    OriginalDst
}

impl OriginalDst {
    pub fn service(self) -> ServiceAddr {
        ServiceAddr(self.0)
    }
}

/// A network namespace's identity in the kernel: `SO_NETNS_COOKIE`, never reused while the machine is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsCookie(pub u64);
