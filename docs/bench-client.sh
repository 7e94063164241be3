#!/bin/bash
# bench-client.sh measures berth's client beside scp, sftp, rsync, rclone and lftp on
# this machine, with encryption on, in interleaved rounds. scp, sftp, rsync and rclone
# talk to an sshd of this machine, lftp to the same berth as the client, by FTPS.
# It owns the servers it starts and a directory; it knows the programs by their command
# lines alone. Loopback only. Needs root, for sshd. docs/performance.md has the figures.
#
#   bench-client.sh [ROUNDS] [PHASE...]     5 rounds, all phases: large small sync
#
# From the environment:
#   BERTH      the binary under test               berth
#   DIR        scratch directory, 5 GB on tmpfs    /dev/shm/berth-bench-client
#   FILES      of the sync phase                   100000
set -eu -o pipefail

rounds=5
[ $# -gt 0 ] && { rounds=$1; shift; }
phases=${*:-large small sync}
berth=${BERTH:-berth}
dir=${DIR:-/dev/shm/berth-bench-client}
files=${FILES:-100000}

for program in "$berth" ssh scp sftp rsync rclone lftp openssl python3; do
  command -v "$program" >/dev/null || { echo "bench-client.sh: there is no $program" >&2; exit 1; }
done
[ -e "$dir" ] && { echo "bench-client.sh: $dir is there already; remove it first" >&2; exit 1; }
mkdir -p "$dir/home" "$dir/box" "$dir/ssh" "$dir/here"
export HOME=$dir/home

pids=()
end() {
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap end EXIT

# --- servers ---

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
ssh-keygen -q -t ed25519 -N '' -f "$dir/ssh/host"
ssh-keygen -q -t ed25519 -N '' -f "$dir/ssh/id"
cp "$dir/ssh/id.pub" "$dir/ssh/authorized_keys"
cat >"$dir/ssh/sshd" <<END
Port $port
ListenAddress 127.0.0.1
HostKey $dir/ssh/host
AuthorizedKeysFile $dir/ssh/authorized_keys
StrictModes no
PermitRootLogin yes
UsePAM no
PidFile none
Subsystem sftp internal-sftp
END
mkdir -p /run/sshd
"$(command -v sshd || echo /usr/sbin/sshd)" -D -f "$dir/ssh/sshd" -E "$dir/ssh/log" &
pids+=($!)
cat >"$dir/ssh/client" <<END
Host peer
  HostName 127.0.0.1
  Port $port
  User $(id -un)
  IdentityFile $dir/ssh/id
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
END
"$berth" demo --control 127.0.0.1:0 --datagram 127.0.0.1:0 --http 127.0.0.1:0 "$dir/box" >"$dir/ready" 2>&1 &
pids+=($!)
until grep -q '^ready' "$dir/ready"; do sleep 0.1; done
control=$(sed -n 's/^ready control=\([^ ]*\) .*/\1/p' "$dir/ready")
BERTH_PASSWORD=$(cat "$dir/box/.berth-state/password")
export BERTH_PASSWORD BERTH_URL=berth://demo@$control
certificate=$dir/box/.berth-state/tls/cert.pem
until ssh -F "$dir/ssh/client" peer true 2>/dev/null; do sleep 0.1; done
rclone config create peer sftp host 127.0.0.1 port "$port" user "$(id -un)" key_file "$dir/ssh/id" shell_type unix >/dev/null 2>&1

b() { local verb=$1; shift; "$berth" "$verb" -q --ca "$certificate" "$@"; }
ftp() { lftp -u "demo,$BERTH_PASSWORD" -p "${control##*:}" -e "set ssl:ca-file $certificate; set ftp:ssl-force true; $1; bye" "${control%:*}" >/dev/null; }
rs() { rsync -e "ssh -F $dir/ssh/client" "$@"; }

# --- measuring ---

# once NAME COMMAND... adds the seconds and the largest resident size of a run to $dir/NAME.
once() {
  local name=$1
  shift
  python3 - "$dir/$name.figures" "$@" <<'END'
import os, resource, subprocess, sys, time
start = time.monotonic()
done = subprocess.run(["bash", "-c", 'eval "$RUN"'], env=dict(os.environ, RUN=" ".join(sys.argv[2:])), stdout=subprocess.DEVNULL)
took = time.monotonic() - start
if done.returncode:
    sys.exit(f"failed: {' '.join(sys.argv[2:])}")
open(sys.argv[1], "a").write(f"{took} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}\n")
END
}

export -f b ftp rs
export berth dir certificate control

# table TITLE NAME... prints the medians, and each as a part of the first.
table() {
  python3 - "$dir" "$@" <<'END'
import statistics, sys
dir, title, *names = sys.argv[1:]
print(f"\n{title}\n\n| program | seconds, median | of the others' best | resident, KiB |\n| --- | --- | --- | --- |")
runs = {n: [list(map(float, line.split())) for line in open(f"{dir}/{n}.figures")] for n in names}
median = {n: statistics.median(r[0] for r in runs[n]) for n in names}
best = min(median[n] for n in names[1:])
for n in names:
    print(f"| {n.split('-', 1)[1]} | {median[n]:.2f} | {median[n] / best:.2f} | {max(r[1] for r in runs[n]):.0f} |")
END
}

large() {
  head -c 1073741824 /dev/zero | openssl enc -aes-128-ctr -K 00112233445566778899aabbccddeeff -iv 0 2>/dev/null >"$dir/here/large"
  b put "$dir/here/large" :large
  local i
  for ((i = 0; i < rounds; i++)); do
    once put-berth b put "$dir/here/large" :large-2
    once put-scp scp -q -F "$dir/ssh/client" "$dir/here/large" "peer:$dir/there"
    once put-sftp "echo put $dir/here/large $dir/there | sftp -q -b - -F $dir/ssh/client peer"
    once put-rsync rs -W "$dir/here/large" "peer:$dir/there-2" && rm "$dir/there-2"
    once put-rclone rclone copyto --ignore-times "$dir/here/large" "peer:$dir/there"
    once put-lftp "ftp 'put $dir/here/large -o large-3'"
    once get-berth b get :large "$dir/back"
    once get-scp scp -q -F "$dir/ssh/client" "peer:$dir/here/large" "$dir/back"
    once get-sftp "echo get $dir/here/large $dir/back | sftp -q -b - -F $dir/ssh/client peer"
    rm "$dir/back" && once get-rsync rs -W "peer:$dir/here/large" "$dir/back"
    once get-rclone rclone copyto --ignore-times "peer:$dir/here/large" "$dir/back"
    rm "$dir/back" && once get-lftp "ftp 'get large -o $dir/back'"
    rm -f "$dir/back" "$dir/box/large-2" "$dir/box/large-3" "$dir/there"
  done
  rm "$dir/here/large" "$dir/box/large"
  table "One file of 1 GiB to the server" put-berth put-scp put-sftp put-rsync put-rclone put-lftp
  table "One file of 1 GiB from the server" get-berth get-scp get-sftp get-rsync get-rclone get-lftp
}

small() {
  mkdir "$dir/here/small"
  head -c 8192000 /dev/urandom | split -b 4096 -a 4 - "$dir/here/small/"
  local i
  for ((i = 0; i < rounds; i++)); do
    once sput-berth b put -r "$dir/here/small" :
    once sput-scp scp -q -r -F "$dir/ssh/client" "$dir/here/small" "peer:$dir/there"
    rm -r "$dir/there" && once sput-sftp "echo put -r $dir/here/small $dir/ | sftp -q -b - -F $dir/ssh/client peer"
    rm -r "$dir/small" && once sput-rsync rs -r "$dir/here/small" "peer:$dir/there"
    # Without its hash check, which runs a command over there for each file: minutes.
    rm -r "$dir/there" && once sput-rclone rclone copy --sftp-disable-hashcheck "$dir/here/small" "peer:$dir/there"
    rm -r "$dir/there" && once sput-lftp "ftp 'mirror -R $dir/here/small lftp'"
    mkdir "$dir/back" && once sget-berth b get -r :small "$dir/back"
    rm -r "$dir/back" && once sget-scp scp -q -r -F "$dir/ssh/client" "peer:$dir/here/small" "$dir/back"
    rm -r "$dir/back" && mkdir "$dir/back" && once sget-sftp "echo get -r $dir/here/small $dir/back | sftp -q -b - -F $dir/ssh/client peer"
    rm -r "$dir/back" && once sget-rsync rs -r "peer:$dir/here/small" "$dir/back"
    rm -r "$dir/back" && once sget-rclone rclone copy --sftp-disable-hashcheck "peer:$dir/here/small" "$dir/back"
    rm -r "$dir/back" && once sget-lftp "ftp 'mirror small $dir/back'"
    rm -r "$dir/back" "$dir/box/small" "$dir/box/lftp"
  done
  table "2,000 files of 4 KiB to the server" sput-berth sput-scp sput-sftp sput-rsync sput-rclone sput-lftp
  table "2,000 files of 4 KiB from the server" sget-berth sget-scp sget-sftp sget-rsync sget-rclone sget-lftp
}

sync() {
  python3 - "$dir/here/tree" "$files" <<'END'
import os, sys
top, files = sys.argv[1], int(sys.argv[2])
for i in range(files):
    d = f"{top}/{i // 1000:03}"
    if i % 1000 == 0:
        os.makedirs(d)
    with open(f"{d}/file-{i:06}.txt", "w") as f:
        f.write(str(i))
END
  b sync "$dir/here/tree/" :tree/
  rs -a "$dir/here/tree/" "peer:$dir/tree/"
  local i
  for ((i = 0; i < rounds; i++)); do
    once up-berth b sync "$dir/here/tree/" :tree/
    once up-rsync rs -a "$dir/here/tree/" "peer:$dir/tree/"
    once down-berth b sync :tree/ "$dir/here/tree/"
    once down-rsync rs -a "peer:$dir/tree/" "$dir/here/tree/"
  done
  table "Second sync of $files unchanged files to the server" up-berth up-rsync
  table "Second sync of $files unchanged files from the server" down-berth down-rsync
}

for phase in $phases; do
  "$phase"
done
