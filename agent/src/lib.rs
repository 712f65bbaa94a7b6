//! sluice's agent as a library: the binary in `main.rs` is a thin shell around it, and tests and benches use its parts.

pub mod addr;
pub mod balance;
pub mod detect;
pub mod netns;
pub mod opaque;
pub mod publish;
pub mod splitter;
pub mod table;
pub mod watch;
pub mod worker;
