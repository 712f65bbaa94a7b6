//! Other proxies as sidecars in a client pod: in, a pod, ports and the endpoints behind all of them; out, a process that
//! listens on loopback. One thread each, every stream to the next endpoint, connections to endpoints kept, no access log.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testbed::{Launch, Node, Pod, Process, find_tool};

use super::peers::Peer;
use crate::scenarios::envoy;

/// Each listens from this port on, one port for each Service.
pub(crate) const FIRST_PORT: u16 = 7000;
/// A hundred of them start at once.
const LISTENS_WITHIN: Duration = Duration::from_secs(120);

/// What the sidecars lead to.
pub(crate) struct Upstream {
    pub(crate) endpoints: Vec<Ipv4Addr>,
    pub(crate) port: u16,
    /// Listeners, each with a group of endpoints of its own.
    pub(crate) services: u16,
}

/// A sidecar that starts.
pub(crate) struct Sidecar {
    process: Process,
    log: PathBuf,
    name: &'static str,
}

impl Sidecar {
    /// Starts it; [`Sidecar::ready`] waits until it listens.
    pub(crate) fn start(
        peer: Peer,
        node: &Node,
        client: &Pod,
        upstream: &Upstream,
        envoy_program: Option<&Path>,
    ) -> Result<Self> {
        let file = |ending: &str| node.folder().join(format!("{}-{}.{ending}", peer.name(), client.name()));
        let (config, log) = (file("conf"), file("log"));
        let write = |text: String| fs::write(&config, text).with_context(|| format!("cannot write {config:?}"));
        let process = match peer {
            Peer::Haproxy | Peer::HaproxyTcp | Peer::HaproxyTls => {
                write(haproxy(upstream, peer == Peer::Haproxy))?;
                spawn(client.command(tool("haproxy")).args(["-db", "-f"]).arg(&config), &log)?
            }
            Peer::Nginx => {
                write(nginx(upstream, node.folder(), client.name()))?;
                spawn(client.command(tool("nginx")).arg("-e").arg(&log).arg("-c").arg(&config), &log)?
            }
            Peer::Envoy => {
                let program = envoy_program.context("Envoy is not installed")?;
                let ways: Vec<_> = upstream.ports().map(envoy_way).collect();
                let (process, log) = envoy::launch(node, client, program, upstream.envoy(), &ways)?;
                return Ok(Self { process, log, name: peer.name() });
            }
            Peer::KubeProxy | Peer::Sluice | Peer::SluiceOpaque => bail!("{} is no sidecar", peer.name()),
        };
        Ok(Self { process, log, name: peer.name() })
    }

    /// The process, as soon as its last port listens. An error as soon as it has ended instead.
    pub(crate) fn ready(mut self, client: &Pod, upstream: &Upstream) -> Result<Process> {
        let last = upstream.ports().end - 1;
        let said = |log: &Path| fs::read_to_string(log).unwrap_or_default();
        let mut waited = Duration::ZERO;
        while let Err(error) = client.wait_listening(last, Duration::from_secs(1)) {
            waited += Duration::from_secs(1);
            if let Some(status) = self.process.try_wait()? {
                bail!("{} did not start: {status}\n{}", self.name, said(&self.log));
            }
            if waited > LISTENS_WITHIN {
                return Err(error.context(format!("{} said:\n{}", self.name, said(&self.log))));
            }
        }
        Ok(self.process)
    }
}

impl Upstream {
    fn envoy(&self) -> envoy::Source<'_> {
        envoy::Source::Fixed { addresses: &self.endpoints, port: self.port }
    }

    fn ports(&self) -> Range<u16> {
        FIRST_PORT..FIRST_PORT + self.services
    }
}

/// The end of TLS in an endpoint's pod: HAProxy, which gives the bytes below to the server beside it.
pub(crate) fn tls_end(node: &Node, pod: &Pod, port: u16, server: u16, certificate: &Path) -> Result<Process> {
    let config = node.folder().join(format!("tls-{}.conf", pod.name()));
    let text = format!(
        "global\n nbthread 1\n maxconn 4500\ndefaults\n mode tcp\n timeout client 1h\n timeout server 1h\n \
         timeout connect 5s\nlisten tls\n bind :{port} ssl crt {} alpn h2\n server s 127.0.0.1:{server}\n",
        certificate.display()
    );
    fs::write(&config, text)?;
    let log = config.with_extension("log");
    let process = spawn(pod.command(tool("haproxy")).args(["-db", "-f"]).arg(&config), &log)?;
    pod.wait_listening(port, Duration::from_secs(20))
        .with_context(|| format!("HAProxy said: {}", fs::read_to_string(&log).unwrap_or_default()))?;
    Ok(process)
}

