"""From a job file to a trainer that is ready for its first step.

Promise: the order of things is the same on every rank and for a first start and a resume: data,
model, precision, wrapping, one throw-away pass, optimizer, checkpoint. The state is loaded last,
into a process that otherwise is where an uninterrupted one would be (P7).
Trap avoided: DistributedDataParallel lays out its buckets anew after the first backward pass, which
changes the order of its sums; without the throw-away pass a resumed run of three or more ranks
differs in the last bit.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from lmtraining_api import FailureClass, JobFile, TrainingSpec
from lmtraining_api.report_parts import labels_shown
from lmtraining_trainer import precision, rng
from lmtraining_trainer.base_model import base_model
from lmtraining_trainer.checkpoint import (
    Line,
    Publish,
    Writer,
    adapters,
    part_published,
    published_whole,
    published_with_parts,
)
from lmtraining_trainer.checkpoint.pace import CPU_SHARE
from lmtraining_trainer.data import PreparedData, open_prepared, prepare, wanted
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.data.form import form_of
from lmtraining_trainer.data.prepared import check_enough
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.evaluation import ValidationPlan
from lmtraining_trainer.files import json_bytes, sha256_of
from lmtraining_trainer.freezing import check_unfreezing, freeze
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.heartbeat import while_alive
from lmtraining_trainer.interval import SaveClock
from lmtraining_trainer.lora import add_adapters
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.model import build_model, fingerprint, parameter_count, shape_of
from lmtraining_trainer.optimizer import build_optimizer
from lmtraining_trainer.precision import Format, Resolved
from lmtraining_trainer.precision import measure as _measured
from lmtraining_trainer.regularise import Average, Best, set_dropout
from lmtraining_trainer.requests import Following, with_changes
from lmtraining_trainer.resume import resume
from lmtraining_trainer.run import Mirror, Run
from lmtraining_trainer.run.directory import CHECKPOINTS, has_begun, storage_errors
from lmtraining_trainer.saving import Saver
from lmtraining_trainer.sharding import shard
from lmtraining_trainer.state import TrainState
from lmtraining_trainer.step import reads_late
from lmtraining_trainer.tasks import task_of
from lmtraining_trainer.tasks.sequence_classification import LabelledTexts
from lmtraining_trainer.tasks.token_classification import TaggedTexts
from lmtraining_trainer.trainer import Trainer
from lmtraining_trainer.utilisation import Utilisation
from lmtraining_trainer.voice import Voice


def prepare_data(
    job: JobFile,
    run: Run | None,
    gang: Gang,
    voice: Voice,
    credentials: Path,
    *,
    mirror: Mirror | None = None,
) -> PreparedData:
    """The prepared data of the job, made by the lead where there is none, fetched by the others
    where the run lives in an object store.

    A run keeps the data it began with: its key is in run.json, so a restart neither lists the
    sources nor notices that they changed. Before the first checkpoint it has not begun. Raises
    TrainerError.
    """
    cache = Path(job.data_cache_directory)
    voice.say("Preparing")
    base = base_model(job, run, gang, voice, credentials, mirror=mirror)
    key = gang.lead_does(
        "prepare the data", lambda: _data_key(job, run, voice, credentials, base) if run else ""
    )
    _fetch_data(mirror, cache / key)
    data = open_prepared(cache, key, base)
    if data is None:
        raise TrainerError(
            FailureClass.STORAGE,
            "DataUnreadable",
            f"the prepared data {cache / key} is not readable here though rank 0 has it: check "
            "that all pods see the same storage",
        )
    check_enough(data, job.spec)
    return data


def _data_key(
    job: JobFile, run: Run, voice: Voice, credentials: Path, base: BaseModel | None
) -> str:
    """On the lead: the key of data that is prepared."""
    cache = Path(job.data_cache_directory)
    form = form_of(job.spec)
    asked = wanted(job.spec.data, form)
    if base is not None:
        asked["pretrained"] = base.sha256
    data_sha256 = sha256_of(json_bytes(asked))
    known = run.record
    is_known = has_begun(run.directory) and known.get("data_sha256") == data_sha256
    if is_known:
        _fetch_data(run.mirror, cache / known["data_key"])
    if is_known and open_prepared(cache, known["data_key"]):
        return str(known["data_key"])

    def check() -> None:
        with storage_errors(run.directory):
            run.fence.check()

    key = prepare(
        job.spec.data,
        cache=cache,
        credentials=credentials,
        owner=job.job_uid,
        form=form,
        progress=lambda message: voice.progress("Preparing", message),
        check=check,
        fetch=lambda key: _fetch_data(run.mirror, cache / key),
        base=base,
    )
    with storage_errors(run.directory):
        if run.mirror is not None:
            run.mirror.publish_data(cache / key, check)
        run.remember(
            data_sha256=data_sha256,
            data_key=key,
            fingerprint=fingerprint(shape_of(job.spec, base)),
        )
    return key


def _fetch_data(mirror: Mirror | None, directory: Path) -> None:
    """Have prepared data here, where the object store has it."""
    if mirror is not None and open_prepared(directory.parent, directory.name) is None:
        with storage_errors(directory):
            mirror.fetch_data(directory)


def build_trainer(
    job: JobFile,
    *,
    gang: Gang,
    voice: Voice,
    run: Run | None,
    data: PreparedData,
    device: torch.device,
    mirror: Mirror | None = None,
) -> Trainer:
    """Ready for the first step, a checkpoint loaded where there is one. Raises TrainerError."""
    spec = job.spec
    plan = BatchPlan.of(spec, data, rank=gang.rank, world_size=gang.world_size, device=device)
    model = while_alive("make the model", lambda: model_to_train(spec, device, data), voice.alive)
    rng.seed_all(seed=spec.training.seed, rank=gang.rank, step=0)
    with_loss = task_of(spec).loss(model, spec.training.regularisation)
    with voice.accounts.during("compile"):
        resolved = _resolve_precision(spec, with_loss, plan, run=run, gang=gang, voice=voice)
        utilisation = Utilisation.of(
            model,
            sequence_length=spec.data.sequence_length,
            device=device,
            precision=resolved,
            world_size=gang.world_size,
        )
        wrapped = _wrapped(with_loss, spec, gang, device)
        _throw_away_pass(wrapped, plan, resolved, device)
    state = _state(model, spec)
    saver = _saver(job, data, state, run=run, gang=gang, voice=voice, mirror=mirror, device=device)
    total_steps = spec.total_steps(plan.epoch_sequences)
    resumed = resume(state, saver, seed=spec.training.seed, total_steps=total_steps)
    spec = with_changes(spec, budget_steps=resumed.budgets.newest)
    _refuse_smaller_budget(job, resumed.step, resumed.budgets.newest)
    trainer = Trainer(
        spec=spec,
        gang=gang,
        voice=voice,
        run=run,
        device=device,
        precision=resolved,
        wrapped=wrapped,
        with_loss=with_loss,
        state=state,
        plan=plan,
        utilisation=utilisation,
        validation=ValidationPlan.of(spec, data),
        resumed=resumed,
        remedies=resumed.remedies,
        saver=saver,
        budgets=resumed.budgets,
        following=Following.of_journal(run.journal.entries if run else ()),
        save_clock=None
        if run is None or spec.checkpoint.every_steps is not None
        else SaveClock(run, voice.accounts, ranks=gang.world_size),
        reads_late=_reads_late(state, spec, device),
    )
    voice.say("Training", **_start_fields(trainer))
    return trainer


def model_to_train(spec: TrainingSpec, device: torch.device, data: PreparedData) -> PreTrainedModel:
    """As it is trained: with adapters, and what is frozen frozen. Raises TrainerError."""
    model, tuning = build_model(spec, data.labels, data.base), spec.training.fine_tuning
    if spec.training.regularisation.dropout is not None:
        set_dropout(model, spec.training.regularisation.dropout)
    if tuning.lora is not None:
        add_adapters(model, tuning.lora, seed=spec.training.seed)
    freeze(model, tuning.freeze)
    check_unfreezing(model, tuning.unfreeze_every_steps)
    model.to(device)  # type: ignore[arg-type]
    return model


def _state(model: PreTrainedModel, spec: TrainingSpec) -> TrainState:
    """Before the first step, with the copies of the weights that the job asks for."""
    training = spec.training
    decay = training.regularisation.average_decay
    return TrainState(
        model=model,
        optimizer=build_optimizer(model, training.optimizer, training.fine_tuning),
        average=None if decay is None else Average(model, decay),
        best=None if training.early_stopping is None else Best(model),
    )


def _reads_late(state: TrainState, spec: TrainingSpec, device: torch.device) -> bool:
    """What is not trained yet is known by the step, and that by the verdict of the one before."""
    unfreezes = spec.training.fine_tuning.unfreeze_every_steps is not None
    return reads_late(device, state.optimizer) and not unfreezes


def _refuse_smaller_budget(job: JobFile, done: int, wanted: int) -> None:
    """More steps cannot be taken back, and 80 of 60 is no progress."""
    in_steps = job.spec.training.budget.steps is not None
    budget = "training.budget.steps is" if in_steps else "training.budget in steps is"
    if done > wanted:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "BudgetBelowProgress",
            f"{budget} {wanted}, but {job.run_directory} holds {done} finished "
            f"steps: set it to {done} to end there, to more to go on, or choose another "
            "checkpoint.path",
            step=done,
        )


def _saver(
    job: JobFile,
    data: PreparedData,
    state: TrainState,
    *,
    run: Run | None,
    gang: Gang,
    voice: Voice,
    mirror: Mirror | None,
    device: torch.device,
) -> Saver:
    keep = job.spec.checkpoint
    share = keep.writer_share or (CPU_SHARE if device.type == "cpu" else 1.0)
    publish = _publish(job, state, run=run, gang=gang)
    return Saver(
        gang=gang,
        voice=voice,
        run=run,
        writer=Writer(publish, share=share) if publish else None,
        identity=identity_of(job.spec, data, gang.world_size),
        keep=keep,
        each_writes=state.is_sharded,
        mirror=mirror,
    )


def _publish(job: JobFile, state: TrainState, *, run: Run | None, gang: Gang) -> Publish | None:
    """What this rank does for a checkpoint, or None where it is the lead's alone."""
    keep = job.spec.checkpoint
    if not state.is_sharded:
        return published_whole(run, keep) if run else None
    line = Line(gang.another_store("saves"), rank=gang.rank, world_size=gang.world_size)
    if run is not None:
        return published_with_parts(run, keep, line)
    return part_published(Path(job.run_directory) / CHECKPOINTS, line)


