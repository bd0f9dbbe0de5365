"""The run as a tree of spans, which MLflow shows under Traces: adapt → cycle → searched, measured,
audited, ranked, allocated.

The id of each span derives from the run's id and its place in the tree, so logging it again does
not duplicate it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sea_peft.artefacts.history import History
from sea_peft.artefacts.view import FINAL, is_final
from sea_peft.loop import events

if TYPE_CHECKING:
    from mlflow.tracing.client import TracingClient

_Told = dict[str, Any]  # the inputs or outputs of a span, as JSON types
_LEFT_OUT = (
    "event",
    "seconds",
    "cycle",
    "per_case",
    "per_patch",
    "split",
)  # no case reaches MLflow, not even hashed
_MOST_ROWS = 200  # in one span; the trace itself has them all


@dataclasses.dataclass(kw_only=True)
class _Span:
    """`path`: names from the root on; times in seconds since the run began."""

    path: tuple[str, ...]
    start: float
    end: float
    inputs: _Told = dataclasses.field(default_factory=dict)
    outputs: _Told = dataclasses.field(default_factory=dict)


def log_spans(
    client: TracingClient,
    experiment: str,
    run_id: str,
    began: int,
    name: str,
    history: History,
    status: str,
) -> int:
    """Write the spans of a run so far.

    Args:
        client: of the store.
        experiment: id of the experiment.
        run_id: of the MLflow run that they belong to.
        began: when the run began, in milliseconds.
        name: of the run.
        history: the run.
        status: MLflow's word for its state.

    Returns:
        Milliseconds that the run has taken.
    """
    from mlflow.entities import Span, TraceInfo, TraceLocation, TraceState
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode

    trace_id = f"tr-{run_id}"
    spans = list(_spans(history))
    root = spans[0]
    lasted = round(1000 * root.end)
    states = {"RUNNING": TraceState.IN_PROGRESS, "FINISHED": TraceState.OK}
    client.start_trace(
        TraceInfo(
            trace_id=trace_id,
            trace_location=TraceLocation.from_experiment_id(experiment),
            request_time=began,
            state=states.get(status, TraceState.ERROR),
            request_preview=name,
            response_preview=_preview(root.outputs),
            execution_duration=lasted,
            trace_metadata={
                "mlflow.sourceRun": run_id,
                "mlflow.trace_schema.version": "3",
                "mlflow.user": "sea_peft",
            },
            tags={"mlflow.traceName": "adapt"},
        )
    )

    def context(path: tuple[str, ...]) -> SpanContext:
        own = hashlib.sha256("/".join((run_id, *path)).encode()).digest()
        return SpanContext(int(run_id, 16), int.from_bytes(own[:8], "big") or 1, is_remote=False)

    made = []
    for span in spans:
        told = {
            "mlflow.traceRequestId": trace_id,
            "mlflow.spanType": "CHAIN" if len(span.path) < 3 else "TASK",
            "mlflow.spanInputs": span.inputs,
            "mlflow.spanOutputs": span.outputs,
        }
        made.append(
            ReadableSpan(
                name=span.path[-1],
                context=context(span.path),
                parent=context(span.path[:-1]) if len(span.path) > 1 else None,
                attributes={
                    key: json.dumps(value, ensure_ascii=False) for key, value in told.items()
                },
                start_time=began * 10**6 + round(span.start * 10**9),
                end_time=began * 10**6 + round(span.end * 10**9),
                status=Status(
                    StatusCode.OK if status in states or span is not root else StatusCode.ERROR
                ),
            )
        )
    client.log_spans(experiment, [Span(span) for span in made])
    return lasted


def _preview(outputs: _Told) -> str | None:
    dice = [
        f"{arm} {value:.3f}" for arm, value in outputs.get("dice", {}).items() if value is not None
    ]
    return f"Dice {', '.join(dice)}" if dice else None


def _spans(history: History) -> list[_Span]:
    """In order of their start, the root first."""
    root = _Span(path=("adapt",), start=0.0, end=0.0)
    spans, cycles = [root], dict[str, _Span]()
    now = 0.0
    for event in history.events:
        if isinstance(event, events.RunStarted):
            root.inputs = {
                **{
                    "policy": event.policy,
                    "seed": event.seed,
                    "limit": event.limit,
                    "head": event.head,
                },
                **{
                    f"backbone_{event.cost_kind.many}": event.backbone_parameters,
                    "units": len(event.units),
                },
                "cases": {role: len(cases) for role, cases in event.split.items()},
            }
            continue
        if isinstance(event, events.RunFinished):
            root.outputs = {
                "dice": {arm: scored.dice for arm, scored in history.scored.items()},
                **{"active": event.active, "used": event.used, "reason": event.reason},
            }
            continue
        stage = _stage(event)
        if stage not in cycles:
            cycles[stage] = _Span(path=("adapt", stage), start=now, end=now)
            spans.append(cycles[stage])
        first = f"{event.kind} {event.arm}" if isinstance(event, events.Scored) else event.kind
        taken = {span.path for span in spans}
        path = next(p for p in _numbered(("adapt", stage, first)) if p not in taken)
        end = now + getattr(event, "seconds", 0.0)
        inputs, outputs = _told(event, history)
        spans.append(_Span(path=path, start=now, end=end, inputs=inputs, outputs=outputs))
        now = cycles[stage].end = root.end = end
    return spans


def _numbered(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    yield from ((*path[:-1], f"{path[-1]} {n}") for n in itertools.count(2))


def _stage(event: events.Event) -> str:
    """The span that an event belongs to."""
    if isinstance(event, events.Scored):
        return "held out" if event.held_out else "score"
    if isinstance(event, events.Searched) and event.phase == "warmup":
        return "warm-up"
    if isinstance(
        event,
        (events.Searched, events.SaliencyMeasured, events.Audited, events.Ranked, events.Allocated),
    ):
        return FINAL if is_final(event) else f"cycle {event.cycle}"
    return FINAL


def _told(event: events.Event, history: History) -> tuple[_Told, _Told]:
    """The inputs and outputs of an event."""
    fields = {key: value for key, value in event.as_dict().items() if key not in _LEFT_OUT}
    if isinstance(event, events.Allocated):
        utility = {unit: rank.ema for unit, rank in history.ranking(event.cycle).items()}
        rows = [
            {"unit": row["unit"], "utility": utility.get(row["unit"]), **row}
            for row in fields["decisions"]
        ]
        del fields["decisions"]
        return {"limit": fields.pop("limit")}, {**fields, **_some(rows)}
    if isinstance(event, (events.Audited, events.Ranked)):
        return {}, {**{k: v for k, v in fields.items() if k != "rows"}, **_some(fields["rows"])}
    if isinstance(event, events.Searched):
        inputs = {
            key: fields.pop(key) for key in ("phase", "first_step", "last_step", "active", "probes")
        }
        return inputs, fields
    if isinstance(event, events.SaliencyMeasured):
        best = sorted(event.saliency.items(), key=lambda item: -item[1])
        return {}, _some([{"unit": unit, "saliency": value} for unit, value in best])
    return {}, fields


def _some(rows: list[_Told]) -> _Told:
    left = len(rows) - _MOST_ROWS
    return {"rows": rows[:_MOST_ROWS], **({"more_rows_in_the_trace": left} if left > 0 else {})}
