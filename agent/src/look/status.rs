//! The agent's status for people. In: the page /status.json; out: text. What is wrong comes last, where it is seen.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Paint;
use super::figures::{buckets, count, list, long_time, many, number, percent, percentile, time};
use super::table::Table;

/// Endpoints of a Service that are listed unless all are asked for.
const ENDPOINTS: usize = 20;
/// Letters of a bar that stands for all calls.
const BAR: f64 = 24.0;

/// Parts of the page whose entries have names.
const NAMED: [&str; 6] = ["services", "left_alone", "pods", "not_served", "not_spread", "problems"];

/// The part of the page that has `name` in it; None if nothing has.
pub(super) fn only(mut page: Value, name: Option<&str>) -> Option<Value> {
    let Some(name) = name else { return Some(page) };
    let has = |value: &Value| value.as_str().is_some_and(|text| text.contains(name));
    let about = |entry: &Value| {
        let endpoints =
            list(&entry["endpoints"]).iter().any(|endpoint| has(&endpoint["address"]) || has(&endpoint["pod"]));
        ["name", "address", "pod", "service", "uid", "place"].iter().any(|key| has(&entry[*key])) || endpoints
    };
    for key in NAMED {
        if let Some(entries) = page[key].as_array_mut() {
            entries.retain(about);
        }
    }
    NAMED.iter().any(|key| !list(&page[*key]).is_empty()).then_some(page)
}

/// All below the head; `narrowed`: it is what somebody asked for by name, and shown whole.
pub(super) fn text(page: &Value, all: bool, narrowed: bool, paint: Paint) -> String {
    let all = all || narrowed;
    let mut text = services(page, all, narrowed, paint);
    text += &pods(page, narrowed, paint);
    text += &not_served(page, all, paint);
    text += &not_spread(page, paint);
    text += &limits(page, paint);
    text += &left_alone(page, all, paint);
    text += &problems(page, paint);
    text
}

/// Of the agent as a whole, whatever is asked for below.
pub(super) fn head(page: &Value, paint: Paint) -> String {
    let word = |key: &str| page[key].as_str().unwrap_or("?").to_owned();
    let state = match &*word("state") {
        "ready" => paint.good("ready"),
        other => paint.bad(other),
    };
    let up = long_time(number(&page["uptime_seconds"]));
    let node = page["node"].as_str().map(|node| format!("node {node}  ")).unwrap_or_default();
    let mut text =
        format!("{} {}  {state}  up {up}  {node}{}\n", paint.bold("sluice-agent"), word("version"), word("cgroup"));
    let pods = list(&page["pods"]);
    let sum = |of: &str| pods.iter().map(|pod| number(&pod["traffic"][of])).sum::<f64>();
    let endpoints: f64 = pods.iter().map(|pod| to_endpoints(&pod["traffic"])).sum();
    let out = pods.iter().filter(|pod| pod["opted_out"] == true).count();
    text += &format!(
        "{} of pods enrolled, {out} opted out; connections open: HTTP/2 {} of clients, {} to endpoints; {} opaque, {} not known yet\n",
        many(pods.len(), "namespace"),
        count((sum("http2_connections") - endpoints).max(0.0)),
        count(endpoints),
        count(sum("opaque_connections")),
        count(sum("undetected_connections")),
    );
    let verdicts = page["kernel_verdicts"].as_object();
    let said = verdicts.into_iter().flatten().filter(|(_, times)| number(times) > 0.0);
    let said: Vec<_> = said.map(|(name, times)| format!("{name} {}", count(number(times)))).collect();
    text += &format!("kernel: {}\n", if said.is_empty() { "no connect yet".to_owned() } else { said.join(", ") });
    for worker in list(&page["workers"]).iter().filter(|worker| worker["answers"] == false) {
        text +=
            &paint.bad(&format!("worker {} does not answer: its pods' connects go by kube-proxy\n", worker["worker"]));
    }
    text
}

