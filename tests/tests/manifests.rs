//! What users install, without a cluster: the chart as helm renders it, the files that `kubectl apply -k` applies, and
//! that both are the same. Needs helm and kubectl, in `cluster/bin` of cargo's target folder or on the PATH, and fails
//! without. Whether a cluster takes and runs them, the cluster's tests tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory, Parser};
use serde_json::{Value, json};
use sluice_agent::config::Cli;

/// The namespace that the files name.
const NAMESPACE: &str = "sluice-system";

/// By kind and name.
type Objects = BTreeMap<(String, String), Value>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn tool(name: &str) -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("a folder above the temporary one")?;
    let built = target.join("cluster/bin").join(name);
    let found = built.is_file().then_some(built).or_else(|| testbed::find_tool(name));
    found.with_context(|| format!("{name} is missing: `cargo xtask cluster up` builds one"))
}

fn helm(args: &[&str]) -> Result<Output> {
    let mut command = Command::new(tool("helm")?);
    command.args(args).stdin(Stdio::null());
    command.output().context("cannot start helm")
}

/// `helm template` with these values.
fn template(values: &[&str]) -> Result<Output> {
    let chart = folder().join("chart");
    let chart = chart.to_str().context("a path in UTF-8")?;
    helm(&[&["template", "sluice", chart, "--namespace", NAMESPACE], values].concat())
}

fn objects(output: &Output) -> Result<Objects> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone())?;
    let mut objects = Objects::new();
    for document in text.split("\n---\n").filter(|document| !document.trim_matches(['-', '\n']).is_empty()) {
        let object: Value = serde_saphyr::from_str(document).with_context(|| document.to_owned())?;
        let name = |field: &Value| field.as_str().map(str::to_owned).context("an object without kind or name");
        let key = (name(&object["kind"])?, name(&object["metadata"]["name"])?);
        ensure!(objects.insert(key.clone(), object).is_none(), "{key:?} is there twice");
    }
    Ok(objects)
}

fn rendered(values: &[&str]) -> Result<Objects> {
    objects(&template(values)?)
}

fn daemon_set(values: &[&str]) -> Result<Value> {
    let mut objects = rendered(values)?;
    objects.remove(&("DaemonSet".to_owned(), "sluice-agent".to_owned())).context("no DaemonSet")
}

fn kustomized(folder: &Path) -> Result<Objects> {
    let output = Command::new(tool("kubectl")?).arg("kustomize").arg(folder).stdin(Stdio::null()).output();
    objects(&output.context("cannot start kubectl")?)
}

#[test]
fn kustomize_and_helm_install_the_same() -> Result<()> {
    let mut files = kustomized(&folder())?;
    // Helm makes the namespace itself (--create-namespace).
    let namespace = files.remove(&("Namespace".to_owned(), NAMESPACE.to_owned())).context("no Namespace")?;
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    let chart = rendered(&[])?;
    assert_eq!(chart.len(), 4, "{:?}", chart.keys());
    assert_eq!(files, chart);
    Ok(())
}

#[test]
fn the_network_policy_is_the_same_as_a_component_and_as_a_value() -> Result<()> {
    let file = kustomized(&folder().join("components/network-policy"))?;
    let mut chart = rendered(&["--set", "networkPolicy.enabled=true"])?;
    chart.retain(|(kind, _), _| kind == "NetworkPolicy");
    assert_eq!(chart.len(), 1);
    assert_eq!(file, chart);
    Ok(())
}

#[test]
fn monitoring_is_the_same_as_a_component_and_as_a_value() -> Result<()> {
    let files = kustomized(&folder().join("components/monitoring"))?;
    let mut chart = rendered(&["--set", "monitoring.enabled=true"])?;
    chart.retain(|(kind, _), _| matches!(kind.as_str(), "ConfigMap" | "PodMonitor" | "PrometheusRule"));
    assert_eq!(chart.len(), 3, "{:?}", chart.keys());
    assert_eq!(files, chart);

    let map = &chart[&("ConfigMap".to_owned(), "sluice-dashboard".to_owned())];
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let dashboard = map["data"]["sluice.json"].as_str().context("no dashboard")?;
    assert_eq!(dashboard, fs::read_to_string(folder().join("chart/monitoring/dashboard.json"))?);
    serde_json::from_str::<Value>(dashboard)?;

    // The monitor finds the pods and their port.
    let monitor = &chart[&("PodMonitor".to_owned(), "sluice-agent".to_owned())]["spec"];
    let object = daemon_set(&[])?;
    let port = &object["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"];
    assert_eq!(&monitor["podMetricsEndpoints"][0]["port"], port);
    assert_eq!(monitor["selector"], object["spec"]["selector"]);
    let job = monitor["jobLabel"].as_str().context("no jobLabel")?;
    assert_eq!(object["spec"]["template"]["metadata"]["labels"][job], "sluice-agent");
    Ok(())
}

