"""All predictions as JSON: one list, or a line for each image."""

import json

from modeling_detr.atomic_output import replaced_file
from modeling_detr.predicting.outputs.output import Entries, Output


class JsonList(Output):
    """`predictions.json`: a list with an entry for each image, which people can read."""

    files = ("predictions.json",)

    def finish(self, entries: Entries) -> None:
        """Writes the list, one entry at a time."""
        with (
            replaced_file(self.run.folder / self.files[0]) as file,
            file.open("w", encoding="utf-8", errors="backslashreplace") as text,
        ):
            text.write("[")
            for number, entry in enumerate(entries()):
                text.write(",\n" if number else "\n")
                text.write(" " + json.dumps(entry, indent=1, ensure_ascii=False).replace("\n", "\n "))
            text.write("\n]\n")


class JsonLines(Output):
    """`predictions.jsonl`: a line for each image, for programs that read one at a time."""

    files = ("predictions.jsonl",)

    def finish(self, entries: Entries) -> None:
        """Writes the lines."""
        with (
            replaced_file(self.run.folder / self.files[0]) as file,
            file.open("w", encoding="utf-8", errors="backslashreplace") as text,
        ):
            for entry in entries():
                text.write(json.dumps(entry, ensure_ascii=False) + "\n")
