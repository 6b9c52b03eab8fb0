"""The engine keeps the cluster's contract: each test is a rule, shown on tasks of a few lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.engine import WORKSPACE, Cluster, Refused
from tests.cluster.pod import memory_unlimited

pytestmark = pytest.mark.integration
# Every task's program starts so: `message` is the executor input, `here(uri)` where an address lies in the pod.
START = """
import json, os, pathlib, sys, time
message = json.loads(sys.argv[1])
here = lambda uri: pathlib.Path("/" + uri.replace("://", "/"))
inputs = {name: here(item["artifacts"][0]["uri"]) for name, item in message["inputs"]["artifacts"].items()}
outputs = {name: here(item["artifacts"][0]["uri"]) for name, item in message["outputs"]["artifacts"].items()}
def answer(**parameters):
    path = pathlib.Path(message["outputs"]["outputFile"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"parameterValues": parameters, "artifacts": {
        name: {"artifacts": [{"metadata": {"seen": True}}]} for name in outputs}}))
"""
ARTIFACT = {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
RETRY = {"backoffDuration": "30s", "backoffFactor": 2.0, "backoffMaxDuration": "3600s", "maxRetryCount": 2}


def write(
    folder: Path,
    pods: dict[str, Any] | None = None,
    handler: str = "",
    cached: tuple[str, ...] = (),
    limits: dict[str, str] | None = None,
    **tasks: Any,
) -> Path:
    """A compiled pipeline of `tasks`: name -> (program, names of the tasks whose artifact it takes, more of the task).

    `handler` is the program of an exit handler around all of them; `limits`: task -> its memory.
    """
    components, executors, inner = {}, {}, {}
    programs = {name: task[0] for name, task in tasks.items()} | ({"handler": handler} if handler else {})
    for name, program in programs.items():
        needs = tasks[name][1] if name in tasks else ()
        given = {item: {"artifactType": ARTIFACT} for item in needs}
        status = {"status": {"parameterType": "TASK_FINAL_STATUS"}} if name == "handler" else {}
        components[f"comp-{name}"] = {
            "executorLabel": f"exec-{name}",
            "inputDefinitions": {"artifacts": given, "parameters": {"text": {"parameterType": "STRING"}, **status}},
            "outputDefinitions": {"artifacts": {"out": {"artifactType": ARTIFACT}}},
        }
        container = {"image": "image", "command": ["python3", "-c", START + program], "args": ["{{$}}"]}
        resources = {"resourceMemoryLimit": limits[name]} if limits and name in limits else {}
        executors[f"exec-{name}"] = {"container": container | {"resources": resources}}
    for name, (_, needs, *more) in tasks.items():
        artifacts = {item: {"taskOutputArtifact": {"producerTask": item, "outputArtifactKey": "out"}} for item in needs}
        inner[name] = {
            "componentRef": {"name": f"comp-{name}"},
            "dependentTasks": list(needs),
            "inputs": {"artifacts": artifacts, "parameters": {}},
            "cachingOptions": {"enableCache": name in cached},
            **(more[0] if more else {}),
        }
    root = {"dag": {"tasks": inner}}
    if handler:
        components["comp-body"] = {"dag": {"tasks": inner}}
        close = {
            "componentRef": {"name": "comp-handler"},
            "dependentTasks": ["body"],
            "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
            "inputs": {"parameters": {"status": {"taskFinalStatus": {"producerTask": "body"}}}},
        }
        root = {"dag": {"tasks": {"body": {"componentRef": {"name": "comp-body"}}, "handler": close}}}
    graph = {
        "pipelineInfo": {"name": "rules"},
        "components": components,
        "deploymentSpec": {"executors": executors},
        "root": root,
    }
    executors = {f"exec-{name}": pod for name, pod in (pods or {}).items()}
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}
    path = folder / "compiled.yaml"
    path.write_text(yaml.safe_dump_all([graph, platform]), encoding="utf-8")
    return path


def printed(cluster: Cluster, path: Path) -> Any:
    """What the last line of the task `look` says, as JSON."""
    run = cluster.run(path)
    assert run.succeeded, run.tasks["look"].log
    return json.loads(run.tasks["look"].log.strip().splitlines()[-1])


def constant(text: str) -> dict[str, Any]:
    return {"inputs": {"parameters": {"text": {"runtimeValue": {"constant": text}}}}}


def test_a_container_has_the_images_user_and_no_capability(cluster: Cluster, tmp_path: Path) -> None:
    look = """
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps([os.getuid(), os.getgid(), int(status["CapEff"], 16), int(status["NoNewPrivs"])]))"""
    assert printed(cluster, write(tmp_path, look=(look, ()))) == [1000, 1000, 0, 1]


def test_nothing_of_the_hosts_environment_and_files_is_there(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_HOST", "1")
    look = f"print(json.dumps([os.environ.get('OF_THE_HOST'), os.path.exists({str(tmp_path)!r}), os.environ['HOME']]))"
    assert printed(cluster, write(tmp_path, look=(look, ()))) == [None, False, "/home/mdpr"]


def test_only_the_images_own_folders_can_be_written(cluster: Cluster, tmp_path: Path) -> None:
    look = """print(json.dumps([os.access(path, os.W_OK) for path in
    ("/", "/etc", "/workspace", "/home/mdpr", "/tmp", "/.cache")]))"""
    assert printed(cluster, write(tmp_path, look=(look, ()))) == [False, False, True, True, True, True]


@pytest.mark.parametrize("scheme", ["s3", "minio"])
def test_inputs_are_downloaded_whole_and_outputs_uploaded_when_the_command_has_succeeded(
    cluster: Cluster, tmp_path: Path, scheme: str
) -> None:
    cluster.scheme = scheme
    make = """
