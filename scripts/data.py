"""`detr data`, for who has not installed the package."""

from modeling_detr.commands import run_command


raise SystemExit(run_command("data"))
