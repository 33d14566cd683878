"""Train under a limit of memory, a given number of MiB above what the process has before its first step.

python tests/limited_run.py MIB RECIPE
"""

import sys

import torch

from modeling_detr.training.memory import limit_memory, private_gib
from modeling_detr.training.recipe_parsing import parse_recipe
from modeling_detr.training.trainer import Trainer


if __name__ == "__main__":
    trainer = Trainer.from_recipe(parse_recipe(sys.argv[2:]))
    limit = private_gib() + int(sys.argv[1]) / 1024
    limit_memory(torch.device("cpu"), limit)
    trainer.train()
    print(f"{limit:.3f} GiB allowed, {private_gib():.3f} GiB at the end")
