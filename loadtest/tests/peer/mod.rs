//! A server of the test's own on a free port, and a client that sends whatever it is told and shows all that came back.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request};
use loadtest::proto::{EchoRequest, EchoResponse};
use loadtest::server::{Server, ServerOptions};
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) control: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn start(options: ServerOptions) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server::bind(&[any], options).unwrap();
        let (address, control) = (server.addresses().unwrap()[0], server.add_control(any).unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Self { address, control, stop: Some(stop), serving }
    }

    pub(crate) fn stop(&mut self) {
        self.stop.take();
    }

    pub(crate) async fn stopped(self) {
        self.serving.await.unwrap();
    }
}

pub(crate) struct Peer {
    sender: SendRequest<Bytes>,
    address: SocketAddr,
}

/// A call whose requests are all sent.
pub(crate) struct Sent {
    response: ResponseFuture,
    client: SocketAddr,
}

/// All that came back.
pub(crate) struct End {
    pub(crate) client: SocketAddr,
    headers: HeaderMap,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) messages: Vec<EchoResponse>,
}

impl Peer {
    pub(crate) async fn connect(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).await.unwrap();
        let address = stream.local_addr().unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self { sender, address }
    }

    pub(crate) async fn call(&mut self, method: &str, headers: &[(&str, &str)], messages: &[EchoRequest]) -> End {
        self.send(method, headers, messages).end().await
    }

    pub(crate) fn send(&mut self, method: &str, headers: &[(&str, &str)], messages: &[EchoRequest]) -> Sent {
        let uri = format!("http://server/sluice.loadtest.v1.Echo/{method}");
        let mut request = Request::post(uri).header("te", "trailers").header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (response, mut body) = self.sender.send_request(request.body(()).unwrap(), false).unwrap();
        for (i, message) in messages.iter().enumerate() {
            let mut framed = BytesMut::from(&[0][..]);
            framed.extend_from_slice(&(message.encoded_len() as u32).to_be_bytes());
            message.encode(&mut framed).unwrap();
            body.send_data(framed.freeze(), i + 1 == messages.len()).unwrap();
        }
        Sent { response, client: self.address }
    }
}

impl Sent {
    pub(crate) async fn end(self) -> End {
        let (head, mut body) = self.response.await.unwrap().into_parts();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            bytes.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await.unwrap();
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(bytes.get_u8(), 0, "compressed");
            let length = bytes.get_u32() as usize;
            messages.push(EchoResponse::decode(bytes.split_to(length)).unwrap());
        }
        End { client: self.client, headers: head.headers, trailers, messages }
    }
}

impl End {
    /// `grpc-status`, from the trailers or, without any, from the headers.
    pub(crate) fn status(&self) -> &str {
        one(self.trailers.as_ref().unwrap_or(&self.headers), "grpc-status")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        one(&self.headers, name)
    }

    pub(crate) fn trailer(&self, name: &str) -> &str {
        one(self.trailers.as_ref().expect("no trailers"), name)
    }

    pub(crate) fn headers_of(&self, name: &str) -> Vec<&str> {
        all(&self.headers, name)
    }

    pub(crate) fn trailers_of(&self, name: &str) -> Vec<&str> {
        all(self.trailers.as_ref().expect("no trailers"), name)
    }
}

fn one<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let values = all(headers, name);
    assert_eq!(values.len(), 1, "{name} in {headers:?}");
    values[0]
}

fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}
