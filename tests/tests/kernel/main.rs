//! The BPF programs in the real kernel, driven by real sockets. Needs root, and fails without.

mod left_alone;
mod lifetime;
mod redirect;
mod world;
