"""Run `detr evaluate` from a checkout, also under `accelerate launch` and `torchrun`."""

from modeling_detr.commands import run_command


raise SystemExit(run_command("evaluate"))
