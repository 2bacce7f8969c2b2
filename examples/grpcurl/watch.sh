#!/usr/bin/env bash
# Watches a lead, for ever: across restarts of the server, without missing or repeating anything. Needs grpcurl.
#
#     ./watch.sh 127.0.0.1:50051 LEAD_ID
#
# An address that begins with https:// is called over TLS. LEADFOLD_CA_FILE names the PEM file of the authority that signed the
# server's certificate, unless it is a public one. LEADFOLD_TOKEN holds the bearer token, where the server asks for one.
set -uo pipefail

[ $# -eq 2 ] || { echo "usage: $0 HOST:PORT LEAD_ID" >&2; exit 2; }
url=$1 lead_id=$2 version=0 backoff=1
GRPCURL=${GRPCURL:-grpcurl}
work=$(mktemp -d)
errors=$work/errors
trap 'rm -rf "$work"; kill "$(jobs -p)" 2>/dev/null' EXIT
# What grpcurl has to know of google.rpc's error details: whose error it is, and when to come back.
cat >"$work/details.proto" <<'PROTO'
syntax = "proto3";
package google.rpc;
import "google/protobuf/duration.proto";
message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
message RetryInfo { google.protobuf.Duration retry_delay = 1; }
PROTO
proto=$(dirname "${BASH_SOURCE[0]}")/../../proto
# The environment, which grpcurl expands, keeps the token out of the list of processes.
export authorization="Bearer ${LEADFOLD_TOKEN:-}"
options=(-import-path "$proto" -import-path "$work" -proto leadfold/v1/lead_service.proto -proto details.proto
  -connect-timeout 10 -keepalive-time 30)
case $url in
  https://*) options+=(${LEADFOLD_CA_FILE:+-cacert "$LEADFOLD_CA_FILE"}) ;;
  *) options+=(-plaintext) ;;
esac
# -H goes with every call; -rpc-header would leave out those of reflection.
[ -z "${LEADFOLD_TOKEN:-}" ] || options+=(-expand-headers -H 'authorization: ${authorization}')

# Codes that say that the same call would fail again, when the server itself says so.
final='Code: (InvalidArgument|NotFound|PermissionDenied|Unauthenticated|Unimplemented)$'

while true; do
  # A heartbeat comes every 15 s: 45 s of silence mean trouble, and `read` gives up.
  coproc stream { exec "$GRPCURL" "${options[@]}" -d "{\"lead_id\":\"$lead_id\",\"after_version\":$version}" \
    "${url#http*://}" leadfold.v1.LeadService/WatchLead 2>"$errors"; }
  pid=$stream_PID
  exec {output}<&"${stream[0]}"
  while IFS= read -r -t 45 line <&"$output"; do
    echo "$line"
    backoff=1
    # The lead's own version stands six blanks in, a heartbeat's four.
    if [[ $line =~ ^(\ {4}|\ {6})\"version\":\ \"([0-9]+)\" ]]; then version=${BASH_REMATCH[2]}; fi
  done
  exec {output}<&-
  kill "$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  cat "$errors" >&2
  # A proxy's own page has these codes too, but not leadfold's ErrorInfo.
  if grep -qE "$final" "$errors" && grep -qE '"domain": *"leadfold"' "$errors"; then exit 1; fi
  # When the server says goodbye it also says when to come back.
  asked=$(sed -n 's/.*"retryDelay": *"\([0-9.]*\)s".*/\1/p' "$errors" | head -n 1)
  sleep "$(awk -v asked="${asked:-0}" -v wait="$backoff" -v random="$RANDOM" \
    'BEGIN { wait *= 0.5 + random / 65536; print (wait > asked ? wait : asked) }')"
  backoff=$((backoff < 4 ? backoff * 2 : 5))
done
