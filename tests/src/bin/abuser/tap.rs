//! What an endpoint sees: stands before a server, passes bytes both ways, and counts the frames of those who connect. In:
//! connections; out: a line of JSON for each line on standard input, until that ends. It changes no byte.

use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::frames::PREFACE;

/// Frames by type; index 10: those of other types.
#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    frames: [AtomicU64; 11],
}

/// From `port` on all addresses to `behind` on loopback.
pub fn run(port: u16, behind: u16) -> io::Result<()> {
    let counts = Arc::new(Counts::default());
    let listener = TcpListener::bind(("::", port))?;
    let counting = Arc::clone(&counts);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counting.connections.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = pass(stream, behind, Arc::clone(&counting)) {
                eprintln!("tap: {error}");
            }
        }
    });
    for _ in io::stdin().lock().lines() {
        let frames: Vec<u64> = counts.frames.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        println!("{{\"connections\":{},\"frames\":{frames:?}}}", counts.connections.load(Ordering::Relaxed));
        io::stdout().flush()?;
    }
    Ok(())
}

fn pass(near: TcpStream, behind: u16, counts: Arc<Counts>) -> io::Result<()> {
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, behind))?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    let (from, to) = (near.try_clone()?, far.try_clone()?);
    let mut heads = Heads { skip: PREFACE.len(), head: Vec::new() };
    thread::spawn(move || copy(from, to, |bytes| heads.count(bytes, &counts)));
    thread::spawn(move || copy(far, near, |_| {}));
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut look: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        look(&buffer[..n]);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // Both ways: an end of HTTP/2 in one is the end of both.
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
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
