//! Those who look at a running agent: `status`, `top`, `tap`, `log-level`, `maps`. In: a command line, and what the agent says
//! on its local socket; out: text for people or JSON for programs. They need no privilege but to be the agent's own user, and
//! cost the agent nothing when they are not there.

mod client;
mod figures;
mod status;
mod table;
mod tap;
mod top;

use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::admin::local;
use crate::config::{self, Output};
use client::Agent;

/// Shows the agent as it is now.
pub fn status(config: &config::Status) -> Result<()> {
    let page = ask(config.look.admin, "/status.json?fresh")?;
    let (name, paint) = (config.name.as_deref(), Paint::of_stdout());
    let head = status::head(&page, paint);
    let page =
        status::only(page, name).with_context(|| format!("nothing here has {:?} in its name", name.unwrap_or("")))?;
    match config.look.output {
        Output::Json => say(&format!("{page:#}\n")),
        Output::Text => say(&(head + &status::text(&page, config.all, name.is_some(), paint))),
    }
}

/// Shows what goes on, again and again.
pub fn top(config: &config::Top) -> Result<()> {
    top::run(config)
}

/// Shows calls as they happen.
pub fn tap(config: &config::Tap) -> Result<()> {
    tap::run(config)
}

/// Shows or changes what is said in the log.
pub fn log_level(config: &config::LogLevel) -> Result<()> {
    let parameter =
        |name: &str, value: &Option<String>| value.as_ref().map(|it| format!("{name}={}", local::encoded(it)));
    let parameters: Vec<_> =
        [parameter("bpf", &config.bpf), parameter("log", &config.log)].into_iter().flatten().collect();
    let method = if parameters.is_empty() { hyper::Method::GET } else { hyper::Method::PUT };
    let answer = block_on(async {
        let agent = Agent::connect(config.look.admin).await?;
        agent.whole(method, &format!("/log-level?{}", parameters.join("&"))).await
    })?;
    if config.look.output == Output::Json {
        return say(&answer);
    }
    let levels: local::Levels = serde_json::from_str(&answer).context("the agent's answer is no JSON")?;
    say(&format!("kernel programs: {}\nagent: {}\n", levels.bpf, levels.log))
}

/// Prints the kernel's maps.
pub fn maps(config: &config::Maps) -> Result<()> {
    let mut maps = ask(config.look.admin, "/maps.json")?;
    if let (Some(name), Some(all)) = (&config.name, maps.as_object_mut()) {
        let name = name.to_uppercase();
        if !all.contains_key(&name) {
            bail!("there is no map {name}: give one of {}", all.keys().cloned().collect::<Vec<_>>().join(", "));
        }
        all.retain(|key, _| *key == name);
    }
    match config.look.output {
        Output::Json => say(&format!("{maps:#}\n")),
        Output::Text => say(&maps_text(&maps)),
    }
}

fn maps_text(maps: &Value) -> String {
    let mut text = String::new();
    for (name, map) in maps.as_object().into_iter().flatten() {
        match map {
            Value::Array(entries) => {
                text += &format!("{name}: {} entries\n", entries.len());
                let keys: Vec<&str> = entries
                    .first()
                    .and_then(Value::as_object)
                    .into_iter()
                    .flat_map(|it| it.keys().map(|key| &**key))
                    .collect();
                let mut rows = table::Table::new(&keys);
                for entry in entries {
                    rows.row(keys.iter().map(|key| plain(&entry[*key])));
                }
                if !rows.is_empty() {
                    text += &rows.text("  ");
                }
            }
            Value::Object(fields) => {
                text += &format!("{name}:\n");
                let mut rows = table::Table::bare();
                for (key, value) in fields {
                    rows.row([key.clone(), plain(value)]);
                }
                text += &rows.text("  ");
            }
            other => text += &format!("{name}: {other}\n"),
        }
    }
    text
}

/// A string without its quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn ask(admin: std::net::SocketAddr, page: &str) -> Result<Value> {
    let text = block_on(async { Agent::connect(admin).await?.whole(hyper::Method::GET, page).await })?;
    serde_json::from_str(&text).with_context(|| format!("the agent's {page} is no JSON"))
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start a runtime")?.block_on(work)
}

/// On standard output. Whoever closes a pipe has read enough: that is the end of it.
fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        said => said.context("cannot write"),
    }
}

/// Colours, where there is somebody to see them.
#[derive(Clone, Copy, Debug)]
struct Paint(bool);

impl Paint {
    /// A terminal, unless the user wants none (no-color.org).
    fn of_stdout() -> Self {
        Self(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty()))
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    fn warn(self, text: &str) -> String {
        self.with("33", text)
    }
}
