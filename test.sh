#!/usr/bin/env bash
# Runs all the tests. They need Rust and redis-server; a missing redis-server is installed from the system's
# packages. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf 'test.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    die "installing redis-server needs root, and there is no sudo: install it yourself and run this again"
  fi
}

# Debian starts the services that it installs unless a policy forbids it; one that is there already stays.
without_starting_services() {
  local policy=/usr/sbin/policy-rc.d status=0
  if [ -e "$policy" ]; then
    as_root "$@"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
  as_root chmod +x "$policy"
  as_root "$@" || status=$?
  as_root rm -f "$policy"
  return "$status"
}

install_redis() {
  if have apt-get; then
    as_root apt-get update -qq
    without_starting_services env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server
  elif have dnf; then
    as_root dnf install -y -q redis || as_root dnf install -y -q valkey
  elif have apk; then
    as_root apk add --quiet redis
  elif have pacman; then
    as_root pacman -S --noconfirm --needed valkey
  elif have brew; then
    brew install --quiet redis
  else
    die "found no apt-get, dnf, apk, pacman or brew: install redis-server 7.0 or newer and run this again"
  fi
}

# Some systems have Redis's successor under its own name only.
find_redis() {
  local name
  for name in redis-server valkey-server; do
    if have "$name"; then
      export REDIS_SERVER="${REDIS_SERVER:-$name}"
      return 0
    fi
  done
  return 1
}

have cargo || die "cargo is missing: install Rust from https://rustup.rs"
if [ -z "${REDIS_SERVER:-}" ] && ! find_redis; then
  say "redis-server is missing: installing it"
  install_redis || die "the package manager could not install redis-server: install it yourself and run this again"
  find_redis || die "redis-server is installed, but not in PATH"
fi
exec cargo test --locked "$@"
