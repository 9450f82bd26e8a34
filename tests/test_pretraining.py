from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lora_helpers.errors import CheckFailed
from lora_helpers.pretraining import trainer
from lora_helpers.pretraining.config import PretrainingConfig
from lora_helpers.pretraining.losses import MASK, compute_losses, mask_tokens
from lora_helpers.pretraining.run import _export, _find_stopped, build_masked_model, count_words, initialise_embeddings
from lora_helpers.pretraining.trainer import TokenBudgetBatches

SMALL = PretrainingConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_length=64)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    topics = [rng.integers(5 + 70 * t, 75 + 70 * t, size=(100, 40)) for t in range(4)]
    return [row[: rng.integers(10, 40)].tolist() for row in np.concatenate(topics)]


def test_a_fifth_of_the_tokens_is_masked_and_special_ones_never():
    torch.manual_seed(0)
    ids = torch.randint(5, 300, (200, 50))
    ids[:, 0], ids[:, -1] = 0, 2
    noisy, masked = mask_tokens(ids, 0.2)
    assert not masked[:, [0, -1]].any() and torch.equal(noisy[~masked], ids[~masked])
    assert masked[:, 1:-1].float().mean() == pytest.approx(0.2, abs=0.02)
    assert (noisy[masked] == MASK).float().mean() == pytest.approx(0.8, abs=0.03)
    assert (noisy[masked] == ids[masked]).float().mean() == pytest.approx(0.1, abs=0.03)


def test_batches_are_a_function_of_seed_and_epoch_with_a_constant_count():
    lengths = np.random.default_rng(0).integers(10, 100, size=500)
    sampler = TokenBudgetBatches(lengths, 512, seed=0)
    first = [batch.tolist() for batch in sampler]
    assert [batch.tolist() for batch in sampler] == first
    sampler.set_epoch(1)
    second = [batch.tolist() for batch in sampler]
    assert first != second and len(first) == len(second) == len(sampler)
    assert sorted(i for batch in second for i in batch) == list(range(500))


def test_tokens_are_counted_over_epochs():
    from lora_helpers.pretraining.run import _count_tokens

    batches = TokenBudgetBatches(np.random.default_rng(0).integers(10, 100, size=50), 512, seed=0)
    seen = 0
    for epoch in range(3):
        batches.set_epoch(epoch)
        for number, batch in enumerate(batches):
            seen += int(batches.lengths[batch].sum())
            steps = epoch * len(batches) + number + 1
            assert _count_tokens(batches, steps) == {"an_epoch": int(batches.lengths.sum()), "seen": seen}
            batches.set_epoch(epoch)


def test_embeddings_begin_with_words_of_a_topic_side_by_side(rows):
    torch.manual_seed(0)
    model = build_masked_model(SMALL)
    initialise_embeddings(model, count_words(rows, SMALL.vocab_size)[0], SMALL)
    vectors = torch.nn.functional.normalize(model.get_input_embeddings().weight[5:285].detach(), dim=1)
    similarity = (vectors @ vectors.T).view(4, 70, 4, 70).mean(dim=(1, 3))
    same = similarity.diagonal().mean()
    assert same > similarity[~torch.eye(4, dtype=bool)].mean() + 0.1


def test_the_losses_fall_when_trained(rows):
    torch.manual_seed(0)
    model = build_masked_model(SMALL)
    _, idf = count_words(rows, SMALL.vocab_size)
    idf = torch.from_numpy(idf)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        found = compute_losses(model, rows[::7], idf, SMALL, halves=True)
        assert set(found) == {"masked", "words", "contrast"}
        sum(found.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: loss.item() for name, loss in found.items()})
    assert all(history[-1][name] < history[0][name] - 0.3 for name in history[0])


def test_padding_is_no_word_of_a_document(rows, monkeypatch):
    monkeypatch.setattr("lora_helpers.pretraining.losses.mask_tokens", lambda ids, share: (ids, ids >= 5))
    torch.manual_seed(0)
    model, idf = build_masked_model(SMALL).eval(), torch.from_numpy(count_words(rows, SMALL.vocab_size)[1])
    short, long = sorted((row[:20] if i else row[:5] for i, row in enumerate(rows[:2])), key=len)
    alone = [compute_losses(model, [row], idf, SMALL, halves=False)["words"].item() for row in (short, long)]
    together = compute_losses(model, [short, long], idf, SMALL, halves=False)["words"].item()
    assert len(short) < len(long) and together == pytest.approx(np.mean(alone), abs=1e-4)


def test_the_losses_are_weighted_as_the_configuration_says(monkeypatch):
    losses = {name: torch.tensor(value) for name, value in (("masked", 1.0), ("words", 10.0), ("contrast", 100.0))}
    asked = []
    monkeypatch.setattr(trainer, "compute_losses", lambda *_, halves: asked.append(halves) or losses)
    config = replace(SMALL, words_weight=0.5, contrast_weight=0.25)
    made = SimpleNamespace(config=config, state=SimpleNamespace(global_step=3), losses=defaultdict(list), idf=None)
    for step in (3, 4):
        made.state.global_step = step
        assert trainer.PretrainingTrainer.compute_loss(made, None, {"rows": []}).item() == 1 + 5 + 25
    assert asked == [True, False]
    assert made.losses == {"masked": [1.0, 1.0], "words": [10.0, 10.0], "contrast": [100.0, 100.0]}


