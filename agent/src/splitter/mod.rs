//! The splitter.
pub mod hpack;
