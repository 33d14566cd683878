import torch

from modeling_detr.benchmarks.speed.contenders import build_contenders
from modeling_detr.benchmarks.speed.generated_images import random_batch
from modeling_detr.benchmarks.speed.training import build_trainings


def test_stock_has_the_same_weights_and_gives_the_same_loss_and_gradients(settings, small_config):
    contenders = build_contenders(small_config, settings)
    outputs = build_trainings(contenders, settings).outputs(random_batch([(64, 96), (80, 64)], 3, 91))
    assert outputs["modeling_detr"].keys() == outputs["transformers"].keys()
    assert len(outputs["modeling_detr"]) == 5
    for name, value in outputs["modeling_detr"].items():
        value, expected = torch.as_tensor(value), torch.as_tensor(outputs["transformers"][name])
        assert float((value - expected).abs().max()) <= 2e-3 * float(expected.abs().max()), name


def test_steps_train_all_contenders(settings, small_config):
    contenders = build_contenders(small_config, settings)
    trainings = build_trainings(contenders, settings)
    batch = random_batch([(64, 64)], 3, 91)
    before = [contenders.ours.class_labels_classifier.bias.detach().clone(), contenders.stock.class_labels_classifier]
    stock_before = before[1].bias.detach().clone()
    trainings.ours.step(batch)
    trainings.stock.prepared_step(batch, autocast=False)()
    assert not torch.equal(before[0], contenders.ours.class_labels_classifier.bias)
    assert not torch.equal(stock_before, contenders.stock.class_labels_classifier.bias)
    assert contenders.stock.training


def test_weights_are_drawn_by_the_seed(settings, small_config):
    first, again, other = (build_contenders(small_config, settings, seed=seed).ours for seed in (0, 0, 1))
    weights = [model.class_labels_classifier.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
