"""The queries that several boards ask, each written once."""

from typing import Final

from lmtraining_monitoring.boards.board import Mark, Variable

#: The job of the Job and Stability boards.
ONE: Final = 'job_namespace="$namespace", job_name="$job"'
#: The jobs of the boards that show several.
MANY: Final = 'job_namespace=~"$namespace", job_name=~"$job"'
#: The jobs of a namespace.
ALL: Final = 'job_namespace=~"$namespace"'
BY_JOB: Final = "job_namespace, job_name"

NAMESPACES: Final = "label_values(lmtraining_attempt, job_namespace)"
JOBS: Final = 'label_values(lmtraining_attempt{job_namespace=~"$namespace"}, job_name)'

ONE_JOB: Final = (
    Variable(name="namespace", label="Namespace", query=NAMESPACES),
    Variable(name="job", label="Job", query=JOBS),
)
MANY_JOBS: Final = (
    Variable(name="namespace", label="Namespace", query=NAMESPACES, is_many=True),
    Variable(name="job", label="Job", query=JOBS, is_many=True),
)


def value(metric: str, selector: str = ONE) -> str:
    """A metric of the lead pod. Between two of its pods both may be there for a moment."""
    return f"max(lmtraining_{metric}{{{selector}}})"


def by_job(metric: str, selector: str = ALL) -> str:
    return f"max by ({BY_JOB}) (lmtraining_{metric}{{{selector}}})"


def growth(metric: str, *, by: str = "", selector: str = ONE) -> str:
    """How fast a counter grows, a second."""
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate(lmtraining_{metric}{{{selector}}}[$__rate_interval]))"


def median(metric: str, window: str) -> str:
    """Of a metric of the lead pod, over the time until now."""
    return f"max(quantile_over_time(0.5, lmtraining_{metric}{{{ONE}}}[{window}]))"


def quantiles(of_buckets: str, *percents: int) -> dict[str, str]:
    """Curves of a histogram, from the growth of its buckets."""
    return {
        f"p{percent}": f"histogram_quantile({percent / 100:g}, sum by (le) ({of_buckets}))"
        for percent in percents
    }


def time_by_cause(selector: str = ONE) -> str:
    """Share of a job's time by cause. A rewind turns productive time into replayed: no negative."""
    series = f"lmtraining_run_seconds{{{selector}}}"
    return f"clamp_min(sum by (cause) (deriv({series}[$__rate_interval])), 0)"


MARKS: Final = (
    Mark(
        name="Restarts",
        expr=f"changes(({value('attempt')})[2m:30s]) + changes(({value('round')})[2m:30s]) > 0",
        colour="red",
    ),
    Mark(
        name="Rewinds",
        expr=f"sum(increase(lmtraining_rewinds_total{{{ONE}}}[2m])) > 0",
        colour="orange",
    ),
    Mark(
        name="Checkpoints",
        expr=f"changes(({value('checkpoint_step')})[2m:30s]) > 0",
        colour="blue",
        is_shown=False,
    ),
)
