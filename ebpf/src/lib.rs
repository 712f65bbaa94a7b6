//! The contract between the kernel programs and the agent: map names, capacities, keys, values and verdicts.
//!
//! Addresses are 16 bytes as on the wire; an IPv4 address stands as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2), so that one
//! key serves a socket of either family. Ports are plain numbers: the programs swap them, so that `bpftool map dump`
//! shows both as people write them. Nothing here depends on a platform.
#![no_std]

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Names of the maps and programs in the object, said once for both sides.
pub mod names {
    pub const SERVICES: &str = "SERVICES";
    pub const PODS: &str = "PODS";
    pub const HEARTBEAT: &str = "HEARTBEAT";
    pub const ORIGINAL: &str = "ORIGINAL";
    pub const FLOWS: &str = "FLOWS";
    pub const UNENROLLED: &str = "UNENROLLED";
    pub const COUNTERS: &str = "COUNTERS";
    pub const CONFIG: &str = "CONFIG";

    pub const CONNECT4: &str = "sluice_connect4";
    pub const CONNECT6: &str = "sluice_connect6";
    pub const GETPEERNAME4: &str = "sluice_peer4";
    pub const GETPEERNAME6: &str = "sluice_peer6";
    pub const SOCK_OPS: &str = "sluice_sockops";
}

/// Entries of SERVICES: one per selected ClusterIP and port.
pub const MAX_SERVICES: u32 = 65_536;
/// Entries of PODS: one per network namespace of an enrolled pod.
pub const MAX_PODS: u32 = 4_096;
/// Entries of HEARTBEAT: one per worker thread.
pub const MAX_WORKERS: u32 = 256;
/// Entries of FLOWS. The agent takes an entry out when it accepts; only a storm of connects that are never accepted fills it.
pub const MAX_FLOWS: u32 = 65_536;
/// Entries of COUNTERS and of CONFIG: one, whose fields have names.
pub const ONE: u32 = 1;
/// Bytes of the UNENROLLED ring: a power of two and a multiple of the page size.
pub const UNENROLLED_BYTES: u32 = 65_536;

/// How often a worker stamps its heartbeat, nanoseconds.
pub const HEARTBEAT_EVERY_NS: u64 = 100_000_000;
/// A worker whose stamp is older than this gets no new connection, nanoseconds.
pub const HEARTBEAT_STALE_NS: u64 = 1_000_000_000;

/// An address and a port; IPv4 as v4-mapped IPv6. Aligned so that the programs compare and copy it by words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// As on the wire.
    pub ip: [u8; 16],
    /// A plain number.
    pub port: u16,
    pub pad: u16,
}

/// The third word of a v4-mapped address, as the kernel holds it (network order).
const MAPPED_BE: u32 = 0xffff_u32.to_be();

impl Address {
    /// Of an IPv4 address and a port as the kernel holds them (network order).
    #[inline(always)]
    pub const fn from_v4_be(ip: u32, port: u16) -> Self {
        Self::from_v6_be([0, 0, MAPPED_BE, ip], port)
    }

    /// Of an IPv6 address (v4-mapped or not) and a port as the kernel holds them (network order).
    #[inline(always)]
    pub const fn from_v6_be(ip: [u32; 4], port: u16) -> Self {
        // SAFETY: both types are 16 bytes of which every pattern is a value.
        Self { ip: unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(ip) }, port: u16::from_be(port), pad: 0 }
    }

    /// The address in the four words the kernel wants (network order).
    #[inline(always)]
    pub const fn words_be(&self) -> [u32; 4] {
        // SAFETY: both types are 16 bytes of which every pattern is a value.
        unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(self.ip) }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words_be();
        a == 0 && b == 0 && c == MAPPED_BE
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        let ip = match addr.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { ip: ip.octets(), port: addr.port(), pad: 0 }
    }
}

