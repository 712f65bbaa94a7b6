//! What kube-proxy does on a node: in, the Services' addresses and usable endpoints; out, one nftables table that sends
//! each new connection to a random endpoint, for both families. No affinity, no node ports, no load balancer addresses.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::netns::Netns;

/// ClusterIPs of the simulated cluster.
pub(crate) const SERVICES4: &str = "10.96.0.0/16";
pub(crate) const SERVICES6: &str = "fd00:10:96::/112";

/// One port of a Service in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frontend {
    pub(crate) address: SocketAddr,
    /// Of the same family as the address.
    pub(crate) endpoints: Vec<IpAddr>,
    pub(crate) target_port: u16,
}

/// Replaces the table in one transaction; connections made before keep their endpoint (conntrack).
pub(crate) fn apply(node: &Netns, table: &str, frontends: &[Frontend]) -> Result<()> {
    node.tool("nft", &["-f", "-"], &ruleset(table, frontends)).map(drop)
}

/// The transaction as nft reads it.
fn ruleset(table: &str, frontends: &[Frontend]) -> String {
    let mut services = String::new();
    let (mut own4, mut own6) = (Vec::new(), Vec::new());
    for Frontend { address, endpoints, target_port } in frontends {
        let family = family(address.ip());
        if endpoints.is_empty() {
            continue;
        }
        let map: Vec<_> = endpoints.iter().enumerate().map(|(i, ip)| format!("{i} : {ip}")).collect();
        let _ = writeln!(
            services,
            "    {family} daddr {} tcp dport {} dnat {family} to numgen random mod {} map {{ {} }}:{target_port}",
            address.ip(),
            address.port(),
            endpoints.len(),
            map.join(", "),
        );
        let own = if address.is_ipv4() { &mut own4 } else { &mut own6 };
        own.extend(endpoints.iter().map(|ip| format!("{ip} . {ip}")));
    }
    let hairpin = |family: &str, mut pairs: Vec<String>| {
        pairs.sort();
        pairs.dedup();
        if pairs.is_empty() {
            return String::new();
        }
        // A pod that was sent to itself must see another source address, or it answers itself without the way back.
        format!("    ct status dnat {family} saddr . {family} daddr {{ {} }} masquerade\n", pairs.join(", "))
    };
    let masquerade = hairpin("ip", own4) + &hairpin("ip6", own6);
    format!(
        "table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  chain services {{
{services}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat
    jump services
  }}
  chain output {{
    type nat hook output priority -100
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
{masquerade}  }}
  chain refuse {{
    ip daddr {SERVICES4} reject
    ip6 daddr {SERVICES6} reject
  }}
  chain forward {{
    type filter hook forward priority filter
    jump refuse
  }}
  chain local {{
    type filter hook output priority filter
    jump refuse
  }}
}}
"
    )
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ip" } else { "ip6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_has_one_chance_and_hairpins_are_masqueraded() {
        let four = Frontend {
            address: "10.96.0.10:80".parse().unwrap(),
            endpoints: vec!["10.244.0.2".parse().unwrap(), "10.244.0.3".parse().unwrap()],
            target_port: 8080,
        };
        let six = Frontend {
            address: "[fd00:10:96::a]:80".parse().unwrap(),
            endpoints: vec!["fd00:10:244::2".parse().unwrap()],
            target_port: 8080,
        };
        let rules = ruleset("t", &[four, six]);
        assert!(rules.contains(
            "ip daddr 10.96.0.10 tcp dport 80 dnat ip to \
             numgen random mod 2 map { 0 : 10.244.0.2, 1 : 10.244.0.3 }:8080"
        ));
        assert!(rules.contains(
            "ip6 daddr fd00:10:96::a tcp dport 80 dnat ip6 to numgen random mod 1 map { 0 : fd00:10:244::2 }:8080"
        ));
        assert!(rules.contains(
            "ct status dnat ip saddr . ip daddr { 10.244.0.2 . 10.244.0.2, 10.244.0.3 . 10.244.0.3 } masquerade"
        ));
    }

    #[test]
    fn a_service_without_endpoints_has_no_dnat_and_is_refused() {
        let empty = Frontend { address: "10.96.0.10:80".parse().unwrap(), endpoints: vec![], target_port: 80 };
        let rules = ruleset("t", &[empty]);
        assert!(!rules.contains("dnat ip"));
        assert!(rules.contains("ip daddr 10.96.0.0/16 reject"));
    }
}
