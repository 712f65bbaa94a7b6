//! Spans of calls for a collector of OpenTelemetry, by OTLP over HTTP with JSON (opentelemetry.io/docs/specs/otlp, "OTLP/HTTP").
//! In: what workers saw of calls that carry a W3C traceparent with the flag "sampled"; out: a span for each, below the
//! client's own. The traceparent itself crosses untouched, so that the server's span stays the client's child. What the
//! collector does not take in time is lost and counted, and no call waits.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{sleep, timeout};

use crate::config::Collector;
use crate::splitter::{CallRecord, Depth, TapEvent};
use crate::worker::{TapFilter, TapLine, TapRequest};

/// Calls that wait to be sent.
const LINES: usize = 4_096;
/// Spans in one request.
const BATCH: usize = 512;
/// How long spans are gathered.
const GATHER: Duration = Duration::from_secs(1);
/// A collector that takes longer is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// To be called within a runtime.
pub(super) fn start(collector: Collector) -> TapRequest {
    let (sink, lines) = mpsc::channel(LINES);
    tokio::spawn(export(collector, lines));
    let depth = Depth { share: 1.0, metadata: false, frames: false };
    TapRequest { filter: TapFilter::default(), depth, sink }
}

async fn export(collector: Collector, mut lines: Receiver<TapLine>) {
    let (mut batch, mut failing) = (Vec::new(), false);
    while lines.recv_many(&mut batch, BATCH).await > 0 {
        if batch.len() < BATCH {
            sleep(GATHER).await;
            while batch.len() < BATCH
                && let Ok(line) = lines.try_recv()
            {
                batch.push(line);
            }
        }
        let spans: Vec<Value> = batch.drain(..).filter_map(|line| span(&line)).collect();
        if spans.is_empty() {
            continue;
        }
        let count = spans.len();
        let sent = timeout(ANSWER_WITHIN, send(collector, spans)).await.context("no answer").flatten();
        match &sent {
            Ok(()) if failing => tracing::info!(collector = %collector.0, "the collector takes spans again"),
            Err(error) if !failing => {
                tracing::warn!(collector = %collector.0, spans = count, "spans are lost: {error:#}");
            }
            _ => {}
        }
        failing = sent.is_err();
    }
}

async fn send(Collector(address): Collector, spans: Vec<Value>) -> Result<()> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request =
        Request::post("/v1/traces").header("host", address.to_string()).header("content-type", "application/json");
    let request = request.body(Full::new(Bytes::from(message(spans).to_string())))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let said = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{address} says {status}: {}", String::from_utf8_lossy(&said[..said.len().min(200)]));
    }
    Ok(())
}

/// An ExportTraceServiceRequest.
fn message(spans: Vec<Value>) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    json!({ "resourceSpans": [{
        "resource": { "attributes": [text("service.name", "sluice-agent"), text("service.version", version)] },
        "scopeSpans": [{ "scope": { "name": "sluice", "version": version }, "spans": spans }],
    }] })
}

/// None: nobody traces the call.
fn span(line: &TapLine) -> Option<Value> {
    let TapEvent::End(record) = &line.event else { return None };
    let (trace, parent) = traced(record.traceparent.as_deref()?)?;
    let end = line.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = end.saturating_sub(record.duration);
    Some(json!({
        "traceId": trace,
        "spanId": format!("{:016x}", fastrand::u64(1..)),
        "parentSpanId": parent,
        "name": record.path.trim_start_matches('/'),
        // SPAN_KIND_CLIENT: it is the way to the server.
        "kind": 3,
        "startTimeUnixNano": start.as_nanos().to_string(),
        "endTimeUnixNano": end.as_nanos().to_string(),
        "attributes": attributes(line, record),
        // STATUS_CODE_ERROR, or unset.
        "status": if record.ended.is_failure() { json!({ "code": 2, "message": record.ended.name() }) } else { json!({}) },
    }))
}

