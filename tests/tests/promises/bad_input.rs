//! Bad input of `sluice-agent run`: what is wrong is told with its place and its cure, and what was serving goes on
//! serving, evenly and without a failed call.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::scene::{Backend, serve, wait_for, with_log};
use testbed::{Agent, Launch, Node, Pod, Service, program};

use crate::probe::{Probe, spread};
use crate::scene::{Load, calls_of, echo};

const ENDPOINTS: usize = 3;
const CALLS: u64 = 3_000;

/// A served Service with load on it, for as long as a test needs.
struct Scene {
    backends: Vec<Backend>,
    service: Service,
    client: Pod,
    loaded: Pod,
    agent: Agent,
    node: Node,
    /// Calls by pod that the probes made.
    probed: RefCell<BTreeMap<String, u64>>,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        let backends = Backend::start_some(&node, ENDPOINTS)?;
        let service = serve(&node, echo(), &backends)?;
        let (client, loaded) = (node.pod("client")?, node.pod("loaded")?);
        let agent = node.agent().start()?;
        Ok(Self { backends, service, client, loaded, agent, node, probed: RefCell::default() })
    }

    fn load(&self) -> Result<Load> {
        let options = ["--rate", "500", "--rpcs", &CALLS.to_string(), "--connections", "2"];
        Load::start(&self.node, &self.loaded, &self.service, &options)
    }

    /// New connections are still the agent's, and reach every endpoint.
    fn serves(&self, probe: &mut Probe) -> Result<()> {
        let connection = with_log(&self.agent, probe.calls(self.service.address4(), 60))?;
        let pods = spread(&connection.answers);
        ensure!(connection.redirected() && pods.len() == ENDPOINTS, "{connection:?}");
        for (pod, calls) in pods {
            *self.probed.borrow_mut().entry(pod).or_default() += calls as u64;
        }
        Ok(())
    }

    /// The load has ended: nothing failed, and with the probes' calls all shares are equal.
    fn served(&self, load: Load) -> Result<()> {
        let result = with_log(&self.agent, load.finish_without_failure(CALLS))?;
        let probed = self.probed.borrow();
        let calls = |it: &Backend| calls_of(&result, it) + probed.get(it.pod.name()).copied().unwrap_or(0);
        let calls: Vec<_> = self.backends.iter().map(calls).collect();
        let (least, most) = (calls.iter().min().context("endpoints")?, calls.iter().max().context("endpoints")?);
        println!("calls by endpoint meanwhile: {calls:?}");
        ensure!(most - least <= 1, "{calls:?}");
        Ok(())
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.node.source_dir().join(name)
    }

    /// Waits for a problem at this place, and gives it.
    fn problem(&self, place: &str) -> Result<Value> {
        wait_for(&format!("a problem in {place}"), || {
            let status = self.agent.status()?;
            let problems = status["problems"].as_array().context("problems")?;
            let here = |problem: &&Value| problem["place"].as_str().is_some_and(|it| it.starts_with(place));
            Ok(problems.iter().find(here).cloned())
        })
    }

    fn no_problem(&self) -> Result<()> {
        wait_for("the end of all problems", || {
            Ok((self.agent.status()?["problems"].as_array().is_some_and(Vec::is_empty)).then_some(()))
        })
    }
}

/// Place, field, and words of message and cure.
fn tells(problem: &Value, place: &str, field: &str, message: &str, cure: &str) -> Result<()> {
    let text = |name: &str| problem[name].as_str().unwrap_or_default();
    let all = text("place") == place
        && text("field") == field
        && text("message").contains(message)
        && text("cure").contains(cure);
    ensure!(all, "{place}: {field}: …{message}… (cure: …{cure}…) is not what it says: {problem:#}");
    Ok(())
}

#[test]
fn a_bad_file_is_told_with_line_field_and_cure_and_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let mut probe = Probe::start(&scene.client)?;
    let load = scene.load()?;
    let slice = |address: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: echo-more\n  labels:\n    \
             kubernetes.io/service-name: echo\naddressType: IPv4\nendpoints:\n- addresses:\n  - {address}\nports:\n- \
             name: grpc\n  port: 50051\n"
        )
    };
    for (text, place, field, message, cure) in [
        ("kind: Service\nspec: [\n", "bad.yaml:2:7", "spec", "unclosed", "Kubernetes API reference"),
        (&slice("10.244.0.999"), "bad.yaml:10:5", "endpoints[0].addresses[0]", "10.244.0.999", "IPv4 or IPv6 address"),
        (&slice("fd00::1"), "bad.yaml:10:5", "endpoints[0].addresses[0]", "no IPv4 address", "IPv4 or IPv6 address"),
        (&slice("10.244.0.9").replace("50051", "500510"), "bad.yaml:13:3", "ports[0].port", "500510", ""),
    ] {
        fs::write(scene.file("bad.yaml"), text)?;
        let problem = scene.problem("bad.yaml")?;
        println!("{problem}");
        tells(&problem, place, field, message, cure)?;
        scene.serves(&mut probe)?;
        // The log says it once, in the same words.
        let log = scene.agent.log()?;
        let line = log.lines().find(|line| line.contains("WARN") && line.contains(place) && line.contains(field));
        ensure!(line.is_some_and(|line| line.contains("cure=")), "{log}");
        fs::remove_file(scene.file("bad.yaml"))?;
        scene.no_problem()?;
    }
    scene.served(load)
}

