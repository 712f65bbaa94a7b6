//! What is measured, as numbers: figures with their units, samples of them, and what a group of processes has used, from
//! /proc. Judges nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// One thing that is measured, and how it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figure {
    /// Its name in the JSON file.
    pub(crate) key: &'static str,
    /// Its name as a column.
    pub(crate) title: &'static str,
    /// `µs`, `MiB`; empty for numbers of something.
    pub(crate) unit: &'static str,
    /// Digits after the point.
    pub(crate) digits: usize,
    pub(crate) shown: Shown,
}

/// How much of a figure a table shows. The JSON file has everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Median, least and most.
    Spread,
    Median,
    No,
}

/// A figure of a name, in a unit.
pub(crate) const fn figure(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    digits: usize,
    shown: Shown,
) -> Figure {
    Figure { key, title, unit, digits, shown }
}

/// CPU time of the proxy's threads, per call.
pub(crate) const CPU: Figure = figure("cpu_us_per_call", "CPU/call", "µs", 2, Shown::Spread);
/// The same, divided by what the same proxy needed where the number that varies is the smallest.
pub(crate) const GROWTH: Figure = figure("cpu_to_cpu_at_the_first", "÷ first", "", 2, Shown::Spread);
pub(crate) const RATE: Figure = figure("calls_per_second", "RPC/s", "", 0, Shown::Spread);
pub(crate) const MEAN: Figure = figure("latency_mean_us", "mean", "µs", 0, Shown::Median);
pub(crate) const P50: Figure = figure("latency_p50_us", "p50", "µs", 0, Shown::Median);
pub(crate) const P90: Figure = figure("latency_p90_us", "p90", "µs", 0, Shown::No);
pub(crate) const P99: Figure = figure("latency_p99_us", "p99", "µs", 0, Shown::Median);
pub(crate) const P999: Figure = figure("latency_p999_us", "p99.9", "µs", 0, Shown::Median);
pub(crate) const MAX: Figure = figure("latency_max_us", "max", "µs", 0, Shown::No);
/// Resident when the load has ended; that, with what processes share divided among them; the most since it began.
pub(crate) const RSS: Figure = figure("rss_mib", "RSS", "MiB", 1, Shown::Median);
pub(crate) const PSS: Figure = figure("pss_mib", "PSS", "MiB", 1, Shown::Median);
pub(crate) const PEAK: Figure = figure("rss_peak_mib", "peak", "MiB", 1, Shown::Median);
/// Resident before the load.
pub(crate) const RSS_BEFORE: Figure = figure("rss_before_mib", "RSS before", "MiB", 1, Shown::Median);
/// CPU time of the proxy before the load, when nobody is connected.
pub(crate) const CPU_BEFORE: Figure = figure("cpu_before_us_per_second", "CPU/s before", "µs", 0, Shown::Spread);
/// CPU time of the proxy while nothing is called.
pub(crate) const IDLE_CPU: Figure = figure("idle_cpu_us_per_second", "CPU/s", "µs", 0, Shown::Spread);

/// Median, least and most of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// None of no samples. Of an even number the median is the mean of the two in the middle.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Self { median, least, most })
    }
}

/// One competitor's measurements: each figure has a sample for each round.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// The row that this one is compared with, by name.
    pub(crate) baseline: Option<String>,
    pub(crate) figures: Vec<(Figure, Vec<f64>)>,
}

impl Row {
    pub(crate) fn new(name: &str, baseline: Option<String>) -> Self {
        Self { name: name.to_owned(), baseline, figures: Vec::new() }
    }

    /// One round more.
    pub(crate) fn add(&mut self, measured: &[(Figure, f64)]) {
        for (figure, value) in measured {
            match self.figures.iter_mut().find(|(known, _)| known == figure) {
                Some((_, samples)) => samples.push(*value),
                None => self.figures.push((*figure, vec![*value])),
            }
        }
    }

    pub(crate) fn samples(&self, figure: Figure) -> &[f64] {
        self.figures.iter().find(|(known, _)| *known == figure).map_or(&[], |(_, samples)| samples)
    }

    /// Round by round, what `combine` makes of this row's figure and of another's.
    pub(crate) fn paired(&self, other: &Self, figure: Figure, combine: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let pairs = self.samples(figure).iter().zip(other.samples(figure));
        pairs.map(|(own, others)| combine(*own, *others)).collect()
    }
}

/// The measurements of one case: a table.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// The case's name, with the number that varies where there is one.
    pub(crate) name: String,
    /// What was done.
    pub(crate) about: String,
    /// What rows are compared by.
    pub(crate) leading: Figure,
    pub(crate) rows: Vec<Row>,
}

impl Section {
    /// Figures that tables show, each once, in the order in which rows have them.
    pub(crate) fn columns(&self) -> Vec<Figure> {
        let mut columns: Vec<Figure> = Vec::new();
        for (figure, _) in self.rows.iter().flat_map(|row| &row.figures) {
            if figure.shown != Shown::No && !columns.contains(figure) {
                columns.push(*figure);
            }
        }
        // Where the first row has no proxy, what all others have comes first nevertheless.
        columns.sort_by_key(|figure| (*figure != self.leading, *figure != GROWTH));
        columns
    }

