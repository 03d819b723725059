"""Lets the tests of this folder import `programs` and `servers`, which are no tests themselves."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "data"))