/// A pod's HTTP/2 connections that sluice has dialled for it.
fn to_endpoints(traffic: &Value) -> f64 {
    list(&traffic["endpoints"]).iter().map(|endpoint| number(&endpoint["connections"])).sum()
}

/// Service ports that are redirected and that no pod has called, in any family.
fn quiet(page: &Value) -> BTreeSet<&str> {
    let services = || list(&page["services"]).iter();
    let key = |entry: &'_ Value| (entry["name"].as_str().unwrap_or("?").to_owned(), entry["address"].to_string());
    let alone: BTreeSet<_> = list(&page["left_alone"]).iter().map(key).collect();
    let name = |service: &'_ Value| service["name"].as_str().unwrap_or("?").to_owned();
    let dialled: BTreeSet<_> = services().filter(|it| !it["calls"].is_null()).map(name).collect();
    let quiet = services().filter(|it| !alone.contains(&key(it)) && !dialled.contains(&name(it)));
    quiet.map(|it| it["name"].as_str().unwrap_or("?")).collect()
}

fn services(page: &Value, all: bool, narrowed: bool, paint: Paint) -> String {
    let services = list(&page["services"]);
    let (dialled, others): (Vec<&Value>, Vec<&Value>) =
        services.iter().partition(|service| !service["calls"].is_null());
    let mut text = String::new();
    for service in dialled.iter().chain(others.iter().filter(|_| all)) {
        text.push('\n');
        text += &one_service(service, all, paint);
    }
    let more = if dialled.is_empty() { "" } else { " more" };
    text += &match quiet(page).len() {
        0 if dialled.is_empty() && !narrowed => "\nNo Service port is redirected.\n".to_owned(),
        0 => String::new(),
        _ if all => String::new(),
        1 => format!(
            "\n1{more} Service port is redirected, and no pod of this node has called it yet (--all lists it).\n"
        ),
        quiet => format!(
            "\n{quiet}{more} Service ports are redirected, and no pod of this node has called them yet (--all lists them).\n"
        ),
    };
    text
}

fn one_service(service: &Value, all: bool, paint: Paint) -> String {
    let word = |key: &str| service[key].as_str().unwrap_or("?");
    let endpoints = list(&service["endpoints"]);
    let scope = if word("scope") == "all" { String::new() } else { format!(", {} only", word("scope")) };
    let mut text = format!(
        "{}  {}  {}, {}{scope}\n",
        paint.bold(word("name")),
        word("address"),
        word("policy"),
        many(endpoints.len(), "endpoint")
    );
    let calls = &service["calls"];
    if !calls.is_null() {
        let (ended, failed) = (number(&calls["ended"]), number(&calls["failed"]));
        text += &format!(
            "  {} calls, {} % well, {} open; {} in, {} out\n",
            count(ended),
            percent(ended - failed, ended),
            count(number(&calls["open"])),
            bytes(number(&calls["request_bytes"])),
            bytes(number(&calls["response_bytes"]))
        );
    }
    let picked: f64 = endpoints.iter().map(|endpoint| number(&endpoint["picked"])).sum();
    let mut table =
        Table::new(&["endpoint", "share", "", "calls", "failed", "latency", "p99", "weight", "open", "conns", "state"]);
    for endpoint in endpoints.iter().take(if all { usize::MAX } else { ENDPOINTS }) {
        let address = endpoint["address"].as_str().unwrap_or("?").to_owned();
        if endpoint["picked"].is_null() {
            table.row([address].into_iter().chain(vec![String::new(); 10]));
            continue;
        }
        let of = |key: &str| number(&endpoint[key]);
        let share = if picked > 0.0 { of("picked") / picked } else { 0.0 };
        let latency = endpoint["latency_us"].as_u64().map(std::time::Duration::from_micros);
        let failed = count(of("failed"));
        table.row([
            address,
            format!("{:.1} %", share * 100.0),
            "█".repeat((share * BAR).round() as usize),
            count(of("picked")),
            if of("failed") > 0.0 { paint.warn(&failed) } else { failed },
            time(latency),
            time(percentile(&buckets(&endpoint["answers"]), 0.99)),
            format!("{:.2}", of("weight")),
            count(of("open")),
            count(of("connections")),
            state(endpoint, paint),
        ]);
    }
    if !table.is_empty() {
        text += &table.text("  ");
    }
    if endpoints.len() > ENDPOINTS && !all {
        text += &format!("  … and {} more (--all)\n", endpoints.len() - ENDPOINTS);
    }
    let mut methods = Table::new(&["method", "calls", "well %", "p50", "p99", "codes"]);
    for method in list(&calls["methods"]) {
        let latency = buckets(&method["latency"]);
        let (ended, failed) = (number(&method["ended"]), number(&method["failed"]));
        let codes = method["codes"].as_object().into_iter().flatten();
        methods.row([
            method_name(method),
            count(ended),
            percent(ended - failed, ended),
            time(percentile(&latency, 0.5)),
            time(percentile(&latency, 0.99)),
            codes.map(|(code, times)| format!("{code} {}", count(number(times)))).collect::<Vec<_>>().join(", "),
        ]);
    }
    if !methods.is_empty() {
        text += &methods.text("  ");
    }
    text
}