(outputs["out"] / "deep").mkdir(parents=True)
(outputs["out"] / "empty").mkdir()
(outputs["out"] / "deep/file").write_text("content")
answer()"""
    look = """print(json.dumps([str(inputs["make"]), (inputs["make"] / "deep/file").read_text(),
    (inputs["make"] / "empty").exists(), message["inputs"]["artifacts"]["make"]["artifacts"][0]["metadata"]]))"""
    path, content, empty, metadata = printed(cluster, write(tmp_path, make=(make, ()), look=(look, ("make",))))
    assert path.startswith(f"/{scheme}/mlpipeline/rules/run-")
    assert (content, empty, metadata) == ("content", False, {"seen": True})


def test_only_the_parents_of_outputs_are_made(cluster: Cluster, tmp_path: Path) -> None:
    look = """print(json.dumps([outputs["out"].parent.is_dir(), outputs["out"].exists()]))"""
    assert printed(cluster, write(tmp_path, look=(look, ()))) == [True, False]


def test_of_a_failed_task_only_the_log_is_uploaded(cluster: Cluster, tmp_path: Path) -> None:
    fail = """outputs["out"].write_text("half"); answer(); print("the reason"); sys.exit(3)"""
    run = cluster.run(write(tmp_path, fail=(fail, ())))
    assert not run.succeeded
    assert run.tasks["fail"].state == "FAILED"
    (key,) = cluster.keys(run.root)
    assert key.endswith("executor-logs-0")
    assert cluster.client.get_object(Bucket=cluster.bucket, Key=key)["Body"].read() == b"the reason\n"


def test_of_a_killed_pod_nothing_is_left(cluster: Cluster, tmp_path: Path) -> None:
    cluster.started = lambda task, attempt, process, workspace: os.killpg(process.pid, signal.SIGKILL)
    run = cluster.run(write(tmp_path, slow=("time.sleep(60)", ())))
    assert run.tasks["slow"].state == "RUNNING"
    assert not cluster.keys(run.root)


def test_after_a_failure_nothing_new_starts(cluster: Cluster, tmp_path: Path) -> None:
    run = cluster.run(write(tmp_path, fail=("sys.exit(1)", ()), later=("answer()", ("fail",)), other=("answer()", ())))
    assert list(run.tasks) == ["fail"]


def test_a_retry_is_a_new_pod_with_the_same_addresses(cluster: Cluster, tmp_path: Path) -> None:
    program = """
