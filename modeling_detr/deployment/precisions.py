"""The precisions of exported models, and what static quantisation applies to."""

from typing import Literal


Precision = Literal["float32", "float16", "bfloat16", "int8", "int8_static"]

Operators = Literal["conv", "linear", "all"]
"""What static quantisation applies to: convolutions, linear layers, or both."""
