import shutil

import numpy as np
import pytest

from lora_helpers import figures
from lora_helpers.architecture import draw_architecture, draw_roberta_base
from lora_helpers.config import LABELS, get_profile
from lora_helpers.errors import InputError
from lora_helpers.evidence import plots
from lora_helpers.figures import FIGURES, draw_figures
from lora_helpers.files.places import REPOSITORY
from lora_helpers.model import count_parameters, make_lora_config, shape_of
from lora_helpers.records import RECORD, read_record, write_record
from lora_helpers.training.run import next_run_dir

CHECKPOINTS = REPOSITORY / "checkpoints"
COMMITTED = CHECKPOINTS / "mini-agnews"
ROBERTA_BASE = "roberta-base-architecture.png"


@pytest.fixture
def record():
    return read_record(COMMITTED)


def words(figure) -> list[str]:
    """Every text of a figure: titles, labels, legends, notes."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file/figures: cannot be written .Not a directory.; make room there"):
        draw_figures([COMMITTED], tmp_path / "file" / "figures")
    with pytest.raises(InputError, match="file/runs: cannot be written"):
        next_run_dir("mini", tmp_path / "file" / "runs")


@pytest.mark.slow
def test_every_figure_is_drawn_from_the_record_alone(tmp_path, monkeypatch, record):
    """No weights, no data, no torch: only run.json is there. The same record gives the same bytes, another one others."""
    (tmp_path / "run").mkdir()
    shutil.copy(COMMITTED / RECORD, tmp_path / "run")
    monkeypatch.delenv("AG_NEWS_DIR", raising=False)
    drawn = draw_figures([tmp_path / "run"], tmp_path / "figures")
    assert {kind: path.name for kind, path in drawn["run"].items()} == {kind: f"run-{kind}.png" for kind in FIGURES}
    assert all(path.stat().st_size > 10_000 for path in drawn["run"].values())
    again = draw_figures([tmp_path / "run"], tmp_path / "again")
    assert [p.read_bytes() for p in drawn["run"].values()] == [p.read_bytes() for p in again["run"].values()]
    record["log"][-1]["eval_accuracy"] += 0.01
    write_record(tmp_path / "run", record)
    other = draw_figures([tmp_path / "run"], tmp_path / "other")["run"]
    assert other["accuracy"].read_bytes() != drawn["run"]["accuracy"].read_bytes()
    assert other["lengths"].read_bytes() == drawn["run"]["lengths"].read_bytes()


@pytest.mark.slow
def test_the_committed_figures_show_the_committed_records(tmp_path):
    """By content: another build of the fonts may shade an edge otherwise, another number moves more."""
    from matplotlib.image import imread

    drawn = draw_figures([CHECKPOINTS / run for run in ("mini", "mini-agnews")], tmp_path)
    paths = [draw_roberta_base(tmp_path), *(path for files in drawn.values() for path in files.values())]
    for path in paths:
        found, wanted = imread(path), imread(REPOSITORY / "figures" / path.name)
        assert found.shape == wanted.shape and np.abs(found - wanted).mean() < 2e-4, path.name
    names = {path.name for path in (REPOSITORY / "figures").iterdir()}
    assert {path.name for path in paths} | {"throughput.png", "studies.png"} <= names
    assert "mini-reliability.png" not in names  # 240 rows


def test_every_word_can_be_read_at_a_width_of_400_pixels(record):
    from matplotlib.text import Text

    for kind, draw in FIGURES.items():
        figure = draw(record)
        inches = figure.get_size_inches()[0]
        points = min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text())
        assert points / 72 * 400 / inches >= 9, kind  # pixels, a capital letter is seven tenths of that


def test_what_has_too_little_to_show_is_left_out(record):
    assert figures.draw_reliability(record) and figures.draw_confusion(record)
    record["test"]["examples"] = 999
    assert figures.draw_reliability(record) is None
    del record["test"]
    assert figures.draw_reliability(record) is None and figures.draw_confusion(record) is None


def test_the_training_loss_is_called_what_it_is(record):
    shown = words(figures.draw_losses(record))
    assert {"training, mean since last point", "Loss: AG News", "cross-entropy (nats)"} <= set(shown)
    record["config"]["label_smoothing_factor"] = 0.1
    assert "cross-entropy (nats), smoothed labels" in words(figures.draw_losses(record))


RIVALS = {"head alone": {"mean": 0.8765, "runs": [1, 2]}, "full fine-tuning": {"mean": 0.9321, "runs": [1]}}


def test_accuracies_of_runs_share_an_axis_and_stand_beside_simpler_models_of_the_same_rows(record, monkeypatch):
    curves = [{"curve": [[100, low], [2400, 0.90]]} for low in (0.80, 0.84)]
    evidence = {
        "mini-agnews-seeds": {"runs": curves},
        "baselines": {"mini-agnews": {"chosen": {"validation_accuracy": 0.9123}}, "mini": {}},
        "rivals": {"profile": "mini-agnews", "arms": {"LoRA": {"mean": 0.9, "runs": []}} | RIVALS},
    }
    monkeypatch.setattr(figures, "read_evidence", lambda: evidence)
    figure = figures.draw_accuracy(record)
    references = {"linear model, all rows: 0.912", "head alone, 2 seeds: 0.876", "range of 2 seeds"}
    references |= {"full fine-tuning, 1 seed: 0.932"}
    assert references <= set(words(figure))
    band = figure.axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (0.80, 0.90)
    mini = read_record(CHECKPOINTS / "mini")
    limits = [
        draw(each).axes[0].get_ylim()
        for draw in (figures.draw_accuracy, figures.draw_losses)
        for each in (record, mini)
    ]
    assert limits[0] == limits[1] and limits[2] == limits[3]
    assert not references & set(words(figures.draw_accuracy(mini)))  # evidence of another profile
    other = record | {"config": record["config"] | {"lora_rank": 64}}  # another recipe
    assert references - set(words(figures.draw_accuracy(other))) == {"range of 2 seeds"}
    its = record | {"config": record["config"] | {"seed": 7, "report_to": "tensorboard"}}
    assert references <= set(words(figures.draw_accuracy(its)))
    another = {"base": record["base"] | {"weights_sha256": "another"}}
    for its in (another, {"config": record["config"] | {"random_base": True}}):
        assert references & set(words(figures.draw_accuracy(record | its))) == {"linear model, all rows: 0.912"}
    for split in ("validation", "train"):
        data = record["data"] | {"sha256": record["data"]["sha256"] | {split: "other rows"}}
        assert not references & set(words(figures.draw_accuracy(record | {"data": data})))


def test_a_class_without_rows_has_shares_of_zero(record):
    record["test"]["confusion"][2] = [0, 0, 0, 0]
    shown = words(figures.draw_confusion(record))
    assert "0\n0.0%" in shown and not any("nan" in word for word in shown)


def test_intervals_of_the_reliability_diagram_are_of_the_rows_that_were_right(record):
    from scipy.stats import binomtest

    record["test"]["calibration"]["bins"] = [{"confidence": 0.3, "accuracy": 29 / 100, "count": 100}]
    drawn = figures.draw_reliability(record).axes[0].collections[0].get_segments()
    ends = binomtest(29, 100).proportion_ci(method="wilson")
    assert [tuple(each[:, 1]) for each in drawn] == [pytest.approx((ends.low, ends.high))]


def test_a_figure_names_the_run_its_seed_and_its_code(tmp_path, monkeypatch, record):
    write_record(tmp_path, record | {"config": record["config"] | {"seed": 7}})
    told = []
    monkeypatch.setattr(figures, "save", lambda figure, file, *about: told.append((file.name, *about)))
    monkeypatch.chdir(tmp_path)
    draw_figures(["."], tmp_path / "figures")
    source = f"run {tmp_path.name}, seed 7, code {record['environment']['code_sha256'][:10]}"
    assert told == [(f"{tmp_path.name}-{kind}.png", source) for kind in FIGURES]


def test_a_figure_of_studies_names_the_code_of_their_runs_and_their_own():
    part = {"arms": {"x": {"runs": [{"code": "code 1"}, {}]}}, "environment": {"code_sha256": "2" * 64}}
    assert plots._mark_codes({"a": part, "b": part}, ["a", "b", "absent"]) == "code 1; code 2222222222"


def test_the_mean_length_is_of_rows(record):
    tokens = [int(length) for length, rows in record["lengths"].items() for _ in range(rows)]
    assert f"mean: {np.mean(tokens):.0f} tokens" in words(figures.draw_lengths(record))


def test_the_cut_is_said_where_rows_were_cut(record):
    shown = " ".join(words(figures.draw_lengths(record)))
    longest = record["lengths"]["128"]
    assert f"128 tokens, cut or not:\n{longest:,} rows" in shown and "rows cut at 128 first" in shown
    assert "cut" not in " ".join(words(figures.draw_lengths(read_record(CHECKPOINTS / "mini"))))


@pytest.mark.parametrize("values", [[3.0, 0.5], [3.0]])
def test_norms_show_what_is_recorded(record, values):
    facts = {"norm": 3.1, "relative": 0.123, "singular_values": values, "largest_of_W": 1.5}
    record["lora_norms"] = {f"mpnet.encoder.layer.{i}.attention.attn.q": facts for i in range(12)}
    figure = figures.draw_norms(record)
    shown = words(figure)
    assert {f"{i}\n12%" for i in range(12)} | {"layer (q)"} <= set(shown)
    assert ("update, 2nd" in shown) == (len(values) == 2)
    bars = [bar.get_height() for bar in figure.axes[0].patches]
    assert bars == [v for v in values for _ in range(12)]
    record["lora_norms"] = dict.fromkeys(("encoder.layer.0.query", "encoder.layer.0.value"), facts)
    assert {"0 query\n12%", "0 value\n12%", "layer (query, value)"} <= set(words(figures.draw_norms(record)))
    record["lora_norms"] = {"encoder.layer.0.query": 0.12}  # as records of version 1.0.0 have them
    assert figures.draw_norms(record) is None


def test_the_architecture_counts_every_weight_and_is_drawn_to_scale(tmp_path, record, monkeypatch):
    shown = " ".join(words(draw_architecture(record)))
    counts = record["parameters"]
    assert f"trained: {counts['trainable']:,}" in shown and f"frozen:\n{counts['frozen']:,}" in shown
    assert "W$_Q$\n256 x 256\n= 65,536" in shown and "A: 2 x 256 = 512" in shown and "B: 256 x 2 = 512" in shown
    assert "4 layers" in shown and all(label in shown for label in LABELS)
    assert "as thick" not in shown
    patches = [patch for patch in draw_architecture(record).axes[0].patches if hasattr(patch, "get_xy")]
    sizes = [(round(p.get_width(), 4), round(p.get_height(), 4)) for p in patches if hasattr(p, "get_width")]
    thin = round(1.7 * 2 / 256, 4)
    assert {(1.7, 1.7), (1.7, thin), (thin, 1.7)} <= set(sizes)
    record["shape"] |= {"W": [64, 256]}
    oblong = [p for p in draw_architecture(record).axes[0].patches if hasattr(p, "get_width")]
    assert (1.7, 0.425) in {(round(p.get_width(), 4), round(p.get_height(), 4)) for p in oblong}
    record["shape"] |= {"W": [256, 256]}
    record["config"]["lora_targets"], record["config"]["lora_rank"] = ["value", "query"], 1
    record["lora_norms"] = dict.fromkeys(f"encoder.layer.{i}.{name}" for i in range(4) for name in ("value", "query"))
    record["shape"] |= {"A": [1, 256], "B": [256, 1]}
    shown = " ".join(words(draw_architecture(record)))
    assert "W$_V$" in shown and "drawn 2 x as thick" in shown
    for targets in (["query", "dense"], ["layer.1.attention.self.query"]):  # not drawn, rather than drawn wrongly
        record["config"]["lora_targets"] = targets
        assert draw_architecture(record) is None


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "mpnet"])
def test_the_architecture_s_parts_add_up_for_other_encoders(kind):
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from lora_helpers.architecture import _count_parts

    sizes = {"vocab_size": 100, "num_labels": 4}
    if kind == "distilbert":
        sizes |= {"dim": 16, "hidden_dim": 40, "n_layers": 3, "n_heads": 2}
    else:
        sizes |= {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    target = {"roberta": "query", "distilbert": "q_lin", "mpnet": "q"}[kind]
    heads = ["classifier", "pre_classifier"] if kind == "distilbert" else ["classifier"]
    config = get_profile("mini", lora_targets=(target,))
    base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **sizes))
    model = get_peft_model(base, make_lora_config(config, heads))
    facts = {"config": config.to_dict(), "shape": shape_of(model), "parameters": count_parameters(model)}
    parts = _count_parts(facts)
    assert parts["lora_a_layer"] == 2 * (16 + 16)  # A and B, without the head
    frozen = {
        name: p.numel() for name, p in model.named_parameters() if not p.requires_grad and "classifier" not in name
    }
    layer = [n for name, n in frozen.items() if ".layer.1." in name]
    assert parts["layer"] == sum(layer) > 0
    assert parts["rest_numbers"] == sum(n for name, n in frozen.items() if ".layer." not in name)
    assert draw_architecture(facts)


def test_two_runs_of_one_name_do_not_overwrite_each_others_figures(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match="more than one run is called mine"):
        draw_figures([tmp_path / "a" / "mine", tmp_path / "b" / "mine"], tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        draw_figures([tmp_path], tmp_path)
