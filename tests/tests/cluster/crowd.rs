//! Services in number, gRPC by their port's protocol, each with one slice of endpoints that nobody has: sluice knows them,
//! nothing runs behind them, and kube-proxy leaves them alone. In: how many; out: they are there, change, and go with
//! their guard. Judges nothing.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::Cluster;

use crate::sluice::PORT;
use crate::world::Namespace;

pub const ENDPOINTS: u32 = 10;
/// Requests under way at a time.
const WORKERS: &str = "32";
/// 198.18.0.0/15 is for benchmarks (RFC 2544): no pod has it, and it is large enough for 100,000 endpoints.
const RANGE: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// The cluster's ClusterIPs, 10.96.0.0/16, from where the API server hands none out unasked.
const CLUSTER_IPS: u32 = u32::from_be_bytes([10, 96, 1, 0]);
/// kube-proxy and its like leave objects with this label to others.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Who makes the Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    ApiServer,
    /// The test writes them to etcd as the API server would: that takes 20 to 40 ms of CPU for each address that it gives,
    /// and 10,000 Services would take six minutes to come and three to go.
    Etcd,
}

pub struct Crowd<'a> {
    space: &'a Namespace,
    count: u32,
    by: By,
    /// What etcd was given: keys.
    stored: Vec<String>,
}

/// One endpoint of a Service that is no longer ready, by the word of the API server.
pub struct Changed {
    pub service: String,
    /// Since the epoch, by this machine's clock, which is the agents' too.
    pub sent: Duration,
    pub answered: Duration,
}

impl<'a> Crowd<'a> {
    pub fn make(space: &'a Namespace, count: u32, by: By) -> Result<Self> {
        let mut crowd = Self { space, count, by, stored: Vec::new() };
        let lines = |object: fn(&str, u32) -> Value, path: &str| {
            (0..count)
                .fold(String::new(), |lines, number| lines + &format!("POST {path} {}\n", object(space.name(), number)))
        };
        match by {
            By::ApiServer => bulk(space.cluster(), "0", &lines(service, &crowd.path("services"))).map(drop)?,
            By::Etcd => crowd.store()?,
        }
        bulk(space.cluster(), "0", &lines(slice, &crowd.path("endpointslices")))?;
        Ok(crowd)
    }

    fn path(&self, resource: &str) -> String {
        let group = if resource == "services" { "/api/v1" } else { "/apis/discovery.k8s.io/v1" };
        format!("{group}/namespaces/{}/{resource}", self.space.name())
    }

    /// Takes one endpoint away from so many Services, each another one, at so many a second.
    pub fn change(&self, changes: u32, per_second: u32) -> Result<Vec<Changed>> {
        ensure!(changes <= self.count, "{changes} changes of {} Services, each once", self.count);
        // A prime that divides no count of ours: far apart, and each once.
        let numbers = (0..changes).map(|change| change * 7919 % self.count);
        let path = self.path("endpointslices");
        let lines = numbers.fold(String::new(), |mut lines, number| {
            let ready = format!("/endpoints/{}/conditions/ready", number % ENDPOINTS);
            let patch = json!([{ "op": "replace", "path": ready, "value": false }]);
            _ = writeln!(lines, "PATCH {path}/{} {patch}", name(number));
            lines
        });
        let answers = bulk(self.space.cluster(), &per_second.to_string(), &lines)?;
        let changed: Vec<_> = answers.lines().map(changed).collect::<Option<_>>().context("the probe's answers")?;
        ensure!(changed.len() == changes as usize, "{} of {changes} changes were answered", changed.len());
        Ok(changed)
    }

    fn store(&mut self) -> Result<()> {
        let cluster = self.space.cluster();
        let taken = cluster.kubectl(&["get", "ipaddresses", "--output=jsonpath={.items[*].metadata.name}"])?;
        let taken: BTreeSet<&str> = taken.split_whitespace().collect();
        let free = (CLUSTER_IPS..).map(|bits| Ipv4Addr::from(bits).to_string()).filter(|ip| !taken.contains(&**ip));
        let now = cluster.kubectl(&[
            "get",
            "namespace",
            self.space.name(),
            "--output=jsonpath={.metadata.creationTimestamp}",
        ])?;
        let (mut addresses, mut services) = (String::new(), String::new());
        for (number, ip) in (0..self.count).zip(free) {
            let key = format!("/registry/ipaddresses/{ip}");
            _ = writeln!(addresses, "PUT {key} {}", stored_address(self.space.name(), number, &ip, &now));
            self.stored.push(key);
            let key = format!("/registry/services/specs/{}/{}", self.space.name(), name(number));
            _ = writeln!(services, "PUT {key} {}", stored_service(self.space.name(), number, &ip, &now));
            self.stored.push(key);
        }
        // A Service without its address is one for the API server to repair.
        cluster.store(&(addresses + &services)).map(drop)
    }

