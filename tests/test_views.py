"""Views of a frozen encoder: each is what its name says, whatever else is in the batch."""

import numpy as np
import pytest
import torch

from helpers import finetune, models, views


@pytest.mark.parametrize("arch", tuple(models.ARCHITECTURES))
def test_every_view_is_what_its_name_says(arch):
    encoder = models.build(models.Size(2, 32), arch=arch, vocab_size=200, max_positions=32).bert.eval()
    documents = [np.arange(5, 5 + n) for n in (40, 6, 70)]
    cut = finetune.cut_windows(documents, seq_len=16, windows=3)
    got = views.views(encoder, cut, batch=2)
    assert got.shape == (3, len(views.READS), len(views.POOLS), 3, 32)
    for number, ids in enumerate(documents):
        for read, body in enumerate((ids[:14], ids[-14:])):
            row = torch.tensor([[2, *body.tolist(), 3]])
            with torch.no_grad():
                states = encoder(input_ids=row, output_hidden_states=True).hidden_states
            for layer, h in enumerate(states):
                for pool, expected in enumerate((h[0].mean(0), h[0].amax(0), h[0, 0])):
                    np.testing.assert_allclose(
                        got[number, read, pool, layer], expected.numpy(), rtol=1e-3, atol=1e-4
                    )
    np.testing.assert_allclose(got[:, 2], (got[:, 0] + got[:, 1]) / 2, rtol=1e-6)
