"""Configs: keys and their defaults, files, the command line's changes, the rules that values keep. No JAX in here.

    config = load('configs/decoder_tiny.py:smoke', ['optimizer.learning_rate=1e-3'])
"""
from t5like.config.base import base, smoke  # noqa: F401 (what configs import)
from t5like.config.files import (  # noqa: F401 (the package's interface)
  complete,
  describe,
  find,
  from_json,
  load,
  special_of,
  to_json,
  validate,
  variants,
)
from t5like.config.resolved import derived, resolve  # noqa: F401
from t5like.config.resumable import ALLOWED, check_resumable, differences  # noqa: F401
from t5like.config.rules import check  # noqa: F401
from t5like.config.run_rules import parse_target, warnings  # noqa: F401
from t5like.config.values import flatten  # noqa: F401
