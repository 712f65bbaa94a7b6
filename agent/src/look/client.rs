//! A connection to an agent: to its local socket, or from elsewhere to its admin address, which shows less. In: that address;
//! out: pages, whole or as they come. Nobody waits for an agent that hangs.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admin::local;

/// Its parts answer the agent within a second each, or it says that they do not.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// An agent that answers.
pub(super) struct Agent {
    sender: SendRequest<Empty<Bytes>>,
    admin: SocketAddr,
    /// Where it is seen from here.
    pid: Option<i32>,
}

impl Agent {
    pub(super) async fn connect(admin: SocketAddr) -> Result<Self> {
        match local::connect(admin).await {
            Ok(stream) => {
                let pid = stream.peer_cred().ok().and_then(|it| it.pid()).filter(|pid| *pid != 0);
                Self::over(stream, admin, pid).await
            }
            // Its queue is full of those that gave up waiting.
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!(silent(admin, None)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                // From elsewhere it is seen as everybody sees it.
                let Ok(Ok(stream)) = timeout(ANSWER_WITHIN, TcpStream::connect(admin)).await else {
                    bail!(absent(admin))
                };
                Self::over(stream, admin, None).await
            }
            Err(error) => Err(error).with_context(|| format!("cannot reach the agent of {admin}")),
        }
    }

    async fn over<S>(stream: S, admin: SocketAddr, pid: Option<i32>) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("the agent does not answer")?;
        tokio::spawn(connection);
        Ok(Self { sender, admin, pid })
    }

    /// A page's text; an error where the agent has none.
    pub(super) async fn whole(mut self, method: Method, page: &str) -> Result<String> {
        let response = self.ask(method, page).await?;
        let body = timeout(ANSWER_WITHIN, response.into_body().collect());
        let body =
            body.await.map_err(|_| anyhow!(silent(self.admin, self.pid)))?.context("the agent's answer broke off")?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    }

    /// A page whose body is to be read as it comes.
    pub(super) async fn ask(&mut self, method: Method, page: &str) -> Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(page).header("host", "localhost");
        let request = request.body(Empty::new()).context("a request that cannot be made")?;
        let response = timeout(ANSWER_WITHIN, self.sender.send_request(request)).await;
        let response = response.map_err(|_| anyhow!(silent(self.admin, self.pid)))?.context(
            "the agent closed the connection: it answers its own user and root only, so run this as the agent's user",
        )?;
        if response.status().is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map(|it| it.to_bytes()).unwrap_or_default();
        bail!("the agent says: {}", String::from_utf8_lossy(&body).trim_end())
    }
}

/// What an agent that hangs means, and what to do.
fn silent(admin: SocketAddr, pid: Option<i32>) -> String {
    let (who, stopped) = match pid {
        Some(pid) => (format!("the agent with PID {pid}"), format!("kill -CONT {pid} if it was stopped")),
        None => (format!("the agent of {admin}"), "kill -CONT and its PID if it was stopped".to_owned()),
    };
    let seconds = ANSWER_WITHIN.as_secs();
    format!(
        "{who} does not answer within {seconds} s. Where it hangs, redirection has ended by itself one second after that: new \
         connections go by kube-proxy, those that it has wait for it; cure: {stopped}, else see its log and delete its pod \
         (kubectl -n sluice-system delete pod NAME): the DaemonSet starts another"
    )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::block_on;

    #[test]
    fn an_agent_that_hangs_is_not_waited_for_even_where_its_queue_is_full() {
        let admin: SocketAddr = ([127, 0, 0, 1], 1).into();
        let address = local::address(admin).unwrap();
        let _hangs = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let ask = || block_on(async { Agent::connect(admin).await?.whole(Method::GET, "/status.json").await });
        let why = format!("{:#}", ask().unwrap_err());
        let pid = std::process::id();
        assert!(why.starts_with(&format!("the agent with PID {pid} does not answer within 3 s.")), "{why}");
        assert!(why.contains("redirection has ended by itself") && why.contains(&format!("kill -CONT {pid}")), "{why}");

        let waiting: Result<Vec<_>> = block_on(async {
            let mut streams = Vec::new();
            while let Ok(stream) = local::connect(admin).await {
                streams.push(stream);
            }
            Ok(streams)
        });
        let why = format!("{:#}", ask().unwrap_err());
        assert!(why.starts_with("the agent of 127.0.0.1:1 does not answer"), "{} wait: {why}", waiting.unwrap().len());
    }
}
