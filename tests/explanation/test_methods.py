"""Each method against a direct implementation with whole maps."""

import pytest
import torch

from modeling_detr.explanation import recording as recording_module
from modeling_detr.explanation.methods import METHODS
from modeling_detr.explanation.recording import record


PIXELS = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(1, 96, 128, dtype=torch.long)
MASK[:, 64:] = 0
QUERIES, LABELS = torch.tensor([4, 1]), torch.tensor([2, 0])
LAYERS = 3


@pytest.fixture(params=["one part", "many parts"])
def recording(request, tiny_detector, monkeypatch):
    if request.param == "many parts":
        monkeypatch.setattr(recording_module, "NUMBERS_PER_CHUNK", 100)
    model = tiny_detector(encoder_layers=2, decoder_layers=LAYERS)
    return record(model, PIXELS, MASK, gradients=True)


def whole(records, rows_of):
    return [rows_of(entry, torch.arange(entry.query_heads.shape[1])).double() for entry in records]


def test_rollout_is_the_product_of_all_layers(recording):
    encoder, decoder, cross = (
        whole(records, lambda entry, rows: entry.rows(rows).mean(0))
        for records in (recording.encoder, recording.decoder, recording.cross)
    )
    num_queries, num_tokens = cross[0].shape
    nodes = torch.eye(num_queries + num_tokens).double()  # the queries, then the tokens
    for attention in encoder:
        step = torch.eye(len(nodes)).double()
        step[num_queries:, num_queries:] = (attention + torch.eye(num_tokens)) / 2
        nodes = step @ nodes
    for attention, to_tokens in zip(decoder, cross, strict=True):
        step = torch.eye(len(nodes)).double()
        step[:num_queries, :num_queries] = (attention + torch.eye(num_queries)) / 2
        nodes = step @ nodes
        step = torch.eye(len(nodes)).double()
        step[:num_queries] /= 2
        step[:num_queries, num_queries:] = to_tokens / 2
        nodes = step @ nodes
    found = METHODS["rollout"](recording, QUERIES, LABELS).double()
    torch.testing.assert_close(found, nodes[QUERIES, num_queries:], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.sum(-1), torch.full((2,), 1 - 0.5**LAYERS).double())


def test_relevance_equals_the_matrices_of_the_paper(recording):
    found = METHODS["relevance"](recording, QUERIES, LABELS).double()
    for index, (query, label) in enumerate(zip(QUERIES.tolist(), LABELS.tolist(), strict=True)):
        recording.differentiate(recording.outputs.logits[0, query, label])
        encoder, decoder, cross = (
            whole(records, lambda entry, rows: entry.relevant_rows(rows))
            for records in (recording.encoder, recording.decoder, recording.cross)
        )
        num_queries, num_tokens = cross[0].shape
        image, queries = torch.eye(num_tokens).double(), torch.eye(num_queries).double()
        both = torch.zeros(num_queries, num_tokens).double()
        for attention in encoder:
            image = image + attention @ image  # equation 6
        for attention, to_tokens in zip(decoder, cross, strict=True):
            queries, both = queries + attention @ queries, both + attention @ both  # equations 6 and 7
            both = both + normalised(queries).T @ to_tokens @ normalised(image)  # equation 10
        assert both[query].max() > 0
        torch.testing.assert_close(found[index], both[query], rtol=1e-4, atol=1e-6 * both[query].max().item())


def normalised(matrix):
    """Equations 8 and 9."""
    rest = matrix - torch.eye(len(matrix))
    return torch.nan_to_num(rest / rest.sum(-1, keepdim=True)) + torch.eye(len(matrix))


def test_the_attention_of_the_last_layer_is_the_mean_over_heads(recording):
    expected = recording.cross_attention(QUERIES)[:, -1].mean(1).flatten(1)
    torch.testing.assert_close(METHODS["attention"](recording, QUERIES, LABELS), expected)


@pytest.mark.parametrize("name", METHODS)
def test_no_detections_give_no_maps_and_padding_gets_nothing(recording, name):
    none = torch.zeros(0, dtype=torch.long)
    num_tokens = recording.grid[0] * recording.grid[1]
    assert METHODS[name](recording, none, none).shape == (0, num_tokens)
    padded = ~recording.outputs.feature_mask[0].flatten()
    assert METHODS[name](recording, QUERIES, LABELS)[:, padded].max() == 0
