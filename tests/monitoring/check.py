#!/usr/bin/env python3
"""Checks what sluice offers to Prometheus and Grafana against a page of a live agent.

    curl --silent http://ADMIN/metrics > PAGE && tests/monitoring/check.py PAGE

The page: `promtool check metrics` has nothing to say, and its families are those of families.rs. The rules: promtool
takes them and their unit tests pass. A real Prometheus scrapes the page, with counters that rise, by way of the
PodMonitor's relabelings: it takes every rule, and each query of the dashboard finds something. The dashboard: its form.

Needs promtool and prometheus (Debian: prometheus) and nothing from the network. Exit status: 0, or 1 if anything failed.
"""

import http.server
import json
import math
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "manifests/chart/monitoring"
COMPONENT = ROOT / "manifests/components/monitoring"
FAMILIES = ROOT / "agent/src/admin/families.rs"
TESTS = pathlib.Path(__file__).with_name("rules_test.yaml")

# Metrics of others that rules may ask for.
FOREIGN = {
    "up": "Prometheus' own",
    "kube_daemonset_status_desired_number_scheduled": "of kube-state-metrics",
    "kube_daemonset_status_number_ready": "of kube-state-metrics",
}
# Metrics without which a query of the dashboard may find nothing, where the page has no sample of them.
MAY_BE_MISSING = {
    "sluice_http_requests_total": "begins with the first request that is not gRPC",
    "sluice_endpoint_latency_seconds": "begins when an endpoint has answered often enough",
}
# Labels of a target, as the operator makes them of a PodMonitor. `endpoint` is in here to be dropped by it.
TARGET = {
    "job": "sluice-agent",
    "namespace": "sluice-system",
    "pod": "sluice-agent-x",
    "container": "agent",
    "endpoint": "admin",
    "__meta_kubernetes_pod_node_name": "node-1",
}
TARGET_LABELS = {"job", "namespace", "pod", "container", "instance", "node"}
FOREIGN_LABELS = {"daemonset"}
SEVERITIES = {"critical", "warning", "info"}
PANELS = {"timeseries", "stat", "row"}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
DEADLINE = 60


class Failures(Exception):
    """What is wrong, one line each."""


def demand(problems):
    if problems:
        raise Failures("\n".join(problems))


def run(*command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE, **options)
    return done.returncode, done.stdout.strip()


# The metrics.


def families():
    """By name: type and labels."""
    found = re.findall(r'^\s*\w+ = (Counter|Gauge|Histogram) "(\w+)" \[([^\]]*)\]', FAMILIES.read_text(), re.M)
    known = {name: (kind.lower(), set(re.findall(r'"(\w+)"', labels))) for kind, name, labels in found}
    demand([] if known else [f"no metric is found in {FAMILIES}"])
    return known


def series(known):
    """By the name of a sample: its labels."""
    names = {}
    for name, (kind, labels) in known.items():
        if kind == "histogram":
            names |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            names[name] = labels
    return names


def samples(page):
    """Lines of the page that are samples: name, labels with their braces, value."""
    return re.findall(r"^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)$", page, re.M)


def check_page(page, known):
    code, said = run("promtool", "check", "metrics", input=page)
    demand([f"promtool check metrics: {said}"] if code or said else [])
    typed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    expected = {name: kind for name, (kind, _) in known.items()}
    demand([f"{name}: {typed.get(name)} on the page, {expected.get(name)} in families.rs"
            for name in sorted(typed.keys() | expected.keys()) if typed.get(name) != expected.get(name)])
    names = series(known)
    problems = []
    for name, labels, _ in samples(page):
        have = set(re.findall(r'(\w+)="(?:[^"\\]|\\.)*"', labels))
        if have != names.get(name):
            problems.append(f"{name}{labels}: its labels are not those of families.rs")
    demand(problems[:10])
    return f"{len(typed)} families, {len(samples(page))} samples"


# Queries.


def stripped(query):
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', query)