fn tool(name: &str) -> PathBuf {
    find_tool(name).unwrap_or_else(|| name.into())
}

fn spawn(launch: Launch, log: &Path) -> Result<Process> {
    let out = File::options().create(true).append(true).open(log).with_context(|| format!("cannot write {log:?}"))?;
    launch.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()
}

/// With HTTP/2 connections to servers are shared as freely as it can. A stream's window is a megabyte: 64 KiB, its
/// default, would hold large messages up.
fn haproxy(upstream: &Upstream, http2: bool) -> String {
    let (mode, proto, reuse) = if http2 { ("http", " proto h2", " http-reuse always\n") } else { ("tcp", "", "") };
    let mut config = format!(
        "global\n nbthread 1\n maxconn 4500\n tune.h2.initial-window-size 1048576\n \
         tune.h2.max-concurrent-streams 1000\ndefaults\n mode {mode}\n timeout client 1h\n timeout server 1h\n \
         timeout connect 5s\n"
    );
    for port in upstream.ports() {
        let _ = write!(
            config,
            "frontend in{port}\n bind :{port}{proto}\n default_backend out{port}\nbackend out{port}\n \
             balance roundrobin\n{reuse}"
        );
        for (i, ip) in upstream.endpoints.iter().enumerate() {
            let _ = writeln!(config, " server s{i} {ip}:{}{proto}", upstream.port);
        }
    }
    config
}

/// It has one request at a time on a connection to an endpoint: as many as are open are kept, and none is ended for its
/// age. Buffers hold a large message.
fn nginx(upstream: &Upstream, folder: &Path, pod: &str) -> String {
    let folder = folder.display();
    let kept = upstream.endpoints.len().max(256);
    let mut config = format!(
        "daemon off;\nuser root;\nworker_processes 1;\nworker_rlimit_nofile 16384;\npid {folder}/nginx-{pod}.pid;\n\
         events {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\nkeepalive_requests 1000000000;\n\
         keepalive_timeout 1h;\nkeepalive_time 1h;\nhttp2_max_concurrent_streams 1000;\n\
         http2_body_preread_size 128k;\nclient_body_buffer_size 128k;\ngrpc_buffer_size 128k;\n\
         grpc_read_timeout 1h;\n"
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(config, "{kind}_temp_path {folder}/nginx-{pod}-{kind};");
    }
    for port in upstream.ports() {
        let _ = writeln!(config, "upstream out{port} {{");
        for ip in &upstream.endpoints {
            let _ = writeln!(config, "server {ip}:{} max_fails=0;", upstream.port);
        }
        let _ = writeln!(
            config,
            "keepalive {kept}; keepalive_requests 1000000000; keepalive_time 1h; keepalive_timeout 1h;\n}}\n\
             server {{ listen {port} http2; location / {{ grpc_pass grpc://out{port}; }} }}"
        );
    }
    config + "}\n"
}

fn envoy_way(port: u16) -> envoy::Way {
    envoy::Way { name: format!("out{port}"), port, policy: "ROUND_ROBIN", outliers: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream() -> Upstream {
        let endpoints = vec![Ipv4Addr::new(10, 244, 0, 2), Ipv4Addr::new(10, 244, 0, 3)];
        Upstream { endpoints, port: 50051, services: 2 }
    }

    #[test]
    fn each_service_has_a_port_and_all_endpoints() {
        let config = haproxy(&upstream(), true);
        assert!(config.contains("bind :7001 proto h2\n default_backend out7001"));
        assert_eq!(config.matches("10.244.0.3:50051 proto h2").count(), 2);
        let config = nginx(&upstream(), Path::new("/tmp/x"), "client-1");
        assert!(config.contains("listen 7001 http2; location / { grpc_pass grpc://out7001; }"));
        assert_eq!(config.matches("server 10.244.0.3:50051").count(), 2);
    }

    #[test]
    fn bytes_are_relayed_without_a_word_of_http() {
        let config = haproxy(&upstream(), false);
        assert!(config.contains("mode tcp") && !config.contains("proto h2") && !config.contains("http-reuse"));
    }
}