/// `package.Service/Method`, or what it stands for.
pub(super) fn method_name(method: &Value) -> String {
    match (method["grpc_service"].as_str().unwrap_or("?"), method["grpc_method"].as_str().unwrap_or("?")) {
        ("http", "http") => "(not gRPC)".to_owned(),
        ("other", "other") => "(other methods)".to_owned(),
        (service, method) => format!("{service}/{method}"),
    }
}

/// Who cannot reach an endpoint or keeps away from it, and since when.
fn state(endpoint: &Value, paint: Paint) -> String {
    let (unreachable, ejected): (Vec<&Value>, Vec<&Value>) =
        list(&endpoint["ejected_by"]).iter().partition(|it| it["cause"] == "unreachable");
    let said: Vec<_> = [unreachable, ejected].into_iter().filter_map(|by| state_of(&by)).collect();
    if said.is_empty() { paint.good("ok") } else { paint.bad(&said.join("; ")) }
}

/// The same of those that have one cause: what cannot be dialled may be the last that is left, and is not ejected then.
fn state_of(by: &[&Value]) -> Option<String> {
    let first = by.first()?;
    let more = if by.len() > 1 { format!(" and {} more", by.len() - 1) } else { String::new() };
    let pod = first["pod"].as_str().unwrap_or("?");
    let what = match first["cause"].as_str().unwrap_or("?") {
        "unreachable" => format!("unreachable from {pod}{more}"),
        cause => format!("ejected by {pod}{more}: {cause}"),
    };
    let again = number(&first["retry_in_seconds"]);
    let again =
        if again > 0.0 { format!("tried again in {again:.1} s") } else { "to be tried with the next call".to_owned() };
    let since = long_time(number(&first["since_seconds"]));
    let times = if first["failures"] == 1 { "once".to_owned() } else { format!("{} times", first["failures"]) };
    Some(format!("{what} for {since}, {times}; {again}"))
}

/// `quiet`: also those that have not called yet.
fn pods(page: &Value, quiet: bool, paint: Paint) -> String {
    let mut table = Table::new(&["pod", "conns", "streams", "open", "unanswered", "moved", "ejects", "state"]);
    for pod in list(&page["pods"]) {
        let traffic = &pod["traffic"];
        let of = |key: &str| number(&traffic[key]);
        if of("accepted") == 0.0 && pod["opted_out"] == false && !quiet {
            continue;
        }
        let all = of("http2_connections") + of("opaque_connections") + of("undetected_connections");
        let clients = all - to_endpoints(traffic);
        table.row([
            pod["name"].as_str().unwrap_or("?").to_owned(),
            count(clients.max(0.0)),
            count(of("streams")),
            count(of("open_streams")),
            count(of("streams_failed")),
            count(of("streams_replayed")),
            list(&traffic["ejected"]).len().to_string(),
            if pod["opted_out"] == true { paint.warn("opted out") } else { paint.good("enrolled") },
        ]);
    }
    let title = paint.bold(if quiet { "Pods" } else { "Pods that call" });
    if table.is_empty() { String::new() } else { format!("\n{title}\n{}", table.text("  ")) }
}

