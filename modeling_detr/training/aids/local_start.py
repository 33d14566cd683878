"""Local start: each query of a new model starts by attending to one place."""

from typing import cast

import torch
from torch import nn

from modeling_detr.backbone_detr import sine_position
from modeling_detr.modeling_detr import DetrDecoderLayer, DetrForObjectDetection


@torch.no_grad()
def start_local(detector: DetrForObjectDetection) -> None:
    """Initialise a new detector so that each query attends to one place from the first step on.

    Each query starts as the position code of a point (the points are spread over the image), and the cross-attention
    starts with equal projections of queries and keys, so that close positions score high. From the original's random
    initialisation, a decoder takes long to learn this. The network is unchanged.

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
    points = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(config.num_queries)  # (Q, 2) in [0, 1]
    codes = sine_position(points, config.d_model, float(config.position_temperature))
    detector.model.query_position_embeddings.weight.copy_(codes)
    for layer in detector.model.decoder.layers:
        attention = cast(DetrDecoderLayer, layer).encoder_attn
        nn.init.xavier_uniform_(attention.q_proj.weight)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
