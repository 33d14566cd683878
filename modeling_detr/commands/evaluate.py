"""Measure a model on a dataset: COCO's AP of boxes, of masks too if it segments, and panoptic quality.

    detr evaluate runs/demo/model shapes --split val --output_dir evaluation
    torchrun --nproc_per_node 2 --no-python detr evaluate MODEL DATASET

prints the figures and writes them as `evaluation.json`, `.md` and `.html`, and all detections, in COCO's format of
results and with the dataset's own ids, as `predictions.json` (boxes), `predictions_masks.json` (run lengths) and
`predictions_panoptic.json` with its folder of PNG. Classes of dataset and model are matched by name.
Several processes on a machine without GPUs want ACCELERATE_USE_CPU=true in the environment.
"""

import argparse
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import cast, get_args

from accelerate import Accelerator
from torch.utils.data import DataLoader

from modeling_detr.conversion.sources import load_model
from modeling_detr.data import (
    DetectionDataset,
    DetrCollator,
    EvalBatchSampler,
    eval_transform,
    open_dataset,
)
from modeling_detr.data.hf_datasets import BoxFormat
from modeling_detr.data.labels import adopt_model_labels
from modeling_detr.data.open import FORMATS
from modeling_detr.data.splits import evaluation_images
from modeling_detr.data.transforms import SampleTransform
from modeling_detr.evaluation.coco import CocoEvaluator
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.evaluation.evaluators import Evaluator, default_evaluators
from modeling_detr.evaluation.panoptic import PanopticEvaluator
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.prediction import task_of
from modeling_detr.structures_detr import DetectionIndex, Task
from modeling_detr.training.recipe import Recipe


# Argument of the library → option of this command, for error messages.
OPTION_NAMES = {"format": "data_format", "train_split": "split", "eval_split": "split"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        "detr evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="a model's folder, or its name on the Hub")
    parser.add_argument("dataset", help="a COCO, YOLO or VOC folder or file, or shapes")
    parser.add_argument("--data_format", choices=FORMATS, help="default: found out")
    parser.add_argument("--images", type=Path, help="folder of the images, if it is outside the dataset's")
    parser.add_argument("--drop_difficult", action="store_true", help="without what VOC marks as difficult")
    parser.add_argument("--box_format", choices=get_args(BoxFormat), help="of the format hf (default: found out)")
    parser.add_argument(
        "--task", choices=get_args(Task), help="what is judged: boxes, masks, panoptic segments (default: all it can)"
    )
    parser.add_argument("--split", help="several are joined by '+' (default: the validation or test split)")
    parser.add_argument(
        "--eval_fraction",
        type=float,
        default=0.0,
        help="evaluate on what training with this eval_fraction and seed held out; --split is then what it trained on",
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of that training (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="images a batch and process (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=2, help="loading processes (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("evaluation"), help="default: %(default)s")
    arguments = parser.parse_args(argv)

    # The dataset, the model, and the dataset in the order of the model's classes.
    accelerator = Accelerator()

    def opened(task: Task) -> DetectionIndex:
        dataset = open_dataset(
            arguments.dataset,
            format=arguments.data_format,
            task=task,
            images=arguments.images,
            drop_difficult=arguments.drop_difficult,
            box_format=arguments.box_format,
        )
        return evaluation_images(dataset, arguments.split, arguments.eval_fraction, arguments.seed)

    task: Task = arguments.task or "detection"
    dataset = opened(task)
    model, processor = load_model(arguments.model)
    if arguments.task is None and task_of(model) != task:
        task = task_of(model)
        dataset = opened(task)
    own_category_ids = {category.id for category in dataset.categories}
    id2label = cast(dict[int, str], model.config.id2label)
    index = adopt_model_labels(dataset, id2label, model.config.stuff_labels)

    # Whole batches, the same however many processes there are, dealt out to them.
    samples = DetectionDataset(index, resizing_of(processor), masks=task != "detection")
    sampler = EvalBatchSampler(
        samples,
        arguments.batch_size,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    names = [image.path for image in index.images]
    collator = DetrCollator(processor.image_mean, processor.image_std, len(id2label), names, normalize=False)
    loader = DataLoader(samples, batch_sampler=sampler, collate_fn=collator, num_workers=arguments.num_workers)

    # Judge, show, write.
    evaluators = default_evaluators(index, task)
    for evaluator in evaluators:
        if isinstance(evaluator, PanopticEvaluator):
            evaluator.save_to = arguments.output_dir / "predictions_panoptic"
    model.to(accelerator.device)
    report = evaluate(model, loader, processor, index, accelerator, evaluators, progress=True)
    if accelerator.is_main_process:
        print(report.metrics_table())
        print(f"\n{report.summary()}")
        written = report.save(arguments.output_dir)
        written += _save_predictions(evaluators, arguments.output_dir, own_category_ids)
        print("\n".join(map(str, written)))
    accelerator.end_training()
    return 0


def _save_predictions(evaluators: Iterable[Evaluator], folder: Path, category_ids: Collection[int]) -> list[Path]:
    """Writes the predictions that evaluators have kept in COCO's formats, without classes that only the model has."""
    written = []
    for evaluator in evaluators:
        if isinstance(evaluator, CocoEvaluator):
            results = [row for row in evaluator.to_coco_results() if row["category_id"] in category_ids]
            written.append(folder / ("predictions_masks.json" if evaluator.masks else "predictions.json"))
            written[-1].write_text(json.dumps(results), encoding="utf-8")
        elif isinstance(evaluator, PanopticEvaluator):
            written.append(evaluator.save_json())
    return written


def resizing_of(processor: DetrTorchvisionImageProcessor) -> SampleTransform | None:
    """The processor's way of resizing, for a whole dataset.

    Raises:
        ValueError: The processor does not keep the proportions of images.
    """
    if not processor.do_resize:
        return None
    if processor.size.shortest_edge is None:
        raise ValueError(
            f"preprocessor_config.json of the model has size {dict(processor.size)}; evaluation resizes by "
            f"shortest_edge (and longest_edge) only."
        )
    return eval_transform(processor.size.shortest_edge, processor.size.longest_edge)
