"""The image reader of a plug-in whose images are entries of a zip file; loader processes import it by name."""

import io
import zipfile
from functools import lru_cache


@lru_cache
def open_zip(file):
    return zipfile.ZipFile(file)


def read_entry(path):
    """Read the image at `ARCHIVE::ENTRY`."""
    file, _, name = path.partition("::")
    return io.BytesIO(open_zip(file).read(name))
