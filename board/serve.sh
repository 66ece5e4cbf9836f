#!/bin/sh
# TVM's RPC server on a board, started again after a session that crashed.
#
#   board/serve.sh --host 127.0.0.1 --port 9090 --port-end 9091       arguments of tvm.exec.rpc_server
#
# The server's process survives such a crash but answers nobody any more, so a supervisor that waits for its end would
# wait for ever; the crash shows in what it prints. PYTHON names the interpreter.
set -u

folder=$(mktemp -d)
output=$folder/output
server=
mkfifo "$output"
trap 'kill $server 2>/dev/null; rm -rf "$folder"' EXIT
trap 'exit 143' INT TERM

while :; do
    "${PYTHON:-python3}" -m tvm.exec.rpc_server "$@" >"$output" 2>&1 &
    server=$!
    while IFS= read -r line; do
        printf '%s\n' "$line"
        case $line in
        *"exited unsuccessfully"*) break ;;
        esac
    done <"$output"
    kill "$server" 2>/dev/null
    wait "$server"
    echo "serve.sh: starting the server again"
    sleep 1
done
