"""Ladders: models that stand in for one another, with what an answer of each is worth. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from andes_api.classes import ClassSettings, ModelSettings, Strict
from andes_api.models import ANY

__all__ = ["Ladders", "Rung", "best_models", "faults", "usable_rungs"]


class Rung(Strict):
    """A model of a ladder. quality: what its answers are worth relative to the best, in (0, 1]: the owner's figure."""

    model: Annotated[str, Field(min_length=1)]
    quality: Annotated[float, Field(gt=0, le=1)]


Ladders = dict[str, Annotated[tuple[Rung, ...], Field(min_length=1)]]
"""Rungs by the name that a request asks for as its model."""


def best_models(ladders: Mapping[str, Sequence[Rung]]) -> dict[str, str]:
    """The best model of each ladder."""
    return {name: max(rungs, key=lambda rung: rung.quality).model for name, rungs in ladders.items()}


def usable_rungs(rungs: Sequence[Rung], *, least_quality: float = 0.0, degrade: bool = True) -> list[Rung]:
    """The rungs that may answer, best first. degrade: whether those below the best may."""
    least = least_quality if degrade else max(rung.quality for rung in rungs)
    return sorted((rung for rung in rungs if rung.quality >= least), key=lambda rung: -rung.quality)


def faults(
    ladders: Mapping[str, Sequence[Rung]],
    models: Mapping[str, ModelSettings],
    aliases: Collection[str],
    classes: Mapping[str, ClassSettings],
    *,
    announced: bool,
) -> Iterator[str]:
    """What is wrong with them. announced: whether engines may announce models that ``models`` does not name."""
    for name, rungs in ladders.items():
        if not name or name == ANY:
            yield f"ladders: {name!r} is no name"
        if name in aliases:
            yield f"ladders.{name}: model_aliases has this name too"
        if name in models and name not in [rung.model for rung in rungs]:
            yield f"ladders.{name}: a model has this name, and is none of its rungs"
        others = {*aliases, *ladders} - {name}
        for at, fault in _rung_faults(rungs, others, None if announced else models):
            yield f"ladders.{name}.{at}.model: {fault}"
        best = max(rung.quality for rung in rungs)
        for cls, settings in classes.items():
            if settings.least_quality > best:
                yield f"classes.{cls}.least_quality: {settings.least_quality:g} is above every rung of ladders.{name}"


def _rung_faults(
    rungs: Sequence[Rung], other_names: Collection[str], models: Collection[str] | None
) -> Iterator[tuple[int, str]]:
    """What is wrong with which rung's model. models: those there are; None: engines may announce any."""
    names = [rung.model for rung in rungs]
    for at, model in enumerate(names):
        if model in names[:at]:
            yield at, f"{model!r} is there twice"
        if model in other_names:
            yield at, f"{model!r} is another name, not a model"
        elif models is not None and model not in models:
            yield at, f"no model {model!r}; there are: {', '.join(models)}"
