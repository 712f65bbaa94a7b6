//! `top`: what goes on now. In: the agent's status, again and again; out: a table that is drawn anew on a terminal, or printed
//! (text or JSON) where there is none. Numbers are of the time between two looks.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, execute, queue, terminal};
use serde_json::{Value, json};

use super::figures::{buckets, count, list, many, number, percent, percentile, since, time};
use super::status::method_name;
use super::table::Table;
use super::{Paint, ask, say};
use crate::config::{self, By, Output};

/// What was counted of one line's subject.
#[derive(Clone, Debug, Default, PartialEq)]
struct Count {
    calls: f64,
    /// Those of them that are over.
    ended: f64,
    failed: f64,
    open: f64,
    latency: Vec<u64>,
    /// What else is said of it.
    note: String,
}

/// A line's name, or two: a Service, and its endpoint or method.
type Name = (String, String);

/// One look.
struct Look {
    at: Instant,
    counts: HashMap<Name, Count>,
}

/// A line, of the time between two looks.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    name: Name,
    rate: f64,
    share: f64,
    calls: f64,
    ended: f64,
    failed: f64,
    open: f64,
    p50: Option<Duration>,
    p99: Option<Duration>,
    note: String,
}

pub(super) fn run(config: &config::Top) -> Result<()> {
    let live = config.look.output == Output::Text && io::stdout().is_terminal() && config.count.is_none();
    if live { Screen::open()?.run(config) } else { print(config) }
}

fn look(config: &config::Top, by: By) -> Result<(Value, Look)> {
    let page = ask(config.look.admin, "/status.json")?;
    let counts = counts(&page, by);
    Ok((page, Look { at: Instant::now(), counts }))
}

/// Where nobody watches: a table or an object for each look.
fn print(config: &config::Top) -> Result<()> {
    let (_, mut before) = look(config, config.by)?;
    let mut left = config.count.unwrap_or(u64::MAX);
    while left > 0 {
        std::thread::sleep(config.every);
        let (_, now) = look(config, config.by)?;
        let lines = lines(&before, &now);
        match config.look.output {
            Output::Json => say(&format!("{}\n", json_of(&lines)))?,
            Output::Text => say(&format!("{}\n", table(&lines, config.by, Paint::of_stdout()).text("")))?,
        }
        before = now;
        left -= 1;
    }
    Ok(())
}

fn counts(page: &Value, by: By) -> HashMap<Name, Count> {
    let mut counts: HashMap<Name, Count> = HashMap::new();
    let mut add = |name: Name, count: Count| {
        let sum = counts.entry(name).or_default();
        sum.calls += count.calls;
        sum.ended += count.ended;
        sum.failed += count.failed;
        sum.open += count.open;
        sum.latency.resize(sum.latency.len().max(count.latency.len()), 0);
        sum.latency.iter_mut().zip(&count.latency).for_each(|(sum, count)| *sum += count);
        if sum.note.is_empty() {
            sum.note = count.note;
        }
    };
    for service in list(&page["services"]).iter().filter(|service| !service["calls"].is_null()) {
        let name = service["name"].as_str().unwrap_or("?").to_owned();
        let methods = list(&service["calls"]["methods"]);
        match by {
            By::Service => {
                let open = number(&service["calls"]["open"]);
                let policy = service["policy"].as_str().unwrap_or("?");
                let note = format!("{policy}, {}", many(list(&service["endpoints"]).len(), "endpoint"));
                add((name.clone(), String::new()), Count { open, note, ..Count::default() });
                for method in methods {
                    add((name.clone(), String::new()), of_method(method));
                }
            }
            By::Method => methods.iter().for_each(|method| add((name.clone(), method_name(method)), of_method(method))),
            By::Endpoint => {
                for endpoint in list(&service["endpoints"]).iter().filter(|endpoint| !endpoint["picked"].is_null()) {
                    let (unreachable, ejected): (Vec<&Value>, Vec<&Value>) =
                        list(&endpoint["ejected_by"]).iter().partition(|it| it["cause"] == "unreachable");
                    let weight = number(&endpoint["weight"]);
                    let said = [("unreachable from", unreachable.len()), ("ejected by", ejected.len())];
                    let said = said.iter().filter(|(_, pods)| *pods > 0);
                    let said: Vec<_> = said.map(|(what, pods)| format!("{what} {}", many(*pods, "pod"))).collect();
                    let note = match (said.is_empty(), weight < 0.995) {
                        (true, true) => format!("weight {weight:.2}"),
                        _ => said.join(", "),
                    };
                    let (calls, open) = (number(&endpoint["picked"]), number(&endpoint["open"]));
                    let count = Count {
                        calls,
                        // With opaque connections among the open ones it begins below 0; what counts is by how much it rises.
                        ended: calls - open,
                        failed: number(&endpoint["failed"]),
                        open,
                        latency: buckets(&endpoint["answers"]),
                        note,
                    };
                    add((name.clone(), endpoint["address"].as_str().unwrap_or("?").to_owned()), count);
                }
            }
        }
    }
    counts
}

