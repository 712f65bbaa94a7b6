//! An EndpointSlice as the API has it. A cluster has a hundred thousand endpoints and each is in memory: an endpoint is
//! small, and names that many endpoints share are held once.

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Unexpected};

use super::intern::Interner;
use super::read::{Name, interned_or_empty, null_is_default, optional_interned, optional_port};
use super::{Metadata, Protocol};

thread_local! {
    // Of the thread that reads: a source has one.
    static HINTS: RefCell<Interner<Hints>> = RefCell::new(Interner::new());
    static PLACES: RefCell<Interner<Place>> = RefCell::new(Interner::new());
}

/// Some of a Service's endpoints, all of one address family.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    pub metadata: Metadata,
    pub address_type: AddressType,
    /// Required by the API; `null` where there is none.
    #[serde(deserialize_with = "null_is_default")]
    pub endpoints: Box<[SliceEndpoint]>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Box<[SlicePort]>,
}

/// `addressType` of an EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum AddressType {
    IPv4,
    IPv6,
    #[serde(rename = "FQDN")]
    Fqdn,
}

impl AddressType {
    /// Whether an address may stand in a slice of this type.
    pub fn admits(self, address: &SliceAddress) -> bool {
        match (self, address) {
            (AddressType::IPv4, SliceAddress::Ip(ip)) => ip.is_ipv4(),
            (AddressType::IPv6, SliceAddress::Ip(ip)) => ip.is_ipv6(),
            (AddressType::Fqdn, _) => true,
            (AddressType::IPv4 | AddressType::IPv6, SliceAddress::Name(_)) => false,
        }
    }

    /// As it is written in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            AddressType::IPv4 => "IPv4",
            AddressType::IPv6 => "IPv6",
            AddressType::Fqdn => "FQDN",
        }
    }
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Written")]
pub struct SliceEndpoint {
    pub addresses: Box<[SliceAddress]>,
    pub conditions: Conditions,
    /// The UID of what stands behind it, and if that is a Pod, as a rule, a space and its name: one piece of memory for both.
    /// None in slices made by hand.
    pub target: Option<Arc<str>>,
    /// Where it runs, as far as that is said.
    pub place: Option<Arc<Place>>,
    /// Who is to use it, by the word of the control plane. None: it says nothing.
    pub hints: Option<Arc<Hints>>,
}

/// A node and its zone. Many endpoints have it in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
}

/// An endpoint as it is in the API.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(deserialize_with = "null_is_default")]
    addresses: Box<[SliceAddress]>,
    #[serde(default, deserialize_with = "null_is_default")]
    conditions: Conditions,
    #[serde(default)]
    target_ref: Option<TargetRef>,
    #[serde(default, deserialize_with = "optional_interned")]
    node_name: Option<Arc<str>>,
    #[serde(default, deserialize_with = "optional_interned")]
    zone: Option<Arc<str>>,
    #[serde(default, deserialize_with = "hints")]
    hints: Option<Arc<Hints>>,
}

#[derive(Deserialize)]
struct TargetRef {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    uid: Option<String>,
}

impl From<Written> for SliceEndpoint {
    fn from(Written { addresses, conditions, target_ref, node_name, zone, hints }: Written) -> Self {
        let target = target_ref.and_then(|TargetRef { kind, name, uid }| {
            let name = name.filter(|_| kind.as_deref() == Some("Pod"));
            Some([uid?, name.map(|name| format!(" {name}")).unwrap_or_default()].concat().into())
        });
        Self { addresses, conditions, target, place: place(node_name, zone), hints }
    }
}

/// Few combinations of hints are many endpoints' own.
fn hints<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Arc<Hints>>, D::Error> {
    #[derive(Deserialize)]
    struct For {
        name: Name,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Written {
        #[serde(default)]
        for_zones: Option<Vec<For>>,
        #[serde(default)]
        for_nodes: Option<Vec<For>>,
    }
    let names = |written: Option<Vec<For>>| written.unwrap_or_default().into_iter().map(|it| it.name.0).collect();
    let Some(written) = Option::<Written>::deserialize(de)? else { return Ok(None) };
    let hints = Hints { zones: names(written.for_zones), nodes: names(written.for_nodes) };
    Ok((hints != Hints::default()).then(|| HINTS.with_borrow_mut(|known| known.get(hints))))
}

/// As few as there are nodes.
fn place(node: Option<Arc<str>>, zone: Option<Arc<str>>) -> Option<Arc<Place>> {
    let place = Place { node, zone };
    (place != Place::default()).then(|| PLACES.with_borrow_mut(|known| known.get(place)))
}

/// `hints` of an endpoint: the zones and Nodes whose clients are to use it. Made of `trafficDistribution`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    pub zones: Box<[Arc<str>]>,
    pub nodes: Box<[Arc<str>]>,
}

/// `conditions` of an endpoint, as written. What an absent one means is said by the methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    serving: Option<bool>,
    #[serde(default)]
    terminating: Option<bool>,
}

impl Conditions {
    /// Takes new connections; already true for every endpoint of a Service with `publishNotReadyAddresses`.
    pub fn ready(self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Is on its way out but still answers: the last resort where nothing is ready.
    pub fn serving_while_terminating(self) -> bool {
        self.serving.unwrap_or(true) && self.terminating.unwrap_or(false)
    }
}

/// An endpoint's address: an IP address, or a DNS name in slices of type FQDN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceAddress {
    Ip(IpAddr),
    Name(Arc<str>),
}

impl fmt::Display for SliceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SliceAddress::Ip(ip) => ip.fmt(f),
            SliceAddress::Name(name) => name.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for SliceAddress {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        let text = String::deserialize(de)?;
        match text.parse::<IpAddr>() {
            Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(SliceAddress::Ip(ip.to_canonical())),
            Err(_) if is_dns_name(&text) => Ok(SliceAddress::Name(text.into())),
            _ => Err(D::Error::invalid_value(Unexpected::Str(&text), &"an IP address of an endpoint")),
        }
    }
}

/// RFC 1123, and a last label that is not all digits: `10.1.0.300` is a mistyped address, not a name.
fn is_dns_name(text: &str) -> bool {
    let label = |it: &str| {
        !it.is_empty()
            && it.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !it.starts_with('-')
            && !it.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// One of a slice's ports, where the Service's target port has already become a number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SlicePort {
    /// The name of the Service's port, empty where that has none.
    #[serde(default = "super::read::no_name", deserialize_with = "interned_or_empty")]
    pub name: Arc<str>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub protocol: Protocol,
    /// None: "all ports", which no Service port asks for.
    #[serde(default, deserialize_with = "optional_port")]
    pub port: Option<NonZeroU16>,
}
