"""Methods that fuse the attention of all layers and heads into one map per detection.

Each is a function and a line in `METHODS`. None builds a map of S x S numbers: a row is multiplied by one layer after
another, and a layer's map is computed in parts.

Shapes: N detections · Q queries · S tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from modeling_detr.explanation.recording import AttentionRecord, Recording


Method = Callable[[Recording, Tensor, Tensor], Tensor]
"""Computes the maps (N, S) of the queries (N,) that predict the labels (N,); no number is negative."""


def last_attention(recording: Recording, queries: Tensor, _: Tensor) -> Tensor:
    """The cross-attention of the last decoder layer, the mean over heads.

    Paper: fig. 6 of DETR (2005.12872). Each row sums to 1.
    """
    return mean_rows(recording.cross[-1], queries)


def rollout(recording: Recording, queries: Tensor, _: Tensor) -> Tensor:
    """Attention rollout: how much of each token is mixed into a query, if attention were all that mixes.

    Paper: Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2005.00928), which defines it for
    self-attention: each layer mixes by (A + I) / 2, with A the mean over heads and I the residual branch. Here it is
    applied to every attention of DETR, with cross-attention as the way from queries to tokens. Each row sums to
    1 - 2^-L for L decoder layers; the rest stays with the queries.
    """
    share = torch.eye(recording.outputs.logits.shape[1], device=queries.device)[queries]  # (N, Q), of each query
    tokens = torch.zeros(1, device=queries.device)  # (N, S), of each token of the memory
    for attention, cross in zip(reversed(recording.decoder), reversed(recording.cross), strict=True):
        tokens = tokens + 0.5 * _times(share, cross, mean_rows)
        share = 0.5 * share
        share = 0.5 * share + 0.5 * _times(share, attention, mean_rows)
    for attention in reversed(recording.encoder):
        tokens = 0.5 * tokens + 0.5 * _times(tokens, attention, mean_rows)
    return tokens


def relevance(recording: Recording, queries: Tensor, labels: Tensor) -> Tensor:
    """Attention weighted by the gradient of the class logit: what raises it counts, what lowers it does not.

    Paper: Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers" (2103.15679), equations 5 to 10, in the order of the authors' code for DETR, with attention weights
    as they are (no layer-wise relevance propagation). A row of zero relevance, which their normalisation divides by
    zero, stays the identity.
    """
    maps = []
    for query, label in zip(queries.tolist(), labels.tolist(), strict=True):
        recording.differentiate(recording.outputs.logits[0, query, label])
        maps.append(_relevance_of(recording, query))
    return torch.stack(maps) if maps else torch.zeros(0, recording.cross[0].key_heads.shape[1])


def _relevance_of(recording: Recording, query: int) -> Tensor:
    """The relevance (S,) of the tokens for the target that the recording was differentiated by."""
    num_queries, device = recording.outputs.logits.shape[1], recording.outputs.logits.device
    num_tokens = recording.cross[0].key_heads.shape[1]
    eye = torch.eye(num_queries, device=device)
    of_queries, before_encoder = (
        eye,
        torch.zeros(num_queries, num_tokens, device=device),
    )  # R_qq, and R_qi without R_ii
    for attention, cross in zip(recording.decoder, recording.cross, strict=True):
        mixed = _all(attention)
        of_queries = of_queries + mixed @ of_queries
        before_encoder = before_encoder + mixed @ before_encoder
        before_encoder = before_encoder + (eye + _shares(of_queries - eye)).T @ _all(cross)
    # R_ii is the product of I + Ā over the encoder's layers; its rows, without the identity, are divided by their sum
    row = before_encoder[query]
    sums = torch.ones_like(row)
    for attention in recording.encoder:
        sums = sums + torch.cat([attention.relevant_rows(chunk) @ sums for chunk in attention.chunks()])
    divided = torch.where(sums > 1, row / (sums - 1), 0.0)
    product = divided[None]
    for attention in reversed(recording.encoder):
        product = product + _times(product, attention, AttentionRecord.relevant_rows)
    return (row + product[0] - divided).clamp(min=0)


def mean_rows(record: AttentionRecord, indices: Tensor) -> Tensor:
    """Rows of the attention, (N, S), the mean over heads."""
    return record.rows(indices).float().mean(0)


def _all(record: AttentionRecord) -> Tensor:
    return torch.cat([record.relevant_rows(chunk) for chunk in record.chunks()])


def _times(rows: Tensor, record: AttentionRecord, rows_of: Callable[[AttentionRecord, Tensor], Tensor]) -> Tensor:
    """(N, T) rows times the layer's map (T, S), which is computed in parts."""
    product = torch.zeros(len(rows), record.key_heads.shape[1], device=rows.device)
    for chunk in record.chunks():
        product += rows[:, chunk] @ rows_of(record, chunk)
    return product


def _shares(matrix: Tensor) -> Tensor:
    """Each row divided by its sum; a row of zeros stays one."""
    sums = matrix.sum(-1, keepdim=True)
    return torch.where(sums > 0, matrix / sums, 0.0)


METHODS: dict[str, Method] = {"attention": last_attention, "rollout": rollout, "relevance": relevance}
"""Name of each method → the function."""
