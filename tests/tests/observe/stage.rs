//! Where things happen to an agent: a node with a client, endpoints, and what goes on meanwhile. In: what is to be there;
//! out: guards. It reads no metric.

use std::any::Any;

use anyhow::Result;
use testbed::scene::{Backend, in_turn, serve, wait_for};
use testbed::{Agent, Node, Pod, Process, Service, ServiceSpec};

use crate::peers::{Client, Connection, Endpoint};
use crate::scene::list;

/// A node with an agent, a client pod, and an endpoint that answers as it is told.
pub(crate) struct Stage {
    /// What goes on until the next cause.
    pub(crate) going_on: Vec<Box<dyn Any>>,
    /// What stays to the end.
    pub(crate) stays: Vec<Box<dyn Any>>,
    /// Of the endpoint.
    pub(crate) shop: Service,
    pub(crate) client: Client,
    _endpoint: Endpoint,
    pub(crate) agent: Agent,
    pub(crate) node: Node,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        let node = Node::new()?;
        let endpoint = Endpoint::start(&node, "shop-1")?;
        let shop = serve(&node, in_turn("shop"), [&endpoint.pod])?;
        let client = Client::start(&node, "client")?;
        let agent = node.agent().workers(2).start()?;
        let (going_on, stays) = (Vec::new(), Vec::new());
        Ok(Self { going_on, stays, shop, client, _endpoint: endpoint, agent, node })
    }

    pub(crate) fn connect(&self) -> Result<Connection> {
        self.client.connect(self.shop.address4())
    }

    /// A Service that the agent knows, with these pods behind it; it stays.
    pub(crate) fn serve(&mut self, spec: ServiceSpec, endpoints: Vec<Backend>) -> Result<Service> {
        let service = serve(&self.node, spec, endpoints.iter().map(|it| &it.pod))?;
        self.stays.extend(endpoints.into_iter().map(|it| Box::new(it) as Box<dyn Any>));
        self.wait_known(&service, 1)?;
        Ok(service)
    }

    pub(crate) fn backend(&self, name: &str, options: &[&str]) -> Result<Backend> {
        Backend::start_with(&self.node, name, options)
    }

    pub(crate) fn wait_known(&self, service: &Service, least: usize) -> Result<()> {
        let address = service.address4().to_string();
        wait_for("the agent knows the Service", || {
            let status = self.agent.status()?;
            let line = list(&status["services"]).iter().find(|line| line["address"] == *address);
            Ok(line.filter(|line| list(&line["endpoints"]).len() >= least).map(drop))
        })
    }

    pub(crate) fn abuser(&self, pod: &Pod, args: &[&str]) -> Result<Process> {
        pod.command("nice").args(["-n", "19", env!("CARGO_BIN_EXE_abuser")]).args(args).spawn()
    }
}
