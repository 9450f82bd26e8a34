"""A checkpoint as other people load it: merged for plain transformers, the adapter for PEFT, or ONNX; with a model card
whose numbers come from the run's record, and only if it is of this very checkpoint."""

import logging
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from . import loading
from .checkpoints import WEIGHTS, load_checkpoint
from .config import AG_NEWS, LABELS
from .errors import InputError, first_line
from .files.hub import IDENTITY_FILES, base_files
from .files.manifests import hash_file, make_readable
from .files.places import CHECKPOINTS, ROBERTA_MINI, is_folder_name
from .records import read_record

LIBRARIES = {"merged": "transformers", "adapter": "peft", "onnx": "onnx"}  # by form
CARD = Path(__file__).with_name("model_card.md")  # a Jinja template, as huggingface_hub takes it
LICENCE = {"license": "other", "license_name": "ag-news-research-non-commercial", "license_link": "LICENSE"}


def export_checkpoint(
    checkpoint: Path | str, target: Path | str, *, form: str = "merged", base_name: str | None = None
) -> Path:
    """Write the folder `target`, whole or not at all, and return it, with tokenizer, names of classes and model card.

    `form` is "merged", "adapter" or "onnx". An adapter names its base as the Hub does: `base_name`, or what the
    checkpoint says; a base that is a folder is copied into `target`/base instead.

    Raises: as `load_checkpoint`; InputError: unknown form, `target` is not empty or not writable, a package is missing.
    """
    checkpoint, target = Path(checkpoint), Path(target).absolute()
    if str(target).encode("utf-8", "replace").decode() != str(target):
        raise InputError(f"{target}: no name that UTF-8 can hold, as the card must; name another folder")
    if form not in LIBRARIES:
        raise InputError(f"form is {form!r}, wanted one of {', '.join(LIBRARIES)}")
    if base_name is not None and is_folder_name(base_name):
        raise InputError(f"base_name is {base_name!r}, which is a folder; wanted the base's name on the Hub, or none")
    # A folder that is there is filled at the end; it may be on another disk than the folder around it.
    inside = target.is_dir()
    unfinished = (target if inside else target.parent) / f".{secrets.token_hex(8)}.partial"
    try:
        if target.exists() and (not inside or any(target.iterdir())):
            raise InputError(f"{target}: exists already; name another folder")
        if not target.parent.is_dir():
            raise InputError(f"{target.parent}: no such folder; make it first")
        unfinished.mkdir()
        _write(checkpoint, unfinished, target, form, base_name)
        if not inside:
            unfinished.rename(target)
        for path in unfinished.iterdir() if inside else ():
            path.rename(target / path.name)
    except Exception as error:
        if not (isinstance(error, OSError | SafetensorError) or type(error) is Exception):  # the last of `tokenizers`
            raise
        fault, place = getattr(error, "strerror", None) or first_line(error), getattr(error, "filename", None)
        raise InputError(f"{target}: cannot be written ({fault}{f': {place}' if place else ''})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _write(checkpoint: Path, folder: Path, target: Path, form: str, base_name: str | None) -> None:
    with loading():
        model, tokenizer, verification = load_checkpoint(checkpoint)
        its_name = model.peft_config["default"].base_model_name_or_path
        hub_name = base_name or (None if is_folder_name(its_name) else its_name)
        tokenizer.model_max_length = verification.max_length
        if form == "adapter":
            _write_adapter(model, folder, hub_name or str(target / "base"))
        elif form == "onnx":
            write_onnx(model.merge_and_unload(), tokenizer, folder)
        else:
            model.merge_and_unload().save_pretrained(folder)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.enable_truncation(verification.max_length)  # for who reads tokenizer.json alone
    for name in ("is_local", "local_files_only", "max_length"):  # how it was loaded and used here
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(folder)
    facts = {"form": form, "folder": target.name, "hub_name": hub_name, "max_length": verification.max_length}
    _write_card(checkpoint, folder, facts, base=its_name)
    make_readable([path for path in folder.rglob("*") if path.is_file()])


def _write_adapter(model, folder: Path, base: str) -> None:
    """The adapter for `base`, and that base, if it is a folder: PEFT takes the names of classes from a base alone."""
    lora = model.peft_config["default"]
    if lora.base_model_name_or_path != base:
        if is_folder_name(base):
            (folder / "base").mkdir()
            source = base_files(lora.base_model_name_or_path, lora.revision)
            for path in (path for pattern in (*IDENTITY_FILES, "*.index.json") for path in source.glob(pattern)):
                shutil.copy(path, folder / "base")
            model.config.save_pretrained(folder / "base")
        lora.base_model_name_or_path, lora.revision = base, None
    model.save_pretrained(folder, save_embedding_layers=False)


def write_onnx(model, tokenizer, folder: Path) -> None:
    """`model.onnx` and its configuration, of a merged model on the CPU, for any number of rows and tokens."""
    import torch

    try:
        import onnxscript  # noqa: F401  (torch would miss it late, and not in one line)
    except ImportError as error:
        raise InputError(f"ONNX: {first_line(error)}; it takes: pip install onnx onnxscript") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that are not needed
    example = tokenizer(["Oil prices rise", "as stocks fall today"], padding=True, return_tensors="pt")
    names, free = ("input_ids", "attention_mask"), dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    try:
        program = torch.onnx.export(
            model, tuple(example[name] for name in names), dynamo=True, verbose=False, input_names=names,
            output_names=["logits"], dynamic_shapes=dict.fromkeys(names, free),
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise InputError(f"ONNX: torch cannot translate this model ({first_line(error)}); take another form") from error
    program.save(folder / "model.onnx")
    model.config.save_pretrained(folder)


def _write_card(checkpoint: Path, folder: Path, facts: dict, *, base: str) -> None:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    record, step = _find_record(checkpoint)
    on_ag_news = bool(record) and record["config"]["dataset"] == AG_NEWS
    test = record.get("test") if record and step == record["config"]["max_steps"] else None
    ours = on_ag_news or base == ROBERTA_MINI
    if ours:
        shutil.copy(CHECKPOINTS / "LICENSE", folder)
    scores = [
        EvalResult("text-classification", AG_NEWS, "AG News", metric, test[metric], dataset_split="test")
        for metric in ("accuracy", "macro_f1")
        if test and on_ag_news
    ]
    data = ModelCardData(
        language="en", pipeline_tag="text-classification", base_model=facts["hub_name"], tags=["lora"],
        library_name=LIBRARIES[facts["form"]], datasets=AG_NEWS if on_ag_news else None, model_name=facts["folder"],
        eval_results=scores or None, **(LICENCE if ours else {}),
    )  # fmt: skip
    if base.startswith("..") or Path(base).is_absolute():
        base = Path(base).name  # a card tells nothing of this machine
    facts |= {"names": dict(enumerate(LABELS)), "base": base, "ours": ours}
    facts |= {"record": record, "step": step, "test": test}
    ModelCard.from_template(data, template_path=str(CARD), **facts).save(folder / "README.md")


def _find_record(checkpoint: Path) -> tuple[dict | None, int | None]:
    """The record of the run that wrote these weights, and their step; nothing if it is not beside the checkpoint."""
    with suppress(InputError):  # none there, or another program's
        record, digest = read_record(checkpoint.resolve().parent), hash_file(checkpoint / WEIGHTS)
        for step, saved in record["checkpoints"].items():
            if saved["adapter_sha256"] == digest:
                return record, int(step)
    return None, None
