"""For each alert: series at which it fires, what it says then, and series at which it stays quiet.

Series are in the notation of promtool: one sample a minute. The quiet ones are near misses.
"""

from dataclasses import dataclass

Series = dict[str, str]

JOB = 'namespace="n", job_namespace="n", job_name="j"'
LEAD = f'{JOB}, pod="j-1-0-0"'
OPERATOR = 'namespace="s", pod="operator-1"'
OF_OPERATOR = {"namespace": "s"}
OF_JOB = {"namespace": "n", "job_namespace": "n", "job_name": "j"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One alert, looked at after so many minutes."""

    alert: str
    at_minutes: int
    fires: Series
    labels: dict[str, str]
    says: str
    quiet: tuple[Series, ...]


def of_operator(metric: str, **labels: str) -> str:
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    return f"lmtraining_operator_{metric}{{{OPERATOR}{more}}}"


def of_lead(metric: str, **labels: str) -> str:
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    return f"lmtraining_{metric}{{{LEAD}{more}}}"


def run_seconds(minutes: int, **per_minute: float) -> Series:
    return {
        of_lead("run_seconds", cause=cause): f"0+{seconds:g}x{minutes}"
        for cause, seconds in per_minute.items()
    }


def gpu(metric: str, values: str, *, renamed: bool, pod: str = "j-1-0-0") -> Series:
    """As NVIDIA's exporter shows it, where the scraper honours labels and where not."""
    device = 'gpu="2", Hostname="w1", UUID="GPU-2"'
    holder = (
        f'namespace="gpus", pod="exporter-1", exported_namespace="n", exported_pod="{pod}"'
        if renamed
        else f'namespace="n", pod="{pod}"'
    )
    return {f"{metric}{{{device}, {holder}}}": values}


ATTEMPT = {of_lead("attempt"): "3x200"}
TRAINING = {of_lead("state", state="Training"): "1x400"}
EVALUATING = {of_lead("state", state="Training"): "0x400"}
CLAIM = 'namespace="n", persistentvolumeclaim="c"'
VOLUME = {
    f"kubelet_volume_stats_capacity_bytes{{{CLAIM}}}": "100x20",
    f'kube_pod_spec_volumes_persistentvolumeclaims_info{{{CLAIM}, pod="j-1-0-0"}}': "1x20",
}
OF_GPU = {**OF_JOB, "pod": "j-1-0-0", "gpu": "2", "Hostname": "w1"}

OPERATOR_CASES = (
    Case(
        alert="LMTrainingOperatorDown",
        at_minutes=10,
        fires={f"up{{{OPERATOR}}}": "0x20"},
        labels={},
        says="No operator has been scraped for 5 minutes. Running jobs train on; no job starts, "
        "and no lost pod is replaced.",
        quiet=({of_operator("build_info", version="1"): "1x20"},),
    ),
    Case(
        alert="LMTrainingOperatorNoLeader",
        at_minutes=15,
        fires={
            of_operator("leader"): "1x5 0x20",
            'lmtraining_operator_leader{namespace="s", pod="operator-2"}': "0x25",
        },
        labels=OF_OPERATOR,
        says="None of the operators in namespace s holds the Lease. Running jobs train on; no job "
        "starts, and no lost pod is replaced.",
        quiet=(
            {
                of_operator("leader"): "1x5 0x20",
                'lmtraining_operator_leader{namespace="s", pod="operator-2"}': "0x5 1x20",
            },
        ),
    ),
    Case(
        alert="LMTrainingOperatorReconcileFailing",
        at_minutes=40,
        fires={
            of_operator("reconcile_errors_total", reason="Conflict"): "0+2x40",
            of_operator("reconcile_errors_total", reason="Other"): "0+4x40",
            of_operator("reconcile_duration_seconds_count"): "0+12x40",
        },
        labels=OF_OPERATOR,
        says="50% of the passes over jobs have failed in the last 10 minutes.",
        quiet=(
            {
                of_operator("reconcile_errors_total", reason="Other"): "0+1x40",
                of_operator("reconcile_duration_seconds_count"): "0+12x40",
            },
        ),
    ),
    Case(
        alert="LMTrainingOperatorSlow",
        at_minutes=40,
        fires={
            of_operator("reconcile_duration_seconds_bucket", le=limit): rate
            for limit, rate in (("5.0", "0+50x40"), ("10.0", "0+100x40"), ("+Inf", "0+100x40"))
        },
        labels=OF_OPERATOR,
        says="One pass in a hundred takes longer than 9.9s.",
        quiet=(
            {
                of_operator("reconcile_duration_seconds_bucket", le=limit): rate
                for limit, rate in (("5.0", "0+99x40"), ("10.0", "0+100x40"), ("+Inf", "0+100x40"))
            },
        ),
    ),
    Case(
        alert="LMTrainingOperatorLagging",
        at_minutes=20,
        fires={of_operator("event_loop_lag_seconds"): "1.5x20"},
        labels=OF_OPERATOR,
        says="Timers of the operator come 1.5s late: it has too little CPU, or something blocks "
        "it.",
        quiet=({of_operator("event_loop_lag_seconds"): "0x14 1.5 0x5"},),
    ),
    Case(
        alert="LMTrainingApiErrors",
        at_minutes=40,
        fires={
            of_operator("api_requests_total", verb="GET", code="503"): "0+9x40",
            of_operator("api_requests_total", verb="GET", code="0"): "0+1x40",
            of_operator("api_requests_total", verb="GET", code="200"): "0+90x40",
        },
        labels=OF_OPERATOR,
        says="10% of the operator's requests got no answer, a 403, a 429 or a 5xx in the last 10 "
        "minutes.",
        quiet=(
            {  # "not found" and "conflict" are answers
                of_operator("api_requests_total", code="404"): "0+50x40",
                of_operator("api_requests_total", code="409"): "0+40x40",
                of_operator("api_requests_total", code="429"): "0+4x40",
                of_operator("api_requests_total", code="200"): "0+6x40",
            },
        ),
    ),
    Case(
        alert="LMTrainingReportsFailing",
        at_minutes=40,
        fires={
            of_operator("report_pulls_total", result="failed"): "0+8x40",
            of_operator("report_pulls_total", result="ok"): "0+2x40",
        },
        labels=OF_OPERATOR,
        says="80% of the reports that the operator asked for in the last 10 minutes did not come: "
        "statuses grow old.",
        quiet=(
            {
                of_operator("report_pulls_total", result="failed"): "0+4x40",
                of_operator("report_pulls_total", result="ok"): "0+6x40",
            },
        ),
    ),
    Case(
        alert="LMTrainingJobPendingTooLong",
        at_minutes=80,
        fires={of_operator("oldest_unstarted_job_seconds"): "0+60x100"},
        labels=OF_OPERATOR,
        says="The oldest job whose pods have never all run was accepted 1h 20m 0s ago. "
        "`kubectl lmtrain list -A` shows which.",
        quiet=({of_operator("oldest_unstarted_job_seconds"): "0+60x50 0+60x50"},),
    ),
    Case(
        alert="LMTrainingJobFailed",
        at_minutes=12,
        fires={
            of_operator("job_ends_total", state="Failed"): "0x5 1x10",
            of_operator("job_ends_total", state="Completed"): "0x5 7x10",
        },
        labels={**OF_OPERATOR, "state": "Failed"},
        says="Jobs that ended as Failed in the last 15 minutes: 1. `kubectl lmtrain list -A` shows "
        "which.",
        quiet=(
            {
                of_operator("job_ends_total", state="Failed"): "3x20",
                of_operator("job_ends_total", state="Completed"): "0x5 7x10",
            },
        ),
    ),
)
PROGRESS_CASES = (
    Case(
        alert="LMTrainingJobNoProgress",
        at_minutes=45,
        fires={of_lead("step_timestamp_seconds"): "600x60", **TRAINING},
        labels=OF_JOB,
        says="Job n/j has ended no step for 35m 0s.",
        quiet=(
            {of_lead("step_timestamp_seconds"): "0+60x60", **TRAINING},
            {of_lead("step_timestamp_seconds"): "600x60", **EVALUATING},
        ),
    ),
    Case(
        alert="LMTrainingJobRestartLoop",
        at_minutes=40,
        fires={
            of_lead("attempt"): "1x20 stale",
            f'lmtraining_attempt{{{JOB}, pod="j-2-0-0"}}': "_x21 2x30",
            of_lead("round"): "1+1x4 5x15 stale",
            f'lmtraining_round{{{JOB}, pod="j-2-0-0"}}': "_x21 1x30",
        },
        labels=OF_JOB,
        says="Job n/j has started its ranks anew 5 times within an hour.",
        quiet=(
            {of_lead("attempt"): "1x40", of_lead("round"): "1+1x4 5x40"},
            {of_lead("attempt"): "1x9 2x40", of_lead("round"): "1+1x3 4x5 1x40"},
        ),
    ),
    Case(
        alert="LMTrainingGoodputLow",
        at_minutes=100,
        fires=run_seconds(110, productive=24, recovery=36, stopped=0),
        labels=OF_JOB,
        says="Job n/j has put 40% of the last hour into steps of the model.",
        quiet=(
            run_seconds(110, productive=36, recovery=24, stopped=0),
            run_seconds(110, productive=12, recovery=0, stopped=48),  # suspended for a while
        ),
    ),
    Case(
        alert="LMTrainingThroughputLow",
        at_minutes=335,
        fires={of_lead("tokens_per_second"): "1000x300 500x40"},
        labels=OF_JOB,
        says="Job n/j sees 500 tokens a second, less than 70% of its median of the last 6 hours.",
        quiet=({of_lead("tokens_per_second"): "1000x300 800x40"},),
    ),
    Case(
        alert="LMTrainingDataStarved",
        at_minutes=60,
        fires=run_seconds(70, productive=42, data_wait=18, stopped=0),
        labels=OF_JOB,
        says="Job n/j has spent 30% of the last 30 minutes waiting for its next batch.",
        quiet=(run_seconds(70, productive=54, data_wait=6, stopped=0),),
    ),
    Case(
        alert="LMTrainingStraggler",
        at_minutes=20,
        fires={
            of_lead("rank_score", rank="0"): "1x40",
            of_lead("rank_score", rank="3"): "0.5x40",
        },
        labels={**OF_JOB, "rank": "3"},
        says="Rank 3 of job n/j works at 50% of the speed of the fastest, and all wait for it.",
        quiet=({of_lead("rank_score", rank="3"): "0.5x4 0.8x40"},),
    ),
)
STABILITY_CASES = (
    Case(
        alert="LMTrainingLossNotFinite",
        at_minutes=20,
        fires={of_lead("loss_is_finite"): "1x10 0x20"},
        labels=OF_JOB,
        says="The loss of job n/j has not been finite for 5 minutes.",
        quiet=({of_lead("loss_is_finite"): "1x13 0x3 1x20"},),
    ),
    Case(
        alert="LMTrainingLossSpike",
        at_minutes=70,
        fires={of_lead("loss"): "3x60 6x20"},
        labels=OF_JOB,
        says="The loss of job n/j is 6, more than 1.5 times its median of the last hour.",
        quiet=(
            {of_lead("loss"): "3x60 4x20"},
            {of_lead("loss"): "9-0.1x80"},
        ),
    ),
    Case(
        alert="LMTrainingGradientNormHigh",
        at_minutes=70,
        fires={of_lead("gradient_norm"): "1x60 20x20"},
        labels=OF_JOB,
        says="The gradient norm of job n/j is 20, more than 10 times its median of the last hour.",
        quiet=({of_lead("gradient_norm"): "1x60 9x20"},),
    ),
    Case(
        alert="LMTrainingStepsSkipped",
        at_minutes=45,
        fires={of_lead("skipped_steps_total"): "0x30 0+1x20"},
        labels=OF_JOB,
        says="Job n/j has skipped 14 bad batches within 30 minutes.",
        quiet=({of_lead("skipped_steps_total"): "90x30 95x20"},),
    ),
    Case(
        alert="LMTrainingRewinding",
        at_minutes=60,
        fires={of_lead("rewinds_total"): "0x30 1x10 2x40"},
        labels=OF_JOB,
        says="Job n/j has rewound 2 times within 2 hours.",
        quiet=({of_lead("rewinds_total"): "5x30 6x40"},),
    ),
)
STORAGE_CASES = (
    Case(
        alert="LMTrainingCheckpointFailing",
        at_minutes=20,
        fires={of_lead("checkpoint_failing"): "0x10 1x20"},
        labels=OF_JOB,
        says="The newest save of job n/j has failed for 5 minutes: a fault now costs all the work "
        "since the checkpoint before it.",
        quiet=({of_lead("checkpoint_failing"): "0x13 1x3 0x20"},),
    ),
    Case(
        alert="LMTrainingCheckpointStale",
        at_minutes=80,
        fires={
            of_lead("step_timestamp_seconds"): "0+60x100",
            of_lead("checkpoint_timestamp_seconds"): "600x100",
            of_lead("checkpoint_interval_seconds"): "600x100",
        },
        labels=OF_JOB,
        says="Job n/j has trained for 1h 10m 0s since its newest checkpoint: a fault now costs "
        "that much.",
        quiet=(
            {
                of_lead("step_timestamp_seconds"): "0+60x100",
                of_lead("checkpoint_timestamp_seconds"): "600x100",
            },
            {
                of_lead("step_timestamp_seconds"): "0+60x100",
                of_lead("checkpoint_timestamp_seconds"): "0x20 1200x20 2400x20 3600x40",
                of_lead("checkpoint_interval_seconds"): "600x100",
            },
        ),
    ),
    Case(  # every so many steps: what the job wants is not known here, so four hours
        alert="LMTrainingCheckpointStale",
        at_minutes=300,
        fires={
            of_lead("step_timestamp_seconds"): "0+60x300",
            of_lead("checkpoint_timestamp_seconds"): "600x300",
        },
        labels=OF_JOB,
        says="Job n/j has trained for 4h 50m 0s since its newest checkpoint: a fault now costs "
        "that much.",
        quiet=(),
    ),
    Case(
        alert="LMTrainingStorageFilling",
        at_minutes=15,
        fires={f"kubelet_volume_stats_available_bytes{{{CLAIM}}}": "5x20", **VOLUME, **ATTEMPT},
        labels={"namespace": "n", "persistentvolumeclaim": "c"},
        says="Claim n/c has 5% of its room left.",
        quiet=(
            {f"kubelet_volume_stats_available_bytes{{{CLAIM}}}": "20x20", **VOLUME, **ATTEMPT},
            {f"kubelet_volume_stats_available_bytes{{{CLAIM}}}": "5x20", **VOLUME},  # not of ours
        ),
    ),
)
DEVICE_CASES = (
    *(
        Case(
            alert="LMTrainingGpuXid",
            at_minutes=15,
            fires={
                **gpu("DCGM_FI_DEV_XID_ERRORS", "0x9 79x20", renamed=renamed),
                **ATTEMPT,
            },
            labels=OF_GPU,
            says="GPU 2 of node w1, held by job n/j, has reported XID 79.",
            quiet=(
                {**gpu("DCGM_FI_DEV_XID_ERRORS", "79x30", renamed=renamed), **ATTEMPT},  # long ago
                {
                    **gpu("DCGM_FI_DEV_XID_ERRORS", "0x9 79x20", renamed=renamed, pod="other"),
                    **ATTEMPT,
                },
            ),
        )
        for renamed in (True, False)
    ),
    *(
        Case(
            alert="LMTrainingGpuIdle",
            at_minutes=40,
            fires={**gpu("DCGM_FI_DEV_GPU_UTIL", "3x60", renamed=renamed), **ATTEMPT, **TRAINING},
            labels=OF_GPU,
            says="GPU 2 of node w1, held by job n/j, has been busy for 3% of the last 15 minutes.",
            quiet=(
                {**gpu("DCGM_FI_DEV_GPU_UTIL", "40x60", renamed=renamed), **ATTEMPT, **TRAINING},
                {**gpu("DCGM_FI_DEV_GPU_UTIL", "3x60", renamed=renamed), **ATTEMPT, **EVALUATING},
            ),
        )
        for renamed in (True, False)
    ),
)
CASES = (*OPERATOR_CASES, *PROGRESS_CASES, *STABILITY_CASES, *STORAGE_CASES, *DEVICE_CASES)
