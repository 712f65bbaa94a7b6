//! A connection to an agent: to its local socket, or from elsewhere to its admin address, which shows less. In: that address;
//! out: pages, whole or as they come.

use std::io::ErrorKind;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::admin::local;

/// An agent that answers.
pub(super) struct Agent {
    sender: SendRequest<Empty<Bytes>>,
}

impl Agent {
    pub(super) async fn connect(admin: SocketAddr) -> Result<Self> {
        match local::connect(admin) {
            Ok(stream) => Self::over(stream).await,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                // From elsewhere it is seen as everybody sees it.
                let Ok(stream) = TcpStream::connect(admin).await else { bail!(absent(admin)) };
                Self::over(stream).await
            }
            Err(error) => Err(error).with_context(|| format!("cannot reach the agent of {admin}")),
        }
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("the agent does not answer")?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// A page's text; an error where the agent has none.
    pub(super) async fn whole(mut self, method: Method, page: &str) -> Result<String> {
        let response = self.ask(method, page).await?;
        let body = response.into_body().collect().await.context("the agent's answer broke off")?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    }

    /// A page whose body is to be read as it comes.
    pub(super) async fn ask(&mut self, method: Method, page: &str) -> Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(page).header("host", "localhost");
        let request = request.body(Empty::new()).context("a request that cannot be made")?;
        let response = self.sender.send_request(request).await.context(
            "the agent closed the connection: it answers its own user and root only, so run this as the agent's user",
        )?;
        if response.status().is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map(|it| it.to_bytes()).unwrap_or_default();
        bail!("the agent says: {}", String::from_utf8_lossy(&body).trim_end())
    }
}

/// What to do where nobody listens.
fn absent(admin: SocketAddr) -> String {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut agents: Vec<&str> =
        sockets.lines().filter_map(|line| line.rsplit_once("@sluice-agent/")).map(|it| it.1).collect();
    agents.sort_unstable();
    agents.dedup();
    let cure = match &agents[..] {
        [] => "start one (sluice-agent run), or look where it runs: kubectl -n sluice-system exec ds/sluice-agent -- sluice-agent status".to_owned(),
        agents => format!("here listen: {}; give one with --admin", agents.join(", ")),
    };
    format!("no agent with the admin address {admin} runs in this network namespace; {cure}")
}
