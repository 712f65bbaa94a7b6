//! sluice's agent as a library: the binary in `main.rs` is a thin shell around it, and tests and benches use its parts.

pub mod addr;
pub mod admin;
pub mod balance;
pub mod calls;
pub mod check;
pub mod config;
pub mod detect;
pub mod duration;
pub mod intercept;
pub mod look;
pub mod netns;
pub mod opaque;
pub mod pods;
pub mod publish;
pub mod run;
pub mod splitter;
pub mod table;
pub mod tapping;
pub mod watch;
pub mod worker;
