"""What `kubectl lmtrain` says and shows, without a cluster."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmtraining_api import TrainerReport, names
from lmtraining_api.history import Point, line_of, point_of
from lmtraining_cli import paths
from lmtraining_cli.app import command_names, with_place_first
from lmtraining_cli.completion import offered
from lmtraining_cli.curves import joined, points_of
from lmtraining_cli.listing import listing
from lmtraining_cli.logs import merged
from lmtraining_cli.refusals import nearest, refusal_of, sentence, unknown_job
from lmtraining_cli.requesting import no_way_back
from lmtraining_cli.screen import screen
from lmtraining_cli.snapshot import Pod, Snapshot
from lmtraining_cli.sparkline import plot, sparkline
from lmtraining_cli.versions import (
    crd_skew,
    fields_of_schema,
    skew,
    unknown_versions,
    version_of,
)
from lmtraining_cli.watching import curves, with_status
from lmtraining_cli.why import why
from lmtraining_cli.wording import duration, seconds_of, size
from lmtraining_crdgen.manifest import root_schema

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
REPOSITORY = Path(__file__).resolve().parents[2]


def text_of(renderable: Any, width: int = 100) -> str:
    plain = Console(width=width, no_color=True, highlight=False)
    with plain.capture() as captured:
        plain.print(renderable)
    return captured.get()


def before(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def condition(kind: str, status: str, reason: str) -> dict[str, Any]:
    return {
        "type": kind, "status": status, "reason": reason, "observedGeneration": 1,
        "lastTransitionTime": before(60),
    }  # fmt: skip


JOB: dict[str, Any] = {
    "metadata": {
        "name": "tiny", "namespace": "team", "uid": "u", "generation": 1,
        "creationTimestamp": before(300),
    },
    "spec": {"workers": {"replicas": 2}},
    "status": {
        "observedGeneration": 1, "attempt": 1, "round": 2,
        "conditions": [
            condition("Succeeded", "Unknown", "Training"),
            condition("Progressing", "True", "Stepping"),
        ],
        "progress": {
            "step": 212, "totalSteps": 400, "percent": "53%", "eta": "31s", "tokens": 9,
            "reportTime": before(2),
        },
        "metrics": {"loss": "3.418", "validationLoss": "3.52", "tokensPerSecond": "24105"},
        "checkpoint": {
            "lastStep": 200, "lastTime": before(12), "path": "checkpoints/200",
            "sizeBytes": 4_500_000, "sha256": "ab" * 32,
        },
        "stability": {
            "skippedSteps": 1, "healthyStep": 175,
            "lastRemedy": {
                "remedy": "Skip", "fault": "LossSpike", "step": 90, "message": "loss 9.1",
                "time": before(80),
            },
        },
        "restarts": {"total": 1, "byReason": {"PodLost": 1}},
        "lastFailure": {
            "failureClass": "PodLost", "reason": "PodDeleted", "message": "it was deleted",
            "attempt": 1, "time": before(100),
        },
        "lastRecovery": {
            "faultTime": before(100), "firstStepTime": before(96), "seconds": "4.2",
            "loadSeconds": "0.3", "resumedFromStep": 75, "replayedSteps": 3,
        },
        "goodput": {"share": "83%", "wallTime": "2m", "productive": "1m40s", "startup": "20s"},
    },
}  # fmt: skip


def report(replica: int) -> TrainerReport:
    ranks = [{"rank": replica, "heartbeat_age_seconds": 0.2, "phase": "forward", "score": 0.97}]
    return TrainerReport.model_validate(
        {
            "job_uid": "u", "attempt": 1, "round": 2, "state": "Training", "report_time": NOW,
            "ranks": ranks,
        }
    )  # fmt: skip


def pod(replica: int) -> Pod:
    return Pod(
        body={
            "metadata": {
                "name": f"tiny-1-{replica}-0", "uid": str(replica),
                "labels": {
                    "lmtraining.dev/attempt": "1", "lmtraining.dev/replica": str(replica),
                },
            },
            "spec": {"nodeName": f"node-{replica}"},
            "status": {"phase": "Running"},
        }
    )  # fmt: skip


def snapshot(**changes: Any) -> Snapshot:
    values: dict[str, Any] = {"job": JOB, "now": NOW, "pods": [pod(0), pod(1)]}
    return Snapshot(**(values | {"reports": [report(0), report(1)]} | changes))


def points(count: int) -> list[Point]:
    return [
        Point(step=step, time=NOW + timedelta(seconds=step), loss=5.0 - step / 100)
        for step in range(1, count + 1)
    ]


def test_the_screen_has_all_of_it() -> None:
    shown = snapshot()
    text = text_of(screen(shown, why(shown), points(200), context="demo"))
    for words in (
        "lmtj/tiny  Training", "namespace team", "context demo", "attempt 1", "round 2",
        "212/400  53%  eta 31s  24105 tok/s", "loss 3.418", "validation 3.52", "█", "▁",
        "step 200, 12s ago, 4.5 MB, sha256 abababababab…", "step 175",
        "1 skipped, 0 clipped, 0 rewinds", "Skip at step 90 (LossSpike)", "1 (PodLost 1)",
        "in 4.2 s (0.3 s to load), from step 75, 3 steps done again", "83% of 2m",
        "productive 83%", "forward", "0.2 s", "97%", "node-1",
    ):  # fmt: skip
        assert words in text, f"{words!r} is not in\n{text}"


def test_old_figures_say_their_age_and_what_may_not_be_seen_is_named() -> None:
    shown = snapshot(now=NOW + timedelta(minutes=5), unseen=["bob may not get pods/proxy"])
    text = text_of(screen(shown, why(shown), [], context="demo"))
    assert "these figures are 5m2s old" in text
    assert "not shown: bob may not get pods/proxy" in text


@pytest.mark.parametrize(
    ("status", "step", "words"),
    [
        (JOB["status"], 200, ""),
        (JOB["status"], 20, ""),  # what is older the ranks know, and they alone
        (JOB["status"], 201, "no checkpoint of step 201 to go back to: the newest is of step 200"),
        ({"conditions": [condition("Succeeded", "Unknown", "Preparing")]}, 20,
         "has no checkpoint to go back to (Preparing): wait for its first one"),
    ],
)  # fmt: skip
def test_a_way_back_that_cannot_be_is_refused_at_once(
    status: dict[str, Any], step: int, words: str
) -> None:
    said = no_way_back(Snapshot(job=JOB | {"status": status}, now=NOW), step)
    assert words in said
    assert bool(words) == bool(said)


def test_a_job_without_status_is_shown() -> None:
    bare = Snapshot(job=JOB | {"status": {}}, now=NOW)
    text = text_of(screen(bare, why(bare), [], context="demo"))
    assert "no operator has looked at this job" in text


def test_the_list_begins_with_what_needs_somebody() -> None:
    failed = {
        "metadata": JOB["metadata"] | {"name": "z-failed"}, "spec": {},
        "status": {"conditions": [condition("Succeeded", "False", "Failed")]},
    }  # fmt: skip
    rows = text_of(listing([JOB, failed], namespaces=True)).splitlines()
    assert rows[0].split()[:3] == ["NAMESPACE", "NAME", "STATE"]
    assert [row.split()[1] for row in rows[1:]] == ["z-failed", "tiny"]


def test_watch_draws_every_curve_and_forgets_steps_that_are_done_again() -> None:
    seen = with_status(points(300), snapshot())
    assert [seen[-2].step, seen[-1].step] == [211, 212]
    text = text_of(curves(snapshot(), seen, columns=80), width=80)
    assert "training loss" in text
    assert max(map(len, text.splitlines())) <= 80


def test_sparkline_and_plot_span_their_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1], 8) == "▁▁"
    assert sparkline([], 8) == ""
    rows = plot([1, 4], width=10, height=4)
    assert rows[0].split()[0] == "4"
    assert rows[-1].split()[0] == "1"


def test_a_point_survives_the_log() -> None:
    point = Point(step=7, time=NOW, loss=3.5, validation_loss=3.75, learning_rate=6e-4,
                  gradient_norm=0.5, tokens_per_second=24105.0)  # fmt: skip
    line = line_of(point, 400)
    log = f"2026-11-27T12:00:00.123456789Z 2026-11-27 12:00:00,123 {line}\nno figures here\n"
    (read,) = points_of(log)
    assert read.model_copy(update={"time": NOW}) == point
    assert point_of("the figures step by", NOW) is None


def test_steps_that_were_done_again_count_once() -> None:
    again = [one.model_copy(update={"time": NOW + timedelta(hours=1)}) for one in points(5)[2:]]
    assert [one.step for one in joined([*points(9), *again])] == [1, 2, 3, 4, 5]


def test_logs_are_merged_by_time_and_keep_their_order() -> None:
    logs = [
        ("1/0", ["2026-11-27T12:00:00.1Z a", "2026-11-27T12:00:02.123456789Z c", "  more of c"]),
        ("1/1", ["2026-11-27T12:00:01Z b", "2026-11-27T12:00:03Z d"]),
    ]
    assert [words for _, _, words in merged(logs)] == ["a", "b", "c", "  more of c", "d"]


FORBIDDEN = (
    'Error from server (Forbidden): pods "x:8080" is forbidden: User "bob" cannot get resource '
    '"pods/proxy" in API group "" in the namespace "team"'
)


@pytest.mark.parametrize(
    ("errors", "reason", "words"),
    [
        (FORBIDDEN, "Forbidden", "bob may not get pods/proxy in namespace team: ask for a Role"),
        (
            "The connection to the server 127.0.0.1:1 was refused - did you specify the host?",
            "Unreachable", "the cluster of context demo does not answer",
        ),
        (
            "Unable to connect to the server: dial tcp: lookup nowhere: no such host",
            "Unreachable", "(dial tcp: lookup nowhere: no such host)",
        ),
        (
            "Error from server (NotFound): the server could not find the requested resource",
            "NoKind", "install the chart lm-training-operator",
        ),
        (
            'Error from server (NotFound): lmtrainingjobs.lmtraining.dev "x" not found',
            "NotFound", '"x" not found',
        ),
        (
            "error: You must be logged in to the server (Unauthorized)", "Unauthorized",
            "log in again",
        ),
        ("error: cannot locate context nope", "NoContext", "nope"),
        (
            "error: stat /nowhere: no such file or directory", "NoKubeconfig",
            "there is no kubeconfig /nowhere, so no cluster is known: set KUBECONFIG or --kube",
        ),
        (
            "error: current-context must exist in order to minify", "NoKubeconfig",
            "no kubeconfig is set up, so no cluster is known: set KUBECONFIG or --kubeconfig",
        ),
        ("", "Unknown", "without a word"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_with_the_fix(errors: str, reason: str, words: str) -> None:
    refused = refusal_of(errors)
    assert refused.reason == reason
    assert words in sentence(refused, context="demo")
    assert "minify" not in sentence(refused, context="demo"), "that is kubectl's own"


def test_a_kubeconfig_that_was_named_and_is_not_there_is_named() -> None:
    """kubectl takes it for an empty one."""
    refused = refusal_of("error: current-context must exist in order to minify")
    said = sentence(refused, context="none", missing_file="/nowhere")
    assert said.startswith("there is no kubeconfig /nowhere, so no cluster is known: ")


def test_the_nearest_names_are_offered() -> None:
    said = unknown_job("tiny-gtp", ["tiny-gpt", "large"], namespace="team", context="demo")
    assert said.endswith("did you mean tiny-gpt?")
    assert "namespace team of context demo" in said
    assert nearest("x", []) == "there is none at all"
    assert nearest("x", ["aaaa", "bbbb", "cccc", "dddd"]) == "there is aaaa, bbbb, cccc and 1 more"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["status", "x", "-n", "team"], ["--namespace", "team", "status", "x"]),
        (["why", "--context=demo", "x"], ["--context", "demo", "why", "x"]),
        (["--as", "bob", "list"], ["--as", "bob", "list"]),
        (["run", "f", "--", "-n", "x"], ["run", "f", "--", "-n", "x"]),
    ],
)
def test_kubectls_flags_may_stand_anywhere(given: list[str], wanted: list[str]) -> None:
    assert with_place_first(given) == wanted


def test_completion_offers_commands_and_leaves_files_to_the_shell() -> None:
    assert offered(["wa"]) == (["watch"], ":4")
    assert offered([""])[0] == command_names()
    assert offered(["validate", ""]) == ([], ":0")
    assert offered(["-n", "team", "wa"]) == (["watch"], ":4"), "a namespace is no command"


def test_the_docs_name_every_command() -> None:
    text = (REPOSITORY / "docs" / "plugin.md").read_text()
    assert [name for name in command_names() if f"`{name}" not in text] == []


def test_versions_that_differ_are_told_with_what_to_upgrade() -> None:
    assert skew("0.1.0", ["0.1.7", "dev-abc"]) == []
    assert "upgrade the client" in skew("0.1.0", ["0.2.0"])[0]
    assert "upgrade the operator" in skew("0.2.0", ["0.1.0"])[0]
    assert unknown_versions(["0.1.0"]) == []
    assert "is not known" in unknown_versions(["dev-abc"])[0]


def test_a_crd_that_lacks_a_field_or_has_one_more_is_told_with_what_to_upgrade() -> None:
    ours = fields_of_schema(root_schema())
    assert crd_skew(ours) == []
    assert crd_skew(set()) == [], "not seen"
    (older,) = crd_skew(ours - {"spec.queue", "spec.queue.name"})
    assert "lacks spec.queue, spec.queue.name. Upgrade the chart" in older
    (newer,) = crd_skew(ours | {"spec.elastic"})
    assert "has spec.elastic: upgrade the client" in newer
    assert len(crd_skew(ours - {"spec.queue"} | {"spec.elastic"})) == 2


@pytest.mark.parametrize(
    ("image", "labels", "version"),
    [
        ("r:5000/operator:0.1.0", {"app.kubernetes.io/version": "0.2.0"}, "0.1.0"),
        ("r:5000/operator:dev-abc", {"app.kubernetes.io/version": "0.2.0"}, "0.2.0"),
        ("operator@sha256:ab", {"app.kubernetes.io/version": "0.2.0"}, "0.2.0"),
        ("operator:dev-abc", {}, "dev-abc"),
    ],
)
def test_an_operator_has_the_version_of_its_image_or_of_its_chart(
    image: str, labels: dict[str, str], version: str
) -> None:
    body = {"metadata": {"labels": labels}, "spec": {"containers": [{"image": image}]}}
    assert version_of(body) == version


def test_times_and_sizes() -> None:
    assert [duration(s) for s in (0, 65, 3600, 90_000)] == ["0s", "1m5s", "1h", "1d1h"]
    assert [seconds_of(text) for text in ("1m5s", "1h20m", "", "8.5s")] == [65, 4800, 0, 8.5]
    assert [size(n) for n in (5, 4_500_000)] == ["5 B", "4.5 MB"]


def test_the_paths_speak_the_contracts_words() -> None:
    assert (paths.API_VERSION, paths.PLURAL) == (names.API_VERSION, names.PLURAL)
    assert paths.LABEL_JOB_NAME == names.LABEL_JOB_NAME


def test_help_imports_neither_models_nor_a_client() -> None:
    """It comes at once."""
    code = (
        "import sys, lmtraining_cli.app, lmtraining_cli.paths\n"
        "sys.exit(any(name in sys.modules for name in ('lmtraining_api', 'kubernetes', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