/// By OpenTelemetry's names (semantic conventions for RPC) where it has any.
fn attributes(line: &TapLine, record: &CallRecord) -> Vec<Value> {
    let mut attributes = vec![
        text("sluice.client", &line.pod),
        text("sluice.service", &record.service.to_string()),
        number("sluice.attempts", record.attempts.into()),
    ];
    if let Some(endpoint) = record.endpoint {
        attributes.push(text("network.peer.address", &endpoint.ip().to_string()));
        attributes.push(number("network.peer.port", endpoint.port().into()));
    }
    if record.grpc {
        let path = record.path.trim_start_matches('/');
        let (service, method) = path.rsplit_once('/').unwrap_or(("", path));
        attributes.push(text("rpc.system", "grpc"));
        attributes.push(text("rpc.service", service));
        attributes.push(text("rpc.method", method));
        attributes.push(text("rpc.grpc.status_code", &record.ended.name()));
    }
    attributes
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn number(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

/// Trace and parent of a traceparent (W3C Trace Context, "traceparent") whose flag "sampled" is set.
fn traced(traceparent: &str) -> Option<(&str, &str)> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex =
        |text: &str, length| text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = |text: &str, length| is_hex(text, length) && text.bytes().any(|byte| byte != b'0');
    let well_formed =
        is_hex(version, 2) && version != "ff" && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2);
    let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
    (well_formed && sampled).then_some((trace, parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::Ended;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn line(traceparent: Option<&str>, code: &[u8]) -> TapLine {
        let record = CallRecord {
            call: 1,
            service: crate::table::ServicePortName {
                namespace: "shop".into(),
                service: "cart".into(),
                port: "grpc".into(),
            },
            path: "/shop.Cart/Add".to_owned(),
            grpc: true,
            endpoint: Some(crate::addr::EndpointAddr::new(([10, 1, 0, 1], 8080).into())),
            attempts: 1,
            ended: Ended::of_grpc(code),
            duration: Duration::from_millis(5),
            request_bytes: 1,
            response_bytes: 2,
            traceparent: traceparent.map(str::to_owned),
        };
        TapLine {
            pod: "shop/web".into(),
            at: UNIX_EPOCH + Duration::from_secs(100),
            event: TapEvent::End(Box::new(record)),
        }
    }

    #[test]
    fn a_call_that_is_traced_is_a_span_below_its_clients_and_no_other_is() {
        let span = span(&line(Some(TRACEPARENT), b"14")).unwrap();
        assert_eq!(
            (&span["traceId"], &span["parentSpanId"]),
            (&json!(&TRACEPARENT[3..35]), &json!(&TRACEPARENT[36..52]))
        );
        assert_eq!((&span["name"], &span["startTimeUnixNano"]), (&json!("shop.Cart/Add"), &json!("99995000000")));
        assert_eq!(span["status"], json!({ "code": 2, "message": "UNAVAILABLE" }));
        for other in [
            None,
            Some(&*TRACEPARENT.replace("-01", "-00")),
            Some("00-00-00-01"),
            Some(""),
            Some(&*TRACEPARENT.replace("00-0a", "ff-0a")),
        ] {
            assert!(super::span(&line(other, b"0")).is_none(), "{other:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn spans_arrive_at_the_collector_in_one_request_of_its_own_form() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Collector::read(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (sink, lines) = mpsc::channel(LINES);
        tokio::spawn(export(collector, lines));
        for code in [&b"0"[..], b"14"] {
            sink.send(line(Some(TRACEPARENT), code)).await.unwrap();
        }
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut said = Vec::new();
        let body = loop {
            let mut part = [0; 4096];
            let n = stream.read(&mut part).await.unwrap();
            said.extend_from_slice(&part[..n]);
            let text = String::from_utf8_lossy(&said);
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && serde_json::from_str::<Value>(body).is_ok()
            {
                assert!(
                    head.starts_with("POST /v1/traces HTTP/1.1") && head.contains("content-type: application/json"),
                    "{head}"
                );
                break serde_json::from_str::<Value>(body).unwrap();
            }
        };
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        assert_eq!(body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len(), 2);
    }
}
