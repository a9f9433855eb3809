"""Stability: does the training hold, and what has the guard done about it?"""

from typing import Final

from grafana_foundation_sdk.models import units

from lmtraining_monitoring.boards.board import Board, Row, lines, number
from lmtraining_monitoring.boards.queries import MARKS, ONE, ONE_JOB, growth, median, value

SAMPLED: Final = "Sampled every 50 steps."

NOW: Final = Row(
    title="Now",
    panels=(
        number(
            "Stable",
            units.Bool,
            "No from a remedy until enough good steps follow.",
            value("stable"),
            width=6,
        ),
        number(
            "Skipped batches",
            units.Short,
            "Over all attempts.",
            value("skipped_steps_total"),
            width=6,
        ),
        number(
            "Rewinds",
            units.Short,
            "To a healthy checkpoint, over all attempts.",
            value("rewinds_total"),
            width=6,
        ),
        number(
            "Rate after rewinds",
            units.PercentUnit,
            "Of the schedule's: each rewind lowers it.",
            value("learning_rate_scale"),
            width=6,
        ),
    ),
)
LOSS: Final = Row(
    title="Loss and gradient beside what they were",
    panels=(
        lines(
            "Loss",
            units.NoUnit,
            "And its median of the last hour, and the line at which an alert fires.",
            {
                "loss": value("loss"),
                "median": median("loss", "1h"),
                "alert": f"1.5 * {median('loss', '1h')}",
            },
            width=12,
        ),
        lines(
            "Gradient norm",
            units.NoUnit,
            "Before clipping, and its median of the last hour.",
            {
                "norm": value("gradient_norm"),
                "median": median("gradient_norm", "1h"),
            },
            width=12,
            is_logarithmic=True,
        ),
    ),
)
GUARD: Final = Row(
    title="What the guard does",
    panels=(
        lines(
            "Bad batches skipped",
            units.Short,
            "Within ten minutes.",
            {"skipped": f"sum(increase(lmtraining_skipped_steps_total{{{ONE}}}[10m]))"},
            width=6,
        ),
        lines(
            "Gradients clipped",
            units.PercentUnit,
            "Share of steps whose gradient was cut further than gradientClipNorm asks.",
            {
                "clipped": f"{growth('clipped_steps_total')} "
                f"/ (max(deriv(lmtraining_step{{{ONE}}}[$__rate_interval])) > 0)"
            },
            width=6,
        ),
        lines(
            "Rewinds",
            units.Short,
            "Over all attempts.",
            {"rewinds": value("rewinds_total")},
            width=6,
        ),
        lines(
            "Finite",
            units.Bool,
            "0 while the newest loss is not a number.",
            {"finite": value("loss_is_finite")},
            width=6,
        ),
    ),
)
SIGNS: Final = Row(
    title="Signs that come before",
    panels=(
        lines(
            "Size of an update beside the weights",
            units.NoUnit,
            f"About 0.001 is usual. {SAMPLED}",
            {"ratio": value("update_ratio")},
            is_logarithmic=True,
        ),
        lines(
            "Adam's update before the rate",
            units.NoUnit,
            "Its root mean square; above 1 the second moment "
            f"is older than the gradients. {SAMPLED}",
            {"update": value("update_rms")},
        ),
        lines(
            "Weights that epsilon swallows",
            units.PercentUnit,
            f"Share whose second moment is below Adam's epsilon: they hardly learn. {SAMPLED}",
            {"share": value("swallowed_share")},
        ),
        lines(
            "Attention logits",
            units.NoUnit,
            f"No logit was larger than this. {SAMPLED}",
            {"bound": value("attention_logit_bound")},
            is_logarithmic=True,
        ),
        lines(
            "Activations",
            units.NoUnit,
            f"Largest that one block gave to the next. {SAMPLED}",
            {"largest": value("activation_max")},
            is_logarithmic=True,
        ),
        lines(
            "Gradient noise scale",
            units.Short,
            f"Tokens; a larger batch than this brings little. {SAMPLED}",
            {"tokens": value("noise_scale_tokens")},
            is_logarithmic=True,
        ),
    ),
)
BOARD: Final = Board(
    uid="lmtraining-stability",
    title="Training / Stability",
    description="One job: does the training hold, and what has the guard done about it?",
    variables=ONE_JOB,
    rows=(NOW, LOSS, GUARD, SIGNS),
    marks=MARKS,
)
