"""The type of configs, for annotations."""
from typing import Any, TypeAlias

# An ml_collections.ConfigDict with the keys of t5like/config/base.py. Its attributes are made while the program runs,
# so type checkers cannot know them; t5like/config/values.py checks their names and types instead.
Config: TypeAlias = Any
Section: TypeAlias = Any  # one of its sections: config.optimizer, config.data, ..