#[test]
fn labels_that_operators_select_by_are_on_all_of_monitoring() -> Result<()> {
    let chart = rendered(&["--set", "monitoring.enabled=true,monitoring.labels.release=prometheus"])?;
    let labelled = chart.iter().filter(|(_, object)| object["metadata"]["labels"]["release"] == "prometheus");
    let kinds: Vec<_> = labelled.map(|((kind, _), _)| kind.as_str()).collect();
    assert_eq!(kinds, ["ConfigMap", "PodMonitor", "PrometheusRule"]);
    Ok(())
}

#[test]
fn the_chart_passes_helms_own_lint() -> Result<()> {
    let chart = folder().join("chart");
    let output = helm(&["lint", "--strict", chart.to_str().context("a path in UTF-8")?])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// The value of an environment variable of a container.
fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    container["env"].as_array()?.iter().find(|variable| variable["name"] == name)?["value"].as_str()
}

#[test]
fn every_value_reaches_its_place() -> Result<()> {
    // Value, as JSON; where in the DaemonSet; what is there.
    let agent = "/spec/template/spec/containers/0";
    let pod = "/spec/template/spec";
    let cases = [
        ("image.repository=\"r.example/s\"", format!("{agent}/image"), json!("r.example/s:0.1.0")),
        ("image.tag=\"9\"", format!("{agent}/image"), json!("sluice-agent:9")),
        ("image.pullPolicy=\"Always\"", format!("{agent}/imagePullPolicy"), json!("Always")),
        ("imagePullSecrets=[{\"name\":\"x\"}]", format!("{pod}/imagePullSecrets"), json!([{"name": "x"}])),
        ("graceSeconds=120", format!("{pod}/terminationGracePeriodSeconds"), json!(135)),
        ("extraArgs=[\"--x\",\"y\"]", format!("{agent}/args"), json!(["run", "--x", "y"])),
        ("resources={\"limits\":null}", format!("{agent}/resources/limits"), Value::Null),
        ("resources.requests.cpu=1", format!("{agent}/resources/requests/cpu"), json!(1)),
        ("priorityClassName=\"mine\"", format!("{pod}/priorityClassName"), json!("mine")),
        ("maxSurge=\"10%\"", "/spec/updateStrategy/rollingUpdate/maxSurge".into(), json!("10%")),
        ("maxSurge=3", "/spec/updateStrategy/rollingUpdate/maxSurge".into(), json!(3)),
        ("nodeSelector={\"a\":\"b\"}", format!("{pod}/nodeSelector"), json!({"kubernetes.io/os": "linux", "a": "b"})),
        ("affinity={\"nodeAffinity\":{}}", format!("{pod}/affinity"), json!({"nodeAffinity": {}})),
        ("tolerations=[]", format!("{pod}/tolerations"), Value::Null),
        ("podAnnotations={\"a\":\"b\"}", "/spec/template/metadata/annotations/a".into(), json!("b")),
    ];
    for (value, place, expected) in cases {
        let object = daemon_set(&["--set-json", value])?;
        assert_eq!(object.pointer(&place).unwrap_or(&Value::Null), &expected, "{value} at {place}");
    }
    Ok(())
}

