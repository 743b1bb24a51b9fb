"""Olive: its pass OnnxDynamicQuantization on a float graph, with its own settings."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    os.environ.setdefault("OLIVE_DISABLE_TELEMETRY", "1")
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxDynamicQuantization

    graph, out = Path(sys.argv[1]), Path(sys.argv[2])
    shutil.rmtree(out, ignore_errors=True)
    step = create_pass_from_dict(OnnxDynamicQuantization, disable_search=True)
    made = step.run(ONNXModelHandler(model_path=str(graph)), str(out / "made"))
    shutil.copy(made.model_path, out / "model.onnx")
    shutil.rmtree(out / "made")


if __name__ == "__main__":
    main()
