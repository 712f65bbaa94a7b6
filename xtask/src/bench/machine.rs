//! What a run was made on and with: kernel, processor, date, versions. In: the peers; out, names and values in their order.

use std::fs;
use std::path::Path;
use std::process::Command;

use testbed::find_tool;

use super::peers::Peer;
use crate::host;

/// Pairs of name and value; what cannot be told is left out.
pub(crate) fn describe(peers: &[Peer], envoy: Option<&Path>) -> Vec<(&'static str, String)> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let tool = |name: &str, args: &[&str]| said(find_tool(name)?.as_path(), args);
    let mut all = vec![
        ("kernel", fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned())),
        ("CPU", processor(&cpus)),
        ("date", tool("date", &["-u", "+%Y-%m-%d"])),
        (
            "sluice",
            tool("git", &["-C", &host::workspace().to_string_lossy(), "describe", "--always", "--tags", "--dirty"]),
        ),
        ("h2load", tool("h2load", &["--version"]).and_then(|text| version(&text))),
    ];
    if peers.iter().any(|peer| peer.tools().iter().any(|(tool, _)| *tool == "haproxy")) {
        all.push(("HAProxy", tool("haproxy", &["-v"]).and_then(|text| version(&text))));
    }
    if peers.contains(&Peer::Nginx) {
        all.push(("nginx", tool("nginx", &["-v"]).and_then(|text| version(&text))));
    }
    if let Some(envoy) = envoy {
        all.push(("Envoy", said(envoy, &["--version"]).and_then(|text| version(&text))));
    }
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// On standard output, or on standard error, where nginx says it.
fn said(program: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    let all = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&all).trim().to_owned())
}

/// Model and number of the processors of /proc/cpuinfo.
fn processor(text: &str) -> Option<String> {
    let values = |name: &str| {
        let named = move |line: &'_ str| {
            line.split_once(':').map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        };
        let name = name.to_owned();
        text.lines().filter_map(named).filter(move |(key, _)| *key == name).map(|(_, value)| value)
    };
    let count = values("processor").count();
    (count > 0).then(|| match values("model name").next() {
        Some(model) => format!("{count} × {model}"),
        None => count.to_string(),
    })
}

/// The first word that looks like a version: of `HAProxy version 2.6.12-1+deb12u4 2026/10/17 …` the third, of
/// `nginx version: nginx/1.22.1` what follows the slash, of Envoy's `…/1.40.0/Clean/RELEASE/…` that.
fn version(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    text.split(|c: char| c.is_whitespace() || c == '/').find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let of = |text: &str| version(text).unwrap();
        assert_eq!(of("h2load nghttp2/1.52.0"), "1.52.0");
        assert_eq!(of("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"), "2.6.12-1+deb12u4");
        assert_eq!(of("nginx version: nginx/1.22.1"), "1.22.1");
        assert_eq!(of("envoy  version: 0a1b/1.40.0/Clean/RELEASE/BoringSSL"), "1.40.0");
        assert_eq!(version("nothing"), None);
    }

    #[test]
    fn processors_are_counted() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\n";
        assert_eq!(processor(text).as_deref(), Some("2 × AMD EPYC"));
        assert_eq!(processor(""), None);
    }
}
