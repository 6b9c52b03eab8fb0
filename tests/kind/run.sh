#!/usr/bin/env bash
# The training pipeline on a cluster of this machine: kind, Kubeflow Pipelines, and MLflow over PostgreSQL and S3.
#
#   tests/kind/run.sh            makes the cluster, submits, kills the container of tune once, checks; then deletes it
#   KEEP=1 tests/kind/run.sh     leaves the cluster for a look: kind export kubeconfig --name mdpr-test
#
# Needs a Docker engine, the network, and room for both images three times over: as built, in the node, in its store.
# It was never run where this project was written, which has no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

KFP_VERSION=2.17.0
NODE_IMAGE=kindest/node:v1.36.1
CLUSTER=mdpr-test
NAMESPACE=kubeflow
BIN=$PWD/.venv/bin
TIMEOUT_S=7200

fail() { echo "error: $*" >&2; exit 2; }

for tool in docker kind kubectl git; do
  command -v "$tool" >/dev/null || fail "$tool is not installed"
done
docker version >/dev/null 2>&1 || fail "no Docker engine answers: start one"
docker compose version >/dev/null 2>&1 || fail "docker compose is not installed"
[ -x "$BIN/mdpr" ] || fail "$BIN/mdpr is not there: make setup"

scratch=$(mktemp -d)
export KUBECONFIG=$scratch/kubeconfig  # the user's own stays as it is
created='' forwards=()
finish() {
  code=$?
  for pid in "${forwards[@]}"; do
    kill "$pid" 2>/dev/null || true
    pkill -P "$pid" 2>/dev/null || true
  done
  if [ "$code" != 0 ]; then
    kubectl -n "$NAMESPACE" get pods 2>/dev/null || true
    tail -n 50 "$scratch"/*.log 2>/dev/null || true
  fi
  [ -z "$created" ] || [ -n "${KEEP:-}" ] || kind delete cluster --name "$CLUSTER" || true
  rm -rf "$scratch"
}
trap finish EXIT

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

# A port of a service, forwarded anew whenever its pod goes.
forward() {
  while true; do kubectl -n "$1" port-forward "service/$2" "$3:$4" || true; sleep 1; done >>"$scratch/forward-$2.log" 2>&1 &
  forwards+=("$!")
}

wait_for() {
  for _ in $(seq 120); do
    if "$BIN/python" -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=3)" "$1" 2>/dev/null; then return; fi
    sleep 2
  done
  fail "$1 does not answer"
}

step "the images"
make images
docker tag mdpr-cpu:latest mdpr-cpu:kind
docker tag mdpr-gpu:latest mdpr-gpu:kind

step "a cluster"
kind create cluster --name "$CLUSTER" --image "$NODE_IMAGE" --wait 300s
created=yes

step "Kubeflow Pipelines $KFP_VERSION"
manifests=github.com/kubeflow/pipelines/manifests/kustomize
kubectl apply -k "$manifests/cluster-scoped-resources?ref=$KFP_VERSION"
kubectl wait --for condition=established --timeout=120s crd/applications.app.k8s.io crd/workflows.argoproj.io
kubectl apply -k "$manifests/env/platform-agnostic?ref=$KFP_VERSION"

step "MLflow"
export POSTGRES_PASSWORD=test S3_ACCESS_KEY=test S3_SECRET_KEY=test-secret
export MLFLOW_ADMIN_PASSWORD=test-password-1 MLFLOW_FLASK_SERVER_SECRET_KEY=test
mlflow_image=$(sed -n 's/.*image: \(mdpr-mlflow:[^ ]*\).*/\1/p' mlflow/kubernetes/mlflow.yaml)
docker compose -f mlflow/compose.yaml build mlflow
docker tag mdpr-mlflow-mlflow "$mlflow_image"
kind load docker-image --name "$CLUSTER" "$mlflow_image" mdpr-cpu:kind mdpr-gpu:kind
cp -R mlflow/kubernetes "$scratch/mlflow"
while IFS== read -r name _; do echo "$name=${!name}"; done <mlflow/kubernetes/secrets.env.example >"$scratch/mlflow/secrets.env"
kubectl apply -k "$scratch/mlflow"
sed -i 's/^MLFLOW_FLASK_SERVER_SECRET_KEY=.*/&-changed/' "$scratch/mlflow/secrets.env"
kubectl apply -k "$scratch/mlflow"  # nothing refuses to change
kubectl -n mlflow rollout status deployment/mlflow --timeout=600s
kubectl -n "$NAMESPACE" wait --for condition=available --timeout=900s deployment --all
kubectl -n "$NAMESPACE" create secret generic mdpr-mlflow --from-literal=MLFLOW_TRACKING_URI=http://mlflow.mlflow:5000
kubectl -n "$NAMESPACE" create secret generic mdpr-mlflow-login --from-literal=MLFLOW_TRACKING_USERNAME=admin \
  --from-literal=MLFLOW_TRACKING_PASSWORD="$MLFLOW_ADMIN_PASSWORD"
forward "$NAMESPACE" ml-pipeline 8888 8888
forward "$NAMESPACE" seaweedfs 8333 8333
forward mlflow mlflow 5000 5000
wait_for http://localhost:8888/apis/v2beta1/healthz
wait_for http://localhost:5000/health

step "a run"
"$BIN/mdpr" pipeline submit --host http://localhost:8888 --cluster tests/kind/cluster.yaml --wait --timeout-s "$TIMEOUT_S" \
  --set prepare.max_images_per_class=300 --set prepare.val_images_per_class=20 --set tune.context_tokens=4 \
  --set tune.epochs=3 --set tune.base_loss=logit_adjusted --set tune.checkpoint_every_steps=5 >"$scratch/submit.log" 2>&1 &
submit=$!

# The pods of a task's attempts, by the name that Argo gives their nodes: RUN.root.exit-handler-1.tune.executor(0)
pods_of() {
  kubectl -n "$NAMESPACE" get pods --sort-by .metadata.creationTimestamp -o \
    jsonpath='{range .items[*]}{.metadata.annotations.workflows\.argoproj\.io/node-name} {.metadata.name}{"\n"}{end}' |
    sed -n "s/^[^ ]*\.$1\.executor([0-9]*) //p"
}
# SIGKILL to the container, as when it runs out of memory: Argo retries that. A pod that is deleted it does not retry.
kill_once() {
  while kill -0 "$submit" 2>/dev/null; do
    pod=$(pods_of "$1" | head -n 1)
    if [ -n "$pod" ] && kubectl -n "$NAMESPACE" exec "$pod" -c main -- \
      sh -c 'find /kfp-workspace -name state.safetensors | grep -q .' >/dev/null 2>&1; then
      id=$(docker exec "$CLUSTER-control-plane" crictl ps --quiet --name main --label "io.kubernetes.pod.name=$pod")
      docker exec "$CLUSTER-control-plane" crictl stop --timeout 0 "$id"
      echo "killed $pod"
      return
    fi
    sleep 1
  done
  fail "the run ended before $1 had a checkpoint: $(tail -n 1 "$scratch/submit.log")"
}
kill_once tune
wait "$submit" || fail "the run did not succeed: $(tail -n 1 "$scratch/submit.log")"
run=$(sed -n 's|.*/runs/details/\([0-9a-f-]*\).*|\1|p' "$scratch/submit.log" | head -n 1)

step "the champion and the artifacts"
export MLFLOW_TRACKING_URI=http://localhost:5000 MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=$MLFLOW_ADMIN_PASSWORD
AWS_ACCESS_KEY_ID=$(kubectl -n "$NAMESPACE" get secret mlpipeline-minio-artifact -o jsonpath='{.data.accesskey}' | base64 -d)
AWS_SECRET_ACCESS_KEY=$(kubectl -n "$NAMESPACE" get secret mlpipeline-minio-artifact -o jsonpath='{.data.secretkey}' | base64 -d)
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_ENDPOINT_URL=http://localhost:8333 AWS_REGION=us-east-1
git clone --quiet . "$scratch/project"
cd "$scratch/project"
"$BIN/mdpr" pipeline fetch "$run" --host http://localhost:8888
for file in prepared/card.json validation/index.html model/model.safetensors evaluation/report.html; do
  [ -f "data/$file" ] || fail "the run has no $file"
done
"$BIN/mdpr" registry list --json | grep -q '"champion"' || fail "the registry has no champion"
last=$(pods_of tune | tail -n 1)
kubectl -n "$NAMESPACE" logs "$last" -c main | grep -q 'resuming after step' || fail "tune did not go on from its checkpoint"

step "done"
