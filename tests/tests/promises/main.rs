//! What sluice promises, end to end, on a simulated node: real BPF, real processes, the programs as built. Each test
//! counts; where a promise has a time, the test waits at most a generous one, fails after it, and prints the figure.
//! Needs root, `sluice-agent` and `loadtest` built, python3, openssl and bpftool; fails without.

mod bad_input;
mod black_hole;
mod fail_open;
mod inspection;
mod left_alone;
mod probe;
mod protocols;
mod rollout;
mod scene;
