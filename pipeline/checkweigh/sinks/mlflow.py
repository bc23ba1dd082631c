"""Sends one bundle to MLflow: ``python -m checkweigh.sinks.mlflow``, a process of its own.

``sender_main`` has the request, the reply and the exit codes; the request names the bundle's ``folder``, the reply is
``{"run", "experiment"}``. Exit 0 means that MLflow holds all of it, read back. Every step may be done again, so a run
that was cut off is completed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkweigh.records.decision import Verdict
from checkweigh.sinks.mlflow_content import COMPLETE, DECISION, PREFIX, ROLE
from checkweigh.sinks.mlflow_target import artifact_root
from checkweigh.sinks.outbox import FILES, Bundle, DatasetInput, MlflowRun, read_bundle, remove
from checkweigh.sinks.sender_main import DeliveryFailed, Unreachable, send_folder, serve

_PARENT = "mlflow.parentRunId"
TRACE = PREFIX + "trace"


class IncompleteUpload(DeliveryFailed):
    """MLflow took something and does not have it."""


def send(folder: Path, uri: str) -> dict[str, str]:
    """Send what waits in ``folder``, then forget it.

    1. Read the bundle; find the experiment, or make it.
    2. For the gate, then each arm: find its run by decision and role, or make it; log what belongs to it, then traces.
    3. Read everything back. Only then mark the gate's run complete, and remove the folder.
    """
    from mlflow import MlflowClient, set_tracking_uri
    from mlflow.exceptions import MlflowException

    bundle = read_bundle(folder)
    try:
        set_tracking_uri(uri)  # traces go where the process sends them, not where the client does
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise Unreachable(str(error)) from error
    experiment = _experiment_id(client, bundle.experiment, uri)
    gate = _find_run(client, experiment, bundle, "gate")
    if gate is None or COMPLETE not in gate.data.tags:
        gate = gate or _create_run(client, experiment, bundle, bundle.runs[0], {})
        parent = gate.info.run_id
        ids = {"gate": parent}
        for run in bundle.runs[1:]:
            arm = _find_run(client, experiment, bundle, run.role)
            arm = arm or _create_run(client, experiment, bundle, run, {_PARENT: parent})
            ids[run.role] = arm.info.run_id
        for run in bundle.runs:
            _log_run(client, ids[run.role], run, bundle)
        for name in bundle.files:
            at = name.rpartition("/")[0] or None
            client.log_artifact(parent, str(folder / FILES / name), at)
        _log_traces(client, experiment, parent, bundle)
        _verify_upload(client, bundle, ids, folder)
        for run_id in reversed(ids.values()):
            failed = bundle.verdict is Verdict.ERROR
            client.set_terminated(run_id, "FAILED" if failed else "FINISHED", end_time=bundle.ended)
        client.set_tag(parent, COMPLETE, "true")
        if COMPLETE not in client.get_run(parent).data.tags:
            raise IncompleteUpload("the run is not marked complete although MLflow said so")
    remove(folder)
    return {"run": gate.info.run_id, "experiment": experiment}


def _experiment_id(client: Any, name: str, uri: str) -> str:
    """The experiment's id; two senders that make it at once get the same."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root(uri)))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise IncompleteUpload(
            f"experiment {name} was deleted in MLflow: restore it, or set MLFLOW_EXPERIMENT_NAME"
        )
    return str(experiment.experiment_id)


def _find_run(client: Any, experiment: str, bundle: Bundle, role: str) -> Any:
    """The run of this decision in this role, the first if there are several; None if there is none."""
    query = f"tags.`{DECISION}` = '{bundle.decision}' and tags.`{ROLE}` = '{role}'"
    runs = client.search_runs([experiment], filter_string=query, order_by=["attributes.run_id ASC"])
    return runs[0] if runs else None


def _create_run(client: Any, experiment: str, bundle: Bundle, run: MlflowRun, more: dict[str, str]) -> Any:
    """Made with its tags in one request: from its first moment the run can be found again."""
    tags = run.tags | more
    return client.create_run(experiment, start_time=bundle.started, tags=tags, run_name=run.name)


