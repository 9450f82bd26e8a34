"""What a run is: one frozen, validated `RunConfig`, and the four profiles that the project promises.

Everything else takes a `RunConfig`; nothing here loads torch, so errors in a configuration cost no time.
"""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass, fields, replace

from .errors import InputError, nearest
from .field_checks import out_of_range, wrong_types
from .files.places import AG_NEWS, BUNDLED, MPNET_BASE, ROBERTA_BASE, ROBERTA_MINI, is_folder_name, portable_name

ROBERTA_BASE_REVISION = "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
MPNET_BASE_REVISION = "e8c3b32edf5434bc2275fc9bab85f82640a19130"
AG_NEWS_REVISION = "eb185aade064a813bc0b7f42de02595523103ca4"
LABELS = ("World", "Sports", "Business", "Sci/Tech")  # label 0-3; the CSV files say 1-4

# Fields that change how a run is watched, not what it computes: a resumed run may differ in them.
WATCHING_FIELDS = frozenset({"report_to", "eval_batch_size"})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One fine-tuning run. The defaults are the published course recipe (profile `original`).

    Raises:
        InputError: with every violation at once, if a field has the wrong type or is out of range.
    """

    profile: str = "original"  # name of the profile this run started from

    base_model: str = ROBERTA_BASE  # Hub name, or a folder (relative to here or to the repository)
    base_revision: str | None = ROBERTA_BASE_REVISION  # commit on the Hub; None for a folder
    base_dropout: float = 0.1  # probability; hidden states, attention and, as RoBERTa ties it to them, the head
    random_base: bool = False  # True: same shape, random weights (a negative control, never a model to use)

    dataset: str = AG_NEWS  # Hub name, a folder with train.csv and test.csv, or "bundled"
    dataset_revision: str | None = AG_NEWS_REVISION  # commit on the Hub; None otherwise
    validation_size: int = 640  # rows carved from train; ignored where the data brings its own validation rows
    stratified: bool = False  # True: the validation rows have the class shares of train
    split_seed: int = 42  # seed of the carving; not the run's seed, so that seeds share their validation rows
    shuffled_labels: bool = False  # True: training labels permuted (a negative control)
    max_length: int = 512  # tokens an example, special tokens included; the rest is cut off

    lora_rank: int = 2  # r: rows of A, columns of B
    lora_alpha: float = 4.0  # the update is scaled by alpha / r
    lora_dropout: float = 0.05  # probability, on the input of A
    lora_targets: tuple[str, ...] = ("query",)  # names of the linear layers that get an adapter

    batch_size: int = 16  # examples an optimizer step, over all processes
    eval_batch_size: int = 64  # examples
    batch_order: str = "random"  # "random" or "length-grouped"

    max_steps: int = 2400  # optimizer steps
    eval_steps: int = 100  # optimizer steps between two evaluations, and between two rows of the log
    save_steps: int = 500  # optimizer steps between two checkpoints; one more is written at the end
    learning_rate: float = 5e-5  # at its peak
    lr_scheduler_type: str = "linear"  # decay after the warm-up
    warmup_steps: int = 0  # optimizer steps
    weight_decay: float = 0.0  # AdamW, per unit of learning rate
    adam_beta1: float = 0.9  # decay of the first moment
    adam_beta2: float = 0.999  # decay of the second moment
    adam_epsilon: float = 1e-8  # added to the root of the second moment
    max_grad_norm: float = 1.0  # L2 norm to which gradients are clipped
    mixed_precision: bool = False  # True: bf16 autocast and TF32 on a GPU that has them; weights stay float32
    label_smoothing_factor: float = 0.0  # probability mass spread over all classes
    seed: int = 42  # of weights, batch order and dropout
    report_to: str = "none"  # a tracker that transformers knows, e.g. "tensorboard"

    def __post_init__(self):
        if isinstance(self.lora_targets, list):  # as JSON gives it back
            object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        wrong = wrong_types(self)
        problems = list(wrong.values()) + out_of_range(self, skip=set(wrong))
        problems = problems or _at_odds(self)
        if problems:
            raise InputError("configuration: " + "; ".join(problems))

    def to_dict(self) -> dict:
        """Plain values, as they go into JSON."""
        return asdict(self) | {"lora_targets": list(self.lora_targets)}

    def portable(self) -> RunConfig:
        """The same with folders named relative to the repository, as records and checkpoints store it."""
        return replace(self, base_model=portable_name(self.base_model), dataset=portable_name(self.dataset))

    def replace(self, **changes) -> RunConfig:
        """A copy with `changes`; an unknown field is an `InputError` that names the nearest one."""
        names = [field.name for field in fields(self)]
        unknown = [f"unknown field {name!r}{nearest(name, names)}" for name in changes if name not in names]
        if unknown:
            raise InputError("configuration: " + "; ".join(unknown))
        for name, revision in (("base_model", "base_revision"), ("dataset", "dataset_revision")):
            if name in changes and changes[name] != getattr(self, name):
                changes.setdefault(revision, None)  # another source: the old commit does not apply
        return replace(self, **changes)

    def differences(self, its: dict) -> dict[str, tuple]:
        """Fields that change the result and differ from another's `to_dict()`: name -> (mine, its); None where it has none."""
        mine = self.to_dict()
        names = sorted((mine.keys() | its.keys()) - WATCHING_FIELDS)
        return {name: (mine.get(name), its.get(name)) for name in names if mine.get(name) != its.get(name)}