/// Those with one reason together: a node has some of them, and it is the same with all.
fn not_served(page: &Value, all: bool, paint: Paint) -> String {
    const SHOWN: usize = 10;
    let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for pod in list(&page["not_served"]) {
        let word = |key: &str| pod[key].as_str().unwrap_or("?");
        reasons.entry((word("reason"), word("cure"))).or_default().push(word("name"));
    }
    let mut text = String::new();
    for ((reason, cure), pods) in reasons {
        let shown = if all { pods.len() } else { pods.len().min(SHOWN) };
        let more = pods.len() - shown;
        let more = if more > 0 { format!(" and {more} more (--all)") } else { String::new() };
        text += &format!("  {}{more}: {}\n", pods[..shown].join(", "), paint.warn(reason));
        text += &paint.dim(&format!("    cure: {cure}\n"));
    }
    if text.is_empty() { text } else { format!("\n{}\n{text}", paint.bold("Pods that are not served")) }
}

fn not_spread(page: &Value, paint: Paint) -> String {
    let lines = list(&page["not_spread"]);
    if lines.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}\n", paint.bold("Connections whose calls are not spread"));
    for line in lines {
        let word = |key: &str| line[key].as_str().unwrap_or("?");
        text += &format!(
            "  {} → {}, {} open: {}\n",
            word("pod"),
            word("service"),
            line["connections"],
            paint.warn(word("reason"))
        );
        text += &paint.dim(&format!("    cure: {}\n", word("cure")));
    }
    text
}

fn limits(page: &Value, paint: Paint) -> String {
    let mut text = String::new();
    for pod in list(&page["pods"]) {
        let limited = pod["traffic"]["limited"].as_object();
        let reached = limited.into_iter().flatten().filter(|(_, times)| number(times) > 0.0);
        let reached: Vec<_> = reached.map(|(name, times)| format!("{name} {}", count(number(times)))).collect();
        if !reached.is_empty() {
            text += &format!("  {}: {}\n", pod["name"].as_str().unwrap_or("?"), paint.warn(&reached.join(", ")));
        }
    }
    if text.is_empty() {
        return text;
    }
    let cure = "mend the pod or what it talks to; `sluice-agent run --help` says what each is, and --limit NAME=VALUE changes it";
    format!("\n{}\n{text}{}", paint.bold("Limits reached, and how often"), paint.dim(&format!("    cure: {cure}\n")))
}

fn left_alone(page: &Value, all: bool, paint: Paint) -> String {
    const SHOWN: usize = 10;
    let ports = list(&page["left_alone"]);
    if ports.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}\n", paint.bold("Service ports left to kube-proxy"));
    for port in ports.iter().take(if all { usize::MAX } else { SHOWN }) {
        let word = |key: &str| port[key].as_str().unwrap_or("-");
        text += &format!("  {}  {}: {}\n", word("name"), word("address"), word("reason"));
        text += &paint.dim(&format!("    cure: {}\n", word("cure")));
    }
    if ports.len() > SHOWN && !all {
        text += &format!("  … and {} more (--all)\n", ports.len() - SHOWN);
    }
    text
}

fn problems(page: &Value, paint: Paint) -> String {
    let problems = list(&page["problems"]);
    if problems.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}\n", paint.bold("Problems"));
    for problem in problems {
        let word = |key: &str| problem[key].as_str().unwrap_or("");
        let field = if word("field").is_empty() { String::new() } else { format!("{}: ", word("field")) };
        text += &format!("  {}: {field}{}\n", word("place"), paint.bad(word("message")));
        text += &paint.dim(&format!("    cure: {}\n", word("cure")));
    }
    text
}