def _log_run(client: Any, run_id: str, run: MlflowRun, bundle: Bundle) -> None:
    """Params, metrics and inputs. The same again changes nothing: time and step of a metric are the decision's."""
    from mlflow.entities import Metric, Param

    metrics = [Metric(name, value, bundle.ended, 0) for name, value in run.metrics.items()]
    client.log_batch(run_id, metrics, [Param(name, value) for name, value in run.params.items()])
    if bundle.datasets:
        client.log_inputs(run_id, [_dataset_input(dataset) for dataset in bundle.datasets])


def _dataset_input(dataset: DatasetInput) -> Any:
    from mlflow import entities

    return entities.DatasetInput(
        entities.Dataset(
            dataset.name, dataset.digest, "local", dataset.source, dataset.schema_text, dataset.profile
        ),
        [entities.InputTag("mlflow.data.context", "evaluation")],
    )


def _log_traces(client: Any, experiment: str, run_id: str, bundle: Bundle) -> None:
    """The items that got worst as traces of the gate's run; those that are there already are left alone."""
    logged = set(_logged_trace_keys(client, experiment, bundle))
    for trace in bundle.traces:
        if trace.key in logged:
            continue
        tags = {DECISION: bundle.decision, TRACE: trace.key} | {
            f"{PREFIX}{k}": v for k, v in trace.facts.items()
        }
        at = bundle.ended * 1_000_000
        root = client.start_trace(
            trace.name, inputs={"prompt": trace.prompt}, attributes=trace.facts, tags=tags,
            experiment_id=experiment, start_time_ns=at, run_id=run_id,
        )  # fmt: skip
        for role in ("baseline", "candidate"):
            span = client.start_span(
                role, root.trace_id, root.span_id, inputs={"prompt": trace.prompt}, start_time_ns=at
            )
            client.end_span(root.trace_id, span.span_id, outputs=getattr(trace, role), end_time_ns=at)
        both = {"baseline": trace.baseline, "candidate": trace.candidate}
        client.end_trace(root.trace_id, outputs=both, end_time_ns=at)
    missing = {trace.key for trace in bundle.traces} - set(_logged_trace_keys(client, experiment, bundle))
    if missing:
        raise IncompleteUpload(f"MLflow lacks {len(missing)} traces of run {run_id}")


def _logged_trace_keys(client: Any, experiment: str, bundle: Bundle) -> list[str]:
    """Keys of this decision's traces that MLflow has."""
    if not bundle.traces:
        return []
    query = f"tags.`{DECISION}` = '{bundle.decision}'"
    traces = client.search_traces(
        locations=[experiment], filter_string=query, max_results=100, include_spans=False, flush=True
    )
    return [trace.info.tags.get(TRACE, "") for trace in traces]


def _verify_upload(client: Any, bundle: Bundle, ids: dict[str, str], folder: Path) -> None:
    """IncompleteUpload, with names, when MLflow lacks something it was given."""
    for run in bundle.runs:
        logged = client.get_run(ids[run.role])
        inputs = {(i.dataset.name, i.dataset.digest) for i in logged.inputs.dataset_inputs}
        missing = [name for name in run.params if name not in logged.data.params]
        missing += [name for name, value in run.metrics.items() if logged.data.metrics.get(name) != value]
        missing += [name for name in run.tags if name not in logged.data.tags]
        missing += [d.name for d in bundle.datasets if (d.name, d.digest) not in inputs]
        if missing:
            raise IncompleteUpload(f"MLflow's {run.role} run {ids[run.role]} lacks {', '.join(missing[:5])}")
    sizes: dict[str, int | None] = {}
    for at in sorted({name.rpartition("/")[0] for name in bundle.files}):
        sizes |= {a.path: a.file_size for a in client.list_artifacts(ids["gate"], at or None)}
    for name in bundle.files:
        if sizes.get(name) != (folder / FILES / name).stat().st_size:
            raise IncompleteUpload(f"MLflow's run {ids['gate']} lacks the artifact {name}, or a part of it")


def _handle(request: dict[str, Any]) -> Mapping[str, Any]:
    return send_folder(request, "is sending to MLflow", lambda folder: send(folder, request["uri"]))


if __name__ == "__main__":
    sys.exit(serve(_handle))
