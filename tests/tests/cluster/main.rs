//! Promises on a real cluster: real API server, scheduler, kubelets, containerd and kube-proxy on two nodes, sluice
//! installed by its own manifests. Needs a cluster that is up and the images (`cargo xtask cluster test` makes both) and
//! fails without. Each test brings its own objects and removes them; they run one after another.

mod chart;
mod crowd;
mod ground;
mod inside;
mod kinds;
mod missing;
mod outage;
mod policy;
mod race;
mod removal;
mod rollout;
mod scale;
mod sluice;
mod spread;
mod topology;
mod upgrade;
mod words;
mod world;
