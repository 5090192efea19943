"""The Space: a folder that runs by itself, whose app shows what the classifier says."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from spikenlp import SpikingBertModel
from spikenlp.cli import main
from spikenlp.hub import SpikingClassifier
from spikenlp.hub.answer_page import answer_page, percent
from spikenlp.hub.space import interface, write_space
from tests.hub.browser import EXECUTABLE, browser
from tests.hub.test_classifier import TEXT, make


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    make(folder)
    (folder / "training_args.bin").write_bytes(b"private")
    return folder


def load_app(folder):
    spec = importlib.util.spec_from_file_location("app_of_the_space", folder / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_writes_a_space_whose_app_answers(checkpoint, tmp_path, capsys):
    main(["space", str(checkpoint), "--out", str(tmp_path / "space")])
    assert "written" in capsys.readouterr().out
    moved = (tmp_path / "space").rename(tmp_path / "elsewhere")
    assert {p.name for p in moved.iterdir()} == {"README.md", "app.py", "model", "requirements.txt"}
    assert not (moved / "model" / "training_args.bin").exists()
    card = SpaceCard.load(moved / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.title) == ("gradio", "app.py", "tiny")
    assert str(checkpoint.parent) not in (moved / "app.py").read_text()
    answer = SpikingClassifier.from_pretrained(checkpoint)(TEXT)
    assert load_app(moved).predict(TEXT) == answer_page(answer)


def test_what_is_shown_is_the_answer(checkpoint):
    answer = SpikingClassifier.from_pretrained(checkpoint)(TEXT)
    page = answer_page(answer)
    assert f"<b>{answer.label}</b> {percent(answer.score)}" in page
    _, steps, energy, spikes = page.split("<table")
    for t, by_label in enumerate(answer.probabilities, 1):
        best = answer.labels[by_label.index(max(by_label))]
        assert re.search(rf"step {t}</td><td>{best}</td>.*?{percent(max(by_label))}", steps)
    assert re.findall(r"([\d.]+) µJ", energy) == [
        f"{e:.2f}" for e in (*answer.energy_microjoules, answer.dense_microjoules)
    ]
    widths = [float(w) for w in re.findall(r"width: ([\d.]+)%", energy)]
    most = max(*answer.energy_microjoules, answer.dense_microjoules)
    spent = [*answer.energy_microjoules, answer.dense_microjoules]
    assert widths == pytest.approx([100 * e / most for e in spent], abs=0.06)
    assert re.findall(r"<th>([^<]+)</th>", spikes.split("</tr>")[0]) == answer.tokens
    assert spikes.count("<tr>") == len(answer.spikes)
    name = "bert.encoder.layer.1.attention.self.key_neuron"
    shown = re.search(rf'title="{re.escape(name)}">1 attention.self.key</th>(.*?)</tr>', spikes)[1]
    expected = [a + b for a, b in zip(*answer.spikes[name], strict=True)]
    assert [float(x) for x in re.findall(r">([\d.]+)<", shown)] == pytest.approx(
        expected, abs=0.006
    )
    assert f"{answer.spike_count:,} spikes" in page
    assert "for the first token alone" in page
    of_all_tokens = {k: v for k, v in answer.spikes.items() if len(v[0]) == len(answer.tokens)}
    assert "first token" not in answer_page(replace(answer, spikes=of_all_tokens))


def test_a_token_or_label_cannot_write_the_page(checkpoint):
    answer = SpikingClassifier.from_pretrained(checkpoint)(TEXT)
    answer.tokens[1] = "<script>"
    answer.labels[:] = ["<script>", "<script>"]
    assert "<script>" not in answer_page(answer)


def test_another_head_and_an_existing_folder_are_refused(checkpoint, tmp_path):
    model = SpikingClassifier.from_pretrained(checkpoint).model
    SpikingBertModel(model.config).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="holds a SpikingBertModel"):
        write_space(str(tmp_path / "headless"), tmp_path / "space")
    for field, said in (
        ({"problem_type": "regression"}, "'regression' has no confidence"),
        ({"problem_type": "multi_label_classification"}, "multi_label"),
        ({"collapsed": True}, "is collapsed"),
    ):
        config = model.config.__class__(**{**model.config.to_dict(), **field})
        config.architectures = ["SpikingBertForSequenceClassification"]
        config.save_pretrained(tmp_path / "other")
        with pytest.raises(ValueError, match=said):
            write_space(str(tmp_path / "other"), tmp_path / "space")
    (tmp_path / "space").mkdir()
    with pytest.raises(FileExistsError):
        write_space(str(checkpoint), tmp_path / "space")


def test_a_space_that_is_refused_leaves_no_folder(checkpoint, tmp_path, monkeypatch):
    private = tmp_path / "private"
    shutil.copytree(checkpoint, private)
    monkeypatch.setenv("HOME", "/home/annlee")
    (private / "README.md").write_text("trained in /home/annlee/runs")
    for _ in range(2):
        with pytest.raises(ValueError, match="a path of this machine"):
            write_space(str(private), tmp_path / "space")
        assert not (tmp_path / "space").exists()


def test_without_gradio_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"spikenlp\[space\]"):
        interface(print, title="x")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_answer_to_what_is_typed(checkpoint, tmp_path, width):
    pytest.importorskip("gradio", reason="extra `space` is not installed")
    if EXECUTABLE is None:
        pytest.skip("needs chromium")
    space = write_space(str(checkpoint), tmp_path / "space")
    expected = SpikingClassifier.from_pretrained(checkpoint)(TEXT)
    with serve(space) as url, browser(tmp_path / "profile") as page:
        page.open(url, width)
        page.wait_for("document.querySelector('textarea')")
        page.wait_for("document.querySelector('.submit-button')")
        page.type("textarea", TEXT)
        page.evaluate("document.querySelector('.submit-button').click()")
        page.wait_for("document.querySelector('.spiking')")
        shown = page.evaluate("document.querySelector('.spiking').innerText")
        assert f"{expected.label} {percent(expected.score)}" in shown
        for text in (*expected.tokens, f"{expected.dense_microjoules:.2f} µJ"):
            assert text in shown
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('.spiking .steps').clientWidth") > width / 2
        page.evaluate("document.querySelector('textarea').select()")
        page.type("textarea", "   ")
        page.evaluate("document.querySelector('.submit-button').click()")
        page.wait_for("document.body.innerText.includes('text must not be empty')")


@contextmanager
def serve(space):
    """The URL of the Space's app, run as the Hub runs it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).resolve().parents[2]
    options = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment = {**os.environ, **options, "PYTHONPATH": str(root)}
    command = [sys.executable, "-u", "app.py"]
    with subprocess.Popen(
        command, cwd=space, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        said = b""
        try:
            for line in process.stdout:
                said += line
                if b"Running on" in line:
                    yield f"http://127.0.0.1:{port}/"
                    break
            else:
                raise RuntimeError(said.decode())
        finally:
            process.kill()