def identity_of(spec: TrainingSpec, data: PreparedData, world_size: int) -> dict[str, Any]:
    """What a checkpoint says about the model, the tokenizer, what the state beside the weights is
    of, and the gang."""
    shape, lora = shape_of(spec, data.base), spec.training.fine_tuning.lora
    return {
        "shape": shape,
        "fingerprint": fingerprint(shape),
        "tokenizer_sha256": data.tokenizer_sha256,
        "optimizer": spec.training.optimizer.name,
        "lora": adapters(lora),
        "world_size": world_size,
    }


def _resolve_precision(
    spec: TrainingSpec,
    model: nn.Module,
    plan: BatchPlan,
    *,
    run: Run | None,
    gang: Gang,
    voice: Voice,
) -> Format:
    if spec.precision.compute != "auto":
        return spec.precision.compute
    known = gang.lead_does("read the journal", lambda: _journalled_precision(run))
    if known is not None:
        return "bf16" if known == "bf16" else "fp32"
    voice.say("Starting", message="measuring bf16 against fp32")
    resolved = _measured(model, plan.batch(0)[0], gang, voice.alive)
    gang.lead_does("journal the precision", lambda: _journal_precision(run, resolved))
    return resolved.precision


def _journalled_precision(run: Run | None) -> str | None:
    entries = run.journal.details("Resolved") if run is not None else []
    return str(entries[-1]["precision"]) if entries else None


