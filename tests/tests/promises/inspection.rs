//! What a person sees with bpftool while the agent runs: programs and maps under their names, fields under the contract's
//! names, and counters that add up to the traffic there was.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testbed::scene::{Backend, PORT, serve, with_log};
use testbed::{Agent, Node, PodSpec, find_tool};

use crate::probe::{Probe, redirected};
use crate::scene::{echo, pod_line};

const MAPS: [&str; 8] = ["SERVICES", "PODS", "HEARTBEAT", "ORIGINAL", "FLOWS", "UNENROLLED", "COUNTERS", "CONFIG"];
const PROGRAMS: [&str; 5] = ["sluice_connect4", "sluice_connect6", "sluice_peer4", "sluice_peer6", "sluice_sockops"];

fn bpftool(args: &[&str]) -> Result<String> {
    let program = find_tool("bpftool").context("no bpftool: apt-get install bpftool")?;
    let output = Command::new(program).args(args).output()?;
    ensure!(output.status.success(), "bpftool {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn bpftool_json(args: &[&str]) -> Result<Value> {
    let text = bpftool(&[&["-j"], args].concat())?;
    serde_json::from_str(&text).with_context(|| format!("bpftool {args:?} said {text:.300}"))
}

/// The agent's maps by name: other agents on this machine have maps of the same names.
fn maps(agent: &Agent) -> Result<BTreeMap<String, u64>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", agent.pid()))? {
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        let Some(id) = info.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
        let id: u64 = id.trim().parse()?;
        let shown = bpftool_json(&["map", "show", "id", &id.to_string()])?;
        maps.insert(shown["name"].as_str().unwrap_or_default().to_owned(), id);
    }
    Ok(maps)
}

/// The entries of a map as bpftool formats them with BTF.
fn entries(id: u64) -> Result<Vec<Value>> {
    let dump = bpftool_json(&["map", "dump", "id", &id.to_string()])?;
    let all = dump.as_array().context("a list")?;
    all.iter().map(|entry| entry.get("formatted").cloned().with_context(|| format!("without BTF: {entry}"))).collect()
}

/// The names of an object's fields.
fn names(value: &Value) -> Vec<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// As the contract writes an address.
fn address(value: &Value) -> Result<SocketAddr> {
    ensure!(names(value) == ["ip", "pad", "port"], "{value}");
    let bytes: Vec<u8> = serde_json::from_value(value["ip"].clone())?;
    let ip = std::net::Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok().context("16 bytes")?).to_canonical();
    Ok(SocketAddr::new(ip, u16::try_from(value["port"].as_u64().context("a port")?)?))
}

/// The sum over all CPUs of each of COUNTERS' fields.
fn counters(id: u64) -> Result<BTreeMap<String, u64>> {
    let [one] = &entries(id)?[..] else { bail!("COUNTERS has one entry") };
    let mut sums = BTreeMap::new();
    for cpu in one["values"].as_array().context("values of CPUs")? {
        for (name, count) in cpu["value"].as_object().context("fields")? {
            *sums.entry(name.clone()).or_default() += count.as_u64().context("a count")?;
        }
    }
    Ok(sums)
}

#[test]
fn bpftool_shows_programs_maps_and_fields_under_the_contracts_names() -> Result<()> {
    let node = Node::new()?;
    let backends = Backend::start_some(&node, 1)?;
    let service = serve(&node, echo(), &backends)?;
    let client = node.pod(PodSpec::new("client").annotation("sluice.dev/redirect", "false"))?;
    let agent = node.agent().workers(2).start()?;
    let maps = maps(&agent)?;
    let missing: Vec<_> = MAPS.iter().filter(|name| !maps.contains_key(**name)).collect();
    // UNENROLLED and ORIGINAL are held by the programs and by the ring's reader.
    ensure!(missing.is_empty() || missing == [&"ORIGINAL"], "{missing:?} of {maps:?}");

    let services = entries(maps["SERVICES"])?;
    let keys: Vec<_> = services.iter().map(|entry| address(&entry["key"])).collect::<Result<_>>()?;
    ensure!(keys.len() == 2 && keys.contains(&service.address4()) && keys.contains(&service.address6()), "{keys:?}");
    ensure!(services.iter().all(|entry| names(&entry["value"]) == ["flags", "id"]), "{services:?}");

    let status = agent.status()?;
    let line = pod_line(&status, &client)?;
    let pods = entries(maps["PODS"])?;
    let pod = pods.iter().find(|entry| entry["key"] == json!({ "netns_cookie": line["netns_cookie"] }));
    let value = &pod.context("the client's namespace")?["value"];
    ensure!(names(value) == ["flags", "pad", "port4", "port6", "worker"], "{value}");
    ensure!(
        ["port4", "port6", "worker"].iter().all(|name| value[name] == line[name]) && value["flags"] == 1,
        "{value}"
    );
    ensure!(pods.len() == 2, "{pods:?}");

    let heartbeats = entries(maps["HEARTBEAT"])?;
    let alive = |entry: &&Value| entry["value"]["monotonic_ns"].as_u64().is_some_and(|stamp| stamp > 0);
    ensure!(heartbeats.iter().filter(alive).count() == 2, "two workers beat");

    let [config] = &entries(maps["CONFIG"])?[..] else { bail!("CONFIG has one entry") };
    ensure!(names(&config["value"]) == ["log_level", "own_cgroup", "pad"], "{config}");

    // Plain output names the fields too. Of several maps of a name all are shown.
    for (map, field) in [
        ("SERVICES", "\"port\": 50051"),
        ("PODS", "\"netns_cookie\": "),
        ("HEARTBEAT", "\"monotonic_ns\": "),
        ("COUNTERS", "\"redirected\": "),
        ("CONFIG", "\"log_level\": "),
    ] {
        let plain = bpftool(&["map", "dump", "name", map])?;
        ensure!(plain.contains(field), "{map}: {plain:.500}");
    }
    // bpftool cannot dump a ring, and of a sockets' storage it knows no keys; both are there under their names.
    for map in ["UNENROLLED", "ORIGINAL", "FLOWS"] {
        ensure!(bpftool(&["map", "show", "name", map])?.contains(map), "{map}");
    }
    let original = bpftool_json(&["map", "show", "name", "ORIGINAL"])?;
    let original = original.as_array().map_or(&original, |all| &all[0]);
    let types = bpftool(&["btf", "dump", "id", &original["btf_id"].to_string(), "format", "raw"])?;
    ensure!(["'destination'", "'redirected_port'"].iter().all(|field| types.contains(field)), "{original}");

    let programs = bpftool_json(&["prog", "show"])?;
    let programs = programs.as_array().context("programs")?;
    for name in PROGRAMS {
        let ours = |program: &&Value| {
            let ids = program["map_ids"].as_array().cloned().unwrap_or_default();
            program["name"] == name && ids.contains(&json!(maps["COUNTERS"]))
        };
        ensure!(programs.iter().filter(ours).count() == 1, "{name}");
    }
    Ok(())
}

