//! The pages as functions of what the loop and the workers say, and over a socket.

use std::num::NonZeroU16;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::addr::{EndpointAddr, ServiceAddr};
use crate::balance::{Cause, EjectedEndpoint};
use crate::table::{Endpoint, LeftAlone, Place, Policy, Reason, Scope, Service, ServicePortName};
use crate::worker::{EndpointConnections, EndpointReport, ServiceReport};

fn snapshot(state: State) -> Snapshot {
    let mut built = Built::default();
    let name = ServicePortName { namespace: "shop".into(), service: "cart".into(), port: "http".into() };
    built.left_alone.push(LeftAlone { name, addr: None, reason: Reason::Headless });
    let place = Place::File { file: "a.yaml".into(), line: 3, column: 1 };
    let problem =
        Problem { place, field: "kind".into(), message: "\"Svc\" is unknown".into(), cure: "write Service".into() };
    let entry = PodEntry { port4: NonZeroU16::new(4000), port6: None, worker: 0, opted_out: true };
    let pod = PodLine { cookie: NetnsCookie(77), uid: PodUid::new("u-1"), name: "shop/we\"b".into(), entry };
    let name = ServicePortName { namespace: "shop".into(), service: "cart".into(), port: "grpc".into() };
    let addr = ServiceAddr::new("10.96.0.10:50051".parse().unwrap());
    let endpoint = Endpoint { addr: EndpointAddr::new("10.1.0.1:8080".parse().unwrap()), identity: "u-2".into() };
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
        verdicts: VerdictCounts { redirected: 5, ..VerdictCounts::default() },
        workers: Vec::new(),
    }
}

#[test]
fn the_status_tells_what_is_left_alone_and_why_and_what_is_wrong() {
    let page = status::page(&View { snapshot: snapshot(State::Ready), reports: vec![None] });
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["state"], "ready");
    assert_eq!(page["left_alone"][0]["name"], "shop/cart:http");
    assert!(page["left_alone"][0]["reason"].as_str().unwrap().contains("headless"));
    assert_eq!(page["problems"][0]["place"], "a.yaml:3:1");
    assert_eq!(page["problems"][0]["cure"], "write Service");
    let service = &page["services"][0];
    assert_eq!(service["endpoints"][0]["address"], "10.1.0.1:8080");
    assert_eq!((&service["scope"], &service["usable_endpoints"]), (&"PreferSameZone".into(), &3.into()));
    let pod = &page["pods"][0];
    assert_eq!((&pod["uid"], &pod["netns_cookie"], &pod["port4"]), (&"u-1".into(), &77.into(), &4000.into()));
    assert_eq!((&pod["port6"], &pod["opted_out"], &pod["traffic"]), (&Value::Null, &true.into(), &Value::Null));
    assert_eq!(page["kernel_verdicts"]["redirected"], 5);
    assert_eq!(page["kernel_verdicts"]["worker_stale"], 0);
}

