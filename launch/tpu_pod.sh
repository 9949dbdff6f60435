#!/usr/bin/env bash
# One run on a Cloud TPU slice, by queued resources. Steps are done in their order; `run` takes the rest of the line:
#
#     NAME=reft ZONE=us-central1-a launch/tpu_pod.sh create wait install run CONFIG --run_dir /mnt/runs/reft
#
# Steps: create wait install run logs status stop delete. After --dry-run every command is printed and none is run.
# The hosts of a slice find each other by the TPU's metadata: no --distributed flags.
set -euo pipefail

dry_run=''
if [ "${1-}" = --dry-run ]; then
    dry_run=yes
    shift
fi
if [ $# -eq 0 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
: "${NAME:?is the name of the slice}" "${ZONE:?is the zone of the slice}"
accelerator=${ACCELERATOR:-v5litepod-16}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

call() {
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

on_workers() { # runs shell command $2 on workers $1
    call gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

queued_resource() {
    local verb=$1
    shift
    call gcloud compute tpus queued-resources "$verb" "$NAME" --zone="$ZONE" "$@"
}

create() {
    local tier=()
    if [ "${SPOT:-1}" = 1 ]; then tier=(--spot); fi
    queued_resource create --node-id="$NAME" --accelerator-type="$accelerator" --runtime-version="$runtime" \
        ${tier[@]+"${tier[@]}"}
}

wait_for_it() {
    local state
    while :; do
        state=$(queued_resource describe --format='value(state.state)')
        echo "$state"
        case $state in
            ACTIVE) return ;;
            FAILED | SUSPEND* | DELETING) exit 1 ;;
        esac
        [ -z "$dry_run" ] || return 0
        sleep "${POLL:-30}"
    done
}

# The commit that is checked out, in an environment of its own: the images of TPU machines bring an older Python.
install() {
    local archive=${TMPDIR:-/tmp}/reft_jax-$NAME.tar.gz
    if [ -n "${SETUP-}" ]; then on_workers all "$SETUP"; fi
    call git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    call gcloud compute tpus tpu-vm scp "$archive" "$NAME:reft_jax.tar.gz" --zone="$ZONE" --worker=all
    on_workers all 'rm -rf reft_jax .reft_jax && mkdir reft_jax && tar -xzf reft_jax.tar.gz -C reft_jax'
    on_workers all 'test -x .local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh'
    on_workers all '.local/bin/uv venv --quiet --python 3.12 .reft_jax'
    on_workers all '.local/bin/uv pip install --quiet --python .reft_jax/bin/python "./reft_jax[tpu]"'
}

# A service of systemd goes on when the connection breaks, and gets SIGTERM when the machine is taken away; KillMode
# keeps that from its children. While one is at work, a second is refused.
# shellcheck disable=SC2016 # expanded there
run() {
    local command='sudo systemctl reset-failed reft_jax 2>/dev/null; sudo systemd-run --unit=reft_jax --uid="$(id -u)"'
    command+=' --property=KillMode=mixed --property=TimeoutStopSec=600 --property=LimitMEMLOCK=infinity'
    command+=' --working-directory="$HOME/reft_jax" "$HOME/.reft_jax/bin/python" -m reft_jax.train'
    on_workers all "$command$(printf ' %q' --config "$@")"
}

while [ $# -gt 0 ]; do
    step=$1
    shift
    case $step in
        create) create ;;
        wait) wait_for_it ;;
        install) install ;;
        run)
            run "${@:?is the CONFIG of the run}"
            exit
            ;;
        logs) on_workers 0 'sudo journalctl --unit=reft_jax --output=cat --lines=100 --follow' ;;
        status)
            queued_resource describe --format='value(state.state)'
            on_workers all 'systemctl show reft_jax --property=ActiveState,ExecMainStatus'
            ;;
        stop) on_workers all 'sudo systemctl stop reft_jax' ;;
        delete) queued_resource delete --force --quiet ;;
        *)
            echo "tpu_pod.sh: no such step: $step" >&2
            exit 2
            ;;
    esac
done
