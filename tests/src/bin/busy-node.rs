//! A process that holds a simulated node with something of everything in it, until it is told to end by a signal. In:
//! nothing; out, on standard output, the path of the node's cgroup. For the tests that end it.

use std::process::Stdio;
use std::thread;

use anyhow::Result;
use testbed::{Node, ServiceSpec};

fn main() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("busy")?;
    let service = node.service(ServiceSpec::grpc("echo", 7000))?;
    service.add_endpoint(&pod)?;
    let script = "setsid sleep 1000 & sleep 1000";
    let _in_pod = pod.command("sh").args(["-c", script]).stdout(Stdio::null()).spawn()?;
    let _on_node = node.command("sleep").arg("1000").stdout(Stdio::null()).spawn()?;
    println!("{}", node.cgroup().display());
    loop {
        thread::park();
    }
}
