"""The alerts as a file of Prometheus, and as a page.

Promise: the file works with `rule_files` of a plain Prometheus as it is, and the chart wraps the
same file for the Prometheus operator. Trap avoided: two copies of an alert that drift apart.
"""

from collections.abc import Sequence
from typing import Any, Final

import yaml

from lmtraining_monitoring import job_alerts, operator_alerts
from lmtraining_monitoring.alert import RUNBOOKS, Alert

GROUPS: Final = {
    "lmtraining-operator": operator_alerts.ALERTS,
    "lmtraining-progress": job_alerts.PROGRESS,
    "lmtraining-stability": job_alerts.STABILITY,
    "lmtraining-storage": job_alerts.STORAGE,
    "lmtraining-devices": job_alerts.DEVICES,
}
ALERTS: Final = tuple(alert for alerts in GROUPS.values() for alert in alerts)

HEADER = "# Made by `make monitoring`. Do not edit. Works as one of the rule_files of Prometheus.\n"
PAGE = """<!-- Made by `make monitoring` from the alerts in the code. Do not edit. -->
# Alerts

In the chart as a PrometheusRule (`metrics.prometheusRule.enabled`), and as a file for a plain
Prometheus: `charts/lm-training-operator/files/alerts.yaml`. *Critical* loses work, or leaves every
job without help; everything else can wait for the morning.
"""


def rendered() -> str:
    """The file of rules."""
    groups = [
        {"name": name, "rules": [alert.rule() for alert in alerts]}
        for name, alerts in GROUPS.items()
    ]
    return HEADER + yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, width=100)


def page() -> str:
    """docs/alerts.md."""
    parts = [f"## {name}\n\n{_table(alerts)}" for name, alerts in GROUPS.items()]
    return "\n".join([PAGE, *parts])


def _table(alerts: Sequence[Alert]) -> str:
    folder = RUNBOOKS.removeprefix("docs/")
    rows = [
        f"| [{alert.name}]({folder}/{alert.name}.md) | {alert.severity} | {alert.minutes} min "
        f"| {alert.summary} |"
        for alert in alerts
    ]
    head = ["| Alert | Severity | After | Says |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


class _Dumper(yaml.SafeDumper):
    """Text of several lines as it was written."""


def _text(dumper: yaml.SafeDumper, text: str) -> Any:
    style = "|" if "\n" in text.rstrip("\n") else None
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text if style else text.rstrip("\n"), style=style
    )


_Dumper.add_representer(str, _text)
