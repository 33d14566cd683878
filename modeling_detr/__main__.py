"""`python -m modeling_detr train …` is `detr train …`."""

from modeling_detr.commands import main


if __name__ == "__main__":
    raise SystemExit(main())
