//! The pages as functions of what the loop and the workers say, and over a socket.

use std::num::NonZeroU16;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::addr::{EndpointAddr, ServiceAddr};
use crate::balance::{Cause, EjectedEndpoint};
use crate::calls::{Calls, Ended, Histogram};
use crate::table::object::Place;
use crate::table::{self, Endpoint, LeftAlone, Policy, Reason, Scope, Service, ServicePortName};
use crate::worker::{Ejections, EndpointConnections, EndpointReport, OpaqueReport, ServiceReport};

fn snapshot(state: State) -> Snapshot {
    let mut built = Built::default();
    let name = ServicePortName { namespace: "shop".into(), service: "cart".into(), port: "http".into() };
    built.left_alone.push(LeftAlone { name, addr: None, reason: Reason::Headless });
    let place = table::Place::File { file: "a.yaml".into(), line: 3, column: 1 };
    let problem =
        Problem { place, field: "kind".into(), message: "\"Svc\" is unknown".into(), cure: "write Service".into() };
    let entry = PodEntry { port4: NonZeroU16::new(4000), port6: None, worker: 0, opted_out: true };
    let pod = PodLine { cookie: NetnsCookie(77), uid: PodUid::new("u-1"), name: "shop/we\"b".into(), entry };
    let name = ServicePortName { namespace: "shop".into(), service: "cart".into(), port: "grpc".into() };
    let addr = ServiceAddr::new("10.96.0.10:50051".parse().unwrap());
    let endpoint = Endpoint {
        addr: EndpointAddr::new("10.1.0.1:8080".parse().unwrap()),
        identity: "u-2 cart-1".into(),
        place: Some(Arc::new(Place { node: Some("n2".into()), zone: Some("z2".into()) })),
    };
    let service = Service {
        id: 1,
        addr,
        name,
        balancing: Policy::RoundRobin.into(),
        endpoints: [endpoint].into(),
        scope: Scope::SameZone,
        usable: 3,
    };
    built.table.services.insert(addr, Arc::new(service));
    Snapshot {
        health: Health { state, missing: vec!["services", "pods"], source_problems: vec![problem] },
        cgroup: "/sys/fs/cgroup/kubepods".into(),
        built,
        pods: vec![pod],
        pod_names: HashMap::from([("u-9".into(), "shop/old".into())]),
        host_network: HashSet::new(),
        verdicts: VerdictCounts { redirected: 5, ..VerdictCounts::default() },
        workers: Vec::new(),
        node: Some("n1".into()),
        sync_ages: vec![("services", Duration::from_millis(1500))],
        taps: 0,
        started: Instant::now(),
    }
}

#[test]
fn the_status_tells_what_is_left_alone_and_why_and_what_is_wrong() {
    let page = status::page(&View { snapshot: snapshot(State::Ready), reports: vec![None] }, &nothing_found());
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["state"], "ready");
    assert_eq!(page["left_alone"][0]["name"], "shop/cart:http");
    assert!(page["left_alone"][0]["reason"].as_str().unwrap().contains("headless"));
    assert_eq!(page["problems"][0]["place"], "a.yaml:3:1");
    assert_eq!(page["problems"][0]["cure"], "write Service");
    let service = &page["services"][0];
    let endpoint = &service["endpoints"][0];
    assert_eq!((&page["node"], &endpoint["address"]), (&"n1".into(), &"10.1.0.1:8080".into()));
    let who = [("identity", "u-2"), ("pod", "cart-1"), ("node", "n2"), ("zone", "z2")];
    assert!(who.iter().all(|(key, value)| endpoint[key] == *value), "{endpoint}");
    assert_eq!((&service["scope"], &service["usable_endpoints"]), (&"PreferSameZone".into(), &3.into()));
    let pod = &page["pods"][0];
    assert_eq!((&pod["uid"], &pod["netns_cookie"], &pod["port4"]), (&"u-1".into(), &77.into(), &4000.into()));
    assert_eq!((&pod["port6"], &pod["opted_out"], &pod["traffic"]), (&Value::Null, &true.into(), &Value::Null));
    assert_eq!(page["kernel_verdicts"]["redirected"], 5);
    assert_eq!(page["kernel_verdicts"]["worker_stale"], 0);
}