impl From<Address> for SocketAddr {
    /// A v4-mapped address comes back as IPv4.
    fn from(address: Address) -> Self {
        SocketAddr::new(IpAddr::V6(Ipv6Addr::from(address.ip)).to_canonical(), address.port)
    }
}

/// Key of SERVICES: what an application dials.
pub type ServiceKey = Address;

/// Value of SERVICES.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceValue {
    /// The agent's number for the Service port; for people who read the map, the programs do not look at it.
    pub id: u32,
    /// Room for later; zero.
    pub flags: u32,
}

/// Key of PODS: the network namespace's cookie (`SO_NETNS_COOKIE`, `bpf_get_netns_cookie`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodKey {
    pub netns_cookie: u64,
}

/// Value of PODS: where the listeners of this pod are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodValue {
    /// Port of the listener on 127.0.0.1; 0: none.
    pub port4: u16,
    /// Port of the listener on ::1; 0: none.
    pub port6: u16,
    /// Index into HEARTBEAT.
    pub worker: u32,
    /// `POD_OPTED_OUT` or 0.
    pub flags: u32,
    pub pad: u32,
}

/// Flag of [`PodValue`]: the pod is annotated `sluice.dev/redirect: "false"`; its connects are left alone.
pub const POD_OPTED_OUT: u32 = 1;

/// Value of HEARTBEAT.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// CLOCK_MONOTONIC when the worker was last seen alive; 0: never.
    pub monotonic_ns: u64,
}

/// Value of ORIGINAL, a socket's own storage: what it dialled and where it was sent instead.
/// Believed only while the socket's peer is still `redirected_port` on loopback: a socket may be connected again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    pub destination: Address,
    /// The listener's port.
    pub redirected_port: u16,
    pub pad: u16,
}

/// Key of FLOWS: the client's end of a redirected connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub netns_cookie: u64,
    pub source: Address,
    pub pad: u32,
}

/// Value of FLOWS: the original destination.
pub type FlowValue = Address;

/// Record of UNENROLLED: a connect to a selected Service from a namespace that PODS does not know.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unenrolled {
    pub netns_cookie: u64,
    pub cgroup_id: u64,
    /// Process (thread group) id in the initial pid namespace.
    pub pid: u32,
    pub pad: u32,
}

/// The one entry of CONFIG.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Of the agent's own cgroup (v2): its connects are left alone; 0: none.
    pub own_cgroup: u64,
    /// 0: silent; [`LOG_DEBUG`] or more: one line per verdict.
    pub log_level: u32,
    pub pad: u32,
}

/// The least [`Config::log_level`] at which the programs say each verdict (`aya_log_ebpf::Level::Debug`).
pub const LOG_DEBUG: u32 = 4;

macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $field:ident),+ $(,)?) => {
        /// What a program did, one counter each in [`Counters`]. Every case but [`Verdict::Redirected`] of the connect
        /// programs leaves the address alone: a verdict never fails a connect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Verdict { $($(#[$doc])* $name),+ }

        impl Verdict {
            /// All of them, in the order of their counters.
            pub const ALL: &[Verdict] = &[$(Verdict::$name),+];

            /// As metrics and people name it.
            pub const fn name(self) -> &'static str {
                match self { $(Verdict::$name => stringify!($field)),+ }
            }
        }

        /// The one value of COUNTERS, on each CPU: how often each [`Verdict`] was given.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$doc])* pub $field: u64),+ }

        impl Counters {
            /// How often `verdict` was given.
            pub const fn get(&self, verdict: Verdict) -> u64 {
                match verdict { $(Verdict::$name => self.$field),+ }
            }

            /// The counter of `verdict`.
            #[inline(always)]
            pub const fn get_mut(&mut self, verdict: Verdict) -> &mut u64 {
                match verdict { $(Verdict::$name => &mut self.$field),+ }
            }
        }
    };
}

