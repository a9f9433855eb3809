"""Where it is trained: pods, devices, storage, and how faults are answered.

Promise: what is accepted here makes pods and volumes that the API server accepts too.
Trap avoided: a size without its unit ("memory: 2") is two bytes to Kubernetes; it is refused with
the unit to write.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmtraining_api.base import Rule, SpecModel, Term, value_at
from lmtraining_api.exits import FailureClass
from lmtraining_api.fields import (
    IMAGE_PATTERN,
    NODE_CONDITION_PATTERN,
    QUANTITY_PATTERN,
    REASON_PATTERN,
    UPWARDS_PATTERN,
    USERINFO_PATTERN,
    ObjectName,
    Quantity,
    RelativePath,
    Uri,
    matches,
    quantity_value,
)
from lmtraining_api.optimization import STEPS_MAX
from lmtraining_api.training import Credentials

_MEMORY = ("16Mi", "64Ti")
_SHARED_MEMORY = ("1Mi", "64Ti")
#: Sizes as people write them elsewhere: 2GB, 2GiB, 2gb, 2g; and 512m, half a byte to Kubernetes.
_ALMOST_A_SIZE = r"^[0-9]+(\.[0-9]+)?([mgt]i?|[MGTmgt][Ii]?[Bb])$"


def _quantity(
    field: str, bounds: tuple[str, str], *, write: str, terms: Mapping[str, Term] | None = None
) -> Rule:
    """A quantity within bounds; Kubernetes itself would take 0 or a size without its unit."""
    return Rule(
        cel=_is_between_cel(field, bounds),
        message=f"{field} {{{field}}} is not a quantity from {bounds[0]} to {bounds[1]}: "
        f"write {write}",
        check=lambda m: _is_between(m, field, bounds),
        at=field,
        terms=terms or {},
    )


def _size(field: str, bounds: tuple[str, str], *, example: str) -> Rule:
    """A quantity of bytes, with the unit to write where it can be guessed."""
    text, otherwise = f"string(self.{field})", f"a size with its unit, such as {example}"
    number, unit = f"{text}.find('^[0-9.]+')", f"{text}.upperAscii().find('[MGT]')"
    guess = f"{number} + {unit} + ' or ' + {number} + {unit} + 'i'"
    advice = Term(
        cel=f"({text}.matches(r'{_ALMOST_A_SIZE}') ? {guess} : '{otherwise}')",
        value=lambda m: _size_meant(str(value_at(m, field))) or otherwise,
    )
    return _quantity(field, bounds, write="{advice}", terms={"advice": advice})


def _size_meant(text: str) -> str | None:
    """2G or 2Gi for 2GB; None for what is not nearly a size."""
    if not matches(_ALMOST_A_SIZE, text):
        return None
    size = text.rstrip("iIbB")
    return f"{size.upper()} or {size.upper()}i"


def _is_between_cel(field: str, bounds: tuple[str, str]) -> str:
    text = f"string(self.{field})"
    low, high = (f"quantity({text}).compareTo(quantity('{bound}'))" for bound in bounds)
    return f"({text}.matches(r'{QUANTITY_PATTERN}') && {low} >= 0 && {high} <= 0)"


def _is_between(model: SpecModel, path: str, bounds: tuple[str, str]) -> bool:
    if not matches(QUANTITY_PATTERN, str(value_at(model, path))):
        return False
    low, high = map(quantity_value, bounds)
    return low <= _amount(model, path) <= high


def _amount(model: SpecModel, path: str) -> Decimal:
    return quantity_value(str(value_at(model, path)))


class Accelerator(SpecModel):
    """Devices of one replica."""

    resource: Literal["nvidia.com/gpu", "amd.com/gpu"] = "nvidia.com/gpu"
    """Extended resource of the device plugin."""
    count: int = Field(ge=1, le=64)
    """Devices, and so ranks, per replica."""


class Resources(SpecModel):
    """Compute resources of one replica; requests equal limits."""

    cpu: Quantity = "1"
    """CPU cores, such as 2 or 500m."""
    memory: Quantity = "2Gi"
    """Memory, such as 2Gi, including sharedMemory."""

    rules: ClassVar = (
        _quantity("cpu", ("1m", "1024"), write="cores, such as 2 or 500m"),
        _size("memory", _MEMORY, example="2Gi"),
    )


class Workers(SpecModel):
    """The pods that train."""

    replicas: int = Field(default=1, ge=1, le=512)
    """Number of pods."""
    ranks_per_replica: int | None = Field(default=None, ge=1, le=64)
    """Processes per pod. Left out: one per accelerator, or one on a CPU."""
    accelerator: Accelerator | None = None
    """Devices per pod; left out: CPU."""
    resources: Resources = Resources()
    """CPU and memory per pod."""
    shared_memory: Quantity = "512Mi"
    """Size limit of /dev/shm, such as 512Mi, counted in memory as it is used."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Trainer image; left out: the one the operator was installed with."""
    service_account_name: ObjectName | None = None
    """Service account for a cloud identity; its API-server token is never mounted."""

    rules: ClassVar = (
        Rule(
            cel="!has(self.accelerator) || !has(self.ranksPerReplica) || "
            "self.ranksPerReplica == self.accelerator.count",
            message="ranksPerReplica {ranksPerReplica} differs from accelerator.count "
            "{accelerator.count}, and each device gets one rank: remove ranksPerReplica",
            check=lambda w: (
                w.accelerator is None or w.ranks_per_replica in (None, w.accelerator.count)
            ),
            at="ranksPerReplica",
        ),
        _size("sharedMemory", _SHARED_MEMORY, example="512Mi"),
        Rule(  # of sizes that are good each by itself: said once is enough
            cel=f"!{_is_between_cel('resources.memory', _MEMORY)} || "
            f"!{_is_between_cel('sharedMemory', _SHARED_MEMORY)} || "
            "quantity(string(self.sharedMemory))"
            ".compareTo(quantity(string(self.resources.memory))) <= 0",
            message="sharedMemory {sharedMemory} is larger than resources.memory "
            "{resources.memory}, in which it counts: lower it or raise resources.memory",
            check=lambda w: (
                not _is_between(w, "resources.memory", _MEMORY)
                or not _is_between(w, "sharedMemory", _SHARED_MEMORY)
                or _amount(w, "sharedMemory") <= _amount(w, "resources.memory")
            ),
            at="sharedMemory",
        ),
        Rule(
            cel=f"!has(self.image) || self.image.matches(r'{IMAGE_PATTERN}')",
            message="image {image} is not the name of an image: write host/path:tag, with a "
            "lower-case path and without spaces",
            check=lambda w: matches(IMAGE_PATTERN, w.image),
            at="image",
        ),
    )

    @property
    def ranks_each(self) -> int:
        """Ranks per replica, resolved."""
        if self.accelerator is not None:
            return self.accelerator.count
        return self.ranks_per_replica or 1

    @property
    def world_size(self) -> int:
        """Ranks of the whole job."""
        return self.replicas * self.ranks_each