/// What a worker says of one pod that calls one Service.
fn report() -> Report {
    let to = ServicePortName { namespace: "shop".into(), service: "cart".into(), port: "grpc".into() };
    let service = ServiceAddr::new(([10, 96, 0, 10], 50051).into());
    let endpoint = EndpointAddr::new(([10, 1, 0, 1], 8080).into());
    let now = Instant::now();
    let pod = PodReport {
        cookie: NetnsCookie(77),
        name: "shop/web".into(),
        listeners: 1,
        http2_connections: 2,
        opaque_connections: 1,
        opaque: vec![OpaqueReport { service: to.clone(), tls: 1, other: 0 }],
        undetected_connections: 0,
        accepted: 9,
        without_flow: 0,
        accepts_failed: 0,
        dials_failed: 0,
        ejections: Ejections { unreachable: 2, failing: 0 },
        ejected: vec![EjectedEndpoint {
            addr: endpoint,
            service,
            cause: Cause::Unreachable,
            failures: 3,
            since: now,
            until: now + Duration::from_secs(3600),
        }],
        endpoints: vec![EndpointConnections {
            addr: endpoint,
            connections: 2,
            rtt: Duration::from_micros(250),
            retransmits: 7,
            unacknowledged: 1,
        }],
        splitter: crate::splitter::Stats { streams: 40, open_streams: 3, ..Default::default() },
    };
    let calls = Calls::default();
    for code in [&b"0"[..], b"0", b"14"] {
        let mut call = calls.begin(now, Some(b"/shop.Cart/Add"));
        call.ends(Ended::of_grpc(code));
        calls.end(now + Duration::from_millis(3), call, 10, 20);
    }
    calls.end(now, calls.begin(now, None), 0, 0);
    let endpoint = EndpointReport {
        addr: endpoint,
        open: 2,
        picked: 40,
        failed: 1,
        latency: Some(Duration::from_millis(5)),
        weight: 0.25,
        answers: Histogram::default(),
    };
    let spread = ServiceReport { addr: service, name: to, endpoints: vec![endpoint], calls: calls.report() };
    Report { worker: 0, pods: vec![pod], services: vec![spread] }
}

fn view_of_calls() -> View {
    View { snapshot: snapshot(State::Ready), reports: vec![Some(report())] }
}

#[test]
fn workers_reports_are_joined_to_pods_and_added_up_by_service() {
    let reports = vec![Some(report()), Some(Report { worker: 1, pods: Vec::new(), ..report() })];
    let view = View { snapshot: snapshot(State::Ready), reports };
    let page: Value = serde_json::from_str(&status::page(&view, &nothing_found())).unwrap();
    assert_eq!(page["pods"][0]["traffic"]["streams"], 40);
    assert_eq!(page["pods"][0]["traffic"]["open_streams"], 3);
    let connections = &page["pods"][0]["traffic"]["endpoints"][0];
    assert_eq!(
        *connections,
        json!({ "address": "10.1.0.1:8080", "connections": 2, "rtt_us": 250, "retransmits": 7, "unacknowledged": 1 })
    );
    let service = &page["services"][0];
    assert_eq!((&service["calls"]["ended"], &service["calls"]["failed"]), (&8.into(), &2.into()), "of both workers");
    let method = &service["calls"]["methods"][0];
    assert_eq!((&method["grpc_service"], &method["grpc_method"]), (&"shop.Cart".into(), &"Add".into()));
    assert_eq!(method["codes"], json!({ "OK": 4, "UNAVAILABLE": 2 }));
    assert_eq!(method["latency"], json!([[0.00390625, 6]]));
    let endpoint = &service["endpoints"][0];
    assert_eq!((&endpoint["picked"], &endpoint["open"], &endpoint["failed"]), (&80.into(), &4.into(), &2.into()));
    assert_eq!(
        (&endpoint["latency_us"], &endpoint["weight"], &endpoint["connections"]),
        (&5000.into(), &0.25.into(), &2.into())
    );
    let ejected = &endpoint["ejected_by"][0];
    assert_eq!(
        (&ejected["pod"], &ejected["cause"], &ejected["failures"]),
        (&"shop/we\"b".into(), &"unreachable".into(), &3.into())
    );
    assert!(ejected["retry_in_seconds"].as_f64().unwrap() > 3500.0);
    assert_eq!(page["pods"][0]["traffic"]["limited"]["resets"], 0);
    let page = metrics::page(&view, metrics::Format::Prometheus);
    let series = "{client=\"shop/we\\\"b\"";
    assert!(page.contains(&format!("sluice_streams_total{series}}} 40\n")), "{page}");
    assert!(page.contains(&format!("sluice_connections{series},protocol=\"http2\"}} 2\n")), "{page}");
    assert!(page.contains(&format!("sluice_limited_total{series},limit=\"header-list\"}} 0\n")), "{page}");
}

