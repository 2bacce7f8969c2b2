#!/usr/bin/env bash
# Watches a lead, for ever: across restarts of the server, without missing or repeating anything. Needs grpcurl; it
# learns the API from the server.
#
#     ./watch.sh 127.0.0.1:50051 LEAD_ID
#
# LEADFOLD_TOKEN holds the bearer token, where the server asks for one. Without -plaintext grpcurl speaks TLS.
set -uo pipefail

address=$1 lead_id=$2 version=0
GRPCURL=${GRPCURL:-grpcurl}
errors=$(mktemp)
trap 'rm -f "$errors"; kill "$(jobs -p)" 2>/dev/null' EXIT

while true; do
  # A heartbeat comes every 15 s: a minute of silence means trouble, and `read` gives up.
  coproc stream { exec "$GRPCURL" -plaintext ${LEADFOLD_TOKEN:+-rpc-header "authorization: Bearer $LEADFOLD_TOKEN"} \
    -d "{\"lead_id\":\"$lead_id\",\"after_version\":$version}" \
    "$address" leadfold.v1.LeadService/WatchLead 2>"$errors"; }
  pid=$stream_PID
  exec {output}<&"${stream[0]}"
  while IFS= read -r -t 60 line <&"$output"; do
    echo "$line"
    # The lead's own version stands six blanks in, a heartbeat's four.
    if [[ $line =~ ^(\ {4}|\ {6})\"version\":\ \"([0-9]+)\" ]]; then version=${BASH_REMATCH[2]}; fi
  done
  exec {output}<&-
  kill "$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  if ! grep -qE 'Code: Unavailable|Failed to dial' "$errors" && [ -s "$errors" ]; then
    cat "$errors" >&2
    exit 1
  fi
  # When the server says goodbye it also says when to come back.
  wait_for=$(sed -n 's/.*"retryDelay": *"\([0-9.]*\)s".*/\1/p' "$errors")
  sleep "${wait_for:-1}"
done