class Claim(SpecModel):
    """A volume made for this job, named <job>-checkpoints, and kept when the job is deleted."""

    size: Quantity = "10Gi"
    """Requested capacity, such as 10Gi."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] | None = None
    """Left out: ReadWriteOnce for one replica; more than one need ReadWriteMany."""
    storage_class_name: ObjectName | None = None
    """Storage class; left out: the cluster's default."""

    rules: ClassVar = (_size("size", ("1Mi", "64Ti"), example="10Gi"),)


#: One place in an object store: no wildcard, and none of fsspec's chains (simplecache::s3://…).
_PLACE = r"^[a-z][a-z0-9+.-]*://[^*?#\[\]\s]+$"
_NOT_SHARED = r"^(file|local|memory|data|https?|ftp)://"


class Storage(SpecModel):
    """Where checkpoints live: exactly one of claim, existingClaim and uri."""

    claim: Claim | None = None
    """A volume made for this job."""
    existing_claim: ObjectName | None = None
    """Name of a PersistentVolumeClaim in the job's namespace."""
    uri: Uri | None = None
    """An object store and a path in it, by an fsspec URI (s3://bucket/team, gs://bucket/team). Each
    pod trains beside a copy on its own scratch space; what counts is in the store."""
    credentials: Credentials | None = None
    """Secret for uri. Left out: what the pod finds by itself (workers.serviceAccountName)."""

    rules: ClassVar = (
        Rule(
            cel="[has(self.claim), has(self.existingClaim), has(self.uri)]"
            ".filter(given, given).size() == 1",
            message="storage needs exactly one of claim, existingClaim and uri: keep one of them",
            check=lambda s: sum(one is not None for one in (s.claim, s.existing_claim, s.uri)) == 1,
        ),
        Rule(
            cel=f"!has(self.uri) || self.uri.matches(r'{_PLACE}')",
            message="uri is not one place in an object store: write s3://bucket/path, "
            "gs://bucket/path or another fsspec URI, without wildcards",
            check=lambda s: matches(_PLACE, s.uri),
            at="uri",
        ),
        Rule(
            cel=f"!has(self.uri) || !self.uri.matches(r'{_NOT_SHARED}')",
            message="uri names what not every pod can write: write s3://bucket/path or "
            "gs://bucket/path, or use claim for a volume",
            check=lambda s: s.uri is None or not matches(_NOT_SHARED, s.uri),
            at="uri",
        ),
        Rule(
            cel=f"!has(self.uri) || !self.uri.matches(r'{UPWARDS_PATTERN}')",
            message="uri climbs with '..': write the path it ends at",
            check=lambda s: s.uri is None or not matches(UPWARDS_PATTERN, s.uri),
            at="uri",
        ),
        Rule(
            cel=f"!has(self.uri) || !self.uri.matches('{USERINFO_PATTERN}')",
            message="uri holds a password, which everyone who may read the job would see: put it "
            "in a Secret and name that in credentials.secretRef",
            check=lambda s: s.uri is None or not matches(USERINFO_PATTERN, s.uri),
            at="uri",
        ),
        Rule(
            cel="!has(self.credentials) || has(self.uri)",
            message="credentials has no effect on a claim: remove credentials, or set uri",
            check=lambda s: s.credentials is None or s.uri is not None,
            at="credentials",
        ),
    )


