//! What one pod may do to the agent: floods of bytes, messages, streams and connections, on a simulated node with the real
//! agent and real BPF. Each test checks that all arrives, that the agent's memory stays within its budget and that nothing
//! is left behind. The full sizes run by name (`-- --ignored`). Needs root, `sluice-agent` built and python3.

mod churn;
mod fairness;
mod many;
mod scene;
mod server;
mod volume;
