"""A Gradio Space that shows how a spiking classifier comes to its answer.

`spikenlp space CHECKPOINT` writes a folder to push as a Space: app.py, requirements.txt, README.md, and
the checkpoint, unless that is a Hub id. The app is a text box; below it the answer step by step, spikes
by layer and token, and the energy beside a dense model of the same shape.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCard, SpaceCardData
from transformers import AutoConfig

import spikenlp
from spikenlp.hub.classifier import Answer, SpikingClassifier
from spikenlp.hub.publish import check_private, stage

MODEL = "model"
APP = '''"""A spiking text classifier, step by step."""

from pathlib import Path

from spikenlp.hub.space import interface, predictor

predict = predictor({model})

if __name__ == "__main__":
    interface(predict, title={title!r}).launch()
'''
README = """---
{card}
---

# {title}

A spiking text classifier, with its answer, spikes and energy at every time step. Made with spikenlp.
"""


def write_space(checkpoint: str, out: str | Path) -> Path:
    """Writes the Space for a sequence classifier into the new folder `out`, and returns it.

    Args:
        checkpoint: a folder, whose public files are copied, or a Hub id, which is referred to.

    Raises:
        ValueError: no spiking sequence classifier, or something private in the folder.
        FileExistsError: `out` exists.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    (kind,) = config.architectures or [None]
    if kind not in spikenlp.__all__ or not kind.endswith("ForSequenceClassification"):
        raise ValueError(
            f"a Space shows a spiking sequence classifier, but {checkpoint} holds a {kind}"
        )
    out, local = Path(out), Path(checkpoint).is_dir()
    title = Path(checkpoint).resolve().name if local else checkpoint
    out.mkdir(parents=True)
    if local:
        stage(checkpoint, out / MODEL)
    model = f'Path(__file__).parent / "{MODEL}"' if local else repr(checkpoint)
    app = APP.format(model=model, title=title)
    (out / "app.py").write_text(app if local else app.replace("from pathlib import Path\n\n", ""))
    (out / "requirements.txt").write_text(f"spikenlp[space]>={spikenlp.__version__}\n")
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        app_file="app.py",
        models=None if local else [checkpoint],
        tags=["spikenlp", "spiking-neural-network"],
    )
    SpaceCard(README.format(card=data.to_yaml(), title=title)).save(out / "README.md")
    check_private(out)
    return out


def predictor(checkpoint: str | Path) -> Any:
    """`predict(text)` of the app: what `present` makes of the classifier's answer."""
    classify = SpikingClassifier.from_pretrained(checkpoint)

    def predict(text: str) -> tuple[dict[str, float], list[list[Any]], str, str]:
        return present(classify(text))

    return predict


def present(answer: Answer) -> tuple[dict[str, float], list[list[Any]], str, str]:
    """(probabilities by label, one row a step, HTML of the spikes, a sentence on energy)."""
    probabilities = dict(zip(answer.labels, answer.probabilities[-1], strict=True))
    rows = []
    for t, (by_label, spent) in enumerate(
        zip(answer.probabilities, answer.energy_microjoules, strict=True), 1
    ):
        best = max(range(len(by_label)), key=by_label.__getitem__)
        rows.append([t, answer.labels[best], round(by_label[best], 4), round(spent, 3)])
    last, dense = answer.energy_microjoules[-1], answer.dense_microjoules
    energy = (
        f"{last:.2f} µJ with all {len(rows)} steps, {answer.energy_microjoules[0]:.2f} µJ if stopped at "
        f"the first; a dense model of this shape: {dense:.2f} µJ. {answer.spike_count:,} spikes, "
        f"{answer.spike_count / answer.neurons:.2f} per neuron. (float32 arithmetic at 45 nm, without "
        "memory)"
    )
    return probabilities, rows, spikes_html(answer), energy


def spikes_html(answer: Answer) -> str:
    """A table: a row for each layer of neurons, a column a token, darker the more spikes each sent."""
    steps = len(answer.probabilities)
    head = "".join(f"<th>{html.escape(token)}</th>" for token in answer.tokens)
    body = []
    for layer, by_step in answer.spikes.items():
        sent = [sum(at) for at in zip(*by_step, strict=True)]
        cells = "".join(
            f'<td style="background: rgba(178, 24, 43, {spikes / steps:.2f})">{spikes:.2f}</td>'
            for spikes in sent
        )
        body.append(f"<tr><th>{html.escape(layer)}</th>{cells}</tr>")
    return (
        '<div style="overflow-x: auto"><table><caption>spikes per neuron, over all steps</caption>'
        f"<tr><th></th>{head}</tr>{''.join(body)}</table></div>"
    )


def interface(predict: Any, title: str) -> Any:
    """The page, to be launched. Raises ImportError where gradio is not installed (extra `space`)."""
    try:
        import gradio
    except ImportError as error:
        raise ImportError('a Space needs gradio: pip install "spikenlp[space]"') from error
    return gradio.Interface(
        predict,
        inputs=gradio.Textbox(label="Text", lines=3),
        outputs=[
            gradio.Label(label="Answer after all steps"),
            gradio.Dataframe(
                headers=["step", "answer", "probability", "energy (µJ)"], label="Step by step"
            ),
            gradio.HTML(label="Spikes by layer and token"),
            gradio.Textbox(label="Energy"),
        ],
        title=title,
        flagging_mode="never",
    )
