"""The two container images (components/Dockerfile), as `make images` names them; a cluster's own are in its profile.

gpu: probe, encode, tune, evaluate, promote (which may have to score the champion); cpu: everything else.
"""

IMAGE_CPU = "mdpr-cpu:latest"
IMAGE_GPU = "mdpr-gpu:latest"
