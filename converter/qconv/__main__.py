"""``python -m qconv`` is the command ``qconv``."""

from __future__ import annotations

from qconv.cli import main

if __name__ == "__main__":
    main()
