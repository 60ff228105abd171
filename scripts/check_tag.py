"""Fail unless the tree is ready to be released under the tag: `python3 scripts/check_tag.py v1.2.3`.

RELEASING.md says how to prepare it.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def faults(tag: str) -> list[str]:
    """Return what contradicts the tag: the version, the change log, or fragments that it does not contain."""
    (version,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "cni/__init__.py").read_text(), re.MULTILINE)
    sections = re.findall(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    fragments = sorted({path.name for path in (ROOT / "changelog.d").iterdir()} - {"README.md"})
    possible = {
        f"the tag is {tag}, but cni.__version__ is {version}": tag != f"v{version}",
        f"CHANGELOG.md has no section '## {version} (YYYY-MM-DD)'": version not in sections,
        f"fragments are not collated: {', '.join(fragments)}": bool(fragments),
    }
    return [message for message, applies in possible.items() if applies]


if __name__ == "__main__":
    sys.exit("\n".join(faults(sys.argv[1])) or None)
