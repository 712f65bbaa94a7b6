//! A simulated Kubernetes node: a bridge, pods (network namespace, cgroup in kubepods layout, processes started as
//! runc starts them), kube-proxy's DNAT by nftables, and the objects of a cluster as a folder of YAML. The node is a
//! network namespace of its own: the host stays untouched and several nodes run side by side. Guards remove
//! everything on drop, on panic, and on SIGINT, SIGTERM and SIGHUP; what a SIGKILL leaves is swept at the next start.
//! Needs root. No kubelet, no API server, no container images: processes see the host's files. [`Cluster`] has all of these.

mod agent;
mod cgroup;
mod cleanup;
mod clients;
mod cluster;
mod image;
mod kube_proxy;
mod launch;
mod manifest;
mod netns;
mod node;
mod pod;
mod programs;
pub mod scene;
mod service;
mod snapshot;
mod tap;

pub use agent::{Agent, AgentBuilder, Response};
pub use cgroup::{Driver, Qos};
pub use cleanup::wait_for_cleaner;
pub use clients::set_up_client;
pub use cluster::{Cluster, KubeNode};
pub use image::Image;
pub use launch::{Launch, Process};
pub use netns::{Netns, find_tool};
pub use node::{Node, NodeBuilder, require_root};
pub use pod::{Pod, PodSpec};
pub use programs::{program, target_folder};
pub use service::{PortSpec, Service, ServiceSpec};
pub use snapshot::Snapshot;
pub use tap::{Tap, taps};
