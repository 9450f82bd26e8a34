"""Where a resumed run begins, and whether it may: the same configuration, the same data. `training` asks."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ..checkpoints import list_checkpoints, verify_checkpoint
from ..config import RunConfig
from ..data import Splits
from ..errors import CheckFailed, InputError
from ..files.manifests import read_manifest
from ..files.places import relative_to_repository
from ..processes import leads, this_process

logger = logging.getLogger(__name__)


def find_start(output_dir: Path, resume: bool, resume_from: Path | str | None) -> Path | None:
    """The checkpoint to continue: `resume_from`, or the newest whole one of `output_dir`; None to begin at step 0.

    Raises:
        InputError: `resume_from` is no checkpoint of this project.
        CheckFailed: `resume_from` was changed since it was sealed; with `resume`, such are skipped with a warning.
    """
    if resume_from is not None:
        checkpoint = Path(resume_from).resolve()
        if checkpoint.is_dir() and read_manifest(checkpoint) is None:
            raise InputError(f"{checkpoint} has no manifest: it was not written by this project and cannot be resumed")
        _require_as_sealed(checkpoint)
        return checkpoint
    if not resume:
        return None
    unfinished = set(output_dir.glob("checkpoint-*")) - set(list_checkpoints(output_dir))
    for folder in sorted(unfinished):
        logger.warning("%s skipped: it has no manifest, its writing was cut short", folder.name)
    for checkpoint in reversed(list_checkpoints(output_dir)):
        try:
            _require_as_sealed(checkpoint)
            return checkpoint.resolve()
        except CheckFailed as error:
            logger.warning("%s skipped: %s", checkpoint.name, error)
    return None


def _require_as_sealed(checkpoint: Path) -> None:
    """Nothing damaged, nothing added, its own name: the Trainer reads files that it finds, not those of a list.

    A `model.safetensors` or `pytorch_model.bin`, for one, it would load instead of the adapter.
    """
    found = verify_checkpoint(checkpoint)
    if found.unlisted:
        raise CheckFailed(
            f"{checkpoint} holds {', '.join(found.unlisted)}, which its manifest does not list; remove it"
        )
    if not (checkpoint / "optimizer.pt").is_file():
        raise CheckFailed(
            f"{checkpoint} holds no optimizer state, so it predicts but cannot be continued; take the run's last checkpoint"
        )
    if checkpoint.name != f"checkpoint-{found.step}":
        raise CheckFailed(f"{checkpoint} was written at step {found.step}; name it checkpoint-{found.step} again")


def require_same_run(start: Path, config: RunConfig, splits: Splits, allow_other_data: bool) -> bool:
    """Refuse to continue `start` with another configuration or on other data; warn where dropout will differ.

    Returns:
        Whether the data are other ones than the checkpoint's, which `allow_other_data` lets pass.

    Raises:
        InputError: the message shows every field or fingerprint that differs, with both values.
    """
    manifest = read_manifest(start)
    changed = config.portable().differences(manifest["config"])
    if allow_other_data:
        changed = {k: v for k, v in changed.items() if k not in ("dataset", "dataset_revision")}
    if changed:
        listed = "; ".join(f"{name} is {mine!r} here, {other!r} there" for name, (mine, other) in changed.items())
        raise InputError(f"{start} was trained with another configuration: {listed}; use the same values")
    here, there = splits.fingerprints(), manifest["data"]["sha256"]
    if here != there and not allow_other_data:
        shown = "; ".join(f"{k} {here[k][:12]}… here, {there[k][:12]}… there" for k in here if here[k] != there[k])
        raise InputError(
            f"{start} was trained on other data (SHA-256: {shown}); --allow-other-data continues all the same"
        )
    if here != there:
        logger.warning("continuing on other data than the checkpoint's, as --allow-other-data says")
    now, then = this_process().num_processes, processes_of(start)
    if now != then and (config.base_dropout or config.lora_dropout):
        logger.warning(
            "%d here, %d there: another number of processes draws other dropout masks; all else goes on as it was",
            now,
            then,
        )
    return here != there


def describe_resumption(start: Path, other_data: bool) -> dict:
    """For manifests and record: the checkpoint, the processes that wrote it, and whether the run changed its data, here
    (`other_data`) or when it was resumed before."""
    before = read_manifest(start).get("resumed_from", {}).get("other_data", False)
    return {
        "checkpoint": relative_to_repository(start),
        "world_size": processes_of(start),
        "other_data": other_data or before,
    }


def processes_of(checkpoint: Path) -> int:
    """The number of processes that wrote a checkpoint."""
    return read_manifest(checkpoint).get("world_size", 1)


def restore_finished(trainer, last: Path, output_dir: Path) -> None:
    """The end of a run from its last checkpoint, copied where it is not; the Trainer would do one step more."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    set_peft_model_state_dict(trainer.model, load_file(last / "adapter_model.safetensors"))
    trainer.state = TrainerState.load_from_json(last / "trainer_state.json")
    if last.parent != output_dir.resolve() and leads():
        shutil.copytree(last, output_dir / last.name)
    this_process().wait_for_everyone()