fn of_method(method: &Value) -> Count {
    let ended = number(&method["ended"]);
    Count {
        calls: ended,
        ended,
        failed: number(&method["failed"]),
        latency: buckets(&method["latency"]),
        ..Count::default()
    }
}

/// Busiest first.
fn lines(before: &Look, now: &Look) -> Vec<Line> {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(1e-3);
    let mut of_service: HashMap<&str, f64> = HashMap::new();
    let mut lines: Vec<Line> = Vec::new();
    for (name, count) in &now.counts {
        let known = before.counts.get(name).filter(|known| known.calls <= count.calls);
        let calls = count.calls - known.map_or(0.0, |known| known.calls);
        let failed = (count.failed - known.map_or(0.0, |known| known.failed)).max(0.0);
        // A call counts as failed as soon as that is known, which may be a moment before its end.
        let ended = (count.ended - known.map_or(0.0, |known| known.ended)).max(failed);
        let latency = since(count.latency.clone(), known.map(|known| &known.latency));
        *of_service.entry(&name.0).or_default() += calls;
        lines.push(Line {
            name: name.clone(),
            rate: calls / seconds,
            share: 0.0,
            calls,
            ended,
            failed,
            open: count.open,
            p50: percentile(&latency, 0.5),
            p99: percentile(&latency, 0.99),
            note: count.note.clone(),
        });
    }
    for line in &mut lines {
        let all = of_service[&*line.name.0];
        line.share = if all > 0.0 { line.calls / all } else { 0.0 };
    }
    lines.sort_by(|a, b| b.rate.total_cmp(&a.rate).then_with(|| a.name.cmp(&b.name)));
    lines
}

fn table(lines: &[Line], by: By, paint: Paint) -> Table {
    let subject = match by {
        By::Service => None,
        By::Endpoint => Some("endpoint"),
        By::Method => Some("method"),
    };
    let heading: Vec<&str> = ["service"]
        .into_iter()
        .chain(subject)
        .chain(["calls/s", "share", "well %", "p50", "p99", "open", ""])
        .collect();
    let mut table = Table::new(&heading);
    for line in lines {
        let well = percent(line.ended - line.failed, line.ended);
        let names = [line.name.0.clone()].into_iter().chain(subject.map(|_| line.name.1.clone()));
        table.row(names.chain([
            count(line.rate),
            if subject.is_some() { format!("{:.1} %", line.share * 100.0) } else { String::new() },
            if line.failed > 0.0 { paint.bad(&well) } else { well },
            time(line.p50),
            time(line.p99),
            count(line.open),
            paint.warn(&line.note),
        ]));
    }
    table
}

fn json_of(lines: &[Line]) -> Value {
    let millis = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e3);
    lines
        .iter()
        .map(|line| {
            json!({
                "service": line.name.0, "of": line.name.1, "calls_per_second": line.rate, "share": line.share,
                "calls": line.calls, "ended": line.ended, "failed": line.failed, "open": line.open,
                "p50_ms": millis(line.p50), "p99_ms": millis(line.p99), "note": line.note,
            })
        })
        .collect()
}

