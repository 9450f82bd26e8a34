"""Where a run begins: at step 0, at a checkpoint of the same run, or with the weights of another. `run` asks."""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import ADAPTER_CONFIG, WEIGHTS, list_checkpoints, load_checkpoint, verify_checkpoint
from ..config import RunConfig
from ..data import Splits
from ..environment import code_mark
from ..errors import CheckFailed, InputError
from ..files.manifests import MANIFEST, hash_file
from ..files.places import relative_to_repository
from ..processes import leads, this_process

logger = logging.getLogger(__name__)

LENGTHS = {"max_steps", "warmup_steps", "eval_steps", "save_steps"}  # changing one changes the schedule


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where the caller of `run.train` wants to begin, as it says there."""

    resume: bool = False
    resume_from: Path | None = None
    warm_start: Path | None = None
    allow_other_data: bool = False

    def __post_init__(self):
        if sum(map(bool, (self.resume, self.resume_from, self.warm_start))) > 1:
            raise InputError("resume, resume_from and warm_start each begin in another way; give one of them")
        if self.allow_other_data and not (self.resume or self.resume_from):
            raise InputError("allow_other_data: without effect in a run that resumes nothing")


@dataclass(frozen=True)
class Start:
    """A whole checkpoint to go on from, and its manifest as it was sealed."""

    path: Path
    manifest: dict


def find_start(output_dir: Path, beginning: Beginning) -> Start | None:
    """The checkpoint to continue: `resume_from`, refused if it was changed since it was sealed, or with `resume` the newest
    that was not, others skipped with a warning; None to begin at step 0, where there is none at all."""
    if checkpoint := beginning.resume_from:
        if (checkpoint / ADAPTER_CONFIG).is_file() and not (checkpoint / MANIFEST).is_file():
            why = "another program wrote it, or its writing was cut short"
            raise InputError(f"{checkpoint} has no manifest: {why}; resume another, or --warm-start a new run with it")
        return _open_as_sealed(checkpoint)
    if not beginning.resume:
        return None
    whole = list_checkpoints(output_dir)
    for folder in sorted({*output_dir.glob("checkpoint-*")} - {*whole}):
        logger.warning("%s skipped: it has no manifest, its writing was cut short", folder.name)
    newest = None
    for checkpoint in reversed(whole):
        try:
            return _open_as_sealed(checkpoint)
        except CheckFailed as error:
            logger.warning("%s skipped: %s", checkpoint.name, error)
            newest = newest or error
    if newest:  # to begin anew would write over them, and the fault may be in the base
        way = "mend that, or name another folder"
        raise CheckFailed(f"{output_dir}: none of its checkpoints can be continued (the newest: {newest}); {way}")
    return None


def _open_as_sealed(checkpoint: Path) -> Start:
    """Open a checkpoint unless damaged, renamed or added to: the Trainer would load a `model.safetensors` instead."""
    path = Path(os.path.realpath(checkpoint))
    found = verify_checkpoint(path, fetch=True, control=True)
    manifest, step = found.manifest, found.manifest["step"]
    if found.unlisted:
        raise CheckFailed(f"{path} holds {', '.join(found.unlisted)}, which its manifest does not list; remove it")
    if step < manifest["config"]["max_steps"] and not (path / "optimizer.pt").is_file():
        raise CheckFailed(
            f"{path} holds no optimizer state: it predicts but cannot be continued; take another of the run"
        )
    if path.name != f"checkpoint-{step}":
        raise CheckFailed(f"{path} was written at step {step}; name it checkpoint-{step} again")
    return Start(path, manifest)


def require_same_run(start: Start, config: RunConfig, splits: Splits, *, allow_other_data: bool) -> None:
    """Refuse to continue with another configuration or, unless `allow_other_data`, on other data; show what differs."""
    changed = config.portable().differences(start.manifest["config"])
    if allow_other_data:
        changed = {k: v for k, v in changed.items() if k not in ("dataset", "dataset_revision")}
    if changed:
        listed = "; ".join(f"{name} is {mine!r} here, {other!r} there" for name, (mine, other) in changed.items())
        anew = ", or begin a new run with its weights: --warm-start with this checkpoint, and another --output-dir"
        way = anew if changed.keys() <= LENGTHS else ""
        raise InputError(f"{start.path} was trained with another configuration: {listed}; use the same values{way}")
    here, there = splits.fingerprints(), start.manifest["data"]["sha256"]
    if here != there and not allow_other_data:
        shown = "; ".join(f"{k} {here[k][:12]}… here, {there[k][:12]}… there" for k in here if here[k] != there[k])
        raise InputError(f"{start.path} was trained on other data (SHA-256: {shown}); --allow-other-data allows that")


def describe_resumption(start: Start, details: dict) -> dict:
    """What manifests and record keep of the checkpoint that a run resumes: its place, how it was computed, whether the
    data ever changed. Warns where this run's `details` differ in a way that changes the numbers."""
    then = {"world_size": 1, "arithmetic": "float32"} | start.manifest  # true of every manifest that does not say
    dropout = details["config"]["base_dropout"] or details["config"]["lora_dropout"]
    here, then = (about | _name_machine(about["environment"]) for about in (details, then))
    on_cpus = all(each["device"].startswith("CPU") for each in (here, then))  # whose masks threads do not change
    effects = {
        "world_size": dropout and "dropout masks",
        **dict.fromkeys(("arithmetic", "torch", "transformers"), "rounding"),
        "processor": on_cpus and "rounding",
        "device": "rounding" if on_cpus or not dropout else "dropout masks and rounding",
    }
    for name, effect in effects.items():
        if here[name] != then[name] and effect and then[name]:
            logger.warning("%s: %s here, %s there; %s may differ", name, here[name], then[name], effect)
    other_data = details["data"]["sha256"] != then["data"]["sha256"]
    before = then.get("resumed_from", {}).get("other_data", False)
    kept = {name: then[name] for name in (*effects, "code")} | {"other_data": other_data or before}
    origin = {"resumed_from": {"checkpoint": relative_to_repository(start.path), **kept}}
    return origin | {name: then[name] for name in ("warm_started_from",) if name in then}


