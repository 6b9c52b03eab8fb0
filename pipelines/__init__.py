"""The Kubeflow pipeline: the nine stages as one graph, and the ways to run it."""

# Name -> its line in `mdpr pipeline --help`; the click command is `command` in pipelines.<name>.
COMMANDS: dict[str, str] = {
    "compile": "Write the pipeline as YAML for the Kubeflow UI, or check that the file is current.",
    "run": "Run the whole pipeline on this machine, tasks as processes or as containers.",
    "submit": "Start a run on a cluster, and follow it.",
    "schedule": "Start runs on a cluster again and again, by a cron expression.",
}
