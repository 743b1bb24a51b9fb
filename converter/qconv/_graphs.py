"""Statistics of sources that are graphs: a backend runs them, as transformers knows them not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from qconv.errors import BrokenPlugin, QconvError, Unsupported
from qconv.plugin import GraphRunner

if TYPE_CHECKING:
    from qconv._host import Chain
    from qconv.calibration import Calibration, Samples
    from qconv.checkpoint import FileCheckpoint
    from qconv.conversion import Passes
    from qconv.planning import Plan
    from qconv.plugin import Backend
    from qconv.statistics import Statistics

#: Weights that a warning names.
_NAMED = 5


def refuse_steps(name: str, chain: Chain, statistics: str | None) -> None:
    """Refuse what needs the blocks of a model, which a graph does not tell.

    name: of the source

    Raises:
        Unsupported: a step transforms or rounds blocks, or statistics are to follow them.
    """
    steps = [*chain.transforms, *([chain.rounder] if _by_block(chain) else [])]
    if steps or statistics == "sequential":
        what = f"method {steps[0].spec.name!r}" if steps else "--statistics sequential"
        raise Unsupported(
            f"{name}: {what} works on the blocks of a model, which an .onnx graph does not tell; "
            "use rtn or gptq, or convert the checkpoint that the graph was made from"
        )


def _by_block(chain: Chain) -> bool:
    return chain.rounder.spec.kind == "block_rounder"


def graph_passes(
    checkpoint: FileCheckpoint,
    settings: Calibration,
    chain: Chain,
    backends: Iterable[Backend],
    plan: Plan,
) -> Passes:
    """Run a graph on samples, and keep the statistics of all its linear weights' inputs.

    plan: whose quantized weights without statistics are warned of

    Peak memory: the graph as its runner holds it, one sample's inputs of all linear weights, and
    all statistics: ``in x in`` float32 for each distinct input where a step needs Gram matrices,
    and for each distinct set of inputs that weights are multiplied with.

    Raises:
        UsageError: the calibration has no samples of the graph's inputs.
        BrokenPlugin: no backend runs graphs, or it does not do what it said.
    """
    from qconv.calibration import graph_samples
    from qconv.conversion import Passes
    from qconv.conversion._notes import Notes

    runner = next((each for each in backends if isinstance(each, GraphRunner)), None)
    if runner is None:
        raise BrokenPlugin(
            f"plugin author: a backend that reads sources of kind {checkpoint.model.kind!r} must "
            "be a GraphRunner, or no method can be calibrated on them"
        )
    samples = graph_samples(settings, checkpoint, runner.graph_inputs(checkpoint.model))
    gram = any(step.spec.gram and step.spec.calibration != "unused" for step in chain.steps)
    statistics = _statistics(runner, checkpoint, samples, gram=gram)
    notes = Notes()
    notes.take(statistics, settings.min_tokens_per_expert)
    return Passes(
        model=None,
        windows=samples.tokens,
        digest=samples.digest,
        warnings=(*samples.warnings, *notes.warnings, *_unseen(plan, statistics)),
        min_tokens_per_expert=settings.min_tokens_per_expert,
        saved=statistics,
    )


def _statistics(
    runner: GraphRunner, checkpoint: FileCheckpoint, samples: Samples, *, gram: bool
) -> Mapping[str, Statistics]:
    """By name of the linear weight; one object for those that share all their inputs."""
    from qconv.statistics import StatisticsSum

    sums: dict[tuple[str, ...], StatisticsSum] = {}
    places = {name: checkpoint.place(name) for name in checkpoint.model.tensors}
    place = 0
    try:
        for observed in runner.observe(checkpoint.model, places, samples.feeds):
            for each in observed:
                total = sums.get(each.weights)
                if total is None:
                    total = sums[each.weights] = StatisticsSum(each.rows.shape[1], gram=gram)
                total.add(each.rows, place)
            place += max((len(each.rows) for each in observed), default=0)
    except (QconvError, MemoryError):
        raise
    except Exception as error:
        raise BrokenPlugin(
            f"plugin author: observe() failed: {type(error).__name__}: {error}"
        ) from error
    return _by_weight({weights: each.total() for weights, each in sums.items()})


def _by_weight(totals: Mapping[tuple[str, ...], Statistics]) -> Mapping[str, Statistics]:
    """Of each weight: the sum over the inputs that it is multiplied with.

    totals: of each input, by the weights that it is multiplied with
    """
    inputs: dict[str, list[tuple[str, ...]]] = {}
    for weights in totals:
        for name in weights:
            inputs.setdefault(name, []).append(weights)
    added: dict[tuple[tuple[str, ...], ...], Statistics] = {}
    for keys in map(tuple, inputs.values()):
        if keys not in added:
            added[keys] = reduce(add, (totals[each] for each in keys))
    return {name: added[tuple(keys)] for name, keys in inputs.items()}


def _unseen(plan: Plan, statistics: Mapping[str, Statistics]) -> tuple[str, ...]:
    """A warning of weights that calibration does not help, such as those of a Conv; or none."""
    quantized = (
        each for target in plan.targets for each in target.tensors.tensors if each.grid is not None
    )
    names = sorted({name for each in quantized for name in each.sources} - set(statistics))
    if not names:
        return ()
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    warning = (
        f"{len(names)} quantized weights ({', '.join(names[:_NAMED])}{more}) have no statistics of "
        "their inputs, as the graph does more than multiply by them (Conv, Gather): they are "
        "rounded as without calibration"
    )
    return (warning,)
