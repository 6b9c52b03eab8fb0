"""The Kubeflow pipelines: the stages as graphs, and the ways to run them."""

# Name -> its line in `mdpr pipeline --help`; the click command is `command` in pipelines.<name>.
COMMANDS: dict[str, str] = {
    "compile": "Write the pipelines as YAML for the Kubeflow UI, or check that the files are current.",
    "run": "Run a whole pipeline on this machine, tasks as processes or as containers.",
    "submit": "Start a run on a cluster, and follow it.",
    "schedule": "Start runs on a cluster again and again, by a cron expression.",
    "fetch": "Bring what a run made into the DVC workspace of the working folder.",
    "trainjob": "Print the manifest that tunes on several nodes, for Kubeflow Trainer.",
}
