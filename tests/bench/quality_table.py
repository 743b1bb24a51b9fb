"""Peers' runs beside ours: who is compared with whom, and the tables that a README can take."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quality_score import ratio

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An artifact, what it took, and (once scored) what it loses.

    method: as its converter calls it
    steps: what it does, in words common to all: which of awq, gptq, smoothquant, signround
    calibrated: whether data was used
    cpu_s: of ours the whole command; of peers calibrating and quantizing alone
    """

    format: str
    converter: str
    method: str
    steps: frozenset[str]
    calibrated: bool
    path: Path
    cpu_s: float
    peak_mb: float

    @property
    def ours(self) -> bool:
        return self.converter == "qconv"


WORDS = {"awq": {"awq"}, "gptq": {"gptq"}, "sq": {"smoothquant", "gptq"}}


def our_entries(runs: Sequence[Row]) -> Iterator[Entry]:
    for row in runs:
        if "failed" in row or not Path(row["out"]).exists():
            continue
        names = set(row["method"].split("@")[0].split(","))
        yield Entry(
            format=row["format"],
            converter="qconv",
            method=row["method"],
            steps=frozenset(name for name in names if "=" not in name and name != "rtn"),
            calibrated=row["calibration"] is not None,
            path=Path(row["out"]),
            cpu_s=row["cpu_s"],
            peak_mb=row["peak_mb"],
        )


def peer_entries(folder: Path) -> Iterator[Entry]:
    """What peers/*.py reported in results.jsonl, where the artifact is there.

    Peers print to the same stream, dictionaries among it: only lines of `figures.report` count.
    """
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.startswith('{"peer": ')]
    for row in rows:
        path = _found(folder, row)
        kind = peer_format(row["scheme"], row.get("group_size"))
        if kind is None or not path.exists():
            continue
        parts = re.split(r"[+-]", row["scheme"])
        imatrix = "imatrix" in parts
        yield Entry(
            format=kind,
            converter=row["peer"],
            method=path.name.removeprefix(f"{row['peer']}-").removesuffix(".gguf"),
            steps=frozenset().union(*(WORDS.get(part, set()) for part in parts)),
            calibrated=imatrix or bool(row.get("windows")),
            path=path,
            cpu_s=row["cpu_s"] + _beforehand(row, rows, imatrix=imatrix),
            peak_mb=row["peak_mb"],
        )


def _found(folder: Path, row: Row) -> Path:
    """Where it was written, or below the folder that came with the results."""
    path = Path(row["out"])
    if path.exists():
        return path
    here = [folder / path.name, folder / path.parent.name / path.name]
    return next((each for each in here if each.exists()), path)


def _beforehand(row: Row, rows: Sequence[Row], *, imatrix: bool) -> float:
    """CPU seconds of llama.cpp's conversion to F16 and, where it is used, importance matrix."""
    needed = {"convert-f16", "imatrix"} if imatrix else {"convert-f16"}
    place = Path(row["out"]).parent
    return sum(
        each["cpu_s"]
        for each in rows
        if row["peer"] == each["peer"] == "llama.cpp"
        and each["scheme"] in needed
        and Path(each["out"]).parent == place
    )


def peer_format(scheme: str, group_size: int | None) -> str | None:
    """The format of the table that a peer's scheme is of; None for what is not compared."""
    if scheme.split("-", maxsplit=1)[0] == "Q4_K_M":
        return "q4_k_m"
    if scheme.endswith("w8a8"):
        return "w8a8"
    if group_size != 64:
        return None
    return {"sym": "int4_g64", "asym": "uint4_g64"}.get(scheme.rpartition("-")[2])


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An entry and its score, of one way to run it."""

    entry: Entry
    row: Row

    @property
    def kl(self) -> float:
        return float(self.row["kl"])


HEAD = (
    "| converter: method | KL, nats | p99 | top-1 | ppl / float | bits | MB | CPU s | peak MB "
    "| KL / same method | KL / best peer | CPU / same method |"
)


def tables(scored: Sequence[Scored]) -> Iterator[str]:
    """A Markdown table for each format and way to run it, the best last."""
    groups: dict[tuple[str, str], list[Scored]] = {}
    for each in scored:
        groups.setdefault((each.entry.format, each.row["activations"]), []).append(each)
    for (kind, activations), members in groups.items():
        runs_in_int8 = (kind, "int8") in groups
        inputs = f", inputs as {activations}" if runs_in_int8 else ""
        peers = [each for each in members if not each.entry.ours]
        lines = [f"### {kind}{inputs}", "", HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
        ordered = sorted(members, key=lambda each: (each.entry.ours, -each.kl))
        yield "\n".join([*lines, *(_line(each, peers) for each in ordered), ""])


def _line(scored: Scored, peers: Sequence[Scored]) -> str:
    entry, row = scored.entry, scored.row
    cells = [
        f"{entry.converter}: {entry.method}",
        f"{row['kl']:.4f} ± {row['kl_se']:.4f}",
        f"{row['kl_p99']:.3f}",
        f"{100 * row['top1']:.1f} %",
        f"{row['perplexity_ratio']:.4f}",
        f"{row['linear_bits']:.3f}",
        f"{row['nbytes'] / 1e6:.1f}",
        f"{entry.cpu_s:.1f}",
        f"{entry.peak_mb:.0f}",
        *(_ratios(scored, peers) if entry.ours else ("", "", "")),
    ]
    return "| " + " | ".join(cells) + " |"


def _ratios(scored: Scored, peers: Sequence[Scored]) -> tuple[str, str, str]:
    same = same_method(scored, peers)
    best = min(peers, key=lambda each: each.kl, default=None)
    faster = min((each.entry.cpu_s for each in same), default=None)
    return (
        _against(scored, min(same, key=lambda each: each.kl, default=None)),
        _against(scored, best),
        "-" if not faster else f"{scored.entry.cpu_s / faster:.2f}",
    )


def same_method(scored: Scored, peers: Sequence[Scored]) -> list[Scored]:
    """Peers with the same steps; among them those that used data as this one did, if any did."""
    same = [each for each in peers if each.entry.steps == scored.entry.steps]
    alike = [each for each in same if each.entry.calibrated == scored.entry.calibrated]
    return alike or same


def _against(scored: Scored, peer: Scored | None) -> str:
    if peer is None:
        return "-"
    whole, error = ratio(scored.row["window_kl"], peer.row["window_kl"])
    return f"{whole:.3f} ± {error:.3f}"