marks = [pathlib.Path(folder) / "mark" for folder in ("/tmp", "/workspace", "/.cache", str(outputs["out"].parent))]
print(json.dumps([[mark.exists() for mark in marks], str(outputs["out"]), os.environ["KFP_RETRY_INDEX"]]))
for mark in marks: mark.write_text("x")
sys.exit(int(os.environ["KFP_RETRY_INDEX"] == "0"))"""
    run = cluster.run(write(tmp_path, again=(program, (), {"retryPolicy": RETRY})))
    assert run.succeeded
    first, second = (json.loads(attempt.ended.log) for attempt in run.tasks["again"].attempts)
    assert first[0] == second[0] == [False] * 4
    assert first[1] == second[1]
    assert [first[2], second[2]] == ["0", "1"]


@pytest.mark.parametrize(("hours", "attempts"), [(0.1, 3), (0.6, 2), (1.1, 1)])
def test_retries_end_with_the_window_from_the_first_attempts_start(
    cluster: Cluster, tmp_path: Path, hours: float, attempts: int
) -> None:
    cluster.hours["fail"] = hours
    run = cluster.run(write(tmp_path, fail=("sys.exit(1)", (), {"retryPolicy": RETRY})))
    assert len(run.tasks["fail"].attempts) == attempts


def test_a_time_out_ends_the_attempt(cluster: Cluster, tmp_path: Path) -> None:
    path = write(tmp_path, {"slow": {"activeDeadlineSeconds": "1"}}, slow=("time.sleep(60)", ()))
    began = time.monotonic()
    run = cluster.run(path)
    assert run.tasks["slow"].attempts[0].ended.timed_out
    assert time.monotonic() - began < 50


@pytest.mark.skipif(bool(memory_unlimited()), reason=memory_unlimited())
@pytest.mark.parametrize(("limit", "attempts"), [("64Mi", 3), ("2Gi", 1)])
def test_a_container_above_its_memory_limit_is_killed_and_retried(
    cluster: Cluster, tmp_path: Path, limit: str, attempts: int
) -> None:
    program = "data = bytearray(300 * 2**20); data[::4096] = b'x' * len(data[::4096]); answer()"
    path = write(tmp_path, big=(program, (), {"retryPolicy": RETRY}), limits={"big": limit})
    run = cluster.run(path)
    ended = [attempt.ended for attempt in run.tasks["big"].attempts]
    assert [item.oom_killed for item in ended] == ([True] * 3 if attempts == 3 else [False])
    assert run.succeeded is (attempts == 1)
    assert bool(cluster.keys(run.root)) is (attempts == 1)  # nobody is left who could upload


SECRET = {"secretName": "login", "keyToEnv": [{"envVar": "TOKEN", "secretKey": "token"}]}


def test_an_optional_secret_may_be_missing(cluster: Cluster, tmp_path: Path) -> None:
    look = ("print(json.dumps(os.environ.get('TOKEN')))", ())
    path = write(tmp_path, {"look": {"secretAsEnv": [SECRET | {"optional": True}]}}, look=look)
    assert printed(cluster, path) is None
    cluster.secrets["login"] = {"token": "abc"}
    assert printed(cluster, path) == "abc"


def test_a_required_secret_may_not(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="CreateContainerConfigError: secret login"):
        cluster.run(write(tmp_path, {"look": {"secretAsEnv": [SECRET]}}, look=("answer()", ())))


def test_variables_that_redirect_the_launcher_are_found(cluster: Cluster, tmp_path: Path) -> None:
    cluster.secrets["login"] = {"token": "abc"}
    keys = {"secretName": "login", "keyToEnv": [{"envVar": "AWS_ACCESS_KEY_ID", "secretKey": "token"}]}
    with pytest.raises(Refused, match="AWS_ACCESS_KEY_ID redirects"):
        cluster.run(write(tmp_path, {"look": {"secretAsEnv": [keys]}}, look=("answer()", ())))


def test_the_runs_id_is_a_field_of_the_pod(cluster: Cluster, tmp_path: Path) -> None:
    fields = [{"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}]
    look = ("print(json.dumps(os.environ['KFP_RUN_ID']))", ())
    assert printed(cluster, write(tmp_path, {"look": {"fieldPathAsEnv": fields}}, look=look)).endswith("-1")


def test_the_workspace_is_mounted_where_a_text_names_it_and_survives_a_killed_pod(
    cluster: Cluster, tmp_path: Path
) -> None:
    program = f"""
