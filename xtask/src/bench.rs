//! `cargo xtask bench`: what calls cost in sluice beside other proxies, on simulated nodes, in one interleaved run. In:
//! nothing but root; out: tables, and the same as files where asked. It judges nothing; a call that fails is an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::host::{self, step};
use crate::scenarios::envoy;

mod against;
mod cases;
pub(crate) mod connects;
mod figures;
mod load;
mod machine;
mod one_cpu;
mod page;
mod peers;
mod report;
mod sidecar;
mod site;

use cases::{Bench, Case};
use figures::Section;
use peers::{Entrant, Peer};
use site::{Plan, Programs};

#[derive(Args)]
pub(crate) struct Options {
    /// Cases [default: all]
    #[arg(value_name = "CASE")]
    cases: Vec<Case>,
    /// Who takes part [default: all]
    #[arg(long, value_name = "PEER,…", value_delimiter = ',')]
    only: Vec<Peer>,
    /// Another commit's agent takes part as well, as sluice@COMMIT; it is built first
    #[arg(long, value_name = "COMMIT")]
    against: Option<String>,
    /// Calls in each measurement of 10x20; other cases have a part of it
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(2500..))]
    rpcs: u64,
    /// Measurements of each, in turn, after one that warms up; half of it where a number varies
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Write all measurements as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write tables and bars as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// A folder with sluice-agent and loadtest, used instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    host::need_root("bench")?;
    host::can_write([&options.json, &options.html, &options.markdown])?;
    let against = options.against.as_deref().map(against::find).transpose()?;
    let mut peers = options.peers();
    let tools = [("ip", "iproute2"), ("nft", "nftables"), ("h2load", "nghttp2-client")];
    let theirs = peers.iter().flat_map(|peer| peer.tools());
    host::need_tools(&tools.iter().chain(theirs).copied().collect::<Vec<_>>())?;
    let envoy = if peers.contains(&Peer::Envoy) { envoy::install()? } else { None };
    if envoy.is_none() {
        if options.only.contains(&Peer::Envoy) {
            bail!("Envoy was asked for by --only and cannot be had");
        }
        peers.retain(|peer| *peer != Peer::Envoy);
    }
    let folder = host::programs(options.programs.as_deref(), &["sluice-agent", "loadtest"])?;
    let machine = machine::describe(&peers, envoy.as_deref());
    let bench = Bench {
        entrants: options.entrants(&peers, &folder.join("sluice-agent"), against.as_deref())?,
        programs: Programs { loadtest: folder.join("loadtest"), envoy },
        rounds: options.rounds,
        rpcs: options.rpcs,
    };

    println!("{}\n{}\n", report::header(&machine), report::NOTE);
    let mut sections = Vec::new();
    // Files hold what there is, should a later case fail.
    let mut show = |section: Section| {
        println!("{}", report::text(&section));
        sections.push(section);
        options.write(&machine, &sections)
    };
    let cases = options.cases();
    let (shared, own): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|case| case.shares_sites());
    if !shared.is_empty() {
        step("making a node for each");
        let sites = bench.sites(Plan::default(), |_| true)?;
        shared.into_iter().try_for_each(|case| bench.run(case, &sites, &mut show))?;
    }
    own.into_iter().try_for_each(|case| bench.run(case, &[], &mut show))?;
    Ok(ExitCode::SUCCESS)
}

impl Options {
    /// Each case once, in their own order: some share nodes.
    fn cases(&self) -> Vec<Case> {
        let all = <Case as clap::ValueEnum>::value_variants();
        all.iter().copied().filter(|case| self.cases.is_empty() || self.cases.contains(case)).collect()
    }

    fn peers(&self) -> Vec<Peer> {
        Peer::ALL.into_iter().filter(|peer| self.only.is_empty() || self.only.contains(peer)).collect()
    }

    /// The peers; for each build of sluice one of its own.
    fn entrants(&self, peers: &[Peer], agent: &Path, against: Option<&str>) -> Result<Vec<Entrant>> {
        let program = against.map(against::agent).transpose()?;
        let other = against.zip(program);
        let mut entrants = Vec::new();
        for peer in peers {
            let name = peer.name();
            entrants.push(Entrant { peer: *peer, name: name.to_owned(), agent: agent.to_owned() });
            if let Some((commit, program)) = other.as_ref().filter(|_| peer.is_sluice()) {
                entrants.push(Entrant { peer: *peer, name: format!("{name}@{commit}"), agent: program.clone() });
            }
        }
        Ok(entrants)
    }

    fn write(&self, machine: &[(&str, String)], sections: &[Section]) -> Result<()> {
        let write = |file: &Option<PathBuf>, text: &dyn Fn() -> String| match file {
            Some(file) => fs::write(file, text()).with_context(|| format!("cannot write {}", file.display())),
            None => Ok(()),
        };
        write(&self.json, &|| format!("{:#}\n", report::json(machine, sections)))?;
        write(&self.html, &|| page::page(machine, sections))?;
        write(&self.markdown, &|| report::markdown(machine, sections))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &[&str]) -> Options {
        Line::try_parse_from([&["bench"], line].concat()).unwrap().options
    }

    #[test]
    fn cases_run_in_their_own_order_and_once() {
        let named = options(&["rss", "64k", "10x20", "64k"]);
        assert_eq!(named.cases(), [Case::Shared, Case::Large, Case::Rss]);
        assert_eq!(options(&[]).cases().len(), 11);
        assert!(options(&[]).cases().is_sorted());
    }

    #[test]
    fn peers_can_be_picked() {
        assert_eq!(options(&["--only", "nginx,sluice"]).peers(), [Peer::Sluice, Peer::Nginx]);
        assert_eq!(options(&[]).peers(), Peer::ALL);
    }
}