class Checkpoint(SpecModel):
    """How progress is kept."""

    storage: Storage = Storage(claim=Claim())
    """Where checkpoints live."""
    path: RelativePath | None = None
    """Run directory below runs/ of the storage. Left out: one of its own, <name>-<start of UID>,
    so that a job made again starts afresh."""
    existing_run: Literal["Refuse", "Resume"] = "Refuse"
    """What to do when path already holds the run of another job that has ended."""
    every_steps: int | None = Field(default=None, ge=1, le=STEPS_MAX)
    """Steps between checkpoints. Left out: chosen while training, from what a save costs and how
    often the ranks of this run fail; at most five minutes, unless saving would then take more than
    a twentieth of the time."""
    keep_last: int = Field(default=3, ge=1, le=1000)
    """Newest intact checkpoints to keep. More may lie there: the newest healthy one and the one
    that will be healthy next, for a rewind; those of keepBest and keepEverySteps."""
    keep_best: int = Field(default=1, ge=0, le=1000)
    """Checkpoints to keep for the lowest validation losses, beyond keepLast; only those count whose
    step was validated. Each that is not among the newest costs the disk of one more."""
    keep_every_steps: int | None = Field(default=None, ge=1, le=STEPS_MAX)
    """At every multiple of so many steps a checkpoint is made and kept for ever. Left out: none."""
    writer_share: float | None = Field(default=None, gt=0, le=1.0)
    """Share of one core that rank 0, or with layout fsdp each rank, may spend on writing a
    checkpoint while the training goes on. Left out: 0.08 on CPUs, which the training needs itself,
    and 1 beside an accelerator."""

    rules: ClassVar = (
        Rule(
            cel="self.existingRun == 'Refuse' || has(self.path)",
            message="existingRun {existingRun} needs path, the run directory to go on from: set "
            "path",
            check=lambda c: c.existing_run == "Refuse" or c.path is not None,
            at="existingRun",
        ),
    )


class RecoveryRule(SpecModel):
    """What to do about failures of one kind. One matches where everything that is given does."""

    failure_class: FailureClass = Field(strict=False)  # its words are the text of JSON
    """Class of the failure, as in status.lastFailure.failureClass."""
    reason: Annotated[str, Field(pattern=REASON_PATTERN, min_length=1, max_length=64)] | None = None
    """Its reason, such as RankRaised."""
    exit_code: int | None = Field(default=None, ge=0, le=255)
    """Exit code of the container."""
    message: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A part of its message."""
    node_condition: (
        Annotated[str, Field(pattern=NODE_CONDITION_PATTERN, min_length=1, max_length=316)] | None
    ) = None
    """What was wrong with its node, as in status.lastFailure.nodeConditions, such as Ready or
    GpuMemWatch. Only where the operator may read nodes."""
    action: Literal["Retry", "RetryElsewhere", "Fail"]
    """Retry: try again, also where that is not done otherwise. RetryElsewhere: and keep away from
    the node that it happened on. Fail: end the job at once."""
    restarts_max: int | None = Field(default=None, ge=0, le=1000)
    """A budget of its own: so many new attempts and replaced pods after failures of this class.
    Left out: they spend recovery.restartsMax."""

    rules: ClassVar = (
        Rule(
            cel="self.action != 'Fail' || !has(self.restartsMax)",
            message="restartsMax {restartsMax} has no effect with action Fail: remove it, or set "
            "action to Retry",
            check=lambda r: r.action != "Fail" or r.restarts_max is None,
            at="restartsMax",
        ),
    )


class Recovery(SpecModel):
    """How faults are answered."""

    restarts_max: int = Field(default=3, ge=0, le=1000)
    """New attempts and replaced pods after faults of the job itself; preemption, drain and eviction
    do not count."""
    backoff_seconds: int = Field(default=1, ge=0, le=3600)
    """Wait before the first of them; it doubles with each, up to backoffSecondsMax."""
    backoff_seconds_max: int = Field(default=60, ge=0, le=86400)
    """Longest wait before a new attempt or pod."""
    grace_seconds: int = Field(default=60, ge=1, le=86400)
    """Time that a pod told to stop has to save a checkpoint; a change is for pods made after it."""
    gang_timeout_seconds: int = Field(default=600, ge=30, le=86400)
    """How long pods hold their places while others of the gang find none, or while a replaced pod
    does not start; then all are released, and tried again later."""
    failure_rules: list[RecoveryRule] = Field(default=[], max_length=16, alias="rules")
    """What to do otherwise than usual; the first that matches holds. Only for failures that come to
    the operator: what the ranks mend in a new round does not."""

    rules: ClassVar = (
        Rule(
            cel="self.backoffSeconds <= self.backoffSecondsMax",
            message="backoffSeconds {backoffSeconds} is above backoffSecondsMax "
            "{backoffSecondsMax}: lower it or raise the limit",
            check=lambda r: r.backoff_seconds <= r.backoff_seconds_max,
            at="backoffSeconds",
        ),
    )