/// A terminal that is ours until this is dropped.
struct Screen;

impl Screen {
    fn open() -> Result<Self> {
        terminal::enable_raw_mode().context("this terminal cannot be drawn on; try --count 1")?;
        let screen = Screen;
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    fn run(&self, config: &config::Top) -> Result<()> {
        let mut by = config.by;
        let (_, mut before) = look(config, by)?;
        self.draw(&serde_json::Value::Null, &[], by, config)?;
        loop {
            let due = Instant::now() + config.every;
            let mut changed = false;
            while !changed && Instant::now() < due {
                if event::poll(due.saturating_duration_since(Instant::now()))? {
                    match event::read()? {
                        Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
                            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                            KeyCode::Char('s') => (by, changed) = (By::Service, true),
                            KeyCode::Char('e') => (by, changed) = (By::Endpoint, true),
                            KeyCode::Char('m') => (by, changed) = (By::Method, true),
                            _ => {}
                        },
                        Event::Resize(..) => break,
                        _ => {}
                    }
                }
            }
            if changed {
                // A look of another kind has nothing to compare with yet.
                before = look(config, by)?.1;
                std::thread::sleep(Duration::from_millis(200));
            }
            let (page, now) = look(config, by)?;
            self.draw(&page, &lines(&before, &now), by, config)?;
            before = now;
        }
    }

    fn draw(&self, page: &Value, lines: &[Line], by: By, config: &config::Top) -> Result<()> {
        let (width, height) = terminal::size().unwrap_or((80, 24));
        let paint = Paint::of_stdout();
        let calls: f64 = lines.iter().map(|line| line.rate).sum();
        let problems = list(&page["problems"]).len() + list(&page["not_spread"]).len();
        let of = |key: By, name: &str| if by == key { paint.bold(&format!("[{name}]")) } else { name.to_owned() };
        let state = match page["state"].as_str() {
            None => "looking …".to_owned(),
            Some("ready") => paint.good("ready"),
            Some(other) => paint.bad(other),
        };
        let mut text = vec![format!(
            "{}  {state}  {} calls/s  every {:?}   by {} {} {}   q ends{}",
            paint.bold("sluice-agent top"),
            count(calls),
            config.every,
            of(By::Service, "s service"),
            of(By::Endpoint, "e endpoint"),
            of(By::Method, "m method"),
            if problems > 0 {
                paint.warn(&format!("   {problems} remarks: sluice-agent status"))
            } else {
                String::new()
            },
        )];
        text.push(String::new());
        let table = table(lines, by, paint);
        if table.is_empty() && !page.is_null() {
            text.push("No pod of this node has called a redirected Service yet.".to_owned());
        } else {
            text.extend(table.lines());
        }
        let mut out = io::stdout().lock();
        queue!(out, cursor::MoveTo(0, 0))?;
        for (row, line) in text.iter().take(height.into()).enumerate() {
            queue!(out, cursor::MoveTo(0, row as u16))?;
            write!(out, "{}", cut(line, width.into()))?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))?;
        out.flush().context("cannot draw")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        _ = execute!(io::stdout(), cursor::Show, LeaveAlternateScreen);
        _ = terminal::disable_raw_mode();
    }
}

