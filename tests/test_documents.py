"""Several conversations, each with the codes of its image, in one sequence: packed results equal separate ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_multimodal import ASKED, DRAWN, SIZE, batch, codes
from torch import Tensor

from genmodels.conditions import Condition
from genmodels.data.conversations import DRAW, IMAGE, Turn
from genmodels.lm import LM, LMConfig
from genmodels.multimodal import Multimodal, MultimodalConfig
from genmodels.nn.documents import arrange, packed
from genmodels.nn.ssm import SSMConfig
from genmodels.nn.transformer import Transformer, TransformerConfig
from genmodels.types import Batch, Noise

BLOCKS = TransformerConfig(width=16, depth=2, heads=2, kv_heads=1, qk_norm=True)
STATES = replace(BLOCKS, mixers=("mamba2",), ssm=SSMConfig(state=4, head=8, chunk=4))
MIXERS: dict[str, TransformerConfig] = {
    "attention": BLOCKS,
    "mamba2": STATES,
    "mamba": replace(STATES, mixers=("mamba",)),
    "hybrid": replace(STATES, mixers=("mamba2", "attention")),
    "window": replace(BLOCKS, window=3),
}
LENGTHS = (7, 1, 12, 4, 5)
TURNS = [DRAWN, ASKED, (Turn(DRAW.format("a man"), IMAGE),), (Turn(f"{IMAGE}\nWho?", "A bald man with a long beard."),)]


def mask_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def transformer(config: TransformerConfig) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config, causal=True).double()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def results(model: Transformer, x: Tensor, outputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Outputs of all documents, one after another, and gradients of inputs and parameters."""
    model.zero_grad()
    x.grad = None
    every = torch.cat(outputs)
    (every * torch.linspace(-1, 1, every.numel(), dtype=every.dtype).view_as(every)).sum().backward()
    assert x.grad is not None
    return every.detach(), [x.grad.clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", MIXERS)
def test_packed_equals_separate_in_outputs_and_gradients(name: str) -> None:
    model, mask = transformer(MIXERS[name]), mask_of(LENGTHS)
    x = torch.randn(5, 12, 16, dtype=torch.float64, requires_grad=True)
    apart = [model(x[i : i + 1, :n])[0] for i, n in enumerate(LENGTHS)]  # nothing is padded
    expected, gradients = results(model, x, apart)
    assert expected.std() > 0.5 and len(gradients) > 10
    for per_row in (1, 2, 3, 5):
        together = packed(model, x, mask, per_row)
        assert not together[~mask].any()
        ours, same = results(model, x, [together[i, :n] for i, n in enumerate(LENGTHS)])
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
        for ours_too, theirs in zip(same, gradients, strict=True):
            torch.testing.assert_close(ours_too, theirs, atol=1e-6, rtol=1e-6)


def test_packed_equals_separate_in_float32_with_recomputed_blocks() -> None:
    model, mask = transformer(replace(MIXERS["hybrid"], recompute=True)).float(), mask_of(LENGTHS)
    x = torch.randn(5, 12, 16, requires_grad=True)
    expected, gradients = results(model, x, [model(x[i : i + 1, :n])[0] for i, n in enumerate(LENGTHS)])
    together = packed(model, x, mask, 3)
    ours, same = results(model, x, [together[i, :n] for i, n in enumerate(LENGTHS)])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    for mine, theirs in zip(same, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["attention", "mamba2"])
def test_a_document_does_not_see_another(name: str) -> None:
    model, mask = transformer(MIXERS[name]), mask_of(LENGTHS)
    x = torch.randn(5, 12, 16, dtype=torch.float64)
    before = packed(model, x, mask, 5)
    x[2, 0] += 1  # the longest document comes first in its row
    changed = (packed(model, x, mask, 5) - before).abs().amax((1, 2))
    assert changed[2] > 1e-2 and changed[[0, 1, 3, 4]].max() < 1e-12


# ---- models ----


def multimodal(documents: int) -> Multimodal:
    torch.manual_seed(0)
    made = Multimodal(MultimodalConfig(SIZE, (2, 2), 8, LMConfig(transformer=BLOCKS, documents=documents), drop=0.0))
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_images_and_captions_in_one_sequence_have_the_loss_of_separate_ones() -> None:
    """The mean over images of separate losses, and its gradients."""
    alone = multimodal(1)
    data = batch(alone, TURNS)
    assert data.condition.text is not None and len(set(data.condition.text.mask.sum(1).tolist())) > 2
    losses = []
    for i in range(len(TURNS)):
        text = alone.read_conversations(TURNS[i : i + 1])
        losses.append(alone(Batch(data.images[i : i + 1], Noise([i]), Condition(text=text)))[0])
    expected = torch.stack(losses).mean()
    expected.backward()
    for documents in (2, 3, 4):
        model = multimodal(documents)
        loss, metrics = model(batch(model, TURNS))
        loss.backward()
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
        assert metrics["bits_per_token"] > 1
        for (name, a), b in zip(model.named_parameters(), alone.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None, name
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)


def test_a_language_model_packs_conversations_and_records_it() -> None:
    losses = []
    for documents in (1, 3):
        torch.manual_seed(0)
        model = LM(LMConfig(transformer=BLOCKS, documents=documents))
        text = model.read_conversations(TURNS)
        images = torch.zeros(4, 3, 8, 8)
        losses.append(model.loss(Batch(images, Noise(range(4)), Condition(text=text)), "model")[0].item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert "documents" not in model.config.unused_fields and "documents" in LMConfig().unused_fields
    with pytest.raises(ValueError, match="documents must be at least 1 conversation in a sequence, got 0"):
        LMConfig(documents=0)


def test_a_multimodal_model_goes_on_with_more_codes() -> None:
    short = multimodal(1)
    config = replace(short.config, codes=(4, 4))
    extended = short.extended_config(config, {})
    # Sequences of 16 codes are 4 times as long as those of 4, and all 8 channels of a head turn along them.
    assert extended.lm.transformer.rope_theta == pytest.approx(10_000 * 4 ** (8 / 6))
    given: dict[str, Any] = {"lm": {"transformer": {"rope_theta": 10_000.0}}}
    assert short.extended_config(config, given) == config
    long = Multimodal(extended)
    long.extend_from(short)
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), long.parameters(), strict=True))
    assert long.bits_per_token(codes(2, (4, 4))).isfinite().all()
    with pytest.raises(
        ValueError, match=r"an image has 1,024 codes, and the context 512 tokens: set model.lm.context to"
    ):
        Multimodal(short.extended_config(replace(config, codes=(32, 32)), {}))
    with pytest.raises(ValueError, match="language.embedding.weight differs in shape"):
        long.extend_from(Multimodal(MultimodalConfig(SIZE, (2, 2), 9, LMConfig(transformer=BLOCKS))))


# ---- the arrangement ----


def test_documents_are_not_padded_and_rows_are_filled_evenly() -> None:
    full = arrange(mask_of((13, 5, 9, 9)), 2)
    assert full.shape == (2, 18) and full.valid is None  # 13 + 5 and 9 + 9; padded to the longest they are 52
    assert sorted(full.tokens.tolist()) == list(range(36))
    assert full.starts.nonzero().tolist() == [[0, 0], [0, 13], [1, 0], [1, 9]]
    assert full.positions[0, :, 0].tolist() == [*range(13), *range(5)]
    ragged = arrange(mask_of(LENGTHS), 3)
    assert ragged.shape == (2, 16) and ragged.valid is not None  # 12 + 4 and 7 + 5 + 1
    assert ragged.valid.sum(1).tolist() == [16, 13] and not ragged.valid[1, 13:].any()
    assert arrange(mask_of((3, 2)), 1).starts.sum() == 2
