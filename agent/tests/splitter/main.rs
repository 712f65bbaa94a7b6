//! The splitter as a function of bytes: many peers, virtual time, no socket and no sleep. Each failure prints its seed.

mod drain;
mod endpoints;
mod errors;
mod flow_control;
mod fuzz;
mod headers;
mod lifecycle;
mod limits;
mod memory;
mod oracle;
mod reach;
mod script;
mod wire;
mod world;
