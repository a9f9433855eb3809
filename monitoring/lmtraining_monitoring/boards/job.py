"""Job: how far is it, does it learn, and where does its time go?"""

from typing import Final

from grafana_foundation_sdk.models import units

from lmtraining_monitoring.boards.board import Board, Row, lines, number
from lmtraining_monitoring.boards.queries import (
    MARKS,
    ONE,
    ONE_JOB,
    growth,
    median,
    time_by_cause,
    value,
)

NOW: Final = Row(
    title="Now",
    panels=(
        number(
            "State",
            units.NoUnit,
            "What the pods do; several where they differ.",
            f"sum by (state) (lmtraining_state{{{ONE}}}) > 0",
            legend="{{state}}",
            is_text=True,
        ),
        number(
            "Progress",
            units.PercentUnit,
            "Steps done of the budget's.",
            f"{value('step')} / {value('step_budget')}",
        ),
        number("Time left", units.DurationSeconds, "At the present speed.", value("eta_seconds")),
        number(
            "Goodput",
            units.PercentUnit,
            "Share of the wall time in steps of the model, since it began.",
            value("goodput_ratio"),
        ),
        number(
            "Checkpoint age",
            units.Seconds,
            "What a fault would cost now.",
            f"time() - {value('checkpoint_timestamp_seconds')}",
        ),
        number(
            "Attempt",
            units.NoUnit,
            "Gangs of pods so far; rounds within it are on the curve below.",
            value("attempt"),
        ),
    ),
)
LEARNING: Final = Row(
    title="Does it learn?",
    panels=(
        lines(
            "Loss",
            units.NoUnit,
            "Nats per token. A gap: not finite, or not known. The unigram model is "
            "what knowing only the frequency of tokens would reach.",
            {
                "training": value("loss"),
                "validation": value("validation_loss"),
                "unigram": value("unigram_loss"),
            },
            width=9,
        ),
        lines(
            "Labels",
            units.PercentUnit,
            "Where the task has labels: validation examples that were said rightly, and F1.",
            {"accuracy": value("validation_accuracy"), "F1": value("validation_f1")},
            width=5,
        ),
        lines(
            "Learning rate",
            units.NoUnit,
            "Of the newest step.",
            {"rate": value("learning_rate")},
            width=5,
        ),
        lines(
            "Gradient norm",
            units.NoUnit,
            "Before clipping.",
            {"norm": value("gradient_norm")},
            width=5,
            is_logarithmic=True,
        ),
    ),
)
SPEED: Final = Row(
    title="How fast is it?",
    panels=(
        lines(
            "Throughput",
            units.Short,
            "Tokens per second of all ranks, and the median of six hours.",
            {
                "now": value("tokens_per_second"),
                "median": median("tokens_per_second", "6h"),
            },
            width=6,
        ),
        lines(
            "MFU",
            units.PercentUnit,
            "Model FLOP/s utilisation: share of the devices' dense peak that the model takes. "
            "docs/goodput.md has the formula and the peaks.",
            {"now": value("mfu_ratio")},
            width=6,
            empty="not known: a CPU, or a device without an entry in the table of peaks",
        ),
        lines(
            "Step time",
            units.Seconds,
            "Wall time per step, all pauses included.",
            {"step": f"1 / (max(deriv(lmtraining_step{{{ONE}}}[$__rate_interval])) > 0)"},
            width=6,
        ),
        lines(
            "Tokens",
            units.Short,
            "Seen so far, without replays.",
            {"tokens": value("tokens_total")},
            width=6,
        ),
        lines(
            "Where the time goes",
            units.PercentUnit,
            "Share of each cause; productive is what makes the "
            "model. docs/goodput.md has the causes.",
            {"{{cause}}": time_by_cause()},
            is_stacked=True,
        ),
        lines(
            "Waiting for data",
            units.PercentUnit,
            "Share of the time in which the next batch was not there.",
            {
                "waiting": f'clamp_min(sum(deriv(lmtraining_run_seconds{{{ONE}, cause="data_wait"}}'
                "[$__rate_interval])), 0)"
            },
        ),
        lines(
            "Pods by state",
            units.Short,
            "What the supervisors say.",
            {"{{state}}": f"sum by (state) (lmtraining_state{{{ONE}}}) > 0"},
            is_stacked=True,
        ),
    ),
)
SAFETY: Final = Row(
    title="What would a fault cost?",
    panels=(
        lines(
            "Checkpoints",
            units.Short,
            "Step now, of the newest intact and of the newest healthy one.",
            {
                "step": value("step"),
                "intact": value("checkpoint_step"),
                "healthy": value("checkpoint_healthy_step"),
            },
        ),
        lines(
            "Age and interval",
            units.Seconds,
            "Without checkpoint.everySteps the trainer chooses the "
            "interval from what a save costs and how often ranks die.",
            {
                "age": f"time() - {value('checkpoint_timestamp_seconds')}",
                "interval": value("checkpoint_interval_seconds"),
            },
        ),
        lines(
            "Cost of saving and loading",
            units.Seconds,
            "What a save takes from the loop, and the last load.",
            {"save": value("checkpoint_cost_seconds"), "load": value("checkpoint_load_seconds")},
        ),
        lines(
            "Size",
            units.BytesIEC,
            "Of the newest checkpoint.",
            {"checkpoint": value("checkpoint_size_bytes")},
            width=6,
        ),
        lines(
            "Saves that fail",
            units.Bool,
            "1 while the newest save has failed.",
            {"failing": value("checkpoint_failing"), "no room": value("storage_is_full")},
            width=6,
        ),
        lines(
            "Attempts and rounds",
            units.Short,
            "A round starts the ranks anew inside their pods.",
            {"attempt": value("attempt"), "round": value("round")},
            width=6,
        ),
        lines(
            "Work done again",
            units.Short,
            "Steps that this attempt has repeated.",
            {"steps": value("replayed_steps")},
            width=6,
        ),
    ),
)
RANKS: Final = Row(
    title="Is one rank slower than the others?",
    panels=(
        lines(
            "Speed beside the fastest",
            units.PercentUnit,
            "Of what each rank does alone in a step, the ten slowest; all wait for the slowest.",
            {"rank {{rank}}": f"bottomk(10, min by (rank) (lmtraining_rank_score{{{ONE}}}))"},
            width=12,
            empty="one rank, or not yet compared",
        ),
        lines(
            "Sign of life",
            units.Seconds,
            "Time since the last one, the ten oldest.",
            {
                "rank {{rank}}": "topk(10, max by (rank) "
                f"(lmtraining_rank_heartbeat_age_seconds{{{ONE}}}))"
            },
            width=12,
        ),
        lines(
            "Time by state",
            units.PercentUnit,
            "Of the pods' supervisors, on average.",
            {"{{state}}": f"{growth('state_seconds_total', by='state')} > 0"},
            width=24,
            is_stacked=True,
        ),
    ),
)
BOARD: Final = Board(
    uid="lmtraining-job",
    title="Training / Job",
    description="One job: how far is it, does it learn, and where does its time go?",
    variables=ONE_JOB,
    rows=(NOW, LEARNING, SPEED, SAFETY, RANKS),
    marks=MARKS,
)
