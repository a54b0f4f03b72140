"""What is fitted on one store, chosen on a second and measured on a third."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import apart
from hybridclip_jax.evals.encode import Encode
from hybridclip_jax.evals.evaluator import Evaluator, Field, Preparation
from hybridclip_jax.evals.units import Units


class Fitted(Evaluator):
    """Opens the three stores; UserError where one is not named, or two of them share patients or images.

    Features are the model's embeddings of images: after the projection, L2-normalised. A protocol may replace the
    units of each store by those that it uses.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "train": Field("", "the store that it is fitted on, PATH[:SPLIT]; its patients are in neither other store"),
        "validation": Field("", "the store that the strength of regularisation is chosen on"),
    }

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        self.train, self.validation = self._open("train"), self._open("validation")
        self.train_units, self.validation_units = (Units.of(s, self.units.kind) for s in (self.train, self.validation))
        self.notes = [
            *apart.check(f"evals.{name}.train", self.train, self.store),
            *apart.check(f"evals.{name}.validation", self.validation, self.store),
            *apart.check(f"evals.{name}.train", self.train, self.validation),
        ]

    def _open(self, field: str) -> Store:
        if not self.entry[field]:
            raise UserError(f"evals.{self.name}.{field} is empty: name a store, PATH[:SPLIT]")
        return self.preparation.open_store(self.entry[field])

    def features(self, encode: Encode, params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit vectors float64 [N, E] of the units of train, of validation and of the measured store."""

        def of(store: Store, units: Units) -> np.ndarray:
            return units.embeddings(encode.of_store(params, store, self.preparation.image_size, units.row_M))

        train_NxE, validation_NxE = of(self.train, self.train_units), of(self.validation, self.validation_units)
        return train_NxE, validation_NxE, of(self.store, self.units)

    def describe(self) -> dict[str, Any]:
        said = super().describe()
        said["notes"] += self.notes
        for field, store in (("train", self.train), ("validation", self.validation)):
            said[field] = {"data": store.spec, "store_fingerprint": store.fingerprint}
        return said | {
            "features": "embeddings of images after the projection, L2-normalised",
            "intervals": "patients of data are drawn again; what was fitted stays",
        }
