"""The module that trains: a detector and its training aids, called like the detector."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        num_teacher_boxes: float | Tensor | None = None,
        **arguments: Any,
    ) -> DetrObjectDetectionOutput:
        """Run the detector. During training and with labels, the loss and its terms include those of the aids.

        Args:
            pixel_values: See the detector.
            pixel_mask: See the detector.
            labels: See the detector.
            num_teacher_boxes: The teacher's boxes of the whole optimizer step. None: this batch's, at least 1.
            **arguments: See the detector.
        """
        if not self.training or labels is None:
            output: DetrObjectDetectionOutput = self.detector(pixel_values, pixel_mask, labels, **arguments)
            return output
        aids = {name: aid for name, aid in self.aids.items() if aid.has_targets(labels)}
        num_queries = self.detector.config.num_queries
        extra = {name: aid.extra_queries(labels, num_queries) for name, aid in aids.items()}
        added = {name: queries for name, queries in extra.items() if queries is not None}
        if added:
            arguments["extra_queries"] = join_queries([*added.values()], num_queries)
        with self._training_matcher():
            output = self.detector(pixel_values, pixel_mask, labels, **arguments)

        divisors = self._divisors(labels, {**arguments, "num_teacher_boxes": num_teacher_boxes})
        states = dict(zip(added, self._extra_states(output, [*added.values()]), strict=True))
        terms: dict[str, Tensor] = {}
        for name, aid in aids.items():
            batch = AidedBatch(self._heads, output, pixel_mask, labels, extra_states=states.get(name), **divisors)
            terms |= aid.losses(batch)
        self._add_terms(output, terms, unused=[aid for name, aid in self.aids.items() if name not in aids])
        return output

    def _divisors(self, labels: Sequence[DetectionLabels], given: Mapping[str, Any]) -> dict[str, float | Tensor]:
        """The divisors of the losses; those of the batch where the ones of the whole step are not given."""
        counts = [len(label["class_labels"]) for label in labels]
        names = ("num_boxes", "class_weight_sum", "num_teacher_boxes")
        divisors: dict[str, float | Tensor] = {name: given[name] for name in names if given.get(name) is not None}
        of_batch: dict[str, float | Tensor] = {
            "num_boxes": max(sum(counts), 1),
            "class_weight_sum": self._heads.criterion.class_weight_sum(counts, self.detector.config.num_queries),
            "num_teacher_boxes": max(sum(len(label.get("teacher_labels", ())) for label in labels), 1),
        }
        return of_batch | divisors

    def _add_terms(
        self, output: DetrObjectDetectionOutput, terms: Mapping[str, Tensor], unused: Sequence[TrainingAid]
    ) -> None:
        """Add the weighted terms of the aids to the loss of a batch.

        Aids without targets in this batch get terms and gradients of zero, since other processes wait for both.
        """
        weights = self._loss_weights()
        if output.loss is None or not weights:
            return
        zero = output.loss.detach().new_zeros(())
        touched = [0.0 * parameter.sum() for aid in unused for parameter in aid.parameters()]
        weighted = [weights[name] * value for name, value in terms.items()]
        logged = {name: terms[name].detach() if name in terms else zero for name in weights}
        output.add_loss(torch.stack([zero, *weighted, *touched]).sum(), logged)

    @contextmanager
    def _training_matcher(self) -> Iterator[None]:
        """Match as the aids do, but only during training: the detector alone has the loss of the paper."""
        criterion = self._heads.criterion
        plain = criterion.matcher
        for aid in self.aids.values():
            criterion.matcher = aid.matcher(criterion.matcher)
        try:
            yield
        finally:
            criterion.matcher = plain

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