#[test]
fn a_workers_report_is_joined_to_its_pods() {
    let report = PodReport {
        cookie: NetnsCookie(77),
        name: "shop/web".into(),
        listeners: 1,
        http2_connections: 2,
        opaque_connections: 1,
        undetected_connections: 0,
        accepted: 9,
        without_flow: 0,
        accepts_failed: 0,
        dials_failed: 0,
        ejected: vec![EjectedEndpoint {
            addr: EndpointAddr::new(([10, 1, 0, 2], 50051).into()),
            cause: Cause::Unreachable,
            failures: 3,
        }],
        endpoints: vec![EndpointConnections {
            addr: EndpointAddr::new(([10, 1, 0, 3], 50051).into()),
            connections: 2,
            rtt: Duration::from_micros(250),
            retransmits: 7,
            unacknowledged: 1,
        }],
        splitter: crate::splitter::Stats { streams: 40, open_streams: 3, ..Default::default() },
    };
    let endpoint = EndpointReport {
        addr: EndpointAddr::new(([10, 1, 0, 3], 50051).into()),
        open: 2,
        picked: 40,
        failed: 1,
        latency: Some(Duration::from_millis(5)),
        weight: 0.25,
    };
    let spread = ServiceReport {
        addr: ServiceAddr::new(([10, 96, 0, 10], 50051).into()),
        name: ServicePortName { namespace: "shop".into(), service: "cart".into(), port: "grpc".into() },
        endpoints: vec![endpoint],
    };
    let reports = vec![Some(Report { worker: 0, pods: vec![report], services: vec![spread.clone()] })];
    let view = View { snapshot: snapshot(State::Ready), reports };
    let page: Value = serde_json::from_str(&status::page(&view)).unwrap();
    assert_eq!(page["pods"][0]["traffic"]["streams"], 40);
    assert_eq!(page["pods"][0]["traffic"]["open_streams"], 3);
    let connections = &page["pods"][0]["traffic"]["endpoints"][0];
    assert_eq!(
        *connections,
        json!({ "address": "10.1.0.3:50051", "connections": 2, "rtt_us": 250, "retransmits": 7, "unacknowledged": 1 })
    );
    assert_eq!(
        status::spread(&spread)["endpoints"][0],
        json!({
            "address": "10.1.0.3:50051", "open": 2, "picked": 40, "failed": 1, "latency_us": 5000, "weight": 0.25
        })
    );
    assert_eq!(page["pods"][0]["traffic"]["limited"]["resets"], 0);
    assert_eq!(
        page["pods"][0]["traffic"]["ejected"][0],
        json!({ "address": "10.1.0.2:50051", "cause": "unreachable", "failures": 3 })
    );

    let page = metrics::page(&view);
    let series = "{pod=\"shop/we\\\"b\",netns=\"77\"";
    assert!(page.contains(&format!("sluice_streams_total{series}}} 40\n")), "{page}");
    assert!(page.contains(&format!("sluice_connections{series},protocol=\"http2\"}} 2\n")), "{page}");
    assert!(page.contains(&format!("sluice_limited_total{series},limit=\"header-list\"}} 0\n")), "{page}");
}

#[test]
fn every_metric_has_its_help_and_type_once_and_before_its_samples() {
    let page = metrics::page(&View { snapshot: snapshot(State::Ready), reports: vec![None] });
    assert!(page.contains("\nsluice_kernel_verdicts_total{verdict=\"redirected\"} 5\n"), "{page}");
    assert!(page.contains("\nsluice_ready 1\n"), "{page}");
    let mut families: Vec<&str> = Vec::new();
    for line in page.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert!(kind == "counter" || kind == "gauge", "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(!families.contains(&name), "{line}");
            families.push(name);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            assert_eq!(families.last(), Some(&name), "{line}");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
}

/// Serves with a control loop that always answers with this state; None: one that never answers.
async fn get(state: Option<State>, request: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asks, mut asked) = mpsc::channel(1);
    tokio::spawn(serve(listener, asks));
    tokio::spawn(async move {
        let mut unanswered = Vec::new();
        while let Some(asker) = asked.recv().await {
            match (state, asker) {
                (Some(state), Ask::Health(asker)) => _ = asker.send(snapshot(state).health),
                (Some(state), Ask::Snapshot(asker)) => _ = asker.send(snapshot(state)),
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
    assert!(get(Some(State::Ready), "GET /").await.starts_with("HTTP/1.1 404 "));
    assert!(get(Some(State::Ready), "POST /livez").await.starts_with("HTTP/1.1 405 "));
    let metrics = get(Some(State::Ready), "GET /metrics").await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4\r\n"), "{metrics}");
}

#[tokio::test]
async fn pages_for_people_and_for_metrics_have_the_services() {
    let status = get(Some(State::Ready), "GET /status.json").await;
    let status: Value = serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(status["services"].as_array().unwrap().len(), 1);
    assert!(get(Some(State::Ready), "GET /metrics").await.contains("\nsluice_services 1\n"));
}