#[test]
fn values_for_the_agent_become_its_variables_in_the_check_too() -> Result<()> {
    for (value, name, expected) in [
        ("workers=2", "SLUICE_WORKERS", Some("2")),
        ("workers=null", "SLUICE_WORKERS", None),
        ("graceSeconds=120", "SLUICE_GRACE", Some("120s")),
        ("graceSeconds=0", "SLUICE_GRACE", Some("0s")),
        ("limits={\"pings\":5,\"client-streams\":500}", "SLUICE_LIMIT", Some("client-streams=500,pings=5")),
        ("limits={}", "SLUICE_LIMIT", None),
        ("cgroup=\"/sys/fs/cgroup/x\"", "SLUICE_CGROUP", Some("/sys/fs/cgroup/x")),
        ("cgroup=\"\"", "SLUICE_CGROUP", None),
        ("log=\"info,sluice_agent::pods=debug\"", "SLUICE_LOG", Some("info,sluice_agent::pods=debug")),
        ("bpfLog=\"debug\"", "SLUICE_BPF_LOG", Some("debug")),
        ("log=\"off\"", "SLUICE_LOG", Some("off")),
        ("extraEnv=[{\"name\":\"X\",\"value\":\"y\"}]", "X", Some("y")),
    ] {
        let object = daemon_set(&["--set-json", value])?;
        let pod = &object["spec"]["template"]["spec"];
        for container in [&pod["containers"][0], &pod["initContainers"][0]] {
            assert_eq!(variable(container, name), expected, "{value} in {}", container["name"]);
        }
    }
    Ok(())
}

#[test]
fn the_agent_understands_its_container() -> Result<()> {
    let object = daemon_set(&["--set=workers=2", "--set=limits.pings=5", "--set=cgroup=/sys/fs/cgroup/x"])?;
    let pod = &object["spec"]["template"]["spec"];
    let cli = Cli::command();
    for container in [&pod["containers"][0], &pod["initContainers"][0]] {
        let task = container["args"][0].as_str().context("no subcommand")?;
        let mut line = vec!["sluice-agent".to_owned(), task.to_owned()];
        for variable in container["env"].as_array().context("no variables")? {
            let name = variable["name"].as_str().context("a variable without a name")?;
            // Both containers have all of them, and each takes those that it has a flag for.
            let flag_of = |task| {
                let mut flags = cli.find_subcommand(task).into_iter().flat_map(clap::Command::get_arguments);
                flags.find(|flag| flag.get_env().is_some_and(|env| env == name)).and_then(clap::Arg::get_long)
            };
            assert!(flag_of("run").is_some(), "no flag of `sluice-agent run` is {name}");
            let value = variable["value"].as_str().unwrap_or("node-1");
            line.extend(flag_of(task).map(|flag| format!("--{flag}={value}")));
        }
        assert!(line.len() > 2, "`sluice-agent {task}` takes none of its variables");
        Cli::try_parse_from(&line).with_context(|| format!("{line:?}"))?;
    }
    Ok(())
}

#[test]
fn who_may_read_the_admin_page_is_named_in_the_policy() -> Result<()> {
    let from = "networkPolicy={\"enabled\":true,\"from\":[{\"podSelector\":{}}]}";
    let mut objects = rendered(&["--set-json", from])?;
    let policy =
        objects.remove(&("NetworkPolicy".to_owned(), "sluice-agent".to_owned())).context("no NetworkPolicy")?;
    let ports = json!([{"port": "admin", "protocol": "TCP"}]);
    assert_eq!(policy["spec"]["ingress"], json!([{"from": [{"podSelector": {}}], "ports": ports}]));
    Ok(())
}

#[test]
fn a_value_of_unknown_name_or_wrong_type_is_refused_by_its_name() -> Result<()> {
    for (value, place) in [
        ("imgae={}", "imgae"),
        ("image.tga=\"1\"", "tga"),
        ("image.pullPolicy=\"Sometimes\"", "/image/pullPolicy"),
        ("graceSeconds=\"30s\"", "/graceSeconds"),
        ("workers=0", "/workers"),
        ("limits={\"pings\":\"many\"}", "/limits/pings"),
        ("workers=257", "/workers"),
        // A bare off in YAML.
        ("bpfLog=false", "/bpfLog"),
        ("cgroup=\"kubepods\"", "/cgroup"),
        ("maxSurge=0", "/maxSurge"),
        ("resources.limit={}", "limit"),
        ("tolerations=[\"all\"]", "/tolerations/0"),
        ("podAnnotations={\"a\":true}", "/podAnnotations/a"),
        ("extraEnv=[{\"value\":\"x\"}]", "/extraEnv/0"),
        ("networkPolicy.enabled=\"yes\"", "/networkPolicy/enabled"),
        ("monitoring.enabled=\"yes\"", "/monitoring/enabled"),
        ("monitoring.labels={\"release\":1}", "/monitoring/labels/release"),
        ("log=\"blah\"", "/log"),
        ("log=\"blah=x\"", "/log"),
        ("resources.limits.memory=\"oops\"", "/resources/limits/memory"),
    ] {
        let output = template(&["--set-json", value])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{value} was taken");
        assert!(said.contains("don't meet the specifications of the schema"), "{value}: {said}");
        assert!(said.contains(place), "{value}: {said}");
    }
    Ok(())
}

