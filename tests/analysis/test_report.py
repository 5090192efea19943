"""The page, its numbers, and how a browser draws it."""

import json
import re
import shutil

import pandas
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, pipeline

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
)
from spikenlp.analysis import EnergyConstants, SpikeMonitor, describe_spikes, energy_report
from spikenlp.analysis import report as module
from spikenlp.analysis.report import report
from spikenlp.cli import _ids, main
from spikenlp.data import wordpiece_tokenizer
from spikenlp.data.augmentation import ImageTransform
from spikenlp.data.images import MEAN_STD
from spikenlp.metrics import calibration_by_timestep, glue_metrics, reliability_curve
from tests.conftest import TINY_DENSE
from tests.hub.browser import EXECUTABLE, browser
from tests.models.test_vision import images, make

pytestmark = pytest.mark.slow
CHARTS = 9


def bert(**fields):
    torch.manual_seed(0)
    fields = {**TINY_DENSE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0, **fields}
    return SpikingBertForSequenceClassification(SpikingBertConfig(**fields))


@pytest.fixture
def model():
    return bert()


@pytest.fixture
def labelled(batches):
    """The last batch is smaller."""
    generator = torch.Generator().manual_seed(1)
    made = [{**b, "labels": torch.randint(2, (8,), generator=generator)} for b in batches]
    return [*made[:3], {k: v[:3] for k, v in made[3].items()}]


