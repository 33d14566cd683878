"""All predictions as JSON: one list, or a line for each image."""

import json

from modeling_detr.atomic_output import replaced_file
from modeling_detr.predicting.journal import Entry
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
                text.write(_readable(entry))
            text.write("\n]\n")


def _readable(entry: Entry) -> str:
    """An entry as JSON, with a line for each object."""
    *facts, (key, found) = entry.items()  # the objects come last
    lines = ",\n".join(f"  {json.dumps(one, ensure_ascii=False)}" for one in found)
    return f' {json.dumps(dict(facts), ensure_ascii=False)[:-1]}, "{key}": [' + (f"\n{lines}\n ]}}" if found else "]}")


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
