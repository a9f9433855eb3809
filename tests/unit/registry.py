"""Every metric that a query may name, with its labels."""

from lmtraining_monitoring import foreign
from lmtraining_operator import metrics as operator
from lmtraining_trainer import metrics as trainer

OURS: dict[str, frozenset[str]] = {
    **{
        name: frozenset({*metric.labels, *(["le"] if name.endswith("_bucket") else [])})
        for metric in operator.METRICS
        for name in metric.sample_names
    },
    **{
        name: frozenset({*metric.labels, *trainer.COMMON_LABELS})
        for metric in trainer.METRICS
        for name in metric.sample_names
    },
}
KNOWN: dict[str, frozenset[str]] = {**OURS, **foreign.METRICS}