mark = pathlib.Path("{WORKSPACE}/mark")
if mark.exists(): print("found"); sys.exit(0)
mark.write_text("x"); time.sleep(60)"""

    def kill(task: str, attempt: int, process: subprocess.Popen[bytes], workspace: Path) -> None:
        while task == "keep" and attempt == 0 and not (workspace / "mark").exists():
            time.sleep(0.01)
        if task == "keep" and attempt == 0:
            os.killpg(process.pid, signal.SIGKILL)

    cluster.started = kill
    other = f"print(json.dumps(os.path.exists('{WORKSPACE}')))"
    keep = constant("{{$.workspace_path}}") | {"retryPolicy": RETRY}
    run = cluster.run(write(tmp_path, keep=(program, (), keep), look=(other, ("keep",))))
    assert run.tasks["keep"].attempts[1].ended.log == "found\n"
    assert run.tasks["look"].log == "false\n"
    assert not run.workspace.exists()  # it goes with a run that succeeds


def test_the_workspace_stays_after_a_failure_and_no_other_run_sees_it(cluster: Cluster, tmp_path: Path) -> None:
    program = f"mark = pathlib.Path('{WORKSPACE}/mark'); print(mark.exists()); mark.write_text('x'); sys.exit(1)"
    path = write(tmp_path, fail=(program, (), constant("{{$.workspace_path}}")))
    first, second = cluster.run(path), cluster.run(path)
    assert (first.workspace / "mark").exists()
    assert first.tasks["fail"].log == second.tasks["fail"].log == "False\n"


def test_a_claim_is_mounted_where_the_yaml_says_and_nowhere_else(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    (tmp_path / "claim/file").write_text("x")
    pod = {"mine": {"pvcMount": [{"constant": "images", "mountPath": "/data"}]}}
    path = write(tmp_path, pod, mine=("print(os.listdir('/data'))", ()), other=("print(os.path.exists('/data'))", ()))
    with pytest.raises(Refused, match="claim images does not exist"):
        cluster.run(path)
    cluster.claims["images"] = tmp_path / "claim"
    run = cluster.run(path)
    assert [run.tasks[name].log for name in ("mine", "other")] == ["['file']\n", "False\n"]


@pytest.mark.parametrize(
    ("program", "state"), [("answer()", "COMPLETE"), ("sys.exit(1)", "FAILED"), ("time.sleep(60)", "RUNNING")]
)
def test_the_exit_handler_gets_the_backends_words(cluster: Cluster, tmp_path: Path, program: str, state: str) -> None:
    if state == "RUNNING":
        cluster.started = lambda task, attempt, process, workspace: (
            os.killpg(process.pid, signal.SIGKILL) if task == "body/work" else None
        )
    close = "print(message['inputs']['parameterValues']['status']['state'])"
    run = cluster.run(write(tmp_path, handler=close, work=(program, ())))
    assert run.tasks["handler"].log == f"{state}\n"
    assert run.succeeded is (state == "COMPLETE")


def test_the_cache_goes_by_ids_of_artifacts(cluster: Cluster, tmp_path: Path) -> None:
    make, use = ("outputs['out'].write_text('same'); answer()", ()), ("answer()", ("make",))
    both = write(tmp_path, make=make, use=use, cached=("make", "use"))
    states = [[task.state for task in cluster.run(both).tasks.values()] for _ in range(2)]
    assert states == [["COMPLETE", "COMPLETE"], ["CACHED", "CACHED"]]
    fresh = write(tmp_path, make=make, use=use, cached=("use",))  # the same content under a new id
    states = [[task.state for task in cluster.run(fresh).tasks.values()] for _ in range(2)]
    assert states == [["COMPLETE", "COMPLETE"]] * 2


def test_a_failed_task_is_not_cached(cluster: Cluster, tmp_path: Path) -> None:
    path = write(tmp_path, fail=("sys.exit(1)", ()), cached=("fail",))
    assert [cluster.run(path).tasks["fail"].state for _ in range(2)] == ["FAILED", "FAILED"]


@pytest.mark.parametrize(("wanted", "ran"), [("yes", True), ("no", False)])
def test_a_task_whose_condition_does_not_hold_is_skipped(
    cluster: Cluster, tmp_path: Path, wanted: str, ran: bool
) -> None:
    rule = {"triggerPolicy": {"condition": "inputs.parameter_values['text'] == 'yes'"}}
    maybe = ("answer()", (), constant(wanted) | rule)
    run = cluster.run(write(tmp_path, maybe=maybe, other=("answer()", ())))
    assert run.succeeded
    assert list(run.tasks) == (["maybe", "other"] if ran else ["other"])
