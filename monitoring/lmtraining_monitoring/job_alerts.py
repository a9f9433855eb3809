"""Alerts on the jobs: do they move, learn, save, and use what they hold?

Promise: they need the trainers' metrics, and not the operator; those on devices and volumes say
which exporter of others they need. Trap avoided: a pod's series begin anew with each pod, so all
are asked by job.
"""

from typing import Final

from lmtraining_monitoring.alert import A_JOB, JOB, THE_JOB, Alert
from lmtraining_monitoring.foreign import of_device, of_job

GPU = f"GPU {{{{ $labels.gpu }}}} of node {{{{ $labels.Hostname }}}}, held by {THE_JOB},"


def by_gpu(expr: str) -> str:
    """A query on NVIDIA's exporter, for the devices of our jobs alone."""
    return f"max by ({JOB}, pod, gpu, Hostname) (\n  {of_job(of_device(expr))}\n)"


PROGRESS: Final = (
    Alert(
        name="LMTrainingJobNoProgress",
        severity="warning",
        minutes=5,
        summary="A job trains, and no step has ended for 15 minutes.",
        description=f"{A_JOB} has ended no step for {{{{ $value | humanizeDuration }}}}.",
        expr=f"""
            time() - max by ({JOB}) (lmtraining_step_timestamp_seconds) > 900
              and max by ({JOB}) (lmtraining_state{{state="Training"}}) == 1
        """,
    ),
    Alert(
        name="LMTrainingJobRestartLoop",
        severity="warning",
        minutes=0,
        summary="A job starts again and again.",
        description=f"{A_JOB} has started its ranks anew {{{{ $value }}}} times within an hour.",
        # Rounds begin at 1 with each attempt: that step down is no start of its own.
        expr=f"""
            changes((max by ({JOB}) (lmtraining_attempt))[1h:1m])
              + changes((max by ({JOB}) (lmtraining_round))[1h:1m])
              - resets((max by ({JOB}) (lmtraining_round))[1h:1m])
              > 4
        """,
    ),
    Alert(
        name="LMTrainingGoodputLow",
        severity="info",
        minutes=30,
        summary="Less than half of a job's time goes into steps.",
        description=f"{A_JOB} has put {{{{ $value | humanizePercentage }}}} of the last "
        "hour into steps of the model.",
        expr=f"""
            sum by ({JOB}) (delta(lmtraining_run_seconds{{cause="productive"}}[1h]))
              / sum by ({JOB}) (delta(lmtraining_run_seconds{{cause!="stopped"}}[1h]))
              < 0.5
        """,
    ),
    Alert(
        name="LMTrainingThroughputLow",
        severity="warning",
        minutes=15,
        summary="A job has become slower than it was.",
        description=f"{A_JOB} sees {{{{ $value | humanize }}}} tokens a second, less than "
        "70% of its median of the last 6 hours.",
        expr=f"""
            max by ({JOB}) (avg_over_time(lmtraining_tokens_per_second[10m]))
              < 0.7 * max by ({JOB}) (
                quantile_over_time(0.5, lmtraining_tokens_per_second[6h] offset 10m)
              )
        """,
    ),
    Alert(
        name="LMTrainingDataStarved",
        severity="warning",
        minutes=15,
        summary="A job waits for data.",
        description=f"{A_JOB} has spent {{{{ $value | humanizePercentage }}}} of the last "
        "30 minutes waiting for its next batch.",
        expr=f"""
            sum by ({JOB}) (delta(lmtraining_run_seconds{{cause="data_wait"}}[30m]))
              / sum by ({JOB}) (delta(lmtraining_run_seconds{{cause!="stopped"}}[30m]))
              > 0.2
        """,
    ),
    Alert(
        name="LMTrainingStraggler",
        severity="warning",
        minutes=10,
        summary="One rank is much slower than the fastest.",
        description="Rank {{ $labels.rank }} of "
        f"{THE_JOB} works at {{{{ $value | humanizePercentage }}}} of the speed of "
        "the fastest, and all wait for it.",
        expr=f"min by ({JOB}, rank) (lmtraining_rank_score) < 0.7",
    ),
)
STABILITY: Final = (
    Alert(
        name="LMTrainingLossNotFinite",
        severity="warning",
        minutes=5,
        summary="The loss of a job is not a number.",
        description=f"The loss of {THE_JOB} has not been finite for 5 minutes.",
        expr=f"min by ({JOB}) (lmtraining_loss_is_finite) == 0",
    ),
    Alert(
        name="LMTrainingLossSpike",
        severity="warning",
        minutes=5,
        summary="The loss of a job is far above what it was.",
        description=f"The loss of {THE_JOB} is {{{{ $value | humanize }}}}, more than "
        "1.5 times its median of the last hour.",
        expr=f"""
            max by ({JOB}) (
              lmtraining_loss > 1.5 * quantile_over_time(0.5, lmtraining_loss[1h])
            )
        """,
    ),
    Alert(
        name="LMTrainingGradientNormHigh",
        severity="warning",
        minutes=5,
        summary="The gradient norm of a job is far above what it was.",
        description=f"The gradient norm of {THE_JOB} is {{{{ $value | humanize }}}}, "
        "more than 10 times its median of the last hour.",
        expr=f"""
            max by ({JOB}) (
              lmtraining_gradient_norm > 10 * quantile_over_time(0.5, lmtraining_gradient_norm[1h])
            )
        """,
    ),
    Alert(
        name="LMTrainingStepsSkipped",
        severity="warning",
        minutes=0,
        summary="A job skips many batches.",
        description=f'{A_JOB} has skipped {{{{ $value | printf "%.0f" }}}} bad batches '
        "within 30 minutes.",
        expr=f"sum by ({JOB}) (increase(lmtraining_skipped_steps_total[30m])) > 5",
    ),
    Alert(
        name="LMTrainingRewinding",
        severity="warning",
        minutes=0,
        summary="A job has gone back to a checkpoint more than once.",
        description=f'{A_JOB} has rewound {{{{ $value | printf "%.0f" }}}} times within 2 hours.',
        expr=f"round(sum by ({JOB}) (increase(lmtraining_rewinds_total[2h]))) > 1",
    ),
)
STORAGE: Final = (
    Alert(
        name="LMTrainingCheckpointFailing",
        severity="critical",
        minutes=5,
        summary="A job cannot save.",
        description=f"The newest save of {THE_JOB} has failed for 5 minutes: a fault "
        "now costs all the work since the checkpoint before it.",
        expr=f"max by ({JOB}) (lmtraining_checkpoint_failing) == 1",
    ),
    Alert(
        name="LMTrainingCheckpointStale",
        severity="warning",
        minutes=30,
        summary="The newest checkpoint of a job is older than it should be.",
        description=f"{A_JOB} has trained for {{{{ $value | humanizeDuration }}}} since its "
        "newest checkpoint: a fault now costs that much.",
        expr=f"""
            max by ({JOB}) (lmtraining_step_timestamp_seconds)
              - max by ({JOB}) (lmtraining_checkpoint_timestamp_seconds)
              > (
                2 * max by ({JOB}) (lmtraining_checkpoint_interval_seconds) + 600
                or max by ({JOB}) (lmtraining_step_timestamp_seconds) * 0 + 14400
              )
        """,
    ),
    Alert(
        name="LMTrainingStorageFilling",
        severity="warning",
        minutes=5,
        summary="The volume of a job's checkpoints is nearly full.",
        description="Claim {{ $labels.namespace }}/{{ $labels.persistentvolumeclaim }} has "
        "{{ $value | humanizePercentage }} of its room left.",
        expr="""
            kubelet_volume_stats_available_bytes / kubelet_volume_stats_capacity_bytes < 0.1
              and on (namespace, persistentvolumeclaim) (
                kube_pod_spec_volumes_persistentvolumeclaims_info
                  and on (namespace, pod) lmtraining_attempt
              )
        """,
    ),
)
DEVICES: Final = (
    Alert(
        name="LMTrainingGpuXid",
        severity="warning",
        minutes=0,
        summary="A GPU of a job has reported an error.",
        description=f"{GPU} has reported XID {{{{ $value }}}}.",
        expr=by_gpu(
            "(DCGM_FI_DEV_XID_ERRORS{SELECTOR} > 0 "
            "and changes(DCGM_FI_DEV_XID_ERRORS{SELECTOR}[15m]) > 0)"
        ),
    ),
    Alert(
        name="LMTrainingGpuIdle",
        severity="warning",
        minutes=15,
        summary="A GPU is idle while its job trains.",
        description=f'{GPU} has been busy for {{{{ $value | printf "%.0f" }}}}% of the last 15 '
        "minutes.",
        expr=by_gpu("avg_over_time(DCGM_FI_DEV_GPU_UTIL{SELECTOR}[15m])")
        + ' < 10\n  and on (namespace, pod) lmtraining_state{state="Training"} == 1',
    ),
)
ALERTS: Final = (*PROGRESS, *STABILITY, *STORAGE, *DEVICES)
