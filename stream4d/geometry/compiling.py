"""How every kernel of the package is compiled by numba.

Its cache notices edits in a kernel's own file only: after a change here delete all ``__pycache__``.
"""

from __future__ import annotations

from typing import Any

COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
"""With Python's errors every divisor would be tested for zero, and no loop with a division used vectors."""
VECTORISED: dict[str, Any] = {**COMPILED, "fastmath": {"contract", "reassoc"}}
"""For long sums, of patches, pixels or channels: added in any order, they go on vectors. Neither flag loses a NaN."""
