"""One rank of a training job, from its place in the gang to the finished model.

Promise: `run_rank` returns when the run is finished, and at once when it was finished before (P2);
raises `Preempted` after a save, `TrainerError` for what a person can mend, and anything else only
for a bug. It is the same in a pod and on a laptop.
Trap avoided: memory that ran out is told apart from a bug, since its remedy is known.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lmtraining_api import FailureClass, JobFile, names
from lmtraining_trainer.device import device_of, is_out_of_memory
from lmtraining_trainer.errors import Preempted, TrainerError
from lmtraining_trainer.export import write_export
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.heartbeat import while_alive
from lmtraining_trainer.loop import train
from lmtraining_trainer.lora import merge_adapters
from lmtraining_trainer.model import empty_model, parameter_count
from lmtraining_trainer.phase import Phase
from lmtraining_trainer.rank_link import RankLink, RankPlace
from lmtraining_trainer.regularise import holding, zero_share
from lmtraining_trainer.requests import wished
from lmtraining_trainer.run import Mirror, Run, claim_run
from lmtraining_trainer.run.remote import advice_for
from lmtraining_trainer.sharding import whole
from lmtraining_trainer.startup import build_trainer, labels_told, prepare_data
from lmtraining_trainer.trainer import Trainer
from lmtraining_trainer.voice import Voice


def run_rank(
    job_file: JobFile,
    place: RankPlace,
    link: RankLink,
    *,
    credentials_directory: Path = Path(names.CREDENTIALS_DIRECTORY),
) -> None:
    """Train as one rank until the run is finished; see the module."""
    voice = Voice(link)
    voice.say("Starting", message="")
    with Gang.meet(job_file.job_uid, place, voice) as gang, _memory_errors(job_file):
        try:
            _run(job_file, place, gang, voice, credentials_directory)
        except Preempted:
            voice.accounts.close()
            gang.leave()
            raise
        gang.leave()


def _run(job: JobFile, place: RankPlace, gang: Gang, voice: Voice, credentials: Path) -> None:
    mirror = Mirror.of(job, credentials, voice.alive)
    run, finished = _claim(job, place, gang, mirror, voice)
    if finished is not None:
        voice.say("Finished", **finished)
        voice.accounts.close()
        return
    device = device_of(place.local_rank, accelerated=job.spec.workers.accelerator is not None)
    data = prepare_data(job, run, gang, voice, credentials, mirror=mirror)
    voice.say("Starting", message="")
    gang.start_collectives(device)
    trainer = build_trainer(
        job, gang=gang, voice=voice, run=run, data=data, device=device, mirror=mirror
    )
    train(trainer)
    _finish(trainer)


def _claim(
    job: JobFile, place: RankPlace, gang: Gang, mirror: Mirror | None, voice: Voice
) -> tuple[Run | None, dict[str, Any] | None]:
    """The run directory, on the lead; and the final report where the run had finished before."""
    claimed: list[Run] = []

    def on_lead() -> dict[str, Any] | None:
        run = claim_run(job, place, mirror)
        claimed.append(run)
        voice.accounts.open(run)
        return run.finished(wished(job.spec, voice.wishes()))

    finished = gang.lead_does("claim the run directory", on_lead)
    return (claimed[0] if claimed else None), finished


def _finish(trainer: Trainer) -> None:
    """Export the model and mark the run finished. Raises TrainerError(STORAGE)."""
    trainer.voice.say("Exporting")
    trainer.zero_share = _zero_share(trainer)
    with holding(trainer.state.model, trainer.state.exported_weights):
        model = _whole_model(trainer)
        report = trainer.gang.lead_does("export", lambda: _export(trainer, model))
    trainer.voice.say("Finished", **report)


def _zero_share(trainer: Trainer) -> float | None:
    """Share of the weights that are zero, where the job asks for such; of all ranks where each
    holds a part."""
    training = trainer.spec.training
    if not training.regularisation.proximal_l1 and not training.optimizer.l1:
        return None
    zeros, count = trainer.gang.sum([float(n) for n in zero_share(trainer.state.optimizer)])
    return zeros / count


def _whole_model(trainer: Trainer) -> PreTrainedModel:
    """The trained model; of shards a whole one is put together on the lead, on the CPU, weight by
    weight. The other ranks keep their parts."""
    model, voice = trainer.state.model, trainer.voice
    if not trainer.state.is_sharded:
        return model
    data = trainer.plan.data
    copy = empty_model(trainer.spec, data.labels, data.base) if trainer.gang.is_lead else None
    weights = {} if copy is None else dict(copy.named_parameters())
    with trainer.gang.peer_errors(), torch.no_grad():
        for name, parameter in model.named_parameters():
            with voice.during(Phase.COLLECTIVE):
                tensor = whole(parameter)
            if copy is not None:
                weights[name].copy_(tensor)
            voice.alive()
    return copy or model


def _export(trainer: Trainer, model: PreTrainedModel) -> dict[str, Any]:
    run, counters, data = trainer.run, trainer.state.counters, trainer.plan.data
    if run is None:
        return {}
    trained = parameter_count(trainer.state.model)  # before adapters are merged
    validation = trainer.state.exported_validation
    if trainer.spec.training.fine_tuning.lora is not None:
        merge_adapters(model)
    try:
        path = while_alive(
            "export", lambda: _write_export(trainer, run, model), trainer.voice.alive
        )
        report = {
            "step": counters.step,
            "total_steps": trainer.total_steps,
            "tokens": counters.tokens,
            "loss": counters.loss,
            **validation,
            "unigram_loss": data.unigram_loss,
            **labels_told(data, trainer.spec),
            "precision": trainer.precision,
            "parameters": trained,
            "zero_share": trainer.zero_share,
            "notice": trainer.stale_notice,
            **trainer.remedies_taken,
            **trainer.speed_fields(trainer.speed.mean_step_seconds),
            "export_path": path.name,
            "eta_seconds": 0.0,
            "robustness": [one.model_dump() for one in trainer.robustness],
            "accounts": trainer.voice.accounts.seconds().model_dump(),
        }
        run.finish(trainer.spec, report)
        run.journal.append("Finished", counters.step, export=path.name)
        trainer.voice.accounts.close()
    except OSError as error:
        raise TrainerError(
            FailureClass.STORAGE,
            "ExportFailed",
            f"the export in {run.directory} could not be written ({error.strerror}): "
            + advice_for(error),
            step=counters.step,
        ) from error
    return report


def _write_export(trainer: Trainer, run: Run, model: PreTrainedModel) -> Path:
    return write_export(
        run,
        model,
        data=trainer.plan.data,
        sequence_length=trainer.spec.data.sequence_length,
    )


@contextmanager
def _memory_errors(job: JobFile) -> Iterator[None]:
    """Memory that ran out, as an error with its remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainerError(
            FailureClass.OUT_OF_MEMORY,
            "OutOfMemory",
            f"micro-batches of {job.spec.micro_batch_sequences} sequences of "
            f"{job.spec.data.sequence_length} tokens do not fit in the device's memory: raise "
            "training.gradientAccumulation, or workers.resources.memory on a CPU",
        ) from error