#[test]
fn what_the_chart_sets_already_or_does_not_heed_is_refused() -> Result<()> {
    for (value, words) in [
        ("extraEnv=[{\"name\":\"SLUICE_LOG\",\"value\":\"debug\"}]", "set the value log in place of SLUICE_LOG"),
        ("extraEnv=[{\"name\":\"SLUICE_SOURCE\",\"value\":\"x\"}]", "SLUICE_SOURCE is the chart's own"),
        ("podAnnotations={\"sluice.dev/redirect\":\"true\"}", "sluice.dev/redirect is the chart's own"),
        ("networkPolicy.from=[{\"podSelector\":{}}]", "no effect without networkPolicy.enabled"),
        ("monitoring.labels={\"release\":\"x\"}", "no effect without monitoring.enabled"),
        ("monitoring.enabled=true,networkPolicy.enabled=true", "networkPolicy.from: name the pods of Prometheus"),
    ] {
        let output = template(&["--set-json", value])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{value}: {said}");
    }
    Ok(())
}

/// Every variable of the DaemonSet is one that `extraEnv` may not set again.
#[test]
fn the_chart_knows_its_own_variables() -> Result<()> {
    let all = daemon_set(&["--set=workers=2", "--set=limits.pings=5", "--set=cgroup=/sys/fs/cgroup/x"])?;
    for variable in all["spec"]["template"]["spec"]["containers"][0]["env"].as_array().context("no variables")? {
        let name = variable["name"].as_str().context("a name")?;
        let again = format!("extraEnv=[{{\"name\":\"{name}\",\"value\":\"x\"}}]");
        assert!(!template(&["--set-json", &again])?.status.success(), "{name} was taken twice");
    }
    Ok(())
}

#[test]
fn the_check_is_shown_whole_wherever_its_command_stands() -> Result<()> {
    let repository = folder().join("..");
    for file in ["README.md", "manifests/README.md", "manifests/chart/templates/NOTES.txt"] {
        let text = fs::read_to_string(repository.join(file))?;
        let shown: Vec<_> = text.lines().filter(|line| line.contains(" logs ") && line.contains("check")).collect();
        assert!(!shown.is_empty(), "{file} does not tell how to read the check");
        for line in shown {
            assert!(line.contains("--tail=-1") && line.contains("--prefix"), "{file}: {line}");
        }
    }
    Ok(())
}

#[test]
fn the_schema_knows_every_value_and_no_other() -> Result<()> {
    let read = |file: &str| fs::read_to_string(folder().join("chart").join(file)).context(file.to_owned());
    let values: Value = serde_saphyr::from_str(&read("values.yaml")?)?;
    let schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    let keys = |object: &Value| object.as_object().map(|map| map.keys().cloned().collect::<BTreeSet<_>>());
    let mut known = keys(&schema["properties"]).context("no properties")?;
    assert!(known.remove("global"), "Helm gives it to a chart that is part of another");
    assert_eq!(Some(known), keys(&values));
    for part in ["image", "networkPolicy", "monitoring"] {
        assert_eq!(keys(&schema["properties"][part]["properties"]), keys(&values[part]), "{part}");
    }
    Ok(())
}

#[test]
fn chart_and_image_are_of_this_version() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let chart: Value = serde_saphyr::from_str(&fs::read_to_string(folder().join("chart/Chart.yaml"))?)?;
    assert_eq!((chart["version"].as_str(), chart["appVersion"].as_str()), (Some(version), Some(version)));
    let agent = &daemon_set(&[])?["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(agent["image"], format!("sluice-agent:{version}"));
    Ok(())
}
