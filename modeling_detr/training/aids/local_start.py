"""Local start: each query of a new model starts by attending to one place, and by reading what is there."""

from typing import cast

import torch
from torch import Tensor, nn

from modeling_detr.backbone_detr import sine_position
from modeling_detr.modeling_detr import DetrDecoderLayer, DetrForObjectDetection


# Scale of what the other parts of a decoder layer add at first, so that they do not drown what a query reads.
_QUIET = 0.1


def query_points(num_queries: int) -> Tensor:
    """Return the points (Q, 2) at which the queries start, as (x, y) in [0, 1], spread evenly over the image."""
    return torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(num_queries)


@torch.no_grad()
def start_local(detector: DetrForObjectDetection) -> None:
    """Initialise a new detector so that each query reads one place of the encoder's output from the first step on.

    Each query starts as the position code of a point, and the cross-attention starts with equal projections of queries
    and keys, so that close positions score high. What it attends to passes unchanged: the output projection starts as
    the inverse of the projection of values, and self-attention and feed-forward network add little. The heads, which
    encoder supervision teaches to read the encoder's output, then understand the queries, too. From the original's
    random initialisation, a decoder takes long to learn this. The network is unchanged.

    Args:
        detector: A new detector with sine positions. A `position_temperature` far below 10,000 separates points well.

    Raises:
        ValueError: The detector has learned positions.
    """
    config = detector.config
    if config.position_embedding_type != "sine":
        raise ValueError(
            f"local_start: got position_embedding_type '{config.position_embedding_type}', expected 'sine'; use sine "
            f"positions, or set local_start to false."
        )
    points = query_points(config.num_queries)
    codes = sine_position(points, config.d_model, float(config.position_temperature))
    detector.model.query_position_embeddings.weight.copy_(codes)
    for module in detector.model.decoder.layers:
        layer = cast(DetrDecoderLayer, module)
        attention = layer.encoder_attn
        nn.init.xavier_uniform_(attention.q_proj.weight)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        nn.init.orthogonal_(attention.v_proj.weight)
        attention.out_proj.weight.copy_(attention.v_proj.weight.T)
        layer.self_attn.out_proj.weight.mul_(_QUIET)
        layer.fc2.weight.mul_(_QUIET)
