//! The splitter as a function of bytes: many peers, virtual time, no socket and no sleep. Each failure prints its seed.

mod oracle;
mod world;
