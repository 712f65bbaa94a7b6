//! The splitter as a function of bytes: many peers, virtual time, no socket and no sleep. Each failure prints its seed.

mod budget;
mod case;
mod chance;
mod drain;
mod endpoints;
mod errors;
mod flow_control;
mod found;
mod framing;
mod fuzz;
mod headers;
mod hpack_rules;
mod intermediary;
mod lifecycle;
mod limits;
mod memory;
mod model;
mod oracle;
mod outcomes;
mod reach;
mod script;
mod settings;
mod streams;
mod tables;
mod wire;
mod world;
