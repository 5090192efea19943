"""What `spikenlp` offers by name."""

import spikenlp


def test_completion_knows_what_is_imported_on_first_use():
    assert {"SpikingTrainer", "watchdogs", "pretrained", "SpikingBertConfig"} <= set(dir(spikenlp))
    assert all(hasattr(spikenlp, name) for name in dir(spikenlp))