def test_losses_are_means_of_their_steps_and_evaluations_mask_the_same_tokens(rows, tmp_path):
    config = replace(SMALL, eval_steps=10, save_steps=10, max_steps=20)
    _, idf = count_words(rows, SMALL.vocab_size)
    parts = {"rows": rows[:40], "validation": rows[40:60], "idf": idf}
    made = trainer.PretrainingTrainer(config, tmp_path, build_masked_model(SMALL), **parts)
    first = made.evaluate()
    torch.rand(3)  # what training draws meanwhile has no say
    assert made.evaluate() == first and made.model.training and {"eval_masked_loss", "eval_words_loss"} <= first.keys()
    losses = {"masked": [3.0] * 10, "words": [4.0, 6.0] * 5, "contrast": [2.0] * 5}  # halves every other step
    made.losses.update({name: list(map(torch.tensor, each)) for name, each in losses.items()})
    made.state.log_history.append({"seconds": 1000.0})  # of before it was stopped
    logs = {"loss": 1.0}
    made.log(logs)
    assert [logs[f"{name}_loss"] for name in ("masked", "words", "contrast")] == [3.0, 5.0, 2.0]
    assert 1000 < logs["seconds"] < 1600 and not made.losses
    for name in ("loss", "eval_masked_loss"):
        with pytest.raises(CheckFailed, match=r"the loss is nan at step 0; begin anew below learning_rate 0\.001"):
            made.log({name: float("nan")})


def test_a_base_is_written_in_float16_and_read_in_float32(tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForMaskedLM

    _export(build_masked_model(SMALL), SimpleNamespace(save_pretrained=lambda folder: None), tmp_path)
    assert {each.dtype for each in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert {each.dtype for each in AutoModelForMaskedLM.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_a_pretraining_that_was_stopped_before_its_record_does_its_last_steps_again(tmp_path):
    for step, content in ((5, "{}"), (10, '{"global_step": 10}'), (15, ""), (20, '{"global_step": 20}')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(content)
    assert _find_stopped(tmp_path, 20) == str(tmp_path / "checkpoint-10")  # 15 was cut off; behind 20 there is no step
    assert _find_stopped(tmp_path, 10) is None and _find_stopped(tmp_path / "none", 20) is None


@pytest.mark.slow
def test_a_stopped_pretraining_resumes_to_the_same_weights(tmp_path):
    """On the bundled corpus: 20 steps, stopped at 10 and continued; then the base loads like any other."""
    import json
    import shutil

    from safetensors.torch import load_file

    from lora_helpers.config import get_profile
    from lora_helpers.errors import InputError
    from lora_helpers.model import build_model
    from lora_helpers.pretraining.run import PRETRAINING_RECORD, pretrain

    config = PretrainingConfig(
        profile="mini", vocab_size=1000, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        batch_tokens=1024, max_steps=20, eval_steps=5, save_steps=10, warmup_steps=2,
    )  # fmt: skip
    keep = tmp_path / "keep"

    def copy_at_10(folder, *arguments, _stock=shutil.rmtree, **named):
        if str(folder).endswith("work"):
            shutil.copytree(folder, keep)
        _stock(folder, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", copy_at_10)
        record = pretrain(config, tmp_path / "whole")
    shutil.rmtree(keep / "checkpoint-20")
    shutil.copytree(keep, tmp_path / "stopped" / "work")
    (tmp_path / "stopped" / "work" / "checkpoint-15").mkdir()
    (tmp_path / "stopped" / "work" / "checkpoint-15" / "trainer_state.json").touch()  # killed while it was written
    with pytest.raises(InputError, match="holds files already"):
        pretrain(config, tmp_path / "stopped")
    again = pretrain(config, tmp_path / "stopped", resume=True)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    losses_of = [[row.get("masked_loss") for row in r["log"]] for r in (record, again)]
    assert losses_of[0] == losses_of[1]
    assert json.loads((tmp_path / "whole" / PRETRAINING_RECORD).read_text()) == record
    model, _ = build_model(get_profile("mini", base_model=str(tmp_path / "whole")))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    shutil.copytree(keep, tmp_path / "other" / "work")
    with pytest.raises(InputError, match="another configuration"):
        pretrain(PretrainingConfig(**record["config"] | {"seed": 1}), tmp_path / "other", resume=True)
    assert pretrain(config, tmp_path / "whole", resume=True) == record  # finished before
    with pytest.raises(InputError, match="another configuration"):
        pretrain(PretrainingConfig(**record["config"] | {"seed": 1}), tmp_path / "whole", resume=True)


@pytest.mark.parametrize("name", ["max_steps", "save_steps"])
def test_a_pretraining_whose_end_or_checkpoints_no_row_of_the_log_meets_is_refused(name):
    from lora_helpers.errors import InputError

    with pytest.raises(InputError, match=f"{name} is 100, wanted a multiple of eval_steps"):
        PretrainingConfig(**{name: 100})


def test_more_dimensions_than_words_are_refused_before_any_work():
    from lora_helpers.errors import InputError

    with pytest.raises(InputError, match=r"hidden_size is 512, wanted at most vocab_size \(300\)"):
        PretrainingConfig(hidden_size=512, vocab_size=300)


def test_a_slip_in_the_profile_leaves_nothing_that_would_refuse_the_next_try(tmp_path):
    from lora_helpers.errors import InputError
    from lora_helpers.pretraining.run import pretrain

    with pytest.raises(InputError, match="unknown profile 'mni'"):
        pretrain(replace(SMALL, profile="mni"), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_what_was_not_begun_is_not_resumed_and_nobody_s_files_are_removed(tmp_path):
    from lora_helpers.errors import InputError
    from lora_helpers.pretraining.run import pretrain

    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.txt").touch()
    for resume, said in ((False, "holds files already"), (True, "holds files, but no pretraining that was begun")):
        with pytest.raises(InputError, match=said):
            pretrain(SMALL, tmp_path, resume=resume)
    assert (tmp_path / "work" / "mine.txt").is_file()
