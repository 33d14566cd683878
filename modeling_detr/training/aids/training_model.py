"""The module that trains: a detector and its training aids, called like the detector."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from modeling_detr.modeling_detr import DetrForObjectDetection, DetrObjectDetectionOutput, ExtraQueries
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation
from modeling_detr.structures_detr import DetectionLabels
from modeling_detr.training.aids.training_aid import AidedBatch, TrainingAid


class TrainingModel(nn.Module):
    """A detector, with or without masks, and the aids it trains with. Its forward has the detector's signature.

    Args:
        detector: The plain DETR, which remains after training.
        aids: The aids by name; a name is the prefix of the aid's parameters in a checkpoint.
    """

    def __init__(self, detector: Detector, aids: Mapping[str, TrainingAid]) -> None:
        super().__init__()
        self.detector = detector
        self._aid_names = [*aids]
        for name, aid in aids.items():
            self.add_module(name, aid)

    @property
    def aids(self) -> dict[str, TrainingAid]:
        """The aids by name."""
        return {name: cast(TrainingAid, getattr(self, name)) for name in self._aid_names}

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[DetectionLabels] | None = None,
        **arguments: Any,
    ) -> DetrObjectDetectionOutput:
        """Run the detector. During training and with labels, the loss and its terms include those of the aids."""
        if not (self.training and labels is not None and any(len(label["class_labels"]) for label in labels)):
            return self._touch_unused(self.detector(pixel_values, pixel_mask, labels, **arguments))

        num_queries = self.detector.config.num_queries
        extra = {name: aid.extra_queries(labels, num_queries) for name, aid in self.aids.items()}
        added = {name: queries for name, queries in extra.items() if queries is not None}
        if added:
            arguments["extra_queries"] = join_queries([*added.values()], num_queries)
        output: DetrObjectDetectionOutput = self.detector(pixel_values, pixel_mask, labels, **arguments)

        num_boxes = arguments.get("num_boxes")
        if num_boxes is None:
            num_boxes = sum(len(label["class_labels"]) for label in labels)
        states = dict(zip(added, self._extra_states(output, [*added.values()]), strict=True))
        terms: dict[str, Tensor] = {}
        for name, aid in self.aids.items():
            terms |= aid.losses(
                AidedBatch(self._heads, output, pixel_mask, labels, num_boxes, extra_states=states.get(name))
            )
        if terms:
            weights = self._loss_weights()
            weighted = torch.stack([weights[name] * value for name, value in terms.items()])
            output.add_loss(weighted.sum(), {name: value.detach() for name, value in terms.items()})
        return output

    @property
    def _heads(self) -> DetrForObjectDetection:
        """The detector without mask head."""
        return self.detector.detr if isinstance(self.detector, DetrForSegmentation) else self.detector

    def _loss_weights(self) -> dict[str, float]:
        set_loss = self._heads.criterion.weights
        return {name: weight for aid in self.aids.values() for name, weight in aid.loss_weights(set_loss).items()}

    def _extra_states(self, output: DetrObjectDetectionOutput, added: Sequence[ExtraQueries]) -> list[Tensor]:
        """Decoder states, (L, B, E, D) each, of the queries that each aid added."""
        if not added:
            return []
        layers = self._heads.layers_for_heads(output.intermediate_hidden_states)
        sizes = [queries.content.shape[1] for queries in added]
        return [*layers[:, :, self.detector.config.num_queries :].split(sizes, dim=2)]

    def _touch_unused(self, output: DetrObjectDetectionOutput) -> DetrObjectDetectionOutput:
        """Give every parameter of the aids a gradient and every term a value.

        A batch without objects does not use the aids, but other processes wait for their gradients and terms.
        """
        if not self.training or output.loss is None:
            return output
        zero = output.loss.detach().new_zeros(())
        unused = [parameter.sum() for aid in self.aids.values() for parameter in aid.parameters()]
        output.add_loss(0.0 * torch.stack([zero, *unused]).sum(), dict.fromkeys(self._loss_weights(), zero))
        return output


def join_queries(added: Sequence[ExtraQueries], num_queries: int) -> ExtraQueries:
    """Join the extra queries of several aids, which do not attend to each other.

    Args:
        added: Queries of each aid.
        num_queries: Q, the number of learned queries.
    """
    if len(added) == 1:
        return added[0]
    first, batch_size = added[0].attention_mask, len(added[0].content)
    ends = torch.tensor([num_queries, *(queries.content.shape[1] for queries in added)]).cumsum(0).tolist()
    mask = first.new_zeros(batch_size, ends[-1], ends[-1])
    mask[:, :num_queries, :num_queries] = first[..., :num_queries, :num_queries]
    for queries, start, end in zip(added, ends[:-1], ends[1:], strict=True):
        rows = queries.attention_mask[..., num_queries:, :]
        mask[:, start:end, :num_queries] = rows[..., :num_queries]
        mask[:, start:end, start:end] = rows[..., num_queries:]
    content = torch.cat([queries.content for queries in added], dim=1)
    return ExtraQueries(content, torch.cat([queries.positions for queries in added], dim=1), mask)
