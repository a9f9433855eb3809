"""Operator: does it look after the jobs, and what does it ask of the API server?"""

from typing import Final

from grafana_foundation_sdk.models import units

from lmtraining_monitoring.boards.board import Board, Row, Variable, lines, number
from lmtraining_monitoring.boards.queries import quantiles

PREFIX: Final = "lmtraining_operator"
IN: Final = 'namespace=~"$operator_namespace"'
FAILED: Final = 'code=~"0|403|429|5.."'


def metric(name: str, more: str = "") -> str:
    return f"{PREFIX}_{name}{{{IN}{f', {more}' if more else ''}}}"


def rate(name: str, more: str = "") -> str:
    return f"rate({metric(name, more)}[$__rate_interval])"


def of_operator(expr: str) -> str:
    """What is known by pod, of the operators alone."""
    return f"{expr}\n  and on (namespace, pod) {metric('leader')}"


NOW: Final = Row(
    title="Now",
    panels=(
        number(
            "Leads",
            units.NoUnit,
            "The pod that runs the jobs.",
            f"{metric('leader')} == 1",
            legend="{{pod}}",
            is_text=True,
        ),
        number("Operators", units.Short, "That answer.", f"count({metric('build_info')})"),
        number(
            "Version",
            units.NoUnit,
            "Several while an upgrade runs.",
            f"count by (version) ({metric('build_info')})",
            legend="{{version}}",
            is_text=True,
        ),
        number(
            "Jobs", units.Short, "Known, in whatever state.", f"sum({metric('jobs')}) or vector(0)"
        ),
        number(
            "Failed passes",
            units.PercentUnit,
            "Of all passes over jobs.",
            f"(sum({rate('reconcile_errors_total')}) or vector(0)) "
            f"/ sum({rate('reconcile_duration_seconds_count')})",
        ),
        number(
            "Loop lag",
            units.Seconds,
            "How late a timer came.",
            f"max({metric('event_loop_lag_seconds')})",
        ),
    ),
)
WORK: Final = Row(
    title="Does it look after the jobs?",
    panels=(
        lines(
            "Passes",
            units.OpsPerSecond,
            "Looks at a job, a second.",
            {"passes": f"sum({rate('reconcile_duration_seconds_count')})"},
        ),
        lines(
            "Time of a pass",
            units.Seconds,
            "Waiting for a slot excluded.",
            quantiles(rate("reconcile_duration_seconds_bucket"), 50, 95, 99),
        ),
        lines(
            "Errors",
            units.OpsPerSecond,
            "Passes that ended in an error, by reason.",
            {"{{reason}}": f"sum by (reason) ({rate('reconcile_errors_total')})"},
            is_stacked=True,
            empty="no error since it started",
        ),
        lines(
            "Jobs by state",
            units.Short,
            "The reason of their condition Succeeded.",
            {"{{state}}": f"sum by (state) ({metric('jobs')})"},
            is_stacked=True,
            empty="no jobs",
        ),
        lines(
            "Reports",
            units.OpsPerSecond,
            "Asked of the lead pods.",
            {"{{result}}": f"sum by (result) ({rate('report_pulls_total')})"},
            is_stacked=True,
            empty="no job trains",
        ),
        lines(
            "Restarts",
            units.Short,
            "New attempts and replaced pods within an hour, by failure.",
            {
                "{{failure_class}}": "sum by (failure_class) "
                f"(increase({metric('job_restarts_total')}[1h]))"
            },
            is_stacked=True,
            empty="no restart since it started",
        ),
    ),
)
API: Final = Row(
    title="What does it ask of the API server?",
    panels=(
        lines(
            "Requests by verb and kind",
            units.RequestsPerSecond,
            "The ten most frequent.",
            {"{{verb}} {{kind}}": f"topk(10, sum by (verb, kind) ({rate('api_requests_total')}))"},
            width=6,
            is_stacked=True,
        ),
        lines(
            "Answers by code",
            units.RequestsPerSecond,
            "0: no answer.",
            {"{{code}}": f"sum by (code) ({rate('api_requests_total')})"},
            width=6,
            is_stacked=True,
        ),
        lines(
            "Time of a request",
            units.Seconds,
            "Until its answer, the slowest of a hundred by verb.",
            {
                "{{verb}}": "histogram_quantile(0.99, sum by (verb, le) "
                f"({rate('api_request_duration_seconds_bucket')}))"
            },
            width=6,
        ),
        lines(
            "Requests that failed",
            units.PercentUnit,
            "No answer, 403, 429 or 5xx.",
            {
                "failed": f"(sum({rate('api_requests_total', FAILED)}) or vector(0)) "
                f"/ sum({rate('api_requests_total')})"
            },
            width=6,
        ),
    ),
)
ITSELF: Final = Row(
    title="Is it well itself?",
    panels=(
        lines(
            "Event loop lag",
            units.Seconds,
            "At 10 s its liveness probe fails.",
            {"{{pod}}": f"max by (pod) ({metric('event_loop_lag_seconds')})"},
        ),
        lines(
            "Memory",
            units.BytesIEC,
            "Working set of its pods.",
            {
                "{{pod}}": of_operator(
                    'sum by (namespace, pod) (container_memory_working_set_bytes{container!=""})'
                )
            },
            empty="no data: the kubelet's cAdvisor is not scraped",
        ),
        lines(
            "CPU",
            units.Short,
            "Cores that its pods use.",
            {
                "{{pod}}": of_operator(
                    "sum by (namespace, pod) "
                    '(rate(container_cpu_usage_seconds_total{container!=""}[$__rate_interval]))'
                )
            },
            empty="no data: the kubelet's cAdvisor is not scraped",
        ),
    ),
)
BOARD: Final = Board(
    uid="lmtraining-operator",
    title="Training / Operator",
    description="Does the operator look after the jobs, and what does it ask of the API server?",
    variables=(
        Variable(
            name="operator_namespace",
            label="Namespace of the operator",
            query=f"label_values({PREFIX}_build_info, namespace)",
            is_many=True,
        ),
    ),
    rows=(NOW, WORK, API, ITSELF),
)