    /// The baseline's leading figure in relation to the row's, round by round; none for the baseline itself.
    pub(crate) fn ratio(&self, row: &Row) -> Option<Spread> {
        let baseline = self.rows.iter().find(|other| Some(&other.name) == row.baseline.as_ref())?;
        let ratios = baseline.paired(row, self.leading, |baseline, own| baseline / own);
        Spread::of(&ratios).filter(|ratio| ratio.median.is_finite())
    }
}

/// What a proxy needed in relation to `first`, which is what it needed at the first of a number's values, in the same round.
/// None where there is no proxy.
pub(crate) fn growth(measured: &[(Figure, f64)], first: &mut Option<f64>) -> Option<(Figure, f64)> {
    let (_, cpu) = measured.iter().find(|(figure, _)| *figure == CPU)?;
    Some((GROWTH, cpu / *first.get_or_insert(*cpu)))
}

/// The processes whose use is measured: all those in some cgroups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    cgroups: Vec<PathBuf>,
}

impl Meter {
    pub(crate) fn add(&mut self, cgroup: &Path) {
        self.cgroups.push(cgroup.to_owned());
    }

    /// Whether there is anything to measure: without a proxy there is not.
    pub(crate) fn is_empty(&self) -> bool {
        self.cgroups.is_empty()
    }

    /// CPU time of all threads that live.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut total = 0;
        for pid in self.pids()? {
            for task in fs::read_dir(format!("/proc/{pid}/task")).context("the proxy has ended")? {
                let stat = fs::read_to_string(task?.path().join("schedstat"))?;
                let spent = stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
                total += spent.context("no schedstat in this kernel")?;
            }
        }
        Ok(Duration::from_nanos(total))
    }

    /// MiB of all processes: resident now, where what they share counts for each of them; the same, where it is divided among all that have it;
    /// at most resident since [`Meter::forget_peak`].
    pub(crate) fn memory(&self) -> Result<[(Figure, f64); 3]> {
        let mut total = [(RSS, 0.0), (PSS, 0.0), (PEAK, 0.0)];
        for pid in self.pids()? {
            let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).context("the proxy has ended");
            let (status, maps) = (read("status")?, read("smaps_rollup")?);
            let field = |text, name| mebibytes(text, name).with_context(|| format!("no {name} of process {pid}"));
            let process = [field(&status, "VmRSS")?, field(&maps, "Pss")?, field(&status, "VmHWM")?];
            total.iter_mut().zip(process).for_each(|((_, sum), more)| *sum += more);
        }
        Ok(total)
    }

    /// From now on the peak is that of what follows (proc_pid_clear_refs(5)).
    pub(crate) fn forget_peak(&self) -> Result<()> {
        for pid in self.pids()? {
            fs::write(format!("/proc/{pid}/clear_refs"), "5").context("cannot reset a process's peak of memory")?;
        }
        Ok(())
    }

    fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for cgroup in &self.cgroups {
            let procs = fs::read_to_string(cgroup.join("cgroup.procs")).context("the proxy's cgroup is gone")?;
            let before = pids.len();
            pids.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
            anyhow::ensure!(pids.len() > before, "the proxy has ended");
        }
        Ok(pids)
    }
}

/// A field of /proc/PID/status, such as `VmRSS: 8192 kB`.
fn mebibytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_in_the_middle_of_odd_and_even_numbers_of_samples() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0]), Some(Spread { median: 2.5, least: 1.0, most: 4.0 }));
    }

    #[test]
    fn rounds_are_paired_in_their_order() {
        let (mut one, mut other) = (Row::new("one", None), Row::new("other", None));
        for (a, b) in [(1.0, 2.0), (3.0, 4.0)] {
            one.add(&[(CPU, a)]);
            other.add(&[(CPU, b), (RATE, 1.0)]);
        }
        assert_eq!(one.paired(&other, CPU, |a, b| a / b), [0.5, 0.75]);
        assert!(one.paired(&other, RATE, |a, _| a).is_empty());
    }

    #[test]
    fn growth_is_a_proxy_s_own_round_by_round_and_has_its_column_beside_what_rows_are_compared_by() {
        let mut row = Row::new("sluice", None);
        for [one, thousand] in [[4.0, 5.0], [10.0, 11.0]] {
            let mut first = None;
            assert_eq!(growth(&[(CPU, one)], &mut first), Some((GROWTH, 1.0)));
            let measured = [(RATE, 9.0), (CPU, thousand)];
            row.add(&[&measured[..], &[growth(&measured, &mut first).unwrap()]].concat());
        }
        assert_eq!(row.samples(GROWTH), [1.25, 1.1]);
        let section = Section { name: String::new(), about: String::new(), leading: CPU, rows: vec![row] };
        assert_eq!(section.columns(), [CPU, GROWTH, RATE]);
        assert_eq!(growth(&[(RATE, 9.0)], &mut None), None);
    }

    #[test]
    fn memory_is_read_from_what_the_kernel_says() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1536 kB\n";
        assert_eq!((mebibytes(status, "VmRSS"), mebibytes(status, "VmHWM")), (Some(1.5), Some(2.0)));
        assert_eq!(mebibytes(status, "VmSwap"), None);
    }
}
