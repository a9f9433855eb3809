"""Fleet: which job needs somebody?"""

from typing import Final

from grafana_foundation_sdk.models import units

from lmtraining_monitoring.boards.board import Board, Row, Variable, lines, number
from lmtraining_monitoring.boards.queries import ALL, BY_JOB, NAMESPACES, by_job, quantiles
from lmtraining_monitoring.boards.tables import Column, table

OPERATOR: Final = "lmtraining_operator"
JOB: Final = "{{job_namespace}}/{{job_name}}"


def within_an_hour(metric: str) -> str:
    """How much a counter of the operator has grown."""
    return f"increase({OPERATOR}_{metric}[1h])"


NOW: Final = Row(
    title="Now",
    panels=(
        number(
            "Training",
            units.Short,
            "Jobs in the state Training, in all namespaces.",
            f'sum({OPERATOR}_jobs{{state="Training"}}) or vector(0)',
        ),
        number(
            "Waiting",
            units.Short,
            "Jobs that wait for room, data or the start of their pods.",
            f'sum({OPERATOR}_jobs{{state=~"Pending|Preparing|Starting"}}) or vector(0)',
        ),
        number(
            "In trouble",
            units.Short,
            "Jobs that recover, stand still, or cannot be reached.",
            f'sum({OPERATOR}_jobs{{state=~"Recovering|Stalled|Unreachable"}}) or vector(0)',
        ),
        number(
            "Ended without a model",
            units.Short,
            "Failed, Diverged or DeadlineExceeded, not deleted.",
            f'sum({OPERATOR}_jobs{{state=~"Failed|Diverged|DeadlineExceeded"}}) or vector(0)',
        ),
        number(
            "Alerts",
            units.Short,
            "Alerts of ours that fire now.",
            'count(ALERTS{alertname=~"LMTraining.+", alertstate="firing"}) or vector(0)',
        ),
        number(
            "Tokens per second",
            units.Short,
            "Of all jobs that are shown.",
            f"sum({by_job('tokens_per_second')})",
        ),
    ),
)
NO_STATE: Final = "no data: kube-state-metrics has not been told of jobs"
CONDITION: Final = f'lmtraining_job_condition{{type="Succeeded", {ALL}}}'
STATE: Final = Row(
    title="Every job, by its status (kube-state-metrics; also while the operator is down)",
    panels=(
        lines(
            "Jobs by state",
            units.Short,
            "The reason of the condition Succeeded.",
            {"{{reason}}": f"sum by (reason) ({CONDITION})"},
            is_stacked=True,
            empty=NO_STATE,
        ),
        lines(
            "Jobs that wait longest",
            units.Seconds,
            "Since they were made, without all their pods having run; the ten oldest.",
            {
                JOB: f"topk(10, time() - (max by ({BY_JOB}) (lmtraining_job_created{{{ALL}}}) "
                f"unless on ({BY_JOB}) lmtraining_job_first_run))"
            },
            empty=NO_STATE,
        ),
        lines(
            "Wishes that the operator has not seen",
            units.Short,
            "Jobs whose newest change is in no status yet. For more than a minute: it is down.",
            {
                "jobs": "count(max by (job_namespace, job_name) "
                f"(lmtraining_job_generation{{{ALL}}} > lmtraining_job_observed_generation)) "
                "or vector(0)"
            },
            empty=NO_STATE,
        ),
    ),
)
JOBS: Final = Row(
    title="Jobs",
    panels=(
        table(
            "Jobs that run",
            "One line per job with a pod; its name leads to its board. Jobs without a pod are in "
            "`kubectl lmtrain list -A`.",
            BY_JOB.split(", "),
            (
                Column("Step", units.Short, by_job("step")),
                Column(
                    "Progress", units.PercentUnit, f"{by_job('step')} / {by_job('step_budget')}"
                ),
                Column("ETA", units.DurationSeconds, by_job("eta_seconds")),
                Column("Loss", units.NoUnit, by_job("loss")),
                Column("Tokens/s", units.Short, by_job("tokens_per_second")),
                Column("Goodput", units.PercentUnit, by_job("goodput_ratio")),
                Column(
                    "Checkpoint age",
                    units.Seconds,
                    f"time() - {by_job('checkpoint_timestamp_seconds')}",
                ),
                Column(
                    "Since the last step",
                    units.Seconds,
                    f"time() - {by_job('step_timestamp_seconds')}",
                ),
                Column("Attempt", units.NoUnit, by_job("attempt")),
                Column("Stable", units.Bool, by_job("stable")),
            ),
            link="/d/lmtraining-job?var-namespace=${__data.fields.job_namespace}"
            "&var-job=${__value.raw}",
        ),
    ),
)
OVER_TIME: Final = Row(
    title="Over time",
    panels=(
        lines(
            "Jobs by state",
            units.Short,
            "As the operator counts them, in all namespaces.",
            {"{{state}}": f"sum by (state) ({OPERATOR}_jobs)"},
            is_stacked=True,
            empty="no operator is scraped",
        ),
        lines(
            "Throughput",
            units.Short,
            "Tokens per second, the ten fastest jobs.",
            {JOB: f"topk(10, {by_job('tokens_per_second')})"},
        ),
        lines(
            "Goodput",
            units.PercentUnit,
            "Share of wall time in steps of the model, the ten lowest.",
            {JOB: f"bottomk(10, {by_job('goodput_ratio')})"},
        ),
        lines(
            "Time lost by cause",
            units.Short,
            "Jobs' worth of time that goes elsewhere than into steps.",
            {
                "{{cause}}": "clamp_min(sum by (cause) (deriv(lmtraining_run_seconds"
                f'{{{ALL}, cause!="productive"}}[$__rate_interval])), 0)'
            },
            is_stacked=True,
        ),
        lines(
            "Restarts by failure",
            units.Short,
            "New attempts and replaced pods within an hour.",
            {
                "{{failure_class}}": "sum by (failure_class) "
                f"({within_an_hour('job_restarts_total')})"
            },
            is_stacked=True,
            empty="no restart since the operator started",
        ),
        lines(
            "Jobs that ended",
            units.Short,
            "Within an hour, by the state they ended in.",
            {"{{state}}": f"sum by (state) ({within_an_hour('job_ends_total')})"},
            is_stacked=True,
        ),
        lines(
            "Time in the queue",
            units.Seconds,
            "From acceptance until all pods of a job had a node, over an hour.",
            quantiles(within_an_hour("job_queue_duration_seconds_bucket"), 50, 90),
            width=6,
            empty="no job has found room",
        ),
        lines(
            "Time to start",
            units.Seconds,
            "From there until all of them ran, over an hour: volumes, images, containers.",
            quantiles(within_an_hour("job_start_duration_seconds_bucket"), 50, 90),
            width=6,
            empty="no job has started",
        ),
        lines(
            "Time to recover",
            units.Seconds,
            "From a failure until the next step has ended, over an hour.",
            quantiles(within_an_hour("job_recovery_duration_seconds_bucket"), 50, 90),
            empty="no job has recovered",
            width=6,
        ),
        lines(
            "Oldest waiting job",
            units.Seconds,
            "Since its acceptance, without all its pods having run.",
            {"age": f"max({OPERATOR}_oldest_unstarted_job_seconds)"},
            width=6,
        ),
    ),
)
BOARD: Final = Board(
    uid="lmtraining-fleet",
    title="Training / Fleet",
    description="All training jobs: which of them needs somebody?",
    variables=(Variable(name="namespace", label="Namespace", query=NAMESPACES, is_many=True),),
    rows=(NOW, JOBS, STATE, OVER_TIME),
)
