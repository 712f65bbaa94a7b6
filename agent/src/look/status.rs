//! The agent's status for people. In: the page /status.json; out: text. What is wrong comes last, where it is seen.

use serde_json::Value;

use super::Paint;
use super::figures::{buckets, count, list, long_time, number, percent, percentile, time};
use super::table::Table;

/// Endpoints of a Service that are listed unless all are asked for.
const ENDPOINTS: usize = 20;
/// Letters of a bar that stands for all calls.
const BAR: f64 = 24.0;

/// The part of the page that has `name` in it.
pub(super) fn only(mut page: Value, name: Option<&str>) -> Value {
    let Some(name) = name else { return page };
    let has = |value: &Value| value.as_str().is_some_and(|text| text.contains(name));
    let about = |entry: &Value| {
        let endpoints =
            list(&entry["endpoints"]).iter().any(|endpoint| has(&endpoint["address"]) || has(&endpoint["pod"]));
        ["name", "address", "pod", "service", "uid", "place"].iter().any(|key| has(&entry[*key])) || endpoints
    };
    for key in ["services", "left_alone", "pods", "not_spread", "problems"] {
        if let Some(entries) = page[key].as_array_mut() {
            entries.retain(about);
        }
    }
    page
}

pub(super) fn text(page: &Value, all: bool, paint: Paint) -> String {
    let mut text = head(page, paint);
    text += &services(page, all, paint);
    text += &pods(page, paint);
    text += &not_spread(page, paint);
    text += &left_alone(page, all, paint);
    text += &problems(page, paint);
    text
}

fn head(page: &Value, paint: Paint) -> String {
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
    let out = pods.iter().filter(|pod| pod["opted_out"] == true).count();
    text += &format!(
        "{} namespaces of pods enrolled, {out} opted out; connections open: {} HTTP/2, {} opaque, {} not known yet\n",
        pods.len(),
        count(sum("http2_connections")),
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

fn services(page: &Value, all: bool, paint: Paint) -> String {
    let services = list(&page["services"]);
    let (dialled, quiet): (Vec<&Value>, Vec<&Value>) = services.iter().partition(|service| !service["calls"].is_null());
    let mut text = String::new();
    for service in dialled.iter().chain(quiet.iter().filter(|_| all)) {
        text.push('\n');
        text += &one_service(service, all, paint);
    }
    if services.is_empty() {
        text += "\nNo Service port is redirected.\n";
    } else if !quiet.is_empty() && !all {
        let more = if dialled.is_empty() { "" } else { " more" };
        text += &format!(
            "\n{}{more} Service ports are redirected, and no pod of this node has called them yet (--all lists them).\n",
            quiet.len()
        );
    }
    text
}

fn one_service(service: &Value, all: bool, paint: Paint) -> String {
    let word = |key: &str| service[key].as_str().unwrap_or("?");
    let endpoints = list(&service["endpoints"]);
    let scope = if word("scope") == "all" { String::new() } else { format!(", {} only", word("scope")) };
    let mut text = format!(
        "{}  {}  {}, {} endpoints{scope}\n",
        paint.bold(word("name")),
        word("address"),
        word("policy"),
        endpoints.len()
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

/// Who keeps away from an endpoint, since when, and why.
fn state(endpoint: &Value, paint: Paint) -> String {
    let by = list(&endpoint["ejected_by"]);
    let Some(first) = by.first() else { return paint.good("ok") };
    let more = if by.len() > 1 { format!(" and {} more", by.len() - 1) } else { String::new() };
    let again = number(&first["retry_in_seconds"]);
    let again =
        if again > 0.0 { format!("tried again in {again:.1} s") } else { "to be tried with the next call".to_owned() };
    paint.bad(&format!(
        "ejected by {}{more}: {} for {}, {} times; {again}",
        first["pod"].as_str().unwrap_or("?"),
        first["cause"].as_str().unwrap_or("?"),
        long_time(number(&first["since_seconds"])),
        first["failures"],
    ))
}

fn pods(page: &Value, paint: Paint) -> String {
    let mut table = Table::new(&["pod", "conns", "streams", "open", "unanswered", "moved", "ejects", "state"]);
    for pod in list(&page["pods"]) {
        let traffic = &pod["traffic"];
        let of = |key: &str| number(&traffic[key]);
        if of("accepted") == 0.0 && pod["opted_out"] == false {
            continue;
        }
        table.row([
            pod["name"].as_str().unwrap_or("?").to_owned(),
            count(of("http2_connections") + of("opaque_connections") + of("undetected_connections")),
            count(of("streams")),
            count(of("open_streams")),
            count(of("streams_failed")),
            count(of("streams_replayed")),
            list(&traffic["ejected"]).len().to_string(),
            if pod["opted_out"] == true { paint.warn("opted out") } else { paint.good("enrolled") },
        ]);
    }
    if table.is_empty() { String::new() } else { format!("\n{}\n{}", paint.bold("Pods that call"), table.text("  ")) }
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
            "pods": [{ "uid": "u", "name": "shop/web", "opted_out": false, "traffic": { "accepted": 1, "streams": 200, "ejected": [1] } }],
            "not_spread": [{ "pod": "shop/web", "service": "shop/db", "connections": 2, "reason": "headless", "cure": "dial a ClusterIP" }],
            "kernel_verdicts": { "redirected": 5, "not_tcp": 0 },
            "problems": [{ "place": "Service shop/cart", "field": "f", "message": "is wrong", "cure": "mend it" }],
            "workers": [{ "worker": 0, "answers": true }],
        })
    }

    #[test]
    fn everything_that_is_known_is_shown_and_what_is_wrong_has_its_cure() {
        let text = text(&page(), false, Paint(false));
        for part in [
            "sluice-agent 0.1.0  ready  up 1 min  node n1  /sys/fs/cgroup/kubepods\n",
            "kernel: redirected 5\n",
            "shop/cart:grpc  10.96.0.10:50051  ewma, 2 endpoints\n",
            "200 calls, 99.50 % well, 1 open; 2.0 KiB in, 10 B out",
            "75.0 %  ██████████████████",
            "ejected by shop/web: failing for 12 s, 3 times; tried again in 0.5 s",
            "shop.Cart/Add",
            "OK 199, UNAVAILABLE 1",
            "shop/web → shop/db, 2 open: headless\n    cure: dial a ClusterIP",
            "shop/db  -: headless\n    cure: give it a ClusterIP",
            "Service shop/cart: f: is wrong\n    cure: mend it",
            "1 more Service ports are redirected",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains('\x1b') && !text.contains("shop/idle"), "{text}");
    }

    #[test]
    fn a_name_narrows_it_down_and_colours_are_for_terminals() {
        for endpoint in ["10.1.0.2", "cart-2"] {
            let some = only(page(), Some(endpoint));
            assert_eq!((list(&some["services"]).len(), list(&some["pods"]).len()), (1, 0));
        }
        let text = text(&only(page(), Some("idle")), true, Paint(true));
        assert!(text.contains("shop/idle") && !text.contains("shop/cart") && text.contains('\x1b'), "{text}");
    }
}