    /// Removes them all; the namespace's own end would take longer.
    pub fn remove(mut self) -> Result<()> {
        self.clear()
    }

    fn clear(&mut self) -> Result<()> {
        let cluster = self.space.cluster();
        let count = std::mem::take(&mut self.count);
        let delete = |path: String| {
            (0..count).fold(String::new(), |lines, number| lines + &format!("DELETE {path}/{}\n", name(number)))
        };
        if count == 0 {
            return Ok(());
        }
        let slices = bulk(cluster, "0", &delete(self.path("endpointslices")));
        let services = match self.by {
            By::ApiServer => bulk(cluster, "0", &delete(self.path("services"))),
            By::Etcd => {
                let lines: String = self.stored.iter().map(|key| format!("DELETE {key}\n")).collect();
                cluster.store(&lines)
            }
        };
        slices.and(services).map(drop)
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("not all Services of {} are removed: {error:#}", self.space.name());
        }
    }
}

fn bulk(cluster: &Cluster, per_second: &str, lines: &str) -> Result<String> {
    let kubeconfig = cluster.kubeconfig();
    cluster.probe(&["bulk", kubeconfig.to_str().context("a path in UTF-8")?, WORKERS, per_second], lines)
}

/// Of a line of `probe bulk`: status, microseconds when sent and when answered, method, path.
fn changed(line: &str) -> Option<Changed> {
    let mut words = line.split(' ').skip(1);
    let mut time = || words.next()?.parse().ok().map(Duration::from_micros);
    let (sent, answered) = (time()?, time()?);
    let service = line.rsplit('/').next()?.to_owned();
    Some(Changed { service, sent, answered })
}

fn name(number: u32) -> String {
    format!("service-{number:05}")
}

fn service(_space: &str, number: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name(number), "labels": { PROXY_NAME: "none" } },
        "spec": { "ports": [{ "name": "api", "port": PORT, "appProtocol": "kubernetes.io/h2c" }] },
    })
}

/// As large as the control plane makes them for the pods of a Deployment.
fn slice(space: &str, number: u32) -> Value {
    let name = name(number);
    let endpoints: Vec<_> = (number * ENDPOINTS..(number + 1) * ENDPOINTS)
        .map(|endpoint| {
            json!({
                "addresses": [Ipv4Addr::from(RANGE + endpoint).to_string()],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": format!("worker-{:03}", endpoint % 500),
                "zone": format!("zone-{}", endpoint % 3),
                "targetRef": {
                    "kind": "Pod", "namespace": space, "name": format!("{name}-7c9d8b6f5d-{endpoint:06}"), "uid": uid(endpoint),
                },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "labels": {
                PROXY_NAME: "none", "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "sluice-scale-test",
            },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "api", "protocol": "TCP", "port": PORT }],
        "endpoints": endpoints,
    })
}

/// As the API server has a Service in its store.
fn stored_service(space: &str, number: u32, ip: &str, now: &str) -> Value {
    let mut object = service(space, number);
    let metadata = &mut object["metadata"];
    (metadata["namespace"], metadata["uid"], metadata["creationTimestamp"]) =
        (space.into(), uid(1_000_000 + number).into(), now.into());
    let spec = &mut object["spec"];
    (spec["ports"][0]["protocol"], spec["ports"][0]["targetPort"]) = ("TCP".into(), PORT.into());
    (spec["clusterIP"], spec["clusterIPs"]) = (ip.into(), json!([ip]));
    (spec["type"], spec["sessionAffinity"], spec["internalTrafficPolicy"]) =
        ("ClusterIP".into(), "None".into(), "Cluster".into());
    (spec["ipFamilies"], spec["ipFamilyPolicy"]) = (json!(["IPv4"]), "SingleStack".into());
    object["status"] = json!({ "loadBalancer": {} });
    object
}

/// The object by which the API server knows that a ClusterIP is a Service's.
fn stored_address(space: &str, number: u32, ip: &str, now: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": ip, "uid": uid(2_000_000 + number), "creationTimestamp": now,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": { "parentRef": { "resource": "services", "namespace": space, "name": name(number) } },
    })
}

/// Another in each run, since a UID is one object's for ever.
fn uid(number: u32) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("{:08x}-0000-4000-8000-{number:012x}", now & 0xffff_ffff)
}
