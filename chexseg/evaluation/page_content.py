"""What the page's templates show: tables and pictures as dictionaries. Nothing here is HTML, the templates escape it.

A table is {"caption", "header", "rows": [{"head", "cells": [{"value", "range", "best"}], "total"}], "kind"}, a picture
{"source", "alt", "caption"}.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from chexseg.evaluation import charts

Content = dict[str, Any]


def number(value: float, form: str = ".3f") -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:{form}}".replace("-", "−")


def cell(values: Sequence[float], form: str = ".3f", best: bool = False) -> Content:
    value, lower, upper = values
    known = np.isfinite(value) and np.isfinite(lower)
    return {
        "value": number(value, form),
        "range": f"{number(lower, form)} to {number(upper, form)}" if known else "",
        "best": best,
    }


def plain(*values: object) -> list[Content]:
    return [{"value": str(value), "range": "", "best": False} for value in values]


def table(caption: str, header: Sequence[str], rows: Sequence[Content], kind: str = "numbers") -> Content:
    """kind: `numbers`, set to the right, or `text`, to the left."""
    return {"caption": caption, "header": list(header), "rows": list(rows), "kind": kind}


def row(head: str, cells: Sequence[Content], total: bool = False) -> Content:
    return {"head": head, "cells": list(cells), "total": total}


def picture(figure: Any, alt: str, caption: str) -> Content:
    return {"source": charts.data_uri(figure), "alt": alt, "caption": caption}
