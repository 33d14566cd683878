"""Names of settings in other tools, and what they are called here, for the message about an unknown key."""

from modeling_detr.configuration_detr import DetrConfig


class Hint(str):
    """What to do instead, in words, where no key does the same."""


_CLASSES = Hint("the classes are those of the dataset, which 'detr data check' lists")
_DEVICE = Hint("choose GPUs with the environment variable CUDA_VISIBLE_DEVICES (empty: train on the CPU)")
_PROCESSES = Hint("train on several GPUs with --gpus 4 or --gpus auto, or by accelerate launch or torchrun")

# Name elsewhere → key here, or a hint in words if it is not one key. Most are of Ultralytics, Transformers' Trainer
# and the original's main.py; names that resemble the key, such as learning-rate, are recognised without this table.
FAMILIAR_KEYS = {
    "lr": "learning_rate",
    "lr0": "learning_rate",
    "lr_backbone": "backbone_learning_rate",
    "lr_drop": "lr_drop_epochs",
    "clip_max_norm": "max_grad_norm",
    "wd": "weight_decay",
    "batch": "batch_size",
    "bs": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "accumulate": "gradient_accumulation_steps",
    "num_train_epochs": "epochs",
    "workers": "num_workers",
    "dataloader_num_workers": "num_workers",
    "patience": "early_stopping_patience",
    "save_period": "checkpoint_every_epochs",
    "save_steps": "checkpoint_every_steps",
    "save_total_limit": "keep_checkpoints",
    "amp": "mixed_precision",
    "fp16": "mixed_precision",
    "bf16": "mixed_precision",
    "half": "mixed_precision",
    "ema": "ema_decay",
    "logging_steps": "log_every_steps",
    "report_to": "trackers",
    "wandb": "trackers",
    "project": "output_dir",
    "name": "output_dir",
    "out": "output_dir",
    "output": "output_dir",
    "save_dir": "output_dir",
    "weights": "model",
    "pretrained": "model",
    "frozen_weights": Hint("set model to the file, task to panoptic or instance, and freeze_detector to true"),
    "model_name_or_path": "model",
    "dataset": "data",
    "dataset_name": "data",
    "coco_path": "data",
    "dataset_file": "data_format",
    "coco_panoptic_path": "data",
    "masks": "task",
    "remove_difficult": "drop_difficult",
    "augment": "transform",
    "fliplr": "transform_options.flip_probability",
    "flipud": "transform_options.vertical_flip_probability",
    "hsv_h": "transform_options.hue",
    "hsv_s": "transform_options.saturation",
    "hsv_v": "transform_options.brightness",
    "mosaic": "mosaic_probability",
    "mosaic_prob": "mosaic_probability",
    "close_mosaic": Hint("set close_mosaic_share to a share of the epochs: 0.1 for the last 10 of 100"),
    "no_aug_epochs": Hint("set close_mosaic_share to a share of the epochs: 0.05 for the last 15 of 300"),
    "push_to_hub_model_id": "push_to_hub",
    "hub_model_id": "push_to_hub",
    "enc_layers": "model_config.encoder_layers",
    "dec_layers": "model_config.decoder_layers",
    "hidden_dim": "model_config.d_model",
    "dim_feedforward": Hint("set model_config.encoder_ffn_dim and model_config.decoder_ffn_dim"),
    "nheads": Hint("set model_config.encoder_attention_heads and model_config.decoder_attention_heads"),
    "aux_loss": "model_config.auxiliary_loss",
    "no_aux_loss": Hint("set model_config.auxiliary_loss to false"),
    "position_embedding": "model_config.position_embedding_type",
    "pre_norm": "model_config.pre_norm",
    "eos_coef": "model_config.eos_coefficient",
    "bbox_loss_coef": "model_config.bbox_loss_coefficient",
    "giou_loss_coef": "model_config.giou_loss_coefficient",
    "mask_loss_coef": "model_config.mask_loss_coefficient",
    "dice_loss_coef": "model_config.dice_loss_coefficient",
    "set_cost_class": "model_config.class_cost",
    "set_cost_bbox": "model_config.bbox_cost",
    "set_cost_giou": "model_config.giou_cost",
    "imgsz": "processor_config.size '{shortest_edge: 480, longest_edge: 640}'",
    "img_size": "processor_config.size '{shortest_edge: 480, longest_edge: 640}'",
    "image_size": "processor_config.size '{shortest_edge: 480, longest_edge: 640}'",
    "size": "processor_config.size '{shortest_edge: 480, longest_edge: 640}'",
    "device": _DEVICE,
    "gpus": _PROCESSES,
    "num_gpus": _PROCESSES,
    "devices": _PROCESSES,
    "num_processes": _PROCESSES,
    "nproc_per_node": _PROCESSES,
    "nodes": _PROCESSES,
    "num_labels": _CLASSES,
    "num_classes": _CLASSES,
    "nc": _CLASSES,
    "conf": Hint("training has no threshold; 'detr predict' has --threshold"),
    "iou": Hint("a DETR needs no non-maximum suppression"),
    "cfg_options": Hint("every key is an option: --KEY VALUE"),
    "eval": Hint("use 'detr evaluate'"),
    "val": Hint("use 'detr evaluate'"),
    "start_epoch": Hint("a run resumed with resume continues after the step of its checkpoint"),
    "world_size": _PROCESSES,
    "dist_url": _PROCESSES,
    "optimizer": Hint("the optimizer is AdamW, as in the original"),
}


def familiar_key(name: str) -> str | None:
    """What a setting of another tool, or of the model, is called in a recipe; None if the name is unknown.

    Args:
        name: The name, with underscores.

    Returns:
        A key, or a `Hint`.
    """
    if name not in FAMILIAR_KEYS and name in DetrConfig.own_keys():
        return f"model_config.{name}"
    return FAMILIAR_KEYS.get(name)
