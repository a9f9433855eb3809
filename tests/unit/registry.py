"""Every metric that a query may name, with its labels."""

from lmtraining_monitoring import foreign, state
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
#: By kube-state-metrics, of our jobs.
OF_STATE: dict[str, frozenset[str]] = {
    metric.full_name: metric.label_names for metric in state.METRICS
}
KNOWN: dict[str, frozenset[str]] = {**OURS, **OF_STATE, **foreign.METRICS}
