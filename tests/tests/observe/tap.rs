//! `sluice-agent tap`: a call is shown with its status as soon as it is over, to whom it concerns, and with no secret in it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use serde_json::Value;
use testbed::scene::{PORT, in_turn, serve, wait_for, with_log};
use testbed::{Agent, Node, Service, Tap};

use crate::cli::{Cli, ends};
use crate::peers::{ADD, Client, Endpoint};
use crate::scene::{enrolled, list};

/// Calls of which the time until they are shown is taken.
const CALLS: usize = 20;
/// What is promised, for half of the calls; the others may meet a busy machine.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);

struct Scene {
    shop: Service,
    bank: Service,
    _endpoints: [Endpoint; 2],
    clients: [Client; 2],
    agent: Agent,
    node: Node,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        let endpoints = [Endpoint::start(&node, "shop-1")?, Endpoint::start(&node, "bank-1")?];
        let shop = serve(&node, in_turn("shop"), [&endpoints[0].pod])?;
        let bank = serve(&node, in_turn("bank"), [&endpoints[1].pod])?;
        let clients = [Client::start(&node, "web-1")?, Client::start(&node, "batch-1")?];
        let agent = node.agent().workers(2).start()?;
        Ok(Self { shop, bank, _endpoints: endpoints, clients, agent, node })
    }

    fn cli(&self) -> Cli<'_> {
        Cli::new(&self.node, &self.agent)
    }

    /// From each pod to each Service each of two methods, ending well and with NOT_FOUND: 16 calls.
    fn calls(&self) -> Result<()> {
        for client in &self.clients {
            for service in [&self.shop, &self.bank] {
                let connection = client.connect(service.address4())?;
                for method in [ADD, "/shop.Cart/Remove"] {
                    for status in ["0", "5"] {
                        connection.call(method, &[("x-status", status)])?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The value of a field in all of these events.
fn all<'a>(events: &'a [(SystemTime, Value)], key: &str) -> BTreeSet<&'a str> {
    events.iter().filter_map(|(_, event)| event[key].as_str()).collect()
}

#[test]
fn tap_shows_a_call_with_its_status_within_a_second_of_its_end() -> Result<()> {
    let scene = Scene::new()?;
    let tap = scene.cli().tap(&[])?;
    let connection = scene.clients[0].connect(scene.shop.address4())?;
    let mut over = Vec::new();
    for number in 0..CALLS {
        let status = if number % 2 == 0 { "0" } else { "14" };
        over.push(connection.call(ADD, &[("x-status", status)])?.at);
    }
    let ends = with_log(&scene.agent, ends(&tap, CALLS))?;
    ensure!(ends.len() == CALLS, "{ends:?}");
    let endpoint = format!("{}:{PORT}", scene._endpoints[0].pod.ip4());
    let mut took = Vec::new();
    for (number, ((read, end), over)) in ends.iter().zip(over).enumerate() {
        let status = if number % 2 == 0 { "OK" } else { "UNAVAILABLE" };
        ensure!(end["grpc_status"] == status && end["endpoint"] == *endpoint && end["pod"] == "default/web-1", "{end}");
        ensure!(end["service"] == "default/shop:grpc" && end["path"] == ADD && end["attempts"] == 1, "{end}");
        ensure!(end["request_bytes"] == 9 && end["response_bytes"] == 9, "{end}");
        ensure!(end["duration_ms"].as_f64().is_some_and(|it| it > 0.0 && it < 30_000.0), "{end}");
        // It may be shown before the client has got it all.
        took.push(read.duration_since(over).unwrap_or_default());
    }
    took.sort();
    let (usual, longest) = (took[CALLS / 2], took[CALLS - 1]);
    println!("a call is shown after its end: {usual:?} usually, {longest:?} at most, of {CALLS}");
    ensure!(usual < SHOWN_WITHIN, "{took:?}");

    // For people: a line for each call, in which all that stands.
    let text = scene.cli().tap_text(&["--count", "1"])?;
    connection.call(ADD, &[("x-status", "5")])?;
    let line = wait_for("a line", || Ok(text.lines().pop()))?.1;
    for part in
        ["default/web-1 #", "default/shop:grpc", "shop.Cart/Add", &*endpoint, "NOT_FOUND", "ms", "↑ 9 B", "↓ 9 B"]
    {
        ensure!(line.contains(part), "{part} is not in {line}");
    }
    println!("{line}");
    Ok(())
}

#[test]
fn taps_show_the_calls_of_a_pod_a_service_a_method_or_a_status_each_its_own_at_once() -> Result<()> {
    let scene = Scene::new()?;
    type Case<'a> = (&'a [&'a str], usize, &'a str, &'a [&'a str]);
    let cases: [Case; 8] = [
        (&["--pod", "default/web-1"], 8, "pod", &["default/web-1"]),
        (&["--pod", "ba*"], 8, "pod", &["default/batch-1"]),
        (&["--service", "bank"], 8, "service", &["default/bank:grpc"]),
        (&["--service", "default/shop:grpc"], 8, "service", &["default/shop:grpc"]),
        (&["--method", "Remove"], 8, "path", &["/shop.Cart/Remove"]),
        (&["--status", "not-found"], 8, "grpc_status", &["NOT_FOUND"]),
        (&["--pod", "web-1", "--service", "shop", "--method", "shop.Cart/Add", "--status", "error"], 1, "path", &[ADD]),
        (&[], 16, "grpc_status", &["NOT_FOUND", "OK"]),
    ];
    let taps: Vec<(Case, Tap)> =
        cases.into_iter().map(|case| Ok((case, scene.cli().tap(case.0)?))).collect::<Result<_>>()?;
    ensure!(scene.cli().taps()? == 8);
    scene.calls()?;
    // Who sees all has seen the last.
    ends(&taps[7].1, 16)?;
    for ((args, count, key, values), tap) in &taps {
        let ends = ends(tap, *count)?;
        let seen = all(&ends, key);
        ensure!(ends.len() == *count && seen == BTreeSet::from_iter(values.iter().copied()), "{args:?}: {ends:?}");
    }
    Ok(())
}

#[test]
fn tap_shows_metadata_but_nothing_that_may_be_a_secret() -> Result<()> {
    let scene = Scene::new()?;
    let (json, text) = (scene.cli().tap(&["--metadata"])?, scene.cli().tap_text(&["--metadata"])?);
    let fields = [
        ("authorization", "Bearer c2VjcmV0"),
        ("cookie", "session=c2VjcmV0"),
        ("x-api-key", "c2VjcmV0"),
        ("x-tenant", "blue"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    scene.clients[0].connect(scene.shop.address4())?.call(ADD, &fields)?;
    ends(&json, 1)?;
    let events = json.events()?;
    ensure!(all(&events, "event") == BTreeSet::from(["request", "response", "trailers", "end"]), "{events:?}");
    let metadata = |event: &str| -> Vec<(String, String)> {
        let lists = events.iter().filter(|(_, it)| it["event"] == event).flat_map(|(_, it)| list(&it["metadata"]));
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        lists.map(|field| (word(&field[0]), word(&field[1]))).collect()
    };
    let request = metadata("request");
    for (name, value) in fields {
        let shown = request.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str()).unwrap_or_default();
        let hidden = ["authorization", "cookie", "x-api-key"].contains(&name);
        let wanted = if hidden { format!("(hidden, {} bytes)", value.len()) } else { value.to_owned() };
        ensure!(shown == wanted, "{name}: {shown}");
    }
    let said =
        |list: Vec<(String, String)>, name: &str, value: &str| list.contains(&(name.to_owned(), value.to_owned()));
    ensure!(said(metadata("response"), ":status", "200") && said(metadata("trailers"), "grpc-status", "0"));

    let shown = wait_for("the end of the call's lines", || {
        let lines: Vec<_> = text.lines().into_iter().map(|(_, line)| line).collect();
        Ok(lines.iter().any(|line| line.contains("grpc-status: 0")).then(|| lines.join("\n")))
    })?;
    ensure!(shown.contains("request   authorization: (hidden, 15 bytes)"), "{shown}");
    ensure!(shown.contains("request   x-tenant: blue"), "{shown}");
    let everything = shown + &json.lines().into_iter().map(|(_, line)| line).collect::<String>();
    ensure!(!everything.contains("c2VjcmV0"), "{everything}");
    Ok(())
}

#[test]
fn a_call_that_began_while_only_others_looked_is_not_shown_in_part() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.cli().tap(&[])?;
    let connection = scene.clients[0].connect(scene.shop.address4())?;
    let open = connection.open("/shop.Cart/Before", &[])?;
    // Nothing tells when the agent has it but another call behind it.
    connection.call(ADD, &[])?;
    ends(&first, 1)?;
    let second = scene.cli().tap(&["--metadata", "--frames"])?;
    open.end()?;
    connection.call(ADD, &[])?;
    ends(&first, 3)?;
    ends(&second, 1)?;
    let events = second.events()?;
    let of_calls: Vec<_> =
        events.iter().filter(|(_, it)| it["event"] != "frame").map(|(_, it)| it["event"].as_str()).collect();
    ensure!(of_calls == ["request", "response", "trailers", "end"].map(Some), "{events:?}");
    ensure!(all(&ends(&first, 3)?, "path") == BTreeSet::from(["/shop.Cart/Before", ADD]));
    Ok(())
}

#[test]
fn tap_shows_the_frames_of_both_sides_in_the_order_of_a_call() -> Result<()> {
    let scene = Scene::new()?;
    let (json, text) = (scene.cli().tap(&["--frames"])?, scene.cli().tap_text(&["--frames"])?);
    scene.clients[0].connect(scene.shop.address4())?.call(ADD, &[])?;
    ends(&json, 1)?;
    let events = json.events()?;
    // Those of the call, not of its connections.
    let frames: Vec<_> = events
        .iter()
        .filter(|(_, it)| it["event"] == "frame" && it["call"].is_number())
        .filter(|(_, it)| it["type"] == "HEADERS" || it["type"] == "DATA" && it["length"] != 0)
        .map(|(_, it)| format!("{} {} {}", it["peer"], it["received"], it["type"]).replace('"', ""))
        .collect();
    let from = |side: &str| frames.iter().filter(|it| it.starts_with(side)).map(String::as_str).collect::<Vec<_>>();
    let [request, answer] = [["HEADERS", "DATA"].as_slice(), &["HEADERS", "DATA", "HEADERS"]];
    for (side, kinds) in
        [("client true", request), ("endpoint false", request), ("endpoint true", answer), ("client false", answer)]
    {
        let wanted: Vec<_> = kinds.iter().map(|kind| format!("{side} {kind}")).collect();
        ensure!(from(side) == wanted, "{side}: {frames:?}");
    }
    // Frames of connections are shown, too.
    ensure!(events.iter().any(|(_, it)| it["type"] == "SETTINGS" && it["call"].is_null()), "{events:?}");
    let way = ["client ──▶  HEADERS", "──▶ endpoint  HEADERS", "◀── endpoint  DATA", "client ◀──  DATA"];
    wait_for("all four ways in the text", || {
        let lines = text.lines();
        let shown = |part: &&str| lines.iter().any(|(_, line)| line.contains(part));
        Ok(way.iter().all(shown).then_some(()))
    })
}

#[test]
fn a_tap_that_is_killed_is_forgotten_and_costs_nothing_any_more() -> Result<()> {
    let scene = Scene::new()?;
    let (mut killed, other) = (scene.cli().tap(&[])?, scene.cli().tap(&["--count", "16"])?);
    ensure!(scene.cli().taps()? == 2);
    killed.process().signal(libc::SIGKILL)?;
    wait_for("one tap is left", || Ok((scene.cli().taps()? == 1).then_some(())))?;
    scene.calls()?;
    // The other one sees what it was to see, and ends by itself.
    ends(&other, 16)?;
    wait_for("no tap is left", || Ok((scene.cli().taps()? == 0).then_some(())))
}

/// As of a static pod in a cluster, whose object comes after it.
#[test]
fn a_pod_whose_object_comes_late_is_shown_by_its_name_from_then_on() -> Result<()> {
    let scene = Scene::new()?;
    let pod = &scene.clients[0].pod;
    let object = scene.node.source_dir().join("pod-default-web-1.yaml");
    let object = (fs::read(&object)?, object);
    fs::remove_file(&object.1)?;
    let agent = scene.node.agent().start()?;
    scene.agent.stop()?;
    let (cli, shop) = (Cli::new(&scene.node, &agent), scene.shop.address4());
    ensure!(enrolled(&agent, pod)?["name"] == pod.uid());
    let (all_calls, by_name) = (cli.tap(&[])?, cli.tap(&["--pod", "web-1"])?);
    let connection = scene.clients[0].connect(shop)?;
    connection.call(ADD, &[])?;
    ensure!(ends(&all_calls, 1)?[0].1["pod"] == pod.uid());

    fs::write(&object.1, &object.0)?;
    wait_for("the name is known", || Ok((enrolled(&agent, pod)?["name"] == "default/web-1").then_some(())))?;
    connection.call(ADD, &[])?;
    ensure!(ends(&all_calls, 2)?[1].1["pod"] == "default/web-1" && ends(&by_name, 1)?.len() == 1);
    Ok(())
}
