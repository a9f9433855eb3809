"""Alerts on the operator: does anybody look after the jobs, and do its calls come through?

Promise: they tell of the operator even where it cannot. Trap avoided: jobs train on while it is
down, so nothing else would tell until one of them needs it.
"""

from typing import Final

from lmtraining_monitoring.alert import Alert

ALERTS: Final = (
    Alert(
        name="LMTrainingOperatorDown",
        severity="critical",
        minutes=5,
        summary="No operator answers Prometheus.",
        description="No operator has been scraped for 5 minutes. Running jobs train on; no job "
        "starts, and no lost pod is replaced.",
        expr="absent(lmtraining_operator_build_info)",
    ),
    Alert(
        name="LMTrainingOperatorNoLeader",
        severity="critical",
        minutes=5,
        summary="Operators run, and none of them leads.",
        description="None of the operators in namespace {{ $labels.namespace }} holds the Lease. "
        "Running jobs train on; no job starts, and no lost pod is replaced.",
        expr="max by (namespace) (lmtraining_operator_leader) == 0",
    ),
    Alert(
        name="LMTrainingOperatorReconcileFailing",
        severity="warning",
        minutes=15,
        summary="The operator fails to look after jobs.",
        description="{{ $value | humanizePercentage }} of the passes over jobs have failed in the "
        "last 10 minutes.",
        expr="""
            sum by (namespace) (rate(lmtraining_operator_reconcile_errors_total[10m]))
              / sum by (namespace) (rate(lmtraining_operator_reconcile_duration_seconds_count[10m]))
              > 0.1
        """,
    ),
    Alert(
        name="LMTrainingOperatorSlow",
        severity="warning",
        minutes=15,
        summary="The operator is slow to look after jobs.",
        description="One pass in a hundred takes longer than {{ $value | humanizeDuration }}.",
        expr="""
            histogram_quantile(
              0.99,
              sum by (namespace, le) (
                rate(lmtraining_operator_reconcile_duration_seconds_bucket[10m])
              )
            ) > 5
        """,
    ),
    Alert(
        name="LMTrainingOperatorLagging",
        severity="warning",
        minutes=10,
        summary="The operator's event loop comes late.",
        description="Timers of the operator come {{ $value | humanizeDuration }} late: it has too "
        "little CPU, or something blocks it.",
        expr="""
            max by (namespace) (
              avg_over_time(lmtraining_operator_event_loop_lag_seconds[5m])
            ) > 0.5
        """,
    ),
    Alert(
        name="LMTrainingApiErrors",
        severity="warning",
        minutes=15,
        summary="The API server refuses the operator, or does not answer.",
        description="{{ $value | humanizePercentage }} of the operator's requests got no answer, "
        "a 403, a 429 or a 5xx in the last 10 minutes.",
        expr="""
            sum by (namespace) (
              rate(lmtraining_operator_api_requests_total{code=~"0|403|429|5.."}[10m])
            )
              / sum by (namespace) (rate(lmtraining_operator_api_requests_total[10m]))
              > 0.05
        """,
    ),
    Alert(
        name="LMTrainingReportsFailing",
        severity="warning",
        minutes=15,
        summary="The operator cannot read the reports of the jobs.",
        description="{{ $value | humanizePercentage }} of the reports that the operator asked for "
        "in the last 10 minutes did not come: statuses grow old.",
        expr="""
            sum by (namespace) (rate(lmtraining_operator_report_pulls_total{result="failed"}[10m]))
              / sum by (namespace) (rate(lmtraining_operator_report_pulls_total[10m]))
              > 0.5
        """,
    ),
    Alert(
        name="LMTrainingJobPendingTooLong",
        severity="warning",
        minutes=5,
        summary="A job has waited for its pods for more than an hour.",
        description="The oldest job whose pods have never all run was accepted "
        "{{ $value | humanizeDuration }} ago. `kubectl lmtrain list -A` shows which.",
        expr="max by (namespace) (lmtraining_operator_oldest_unstarted_job_seconds) > 3600",
    ),
    Alert(
        name="LMTrainingJobFailed",
        severity="warning",
        minutes=0,
        summary="A job has ended without a model.",
        description="Jobs that ended as {{ $labels.state }} in the last 15 minutes: "
        "{{ $value }}. `kubectl lmtrain list -A` shows which.",
        expr="""
            round(
              sum by (namespace, state) (
                increase(lmtraining_operator_job_ends_total{state!="Completed"}[15m])
              )
            ) > 0
        """,
    ),
)