def strict_json(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_numbers_are_those_of_the_functions(model, labelled, tmp_path):
    found = report(model, labelled, tmp_path / "page.html")
    assert strict_json(tmp_path / "page.json") == found
    assert model.training, "left as it was"
    model.eval()
    with SpikeMonitor(model) as monitor, torch.no_grad():
        outputs = [model(**{k: v for k, v in b.items() if k != "labels"}) for b in labelled]
    logits = torch.cat([o.timestep_logits for o in outputs])
    labels = torch.cat([b["labels"] for b in labelled])
    for t in (1, 2, 3, 4):
        right = logits[:, :t].mean(1).argmax(-1) == labels
        assert found["accuracy"][t - 1] == pytest.approx(right.double().mean().item())
    assert found["calibration"] == pytest.approx(calibration_by_timestep(logits, labels))
    for name, counts in monitor.layers.items():
        assert found["firing_rate"][name] == pytest.approx(counts.rate_by_step.tolist())
        if "key_neuron" in name:
            expected = counts.rate_by_head(TINY_DENSE["num_attention_heads"]).tolist()
            assert found["firing_rate_by_head"][name] == expected
    assert len(found["firing_rate_by_head"]) == 3 * TINY_DENSE["num_hidden_layers"]
    for t, bins in enumerate(found["reliability"], 1):
        curve = reliability_curve(logits[:, :t].mean(1).softmax(-1), labels)
        assert bins["count"] == curve.count.tolist()
        filled = [x for x in bins["accuracy"] if x is not None]
        assert filled == pytest.approx(curve.accuracy[curve.count > 0].tolist())
    assert found["drivers"] == [vars(d) for d in describe_spikes(model, labelled[0])]
    page = (tmp_path / "page.html").read_text()
    assert f"accuracy {100 * found['accuracy'][-1]:.1f} %" in page


def test_energy_is_the_mean_over_the_first_samples(model, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ENERGY_SAMPLES", 12)
    found = report(model, labelled, tmp_path / "page.html")
    assert found["energy"]["samples"] == 16
    assert found["similarity_samples"] == 8
    page = (tmp_path / "page.html").read_text()
    assert "Energy is the mean of the first 16 samples" in page
    assert "product, are of the first 8." in page

    monkeypatch.setattr(module, "ENERGY_SAMPLES", 27)
    found = report(model, labelled, tmp_path / "page.html")
    parts = [energy_report(model, batch).to_dict() for batch in labelled]
    assert found["energy"]["samples"] == 27

    def mean(read):
        return pytest.approx(sum(r["samples"] * read(r) for r in parts) / 27)

    energy = found["energy"]
    for part in ("energies", "memory", "elementwise"):
        for name, value in energy[part].items():
            assert value == mean(lambda r: r[part][name])  # noqa: B023
    assert energy["membrane_updates"] == mean(lambda r: r["membrane_updates"])
    for i, layer in enumerate(energy["layers"]):
        assert layer["sops"] == mean(lambda r: r["layers"][i]["sops"])  # noqa: B023
    sops, driven = (
        sum(r["samples"] * layer[name] for r in parts for layer in r["layers"] if layer["rate"])
        for name in ("sops", "dense_macs")
    )
    assert energy["rate"] == pytest.approx(sops / (4 * driven))
    with SpikeMonitor(model.eval()) as monitor, torch.no_grad():
        for batch in labelled:
            model(**{k: v for k, v in batch.items() if k != "labels"})
    assert energy["spikes_per_neuron"] == pytest.approx(monitor.spikes_per_neuron)
    spent = found["energy_microjoules"]["spiking, float32"]
    assert spent[-1] == pytest.approx(energy["energies"]["spiking, float32"] / 1e6)
    assert spent == sorted(spent), "each step costs"
    assert energy["products_ratio_formula"] == pytest.approx(energy["products_ratio"], rel=0.05)


def test_constants_reach_the_energy_and_the_page(model, labelled, tmp_path):
    usual = report(model, labelled, tmp_path / "usual.html")["energy"]
    mine = EnergyConstants(float_mac=9.2, float_ac=1.8)
    found = report(model, labelled, tmp_path / "mine.html", constants=mine)["energy"]
    assert found["constants"]["float_mac"] == 9.2
    spiking = "spiking, float32"
    assert found["energies"][spiking] == pytest.approx(2 * usual["energies"][spiking])
    page = (tmp_path / "mine.html").read_text()
    assert "1.8 pJ (float32)" in page
    assert "Horowitz" not in page
    assert "0.9 pJ (float32)" in (tmp_path / "usual.html").read_text()


def test_every_number_of_the_page_is_in_the_json(model, labelled, tmp_path):
    report(model, labelled, tmp_path / "page.html", metrics=glue_metrics("qqp"))
    known = set()

    def learn(value):
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                learn(part)
        elif isinstance(value, int | float):
            scaled = [value, 100 * value, value / 1e3, value / 1e6, 1 / value if value else 0]
            known.update(f"{x:.{digits}f}" for x in scaled for digits in range(5))

    learn(strict_json(tmp_path / "page.json"))
    page = (tmp_path / "page.html").read_text()
    tables = re.findall(r"<h2>(.*?)</h2>\n<pre>(.*?)</pre>", page, re.DOTALL)
    lead = "".join(re.findall("<p>(.*?)</p>", page))
    for name, text in [("lead", lead), *tables]:
        shown = re.findall(r"(?<![\w.])\d[\d,]*\.\d+(?!\w)", text)
        if name != "How energy is counted":
            assert not {number.replace(",", "") for number in shown} - known, name
    assert sum("." in number for number in known) > 100
    assert dict(tables)["The example at each step"].count("confidence") == 4


def test_f1_where_the_task_has_it(model, labelled, tmp_path):
    found = report(model, labelled, tmp_path / "page.html", metrics=glue_metrics("qqp"))
    assert list(found["scores"]) == ["f1"]
    with torch.no_grad():
        outputs = [model.eval()(**{k: v for k, v in b.items() if k != "labels"}) for b in labelled]
    logits = torch.cat([o.timestep_logits for o in outputs]).numpy()
    labels = torch.cat([b["labels"] for b in labelled]).numpy()
    for t in (1, 2, 3, 4):
        expected = glue_metrics("qqp")(logits[:, :t].mean(1), labels)["f1"]
        assert found["scores"]["f1"][t - 1] == pytest.approx(expected)
    page = (tmp_path / "page.html").read_text()
    assert f"f1 {found['scores']['f1'][-1]:.3f}, ECE" in page
    assert "Accuracy and f1 by time step" in page


def test_one_time_step(labelled, tmp_path):
    found = report(bert(num_timesteps=1), labelled, tmp_path / "page.html")
    assert strict_json(tmp_path / "page.json") == found
    assert set(found["mean_similarity"].values()) == {None}
    assert (tmp_path / "page.html").read_text().count("Reliability at step") == 1


def test_one_page_without_network(model, labelled, tmp_path):
    report(model, labelled, tmp_path / "page.html", title="a < b")
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 5e6
    assert page.count("<svg") == CHARTS
    assert not re.search(r'(?:src|href)="https?:', page)
    assert "<h1>a &lt; b</h1>" in page


def test_a_model_that_does_not_spike_is_told_so_first(model, labelled, tmp_path):
    neuron = model.bert.encoder.layer[0].output.neuron
    neuron.register_forward_hook(lambda module, args, sent: 0 * sent)
    found = report(model, labelled, tmp_path / "page.html")
    assert found["spiking"].startswith("NOT SPIKING: bert.encoder.layer.0.output.neuron sent no")
    body = (tmp_path / "page.html").read_text().partition("</h1>")[2]
    assert body.strip().startswith('<p class="bad">NOT SPIKING')


@pytest.fixture(scope="module")
def largest(tmp_path_factory):
    """The page of what the command can show at most: 128 tokens; here in 6 layers that fire a lot."""
    model = bert(num_hidden_layers=6, max_position_embeddings=128)
    for name, parameter in model.named_parameters():
        if name.endswith("amplitude"):
            parameter.data.mul_(0.2)
    ids = torch.randint(5, 120, (2, 128), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    page = tmp_path_factory.mktemp("largest") / "page.html"
    found = report(model, [{**batch, "labels": torch.tensor([0, 1])}], page)
    rates = [sum(by_step) / 4 for by_step in found["firing_rate"].values()]
    assert sum(rates) / len(rates) > 0.5
    return page


MEASURE = """(() => {
  const em = g => { const m = g.getScreenCTM(); return 100 * Math.sqrt(Math.abs(m.a * m.d - m.b * m.c)); };
  return {
    page: document.documentElement.scrollWidth,
    charts: [...document.querySelectorAll("svg")].map(svg => {
      const box = svg.getBoundingClientRect(), frame = svg.parentElement;
      const letters = [...svg.querySelectorAll("g[id^=text_] > g[transform*=scale]")].map(em);
      return {
        width: box.width, height: box.height, paths: svg.querySelectorAll("path").length,
        letters: letters.length, smallest: Math.min(...letters),
        frame: frame.clientWidth, room: frame.scrollWidth,
      };
    }),
  };
})()"""


@pytest.mark.parametrize("width", [1280, 400])
def test_the_largest_page_is_small_and_legible(largest, tmp_path, width):
    assert largest.stat().st_size < 5e6
    if EXECUTABLE is None:
        pytest.skip("needs chromium")
    with browser(tmp_path / "profile") as page:
        page.open(largest.as_uri(), width)
        page.wait_for(f"document.querySelectorAll('svg').length == {CHARTS}")
        found = page.evaluate(MEASURE)
    assert found["page"] <= width, "no scrolling sideways"
    for chart in found["charts"]:
        assert chart["width"] > 200
        assert chart["height"] > 60
        assert chart["paths"] > 5
        assert chart["letters"] > 5
        assert chart["smallest"] > 7.99
        assert chart["frame"] <= width
        assert chart["room"] >= int(chart["width"]), "all of it can be scrolled to"


def test_the_commands_report_and_compare(model, labelled, tmp_path, capsys):
    for name in ("a", "b"):
        report(model, labelled, tmp_path / f"{name}.html")
    main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    rows = capsys.readouterr().out.splitlines()
    assert [row[0] for row in rows] == ["a", "b"]
    incomplete = json.loads((tmp_path / "a.json").read_text()) | {"calibration": {}}
    for content in ({}, 3, [], incomplete):
        (tmp_path / "c.json").write_text(json.dumps(content))
        with pytest.raises(SystemExit, match="not what `spikenlp report` wrote"):
            main(["compare", str(tmp_path / "c.json")])
    (tmp_path / "c.json").write_text("not json")
    with pytest.raises(SystemExit, match=r"c\.json is not what `spikenlp report` wrote"):
        main(["compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A classifier of "dull" and "fine", and GLUE files of SST-2's, in one folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sentences = ["a fine film", "a dull film", "what a joy", "what a bore"] * 5
    rows = "".join(f"{text}\t{1 - i % 2}\n" for i, text in enumerate(sentences))
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("sentence\tlabel\n" + rows)
    tokenizer = wordpiece_tokenizer(sentences)
    bert(
        vocab_size=len(tokenizer),
        max_position_embeddings=12,
        id2label={0: "dull", 1: "fine"},
        label2id={"dull": 0, "fine": 1},
    ).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def test_the_report_of_a_checkpoint_on_a_glue_task(checkpoint, tmp_path, capsys):
    command = ["report", str(checkpoint / "model"), "--data_dir", str(checkpoint)]
    out = str(tmp_path / "page.html")
    main([*command, "--task_name", "sst2", "--out", out, "--max_samples", "18", "--batch", "8"])
    assert "on 18 samples" in capsys.readouterr().out
    values = strict_json(tmp_path / "page.json")
    assert (values["title"], values["samples"]) == ("model on sst2", 18)
    for task, message in (
        ("sst3", "sst3"),
        ("stsb", "a regression"),
        ("mnli", "of 3 classes, and .* tells 2"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*command, "--task_name", task, "--out", out])


def test_a_classifier_with_the_labels_of_a_task_in_another_order_is_refused(checkpoint, tmp_path):
    swapped = {
        "id2label": {0: "positive", 1: "negative"},
        "label2id": {"positive": 0, "negative": 1},
    }
    shutil.copytree(checkpoint / "model", tmp_path / "model")
    bert(vocab_size=40, max_position_embeddings=12, **swapped).save_pretrained(tmp_path / "model")
    command = ["report", str(tmp_path / "model"), "--data_dir", str(checkpoint)]
    with pytest.raises(SystemExit, match="their order must be the same"):
        main([*command, "--task_name", "sst2", "--out", str(tmp_path / "page.html")])


def test_a_model_of_several_labels_at_once_is_refused(tmp_path):
    model = bert(num_labels=3, problem_type="multi_label_classification")
    batch = {"input_ids": torch.ones(2, 4).long(), "labels": torch.ones(2, 3)}
    with pytest.raises(ValueError, match="several at once"):
        report(model, [batch], tmp_path / "page.html")


def test_labels_of_tokens_are_refused(tmp_path):
    batch = {"input_ids": torch.ones(2, 4).long(), "labels": torch.ones(2, 4).long()}
    with pytest.raises(ValueError, match=r"labels \[B\], .* \[2, 4\]"):
        report(bert(), [batch], tmp_path / "page.html")


TEXTS = ["a fine film", "a dull, dull film", "NA", "1984"]
LABELS = ["fine", "dull", "1", 0]


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl"])
def test_the_report_of_own_data(checkpoint, tmp_path, capsys, kind):
    data = tmp_path / f"mine.{kind}"
    rows = [
        {"review": text, "other": "a joy", "stars": label}
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    if kind == "json":
        data.write_text(json.dumps([{**row, "stars": str(row["stars"])} for row in rows]))
    elif kind == "jsonl":
        data.write_text("".join(json.dumps({**r, "stars": str(r["stars"])}) + "\n" for r in rows))
    else:
        pandas.DataFrame(rows).to_csv(data, sep="\t" if kind == "tsv" else ",", index=False)
    command = ["report", str(checkpoint / "model"), "--data", str(data), "--label_column", "stars"]
    main([*command, "--text_columns", "review", "--out", str(tmp_path / "page.html")])
    assert "on 4 samples" in capsys.readouterr().out
    values = strict_json(tmp_path / "page.json")
    assert values["title"] == f"model on mine.{kind}"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "model")
    model = SpikingBertForSequenceClassification.from_pretrained(checkpoint / "model")
    with torch.no_grad():
        answers = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.argmax(-1)
    assert values["accuracy"][-1] == (answers == torch.tensor([1, 0, 1, 0])).double().mean()
    assert values["example"]["truth"] == "fine"
    pair = ["--text_columns", "review", "other", "--out", str(tmp_path / "pair.html")]
    main([*command, *pair, "--max_samples", "3"])
    assert strict_json(tmp_path / "pair.json")["samples"] == 3


def test_quotation_marks_of_a_tsv_are_text(checkpoint, tmp_path):
    data = tmp_path / "quotes.tsv"
    data.write_text('text\tlabel\n"a fine\tfine\nfilm" he said\tdull\n')
    options = ["--data", str(data), "--text_columns", "text", "--label_column", "label"]
    main(["report", str(checkpoint / "model"), *options, "--out", str(tmp_path / "page.html")])
    assert strict_json(tmp_path / "page.json")["samples"] == 2


@pytest.mark.parametrize(
    ("given", "expected"), [("123", [0, 1, 2]), ("012", [0, 1, 2]), ("13", [0, 2])]
)
def test_classes_whose_names_are_numbers_are_read_one_way(given, expected):
    names = dict(enumerate("123"))
    config = SpikingBertConfig(id2label=names, label2id={v: k for k, v in names.items()})
    found = _ids(config, set(given))
    assert [found[label] for label in given] == expected
    with pytest.raises(ValueError, match=r"the labels \['1', '2'\] are names"):
        _ids(config, {"1", "2"})


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", "", [], r"must end with one of \.csv, \.tsv, \.json, \.jsonl"),
        ("a.csv", None, [], "no file"),
        ("a.csv", "", [], "cannot be read"),
        ("a.jsonl", "{", [], "cannot be read"),
        (
            "a.csv",
            "sentence,label\na,0\n",
            [],
            r"no column \['text'\], but \['sentence', 'label'\]",
        ),
        (
            "a.csv",
            "text,label\na,0\nb,good\n",
            [],
            "row 2: label 'good' is none of .*'dull', 'fine'",
        ),
        ("a.csv", "text,label\na,2\n", [], "row 1: label '2' is none of"),
        ("a.jsonl", '{"text": null, "label": 1}\n', [], "row 1 has no 'text'"),
        ("a.csv", "text,label\na,0\n", ["--data_dir", "x"], "belong to --task_name"),
        ("a.csv", "text,label\na,0\n", ["--text_columns", "a", "b", "c"], "takes one or two"),
        ("a.csv", "text,label\n", [], "cannot be read"),
        ("a.csv", "text,label\na,0\n", ["--out", "b.json"], "must be the page's file"),
    ],
)
def test_what_is_wrong_with_own_data_is_said(checkpoint, tmp_path, name, content, options, message):
    data = tmp_path / name
    if content is not None:
        data.write_text(content)
    with pytest.raises(SystemExit, match=message):
        main(["report", str(checkpoint / "model"), "--data", str(data), *options])


def test_a_report_reads_classifiers(tmp_path):
    SpikingBertForMaskedLM(SpikingBertConfig(**TINY_DENSE)).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=r"reads spiking classifiers.*ForMaskedLM.*inspect"):
        main(["report", str(tmp_path), "--task_name", "sst2"])


@pytest.mark.parametrize(
    ("name", "frames"), [("vgg", 2), ("resnet", None), ("resnet", 4), ("qkformer", None)]
)
def test_the_page_of_a_vision_model(name, frames, tmp_path):
    model = make(name)
    pixels = images(model, batch=6)
    if frames is not None:
        pixels = torch.stack([images(model, 6, seed) for seed in range(frames)], 1)
    labels = torch.arange(6)
    batches = [
        {"pixel_values": pixels[rows], "labels": labels[rows]}
        for rows in (slice(0, 4), slice(4, 6))
    ]
    found = report(model, batches, tmp_path / "page.html")
    assert strict_json(tmp_path / "page.json") == found
    with torch.no_grad():
        logits = model(pixels).timestep_logits
    steps = logits.shape[1]
    assert steps == (frames or 3)
    right = [
        float((logits[:, : t + 1].mean(1).argmax(-1) == labels).double().mean())
        for t in range(steps)
    ]
    assert found["accuracy"] == pytest.approx(right)
    with SpikeMonitor(model) as monitor, torch.no_grad():
        model(pixels)
    for neuron, counts in monitor.layers.items():
        assert found["firing_rate"][neuron] == pytest.approx(counts.rate_by_step.tolist())
    assert found["firing_rate_by_head"] == {}
    stages = [f"{model.base_model_prefix}.stages.{i}" for i in range(len(model.config.depths))]
    assert list(found["similarity"]) == stages
    model.config.num_timesteps = 1
    first = pixels if frames is None else pixels[:, :1]
    spent = found["energy_microjoules"]["spiking, float32"]
    assert spent[0] == pytest.approx(
        energy_report(model, {"pixel_values": first}).energies["spiking, float32"] / 1e6
    )
    assert spent == sorted(set(spent)), "each step costs"
    assert "tokens" not in found["example"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == CHARTS - 2, "no heads, no tokens"
    words = re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL)
    assert "token" not in words
    assert ("some run in fewer" in words) is (frames is None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Dark and bright images, class by class in folders."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 1), ("test", 9)):
        for name, level in (("bright", 200), ("dark", 20)):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (level, level + i, level)).save(
                    folder / split / name / f"{i}.png"
                )
    return folder


LIGHT = {"id2label": {0: "dark", 1: "bright"}, "label2id": {"dark": 0, "bright": 1}}


def light(folder, **fields):
    make("resnet", num_labels=2, **LIGHT, **fields).save_pretrained(folder)
    return str(folder)


def test_the_report_of_a_checkpoint_on_a_folder_of_images(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    path = light(tmp_path / "model")
    transform = ImageTransform(8, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), train=False)
    transform.image_processor().save_pretrained(path)
    command = ["report", path, "--data", str(pictures), "--out", str(tmp_path / "page.html")]
    main([*command, "--batch", "4"])
    assert "on 18 samples" in capsys.readouterr().out
    values = strict_json(tmp_path / "page.json")
    assert values["title"] == f"model on {pictures.name}"
    classify = pipeline("image-classification", model=path)
    answers = {
        name: [classify(str(p))[0]["label"] for p in (pictures / "test" / name).iterdir()]
        for name in ("dark", "bright")
    }
    right = sum(answers[name].count(name) for name in answers)
    assert values["accuracy"][-1] == pytest.approx(right / 18)
    seen = []

    def watched(model, batches, *args, **options):
        seen.extend(batches)
        return report(model, batches, *args, **options)

    monkeypatch.setattr(module, "report", watched)
    main([*command, "--batch", "4", "--max_samples", "6", "--normalisation", "cifar10"])
    labels, pixels = (
        torch.cat([batch[key] for batch in seen]) for key in ("labels", "pixel_values")
    )
    assert len(labels) == 6
    assert set(labels.tolist()) == {0, 1}, "not class by class"
    assert torch.equal(pixels.mean((1, 2, 3)) > 0, labels == 1)
    transform = ImageTransform(8, *MEAN_STD["cifar10"], train=False)
    files = [p for name in ("dark", "bright") for p in (pictures / "test" / name).iterdir()]
    known = [transform(Image.open(p)) for p in files]
    assert all(any(torch.equal(x, y) for y in known) for x in pixels)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, [], "preprocessor_config"),
        ({}, ["--normalisation", "cifar"], "--normalisation must be one of cifar10, cifar100"),
        (
            {"label2id": {"a": 0, "b": 1}, "id2label": {0: "a", 1: "b"}},
            [],
            r"classes \['bright', 'dark'\]",
        ),
        ({"num_channels": 2}, [], r"frames of an event camera.*analysis\.report\.report"),
        ({"neuron": "relu"}, ["--normalisation", "cifar10"], "holds no spiking neuron"),
    ],
)
def test_what_is_wrong_with_images_is_said(
    pictures, tmp_path, monkeypatch, fields, options, message
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    make("resnet", **{"num_labels": 2, **LIGHT, **fields}).save_pretrained(tmp_path / "model")
    command = ["report", str(tmp_path / "model"), "--out", str(tmp_path / "page.html"), *options]
    with pytest.raises(SystemExit, match=message):
        main([*command, "--data", str(pictures)])
    if not fields:
        with pytest.raises(SystemExit, match="image classifier: give --data, a folder of images"):
            main([*command, "--task_name", "sst2"])


def test_bad_input_is_named(model, labelled, batches, tmp_path):
    with pytest.raises(ValueError, match="at least one batch"):
        report(model, [], tmp_path / "page.html")
    with pytest.raises(ValueError, match="labels, which batch 1 has not"):
        report(model, [labelled[0], batches[1]], tmp_path / "page.html")
    wrong = {**labelled[1], "labels": labelled[1]["labels"] + 1}
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\), those of batch 1 in 1 ... 2"):
        report(model, [labelled[0], wrong], tmp_path / "page.html")
    for out in (tmp_path, tmp_path / "page.json"):
        with pytest.raises(ValueError, match="must be the page's file"):
            report(model, labelled, out)
    assert not list(tmp_path.iterdir())
