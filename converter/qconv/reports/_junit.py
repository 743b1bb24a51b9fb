"""JUnit XML: gates as test cases, for whatever shows the results of tests.

Unmeasured is skipped, which no tool counts as passed. JUnit knows no warning: it is a pass that
says so in its output. Form: https://github.com/testmoapp/junitxml
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qconv._words import first_of

from ._figures import gate_words, labels
from ._markup import Markup, element

if TYPE_CHECKING:
    from qconv.validation import ArtifactResult, GateResult, Validation

#: Faults, or warnings, named in a message; report.json has all.
_FAULTS = 20


def junit(validation: Validation) -> str:
    """The gates and faults of all artifacts as one XML document."""
    suites = [
        _Suite(name, list(_cases(artifact, name)))
        for artifact, name in zip(validation.artifacts, labels(validation), strict=True)
    ]
    document = element(
        "testsuites",
        (suite.markup() for suite in suites),
        name=f"qconv validation of {validation.source}",
        **_counts([case for suite in suites for case in suite.cases]),
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{document}\n'


class _Case:
    """A test case: how it ended, and the words for it."""

    def __init__(self, suite: str, name: str, ending: str = "", words: str = "") -> None:
        self._suite, self._name, self._words = suite, name, words
        self.ending = ending

    def markup(self) -> Markup:
        inner = None
        if self.ending == "system-out":
            inner = element("system-out", self._words)
        elif self.ending:
            inner = element(self.ending, message=self._words)
        return element("testcase", inner, name=self._name, classname=f"qconv.{self._suite}")


class _Suite:
    """The test cases of one artifact."""

    def __init__(self, name: str, cases: list[_Case]) -> None:
        self._name, self.cases = name, cases

    def markup(self) -> Markup:
        cases = (case.markup() for case in self.cases)
        return element("testsuite", cases, name=self._name, **_counts(self.cases))


def _counts(cases: list[_Case]) -> dict[str, int]:
    endings = [case.ending for case in cases]
    return {
        "tests": len(cases),
        "failures": endings.count("failure"),
        "errors": 0,
        "skipped": endings.count("skipped"),
    }


def _cases(artifact: ArtifactResult, name: str) -> Iterable[_Case]:
    faults = [
        *artifact.faults,
        *(f"{each.name}: {fault}" for each in artifact.tensors for fault in each.faults),
    ]
    warnings = [
        *artifact.warnings,
        *(f"{each.name}: {warning}" for each in artifact.tensors for warning in each.warnings),
    ]
    if faults:
        yield _Case(name, "bytes", "failure", first_of(faults, _FAULTS, "; "))
    elif warnings:
        yield _Case(name, "bytes", "system-out", first_of(warnings, _FAULTS, "; "))
    elif artifact.tensors:
        yield _Case(name, "bytes")
    else:
        yield _Case(name, "bytes", "skipped", "no tensor was compared")
    for gate in artifact.gates:
        yield _gate(gate, name)


def _gate(gate: GateResult, suite: str) -> _Case:
    endings = {"pass": "", "warn": "system-out", "fail": "failure", "unmeasured": "skipped"}
    words = f"{gate_words(gate)} ({gate.why})" if gate.value is not None else gate_words(gate)
    return _Case(suite, gate.name, endings[gate.status], words)