def _name_machine(environment: dict) -> dict:
    """What a run owes to where and by which code it is computed, as far as its manifest says."""
    libraries = {name: environment.get("libraries", {}).get(name, "") for name in ("torch", "transformers")}
    libraries = {name: version.partition("+")[0] for name, version in libraries.items()}  # +cpu is no other version
    its = {"device": environment["device"], "processor": environment.get("processor")}
    return its | libraries | {"code": code_mark(environment)}


def take_weights(model, checkpoint: Path) -> dict:
    """Give `model` the adapter and head of a checkpoint of the same shape and base; returns what the record keeps."""
    import torch

    source, _, verification = load_checkpoint(checkpoint)
    for notice in verification.notices:
        logger.warning("%s: %s", checkpoint, notice)
    theirs, mine = dict(source.named_parameters()), dict(model.named_parameters())
    frozen = [name for name, p in mine.items() if not p.requires_grad and "original_module" not in name]
    if _shapes(source) != _shapes(model) or not all(torch.equal(mine[name], theirs[name]) for name in frozen):
        raise InputError(f"{checkpoint} has other adapters, another head or another base model; use its fields")
    model.load_state_dict({name: p for name, p in theirs.items() if mine[name].requires_grad}, strict=False)
    about = {"checkpoint": relative_to_repository(checkpoint), "adapter_sha256": hash_file(checkpoint / WEIGHTS)}
    return {"warm_started_from": about}


def _shapes(model) -> dict:
    """Of every weight the shape, of every adapter alpha / r, by name."""
    scalings = {name: each.scaling["default"] for name, each in model.named_modules() if hasattr(each, "lora_A")}
    return scalings | {name: each.shape for name, each in model.named_parameters()}


def restore_finished(trainer, last: Path, output_dir: Path) -> None:
    """Restore a finished run from its last checkpoint, copied if need be; the Trainer would do one step more."""
    from transformers import TrainerState

    # Left to itself, PEFT loads onto whatever GPU there is, also where the run keeps to the CPU.
    trainer.model.load_adapter(last, "default", is_trainable=True, torch_device=str(trainer.args.device))
    trainer.state = TrainerState.load_from_json(last / "trainer_state.json")
    if last.parent != output_dir.resolve() and leads():
        unfinished = output_dir / f"{last.name}.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(last, unfinished).rename(output_dir / last.name)
    this_process().wait_for_everyone()
