"""compose.yaml and Dockerfile parse, and every command they name exists. No engine runs them here."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from relay.__main__ import main
from relay.config import HttpConfig, load
from relay.errors import ConfigError
from relay.metrics import HISTOGRAM, METRICS, PROCESS
from relay.providers import PROVIDERS

ROOT = Path(__file__).resolve().parents[1]


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())  # type: ignore[no-any-return]


def instructions() -> list[tuple[str, str]]:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [
        (words[0], words[1])
        for line in lines
        if line.strip() and not line.startswith("#") and len(words := line.split(None, 1)) == 2
    ]


def test_compose_names_a_healthy_valkey_before_the_relay() -> None:
    services = compose()["services"]
    assert services["valkey"]["image"] == "valkey/valkey:9.1"
    assert services["valkey"]["healthcheck"]["test"][0] == "CMD"
    assert services["relay"]["depends_on"] == {"valkey": {"condition": "service_healthy"}}
    assert set(compose()["volumes"]) == {
        mount.split(":")[0]
        for service in services.values()
        for mount in service["volumes"]
        if not mount.startswith((".", "/"))
    }


def test_compose_exposes_nothing_beyond_loopback() -> None:
    for service in compose()["services"].values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_commands_of_both_files_exist() -> None:
    commands = [compose()["services"]["relay"]["command"]]
    commands += [json.loads(value) for name, value in instructions() if name == "CMD"]
    assert len(commands) == 2
    for words in commands:
        result = CliRunner().invoke(main, [words[0], "--help"])
        assert result.exit_code == 0, result.output
        for option in (w for w in words if w.startswith("-")):
            assert option in result.output


def test_image_is_slim_not_root_and_in_exec_form() -> None:
    steps = instructions()
    assert all("slim" in value for name, value in steps if name == "FROM")
    assert [value for name, value in steps if name == "USER"] == ["relay"]
    assert [json.loads(value) for name, value in steps if name == "ENTRYPOINT"] == [["relay"]]
    copied = [value.split()[:-1] for name, value in steps if name == "COPY" and "--from" not in value]
    for sources in copied:
        for source in sources:
            assert (ROOT / source).exists(), source


# -- monitoring --------------------------------------------------------------------------------------------------------

DEPLOY = ROOT / "deploy"


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\b((?:relay|process)_[a-z_]+)", re.sub(r"\{[^}]*\}", "", text)))


def is_metric(name: str) -> bool:
    for end in ("_bucket", "_sum", "_count"):
        bare = name.removesuffix(end)
        if bare != name and bare in METRICS:
            return METRICS[bare].kind is HISTOGRAM
    return name in PROCESS or (name in METRICS and METRICS[name].kind is not HISTOGRAM)


def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "relay.json").read_text())  # type: ignore[no-any-return]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def test_dashboard_is_what_its_script_gives() -> None:
    sys.path.insert(0, str(DEPLOY))
    try:
        import dashboard as script
    finally:
        sys.path.pop(0)
    assert script.dashboard() == dashboard(), "run: python deploy/dashboard.py > deploy/grafana/relay.json"


def test_every_metric_of_dashboard_and_alerts_exists() -> None:
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules()]
    expressions += [item["query"]["query"] for item in dashboard()["templating"]["list"]]
    named = set().union(*map(metrics_in, expressions))
    assert len(named) > 30
    assert {name for name in named if not is_metric(name)} == set()
    assert not is_metric("relay_no_such_total") and not is_metric("relay_loop_lag_seconds"), "the test can fail"


def test_every_alert_says_what_is_wrong() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules()) > 10
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert len(rule["annotations"]["summary"]) > 15
        labels = {label for name in metrics_in(rule["expr"]) if name in METRICS for label in METRICS[name].labels}
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in labels, rule["alert"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_monitoring_profile_starts_only_when_asked_and_finds_its_files() -> None:
    services = compose()["services"]
    assert {name for name, service in services.items() if "profiles" in service} == {"prometheus", "grafana"}
    for service in services.values():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), source
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert scrape["rule_files"] == ["/etc/prometheus/alerts.yml"]
    (job,) = scrape["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"relay:{HttpConfig().port}"] and job["job_name"] == "relay"
    for file in (DEPLOY / "grafana" / "provisioning").rglob("*.yml"):
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1


def test_container_of_the_relay_lets_prometheus_in_by_its_name() -> None:
    environ = {name: str(value) for name, value in compose()["services"]["relay"]["environment"].items()}
    text = (ROOT / "relay.yaml").read_text()
    config = load(text, "relay.yaml", environ=environ, read_file=lambda _: "", providers=PROVIDERS)
    assert (config.http.enabled, config.http.host) == (True, "0.0.0.0") and "relay" in config.http.hosts
    shipped = load(text, "relay.yaml", environ={}, read_file=lambda _: "", providers=PROVIDERS)
    assert (shipped.http.enabled, shipped.http.host) == (False, "127.0.0.1")


def test_unit_file_runs_commands_that_exist_and_never_loops_on_a_wrong_config() -> None:
    unit: dict[str, list[str]] = {}
    for line in (DEPLOY / "relay.service").read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            unit.setdefault(key, []).append(value)
    assert unit["Type"] == ["notify-reload"] and unit["RestartPreventExitStatus"] == [str(ConfigError.exit_code)]
    for line in (*unit["ExecStart"], *unit["ExecStartPre"]):
        words = line.split()
        result = CliRunner().invoke(main, [words[1], "--help"])
        assert result.exit_code == 0
        for option in (w for w in words if w.startswith("-")):
            assert option in result.output
    assert "/etc/relay/relay.yaml" in unit["ExecStart"][0]
