"""The two container images (components/Dockerfile), as `make images` names them; a cluster's own are in its site file.

cpu: configure, prepare, validate, describe, register, promote, close; gpu: probe, encode, tune, evaluate.
"""

IMAGE_CPU = "mdpr-cpu:latest"
IMAGE_GPU = "mdpr-gpu:latest"
