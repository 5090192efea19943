"""An `Answer` as a piece of HTML: the answer step by step, its energy, spikes by layer and token.

It brings its own style, takes colours from the page around it, and is as wide as that leaves room for:
only the table of spikes scrolls sideways.
"""

from __future__ import annotations

from html import escape

from spikenlp.hub.classifier import Answer

STYLE = """<style>
.spiking { font-size: 15px; line-height: 1.4; }
.spiking .answer { font-size: 1.5em; margin: 0 0 .3em; overflow-wrap: anywhere; }
.spiking h3 { font-size: 1.05em; font-weight: 600; margin: 1.3em 0 .35em; }
.spiking p { margin: .35em 0; }
.spiking .note { opacity: .75; font-size: .85em; }
.spiking table { border-collapse: collapse; margin: 0; }
/* The page around it draws tables with lines. */
.spiking table, .spiking tr, .spiking th, .spiking td { border: 0 !important; }
.spiking th, .spiking td { padding: .2em .6em .2em 0 !important; text-align: left; font-weight: 400; }
.spiking .steps { width: 100%; max-width: 46em; }
.spiking .number { text-align: right !important; font-variant-numeric: tabular-nums; white-space: nowrap; }
.spiking .bar { display: block; height: .75em; min-width: 2px; border-radius: 2px; background: #4477aa; }
.spiking .dense .bar { background: #999; }
.spiking .track { width: 60%; min-width: 60px; }
.spiking .scroll { overflow-x: auto; }
.spiking .map { font-size: 12px; line-height: 1.3; }
.spiking .map td { text-align: center; padding: .2em .35em !important; font-variant-numeric: tabular-nums; }
.spiking .map .tokens th { text-align: center; white-space: nowrap; padding: .15em .35em !important; }
.spiking .map tr > :first-child { position: sticky; left: 0; white-space: nowrap; text-align: left;
  padding-right: .8em !important; background: var(--body-background-fill, Canvas); }
</style>"""


def answer_page(answer: Answer) -> str:
    """HTML for `answer`; its tokens and labels are escaped."""
    return (
        f'{STYLE}<div class="spiking"><p class="answer"><b>{escape(answer.label)}</b> '
        f"{percent(answer.score)}</p>{_steps(answer)}{_energy(answer)}{_spikes(answer)}</div>"
    )


def percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def _bar(share: float) -> str:
    return f'<td class="track"><span class="bar" style="width: {100 * share:.1f}%"></span></td>'


def _steps(answer: Answer) -> str:
    rows = []
    for t, by_label in enumerate(answer.probabilities, 1):
        score = max(by_label)
        label = answer.labels[by_label.index(score)]
        rows.append(
            f'<tr><td>step {t}</td><td>{escape(label)}</td><td class="number">{percent(score)}</td>'
            f"{_bar(score)}</tr>"
        )
    return f'<h3>Answer after each time step</h3><table class="steps">{"".join(rows)}</table>'


def _energy(answer: Answer) -> str:
    spent = [
        (f"{t} step{'s' if t > 1 else ''}", "", energy)
        for t, energy in enumerate(answer.energy_microjoules, 1)
    ]
    spent.append(("dense model", "dense", answer.dense_microjoules))
    most = max(energy for _, _, energy in spent)
    rows = "".join(
        f'<tr class="{kind}"><td>{name}</td><td class="number">{energy:.2f} µJ</td>'
        f"{_bar(energy / most)}</tr>"
        for name, kind, energy in spent
    )
    return (
        f'<h3>Energy</h3><table class="steps">{rows}</table><p class="note">float32 arithmetic at 45 nm, '
        "without memory. The dense model has the same shape.</p>"
    )


def _spikes(answer: Answer) -> str:
    """A row for each layer of neurons, a column a token, darker the more spikes each sent; neurons that
    are there for the first token alone have one cell."""
    steps = len(answer.probabilities)
    columns = len(answer.tokens)
    partly = any(len(by_step[0]) < columns for by_step in answer.spikes.values())
    why = (
        " After its keys and values the last layer works for the first token alone: that is where the "
        "answer is read."
    )
    head = "".join(f"<th>{escape(token)}</th>" for token in answer.tokens)
    body = []
    for layer, by_step in answer.spikes.items():
        sent = [sum(at) for at in zip(*by_step, strict=True)]
        cells = "".join(
            f'<td style="background: rgba(178, 24, 43, {spikes / steps:.2f})'
            f'{"; color: white" if spikes / steps > 0.55 else ""}">{spikes:.2f}</td>'
            for spikes in sent
        )
        body.append(f'<tr><th title="{escape(layer)}">{escape(short_name(layer))}</th>{cells}</tr>')
    return (
        "<h3>Spikes by layer and token</h3>"
        f"<p>{answer.spike_count:,} spikes, {answer.spike_count / answer.neurons:.2f} per neuron in {steps} "
        f"steps; in the table, spikes per neuron.{why if partly else ''}</p>"
        '<div class="scroll"><table class="map">'
        f'<tr class="tokens"><th></th>{head}</tr>{"".join(body)}</table></div>'
    )


def short_name(layer: str) -> str:
    """ "bert.encoder.layer.1.attention.self.key_neuron" -> "1 attention.self.key"."""
    name = layer.removeprefix("bert.encoder.layer.").removesuffix("neuron").rstrip("._")
    return name.replace(".", " ", 1)
