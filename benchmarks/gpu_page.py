"""The page of what `benchmarks.gpu` measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.step_peer import PEER


def page(found: Mapping[str, Any]) -> str:
    """The Markdown of what `gpu.measure` found, however much of it there is yet."""
    size = found["size"]
    lines = [
        f"# On {found['card']}",
        "",
        (
            "Made by `benchmarks/gpu.sh`: wall time. Machine:"
            f" `{json.dumps(found['machine'], sort_keys=True)}`. `adapt` trains in"
            f" {precision(found)} on this device, and audits and scores in float32."
        ),
    ]
    for part, title in (
        ("runs", "The default run"),
        ("large", "Five shots at 1.5 mm in large patches"),
    ):
        if part in found:
            lines += ["", f"## {title}", "", *_of_runs(found[part])]
    if "peers" in found:
        lines += ["", "## A step against MONAI with HF PEFT", "", *_of_peers(found["peers"], size)]
    if "forms" in found:
        lines += ["", "## Channels last, and compiled", "", *_of_forms(found["forms"], size)]
    return "\n".join(lines) + "\n"


def precision(row: Mapping[str, Any]) -> str:
    """What a row was trained in."""
    return "bfloat16" if row["bfloat16"] else "float32"


def _failed(row: Mapping[str, Any], columns: int) -> str:
    """The rest of a row that has nothing to show. `columns`: how many it fills."""
    said = str(row["fails"]).replace("|", "\\|")
    return f"fails: {said} |" + " |" * (columns - 1)


def _of_runs(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        (
            "Audits' share: of training and audits together. Memory: the most that torch had"
            " allocated on the device, and the largest resident set of the process so far."
        ),
        "",
        (
            "| backbone | trained in | parameters | trained | s | training | audits | scoring |"
            " audits' share | device, GiB | host, GiB | Dice unadapted | adapted |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        measured = _failed(r, 11) if "fails" in r else _of_run(r)
        lines.append(f"| {r['backbone']} | {precision(r)} | {measured}")
    return lines


def _of_run(row: Mapping[str, Any]) -> str:
    seconds, dice = row["seconds"], row["dice"]
    held = "–" if row["device_bytes"] is None else f"{row['device_bytes'] / 2**30:.1f}"
    parts = " | ".join(f"{seconds[part]:.1f}" for part in ("total", "train", "audit", "test"))
    scores = " | ".join(
        "–" if dice[arm] is None else f"{dice[arm]:.3f}" for arm in ("unadapted", "adapted")
    )
    return (
        f"{row['parameters']:,} | {row['used']:,} | {parts} | {row['audit_share']:.0%} | {held} "
        f"| {row['host_bytes'] / 2**30:.1f} | {scores} |"
    )


def _of_peers(rows: list[dict[str, Any]], size: Mapping[str, int]) -> list[str]:
    versions: Mapping[str, str] = next((r["versions"] for r in rows if "versions" in r), {})
    packages = "".join(f", {name} {version}" for name, version in versions.items())
    lines = [
        (
            "As in [`step_peer.md`](step_peer.md), where the arms are described; medians of"
            f" {size['rounds']} steps in turn in one process{packages}."
        ),
        "",
        "| backbone | forward in | trained | parameters | ms a step | of the peer's |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        about = f"| {r['backbone']} | {precision(r)} |"
        if "fails" in r:
            lines.append(f"{about} {_failed(r, 4)}")
            continue
        its = next(x["seconds"] for x in r["arms"] if x["arm"] == PEER)
        for x in r["arms"]:
            ratio = statistics.median(
                own / peer for own, peer in zip(x["seconds"], its, strict=True)
            )
            milliseconds = 1000 * statistics.median(x["seconds"])
            lines.append(
                f"{about} {x['arm']} | {x['parameters']:,} | {milliseconds:.1f} | {ratio:.2f} |"
            )
    return lines


def _of_forms(rows: list[dict[str, Any]], size: Mapping[str, int]) -> list[str]:
    lines = [
        (
            "What `sea` opens first: a training step of two crops, and an audit of"
            f" {size['audited']} units on up to {size['patches']} patches; medians of"
            f" {size['rounds']}. First: the first step, with what is compiled or tuned in it. Dice:"
            " of the audit, after all steps."
        ),
        "",
        "| backbone | form | ms a step | ms an audit | first step, s | Dice |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        measured = _failed(r, 4) if "fails" in r else _of_form(r)
        lines.append(f"| {r['backbone']} | {r['form']} | {measured}")
    return lines


def _of_form(row: Mapping[str, Any]) -> str:
    step, audit = row["step"], row["audit"]
    return (
        f"{1000 * step['median']:.1f} | {1000 * audit['median']:.1f} | {step['first']:.1f} |"
        f" {row['dice']:.4f} |"
    )
