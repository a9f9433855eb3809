"""Drawn jobs in the hands of the real operator: asked for, handled, edited, the edit taken back,
and at last their status written over by hand.

Promise: each accepted job comes to a state that somebody can understand: its pods run, it is
suspended, it has ended by its deadline, or a condition says what it waits for; and a wish that was
taken back leaves it as it was, with the same pods (P10, P12). Trap avoided: to take a job for
handled because nothing has gone wrong yet.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from devcluster.errors import DevclusterError
from devcluster.waiting import wait_until
from lmtraining_api import names as api
from lmtraining_api.job import LMTrainingJob, TrainingSpec
from lmtraining_api.records import JobFile
from lmtraining_api.status import Succeeded
from lmtraining_api.wishes import Wishes
from tests.api.conftest import Answer, Jobs
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Stage
from tests.contract_cases import Document
from tests.fuzz.edits import edited, taken_back
from tests.fuzz.judge import CREATED, OK, about_refusal, complaints
from tests.fuzz.specs import Case, case
from tests.fuzz.states import (
    GOOD_STATES,
    RUNNING,
    intent,
    is_only_asked,
    is_seen,
    state_of,
    troubles,
)
from tests.fuzz.told import status_by_hand
from tests.fuzz.words import SECRET, TEXTS

BATCH = 25
SETTLE_SECONDS_MAX = 30.0
POLL_SECONDS = 0.1
GARBLED = (None, "{}", *TEXTS)
KEEP_SECONDS = 10_000_000
JSON_PATCH = "application/json-patch+json"


@dataclass
class Tally:
    """What came of the jobs."""

    counts: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Life:
    """A job that was accepted, and how it stands."""

    case: Case
    state: str
    pods: tuple[Document, ...]

    @property
    def name(self) -> str:
        return name_of(self.case)

    def pod_uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods}

    def wishes(self) -> list[Wishes]:
        """What each pod is told to do, whatever the generation and a budget that was raised."""
        same = {"generation": 1, "budget_steps": 1}
        told = [intent(pod) for pod in self.pods]
        return [one.wishes.model_copy(update=same) for one in told if one and one.wishes]


class World:
    """One namespace with a real operator in it; the kubelet is played."""

    def __init__(self, stage: Stage, jobs: Jobs, operator: OperatorProcess, seed: int) -> None:
        self._stage = stage
        self._jobs = jobs
        self._operator = operator
        self._seed = seed
        self._lines_read = 0
        self.tally = Tally()

    def live_through(
        self, numbers: Sequence[int], say: Callable[[int], None] = lambda _: None
    ) -> Tally:
        for first in range(0, len(numbers), BATCH):
            batch = numbers[first : first + BATCH]
            self._batch([case(self._seed, number) for number in batch])
            say(batch[-1])
        return self.tally

    def _batch(self, cases: list[Case]) -> None:
        accepted = [one for one in cases if self._ask(one)]
        made = self._settled(accepted)
        for life in made:
            self.tally.states[life.state] += 1
            self._judge_children(life)
            self._garble(life)
        changed = [(life, spec) for life in made if (spec := self._edit(life)) is not None]
        self._settled([life.case for life in made])
        for life, spec in changed:
            self._take_back(life, spec)
        after = {life.name: life for life in self._settled([life.case for life, _ in changed])}
        for before, _ in changed:
            if before.name in after:
                self._judge_healed(before, after[before.name])
        self._judge_secrets()
        self._write_over([life.case for life in made])
        self._judge_operator()
        self._clear()

    def _complain(self, one: Case, sentences: Iterable[str]) -> None:
        who = f"job {one.number} of seed {self._seed}, {'; '.join(one.wrongs) or 'a good one'}"
        self.tally.complaints += [f"{who}: {text}" for text in sentences]

    # --- asked for ------------------------------------------------------------------------------

    def _ask(self, one: Case) -> bool:
        """Whether it is there now."""
        is_dry = is_only_asked(one.document)
        query = [*(["dryRun=All"] if is_dry else []), *(["fieldValidation=Strict"] * one.is_strict)]
        answer = self._jobs.create(one.document, f"?{'&'.join(query)}")
        self._complain(one, complaints(one.document, answer))
        is_accepted = answer.code == CREATED
        self.tally.counts["asked"] += 1
        self.tally.counts["accepted" if is_accepted else "refused"] += 1
        if one.wrongs and is_accepted:
            self.tally.counts["accepted in spite of all"] += 1
        return is_accepted and not is_dry

    def _settled(self, cases: Sequence[Case]) -> list[Life]:
        """The jobs that have come to a state of their own; the others are complained of."""
        found: list[Life] = []

        def look() -> bool:
            pods, jobs = self._tended_pods(), self._jobs_by_name()
            found[:] = [_life(one, jobs[name_of(one)], pods) for one in cases]
            return all(life.state for life in found)

        self._wait(look)
        for life in found:
            if not life.state:
                self._complain(life.case, [f"it stalls: {self._summary(life.name)}"])
        return [life for life in found if life.state]

    def _wait(self, look: Callable[[], bool]) -> None:
        """Until it is so, or for so long that it never will be."""
        with suppress(DevclusterError):
            wait_until(
                "all jobs have come to a state of their own",
                lambda: look() or None,
                limit_seconds=SETTLE_SECONDS_MAX,
                poll_seconds=POLL_SECONDS,
            )

    def _jobs_by_name(self) -> dict[str, Document]:
        return {job["metadata"]["name"]: job for job in self._stage.list_objects(api.PLURAL)}

    def _summary(self, name: str) -> str:
        """Where a job stands, in short."""
        job = self._jobs.get(name)
        said = job.get("status", {}).get("conditions", [])
        conditions = [f"{c['type']} {c['status']} {c['reason']} {c.get('message')}" for c in said]
        return f"generation {job['metadata']['generation']}; {'; '.join(conditions)}"

    def _tended_pods(self) -> list[Document]:
        """The pods that stay, each running as soon as the kubelet knows of it."""
        staying = []
        for pod in self._stage.list_objects("pods"):
            if "deletionTimestamp" in pod["metadata"]:
                self._stage.vanish(pod)
                continue
            if "nodeName" not in pod["spec"]:
                self._stage.start(pod)
            staying.append(pod)
        return staying

    # --- edited, and the edit taken back --------------------------------------------------------

    def _garble(self, life: Life) -> None:
        """Somebody writes over what the first pod is told, which is to be mended."""
        if life.state != RUNNING:
            return
        text = random.Random(f"{self._seed}/{life.case.number}/intent").choice(GARBLED)
        body = {"metadata": {"annotations": {api.ANNOTATION_INTENT: text}}}
        self._stage.request("PATCH", "pods", f"/{life.pods[0]['metadata']['name']}", body)
        self.tally.counts["intents written over"] += 1

    def _edit(self, life: Life) -> Document | None:
        """The spec as it was, where an edit of it was accepted."""
        if life.state not in GOOD_STATES:
            return None
        job = self._jobs.get(life.name)
        spec = edited(random.Random(f"{self._seed}/{life.case.number}/edit"), job)
        answer = self._replace_spec(life.name, spec)
        is_accepted = answer.code == OK
        self.tally.counts["edits accepted" if is_accepted else "edits refused"] += 1
        if not is_accepted:
            self._complain(life.case, (f"edit: {text}" for text in about_refusal(spec, answer)))
        return job["spec"] if is_accepted else None

    def _take_back(self, life: Life, before: Document) -> None:
        now = self._jobs.get(life.name)["spec"]
        answer = self._replace_spec(life.name, taken_back(now, before))
        if answer.code != OK:
            self._complain(life.case, [f"an edit cannot be taken back: {answer.message:.300}"])

    def _replace_spec(self, name: str, spec: Any) -> Answer:
        patch: Any = [{"op": "replace", "path": "/spec", "value": spec}]
        return self._jobs.request("PATCH", f"/{name}", patch, content_type=JSON_PATCH)

    # --- its status written over by hand --------------------------------------------------------

    def _write_over(self, cases: Sequence[Case]) -> None:
        """Whatever it says then, the operator looks at the job and says how it stands."""
        written = [one for one in cases if self._write_over_one(one)]
        unseen: list[Case] = []

        def look() -> bool:
            jobs = self._jobs_by_name()
            unseen[:] = [one for one in written if not is_seen(jobs[name_of(one)])]
            return not unseen

        self._wait(look)
        for one in unseen:
            self._complain(one, [f"its status was written over: {self._summary(name_of(one))}"])

    def _write_over_one(self, one: Case) -> bool:
        """Whether it was taken; the operator hears of it by a change of the spec."""
        status = status_by_hand(random.Random(f"{self._seed}/{one.number}/status"))
        answer = self._jobs.merge(name_of(one), {"status": status}, "status")
        if answer.code != OK:
            self._complain(one, [f"a status by hand is refused: {answer.message:.300}"])
            return False
        self.tally.counts["statuses written over"] += 1
        changed = {"keepPodsSeconds": KEEP_SECONDS + one.number}
        return self._jobs.merge(name_of(one), {"spec": changed}).code == OK

    # --- judged ---------------------------------------------------------------------------------

    def _judge_children(self, life: Life) -> None:
        """The trainer reads in the job file what the person wrote."""
        if life.state != RUNNING:
            return
        stored = LMTrainingJob.model_validate(self._jobs.get(life.name)).spec
        content = self._stage.do("GET", "configmaps", f"/{life.name}-job-file")["data"]["job.json"]
        read = JobFile.model_validate_json(content).spec
        written = stored.model_dump(include=set(TrainingSpec.model_fields))
        if read != TrainingSpec.model_validate(written):
            self._complain(life.case, [f"the job file says something else: {content:.300}"])

    def _judge_healed(self, before: Life, now: Life) -> None:
        """P12; and P10 where nothing asked for the pods to go."""
        self.tally.counts["edits taken back"] += 1
        has_ended = now.state == Succeeded.DEADLINE_EXCEEDED
        if now.state != before.state and not has_ended:
            self._complain(before.case, [f"was {before.state}, and after an edit {now.state}"])
        if now.state == before.state == RUNNING and now.pod_uids() == before.pod_uids():
            self.tally.counts["edits that left the pods alone"] += 1
            if now.wishes() != before.wishes():
                told = f"{now.wishes()[0]}, and before the edit {before.wishes()[0]}"
                self._complain(before.case, [f"the pods are told {told}"])

    def _judge_secrets(self) -> None:
        """P11. Before somebody writes one into status himself."""
        said = [job.get("status") for job in self._stage.list_objects(api.PLURAL)]
        told = json.dumps([said, self._stage.list_objects("events")])
        if SECRET in told or SECRET in self._operator.log.read_text():
            self.tally.complaints.append("status, events or the log repeat a secret (P11)")

    def _judge_operator(self) -> None:
        code, text = self._operator.get("/healthz")
        if code != OK:
            self.tally.complaints.append(f"the operator is not well: {code} {text}")
        lines = self._operator.log.read_text().splitlines()
        self.tally.complaints += troubles(lines[self._lines_read :])
        self._lines_read = len(lines)

    def _clear(self) -> None:
        """The next batch begins with nothing."""
        now = {"gracePeriodSeconds": "0"}
        for plural in (api.PLURAL, "pods", "events"):
            self._stage.request("DELETE", plural, **now)


def name_of(one: Case) -> str:
    return str(one.document["metadata"]["name"])


def _life(one: Case, job: Document, pods: list[Document]) -> Life:
    name = name_of(one)
    ours = tuple(p for p in pods if p["metadata"]["labels"].get(api.LABEL_JOB_NAME) == name)
    return Life(one, state_of(job, ours), ours)
