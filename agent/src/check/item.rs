//! What was found, a line for each thing. In: findings; out: text for people, in colours on a terminal, or JSON.

use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;

/// Columns of the names, so that the findings stand below each other.
const NAME: usize = 22;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    /// sluice serves, though not all of it or not everywhere.
    Warn,
    /// sluice does not serve.
    Fail,
}

/// One thing that sluice needs, or should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Item {
    pub(super) level: Level,
    pub(super) name: Cow<'static, str>,
    pub(super) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cure: Option<String>,
}

type Name = Cow<'static, str>;

impl Item {
    pub(super) fn ok(name: impl Into<Name>, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, name: name.into(), found: found.into(), cure: None }
    }

    pub(super) fn warn(name: impl Into<Name>, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { level: Level::Warn, name: name.into(), found: found.into(), cure: Some(cure.into()) }
    }

    pub(super) fn fail(name: impl Into<Name>, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { level: Level::Fail, name: name.into(), found: found.into(), cure: Some(cure.into()) }
    }

    /// It was not tried, since what another item is about comes first.
    pub(super) fn not_tried(name: impl Into<Name>, first: &str) -> Self {
        Self::warn(name, "not tried", format!("{first} first, then check again"))
    }

    pub(super) fn is_ok(&self) -> bool {
        self.level == Level::Ok
    }

    fn write(&self, out: &mut impl Write, colours: bool) -> io::Result<()> {
        let (word, colour) = match self.level {
            Level::Ok => ("ok  ", "\x1b[32m"),
            Level::Warn => ("warn", "\x1b[33m"),
            Level::Fail => ("fail", "\x1b[1;31m"),
        };
        let (colour, plain) = if colours { (colour, "\x1b[0m") } else { ("", "") };
        writeln!(out, "{colour}{word}{plain}  {:NAME$}  {}", self.name, self.found)?;
        match &self.cure {
            Some(cure) => writeln!(out, "      cure: {cure}"),
            None => Ok(()),
        }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    ok: usize,
    warn: usize,
    fail: usize,
    items: Vec<Item>,
}

impl Report {
    pub(super) fn new(items: Vec<Item>) -> Self {
        let count = |level| items.iter().filter(|item| item.level == level).count();
        Self { ok: count(Level::Ok), warn: count(Level::Warn), fail: count(Level::Fail), items }
    }

    pub(super) fn passed(&self) -> bool {
        self.fail == 0
    }

    pub(super) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }

    pub(super) fn write_text(&self, out: &mut impl Write, colours: bool) -> io::Result<()> {
        self.items.iter().try_for_each(|item| item.write(out, colours))?;
        // Again where they are seen: a log is read from its end.
        let failed: Vec<_> = self.items.iter().filter(|item| item.level == Level::Fail).collect();
        if !failed.is_empty() && self.items.len() > 1 {
            writeln!(out, "\nto be mended:")?;
            failed.into_iter().try_for_each(|item| item.write(out, colours))?;
        }
        let warnings = if self.warn == 1 { "warning" } else { "warnings" };
        let outcome = if self.passed() { "this node is fit for sluice" } else { "sluice cannot serve this node yet" };
        writeln!(out, "{} ok, {} {warnings}, {} failed: {outcome}", self.ok, self.warn, self.fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::new(vec![
            Item::ok("kernel", "Linux 6.18"),
            Item::warn("zone", "none", "label the node"),
            Item::fail("CAP_BPF", "missing", "add it"),
        ])
    }

    fn text(report: &Report, colours: bool) -> String {
        let mut out = Vec::new();
        report.write_text(&mut out, colours).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_each_with_the_cure_below_then_what_failed_again_and_a_sum() {
        let expected = "\
ok    kernel                  Linux 6.18
warn  zone                    none
      cure: label the node
fail  CAP_BPF                 missing
      cure: add it

to be mended:
fail  CAP_BPF                 missing
      cure: add it
1 ok, 1 warning, 1 failed: sluice cannot serve this node yet
";
        assert_eq!(text(&report(), false), expected);
        assert!(text(&report(), true).contains("\x1b[1;31mfail\x1b[0m  CAP_BPF"));
    }

    #[test]
    fn warnings_alone_let_it_pass() {
        assert!(!report().passed());
        assert!(Report::new(vec![Item::warn("zone", "none", "label the node")]).passed());
    }

    #[test]
    fn json_has_the_same() {
        let mut out = Vec::new();
        report().write_json(&mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["fail"], 1);
        let item = serde_json::json!({ "level": "warn", "name": "zone", "found": "none", "cure": "label the node" });
        assert_eq!(json["items"][1], item);
        assert!(json["items"][0].get("cure").is_none());
    }
}