verdicts! {
    /// connect: sent to the pod's listener.
    Redirected = redirected,
    /// connect: not a TCP socket.
    NotTcp = not_tcp,
    /// connect: no entry in SERVICES: not selected, headless, a pod's address, the outside world.
    NotService = not_service,
    /// connect: the socket is bound to a device (SO_BINDTODEVICE); loopback is out of its reach.
    BoundToDevice = bound_to_device,
    /// connect: made by the agent itself.
    OwnTraffic = own_traffic,
    /// connect: the namespace is not in PODS (yet); reported through UNENROLLED.
    PodNotEnrolled = pod_not_enrolled,
    /// connect: the pod is annotated `sluice.dev/redirect: "false"`.
    PodOptedOut = pod_opted_out,
    /// connect: the pod has no listener of this address family.
    NoListener = no_listener,
    /// connect: the worker's heartbeat is older than [`HEARTBEAT_STALE_NS`].
    WorkerStale = worker_stale,
    /// connect: the kernel had no room to remember the original destination.
    NoStorage = no_storage,
    /// sock_ops: the flow of a redirected connection was recorded.
    FlowRecorded = flow_recorded,
    /// sock_ops: FLOWS took no entry; the agent will close that connection and the application dials again.
    FlowLost = flow_lost,
    /// getpeername: the application was shown the address it dialled.
    PeerRestored = peer_restored,
}

const _: () = {
    assert!(size_of::<Address>() == 20);
    assert!(size_of::<ServiceValue>() == 8);
    assert!(size_of::<PodKey>() == 8);
    assert!(size_of::<PodValue>() == 16);
    assert!(size_of::<Heartbeat>() == 8);
    assert!(size_of::<Original>() == 24);
    assert!(size_of::<FlowKey>() == 32);
    assert!(size_of::<Unenrolled>() == 24);
    assert!(size_of::<Config>() == 16);
    assert!(size_of::<Counters>() == 8 * Verdict::ALL.len());
};

#[cfg(feature = "user")]
mod user {
    //! SAFETY of all: `repr(C)`, `Copy`, without implicit padding (asserted above), any bit pattern is a value.
    use super::*;

    unsafe impl aya::Pod for Address {}
    unsafe impl aya::Pod for ServiceValue {}
    unsafe impl aya::Pod for PodKey {}
    unsafe impl aya::Pod for PodValue {}
    unsafe impl aya::Pod for Heartbeat {}
    unsafe impl aya::Pod for FlowKey {}
    unsafe impl aya::Pod for Config {}
    unsafe impl aya::Pod for Counters {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_come_back_as_they_went() {
        for text in ["10.96.0.10:50051", "[fd00:10:96::a]:50051", "[::1]:1"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(Address::from(addr)), addr);
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped: SocketAddr = "[::ffff:10.96.0.10]:80".parse().unwrap();
        let plain: SocketAddr = "10.96.0.10:80".parse().unwrap();
        assert_eq!(Address::from(mapped), Address::from(plain));
        assert_eq!(Address::from(plain), Address::from_v4_be(u32::from_ne_bytes([10, 96, 0, 10]), 80_u16.to_be()));
        assert!(Address::from(plain).is_v4());
    }

    #[test]
    fn the_words_for_the_kernel_are_the_bytes_on_the_wire() {
        let address = Address::from("[fd00:10:96::a]:80".parse::<SocketAddr>().unwrap());
        assert_eq!(address.words_be()[0], 0xfd00_0010_u32.to_be());
        assert_eq!(Address::from_v6_be(address.words_be(), 80_u16.to_be()), address);
        assert!(!address.is_v4());
    }

    #[test]
    fn each_verdict_has_a_counter_of_its_own() {
        let mut counters = Counters::default();
        for (n, &verdict) in Verdict::ALL.iter().enumerate() {
            *counters.get_mut(verdict) += n as u64 + 1;
        }
        for (n, &verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(counters.get(verdict), n as u64 + 1, "{}", verdict.name());
        }
    }
}