def _journal_precision(run: Run | None, resolved: Resolved) -> None:
    if run is None:
        return
    with storage_errors(run.directory):
        run.journal.append(
            "Resolved",
            0,
            precision=resolved.precision,
            device=resolved.device,
            fp32_seconds=resolved.fp32_seconds,
            bf16_seconds=resolved.bf16_seconds,
        )


def _wrapped(model: ModelLoss, spec: TrainingSpec, gang: Gang, device: torch.device) -> nn.Module:
    if gang.world_size == 1:
        return model
    with gang.peer_errors():
        if spec.parallelism.layout == "fsdp":
            return shard(model, device)
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            forward_sync_buffers=False,  # there are none that training changes
            gradient_as_bucket_view=True,
        )


def _throw_away_pass(
    model: nn.Module, plan: BatchPlan, resolved: Format, device: torch.device
) -> None:
    """One forward and backward whose result is dropped; see the trap above. One sequence will do:
    the order in which gradients become ready does not depend on how many there are."""
    micro_batch = plan.batch(0)[0]
    with rng.preserved():
        with precision.autocast(device, resolved):
            loss = model(*micro_batch.first(1).tensors)
        loss.backward()
    model.zero_grad(set_to_none=True)


def _start_fields(trainer: Trainer) -> dict[str, Any]:
    return {
        "message": "",
        "total_steps": trainer.total_steps,
        "precision": trainer.precision,
        "parameters": parameter_count(trainer.state.model),
        "unigram_loss": trainer.plan.data.unigram_loss,
        **labels_told(trainer.plan.data, trainer.spec),
        **trainer.remedies_taken,
    }


def labels_told(data: PreparedData, spec: TrainingSpec) -> dict[str, Any]:
    """The report's fields about labelled data."""
    if not data.labels:
        return {}
    task = task_of(spec)
    both = (task.training(spec, data), task.validation(spec, data))
    return {
        "labels": labels_shown(data.labels),
        "cut_examples": sum(
            each.cut for each in both if isinstance(each, LabelledTexts | TaggedTexts)
        ),
    }
