"""Every alert fires when it should, stays quiet when it should, and leads to a page that helps."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import prometheus
from devcluster.paths import Layout
from lmtraining_monitoring import __main__ as monitoring
from lmtraining_monitoring import foreign
from lmtraining_monitoring.alert import Alert
from lmtraining_monitoring.rules import ALERTS
from tests.unit.alert_cases import CASES, Case, Series
from tests.unit.promql import names_in
from tests.unit.registry import KNOWN

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts/lm-training-operator/files/alerts.yaml"
HEADINGS = ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"]
PROMTOOL_SECONDS_MAX = 120
BY_NAME = {alert.name: alert for alert in ALERTS}


@pytest.fixture(scope="session")
def promtool() -> Path:
    return prometheus.ensure(Layout.from_environment()).promtool


def expectation(case: Case) -> dict[str, Any]:
    alert = BY_NAME[case.alert]
    return {
        "exp_labels": {**case.labels, "severity": alert.severity},
        "exp_annotations": {**alert.rule()["annotations"], "description": case.says},
    }


def rule_file(folder: Path, alert: str) -> Path:
    """The one rule, as it is shipped: to evaluate all of them each minute takes seconds."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if rule["alert"] == alert:
                file = folder / f"{alert}.yaml"
                file.write_text(json.dumps({"groups": [{"name": "one", "rules": [rule]}]}))
                return file
    raise AssertionError(f"{alert} is not in {RULES}")


def promtool_test(case: Case, series: Series, *, fires: bool) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{case.at_minutes}m",
                "alertname": case.alert,
                "exp_alerts": [expectation(case)] if fires else [],
            }
        ],
    }


def told(promtool: Path, folder: Path, tests: list[dict[str, Any]]) -> str:
    """What promtool complains about; empty where all is as expected."""
    files = []
    for number, test in enumerate(tests):
        rules = rule_file(folder, test["alert_rule_test"][0]["alertname"])
        files.append(folder / f"test-{number}.yaml")
        files[-1].write_text(json.dumps({"rule_files": [str(rules)], "tests": [test]}))
    done = subprocess.run(
        [str(promtool), "test", "rules", *map(str, files)],
        capture_output=True, text=True, timeout=PROMTOOL_SECONDS_MAX, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr if done.returncode else ""


def test_an_alert_fires_when_it_should_and_says_what_and_where(
    promtool: Path, tmp_path: Path
) -> None:
    tests = [promtool_test(case, case.fires, fires=True) for case in CASES]
    assert told(promtool, tmp_path, tests) == ""
    unexpected = [promtool_test(CASES[0], CASES[0].fires, fires=False)]
    assert "LMTrainingOperatorDown" in told(promtool, tmp_path, unexpected), "promtool can say no"


def test_an_alert_stays_quiet_at_a_near_miss(promtool: Path, tmp_path: Path) -> None:
    tests = [promtool_test(case, quiet, fires=False) for case in CASES for quiet in case.quiet]
    assert told(promtool, tmp_path, tests) == ""


def test_every_alert_has_a_case_of_both_kinds() -> None:
    assert len(ALERTS) >= 16
    assert {case.alert for case in CASES} == set(BY_NAME)
    assert {case.alert for case in CASES if case.quiet} == set(BY_NAME)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_leads_to_a_runbook_of_its_own(alert: Alert) -> None:
    text = (ROOT / alert.runbook).read_text()
    assert text.startswith(f"# {alert.name}\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == HEADINGS
    parts = re.split(r"^## .*$", text, flags=re.MULTILINE)
    assert all(part.strip() for part in parts), "an empty chapter"
    assert "kubectl" in text


def test_there_is_no_runbook_without_an_alert() -> None:
    pages = {path.stem for path in (ROOT / "docs/runbooks").glob("*.md")}
    assert pages == set(BY_NAME)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_names_what_is_exported_and_nothing_else(alert: Alert) -> None:
    named = names_in(alert.expr)
    assert named.metrics
    for metric, labels in named.metrics.items():
        assert labels <= KNOWN[metric] | foreign.TARGET_LABELS, metric
    known = frozenset[str]().union(*(KNOWN[metric] for metric in named.metrics))
    assert named.grouping <= known | foreign.TARGET_LABELS
    used = set(re.findall(r"\$labels\.(\w+)", alert.description))
    assert used <= known | foreign.TARGET_LABELS


def test_the_names_in_a_query_are_found() -> None:
    named = names_in(
        'sum by (a, b) (rate(x_total{c="d{}", e!~"f"}[5m] offset 1h)) / on (a) group_left (g) y '
        '> 1 and label_replace(z, "pod", "$1", "h", "(.+)") unless time() - 1e3 < bool 2'
    )
    assert named.metrics == {"x_total": {"c", "e"}, "y": set(), "z": set()}
    assert named.grouping == {"a", "b", "g"}


def test_the_scrape_configuration_of_the_docs_works(promtool: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    block = page.partition("```yaml\nscrape_configs:")[2].partition("```")[0]
    found_by = "kubernetes_sd_configs: [{role: pod}]"
    assert found_by in block
    # Debian's promtool is built without the discovery of Kubernetes.
    checked = block.replace(found_by, "static_configs: [{targets: [trainer:8080]}]")
    (tmp_path / "prometheus.yaml").write_text(f"scrape_configs:{checked}")
    (tmp_path / "alerts.yaml").write_text(RULES.read_text())
    command = [str(promtool), "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PROMTOOL_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_a_query_of_the_docs_names_what_is_exported() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    queries = re.findall(r"`([^`]*lmtraining_[^`]+[)>][^`]*)`", page)
    assert len(queries) >= 5
    for query in queries:
        named = names_in(query.replace("\\|", "|"))
        assert set(named.metrics) <= set(KNOWN), query


def test_the_files_are_those_that_the_code_gives(tmp_path: Path) -> None:
    assert monitoring.main(["--check"]) == 0
    assert monitoring.main(["--check"], root=tmp_path) == 1, "a missing file is a drift"
    assert monitoring.main([], root=tmp_path) == 0
    assert monitoring.main(["--check"], root=tmp_path) == 0
    rules = tmp_path / RULES.relative_to(ROOT)
    rules.write_text(rules.read_text().replace("900", "901"))
    assert monitoring.drifted(tmp_path) == [str(RULES.relative_to(ROOT))]
    names = [r["alert"] for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"]]
    assert names == [alert.name for alert in ALERTS]