def groupings(query):
    """Labels that it groups or joins by."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", stripped(query))
    return {label for text in lists for label in re.findall(r"\w+", text)}


def metrics(query):
    """The metrics that it asks for, each with the labels of its selectors."""
    text = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\[[^\]]*\]", " ", stripped(query))
    # Not followed by a parenthesis: no function.
    found = {}
    for name, selector in re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?![\w:]|\s*\()(?:\s*\{([^}]*)\})?", text):
        if name not in {"and", "or", "unless", "bool", "offset", "inf", "nan"}:
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", selector))
    return found


def check_names(queries, names):
    """`queries`: place and query. `names`: series with their labels."""
    problems = []
    asked = set()
    for place, query in queries:
        used = metrics(query)
        asked |= used.keys()
        if not used:
            problems.append(f"{place}: no metric in {query}")
        labels = set(TARGET_LABELS)
        for metric, selectors in used.items():
            if metric not in names:
                problems.append(f"{place}: there is no metric {metric}")
                continue
            labels |= names[metric]
            if unknown := selectors - names[metric] - TARGET_LABELS:
                problems.append(f"{place}: {metric} has no label {', '.join(sorted(unknown))}")
        if unknown := groupings(query) - labels:
            problems.append(f"{place}: no metric of {query} has the label {', '.join(sorted(unknown))}")
    demand(problems)
    return asked


# The rules.


def block(text, key, indent):
    """The lines below a key of YAML in block style, with the indentation of its own items taken away."""
    lines = text.splitlines()
    begin = lines.index(" " * indent + key + ":") + 1
    inner = []
    for line in lines[begin:]:
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth <= indent:
            break
        inner.append(line)
    least = min(len(line) - len(line.lstrip()) for line in inner if line.strip())
    return "\n".join(line[least:] for line in inner).strip() + "\n"


def check_rules(folder):
    rules = block((COMPONENT / "prometheus-rule.yaml").read_text(), "spec", 0)
    if rules != (CHART / "rules.yaml").read_text():
        raise Failures("components/monitoring/prometheus-rule.yaml is not made of the chart's rules: run `cargo xtask manifests`")
    (folder / "rules.yaml").write_text(rules)
    code, said = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", str(folder / "rules.yaml"))
    demand([f"promtool check rules: {said}"] if code or "SUCCESS" not in said else [])
    return re.search(r"(\d+) rules found", said)[0]


def check_rules_tests():
    code, said = run("promtool", "test", "rules", str(TESTS))
    demand([f"promtool test rules: {said}"] if code or "SUCCESS" not in said else [])
    return f"{TESTS.read_text().count('- name: ')} tests"


def check_alerts(alerts):
    """What Prometheus itself has read of them, against the unit tests."""
    fires = {}
    for labels in re.findall(r'labels: \'?ALERTS\{(.*)\}', TESTS.read_text()):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        fires.setdefault(labels["alertname"], set()).update(labels)
    problems = [f"{name}: the tests know it, the rules do not" for name in fires.keys() - {alert["name"] for alert in alerts}]
    for alert in alerts:
        name, notes = alert["name"], alert["annotations"]
        if alert["labels"].get("severity") not in SEVERITIES or alert["duration"] <= 0:
            problems.append(f"{name}: no severity, or no `for`")
        if notes.keys() != {"summary", "description"} or not all(notes.values()):
            problems.append(f"{name}: summary and description, and nothing else")
        if not re.search(r"`(… -- )?(kubectl|sluice)", notes.get("description", "")) and "podMonitorSelector" not in str(notes):
            problems.append(f"{name}: the description names no command")
        if name not in fires:
            problems.append(f"{name}: no test shows that it fires")
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(notes.values())))
        if unknown := used - fires.get(name, used):
            problems.append(f"{name}: it has no label {', '.join(sorted(unknown))} when it fires")
    demand(problems)
    return f"{len(alerts)} alerts, each with severity, for, summary, a cure, and a test that it fires in"


# The dashboard.


def panels_of(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def targets_of(dashboard):
    for panel in panels_of(dashboard):
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}, {target['refId']}", target


def check_form(text, dashboard):
    problems = [f"the dashboard has no {key}" for key in ("title", "uid", "schemaVersion", "time", "tags") if not dashboard.get(key)]
    panels = list(panels_of(dashboard))
    ids = [panel["id"] for panel in panels]
    problems += [f"two panels have the id {one}" for one in set(ids) if ids.count(one) > 1]
    taken = {}
    for panel in panels:
        title, at = panel.get("title"), panel["gridPos"]
        if not title or panel["type"] not in PANELS:
            problems.append(f"panel {panel['id']}: title {title!r}, type {panel['type']}")
        if at["x"] < 0 or at["y"] < 0 or at["w"] < 1 or at["h"] < 1 or at["x"] + at["w"] > 24:
            problems.append(f"panel {title}: beyond the grid")
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            if cell in taken:
                problems.append(f"panel {title} overlaps {taken[cell]}")
                break
            taken[cell] = title
        if panel["type"] == "row":
            continue
        if not panel.get("description") or not panel["fieldConfig"]["defaults"].get("unit"):
            problems.append(f"panel {title}: a description and a unit")
        targets = panel["targets"]
        if any(thing.get("datasource") != DATASOURCE for thing in [panel, *targets]):
            problems.append(f"panel {title}: a datasource that is not the variable")
        if not targets or len({target["refId"] for target in targets}) != len(targets):
            problems.append(f"panel {title}: queries, of different refIds")
        for target in targets:
            labels = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
            if not target["legendFormat"] or labels - groupings(target["expr"]):
                problems.append(f"panel {title}: the legend {target['legendFormat']!r} does not fit its query")
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    if list(variables) != ["datasource", "service", "node"] or variables["datasource"]["type"] != "datasource":
        problems.append("variables: datasource, service, node")
    for name in ("service", "node"):
        if variables[name].get("datasource") != DATASOURCE or not variables[name]["includeAll"]:
            problems.append(f"variable {name}: the datasource of the variable, and All")
    if fixed := set(re.findall(r'"uid": "([^"]*)"', text)) - {"${datasource}", dashboard["uid"]}:
        problems.append(f"a datasource by its uid: {fixed}")
    if unknown := set(re.findall(r"\$\{?(\w+)", text)) - {*variables, "__rate_interval", "__all"}:
        problems.append(f"a variable that is not there: {unknown}")
    demand(problems)
    shown = [panel for panel in panels if panel["type"] != "row"]
    return f"{len(shown)} panels in {len(panels) - len(shown)} rows, {len(variables)} variables"


# A real Prometheus.


class Page(http.server.BaseHTTPRequestHandler):
    """Serves the page; counters are higher each time."""

    def do_GET(self):
        server = self.server
        server.scrapes += 1
        body = server.page(server.scrapes).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def rising(page, known):
    """The page at its nth reading. Counters are n higher, histograms n times as full, so that their buckets still fit."""
    kinds = {}
    for name, (kind, _) in known.items():
        kinds |= dict.fromkeys((f"{name}_bucket", f"{name}_sum", f"{name}_count") if kind == "histogram" else (name,), kind)

    def nth(n):
        def risen(match):
            name, labels, value = match[1], match[2] or "", match[3]
            if kinds.get(name) == "counter":
                value = f"{float(value) + n:.17g}"
            elif kinds.get(name) == "histogram":
                value = f"{float(value) * (1 + n):.17g}"
            return f"{name}{labels} {value}"

        return re.sub(r"^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)$", risen, page, flags=re.M)

    return nth


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """One of our own, that scrapes a page each second. Ends with the block."""

    def __init__(self, folder, page, known):
        self.folder, self.port = folder, free_port()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.server.scrapes, self.server.page = 0, rising(page, known)
        self.process = None
        # Straight to the loopback address, whatever proxy the environment names.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def config(self):
        relabelings = block((COMPONENT / "pod-monitor.yaml").read_text(), "relabelings", 6)
        relabelings = relabelings.replace("sourceLabels", "source_labels").replace("targetLabel", "target_label")
        target = {"targets": [f"127.0.0.1:{self.server.server_address[1]}"], "labels": TARGET}
        return "\n".join([
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}",
            "rule_files: [rules.yaml]",
            "scrape_configs:",
            "  - job_name: sluice",
            f"    static_configs: [{json.dumps(target)}]",
            "    relabel_configs:",
            *("      " + line for line in relabelings.splitlines()),
            "",
        ])

    def __enter__(self):
        try:
            threading.Thread(target=self.server.serve_forever, daemon=True).start()
            (self.folder / "prometheus.yaml").write_text(self.config())
            self.log = open(self.folder / "prometheus.log", "w+")
            command = ["prometheus", f"--config.file={self.folder}/prometheus.yaml", f"--storage.tsdb.path={self.folder}/data",
                       f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
            self.wait()
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.log.close()
        self.server.shutdown()
        self.server.server_close()

    def wait(self):
        """Until some scrapes and evaluations are done."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.5)
            try:
                # Scrapes that count are those which Prometheus could read.
                scrapes = self.values('count_over_time(up{job="sluice-agent"}[5m])')
                if scrapes and scrapes[0] >= 6 and all(rule["lastEvaluation"] > "0001" for rule in self.rules()):
                    break
            except OSError:
                continue
        else:
            self.log.seek(0)
            raise Failures(f"Prometheus did not come to scrape within {DEADLINE} s: {self.log.read()[-2000:]}")
        if self.values('up{job="sluice-agent"}') != [1]:
            raise Failures("Prometheus cannot read the page")

    def get(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with self.opener.open(url, timeout=DEADLINE) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise Failures(f"Prometheus refuses {parameters}: {error.read().decode()}") from None

    def values(self, query):
        data = self.get("query", query=query)
        return [float(one["value"][1]) for one in data["result"]]

    def rules(self):
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


def filled(query):
    """With Grafana's variables replaced, all of them by All."""
    query = query.replace("$__rate_interval", "30s")
    return re.sub(r"\$(service|node)\b", ".*", query)


def check_labels_live(prometheus):
    """Where a target has a label of the same name, Prometheus calls the page's own exported_…: no query would find it."""
    labels = prometheus.get("labels")
    demand([f"the page's label {label.removeprefix('exported_')} is one of the target's, too: drop that in pod-monitor.yaml"
            for label in labels if label.startswith("exported_")])
    demand([f"no series has the label {label}: pod-monitor.yaml makes it" for label in ("node",) if label not in labels])
    return f"{len(labels)} labels"


def check_rules_live(prometheus, rules, names):
    problems = []
    for rule in rules:
        if rule["health"] != "ok" or rule.get("lastError"):
            problems.append(f"rule {rule['name']}: {rule['health']}, {rule.get('lastError')}")
        prometheus.values(rule["query"])
    demand(problems)
    asked = check_names([(f"rule {rule['name']}", rule["query"]) for rule in rules], names)
    return f"{len(rules)} rules evaluated, {len(asked)} metrics"


def check_dashboard_live(prometheus, dashboard, known, names, page):
    there = {name for name, *_ in samples(page)}
    queries = [(place, target["expr"]) for place, target in targets_of(dashboard)]
    asked = check_names(queries, names)
    problems, excused = [], []
    for place, query in queries:
        values = prometheus.values(filled(query))
        if all(math.isnan(value) for value in values):
            missing = [metric for metric in metrics(query) if metric in MAY_BE_MISSING and metric not in there]
            if missing:
                excused.append(f"{missing[0]} {MAY_BE_MISSING[missing[0]]}")
            else:
                problems.append(f"{place}: {'no number' if values else 'no series'} for {filled(query)}")
    variables = [variable for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    for variable in variables:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
        check_names([(f"variable {variable['name']}", metric)], names)
        if not prometheus.get(f"label/{label}/values", **{"match[]": filled(metric)}):
            problems.append(f"variable {variable['name']}: no value")
    demand(problems)
    unused = sorted(name for name in known if not any(name in (metric, re.sub(r"_(bucket|sum|count)$", "", metric)) for metric in asked))
    said = f"{len(queries)} queries and {len(variables)} variables answered, {len(asked)} metrics"
    said += f"; on no panel: {', '.join(unused)}" if unused else ""
    return said + "".join(f"; nothing found: {excuse}" for excuse in excused)


def check(page, folder):
    """Each check with what it found; those after a failure go on where they can."""
    results = []

    def step(name, do, *arguments):
        try:
            said = do(*arguments)
            results.append(True)
            print(f"ok      {name}: {said}", flush=True)
        except Failures as failures:
            results.append(False)
            print(f"FAILED  {name}:\n        " + str(failures).replace("\n", "\n        "), flush=True)

    known = families()
    text = (CHART / "dashboard.json").read_text()
    dashboard = json.loads(text)
    step("page", check_page, page, known)
    step("rules", check_rules, folder)
    step("rules' tests", check_rules_tests)
    step("dashboard's form", check_form, text, dashboard)
    with Prometheus(folder, page, known) as prometheus:
        rules = prometheus.rules()
        recorded = {rule["name"]: groupings(rule["query"]) for rule in rules if rule["type"] == "recording"}
        names = series(known) | recorded
        step("labels in Prometheus", check_labels_live, prometheus)
        step("rules in Prometheus", check_rules_live, prometheus, rules, names | dict.fromkeys(FOREIGN, FOREIGN_LABELS))
        step("alerts", check_alerts, [rule for rule in rules if rule["type"] == "alerting"])
        step("dashboard in Prometheus", check_dashboard_live, prometheus, dashboard, known, names, page)
    print(f"{sum(results)} of {len(results)} checks passed")
    return all(results)


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 1
    # Ends like Ctrl-C, so that what was started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    lacking = [tool for tool in ("promtool", "prometheus") if not shutil.which(tool)]
    if lacking:
        print(f"FAILED  {' and '.join(lacking)} missing: apt-get install prometheus")
        return 1
    try:
        page = pathlib.Path(sys.argv[1]).read_text()
    except OSError as error:
        print(f"FAILED  {error}")
        return 1
    with tempfile.TemporaryDirectory(prefix="sluice-monitoring-") as folder:
        try:
            return 0 if check(page, pathlib.Path(folder)) else 1
        except Failures as failures:
            print(f"FAILED  {failures}")
            return 1


if __name__ == "__main__":
    sys.exit(main())
