//! What the scenarios share: patterned payloads, what every response owes its client, metadata sets, our own sockets.
//! In: what a call returned. Out: nothing, or an error that names the expectation that failed.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::pb::EchoResponse;

pub(crate) const UNICODE_MESSAGE: &str = "100 % – Zürich, 東京, 🚀\r\n\ttab \"quoted\"";

pub(crate) fn payload(n: usize, seed: usize) -> Vec<u8> {
    (0..n).map(|i| u8::try_from((31 * i + seed) % 251).unwrap()).collect()
}

/// Begins with an illegal protobuf tag: clients that try to read a google.rpc.Status leave it alone.
pub(crate) fn details(n: usize) -> Vec<u8> {
    let mut bytes = payload(n, 0);
    bytes[0] = 0;
    bytes
}

pub(crate) fn same<T: PartialEq<U> + Debug, U: Debug>(what: &str, got: T, want: U) -> Result<()> {
    ensure!(got == want, "{what}: got {:.200}, want {:.200}", format!("{got:?}"), format!("{want:?}"));
    Ok(())
}

/// All values of a name in order, `-bin` ones in hex.
pub(crate) fn values(metadata: &MetadataMap, name: &str) -> Vec<String> {
    if name.ends_with("-bin") {
        let bytes = metadata.get_all_bin(name).iter().map(MetadataValue::to_bytes);
        return bytes.map(|b| b.map_or("not base64".into(), |b| hex(&b))).collect();
    }
    let text = metadata.get_all(name).iter();
    text.map(|v| String::from_utf8_lossy(v.as_encoded_bytes()).into_owned()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The message names the pod that the header names.
pub(crate) fn pod_is(headers: &MetadataMap, message: &EchoResponse) -> Result<()> {
    ensure!(!message.pod.is_empty(), "the message names no pod");
    same("header x-sluice-pod", values(headers, "x-sluice-pod"), [&*message.pod])
}

pub(crate) fn ended(trailers: &MetadataMap) -> Result<()> {
    same("trailer x-sluice-trailer", values(trailers, "x-sluice-trailer"), ["end"])
}

pub(crate) fn counts(message: &EchoResponse, messages: usize, size: usize) -> Result<()> {
    same("received_messages", message.received_messages as usize, messages)?;
    same("received_bytes", message.received_bytes, size as u64)
}

pub(crate) fn failed_with(status: &Status, code: Code, message: &str) -> Result<()> {
    same("status", status.code(), code)?;
    same("status message", status.message(), message)
}

fn names(metadata: &MetadataMap) -> BTreeSet<String> {
    let name = |key| match key {
        KeyRef::Ascii(key) => key.as_str().to_owned(),
        KeyRef::Binary(key) => key.as_str().to_owned(),
    };
    metadata.keys().map(name).collect()
}

/// Metadata for comparison between runs: sorted by name, duplicates in order, `-bin` in hex, without what differs by
/// time, pod or address.
pub(crate) fn visible(metadata: &MetadataMap) -> Vec<(String, String)> {
    let hidden = ["date", "x-sluice-pod", "x-sluice-endpoint"];
    let shown = names(metadata).into_iter().filter(|name| !hidden.contains(&&**name));
    shown.flat_map(|name| values(metadata, &name).into_iter().map(move |v| (name.clone(), v))).collect()
}

/// What the metadata scenario sends under a prefix.
fn metadata_set(prefix: &str) -> [(String, Vec<Vec<u8>>); 6] {
    let ascii = [&(b'!'..=b'~').collect::<Vec<_>>()[..], b" end"].concat();
    let all = (0..=255).collect();
    [
        ("ascii", vec![ascii]),
        ("dup", vec![b"1".to_vec(), b"2".to_vec(), b"3".to_vec()]),
        ("all-bin", vec![all]),
        ("dup-bin", vec![vec![0], vec![0xff, 0xfe]]),
        ("empty", vec![vec![]]),
        ("empty-bin", vec![vec![]]),
    ]
    .map(|(name, values)| (format!("{prefix}{name}"), values))
}

pub(crate) fn add_set(metadata: &mut MetadataMap, prefix: &str) -> Result<()> {
    for (name, values) in metadata_set(prefix) {
        for value in values {
            if name.ends_with("-bin") {
                metadata.append_bin(MetadataKey::from_bytes(name.as_bytes())?, MetadataValue::from_bytes(&value));
            } else {
                let value = std::str::from_utf8(&value)?.parse()?;
                metadata.append(MetadataKey::from_bytes(name.as_bytes())?, value);
            }
        }
    }
    Ok(())
}

/// The metadata holds the whole sets of these prefixes, and nothing of the kind beyond.
pub(crate) fn carries(what: &str, metadata: &MetadataMap, prefixes: &[&str]) -> Result<()> {
    let mut expected = BTreeSet::new();
    for (name, want) in prefixes.iter().flat_map(|prefix| metadata_set(prefix)) {
        let text = |v: &Vec<u8>| if name.ends_with("-bin") { hex(v) } else { String::from_utf8_lossy(v).into_owned() };
        same(&format!("{what} {name}"), values(metadata, &name), want.iter().map(text).collect::<Vec<_>>())?;
        expected.insert(name);
    }
    let mut echoed = names(metadata);
    echoed.retain(|name| name.starts_with("x-echo-"));
    same(&format!("{what}: names that begin with x-echo-"), echoed, expected)
}

/// `ip:port` with a v4-mapped ip as plain v4.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub(crate) fn source_of(message: &EchoResponse) -> Result<IpAddr> {
    let address: SocketAddr =
        message.peer.parse().with_context(|| format!("`peer` is no ip:port: {}", message.peer))?;
    Ok(plain(address).ip())
}

/// Whom this process's own TCP sockets are connected to, as getpeername(2) tells: tonic's API does not say.
pub(crate) fn connected_peers() -> Result<BTreeSet<SocketAddr>> {
    let this = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let mut peers = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let fd: i32 = entry?.file_name().to_str().context("a number")?.parse()?;
        // A descriptor that is gone, no socket or not connected is not what we look for.
        let Ok(copy) = rustix::process::pidfd_getfd(&this, fd, PidfdGetfdFlags::empty()) else { continue };
        if rustix::net::sockopt::socket_type(&copy) != Ok(SocketType::STREAM) {
            continue;
        }
        let Ok(Some(peer)) = rustix::net::getpeername(&copy) else { continue };
        if matches!(peer.address_family(), AddressFamily::INET | AddressFamily::INET6) {
            peers.insert(plain(SocketAddr::try_from(peer)?));
        }
    }
    Ok(peers)
}
