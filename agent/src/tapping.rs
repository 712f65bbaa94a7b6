//! Calls that somebody looks at, as lines of JSON: what `tap` shows and what the access log writes. In: what is wanted, and
//! what workers saw; out: a request to the workers, and lines. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;

use crate::splitter::{CallRecord, Depth, FrameSeen, Shown, TapEvent};
use crate::worker::{TapFilter, TapLine, TapRequest};

/// What a query asks for: `pod`, `service`, `method` (patterns), `frames` and `metadata` (1), `share` (0 to 1).
pub fn request(parameter: impl Fn(&str) -> Option<String>, sink: Sender<TapLine>) -> anyhow::Result<TapRequest> {
    let said = |name: &str| parameter(name).filter(|value| !value.is_empty());
    let share = match said("share") {
        None => 1.0,
        Some(text) => match text.parse::<f32>() {
            Ok(share) if share > 0.0 && share <= 1.0 => share,
            _ => bail!("share={text}: give a number above 0, up to 1"),
        },
    };
    let frames = said("frames").is_some();
    Ok(TapRequest {
        filter: TapFilter { pod: said("pod"), service: said("service"), method: said("method") },
        depth: Depth { share, metadata: frames || said("metadata").is_some(), frames },
        sink,
    })
}

/// One line.
pub fn json(line: &TapLine) -> Value {
    let mut object = match &line.event {
        TapEvent::Request { call, service, address, path, metadata } => json!({
            "event": "request", "call": call, "service": service.to_string(), "address": address.to_string(),
            "path": path, "metadata": fields(metadata),
        }),
        TapEvent::Response { call, endpoint, after, status, metadata } => json!({
            "event": "response", "call": call, "endpoint": endpoint.map(|it| it.to_string()),
            "after_ms": after.as_secs_f64() * 1e3, "http_status": status, "metadata": fields(metadata),
        }),
        TapEvent::Trailers { call, metadata } => json!({
            "event": "trailers", "call": call, "metadata": fields(metadata),
        }),
        TapEvent::End(record) => end(record),
        TapEvent::Frame(frame) => seen(frame),
        TapEvent::Lost(count) => json!({ "event": "lost", "count": count }),
    };
    object["time"] = json!(timestamp(line.at));
    object["pod"] = json!(line.pod);
    object
}

/// What is said of a call that is over.
fn end(record: &CallRecord) -> Value {
    let status = if record.grpc { "grpc_status" } else { "http_status" };
    json!({
        "event": "end",
        "call": record.call,
        "service": record.service.to_string(),
        "path": record.path,
        "endpoint": record.endpoint.map(|it| it.to_string()),
        "attempts": record.attempts,
        status: record.ended.name(),
        "duration_ms": record.duration.as_secs_f64() * 1e3,
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
    })
}

fn seen(frame: &FrameSeen) -> Value {
    json!({
        "event": "frame",
        "call": frame.call,
        "connection": frame.connection.index(),
        "peer": if frame.client { "client" } else { "endpoint" },
        "received": frame.received,
        "type": frame.kind_name(),
        "flags": frame.flag_names(),
        "stream": frame.stream,
        "length": frame.length,
        "value": frame.reason().map_or_else(|| json!(frame.value), |reason| json!(reason)),
    })
}

/// In their order; a name may come more than once.
fn fields(list: &[Shown]) -> Value {
    list.iter().map(|field| json!([field.name, field.value])).collect()
}

/// RFC 3339, UTC, milliseconds.
pub fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs() as i64, since.subsec_millis());
    let second = jiff::Timestamp::from_second(seconds).map(|it| it.to_string()).unwrap_or_default();
    format!("{}.{millis:03}Z", second.trim_end_matches('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        let at = UNIX_EPOCH + Duration::from_millis(1_780_000_000_042);
        assert_eq!(timestamp(at), "2026-05-28T20:26:40.042Z");
    }

    #[test]
    fn a_request_is_as_its_query_says_and_a_share_is_a_share() {
        let ask = |query: &'static [(&str, &str)]| {
            let (sink, _) = tokio::sync::mpsc::channel(1);
            request(|name| query.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned()), sink)
        };
        let all = ask(&[]).unwrap();
        assert_eq!((all.filter, all.depth.share, all.depth.metadata), (TapFilter::default(), 1.0, false));
        let some = ask(&[("pod", "shop/web"), ("frames", "1"), ("share", "0.5")]).unwrap();
        assert_eq!(some.filter.pod.as_deref(), Some("shop/web"));
        assert_eq!(some.depth, Depth { share: 0.5, metadata: true, frames: true });
        for share in ["0", "2", "x", "NaN"] {
            let query: &'static [(&str, &str)] = Box::leak(Box::new([("share", share)]));
            assert!(ask(query).unwrap_err().to_string().contains("up to 1"), "{share}");
        }
    }
}
