"""Run `detr serve` from a checkout."""

from modeling_detr.commands import run_command


raise SystemExit(run_command("serve"))
