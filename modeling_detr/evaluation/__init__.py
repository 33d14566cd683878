"""Evaluation of a model on a dataset: the pass over the images, the evaluators that score predictions, and the report.

    report = evaluate(model, batches, processor, index, evaluators=default_evaluators(index, "detection"))
    print(report.metrics_table())

`evaluate` is in `engine.py`, the table of evaluators in `evaluators.py`, and each evaluator in its own file.
"""