def get_profile(name: str, **changes) -> RunConfig:
    """The profile called `name`, with `changes` to its fields.

    Raises:
        InputError: unknown profile (the nearest is named), unknown field, or a value that does not fit.
    """
    if name not in PROFILES:
        raise InputError(f"unknown profile {name!r}{nearest(name, PROFILES)}; there are {', '.join(PROFILES)}")
    return PROFILES[name].replace(**changes)


def parse_field(config: type, name: str, text: str):
    """`text` from the command line as the type of field `name` of `config`; what does not parse is returned as it
    is, so that the validation of the configuration reports it beside everything else that is wrong."""
    wanted = typing.get_type_hints(config)[name]
    if wanted == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(","))
    if wanted is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if wanted == str | None:
        return None if text.lower() == "none" else text
    try:
        return wanted(text)
    except ValueError:
        return text


def _at_odds(config: RunConfig) -> list[str]:
    """Violations that take two fields to see."""
    problems = []
    if config.save_steps % config.eval_steps:
        problems.append(
            f"save_steps is {config.save_steps}, wanted a multiple of eval_steps ({config.eval_steps}),"
            " so that a resumed run logs what an unbroken one logs"
        )
    for name, revision in (("base_model", "base_revision"), ("dataset", "dataset_revision")):
        value = getattr(config, name)
        if value != BUNDLED and getattr(config, revision) is None and not is_folder_name(value):
            problems.append(f"{name} {value!r} is no folder here, and a Hub name needs {revision} (a commit)")
    return problems


_MINI = RunConfig(
    profile="mini",
    base_model=ROBERTA_MINI,
    base_revision=None,
    base_dropout=0.0,
    dataset=BUNDLED,
    dataset_revision=None,
    validation_size=120,
    stratified=True,
    max_length=128,
    batch_order="length-grouped",
    max_steps=300,
    eval_steps=20,
    save_steps=100,
    learning_rate=1e-3,
    warmup_steps=20,
    mixed_precision=True,
)

_ROBERTA_BASE = RunConfig(
    profile="roberta-base",
    base_dropout=0.0,
    validation_size=2000,
    stratified=True,
    max_length=256,
    batch_order="length-grouped",
    learning_rate=5e-4,
    warmup_steps=100,
    mixed_precision=True,
)

PROFILES = {
    # The notebook's default: everything in the repository, no network, about a minute on two CPU cores.
    "mini": _MINI,
    # The same small base on real AG News; its five checkpoints are committed.
    "mini-agnews": _MINI.replace(
        profile="mini-agnews",
        dataset=AG_NEWS,
        dataset_revision=AG_NEWS_REVISION,
        validation_size=2000,
        max_steps=2400,
        eval_steps=100,
        save_steps=500,
        learning_rate=2e-3,
        warmup_steps=100,
    ),
    # The published course recipe, number by number (the defaults above).
    "original": RunConfig(),
    # The same trainable parameters and steps with our recipe.
    "roberta-base": _ROBERTA_BASE,
    # Our recipe on another encoder of roberta-base's width and depth, whose adapters and head are as many numbers.
    "mpnet-base": _ROBERTA_BASE.replace(
        profile="mpnet-base",
        base_model=MPNET_BASE,
        base_revision=MPNET_BASE_REVISION,
        lora_targets=("q",),
        eval_steps=250,  # on two cores, 2,000 rows take as long as 70 steps
    ),
}
