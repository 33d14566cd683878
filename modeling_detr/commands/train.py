r"""Trains a detector as a recipe says.

    detr train configs/shapes.yaml --output_dir runs/demo
    accelerate launch --config_file configs/accelerate/several_gpus.yaml scripts/train.py configs/detr_r50.yaml \
        --data COCO_FOLDER

Every key of the recipe can be given on the command line, where it wins over the file. In the run's folder lie the
recipe, `log.jsonl`, the trackers' files, the newest checkpoints, and `model/`: the best model so far, ready for use.
"""

import sys
from collections.abc import Sequence

from modeling_detr.training.recipe import parse_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Trains; returns the exit code, 128 and the signal's number if one stopped the run."""
    notes: list[str] = []
    recipe = parse_recipe(list(sys.argv[1:] if argv is None else argv), notes=notes)

    # Only now what takes seconds to import: `--help` and a mistake in the recipe answer at once.
    from modeling_detr.training.metric_logger import LOG, read_log
    from modeling_detr.training.preflight import preflight
    from modeling_detr.training.publishing import push_model, push_notes
    from modeling_detr.training.signals import TrainingInterrupted
    from modeling_detr.training.trainer import Trainer
    from modeling_detr.visualization import plot_curves

    # Build everything, and say what is about to happen before it does.
    trainer = Trainer(recipe)
    trainer.notes += notes + push_notes(recipe)
    on_main_process = trainer.accelerator.is_main_process
    if on_main_process:
        print(trainer.plan(), flush=True)
    if recipe.preflight:
        for line in preflight(trainer):
            print(f"preflight {line}", flush=True)

    # Train; a signal ends the run between two steps and leaves a checkpoint.
    try:
        report = trainer.train()
    except TrainingInterrupted as interruption:
        if on_main_process:
            print(interruption, flush=True)
        trainer.accelerator.end_training()
        return 128 + interruption.signal_number

    # Say what came of it, and where it lies.
    if on_main_process:
        state, log = trainer.state, read_log(trainer.run_dir / LOG)
        print(f"\nThe last evaluation, after {state.step:,} steps:\n\n{report.metrics_table()}\n")
        figure = report.decisive[0]
        print(f"{state.seconds / 60:.1f} minutes; best {figure} {state.best_ap:.3f}, after epoch {state.best_epoch}.")
        print(f"model     {trainer.run_dir / 'model'}, the best; its figures are in evaluation.md beside it")
        print(f"pictures  {trainer.run_dir / 'predictions'}")
        if any(entry["kind"] == "epoch" for entry in log):
            print(f"curves    {plot_curves({recipe.run_dir.name: log}, trainer.run_dir / 'curves.png')}")
    trainer.accelerator.end_training()
    if on_main_process and recipe.push_to_hub is not None:
        message = f"{report.decisive[0]} {state.best_ap:.3f} after epoch {state.best_epoch}"
        print(f"pushed to {push_model(trainer.run_dir / 'model', recipe.push_to_hub, recipe.hub_private, message)}")
    return 0