/// So much of a line as fits, its colours closed.
fn cut(line: &str, width: usize) -> String {
    let (mut text, mut seen, mut colour, mut painted) = (String::new(), 0, false, false);
    for c in line.chars() {
        if c == '\x1b' {
            (colour, painted) = (true, true);
        } else if !colour {
            if seen == width {
                break;
            }
            seen += 1;
        }
        text.push(c);
        colour &= c != 'm';
    }
    if painted {
        text.push_str("\x1b[0m");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(first: u64, second: u64) -> Value {
        let endpoint = |address: &str, picked: u64| json!({ "address": address, "picked": picked, "failed": 0, "open": 1, "weight": 1.0, "answers": [[0.00390625, picked]], "ejected_by": [] });
        json!({ "services": [
            { "name": "shop/cart:grpc", "policy": "ewma",
              "calls": { "open": 2, "methods": [{ "grpc_service": "a.B", "grpc_method": "C", "ended": first + second, "failed": 1, "latency": [[0.0078125, first + second]] }] },
              "endpoints": [endpoint("10.1.0.1:1", first), endpoint("10.1.0.2:1", second)] },
            { "name": "shop/idle:grpc", "policy": "ewma", "calls": null, "endpoints": [] }] })
    }

    fn between(by: By) -> Vec<Line> {
        let start = Instant::now();
        let before = Look { at: start, counts: counts(&page(100, 100), by) };
        lines(&before, &Look { at: start + Duration::from_secs(2), counts: counts(&page(400, 200), by) })
    }

    #[test]
    fn rates_and_shares_are_of_the_time_between_two_looks() {
        let by_endpoint = between(By::Endpoint);
        let short: Vec<_> = by_endpoint.iter().map(|line| (&*line.name.1, line.rate, line.share)).collect();
        assert_eq!(short, [("10.1.0.1:1", 150.0, 0.75), ("10.1.0.2:1", 50.0, 0.25)]);
        let by_service = between(By::Service);
        assert_eq!((by_service.len(), by_service[0].rate, by_service[0].open), (1, 200.0, 2.0));
        assert_eq!((by_service[0].failed, &*by_service[0].note), (0.0, "ewma, 2 endpoints"));
        let p99 = by_service[0].p99.unwrap();
        assert!(p99 > Duration::from_millis(5) && p99 <= Duration::from_micros(7_813), "{p99:?}");
        assert_eq!(between(By::Method)[0].name.1, "a.B/C");
    }

    #[test]
    fn an_endpoint_s_success_is_that_of_calls_that_ended() {
        let at = |picked: u64, open: u64, failed: u64| {
            let mut page = page(1, 1);
            let endpoint = page["services"][0]["endpoints"][0].as_object_mut().unwrap();
            endpoint.extend([
                ("picked".into(), picked.into()),
                ("open".into(), open.into()),
                ("failed".into(), failed.into()),
            ]);
            counts(&page, By::Endpoint)
        };
        let start = Instant::now();
        let well = |before: HashMap<Name, Count>, now: HashMap<Name, Count>| {
            let lines =
                lines(&Look { at: start, counts: before }, &Look { at: start + Duration::from_secs(1), counts: now });
            let line = lines.iter().find(|line| line.name.1 == "10.1.0.1:1").unwrap();
            (line.calls, line.ended, line.failed)
        };
        // Ten that take long: none has ended yet; then they fail, while one more is given to it.
        assert_eq!(well(at(0, 0, 0), at(10, 10, 0)), (10.0, 0.0, 0.0));
        assert_eq!(well(at(10, 10, 0), at(11, 1, 10)), (1.0, 10.0, 10.0));
        // Failed, and not off the books yet.
        assert_eq!(well(at(10, 10, 0), at(10, 10, 2)), (0.0, 2.0, 2.0));
    }

    #[test]
    fn an_endpoint_that_cannot_be_reached_is_not_called_ejected() {
        let mut page = page(1, 1);
        let by = |causes: &[&str]| causes.iter().map(|cause| json!({ "cause": cause })).collect::<Value>();
        page["services"][0]["endpoints"][0]["ejected_by"] = by(&["unreachable", "failing", "unreachable"]);
        page["services"][0]["endpoints"][1]["ejected_by"] = by(&["failing"]);
        let counts = counts(&page, By::Endpoint);
        let note = |endpoint: &str| &*counts[&("shop/cart:grpc".to_owned(), endpoint.to_owned())].note;
        assert_eq!(note("10.1.0.1:1"), "unreachable from 2 pods, ejected by 1 pod");
        assert_eq!(note("10.1.0.2:1"), "ejected by 1 pod");
    }

    #[test]
    fn a_line_is_cut_where_the_screen_ends_and_colours_do_not_count() {
        assert_eq!(cut("abcdef", 3), "abc");
        assert_eq!(cut("a\x1b[31mbcdef", 3), "a\x1b[31mbc\x1b[0m");
    }
}
