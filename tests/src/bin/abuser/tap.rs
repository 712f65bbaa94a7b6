//! What an endpoint sees: stands before a server, passes bytes both ways, and counts the frames of those who connect. In:
//! connections; out: a line of JSON for each line on standard input, until that ends. It changes no byte.

use std::io::{self, BufRead, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::frames::PREFACE;

/// Frames by type; index 10: those of other types.
#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    frames: [AtomicU64; 11],
}

/// From `port` on all addresses to `behind` on loopback. One thread: a thousand connections cost it no more than the server.
pub fn run(port: u16, behind: u16) -> io::Result<()> {
    let counts = Arc::new(Counts::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let listener = runtime.block_on(TcpListener::bind(("::", port)))?;
    let counting = Arc::clone(&counts);
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    counting.connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(pass(stream, behind, Arc::clone(&counting)));
                }
            }
        });
    });
    for _ in io::stdin().lock().lines() {
        let frames: Vec<u64> = counts.frames.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        println!("{{\"connections\":{},\"frames\":{frames:?}}}", counts.connections.load(Ordering::Relaxed));
        io::stdout().flush()?;
    }
    Ok(())
}

/// Until one side ends: an end of HTTP/2 in one direction is the end of both.
async fn pass(near: TcpStream, behind: u16, counts: Arc<Counts>) {
    let far = match TcpStream::connect((Ipv4Addr::LOCALHOST, behind)).await {
        Ok(far) => far,
        Err(error) => return eprintln!("tap: {error}"),
    };
    // A socket that refuses this is gone, and reading it tells so.
    let _ = near.set_nodelay(true).and(far.set_nodelay(true));
    let (near, far) = (near.into_split(), far.into_split());
    let mut heads = Heads { skip: PREFACE.len(), head: Vec::new() };
    tokio::select! {
        _ = copy(near.0, far.1, |bytes| heads.count(bytes, &counts)) => {}
        _ = copy(far.0, near.1, |_| {}) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut look: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        from.readable().await?;
        buffer.clear();
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        look(&buffer);
        to.write_all(&buffer).await?;
    }
}

/// Finds the frames in a stream of bytes.
struct Heads {
    skip: usize,
    head: Vec<u8>,
}

impl Heads {
    fn count(&mut self, mut bytes: &[u8], counts: &Counts) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let missing = (9 - self.head.len()).min(bytes.len());
            if missing == 0 {
                return;
            }
            self.head.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if let [a, b, c, kind, ..] = self.head[..]
                && self.head.len() == 9
            {
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                counts.frames[usize::from(kind).min(10)].fetch_add(1, Ordering::Relaxed);
                self.head.clear();
            }
        }
    }
}
