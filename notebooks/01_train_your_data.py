# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train on your own data
#
# Where the package is not installed, as on Colab, upload a ZIP of the repository beside this notebook. In a clone,
# `git archive --prefix=modeling_detr/ --output=modeling_detr.zip HEAD` makes it.

# %%
import importlib.util
import subprocess
import sys


if importlib.util.find_spec("modeling_detr") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "modeling_detr.zip"], check=True)

# %%
import os

from modeling_detr.visualization import class_colour


REDUCED = "NOTEBOOKS_REDUCED" in os.environ  # set by our tests, which have less time than you
class_colour(0)
