"""Where `base` and `smoke` were before they moved into the package: `from configs.base import base` keeps working here.

Configs say `from t5like.config import base, smoke`.
"""
from t5like.config import base, smoke  # noqa: F401