#[test]
fn the_page_of_metrics_is_the_table_of_families_in_both_formats() {
    for format in [metrics::Format::Prometheus, metrics::Format::OpenMetrics] {
        let page = metrics::page(&view_of_calls(), format);
        let open = format == metrics::Format::OpenMetrics;
        assert!(page.contains("\nsluice_kernel_verdicts_total{verdict=\"redirected\"} 5\n"), "{page}");
        let labels = "service=\"shop/cart:grpc\",grpc_service=\"shop.Cart\",grpc_method=\"Add\"";
        assert!(page.contains(&format!("\nsluice_rpcs_total{{{labels},grpc_code=\"UNAVAILABLE\"}} 1\n")), "{page}");
        assert!(
            page.contains(&format!("\nsluice_rpc_duration_seconds_bucket{{{labels},le=\"0.00390625\"}} 3\n")),
            "{page}"
        );
        assert!(page.contains(&format!("\nsluice_rpc_duration_seconds_count{{{labels}}} 3\n")), "{page}");
        assert!(page.contains("\nsluice_ejections_total{client=\"shop/we\\\"b\",cause=\"unreachable\"} 2\n"), "{page}");
        assert!(page.contains("\nsluice_source_sync_age_seconds{kind=\"services\"} 1.5\n"), "{page}");
        assert_eq!(page.ends_with("# EOF\n"), open);
        let mut families = families::ALL.iter();
        let (mut family, mut samples) = (None, 0);
        for line in page.lines().filter(|line| !line.starts_with("# HELP") && !line.starts_with("# UNIT")) {
            if let Some(said) = line.strip_prefix("# TYPE ") {
                assert!(family.is_none() || samples > 0, "{family:?} has no sample");
                let next: &families::Family = families.next().unwrap();
                let name = if open { next.name.trim_end_matches("_total") } else { next.name };
                assert_eq!(said, format!("{name} {}", next.kind.name()));
                (family, samples) = (Some(next), 0);
            } else if line != "# EOF" {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let names = labels_of(series);
                let family = family.unwrap();
                assert!(
                    name == family.name || name.starts_with(family.name) && family.kind == families::Kind::Histogram,
                    "{line}"
                );
                assert_eq!(
                    names.iter().filter(|name| **name != "le").collect::<Vec<_>>(),
                    family.labels.iter().collect::<Vec<_>>(),
                    "{line}"
                );
                assert!(value.parse::<f64>().is_ok(), "{line}");
                samples += 1;
            }
        }
        assert!(families.next().is_none());
    }
}

/// The names of a series' labels; no value in these tests has a comma.
fn labels_of(series: &str) -> Vec<&str> {
    let Some((_, labels)) = series.trim_end_matches('}').split_once('{') else { return Vec::new() };
    labels.split(',').map(|label| label.split('=').next().unwrap()).collect()
}

