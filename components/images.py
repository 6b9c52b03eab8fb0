"""The two container images (components/Dockerfile). Set the variables to name a registry when compiling.

cpu: configure, prepare, validate, describe, register, promote; gpu: probe, encode, tune, evaluate.
"""

import os

IMAGE_CPU = os.environ.get("MDPR_IMAGE_CPU", "mdpr-cpu:latest")
IMAGE_GPU = os.environ.get("MDPR_IMAGE_GPU", "mdpr-gpu:latest")
