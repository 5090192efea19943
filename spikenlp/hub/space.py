"""A Gradio Space that shows how a spiking classifier comes to its answer.

`spikenlp space CHECKPOINT` writes a folder to push as a Space: app.py, requirements.txt, README.md, and
the checkpoint, unless that is a Hub id. The app is a text box; below it the answer step by step, spikes
by layer and token, and the energy beside a dense model of the same shape.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCard, SpaceCardData
from transformers import AutoConfig

import spikenlp
from spikenlp.hub.answer_page import answer_page
from spikenlp.hub.classifier import SpikingClassifier
from spikenlp.hub.publish import check_private, stage
from spikenlp.models.modes import check_chooses_one_label

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
        ValueError: no spiking sequence classifier that chooses one label, or a folder without weights in
            .safetensors, or with something private.
        FileExistsError: `out` exists.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    (kind,) = config.architectures or [None]
    if kind not in spikenlp.__all__ or not kind.endswith("ForSequenceClassification"):
        raise ValueError(
            f"a Space shows a spiking sequence classifier, but {checkpoint} holds a {kind}"
        )
    if config.collapsed:
        raise ValueError(f"a Space shows time steps, but {checkpoint} is collapsed, without them")
    check_chooses_one_label(config)
    out, local = Path(out), Path(checkpoint).is_dir()
    title = Path(checkpoint).resolve().name if local else checkpoint
    out.mkdir(parents=True)
    try:
        _write_files(checkpoint, out, title, local)
        check_private(out)
    except Exception:
        shutil.rmtree(out)
        raise
    return out


def _write_files(checkpoint: str, out: Path, title: str, local: bool) -> None:
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


def predictor(checkpoint: str | Path) -> Callable[[str], str]:
    """`predict(text)` of the app: HTML of the classifier's answer."""
    classify = SpikingClassifier.from_pretrained(checkpoint)

    def predict(text: str) -> str:
        return answer_page(classify(text))

    return predict


def interface(predict: Callable[[str], str], title: str) -> Any:
    """The page, to be launched. Raises ImportError where gradio is not installed (extra `space`)."""
    try:
        import gradio
    except ImportError as error:
        raise ImportError('a Space needs gradio: pip install "spikenlp[space]"') from error

    def shown(text: str) -> str:
        try:
            return predict(text)
        except ValueError as error:  # nothing was typed
            raise gradio.Error(str(error), print_exception=False) from error

    with gradio.Blocks(title=title) as page:
        gradio.Markdown(f"# {title}\nA spiking text classifier, step by step.")
        text = gradio.Textbox(label="Text", lines=2, submit_btn=True)
        answer = gradio.HTML(label="Answer")
        text.submit(shown, text, answer)
    return page