#[test]
fn series_are_bounded_whatever_there_is() {
    let mut view = view_of_calls();
    let (pod, report) = (view.snapshot.pods[0].clone(), view.reports[0].clone().unwrap().pods[0].clone());
    for n in 0..2_000 {
        let cookie = NetnsCookie(1_000 + n);
        view.snapshot.pods.push(PodLine { cookie, name: format!("shop/pod-{n}").into(), ..pod.clone() });
        view.reports[0].as_mut().unwrap().pods.push(PodReport { cookie, ..report.clone() });
        let mut service = view.reports[0].as_ref().unwrap().services[0].clone();
        service.name.service = format!("s-{n}").into();
        service.addr = ServiceAddr::new(([10, 97, (n / 250) as u8, (n % 250) as u8], 1).into());
        let endpoint = service.endpoints[0].clone();
        let addr = |m: u8| EndpointAddr::new(([10, 2 + m, (n / 250) as u8, (n % 250) as u8], 1).into());
        service.endpoints = (0..10).map(|m| EndpointReport { addr: addr(m), ..endpoint.clone() }).collect();
        view.reports[0].as_mut().unwrap().services.push(service);
    }
    let page = metrics::page(&view, metrics::Format::Prometheus);
    let count = |start: &str| page.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(count("sluice_streams_total{"), 501);
    assert!(
        page.contains("\nsluice_streams_total{client=\"other\"} 60040\n"),
        "2,001 pods of 40 streams, 500 told apart"
    );
    assert_eq!(count("sluice_rpcs_in_flight{"), 1_001);
    assert_eq!(count("sluice_endpoint_rpcs_total{"), 5_001);
    let sum: u64 = page
        .lines()
        .filter(|line| line.starts_with("sluice_endpoint_rpcs_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(sum, 40 * 20_001, "nothing is lost");
}

/// `cargo test --release -p sluice-agent --lib what_pages_cost -- --ignored --nocapture`
#[test]
#[ignore = "prints figures"]
fn what_pages_cost_of_a_thousand_endpoints_and_fifty_methods() {
    let mut report = report();
    let (calls, now) = (Calls::default(), Instant::now());
    for n in 0..50_000_u64 {
        let path = format!("/shop.Cart/Method{}", n % 50);
        let mut call = calls.begin(now, Some(path.as_bytes()));
        call.ends(Ended::of_grpc(if n % 97 == 0 { b"14" } else { b"0" }));
        calls.end(now + Duration::from_micros(n), call, 10, 20);
    }
    let mut answers = Histogram::default();
    (0..1_000).for_each(|n| answers.record(Duration::from_micros(n * n)));
    let service = &mut report.services[0];
    let endpoint = EndpointReport { answers, ..service.endpoints[0].clone() };
    let addr = |n: u16| EndpointAddr::new(([10, 1, (n / 250) as u8, (n % 250) as u8], 50051).into());
    service.endpoints = (0..1_000).map(|n| EndpointReport { addr: addr(n), ..endpoint.clone() }).collect();
    service.calls = calls.report();
    let view = View { snapshot: snapshot(State::Ready), reports: vec![Some(report)] };
    for (name, page) in [
        ("/metrics", (|view| metrics::page(view, metrics::Format::Prometheus)) as fn(&View) -> String),
        ("/status.json", |view| status::page(view, &nothing_found())),
    ] {
        let mut times: Vec<_> = (0..21)
            .map(|_| {
                let start = Instant::now();
                let length = page(&view).len();
                (start.elapsed(), length)
            })
            .collect();
        times.sort();
        println!("{name}: median {:?}, slowest {:?}, {} bytes", times[10].0, times[20].0, times[0].1);
    }
}

#[test]
fn the_table_of_metrics_in_the_manifests_is_that_of_the_page() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/METRICS.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    let (before, _) = written.split_once("| metric |").unwrap_or((&written, ""));
    let should = format!("{before}{}", families::table());
    if std::env::var_os("SLUICE_WRITE").is_some() {
        std::fs::write(path, &should).unwrap();
    } else {
        assert_eq!(written, should, "write it anew: SLUICE_WRITE=1 cargo test -p sluice-agent the_table_of_metrics");
    }
}

fn nothing_found() -> Found {
    Found { at: Instant::now(), lines: Arc::new([]) }
}

#[test]
fn each_reason_why_calls_are_not_spread_is_named_with_its_cure() {
    let mut view = view_of_calls();
    let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
    let affinity = LeftAlone {
        name: ServicePortName { namespace: "shop".into(), service: "db".into(), port: "".into() },
        addr: Some(ServiceAddr::new(addr("10.96.0.20:5432"))),
        reason: Reason::NotSelected,
    };
    view.snapshot.built.left_alone.push(affinity);
    let cluster_ip = (addr("10.96.0.10:50051"), 2);
    let headless = (addr("10.1.0.9:50051"), 1);
    let own = view.snapshot.pods[0].uid.clone();
    let peers = |list: &[(SocketAddr, usize)]| list.iter().copied().collect::<crate::pods::Peers>();
    let connections = vec![
        (own.clone(), peers(&[cluster_ip, (addr("10.96.0.20:5432"), 4), (addr("127.0.0.1:4000"), 9)])),
        (PodUid::new("u-9"), peers(&[cluster_ip, headless, (addr("10.1.0.1:8080"), 3), (addr("1.2.3.4:443"), 1)])),
    ];
    let unknown = spread::unknown(&view, &connections);
    assert!(unknown.contains(&headless.0) && !unknown.contains(&cluster_ip.0), "{unknown:?}");
    let name = |service: &str, port: &str| ServicePortName {
        namespace: "shop".into(),
        service: service.into(),
        port: port.into(),
    };
    let owners =
        HashMap::from([(headless.0, vec![name("cart", "http")]), (addr("10.1.0.1:8080"), vec![name("cart", "grpc")])]);
    let reasons = |view: &View| {
        let lines = spread::not_spread(view, &connections, &owners);
        assert!(lines.iter().all(|line| !line.cure.is_empty()));
        lines
            .into_iter()
            .map(|line| format!("{} {} {} {}", line.pod, line.service, line.connections, line.reason))
            .collect::<Vec<_>>()
    };
    let lines = reasons(&view);
    for (start, why) in [
        ("shop/we\"b shop/cart:grpc 2", "opted out"),
        ("shop/we\"b shop/cart:grpc 1", "TLS"),
        ("shop/we\"b shop/db 4", "not selected"),
        ("shop/old shop/cart:grpc 2", "not enrolled"),
        ("shop/old shop/cart:http 1", "headless"),
        ("shop/old shop/cart:grpc 3", "dials endpoints itself"),
    ] {
        assert!(lines.iter().any(|line| line.starts_with(start) && line.contains(why)), "{start} {why}: {lines:#?}");
    }
    assert_eq!(lines.len(), 6, "{lines:#?}");
    view.snapshot.pods[0].entry.opted_out = false;
    assert!(reasons(&view).iter().any(|line| line.contains("older than the agent, or than the port's selection")));

    // No annotation is to blame, whether it is enrolled for a moment or not.
    view.snapshot.host_network = [own.as_str().into(), "u-9".into()].into();
    view.snapshot.pods[0].entry.opted_out = true;
    let lines = spread::not_spread(&view, &connections, &owners);
    let hosts: Vec<_> = lines.iter().filter(|line| line.reason.starts_with("hostNetwork: ")).collect();
    assert!(hosts.len() == 2 && hosts.iter().all(|line| !line.cure.contains("annotation")), "{lines:#?}");
}

#[test]
fn the_status_names_the_pods_of_the_nodes_own_network() {
    let mut snapshot = snapshot(State::Ready);
    snapshot.host_network = ["u-9".into(), "u-0".into()].into();
    let page = status::page(&View { snapshot, reports: vec![None] }, &nothing_found());
    let page: Value = serde_json::from_str(&page).unwrap();
    let pods: Vec<_> = page["not_served"].as_array().unwrap().iter().map(|it| (&it["uid"], &it["name"])).collect();
    assert_eq!(pods, [(&"u-9".into(), &"shop/old".into()), (&"u-0".into(), &"u-0".into())]);
    assert!(page["not_served"][0]["reason"].as_str().unwrap().contains("the node's own network namespace"));
    assert_eq!(page["not_served"][0]["cure"], "without hostNetwork its calls would be spread");
}

/// Serves with a control loop that always answers with this state; None: one that never answers.
async fn get(state: Option<State>, request: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asks, mut asked) = mpsc::channel(1);
    tokio::spawn(serve(listener, Pages::new(asks)));
    tokio::spawn(async move {
        let mut unanswered = Vec::new();
        while let Some(asker) = asked.recv().await {
            match (state, asker) {
                (Some(state), Ask::Health(asker)) => _ = asker.send(snapshot(state).health),
                (Some(state), Ask::Snapshot(asker)) => _ = asker.send(snapshot(state)),
                (Some(_), Ask::Owners(_, asker)) => _ = asker.send(HashMap::new()),
                (Some(_), Ask::Local(_)) => unreachable!("asked over TCP"),
                (None, asker) => unanswered.push(asker),
            }
        }
    });
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn only_a_ready_agent_is_ready_and_a_draining_one_lives() {
    for (state, readyz) in
        [(State::Ready, "200"), (State::Syncing, "503"), (State::Scanning, "503"), (State::Draining, "503")]
    {
        let answer = get(Some(state), "GET /readyz").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {readyz} ")), "{state:?}: {answer}");
        assert!(get(Some(state), "GET /livez").await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn an_agent_that_is_not_synced_says_what_it_waits_for_and_why() {
    let answer = get(Some(State::Syncing), "GET /readyz").await;
    assert!(answer.contains("waiting for all services, pods\n"), "{answer}");
    assert!(answer.contains("(cure: "), "{answer}");
}

#[tokio::test]
async fn an_agent_whose_loop_hangs_is_not_live() {
    let answer = get(None, "GET /livez").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("does not answer"), "{answer}");
}

#[tokio::test]
async fn what_is_no_page_is_refused() {
    assert!(get(Some(State::Ready), "GET /status").await.starts_with("HTTP/1.1 404 "));
    for local in local::PAGES {
        let answer = get(Some(State::Ready), &format!("GET {local}")).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("local socket"), "{answer}");
    }
    assert!(get(Some(State::Ready), "POST /livez").await.starts_with("HTTP/1.1 405 "));
    let metrics = get(Some(State::Ready), "GET /metrics").await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
}

#[tokio::test]
async fn pages_for_people_and_for_metrics_have_the_services() {
    let page = get(Some(State::Ready), "GET /").await;
    assert!(
        page.starts_with("HTTP/1.1 200 ") && page.contains("content-security-policy: default-src 'none'"),
        "{page}"
    );
    let status = get(Some(State::Ready), "GET /status.json").await;
    let status: Value = serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(status["services"].as_array().unwrap().len(), 1);
    assert!(get(Some(State::Ready), "GET /metrics").await.contains("\nsluice_services 1\n"));
}
