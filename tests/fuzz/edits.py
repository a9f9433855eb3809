"""How people change a job that exists, and how they take the change back."""

import copy
import random

from tests.contract_bounds import values_outside
from tests.contract_cases import Document
from tests.fuzz.specs import FIELDS, good_value, grown, put
from tests.fuzz.words import STRANGE

CHANGEABLE_BLOCKS = ("recovery", "deadlines", "requests", "suspend", "keepPodsSeconds")
CHANGEABLE = tuple(
    field
    for field in FIELDS
    if field.path[0] in CHANGEABLE_BLOCKS or field.path == ("checkpoint", "everySteps")
)
FIELDS_MAX = 4
GOOD_SHARE = 0.6
CHANGEABLE_SHARE = 0.5
RAISED_ONLY = "training"
"""Its budget can be raised and not lowered again, so it is no part of taking back."""


def edited(chance: random.Random, job: Document) -> Document:
    """The spec after an edit: good in itself and of what may change, or whatever it may be."""
    if chance.random() < GOOD_SHARE:
        tries = chance.randint(1, FIELDS_MAX)
        changed: Document = grown(chance, without_status(job), CHANGEABLE, tries=tries)["spec"]
        return changed
    changed = copy.deepcopy(job["spec"])
    field = chance.choice(CHANGEABLE if chance.random() < CHANGEABLE_SHARE else FIELDS)
    values = (*values_outside(field.schema), *STRANGE, good_value(chance, field.schema))
    put(changed, field.path, copy.deepcopy(chance.choice(values)))
    return changed


def without_status(job: Document) -> Document:
    """What a person wrote."""
    return {key: value for key, value in job.items() if key != "status"}


def taken_back(now: Document, before: Document) -> Document:
    """The spec as it was, but for what cannot go back."""
    return before | {RAISED_ONLY: now[RAISED_ONLY]}
