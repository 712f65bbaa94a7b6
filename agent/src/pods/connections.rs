//! The connections that pods have open past sluice. In: the kubepods cgroup tree; out: for each pod the peers of its
//! established TCP connections, but for the agent's own sockets in there. Reads /proc when somebody asks; enters nothing.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::kubepods::groups_of_pods;
use super::layout::{self, Group, PodUid};
use super::look;

/// Connections looked at in one namespace: enough to name a reason.
const MOST: usize = 10_000;
/// `TCP_ESTABLISHED` as /proc/net/tcp writes it.
const ESTABLISHED: &str = "01";

/// How many connections a pod has to each peer.
pub type Peers = BTreeMap<SocketAddr, usize>;

/// Of all pods that are there. Namespaces of the host are not looked into.
pub fn connections(kubepods: &Path) -> Vec<(PodUid, Peers)> {
    let mut own = own_sockets();
    let hosts = ["1", "self"].map(namespace);
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    for group in groups_of_pods(kubepods) {
        let Some(Group::Pod(uid)) = group.file_name().and_then(|name| name.to_str()).map(layout::classify) else {
            continue;
        };
        let mut found = Vec::new();
        for pid in look::processes_below(&group) {
            let pid = pid.to_string();
            let Some(namespace) = namespace(&pid).filter(|it| !hosts.contains(&Some(*it))) else { continue };
            if !seen.insert(namespace) {
                continue;
            }
            for table in ["tcp", "tcp6"] {
                let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
                found.extend(text.lines().take(MOST).filter_map(established));
            }
        }
        all.push((uid, found));
    }
    // And what workers have dialled since the look began.
    own.extend(own_sockets());
    let peers = all.into_iter().map(|(uid, found)| (uid, of_others(&found, &own)));
    peers.filter(|(_, peers)| !peers.is_empty()).collect()
}

fn of_others(found: &[(SocketAddr, u64)], own: &HashSet<u64>) -> Peers {
    let mut peers = Peers::new();
    for (peer, _) in found.iter().filter(|(_, inode)| !own.contains(inode)) {
        *peers.entry(*peer).or_default() += 1;
    }
    peers
}

fn namespace(pid: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|it| it.ino())
}

/// The inodes of this process's sockets.
fn own_sockets() -> HashSet<u64> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return HashSet::new() };
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    entries.flatten().filter_map(inode).collect()
}

/// The peer and the inode of a line of /proc/net/tcp or tcp6 (proc(5)) that is an established connection.
fn established(line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(2);
    let peer = address(fields.next()?)?;
    if fields.next()? != ESTABLISHED {
        return None;
    }
    Some((peer, fields.nth(5)?.parse().ok()?))
}

/// `0100007F:1F90`: words of the address as this machine holds them.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn established_connections_are_read_in_both_families_and_mapped_ones_as_ipv4() {
        let line = |peer: &str, state: &str| {
            format!("   1: 0100007F:8AE2 {peer} {state} 00000000:00000000 00:00000000 00000000  1000        0 4242 1 x")
        };
        for (peer, addr) in [
            ("0A00600A:C383", "10.96.0.10:50051"),
            ("0000000000000000FFFF00000A00600A:C383", "10.96.0.10:50051"),
            ("000000FD000096000000000010000000:0050", "[fd00:0:96::10]:80"),
        ] {
            let expected: SocketAddr = addr.parse().unwrap();
            assert_eq!(established(&line(peer, "01")), Some((expected, 4242)));
        }
        assert_eq!(established(&line("0A00600A:C383", "06")), None, "TIME_WAIT");
        assert_eq!(
            established("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid"),
            None
        );
    }

    #[test]
    fn what_this_process_has_open_is_its_own() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = stream.local_addr().unwrap().port();
        let (accepted, _) = listener.accept().unwrap();
        let text = fs::read_to_string("/proc/self/net/tcp").unwrap();
        let (_, inode) = text.lines().filter_map(established).find(|(peer, _)| peer.port() == port).unwrap();
        assert!(own_sockets().contains(&inode));
        let (own, others) = (listener.local_addr().unwrap(), "10.0.0.1:1".parse().unwrap());
        let peers = of_others(&[(own, inode), (others, u64::MAX), (others, u64::MAX - 1)], &own_sockets());
        assert_eq!(peers, Peers::from([(others, 2)]));
        drop(accepted);
    }
}