#[test]
fn a_service_that_is_there_twice_serves_as_before_and_both_files_are_named() -> Result<()> {
    let scene = Scene::new()?;
    let mut probe = Probe::start(&scene.client)?;
    let load = scene.load()?;
    let text = fs::read_to_string(scene.file("service-default-echo.yaml"))?;
    // By name before the one that serves, and with other endpoints.
    fs::write(scene.file("a-copy.yaml"), text.replace("10.244.0", "10.244.9").replace("fd00:10:244", "fd00:10:249"))?;
    let problem = scene.problem("a-copy.yaml")?;
    println!("{problem}");
    tells(&problem, "a-copy.yaml:1", "", "also in service-default-echo.yaml", "remove one")?;
    scene.serves(&mut probe)?;
    fs::remove_file(scene.file("a-copy.yaml"))?;
    scene.no_problem()?;
    scene.serves(&mut probe)?;
    scene.served(load)
}

#[test]
fn a_file_half_written_goes_on_with_what_it_said_before() -> Result<()> {
    let scene = Scene::new()?;
    let mut probe = Probe::start(&scene.client)?;
    let load = scene.load()?;
    let path = scene.file("service-default-echo.yaml");
    let text = fs::read_to_string(&path)?;
    let middle = text.find("addresses").context("an endpoint")? + "addresses:\n  - \"10.".len();

    // A writer that pauses, then one that dies in the middle.
    let mut file = File::create(&path)?;
    file.write_all(&text.as_bytes()[..middle])?;
    file.sync_all()?;
    scene.serves(&mut probe)?;
    drop(file);
    let problem = scene.problem("service-default-echo.yaml")?;
    println!("{problem}");
    ensure!(problem["message"].as_str().is_some_and(|it| it.contains("cut off")) && problem["cure"] != "", "{problem}");
    scene.serves(&mut probe)?;
    fs::write(&path, &text)?;
    scene.no_problem()?;
    scene.serves(&mut probe)?;
    scene.served(load)
}

#[test]
fn a_folder_that_goes_away_leaves_everything_serving_until_it_is_back() -> Result<()> {
    let scene = Scene::new()?;
    let mut probe = Probe::start(&scene.client)?;
    let load = scene.load()?;
    let (path, away) = (scene.node.source_dir(), scene.node.folder().join("away"));
    fs::rename(path, &away)?;
    let problem = scene.problem(path.to_str().context("a path in UTF-8")?)?;
    println!("{problem}");
    ensure!(
        problem["message"].as_str().is_some_and(|it| it.contains("serve on")) && problem["cure"] != "",
        "{problem}"
    );
    scene.serves(&mut probe)?;
    fs::rename(&away, path)?;
    scene.no_problem()?;
    scene.serves(&mut probe)?;
    scene.served(load)
}

/// Runs an agent that must refuse to start, and gives what it said on standard error.
fn refuses(launch: Launch) -> Result<String> {
    let output = launch.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code().is_some_and(|code| code != 0), "{}: {said}", output.status);
    ensure!(!said.contains("panicked") && !said.contains("backtrace"), "{said}");
    Ok(said)
}

fn says(said: &str, words: &[&str]) -> Result<()> {
    println!("{}", said.trim_end());
    ensure!(words.iter().all(|word| said.contains(word)), "{words:?} are not all in: {said}");
    Ok(())
}

#[test]
fn an_agent_that_cannot_start_says_why_and_the_one_that_runs_goes_on() -> Result<()> {
    let scene = Scene::new()?;
    let mut probe = Probe::start(&scene.client)?;
    let load = scene.load()?;
    let agent = program("sluice-agent")?;
    let (node, source) = (&scene.node, scene.node.source_dir());
    let run = |source: &Path, cgroup: &Path| {
        let launch = node.command(&agent).arg("run").arg("--source").arg(source).arg("--cgroup").arg(cgroup);
        launch.args(["--admin", "127.0.0.1:0"]).env("RUST_BACKTRACE", "0")
    };
    let kubepods = node.kubepods();

    says(&refuses(run(source, &kubepods).arg("--wrokers").arg("2"))?, &["--wrokers", "--workers"])?;
    let gone = kubepods.join("no-such-group");
    says(&refuses(run(source, &gone))?, &[gone.to_str().unwrap_or_default(), "--cgroup"])?;
    says(
        &refuses(run(source, node.folder()))?,
        &[node.folder().to_str().unwrap_or_default(), "cgroup v2", "--cgroup"],
    )?;
    let nowhere = source.join("no-such-folder");
    says(&refuses(run(&nowhere, &kubepods))?, &["--source", nowhere.to_str().unwrap_or_default(), "folder"])?;
    let taken = scene.agent.admin().to_string();
    let launch = node.command(&agent).arg("run").arg("--source").arg(source).arg("--cgroup").arg(&kubepods);
    says(&refuses(launch.args(["--admin", &taken]))?, &["--admin", &taken, "free port"])?;

    // Another user, to whom nothing of the machine is closed but privileges.
    let open = node.folder().join("sluice-agent");
    fs::copy(&agent, &open)?;
    fs::set_permissions(node.folder(), fs::Permissions::from_mode(0o755))?;
    let user = node.command("setpriv").args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    let user = user.arg(&open).arg("run").arg("--source").arg(source).arg("--cgroup").arg(&kubepods);
    says(&refuses(user.stdin(Stdio::null()))?, &["CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "run as root"])?;

    scene.serves(&mut probe)?;
    scene.served(load)
}
