"""The programs of docs/scaling.md."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


def snippet(name):
    """The program behind the mark of this name."""
    return re.search(f"<!-- {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
