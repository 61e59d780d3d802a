"""What a study is, and the parts that several of them share: settings as text, data and training."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

import jaxrec as jr
from jaxrec import study
from jaxrec.interactions import DataWarning

Records = Sequence[Mapping[str, Any]]
Rows = Mapping[str, study.Row]

AS_PUBLISHED = {"solver": jr.solvers.ials.cholesky, "balance": False}  # the sweep of the papers of iALS and WRMF
NOTHING = lambda *_: ""  # noqa: E731


def ends(row: study.Row, grid: Mapping[str, Sequence[Any]]) -> set[str]:
    """Returns the hyperparameters whose value is at an end; random draws have no order, so none is."""
    return {*study.ends(row.setting, grid, least=2)} - {"draw"}


def chosen(row: study.Row, grid: Mapping[str, Sequence[Any]]) -> str:
    """Returns a row's setting; a star marks values at an end of the compared ones."""
    stars = ends(row, grid)
    return ", ".join(f"{name.replace('_', ' ')} {text(v)}{'*' * (name in stars)}" for name, v in row.setting.items())


def text(value: Any) -> str:
    """Returns a value of a hyperparameter as text."""
    if isinstance(value, list | tuple):
        return " ".join(f"{each:.3g}" for each in value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)


class Study(NamedTuple):
    """A study.

    Attributes:
        name: the name of its module, its records and its plot.
        title: the title of its section.
        about: the docstring of its module, which is the text of the section.
        methods: for each data set, a function that returns its methods.
        split: function of a data set that returns its split, or a function from seeds to splits.
        evaluate: `evaluate(model, variables, split, on)`, as in `jaxrec.study.run`.
        metric: function of a data set that returns the metric by which validation chooses.
        shown: function of a data set that returns the metrics of its table.
        quick: function that returns the methods and splits of the shortened run.
        finish: called with each data set after its training.
        seeds: the seeds of the runs on test.
        trials: maximum number of settings that are tried for a method; a larger grid is sampled.
        tuned: data sets on which methods are only tuned, and not evaluated on test.
        deterministic: names of methods that draw nothing; one run stands for all seeds of a split.
        tuned_by: `tuned_by(data, method)` returns the data set and the method whose trials chose the
            settings of a row.
        older: function of a data set that returns earlier grids by method. A method's row has its
            earlier grid until all runs with the present one are recorded; see `compared`.
        optional: data sets that run only if they are asked for, because not everyone has them.
        groups: groups of data sets; in a group each method trains on all of them before the next.
        claims: pairs of methods that are compared by a rule on each data set where both have
            several runs.
        chosen: function of a row and its grid that returns the cell for the chosen setting.
        columns: function of a data set and its rows that returns further columns.
        listed: function of a method's name that says whether it has a row in the tables.
        after: function of tables and records that returns the Markdown after the tables.
        headlines: function of tables and records that returns lines for the highlights of RESULTS.md.
        panes: function of tables and records that returns the panes of the plot.
    """

    name: str
    title: str
    about: str
    methods: Mapping[str, Callable[[], Sequence[study.Method]]]
    split: Callable[[str], Any]
    evaluate: Callable[..., Any]
    metric: Callable[[str], str]
    shown: Callable[[str], Sequence[str]]
    quick: Callable[[], tuple[Sequence[study.Method], Mapping[str, Any]]]
    finish: Callable[[str], Any] = NOTHING
    seeds: Sequence[int] = (0, 1, 2)
    trials: int = 10**6
    tuned: Sequence[str] = ()
    deterministic: Sequence[str] = ("item id", "popularity")
    tuned_by: Callable[[str, str], tuple[str, str]] = lambda data, method: (data, method)
    older: Callable[[str], Mapping[str, Mapping[str, Sequence[Any]]]] = lambda data: {}
    optional: Sequence[str] = ()
    groups: Sequence[Sequence[str]] = ()
    claims: Sequence[tuple[str, str]] = ()
    chosen: Callable[..., str] = chosen
    columns: Callable[[str, Rows], Mapping[str, Sequence[str]]] = lambda data, rows: {}
    listed: Callable[[str], bool] = lambda name: True
    after: Callable[..., str] = NOTHING
    headlines: Callable[..., Sequence[str]] = lambda tables, records: ()
    panes: Callable[..., Sequence[Sequence[Mapping[str, Any]]]] | None = None


# ---------------------------------------------------------------------- data and training


def pairs_alone(interactions: jr.Interactions) -> jr.Interactions:
    """Removes weights and timestamps, so that each pair counts once."""
    return dataclasses.replace(interactions, weights=None, timestamps=None)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppresses warnings about flaws of the data; the study's text has to describe them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield


def fitted(key: Any, model: Any, objective: Any, tx: Any, train: Any, *, parameters: Any = None, **options: Any) -> Any:
    """Trains with `train.fit`, and returns what `fit` of a `jaxrec.study.Method` returns."""
    state = jr.train.init(key, model, tx, parameters=parameters)
    state, log = jr.train.fit(state, objective, tx, train, progress=False, **options)
    return model, state.variables, log


def afresh(fit: Callable, *data: Any, **setting: Any) -> Any:
    """Runs `fit` with empty caches, so that its seconds always include compilation."""
    jax.clear_caches()
    return fit(*data, **setting)


def by_epochs(settings: Sequence[study.Setting], fit: Callable[[int, Sequence[study.Setting]], list]) -> list:
    """Calls `fit(epochs, settings)` once for each number of epochs, without it in the settings.

    Returns:
        The results in the order of the settings.
    """
    found = {}
    for epochs in dict.fromkeys(setting["epochs"] for setting in settings):
        places = [place for place, setting in enumerate(settings) if setting["epochs"] == epochs]
        rest = [{name: value for name, value in settings[n].items() if name != "epochs"} for n in places]
        found |= dict(zip(places, fit(epochs, rest)))
    return [found[place] for place in range(len(settings))]


def swept(model: Any, setup: Callable, train: Any, key: Any, settings: Sequence[study.Setting], **options: Any) -> list:
    """Trains settings in one sweep with one seed, and returns what `fit_all` returns."""
    columns = {name: [setting[name] for setting in settings] for name in settings[0]}
    keys = jax.random.split(key, 1)
    found = jr.train.sweep(keys, setup, train, settings=columns, progress=False, **options)
    return [
        None if run.diverged is not None else (model, found.state(place).variables, run.log)
        for place, run in enumerate(found.runs)
    ]
