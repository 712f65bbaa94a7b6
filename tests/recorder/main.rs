//! Makes and serves generated calls, and records what each side hears of them, one line of JSON a call. In: a seed, how
//! many calls, an address; out: a file of records. The same seed makes the same calls, whatever lies between the two sides.

mod draft;
mod drive;
mod generate;
mod metadata;
mod play;
mod shape;
mod wire;

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use clap::Parser;
use fastrand::Rng;
use serde_json::Value;

use crate::drive::Drive;
use crate::generate::shape;
use crate::shape::Side;
use crate::wire::Wire;

#[derive(Parser)]
enum Command {
    /// Makes calls
    Client {
        address: SocketAddr,
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        shapes: u32,
        #[arg(long, default_value_t = 4)]
        connections: u32,
        /// Where the records go
        #[arg(long)]
        records: PathBuf,
    },
    /// Serves them, until it is killed
    Server {
        listen: SocketAddr,
        #[arg(long)]
        seed: u64,
        /// Where the records go
        #[arg(long)]
        records: PathBuf,
    },
    /// Prints what a call is
    Show {
        #[arg(long)]
        seed: u64,
        number: u32,
    },
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Client { address, seed, shapes, connections, records } => {
            let records = Records::create(&records)?;
            thread::scope(|scope| {
                let all: Vec<_> = (0..connections)
                    .map(|number| {
                        let records = &records;
                        scope.spawn(move || {
                            let numbers = (0..shapes).filter(|shape| shape % connections == number);
                            call(address, seed, number, numbers, records)
                        })
                    })
                    .collect();
                all.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a panic"))?)
            })
        }
        Command::Server { listen, seed, records } => serve(listen, seed, &Records::create(&records)?),
        Command::Show { seed, number } => {
            print!("{}", shape(seed, number));
            Ok(())
        }
    }
}

/// One connection with its share of the calls.
fn call(
    address: SocketAddr,
    seed: u64,
    connection: u32,
    mut numbers: impl Iterator<Item = u32>,
    records: &Records,
) -> Result<()> {
    let mut rng = Rng::with_seed(seed ^ u64::from(connection) << 32);
    let at_once = rng.usize(1..=24);
    let socket = drive::connect(address)?;
    let keep = |record| records.keep(&record);
    let mut drive = Drive::new(socket, Wire::new(true, rng), Side::Client, &keep)?;
    if let Err(error) = drive.make(&mut numbers.by_ref().map(|number| shape(seed, number)), at_once) {
        drive.abandon(&format!("{error:#}"));
        bail!("connection {connection}, {} calls not begun: {error:#}", numbers.count());
    }
    Ok(())
}

fn serve(listen: SocketAddr, seed: u64, records: &Records) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let connections = AtomicU64::new(1);
    thread::scope(|scope| {
        for socket in listener.incoming() {
            let socket = socket?;
            let rng = Rng::with_seed(seed.wrapping_add(connections.fetch_add(1, Ordering::Relaxed)));
            scope.spawn(move || {
                let keep = |record| records.keep(&record);
                let served = Drive::new(socket, Wire::new(false, rng), Side::Server, &keep).and_then(|mut drive| {
                    let served = drive.serve(&|number| shape(seed, number));
                    if let Err(error) = &served {
                        drive.abandon(&format!("{error:#}"));
                    }
                    served
                });
                if let Err(error) = served {
                    eprintln!("recorder: {error:#}");
                }
            });
        }
        Ok(())
    })
}

/// A file of records, written as they come.
struct Records(Mutex<File>);

impl Records {
    fn create(path: &std::path::Path) -> Result<Self> {
        Ok(Self(Mutex::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)))
    }

    fn keep(&self, record: &Value) {
        // In one write, so that whoever reads the file meanwhile finds whole lines.
        let line = format!("{record}\n");
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.write_all(line.as_bytes()).expect("room for the records");
    }
}
