"""Where a resumed run begins, and whether it may: the same configuration, the same data. `training` asks."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from .checkpoints import list_checkpoints, read_manifest, verify_checkpoint
from .config import RunConfig
from .data import Splits
from .errors import CheckFailed, InputError, first_line

logger = logging.getLogger(__name__)


def find_start(output_dir: Path, resume: bool, resume_from: Path | str | None) -> Path | None:
    """The checkpoint to continue: `resume_from`, or the newest whole one of `output_dir`; None to begin at step 0.

    Raises:
        InputError: `resume_from` is no checkpoint of this project.
        CheckFailed: `resume_from` is damaged; with `resume`, damaged ones are skipped with a warning.
    """
    if resume_from is not None:
        checkpoint = Path(resume_from).resolve()
        if checkpoint.is_dir() and read_manifest(checkpoint) is None:
            raise InputError(f"{checkpoint} has no manifest: it was not written by this project and cannot be resumed")
        verify_checkpoint(checkpoint)
        return checkpoint
    if not resume:
        return None
    unfinished = set(output_dir.glob("checkpoint-*")) - set(list_checkpoints(output_dir))
    for folder in sorted(unfinished):
        logger.warning("%s skipped: it has no manifest, its writing was cut short", folder.name)
    for checkpoint in reversed(list_checkpoints(output_dir)):
        try:
            verify_checkpoint(checkpoint)
            return checkpoint.resolve()
        except CheckFailed as error:
            logger.warning("%s skipped: %s", checkpoint.name, error)
    return None


def require_same_run(start: Path, config: RunConfig, splits: Splits, allow_other_data: bool) -> None:
    """Refuse to continue `start` with another configuration or on other data.

    Raises:
        InputError: the message shows every field or fingerprint that differs, with both values.
    """
    manifest = read_manifest(start)
    try:
        changed = config.portable().differences(RunConfig(**manifest["config"]))
    except (TypeError, InputError) as error:  # fields of another version of this project
        raise InputError(f"{start} was written by another version: {first_line(error)}; train anew") from error
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


def restore_finished(trainer, last: Path, output_dir: Path) -> None:
    """The end of a run from its last checkpoint, copied where it is not; the Trainer would do one step more."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    set_peft_model_state_dict(trainer.model, load_file(last / "adapter_model.safetensors"))
    trainer.state = TrainerState.load_from_json(last / "trainer_state.json")
    if last.parent != output_dir.resolve():
        shutil.copytree(last, output_dir / last.name)
