"""Makes the example plugin importable as if it were installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "qconv-example" / "src"))