#[test]
fn a_connection_not_accepted_yet_is_in_flows() -> Result<()> {
    let node = Node::new()?;
    let backends = Backend::start_some(&node, 1)?;
    let service = serve(&node, echo(), &backends)?;
    let client = node.pod("client")?;
    let mut agent = node.agent().start()?;
    let flows = maps(&agent)?["FLOWS"];
    let mut probe = Probe::start(&client)?;
    // A stopped agent accepts nothing, and its last heartbeat counts for a second; on a busy machine not long enough.
    for _ in 0..10 {
        agent.signal(libc::SIGSTOP)?;
        probe.begin("stream", Some(service.address4()), json!({ "delay_ms": 0, "count": 1 }))?;
        let opened = probe.answer()?;
        let entries = entries(flows);
        agent.signal(libc::SIGCONT)?;
        let ended = probe.answer()?;
        ensure!(ended["messages"] == 1, "{ended}");
        if redirected(&opened)? {
            let [flow] = &entries?[..] else { bail!("one connection is one entry") };
            ensure!(names(&flow["key"]) == ["netns_cookie", "pad", "source"], "{flow}");
            let cookie = &pod_line(&agent.status()?, &client)?["netns_cookie"].clone();
            ensure!(flow["key"]["netns_cookie"] == *cookie && address(&flow["value"])? == service.address4(), "{flow}");
            ensure!(address(&flow["key"]["source"])?.ip().is_loopback(), "{flow}");
            let left = self::entries(flows)?;
            ensure!(left.is_empty(), "the entry went when the connection was accepted: {left:?}");
            return Ok(());
        }
    }
    bail!("no connect came within a second of the last heartbeat")
}

#[test]
fn the_counters_tell_what_there_was_by_reason_and_to_the_number() -> Result<()> {
    let node = Node::new()?;
    let backends = Backend::start_some(&node, 2)?;
    let service = serve(&node, echo(), &backends)?;
    let client = node.pod("client")?;
    let out = node.pod(PodSpec::new("out").annotation("sluice.dev/redirect", "false"))?;
    let agent = node.agent().start()?;
    let id = maps(&agent)?["COUNTERS"];
    ensure!(counters(id)?.values().all(|&count| count == 0), "nobody has dialled yet: {:?}", counters(id)?);
    let (mut probe, mut opted_out) = (Probe::start(&client)?, Probe::start(&out)?);
    let direct = SocketAddr::from((backends[0].pod.ip4(), PORT));
    let mut traffic = || -> Result<()> {
        probe.connect(service.address4(), 7)?;
        probe.connect(service.address6(), 4)?;
        probe.connect(direct, 5)?;
        opted_out.connect(service.address4(), 3)?;
        for _ in 0..2 {
            probe.udp(service.address4(), json!({}))?;
        }
        Ok(())
    };
    with_log(&agent, traffic())?;
    let mut expected: BTreeMap<String, u64> = counters(id)?.into_keys().map(|name| (name, 0)).collect();
    for (name, count) in [
        ("redirected", 7 + 4),
        ("flow_recorded", 7 + 4),
        // Each connection asks for its peer once.
        ("peer_restored", 7 + 4),
        ("not_service", 5),
        ("pod_opted_out", 3),
        ("not_tcp", 2),
    ] {
        expected.insert(name.to_owned(), count);
    }
    ensure!(counters(id)? == expected, "{:?}, not {expected:?}", counters(id)?);
    ensure!(expected.len() == 13, "every verdict has a counter: {expected:?}");

    // The agent's own pages say the same.
    let status = agent.status()?;
    let metrics = agent.metrics()?;
    for (name, count) in &expected {
        ensure!(status["kernel_verdicts"][name] == *count, "{name}");
        let line = format!("sluice_kernel_verdicts_total{{verdict=\"{name}\"}} {count}");
        ensure!(metrics.lines().any(|it| it == line), "{line}");
    }
    Ok(())
}
