"""How long a scrape takes and how large it is: trainer and operator, at their limits.

The trainer's report has everything in it, 64 ranks and the counters of a long run; the operator
knows 1,000 jobs and has used every word that it may label with. Both are asked over HTTP, through
the server that each uses; beside them an exporter that has nothing to say, which is what HTTP
itself costs here. The goals are 20 ms and 50 ms.
"""

import http.client
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, start_http_server
from rich.console import Console
from rich.table import Table

from lmtraining_api import CheckpointReport, IntervalReport, RankHealth, TimeAccounts, TrainerReport
from lmtraining_api.conditions import Succeeded
from lmtraining_api.exits import FailureClass
from lmtraining_api.records import RANKS_REPORTED_MAX
from lmtraining_operator import metrics as operator
from lmtraining_operator.milestones import Milestones
from lmtraining_trainer import metrics as trainer
from lmtraining_trainer.report_server import PROMETHEUS, Page, ReportServer

SCRAPES = 200
JOBS = 1_000
STEPS_SHORT, STEPS_LONG = 10, 100_000_000
START = datetime(2026, 1, 1, tzinfo=UTC)
VERBS = ("GET", "POST", "PUT", "PATCH", "DELETE")
KINDS = tuple(f"Kind{number}" for number in range(operator.LABELS["kind"].values_max))


def main() -> None:
    table = Table(
        "", "median", "slowest", "goal", "bytes", "series", title=f"{SCRAPES} scrapes each"
    )
    with operator_server(CollectorRegistry()) as port:
        _add(table, "an empty registry", port, goal="–")
    for what, steps in (
        ("trainer, step 10", STEPS_SHORT),
        ("trainer, step 100,000,000", STEPS_LONG),
    ):
        with trainer_server(steps) as port:
            _add(table, what, port, goal="20 ms")
    with operator_server(operator_registry(JOBS)) as port:
        _add(table, f"operator, {JOBS} jobs", port, goal="50 ms")
    Console().print(table)


def _add(table: Table, what: str, port: int, *, goal: str) -> None:
    body, milliseconds = scraped(port)
    series = sum(1 for line in body.splitlines() if line and not line.startswith(b"#"))
    table.add_row(
        what,
        f"{statistics.median(milliseconds):.1f} ms",
        f"{max(milliseconds):.1f} ms",
        goal,
        f"{len(body)}",
        f"{series}",
    )


def scraped(port: int) -> tuple[bytes, list[float]]:
    """The last body, and how long each scrape took."""
    milliseconds, body = [], b""
    for _ in range(SCRAPES):
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        body = connection.getresponse().read()
        connection.close()
        milliseconds.append((time.perf_counter() - started) * 1000)
    return body, milliseconds


def full_report(step: int) -> TrainerReport:
    """Every field, and as many ranks as a report may name."""
    now = START + timedelta(seconds=step)
    return TrainerReport(
        job_uid="uid", attempt=9, round=9, state="Training", report_time=now,
        step=step, total_steps=STEPS_LONG, tokens=step * 1_000_000, step_time=now, eta_seconds=1.0,
        loss=2.5, validation_loss=2.6, validation_step=step, unigram_loss=5.0, gradient_norm=0.5,
        learning_rate=1e-3, zero_share=0.25, tokens_per_second=1e6, mfu=0.4, parameters=10**12,
        skipped_steps=step // 1000, clipped_steps=step // 10, rewinds=3, load_seconds=0.5,
        healthy_step=step, replayed_steps=step // 100, update_ratio=1e-3, update_rms=0.3,
        swallowed_share=0.1, attention_logit_bound=9.0, activation_max=20.0,
        noise_scale_tokens=4096.0, accounts=TimeAccounts(productive=float(step)),
        time_seconds={state: float(step) for state in ("Starting", "Training", "Evaluating")},
        checkpoint=CheckpointReport(step=step, path="c", time=now, size_bytes=10**12, sha256="a"),
        checkpoint_interval=IntervalReport(seconds=90.0, cost_seconds=0.4, fault_seconds=3600.0),
        ranks=[
            RankHealth(rank=rank, heartbeat_age_seconds=0.1, score=0.9)
            for rank in range(RANKS_REPORTED_MAX)
        ],
    )  # fmt: skip


@contextmanager
def trainer_server(step: int) -> Iterator[int]:
    report = full_report(step)

    def body() -> bytes:
        return trainer.exposition(report, leads=True, job_name="job", namespace="team")

    page = Page(body=body, content_type=PROMETHEUS)
    server = ReportServer(host="127.0.0.1", port=0, pages={"/metrics": page})
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


def operator_registry(jobs: int) -> CollectorRegistry:
    """An operator that has met every verb, kind, code, reason and failure there may be."""
    metrics = operator.Metrics("1.2.3")
    states = Counter(list(Succeeded)[number % len(Succeeded)] for number in range(jobs))
    metrics.show_jobs(lambda: states, oldest_unstarted_seconds=lambda: 1.0)
    for verb in VERBS:
        for kind in KINDS:
            for code in range(operator.CODES_MAX + 1):
                metrics.count_answer(verb, kind, 200 + code, 0.01)
    for number in range(operator.REASONS_MAX + 1):
        metrics.count_error(f"Reason{number}")
    metrics.count_milestones(
        Milestones(
            queue_seconds=1.0,
            start_seconds=1.0,
            recovery_seconds=1.0,
            restarts=dict.fromkeys(FailureClass, 1),
        )
    )
    return metrics.registry


@contextmanager
def operator_server(registry: CollectorRegistry) -> Iterator[int]:
    server, thread = start_http_server(0, "127.0.0.1", registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    main()
