"""Tests that import SGLang itself find what it needs on a machine without an accelerator, before anything looks for it."""

from __future__ import annotations

import importlib.util
import sys

from andes_sglang.adapter.launch import STANDINS

if importlib.util.find_spec("triton") is None:
    sys.path.append(str(STANDINS))
