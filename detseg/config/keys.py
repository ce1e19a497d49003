"""detseg's own configuration keys: all that Detectron2 does not have, with default and explanation.

`docs/configuration.md` is generated from this list. A key whose default does not determine its type (an empty list)
declares it.
"""

from __future__ import annotations

from detseg.config.data_keys import DATA_KEYS
from detseg.config.key import Key
from detseg.config.model_keys import MODEL_KEYS
from detseg.config.training_keys import TRAINING_KEYS

OWN_KEYS: dict[str, Key] = MODEL_KEYS | DATA_KEYS | TRAINING_KEYS
