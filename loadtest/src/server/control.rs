//! The control listener of `loadtest server`: plain HTTP with JSON. GET says what the server is like, PUT sets a
//! [`Behaviour`] in place of the one before. What a behaviour does is in `behaviour`.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};

use super::{ACCEPT_PAUSE, Behaviour, Conduct, Shared};

/// Bytes of an order; a behaviour has a tenth of it.
const LONGEST_ORDER: usize = 4096;

/// What a server is like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    pub pod: String,
    /// Calls that it works on at a time; absent: any number.
    pub slots: Option<usize>,
    /// How long it works on a call when it is well, in the mean.
    pub service_time_us: u64,
    pub behaviour: Behaviour,
}

/// What the listener's connections share.
#[derive(Clone)]
pub(super) struct Control {
    pub(super) shared: Arc<Shared>,
    pub(super) conduct: Arc<Conduct>,
}

/// Serves for ever.
pub(super) async fn accept(listener: TcpListener, control: Control) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream, control.clone()))),
            Err(error) => {
                eprintln!("cannot accept on the control listener: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, control: Control) {
    let service = service_fn(|request| control.answer(request));
    // A connection that breaks is its client's business.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Control {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<String>, Infallible> {
        let outcome = match *request.method() {
            Method::GET => Ok(()),
            Method::PUT => self.order(request.into_body()).await,
            _ => Err("GET says what the server is like, PUT sets how it behaves".to_owned()),
        };
        let account = || serde_json::to_string(&self.account()).map_err(|error| error.to_string());
        let mut response = Response::new(String::new());
        match outcome.and_then(|()| account()) {
            Ok(text) => *response.body_mut() = text + "\n",
            Err(error) => {
                *response.status_mut() = StatusCode::BAD_REQUEST;
                *response.body_mut() = error + "\n";
            }
        }
        Ok(response)
    }

    async fn order(&self, body: Incoming) -> Result<(), String> {
        let body = Limited::new(body, LONGEST_ORDER).collect().await.map_err(|error| error.to_string())?;
        let behaviour: Behaviour = serde_json::from_slice(&body.to_bytes())
            .map_err(|error| format!("no behaviour: {error}; write for example {{\"slow\": 20, \"for_ms\": 5000}}"))?;
        behaviour.check()?;
        self.conduct.change(behaviour).map_err(|error| format!("the sockets could not be changed: {error}"))
    }

    fn account(&self) -> Account {
        let options = &self.shared.options;
        let mean = (options.service_time.least + options.service_time.most) / 2;
        Account {
            pod: options.pod.clone(),
            slots: options.slots,
            service_time_us: u64::try_from(mean.as_micros()).unwrap_or(u64::MAX),
            behaviour: self.conduct.current(),
        }
    }
}
