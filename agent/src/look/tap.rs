//! `tap`: calls as they happen. In: the agent's lines; out: a line for each call when it has ended, and one for a call that is
//! still open after a second; with --metadata its header fields, with --frames each frame; or JSON, line by line.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use serde_json::Value;

use super::client::Agent;
use super::figures::{list, number, time};
use super::{Paint, block_on, say};
use crate::admin::local;
use crate::config::{self, Output};

/// A call that is open for longer gets a line before its end.
const LONG: Duration = Duration::from_secs(1);
/// Calls that are remembered while they are open; of others only the end is shown.
const REMEMBERED: usize = 10_000;

/// A call under way.
struct Open {
    begun: Instant,
    /// What was said of it so far.
    lines: Vec<Value>,
    told: bool,
}

/// What is shown of what comes.
struct Show<'a> {
    config: &'a config::Tap,
    paint: Paint,
    /// By pod and call.
    open: BTreeMap<(String, u64), Open>,
    ended: u64,
}

pub(super) fn run(config: &config::Tap) -> Result<()> {
    block_on(async {
        let mut agent = Agent::connect(config.look.admin).await?;
        let response = agent.ask(hyper::Method::GET, &format!("/tap?{}", query(config))).await?;
        let mut body = response.into_body();
        let mut show = Show { config, paint: Paint::of_stdout(), open: BTreeMap::new(), ended: 0 };
        let mut rest = Vec::new();
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = tokio::time::sleep(LONG / 4) => {
                    say(&show.long_ones(Instant::now()))?;
                    continue;
                }
            };
            let Some(frame) = frame else { return Ok(()) };
            rest.extend_from_slice(frame.context("the agent has ended")?.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line: Value = serde_json::from_slice(&line).context("the agent's line is no JSON")?;
                say(&show.line(line, Instant::now()))?;
                if config.count.is_some_and(|count| show.ended >= count) {
                    return Ok(());
                }
            }
        }
    })
}

fn query(config: &config::Tap) -> String {
    let said =
        |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name}={}", local::encoded(value)));
    let mut parameters: Vec<_> =
        [said("pod", &config.pod), said("service", &config.service), said("method", &config.method)]
            .into_iter()
            .flatten()
            .collect();
    parameters.push("metadata=1".to_owned());
    if config.frames {
        parameters.push("frames=1".to_owned());
    }
    parameters.join("&")
}

impl Show<'_> {
    /// What is to be printed now.
    fn line(&mut self, line: Value, now: Instant) -> String {
        let event = line["event"].as_str().unwrap_or_default().to_owned();
        let json = self.config.look.output == Output::Json;
        if event == "lost" && !json {
            return self
                .paint
                .warn(&format!("({} events were lost: they came faster than they were read)\n", line["count"]));
        }
        let text = if json { format!("{line}\n") } else { self.text(&line) };
        let Some(call) = line["call"].as_u64() else { return text };
        let key = (line["pod"].as_str().unwrap_or_default().to_owned(), call);
        if event != "end" {
            // With a filter by status nothing is said of a call before its end.
            let filtered = self.config.status.is_some();
            let printed = if filtered || event != "frame" && !json { String::new() } else { text };
            let keeps = filtered || event != "frame";
            if keeps && (self.open.len() < REMEMBERED || self.open.contains_key(&key)) {
                let open = self.open.entry(key).or_insert_with(|| Open { begun: now, lines: Vec::new(), told: false });
                open.lines.push(line);
            }
            return printed;
        }
        let before = self.open.remove(&key).map(|open| open.lines).unwrap_or_default();
        if !self.wants(&line) {
            return String::new();
        }
        self.ended += 1;
        let filtered = self.config.status.is_some();
        let mut all = String::new();
        for earlier in &before {
            match (json, earlier["event"].as_str()) {
                (true, _) if filtered => all += &format!("{earlier}\n"),
                (false, Some("frame")) if filtered => all += &self.text(earlier),
                _ => {}
            }
        }
        all += &text;
        if self.config.metadata && !json {
            before.iter().for_each(|earlier| all += &self.metadata(earlier));
        }
        all
    }

    /// Whether a call that ended like this is to be shown.
    fn wants(&self, end: &Value) -> bool {
        let status = end["grpc_status"].as_str().or(end["http_status"].as_str()).unwrap_or("none");
        match self.config.status.as_deref() {
            None => true,
            Some("error") => !(status == "OK" || status.starts_with(['1', '2', '3'])),
            Some(wanted) => status == wanted,
        }
    }

    /// Calls that have been open for long, each once.
    fn long_ones(&mut self, now: Instant) -> String {
        if self.config.look.output == Output::Json || self.config.status.is_some() {
            return String::new();
        }
        let (mut text, paint) = (String::new(), self.paint);
        for ((pod, call), open) in self.open.iter_mut().filter(|(_, open)| !open.told && now - open.begun >= LONG) {
            open.told = true;
            let Some(request) = open.lines.iter().find(|line| line["event"] == "request") else { continue };
            let to = open.lines.iter().find_map(|line| line["endpoint"].as_str());
            text += &format!(
                "{}  {pod} #{call}  {}  {}  {}  {}\n",
                paint.dim(clock(request)),
                request["service"].as_str().unwrap_or("?"),
                request["path"].as_str().unwrap_or("?").trim_start_matches('/'),
                to.unwrap_or("no answer yet"),
                paint.warn("open"),
            );
        }
        text
    }

    fn text(&self, line: &Value) -> String {
        let word = |key: &str| line[key].as_str().unwrap_or("-");
        let paint = self.paint;
        match word("event") {
            "end" => {
                let status = line["grpc_status"].as_str().or(line["http_status"].as_str()).unwrap_or("?");
                let well = status == "OK" || status.starts_with(['1', '2', '3']);
                let attempts = number(&line["attempts"]);
                let again = if attempts > 1.0 { format!("  {attempts} attempts") } else { String::new() };
                format!(
                    "{}  {} #{}  {}  {}  {}  {}  {}  ↑ {} B  ↓ {} B{again}\n",
                    paint.dim(clock(line)),
                    word("pod"),
                    line["call"],
                    word("service"),
                    word("path").trim_start_matches('/'),
                    word("endpoint"),
                    if well { paint.good(status) } else { paint.bad(status) },
                    time(Some(Duration::from_secs_f64(number(&line["duration_ms"]).max(0.0) / 1e3))),
                    line["request_bytes"],
                    line["response_bytes"],
                )
            }
            "frame" => {
                let flags: Vec<&str> = list(&line["flags"]).iter().filter_map(Value::as_str).collect();
                let way = match (word("peer"), line["received"] == true) {
                    ("client", true) => "client ──▶",
                    ("client", false) => "client ◀──",
                    (_, true) => "           ◀── endpoint",
                    (_, false) => "           ──▶ endpoint",
                };
                let call = line["call"].as_u64().map(|call| format!(" #{call}")).unwrap_or_default();
                let value =
                    if line["value"].is_null() { String::new() } else { format!("  {}", super::plain(&line["value"])) };
                format!(
                    "{}  {}{call}  {way}  {} stream {}  {} B  {}{value}\n",
                    paint.dim(clock(line)),
                    word("pod"),
                    word("type"),
                    line["stream"],
                    line["length"],
                    flags.join(" "),
                )
            }
            _ => String::new(),
        }
    }

    fn metadata(&self, line: &Value) -> String {
        let mut text = String::new();
        let event = line["event"].as_str().unwrap_or_default();
        for field in list(&line["metadata"]) {
            let (name, value) = (field[0].as_str().unwrap_or("?"), field[1].as_str().unwrap_or("?"));
            text += &self.paint.dim(&format!("    {event:<8}  {name}: {value}\n"));
        }
        text
    }
}

