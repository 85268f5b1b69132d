"""A finished run's weights on its validation rows once more, with other items."""

from pathlib import Path
from types import ModuleType

import numpy as np

from mm_fibinet import any_model, run_manifest, settings
from mm_fibinet.checkpoint import load_weights
from mm_fibinet.compare.jobs import Job
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.feature_map import load_feature_map
from mm_fibinet.item_table import load_item_table
from mm_fibinet.precision import Precision
from mm_fibinet.run_folder import RunFolder
from mm_fibinet.scoring import predict


class Rescorer:
    """A run that scores its validation rows again; the model is loaded once.

    Args:
        job: a finished run.
        models: the namespace of the models' classes.
        gpu: where, -1 for the CPU.

    Raises:
        UserError: the weights are not those that the run wrote.
    """

    def __init__(self, job: Job, models: ModuleType, gpu: int):
        self._params = params = {**job.params, "gpu": gpu, "verbose": 0}
        run = RunFolder.of(params)
        manifest = run_manifest.read_manifest(run)
        run_manifest.refuse_other_weights(manifest, run)
        model_class = settings.find_model(models, params["model"])
        feature_map = load_feature_map(run.feature_map, params)
        self._model = any_model.make_model(model_class, feature_map, params)
        load_weights(self._model, run.weights)
        self._items = any_model.item_features(self._model, feature_map, params)
        given = {**params, "item_info": self._table(params["item_info"]), "shuffle": False}
        given["batch_format"] = any_model.batch_format(model_class, params)
        self._data = MMCTRDataLoader(feature_map, params["valid_data"], split="valid", **given)
        setting = params.get("precision", "fp32")
        self._precision = Precision.for_scores(manifest.get("precision"), setting, self._model.device).name

    def scores(self, item_info: str | Path) -> np.ndarray:
        """Click probabilities of the validation rows with these items, float64 [N], in file order."""
        self._data.item_table = self._table(item_info).to(self._data.device)
        return predict(self._model, self._data, self._precision)

    def _table(self, item_info: str | Path):
        return load_item_table(item_info, self._items, self._params.get("item_feature"))
