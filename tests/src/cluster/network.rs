//! Addresses and links: the control plane's bridge in the machine's own network namespace, a link from there to each
//! node, and one between the nodes, so that the machine itself forwards nothing (its firewall may not let it). Pods are
//! routed, each on a link of its own: all they send passes kube-proxy's rules. IPv4 and IPv6 throughout.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::state;

/// Where the API server listens.
pub(super) const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
pub(super) const CONTROL_PLANE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 1);
/// ClusterIPs, and the two addresses which the `kubernetes` Service may get.
pub(super) const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
pub(super) const KUBERNETES: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
/// The pods of all nodes.
pub(super) const PODS: &str = "10.201.0.0/16,fd00:10:201::/48";

const BRIDGE: &str = "sluice0";
/// The links' ends in the machine's own namespace, by the node's number.
const LINKS: [&str; 2] = ["sluice-node-a", "sluice-node-b"];

/// A node's addresses, as `--node-ip` has them.
pub(super) fn node_ips(number: u8) -> String {
    format!("10.200.0.1{number},fd00:10:200::1{number}")
}

/// How a node's pods are connected, as CNI has it.
pub(super) fn cni(number: u8) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": [
                    [{ "subnet": format!("10.201.{number}.0/24") }],
                    [{ "subnet": format!("fd00:10:201:{number}::/64") }],
                ],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    })
}

/// An error if somebody else's link has one of the names.
pub(super) fn is_free() -> Result<()> {
    match ours().find(|link| is_there(link)) {
        Some(link) => bail!("a link {link} is in the way that is no cluster's: if nobody needs it, ip link del {link}"),
        None => Ok(()),
    }
}

fn ours() -> impl Iterator<Item = &'static str> {
    LINKS.into_iter().chain([BRIDGE])
}

fn is_there(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

/// Makes the bridge, all links and routes. In: the processes that hold the nodes' namespaces.
pub(super) fn make(holders: [u32; 2]) -> Result<()> {
    let mut links = format!(
        "link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0
addr add {CONTROL_PLANE}/24 dev {BRIDGE}
addr add {CONTROL_PLANE6}/64 dev {BRIDGE} nodad
link set {BRIDGE} up
"
    );
    for (number, (link, holder)) in (1..).zip(LINKS.iter().zip(holders)) {
        let _ = write!(
            links,
            "link add {link} type veth peer name eth0 netns {holder}
link set {link} master {BRIDGE} up
route add 10.201.{number}.0/24 via 10.200.0.1{number}
route add fd00:10:201:{number}::/64 via fd00:10:200::1{number}
"
        );
    }
    let [one, other] = holders;
    // Made in the namespace of the one, with its other end in that of the other.
    let between = format!("link add eth1 type veth peer name eth1 netns {other}\n");
    state::run(state::command("ip").args(["-batch", "-"]), &links)?;
    state::run(in_netns(one).args(["ip", "-batch", "-"]), &between)?;
    join(1, one)?;
    join(2, other)
}

/// What a node does with its links once they are there.
fn join(number: u8, holder: u32) -> Result<()> {
    let other = 3 - number;
    let links = format!(
        "link set lo up
addr add 10.200.0.1{number}/24 dev eth0
addr add fd00:10:200::1{number}/64 dev eth0 nodad
link set eth0 up
addr add 10.200.1.{number}/24 dev eth1
addr add fd00:10:200:1::{number}/64 dev eth1 nodad
link set eth1 up
route add default via {CONTROL_PLANE} dev eth0
route add default via {CONTROL_PLANE6} dev eth0
route add 10.200.0.1{other} via 10.200.1.{other}
route add fd00:10:200::1{other} via fd00:10:200:1::{other}
route add 10.201.{other}.0/24 via 10.200.1.{other}
route add fd00:10:201:{other}::/64 via fd00:10:200:1::{other}
"
    );
    let settings = "
for setting in ipv4/ip_forward=1 ipv6/conf/all/forwarding=1 ipv6/conf/default/accept_dad=0 ipv6/conf/all/accept_dad=0 \
    ipv4/conf/all/rp_filter=0 ipv4/conf/default/rp_filter=0; do
    echo ${setting#*=} >/proc/sys/net/${setting%=*}
done";
    state::run(in_netns(holder).args(["sh", "-euc", settings]), "")?;
    state::run(in_netns(holder).args(["ip", "-batch", "-"]), &links).map(drop)
}

fn in_netns(holder: u32) -> Command {
    let mut command = state::command("nsenter");
    command.args(["--target", &holder.to_string(), "--net", "--"]);
    command
}

/// Removes what is in the machine's own namespace; only after [`make`] or on its way.
pub(super) fn remove() -> Result<()> {
    for link in ours().filter(|link| is_there(link)) {
        // A link whose other end's namespace is just going may be gone first.
        let removed = state::output(state::command("ip").args(["link", "del", link]), b"");
        if removed.is_err() && is_there(link) {
            return removed.map(drop);
        }
    }
    Ok(())
}
