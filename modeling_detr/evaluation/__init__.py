"""Evaluation of a model on a dataset: the pass over the images, the evaluators that score predictions, and the report.

    report = evaluate(model, batches, processor, index, evaluators=default_evaluators(index, "detection"))
    print(report.metrics_table())

`engine.py` has `evaluate`, `evaluators.py` the table of evaluators, and each evaluator is one file.
"""