/// The time of the day.
fn clock(line: &Value) -> &str {
    line["time"].as_str().and_then(|time| time.split(['T', 'Z']).nth(1)).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Look;
    use serde_json::json;

    fn config(status: Option<&str>, output: Output) -> config::Tap {
        let look = Look { admin: "127.0.0.1:1".parse().unwrap(), output };
        config::Tap {
            pod: None,
            service: None,
            method: None,
            status: status.map(str::to_owned),
            metadata: true,
            frames: true,
            count: None,
            look,
        }
    }

    fn lines(call: u64, status: &str) -> [Value; 3] {
        let base = json!({ "pod": "shop/web", "call": call, "time": "2026-01-02T03:04:05.678Z" });
        let with = |more: Value| {
            let mut line = base.clone();
            line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            line
        };
        [
            with(
                json!({ "event": "request", "service": "shop/cart:grpc", "path": "/a.B/C", "metadata": [["te", "trailers"]] }),
            ),
            with(
                json!({ "event": "response", "endpoint": "10.1.0.1:1", "metadata": [["content-type", "application/grpc"]] }),
            ),
            with(
                json!({ "event": "end", "service": "shop/cart:grpc", "path": "/a.B/C", "endpoint": "10.1.0.1:1", "grpc_status": status,
                         "duration_ms": 1.5, "attempts": 1, "request_bytes": 3, "response_bytes": 4 }),
            ),
        ]
    }

    fn shown(config: &config::Tap, lines: impl IntoIterator<Item = Value>) -> String {
        let mut show = Show { config, paint: Paint(false), open: BTreeMap::new(), ended: 0 };
        lines.into_iter().map(|line| show.line(line, Instant::now())).collect()
    }

    #[test]
    fn a_call_is_one_line_when_it_has_ended_with_its_fields_below() {
        let text = shown(&config(None, Output::Text), lines(7, "OK"));
        assert_eq!(
            text,
            "03:04:05.678  shop/web #7  shop/cart:grpc  a.B/C  10.1.0.1:1  OK  1.50 ms  ↑ 3 B  ↓ 4 B\n    request   te: trailers\n    response  content-type: application/grpc\n"
        );
    }

    #[test]
    fn a_status_chooses_calls_by_their_end_and_all_that_was_said_of_them() {
        for output in [Output::Text, Output::Json] {
            let config = config(Some("error"), output);
            let text = shown(&config, lines(1, "OK").into_iter().chain(lines(2, "UNAVAILABLE")));
            let lines = text.lines().count();
            assert_eq!(lines, 3, "{text}");
            assert!(text.contains("UNAVAILABLE") && !text.contains("OK"), "{text}");
        }
    }

    #[test]
    fn what_was_lost_is_told_in_the_format_that_was_asked_for() {
        let lost = || [json!({ "event": "lost", "count": 7 })];
        assert_eq!(shown(&config(None, Output::Json), lost()), "{\"count\":7,\"event\":\"lost\"}\n");
        assert!(shown(&config(Some("error"), Output::Text), lost()).starts_with("(7 events were lost"));
    }

    #[test]
    fn a_call_that_is_open_for_long_gets_a_line_once() {
        let config = config(None, Output::Text);
        let mut show = Show { config: &config, paint: Paint(false), open: BTreeMap::new(), ended: 0 };
        let [request, ..] = lines(3, "OK");
        assert_eq!(show.line(request, Instant::now()), "");
        assert_eq!(show.long_ones(Instant::now()), "");
        let later = Instant::now() + LONG;
        assert!(show.long_ones(later).contains("shop/web #3  shop/cart:grpc  a.B/C  no answer yet  open"));
        assert_eq!(show.long_ones(later), "");
    }
}
