//! What people and programs see of a running agent, on a simulated node: `status`, `top`, `tap`, `log-level`, `maps`, the
//! access log, /metrics and the page. Each thing that is shown was caused for real; figures are printed. Needs root,
//! `sluice-agent` and `loadtest` built, python3, openssl, promtool, prometheus and chromium; fails without.

mod access_log;
mod causes;
mod cli;
mod levels;
mod local;
mod maps;
mod metrics;
mod page;
mod peers;
mod reasons;
mod scene;
mod scrape;
mod stage;
mod status;
mod tap;
mod top;
