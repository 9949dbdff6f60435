#!/usr/bin/env bash
# Several processes of one run on this machine, to try or to test what many hosts do:
#
#     launch/local.sh PROCESSES CONFIG [--key value ...]
#
# Process 0 writes here; the others write to files, which are shown when they fail. SIGTERM and Ctrl-C reach every
# process once: they save and stop. The exit code is 75 where a signal stopped the run (the same command continues it),
# else that of the first process that failed. PYTHON names the interpreter, GRACE the seconds that the others get then.
# Written for bash 3.2, which is what macOS has.
set -u

processes=${1-} config=${2-}
case $processes in
    '' | 0* | *[!0-9]*) config= ;;
esac
if [ -z "$config" ]; then
    echo "usage: launch/local.sh PROCESSES CONFIG [--key value ...]" >&2
    exit 2
fi
shift 2
python=${PYTHON:-python}
grace=${GRACE:-30}
export JAX_PLATFORMS="${JAX_PLATFORMS-cpu}"

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit
folder=$(mktemp -d "${TMPDIR:-/tmp}/reft_jax.XXXXXX") || exit
pids=() codes=() signals=0 pending='' deadline='' first=''

# Lives until this script is gone, however it ended, and then kills what is left of every process and its children.
guard() {
    trap '' INT TERM HUP
    local pid groups=()
    while read -r pid; do groups+=("-$pid"); done
    [ ${#groups[@]} -eq 0 ] || kill -KILL -- "${groups[@]}" 2>/dev/null
}

start() { # starts process $1; the other arguments are the run's
    local process=$1
    shift
    set -- -m reft_jax.train --config "$config" "$@" --distributed.coordinator_address "127.0.0.1:$port" \
        --distributed.num_processes "$processes" --distributed.process_id "$process"
    if [ "$process" -eq 0 ]; then
        "$python" "$@" </dev/null 3>&- &
    else
        "$python" "$@" </dev/null >"$folder/process-$process.log" 2>&1 3>&- &
    fi
    pids[process]=$!
    echo $! >&3
}

was_stopped() { # whether exit code $1 says that a signal stopped the process, also one that came before it could save
    [ "$1" -eq 75 ] || { [ "$signals" -gt 0 ] && { [ "$1" -eq 130 ] || [ "$1" -eq 143 ]; }; }
}

forward() { # passes on the signal that came; the second one limits the wait
    local pid
    for pid in "${pids[@]}"; do kill -s "$pending" "$pid"; done
    pending=''
    signals=$((signals + 1))
    [ "$signals" -lt 2 ] || deadline=${deadline:-$((SECONDS + grace))}
}

collect() { # notes who has ended, and sets `running`
    local process code
    running=0
    for process in "${!pids[@]}"; do
        [ -z "${codes[process]-}" ] || continue
        if kill -0 "${pids[process]}"; then
            running=$((running + 1))
            continue
        fi
        wait "${pids[process]}"
        code=$?
        codes[process]=$code
        [ "$code" -eq 0 ] || deadline=${deadline:-$((SECONDS + grace))}
        [ "$code" -eq 0 ] || was_stopped "$code" || first=${first:-$process}
    done
}

collapsed() { # whether reinforcement went wrong and ended early, which all see alike and process 0 has said
    local process
    for process in "${!pids[@]}"; do [ "${codes[process]-}" = 3 ] || return 1; done
}

report() { # what each process had to say that failed, or had to be killed
    local process text last=''
    for process in "${!pids[@]}"; do
        if [ -z "${codes[process]-}" ]; then
            echo "local.sh: process $process did not end and was killed" >&2
        elif [ "${codes[process]}" -ne 0 ] && ! was_stopped "${codes[process]}"; then
            echo "local.sh: process $process failed with exit code ${codes[process]}" >&2
            [ "$process" -gt 0 ] || continue
            text=$(tail -n 20 "$folder/process-$process.log")
            [ "$text" = "$last" ] || printf '%s\n' "$text" | sed "s/^/[process $process] /" >&2
            last=$text
        fi
    done
    echo "local.sh: what the other processes wrote is in $folder" >&2
}

trap 'pending=INT' INT
trap 'pending=TERM' TERM HUP
mkfifo "$folder/alive" || exit
# With job control each process leads a group of its own: a Ctrl-C reaches it through this script alone, and its
# children can be found. It is switched off again because it would also hide Ctrl-C from this script.
set -m
guard <"$folder/alive" &
exec 3>"$folder/alive"
for ((i = 0; i < processes; i++)); do start "$i" "$@"; done
set +m
exec 4>&2 2>/dev/null # bash would write a line about every process that a signal ends

running=$processes
while [ "$running" -gt 0 ]; do
    [ -z "$pending" ] || forward
    collect
    if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then break; fi
    [ "$running" -eq 0 ] || sleep 0.2
done
exec 3>&-
wait
exec 2>&4

if [ "${codes[0]-}" = 2 ] || collapsed; then
    rm -rf "$folder" # a command line that process 0 refuses, and says why, is refused by all
elif [ -n "$first" ] || [ "$running" -gt 0 ]; then
    report
else
    rm -rf "$folder"
fi
[ -z "$first" ] || exit "${codes[first]}"
[ "$running" -eq 0 ] || exit 75
for code in "${codes[@]}"; do
    [ "$code" -eq 0 ] || exit 75
done