fn bytes(bytes: f64) -> String {
    for (unit, name) in [(1024.0 * 1024.0 * 1024.0, "GiB"), (1024.0 * 1024.0, "MiB"), (1024.0, "KiB")] {
        if bytes >= unit {
            return format!("{:.1} {name}", bytes / unit);
        }
    }
    format!("{bytes:.0} B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn page() -> Value {
        json!({
            "node": "n1", "version": "0.1.0", "state": "ready", "cgroup": "/sys/fs/cgroup/kubepods", "uptime_seconds": 90.0,
            "services": [
                { "name": "shop/cart:grpc", "address": "10.96.0.10:50051", "policy": "ewma", "scope": "all",
                  "calls": { "open": 1, "ended": 200, "failed": 1, "request_bytes": 2048, "response_bytes": 10,
                    "methods": [{ "grpc_service": "shop.Cart", "grpc_method": "Add", "ended": 200, "failed": 1,
                      "codes": { "OK": 199, "UNAVAILABLE": 1 }, "latency": [[0.00390625, 200]] }] },
                  "endpoints": [
                    { "address": "10.1.0.1:8080", "picked": 150, "failed": 0, "open": 1, "latency_us": 850, "weight": 1.0,
                      "connections": 1, "answers": [], "ejected_by": [] },
                    { "address": "10.1.0.2:8080", "pod": "cart-2", "picked": 50, "failed": 9, "open": 0, "latency_us": null, "weight": 1.0,
                      "connections": 0, "answers": [],
                      "ejected_by": [{ "pod": "shop/web", "cause": "failing", "failures": 3, "since_seconds": 12.0, "retry_in_seconds": 0.5 }] }] },
                { "name": "shop/idle:grpc", "address": "10.96.0.11:50051", "policy": "ewma", "scope": "all", "calls": null, "endpoints": [] }],
            "left_alone": [{ "name": "shop/db", "address": null, "reason": "headless", "cure": "give it a ClusterIP" }],
            "pods": [{ "uid": "u", "name": "shop/web", "opted_out": false,
              "traffic": { "accepted": 1, "streams": 200, "ejected": [1], "http2_connections": 5, "limited": { "header-list": 3, "pings": 0 },
                "endpoints": [{ "address": "10.1.0.1:8080", "connections": 3 }, { "address": "10.1.0.2:8080", "connections": 1 }] } }],
            "not_served": [{ "uid": "h", "name": "shop/host", "reason": "hostNetwork: it has none", "cure": "without it" },
              { "uid": "i", "name": "shop/other", "reason": "hostNetwork: it has none", "cure": "without it" }],
            "not_spread": [{ "pod": "shop/web", "service": "shop/db", "connections": 2, "reason": "headless", "cure": "dial a ClusterIP" }],
            "kernel_verdicts": { "redirected": 5, "not_tcp": 0 },
            "problems": [{ "place": "Service shop/cart", "field": "f", "message": "is wrong", "cure": "mend it" }],
            "workers": [{ "worker": 0, "answers": true }],
        })
    }

    #[test]
    fn everything_that_is_known_is_shown_and_what_is_wrong_has_its_cure() {
        let text = whole(&page());
        for part in [
            "sluice-agent 0.1.0  ready  up 1 min  node n1  /sys/fs/cgroup/kubepods\n",
            "kernel: redirected 5\n",
            "1 namespace of pods enrolled, 0 opted out; connections open: HTTP/2 1 of clients, 4 to endpoints; 0 opaque, 0 not known yet\n",
            "  POD       CONNS  STREAMS  OPEN  UNANSWERED  MOVED  EJECTS  STATE\n  shop/web      1      200 ",
            "\nPods that are not served\n  shop/host, shop/other: hostNetwork: it has none\n    cure: without it\n",
            "shop/cart:grpc  10.96.0.10:50051  ewma, 2 endpoints\n",
            "200 calls, 99.50 % well, 1 open; 2.0 KiB in, 10 B out",
            "75.0 %  ██████████████████",
            "ejected by shop/web: failing for 12 s, 3 times; tried again in 0.5 s",
            "shop.Cart/Add",
            "OK 199, UNAVAILABLE 1",
            "shop/web → shop/db, 2 open: headless\n    cure: dial a ClusterIP",
            "\nLimits reached, and how often\n  shop/web: header-list 3\n    cure: ",
            "shop/db  -: headless\n    cure: give it a ClusterIP",
            "Service shop/cart: f: is wrong\n    cure: mend it",
            "\n1 more Service port is redirected, and no pod of this node has called it yet (--all lists it).\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains('\x1b') && !text.contains("shop/idle"), "{text}");
    }

    #[test]
    fn a_name_narrows_it_down_and_colours_are_for_terminals() {
        for endpoint in ["10.1.0.2", "cart-2"] {
            let some = only(page(), Some(endpoint)).unwrap();
            assert_eq!((list(&some["services"]).len(), list(&some["pods"]).len()), (1, 0));
        }
        let text = text(&only(page(), Some("idle")).unwrap(), false, true, Paint(true));
        assert!(text.contains("shop/idle") && !text.contains("shop/cart") && text.contains('\x1b'), "{text}");
    }

    #[test]
    fn of_what_was_not_asked_for_nothing_is_said_and_a_name_that_nothing_has_is_told() {
        let mut page = page();
        page["pods"][0]["traffic"]["accepted"] = json!(0);
        let text = text(&only(page.clone(), Some("shop/web")).unwrap(), false, true, Paint(false));
        assert!(text.contains("\nPods\n") && text.contains("  shop/web ") && !text.contains("redirected"), "{text}");
        assert_eq!(only(page.clone(), Some("nobody")), None);
        assert!(only(page, Some("shop/host")).is_some());
    }

    #[test]
    fn a_service_port_counts_once_in_both_families_and_not_at_all_where_it_is_left_alone() {
        let quiet =
            |name: &str, address: &str| json!({ "name": name, "address": address, "calls": null, "endpoints": [] });
        let mut page = page();
        let services = page["services"].as_array_mut().unwrap();
        services.push(quiet("shop/cart:grpc", "[fd00::10]:50051"));
        services.push(quiet("shop/idle:grpc", "[fd00::11]:50051"));
        services.push(quiet("shop/gone:grpc", "10.96.0.12:50051"));
        let alone = |name: &str, address: &str| json!({ "name": name, "address": address, "reason": "no usable endpoints", "cure": "see why" });
        page["left_alone"] = json!([alone("shop/gone:grpc", "10.96.0.12:50051")]);
        let text = whole(&page);
        assert!(text.contains("\n1 more Service port is redirected,"), "{text}");
        page["services"].as_array_mut().unwrap().push(quiet("shop/third:grpc", "10.96.0.13:50051"));
        let text = whole(&page);
        assert!(
            text.contains("\n2 more Service ports are redirected, and no pod of this node has called them yet"),
            "{text}"
        );
        page["services"] = json!([quiet("shop/gone:grpc", "10.96.0.12:50051")]);
        assert!(whole(&page).contains("\nNo Service port is redirected.\n"));
    }

    #[test]
    fn what_cannot_be_reached_is_not_called_ejected() {
        let by = |pod: &str, cause: &str| json!({ "pod": pod, "cause": cause, "failures": 1, "since_seconds": 2.0, "retry_in_seconds": 0.0 });
        let said = state(
            &json!({ "ejected_by": [by("a", "failing"), by("b", "unreachable"), by("c", "unreachable")] }),
            Paint(false),
        );
        let next = "for 2 s, once; to be tried with the next call";
        assert_eq!(said, format!("unreachable from b and 1 more {next}; ejected by a: failing {next}"));
    }

    fn whole(page: &Value) -> String {
        head(page, Paint(false)) + &text(page, false, false, Paint(false))
    }
}
