//! Attaching and detaching: overlap of two agents, what goes with an agent, and what it says.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use sluice_agent::intercept::{Intercept, Settings, Verdict};
use tracing::level_filters::LevelFilter;

use crate::world::{CLUSTER_IP4, Family, QUIET, accept, in_world};

#[test]
fn an_agent_leaves_nothing_behind() {
    in_world(|world| {
        let agent = world.agent();
        let (server, service) = world.server(CLUSTER_IP4);
        agent.serve(service);
        assert_eq!(world.attached(), 5);

        drop(agent);

        assert_eq!(world.attached(), 0);
        let _client = TcpStream::connect(service).unwrap();
        accept(&server);
    });
}

#[test]
fn a_killed_agent_leaves_nothing_behind() {
    const CGROUP: &str = "SLUICE_TEST_AGENT_TO_KILL";
    if let Some(cgroup) = env::var_os(CGROUP) {
        // This is the agent's process; it waits for its end.
        let mut intercept = Intercept::load(&QUIET).unwrap();
        intercept.attach(Path::new(&cgroup)).unwrap();
        println!("\nattached");
        io::stdin().read_line(&mut String::new()).unwrap();
        return;
    }
    in_world(|world| {
        let mut agent = Command::new(env::current_exe().unwrap())
            .args(["--exact", "lifetime::a_killed_agent_leaves_nothing_behind", "--nocapture"])
            .env(CGROUP, &world.cgroup.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(agent.stdout.take().unwrap()).lines();
        let attached = said.map_while(Result::ok).any(|line| line == "attached");
        let programs = world.attached();

        agent.kill().unwrap();
        agent.wait().unwrap();

        assert!(attached);
        assert_eq!(programs, 5);
        assert_eq!(world.attached(), 0);
    });
}

#[test]
fn after_detaching_redirects_a_redirected_connection_still_shows_its_service() {
    in_world(|world| {
        let mut agent = world.agent();
        let (server, service) = world.server(CLUSTER_IP4);
        agent.serve(service);
        let redirected = TcpStream::connect(service).unwrap();

        agent.intercept.detach_redirects();

        assert_eq!(world.attached(), 3, "sock_ops and the two getpeername programs stay");
        assert_eq!(redirected.peer_addr().unwrap(), service);
        assert_eq!(agent.accept(Family::V4, world.netns).unwrap().socket_addr(), service);
        let _direct = TcpStream::connect(service).unwrap();
        accept(&server);
    });
}

#[test]
fn of_two_agents_on_one_cgroup_each_connect_is_one_agents() {
    in_world(|world| {
        let mut old = world.agent();
        let mut new = world.agent();
        let (_server, service) = world.server(CLUSTER_IP4);
        old.serve(service);
        new.serve(service);
        assert_eq!(world.attached(), 10);

        let first = TcpStream::connect(service).unwrap();
        assert_eq!(first.peer_addr().unwrap(), service);
        assert_eq!(old.accept(Family::V4, world.netns).unwrap().socket_addr(), service);
        assert_eq!(new.count(Verdict::Redirected), 0);
        assert_eq!(new.count(Verdict::NotService), 1, "it saw the old agent's listener");

        old.intercept.detach_redirects();

        let second = TcpStream::connect(service).unwrap();
        assert_eq!(second.peer_addr().unwrap(), service);
        assert_eq!(new.accept(Family::V4, world.netns).unwrap().socket_addr(), service);
        assert_eq!(old.count(Verdict::Redirected), 1);
        assert_eq!(first.peer_addr().unwrap(), service, "the old agent's connection drains with its name");

        drop(old);
        assert_eq!(world.attached(), 5);
        let third = TcpStream::connect(service).unwrap();
        assert_eq!(third.peer_addr().unwrap(), service);
        assert_eq!(new.accept(Family::V4, world.netns).unwrap().socket_addr(), service);
    });
}

#[test]
fn a_path_that_is_no_cgroup_is_named_with_the_cure() {
    in_world(|world| {
        let mut intercept = Intercept::load(&QUIET).unwrap();
        let gone = world.cgroup.path.join("gone");
        for path in [gone.as_path(), Path::new("/proc")] {
            let error = format!("{:#}", intercept.attach(path).unwrap_err());
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains("--cgroup"), "{error}");
        }
    });
}

/// Where the process's logger writes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn at_level_debug_each_verdict_is_a_line_and_below_there_is_none() {
    let lines = Lines::default();
    let writer = lines.clone();
    // The only test of this binary that installs a logger.
    let logger = tracing_subscriber::fmt().with_env_filter("sluice=trace").with_ansi(false);
    logger.with_writer(move || writer.clone()).init();
    in_world(|world| {
        let mut agent = world.agent_with(&Settings { log_level: LevelFilter::INFO, ..QUIET });
        let (_server, service) = world.server(CLUSTER_IP4);
        agent.serve(service);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _inside = runtime.enter();
        runtime.spawn(agent.intercept.kernel_log().unwrap());

        let _silent = TcpStream::connect(service).unwrap();
        agent.intercept.set_log_level(LevelFilter::DEBUG).unwrap();
        let _said = TcpStream::connect(service).unwrap();

        let said = |verdict: Verdict| {
            let netns = world.netns.0;
            format!("{}: ::ffff:{CLUSTER_IP4} port {} from network namespace {netns}", verdict.name(), service.port())
        };
        runtime.block_on(async {
            while !lines.text().contains(&said(Verdict::FlowRecorded)) {
                tokio::task::yield_now().await;
            }
        });
        let text = lines.text();
        assert_eq!(text.matches(&said(Verdict::Redirected)).count(), 1, "{text}");
        assert_eq!(text.matches(&said(Verdict::FlowRecorded)).count(), 1, "{text}");
        assert!(text.contains("DEBUG sluice::kernel"), "{text}");
    });
}
