"""Which candidate to measure next: MetaSchedule's XGBoost model over features of our own.

MetaSchedule's model takes candidates as schedules of an s_tir function. Ours are written by generators, so a candidate
is carried by a function of one block with one decision: its number in the layer's list of schedules.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule as SchedulingState
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig, XGBModel
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.runner import RunnerResult
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate
from tvm.script import tirx as tir

from intcert.compile.layer import Layer
from intcert.compile.tune.features import features
from intcert.runtime.errors import MissingDependencyError

try:
    import xgboost  # noqa: F401  (MetaSchedule imports it when it first trains)
except ImportError:
    raise MissingDependencyError(
        "tuning ranks candidates with xgboost, which is not installed; run: pip install 'intcert[tune]'"
    ) from None

WARM_UP = 16  # measurements before the model's opinion counts
SEED = 1


@tir.prim_func(s_tir=True)
def _carrier(unused: tir.Buffer((1,), "int32")):
    with tir.sblock("layer"):
        unused[0] = 0


def _context(module: tvm.IRModule, name: str) -> ms.TuneContext:
    """A context that holds a module and nothing else.

    TuneContext's own constructor first parses the intrinsics of all targets, which takes 20 s; none is of use here.
    """
    context = ms.TuneContext.__new__(ms.TuneContext)
    context.__init_handle_by_constructor__(_ffi_api.TuneContext, module, None, None, None, name, 1, SEED, None)
    return context


class Space:
    """All schedules of a layer, as MetaSchedule sees them."""

    def __init__(self, layer: Layer) -> None:
        self.schedules = layer.schedules()
        count = len(self.schedules)
        # The model groups measurements by the module, which the workload makes another one.
        function = _carrier.with_attr({"global_symbol": "main", "workload": layer.workload})
        module = tvm.IRModule({"main": function})
        self.context = _context(module, layer.name)
        self.features = [features(layer, schedule) for schedule in self.schedules]
        self.candidates = []
        for number in range(count):
            state = SchedulingState(module)
            state.sample_categorical(list(range(count)), [1 / count] * count, decision=number)
            self.candidates.append(MeasureCandidate(state, []))


@derived_object
class _Features(PyFeatureExtractor):
    """Features of a candidate from the space that it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.space: Space | None = None

    def extract_from(self, context: ms.TuneContext, candidates: list[MeasureCandidate]) -> list[tvm.runtime.Tensor]:
        numbers = [int(decision) for c in candidates for decision in c.sch.trace.decisions.values()]
        return [tvm.runtime.tensor(self.space.features[number][None]) for number in numbers]


class CostModel:
    """Learns from measurements of all layers, and scores the candidates of one."""

    def __init__(self) -> None:
        self._features = _Features()
        config = XGBConfig(nthread=1, seed=SEED)
        self._model = XGBModel(
            extractor=self._features, config=config, num_warmup_samples=WARM_UP, verbose_eval=0, adaptive_training=False
        )

    @property
    def warm(self) -> bool:
        """Whether there are enough measurements for an opinion."""
        return self._model.data_size >= WARM_UP

    def learn(self, space: Space, numbers: Sequence[int], ratios: Sequence[float | None]) -> None:
        """Take measurements in. numbers: of schedules; ratios: their times over the default's, None where it failed."""
        results = [RunnerResult(None, "failed") if ratio is None else RunnerResult([ratio], None) for ratio in ratios]
        self._features.space = space
        self._model.update(space.context, [space.candidates[number] for number in numbers], results)

    def scores(self, space: Space) -> np.ndarray:
        """Scores of all candidates, float[schedules]; higher is better."""
        self._features.space = space
        return self._model.predict(space.context, space.candidates)
