"""The page, its numbers, and how a browser draws it."""

import json
import re
import shutil
import subprocess

import pytest
import torch

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis import SpikeMonitor, energy_report
from spikenlp.analysis.report import report
from spikenlp.cli import main
from spikenlp.data import wordpiece_tokenizer
from spikenlp.metrics import calibration_by_timestep
from tests.conftest import TINY_DENSE

pytestmark = pytest.mark.slow
CHARTS = 8


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = SpikingBertConfig(
        **TINY_DENSE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0
    )
    return SpikingBertForSequenceClassification(config)


@pytest.fixture
def labelled(batches):
    generator = torch.Generator().manual_seed(1)
    return [{**b, "labels": torch.randint(2, (8,), generator=generator)} for b in batches]


def test_the_numbers_are_those_of_the_functions(model, labelled, tmp_path):
    found = report(model, labelled, tmp_path / "page.html")
    assert json.loads((tmp_path / "page.json").read_text()) == found
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
    whole = energy_report(model, labelled[0])
    assert found["energy"]["spikes_per_neuron"] == pytest.approx(whole.spikes_per_neuron)
    spent = found["energy_microjoules"]["spiking, float32"]
    assert spent[-1] == pytest.approx(whole.energies["spiking, float32"] / 1e6)
    assert spent == sorted(spent), "each step costs"
    page = (tmp_path / "page.html").read_text()
    assert f"accuracy {100 * found['accuracy'][-1]:.1f} %" in page
    assert whole.verdict() in page


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


MEASURE = """<script>
const boxes = [...document.querySelectorAll("svg")].map(s => {
  const b = s.getBoundingClientRect();
  return [b.width, b.height, s.querySelectorAll("path").length];
});
document.title = JSON.stringify({boxes, page: document.documentElement.scrollWidth});
</script>"""


@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_draws_every_chart(model, labelled, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    report(model, labelled, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    (tmp_path / "measured.html").write_text(page.replace("</body>", MEASURE + "</body>"))
    shown = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
            (tmp_path / "measured.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", shown).group(1))
    assert len(found["boxes"]) == CHARTS
    for chart_width, height, paths in found["boxes"]:
        assert chart_width > 200
        assert height > 60
        assert paths > 5
    assert found["page"] <= width, "no scrolling sideways"


def test_the_commands_report_and_compare(model, labelled, tmp_path, capsys):
    for name in ("a", "b"):
        report(model, labelled, tmp_path / f"{name}.html")
    main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    rows = capsys.readouterr().out.splitlines()
    assert [row[0] for row in rows] == ["a", "b"]
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(SystemExit, match="not what `spikenlp report` wrote"):
        main(["compare", str(tmp_path / "c.json")])


def test_the_report_of_a_checkpoint_on_a_glue_task(tmp_path, capsys):
    sentences = ["a fine film", "a dull film", "what a joy", "what a bore"] * 5
    rows = "".join(f"{text}\t{1 - i % 2}\n" for i, text in enumerate(sentences))
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\n" + rows)
    tokenizer = wordpiece_tokenizer(sentences)
    size = {**TINY_DENSE, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    model = SpikingBertForSequenceClassification(SpikingBertConfig(**size))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = ["report", str(tmp_path / "model"), "--data_dir", str(tmp_path)]
    out = str(tmp_path / "page.html")
    main([*command, "--task_name", "sst2", "--out", out, "--max_samples", "18", "--batch", "8"])
    assert "on 18 samples" in capsys.readouterr().out
    values = json.loads((tmp_path / "page.json").read_text())
    assert (values["title"], values["samples"]) == ("model on sst2", 18)
    with pytest.raises(SystemExit, match="sst3"):
        main([*command, "--task_name", "sst3", "--out", out])


def test_bad_input_is_named(model, labelled, batches, tmp_path):
    with pytest.raises(ValueError, match="at least one batch"):
        report(model, [], tmp_path / "page.html")
    with pytest.raises(ValueError, match="labels, which batch 1 has not"):
        report(model, [labelled[0], batches[1]], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
