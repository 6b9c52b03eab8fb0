#!/usr/bin/env bash
# A Docker engine for the tests, where none runs yet (as root, Debian's package docker.io):
#
#   tests/docker/engine.sh start    does nothing where an engine answers already
#   tests/docker/engine.sh stop     ends the engine that `start` started, and no other
#
# It has no bridge and touches no firewall, so it also runs inside a virtual machine without either: containers and
# builds use the host's network.
set -euo pipefail

STATE=${MDPR_ENGINE_STATE:-/run/mdpr-engine}
START_TIMEOUT_S=60

answers() { docker version --format '{{.Server.Version}}' 2>/dev/null; }

start() {
  if version=$(answers); then
    echo "engine $version answers"
    return
  fi
  command -v dockerd >/dev/null || { echo "error: dockerd is not installed: apt-get install docker.io" >&2; exit 2; }
  [ "$(id -u)" = 0 ] || { echo "error: dockerd needs root: run this as root" >&2; exit 2; }
  mkdir -p "$STATE"
  # Its own session: it outlives the shell that called, and Ctrl-C there does not reach it.
  setsid dockerd --iptables=false --ip6tables=false --bridge=none --pidfile "$STATE/pid" \
    </dev/null >"$STATE/log" 2>&1 &
  for _ in $(seq "$START_TIMEOUT_S"); do
    if version=$(answers); then
      echo "engine $version started, log in $STATE/log"
      return
    fi
    sleep 1
  done
  echo "error: dockerd did not answer in $START_TIMEOUT_S s: $(tail -n 1 "$STATE/log")" >&2
  stop
  exit 2
}

stop() {
  [ -f "$STATE/pid" ] || { echo "no engine was started here"; return; }
  pid=$(cat "$STATE/pid")
  kill "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
  rm -rf "$STATE"
  echo "engine stopped"
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac
