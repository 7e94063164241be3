#!/bin/bash
# bench.sh measures berth beside vsftpd and pure-ftpd on this machine and judges
# the figures against berth's budgets. It owns the peers' configurations, the
# rounds and the verdicts. It must not know how a server works inside: it starts
# each by its command line, stops it by its pid and reads what ftpload prints.
# docs/performance.md explains every figure. Loopback only. Needs root, for
# vsftpd's PAM service, a local user and a tmpfs; `clean` takes all of it away.
#
#   bench.sh setup                   user, data files (1.4 GB, 1.3 GB of tmpfs), configurations
#   bench.sh run PHASE|all [ROUNDS]  measure in interleaved rounds, 3 unless told
#   bench.sh report [PHASE...]       Markdown: the machine, the budgets, all medians
#   bench.sh clean                   remove what setup made
#
# PHASE: retr stor storext4 tls small smalltmp login logintls list mixed idle
# start durable.  From the environment:
#   FTPLOAD    the load generator                    ftpload
#   BERTH      the binary under test                 berth
#   VSFTPD     vsftpd                                /usr/sbin/vsftpd
#   PUREFTPD   pure-ftpd (pure-pw in ../bin)         /usr/sbin/pure-ftpd
#   BENCH_DIR  scratch directory, on a real disk     /var/tmp/berth-bench
#   BASE_PORT  first of ten control ports            2300
set -u -o pipefail

FTPLOAD=${FTPLOAD:-ftpload}
BERTH=${BERTH:-berth}
VSFTPD=${VSFTPD:-/usr/sbin/vsftpd}
PUREFTPD=${PUREFTPD:-/usr/sbin/pure-ftpd}
D=${BENCH_DIR:-/var/tmp/berth-bench}
BASE_PORT=${BASE_PORT:-2300}

SELF=$0
WHO=berthbench      # the local user that every server gives its sessions to
PASSWORD=bench
PASSIVE_LOW=41000   # 8,000 ports: at 10,000 transfers a second fewer run out into TIME_WAIT
PASSIVE_HIGH=48999
SESSIONS=12000      # what berth admits: 10,000 idle ones and some to spare
STARTS=7            # cold starts a round
PHASES="retr stor storext4 tls small smalltmp login logintls list mixed idle start durable"
MIB=1048576

fail() { echo "bench.sh: $*" >&2; exit 1; }

# port of a server; berths is berth itself, spoken to with TLS.
port() {
  case $1 in
  berth | berths) echo $((BASE_PORT + 1)) ;;
  vsftpd) echo $((BASE_PORT + 2)) ;;
  vsftpds) echo $((BASE_PORT + 3)) ;;
  pureftpd) echo $((BASE_PORT + 4)) ;;
  pureftpds) echo $((BASE_PORT + 5)) ;;
  berth-durable) echo $((BASE_PORT + 6)) ;;
  start) echo $((BASE_PORT + 7)) ;;
  berth-bare) echo $((BASE_PORT + 8)) ;;
  berth-quota) echo $((BASE_PORT + 9)) ;;
  esac
}

# process that serves a name.
process() { [ "$1" = berths ] && echo berth || echo "$1"; }

# command of a server, in the foreground. vsftpd and pure-ftpd need root to give
# each session its user; berth does not, so it runs as that user from the start.
command_of() {
  case $1 in
  vsftpd | vsftpds) echo "$VSFTPD $D/$1.conf" ;;
  pureftpd) echo "$PUREFTPD -S 127.0.0.1,$(port $1) $(pure_flags) -g $D/run/$1.own" ;;
  pureftpds) echo "$PUREFTPD -S 127.0.0.1,$(port $1) $(pure_flags) -g $D/run/$1.own -Y 1 -2 $D/both.pem" ;;
  berth | berth-*)
    echo "setpriv --reuid=$WHO --regid=$WHO --clear-groups $BERTH serve --config $D/$1.toml" ;;
  esac
}

# no lookups, no syslog, room for every session, listings of 300,000 names
pure_flags() { echo "-l puredb:$D/pure.pdb -E -A -H -c 30000 -C 30000 -p $PASSIVE_LOW:$PASSIVE_HIGH -L 300000:8 -I 60 -u 1 -f none"; }

# ---------------------------------------------------------------- setup

setup() {
  [ "$(id -u)" = 0 ] || fail "setup needs root: vsftpd takes a PAM service and a local user"
  local tool
  for tool in "$FTPLOAD" "$BERTH" "$VSFTPD" "$PUREFTPD" jq openssl setpriv systemd-socket-activate; do
    command -v "$tool" >/dev/null || fail "$tool not found: install it or name it in the environment"
  done
  mkdir -p "$D"/{home/up,home/sm,home/mix/l,home/shm,home/big,empty,run,results,start-home}
  chmod 755 "$D"
  id $WHO >/dev/null 2>&1 || useradd -M -d "$D/home" -s /bin/bash $WHO || fail "cannot add user $WHO"
  # md5crypt: cheap, so that a login shows the cost of the session and not of the hash
  echo "$WHO:$(openssl passwd -1 -salt abcdefgh $PASSWORD)" | chpasswd -e || fail "cannot set the password of $WHO"
  printf 'auth required pam_unix.so\naccount required pam_unix.so\nsession optional pam_permit.so\n' >/etc/pam.d/$WHO
  certificate
  data
  configure_peers
  configure_berth berth false
  configure_berth berth-durable true
  configure_berth berth-bare false --quota filesystem
  configure_berth berth-quota false --quota 100GiB --files 1000000
  configure_start
}

# One P-256 certificate for all, so that no server pays for another kind of key.
certificate() {
  [ -f "$D/cert.pem" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=localhost \
    -addext subjectAltName=IP:127.0.0.1,DNS:localhost -keyout "$D/key.pem" -out "$D/cert.pem" 2>/dev/null || fail "no certificate"
  cat "$D/key.pem" "$D/cert.pem" >"$D/both.pem"
  chmod 600 "$D/both.pem" "$D/key.pem"
  chown $WHO: "$D/key.pem" "$D/cert.pem"
}

# Files are written in 1 MiB steps: the sizes of page-cache folios follow those
# of the writes, and the sink writes its own file that way too.
data() {
  local s
  for s in 1024 256 64; do
    [ -f "$D/home/f$s.bin" ] || dd if=/dev/urandom of="$D/home/f$s.bin" bs=1M count=$s iflag=fullblock status=none
  done
  mountpoint -q "$D/home/shm" || mount -t tmpfs -o size=5g tmpfs "$D/home/shm" || fail "cannot mount a tmpfs"
  for s in 1024 256; do # beside the sink's own file
    [ -f "$D/home/shm/f$s.bin" ] || dd if="$D/home/f$s.bin" of="$D/home/shm/f$s.bin" bs=1M status=none
  done
  [ -f "$D/home/mix/get.bin" ] || head -c 65536 /dev/urandom >"$D/home/mix/get.bin"
  (cd "$D/home/mix/l" && seq -f 'e%03g' 1 100 | xargs touch)
  [ -f "$D/home/big/entry-099999.dat" ] || (cd "$D/home/big" && seq -f 'entry-%06g.dat' 0 99999 | xargs touch)
  chown -R $WHO: "$D/home" "$D/start-home"
}

configure_peers() {
  local n id
  for n in vsftpd vsftpds; do
    cat >"$D/$n.conf" <<-X
	listen=YES
	listen_address=127.0.0.1
	listen_port=$(port $n)
	background=NO
	anonymous_enable=NO
	local_enable=YES
	write_enable=YES
	chroot_local_user=YES
	allow_writeable_chroot=YES
	pam_service_name=$WHO
	secure_chroot_dir=$D/empty
	pasv_min_port=$PASSIVE_LOW
	pasv_max_port=$PASSIVE_HIGH
	xferlog_enable=NO
	idle_session_timeout=3600
	X
  done
  sed -e '/^listen_/d' -e '/^background/d' -e 's/^listen=YES/listen=NO/' "$D/vsftpd.conf" >"$D/vsftpd-inetd.conf"
  sed "s/^listen_port=.*/listen_port=$(port start)/" "$D/vsftpd.conf" >"$D/vsftpd-start.conf"
  cat >>"$D/vsftpds.conf" <<-X
	ssl_enable=YES
	rsa_cert_file=$D/cert.pem
	rsa_private_key_file=$D/key.pem
	force_local_logins_ssl=NO
	force_local_data_ssl=NO
	require_ssl_reuse=NO
	ssl_ciphers=HIGH
	X
  id=$(id -u $WHO):$(id -g $WHO)
  echo "$WHO:$(openssl passwd -1 -salt abcdefgh $PASSWORD):$id::$D/home/./::::::::::::" >"$D/pure.passwd"
  "$(dirname "$PUREFTPD")/../bin/pure-pw" mkdb "$D/pure.pdb" -f "$D/pure.passwd" || fail "pure-pw mkdb"
}

# configure_berth NAME DURABLE: as little as the peers do (no datagram service,
# no local socket, warnings only), with room for 10,000 sessions from one machine.
configure_berth() {
  mkdir -p "$D/$1.state" "$D/$1.users"
  cat >"$D/$1.toml" <<-X
	[server]
	state_dir = "$D/$1.state"
	users_dir = "$D/$1.users"
	[listen]
	control = ["127.0.0.1:$(port $1)"]
	datagram = []
	local = []
	http = ["127.0.0.1:$(($(port $1) + 7000))"]
	[tls]
	certificate = "$D/cert.pem"
	key = "$D/key.pem"
	require = "none"
	[passive]
	ports = "$PASSIVE_LOW-$PASSIVE_HIGH"
	[limits]
	sessions = $SESSIONS
	sessions_per_address = $SESSIONS
	idle = "1h"
	[transfer]
	durable = $2
	[log]
	format = "text"
	level = "warn"
	X
  berth_user "$1" "$D/home" "${@:3}"
}

# configure_start is what a user's berth starts with: every default listener, on
# other addresses, and a berth with nothing in it.
configure_start() {
  mkdir -p "$D/start.state" "$D/start.users"
  cat >"$D/start.toml" <<-X
	[server]
	state_dir = "$D/start.state"
	users_dir = "$D/start.users"
	[listen]
	control = ["127.0.0.1:$(port start)"]
	datagram = ["127.0.0.1:$(port start)"]
	local = ["$D/run/start.sock"]
	http = ["127.0.0.1:$(($(port start) + 7000))"]
	[tls]
	certificate = "$D/cert.pem"
	key = "$D/key.pem"
	X
  berth_user start "$D/start-home"
}

berth_user() {
  local f="$D/$1.users/$WHO.toml"
  rm -f "$f"
  echo $PASSWORD | "$BERTH" user add $WHO --config "$D/$1.toml" --password-stdin --home "$2" "${@:3}" >/dev/null || fail "berth user add"
  sed -i '/^sessions *=/d' "$f"
  sed -i "1i sessions = $SESSIONS" "$f"
  "$BERTH" check --config "$D/$1.toml" >/dev/null || fail "berth check refuses $D/$1.toml"
  chown -R $WHO: "$D/$1.state" "$D/$1.users"
}

clean() {
  stop_all
  umount "$D/home/shm" 2>/dev/null
  rm -f /etc/pam.d/$WHO
  userdel $WHO 2>/dev/null
  mountpoint -q "$D/home/shm" || rm -rf "$D"
}

# ---------------------------------------------------------------- processes

# descendants PID: PID and all below it, parents first.
descendants() {
  local child
  echo "$1"
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do descendants "$child"; done
}

start() {
  local n i pid
  n=$(process "$1")
  stop "$n"
  # shellcheck disable=SC2046 # the words of the command
  setsid $(command_of "$n") >"$D/run/$n.log" 2>&1 </dev/null &
  pid=$!
  echo $pid >"$D/run/$n.pid"
  for i in $(seq 200); do
    kill -0 $pid 2>/dev/null || break # another program may hold the port
    (exec 3<>"/dev/tcp/127.0.0.1/$(port $n)") 2>/dev/null && return
    sleep 0.05
  done
  tail -3 "$D/run/$n.log" >&2
  stop_all
  fail "$n does not listen on 127.0.0.1:$(port "$n")"
}

stop() {
  local n p all i
  n=$(process "$1")
  [ -f "$D/run/$n.pid" ] || return 0
  p=$(cat "$D/run/$n.pid")
  all=$(descendants "$p")
  rm -f "$D/run/$n.pid"
  # shellcheck disable=SC2086 # a list of pids
  kill -TERM $all 2>/dev/null
  for i in $(seq 60); do
    kill -0 "$p" 2>/dev/null || return 0
    sleep 0.05
  done
  # shellcheck disable=SC2086
  kill -KILL $all 2>/dev/null
  return 0
}

stop_all() {
  local f
  for f in "$D"/run/*.pid; do [ -f "$f" ] && stop "$(basename "$f" .pid)"; done
}

# ---------------------------------------------------------------- measuring

# load SCENARIO SERVER FLAGS...: one ftpload run, one line of the results.
load() {
  local scenario=$1 n=$2 line
  shift 2
  case $n in *s) set -- --tls "$@" ;; esac
  line=$(timeout 200 "$FTPLOAD" "$scenario" --label "$n" --port "$(port "$n")" --user $WHO --pass $PASSWORD \
    --server-pid "$(cat "$D/run/$(process "$n").pid")" "$@") || echo "bench.sh: failed: $scenario $n $*" >&2
  # a run that ended without a line must not vanish from the report
  [ -n "$line" ] || line=$(jq -nc --arg s "$scenario" --arg l "$n" --arg a "$*" \
    '{scenario: $s, label: $l, error: ("no figures from ftpload " + $a)}')
  echo "$line" >>"$OUT"
}

# sink is the machine's limit: bare TCP and sendfile, no FTP, in the same round.
# On tmpfs, because it reads a file that it has only just written: on a disk the
# writeback would slow it down, and so flatter every server beside it.
sink() {
  "$FTPLOAD" sink --label sink --path "$D/home/shm" --sessions 1 --size $((1024 * MIB)) >>"$OUT"
  "$FTPLOAD" sink --label sink --path "$D/home/shm" --sessions 4 --size $((256 * MIB)) >>"$OUT"
}

# one PHASE SERVER: what a round does to one server.
one() {
  local s
  case $1 in
  retr)
    load retr "$2" --path f1024.bin --size $((1024 * MIB))
    load retr "$2" --path f256.bin --size $((256 * MIB)) --sessions 4
    load retr "$2" --path f256.bin --size $((256 * MIB)) --sessions 16
    load retr "$2" --tag tmpfs --path shm/f1024.bin --size $((1024 * MIB))
    load retr "$2" --tag tmpfs --path shm/f256.bin --size $((256 * MIB)) --sessions 4
    ;;
  stor)
    load stor "$2" --tag tmpfs --path shm/s --size $((1024 * MIB))
    load stor "$2" --tag tmpfs --path shm/s --size $((256 * MIB)) --sessions 4
    load stor "$2" --tag tmpfs --path shm/s --size $((128 * MIB)) --sessions 16
    ;;
  storext4)
    load stor "$2" --tag disk --path up/s --size $((1024 * MIB))
    load stor "$2" --tag disk --path up/s --size $((256 * MIB)) --sessions 4
    ;;
  tls)
    load retr "$2" --path f1024.bin --size $((1024 * MIB))
    load retr "$2" --path f256.bin --size $((256 * MIB)) --sessions 4
    load retr "$2" --path f64.bin --size $((64 * MIB)) --sessions 16
    load stor "$2" --tag tmpfs --path shm/s --size $((1024 * MIB))
    load stor "$2" --tag tmpfs --path shm/s --size $((256 * MIB)) --sessions 4
    ;;
  small) for s in 1 8; do load small "$2" --tag disk --path sm/x --n 2000 --sessions $s; done ;;
  smalltmp) for s in 1 8; do load small "$2" --tag tmpfs --path shm/x --n 2000 --sessions $s; done ;;
  login | logintls) for s in 1 32; do load login "$2" --seconds 2 --sessions $s; done ;;
  list)
    # peak memory counts from the start of the process: first a small directory in a new one
    start "$2"
    load list "$2" --tag small --path mix/l --n 2
    load list "$2" --verb LIST --path big --n 3
    case $2 in vsftpd) ;; *) load list "$2" --verb MLSD --path big --n 3 ;; esac
    ;;
  mixed) load mixed "$2" --sessions 64 --path mix --seconds 20 ;;
  idle)
    start "$2"
    load idle "$2" --sessions 1000
    # two processes a session at the peers: 20,000 processes are left out
    if [ "$2" = berth ]; then start "$2" && load idle "$2" --sessions 10000; fi
    start "$2" # 1,000 closing sessions are not the next server's affair
    ;;
  durable) # a tag of its own: these are not the runs that the other budgets speak about
    case $2 in
    berth-bare | berth-quota) load stor "$2" --tag ledger --path shm/s --size $((1024 * MIB)) --sessions 1 ;;
    *)
      load stor "$2" --tag durability --path up/s --size $((256 * MIB)) --sessions 4
      for s in 1 8; do load small "$2" --tag durability --path sm/x --n 500 --sessions $s; done
      ;;
    esac
    ;;
  esac
}

# starts measures exec to 220: as a daemon, and handed its socket by systemd's
# own tool at the moment of the first connection.
starts() {
  "$FTPLOAD" coldstart --label vsftpd --port "$(port start)" --exec "$VSFTPD $D/vsftpd-start.conf" --n $STARTS >>"$OUT"
  "$FTPLOAD" coldstart --label berth --port "$(port start)" --exec "$BERTH serve --config $D/start.toml" --n $STARTS >>"$OUT"
  "$FTPLOAD" coldstart --label vsftpd --inetd "$VSFTPD $D/vsftpd-inetd.conf" --n $STARTS >>"$OUT"
  local i
  for i in $(seq $STARTS); do
    activated vsftpd --accept --inetd "$VSFTPD" "$D/vsftpd-inetd.conf"
    activated berth --fdname=control "$BERTH" serve --config "$D/start.toml"
  done
}

# activated LABEL ARGS...: connect to the socket that systemd-socket-activate
# holds; it executes the server only then. The time runs from the connect.
activated() {
  local label=$1 p all t0 t1 line i
  shift
  setsid systemd-socket-activate -l "127.0.0.1:$(port start)" "$@" >"$D/run/activate.log" 2>&1 </dev/null &
  p=$!
  for i in $(seq 100); do
    grep -q Listening "$D/run/activate.log" && break
    sleep 0.02
  done
  t0=${EPOCHREALTIME/./}
  if exec 3<>"/dev/tcp/127.0.0.1/$(port start)" && read -r -t 10 -u 3 line && [[ $line == 220* ]]; then
    t1=${EPOCHREALTIME/./}
    jq -nc --arg l "$label" --argjson us $((t1 - t0)) \
      '{scenario: "coldstart", kind: "activated", sessions: 1, label: $l, start_ms: ($us / 1000)}' >>"$OUT"
  else
    echo "bench.sh: failed: $label, activated: $(tail -1 "$D/run/activate.log")" >&2
  fi
  exec 3>&-
  all=$(descendants $p)
  # shellcheck disable=SC2086 # a list of pids
  kill -KILL $all 2>/dev/null
  wait $p 2>/dev/null
}

run_phase() {
  local r n servers="vsftpd pureftpd berth"
  case $1 in
  tls | logintls) servers="vsftpds pureftpds berths" ;;
  durable) servers="berth berth-durable berth-bare berth-quota" ;;
  start) servers="" ;;
  esac
  OUT=$D/results/$1.jsonl
  : >"$OUT"
  for n in $servers; do start "$n"; done
  for r in $(seq "$2"); do
    echo "bench.sh: $1, round $r of $2" >&2
    [ "$1" = start ] && starts
    [ "$1" = retr ] && sink
    for n in $servers; do one "$1" "$n"; done
  done
  for n in $servers; do stop "$n"; done
}

# ---------------------------------------------------------------- the report

machine() {
  echo "- Machine: $(nproc) cores of $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(awk '/MemTotal/ {printf "%.0f", $2 / 1048576}' /proc/meminfo) GiB, Linux $(uname -r | cut -d- -f1), $(df --output=fstype "$D/home" | tail -1); loopback only."
  echo "- Versions: $("$BERTH" version | head -1); vsftpd $("$VSFTPD" -v 0>&1 2>&1 | sed 's/.*version //'); $("$PUREFTPD" --help 2>&1 | head -1 | cut -d' ' -f1-2)."
}

# shellcheck disable=SC2016 # $ belongs to jq
JQ_COMMON='
def median: sort | if length == 0 then null elif length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;
def short: if . == null then "" elif . >= 1000 then round | tostring elif . >= 10 then . * 10 | round / 10 | tostring else . * 1000 | round / 1000 | tostring end;
def at: if . == 1 then "1 session" else "\(.) sessions" end;
def shown: if length == 0 then "" else "\(median | short) (\(min | short)–\(max | short))" end;
def pick($all; $who; $want; $metric):
  [$all[] | select(.label == $who and .error == null)
   | select(. as $x | $want | to_entries | all(.value == $x[.key])) | getpath($metric | split(".")) | numbers];
'

# shellcheck disable=SC2016
JQ_BUDGETS='
def good($op; $x; $limit): if ($op == "≤" and $x <= $limit) or ($op == "≥" and $x >= $limit) then "PASS" else "FAIL" end;
# beside another server: the ratio of the medians
def ratio($all; $what; $mine; $peer; $want; $metric; $op; $limit; $peerwant; $peermetric):
  pick($all; $mine; $want; $metric) as $a | pick($all; $peer; $peerwant; $peermetric) as $b
  | if ($a | length) == 0 and ($b | length) == 0 then empty
    elif ($a | length) == 0 or ($b | length) == 0 then
      "| \($what) | \($a | shown) | \($peer) \($b | shown) | | \($op) \($limit) | FAIL, no figure |"
    else (($a | median) / ($b | median)) as $r
    | "| \($what) | \($a | shown) | \($peer) \($b | shown) | \($r * 100 | round / 100) | \($op) \($limit) | \(good($op; $r; $limit)) |" end;
def ratio($all; $what; $mine; $peer; $want; $metric; $op; $limit):
  ratio($all; $what; $mine; $peer; $want; $metric; $op; $limit; $want; $metric);
# against a fixed figure
def fixed($all; $what; $mine; $want; $metric; $op; $limit):
  pick($all; $mine; $want; $metric) as $a
  | if any($all[]; . as $x | .label == $mine and ($want | to_entries | all(.value == $x[.key]))) | not then empty
  elif ($a | length) == 0 then "| \($what) | | | | \($op) \($limit) | FAIL, no figure |"
  else "| \($what) | \($a | shown) | | | \($op) \($limit) | \(good($op; $a | median; $limit)) |" end;
. as $all
| "| what | berth | peer | ratio | budget | |", "| --- | --- | --- | --- | --- | --- |",
  ( (1, 4, 16) as $n | {scenario: "retr", sessions: $n, tag: null, tls: null} as $w
    | ratio($all; "RETR, \($n | at), CPU s/GiB"; "berth"; "vsftpd"; $w; "cpu_s_per_gib"; "≤"; 1.15) ),
  ( (1, 4) as $n | {scenario: "retr", sessions: $n, tag: "tmpfs"} as $w
    | ratio($all; "RETR from tmpfs, \($n | at), MB/s"; "berth"; "sink"; $w; "mb_per_s"; "≥"; 0.9; {scenario: "sink", sessions: $n}; "sendfile_down_mb_per_s") ),
  ( ("tmpfs", "disk") as $t | (1, 4, 16) as $n | {scenario: "stor", sessions: $n, tag: $t, tls: null} as $w
    | ratio($all; "STOR to \($t), \($n | at), CPU s/GiB"; "berth"; "vsftpd"; $w; "cpu_s_per_gib"; "≤"; 0.75) ),
  ( ("retr", "stor") as $s | (1, 4, 16) as $n | {scenario: $s, sessions: $n, tls: true} as $w
    | ratio($all; "TLS \($s | ascii_upcase), \($n | at), CPU s/GiB"; "berths"; "pureftpds"; $w; "cpu_s_per_gib"; "≤"; 1.05),
      ratio($all; "TLS \($s | ascii_upcase), \($n | at), CPU s/GiB"; "berths"; "vsftpds"; $w; "cpu_s_per_gib"; "≤"; 0.7) ),
  ( ("disk", "tmpfs") as $t | ([1, 0.9], [8, 1]) as [$n, $limit] | ("up", "down") as $d
    | {scenario: "small", sessions: $n, tag: $t} as $w
    | ratio($all; "2,000 × 4 KiB \($d), \($t), \($n | at), files/s"; "berth"; "pureftpd"; $w; "\($d)_files_per_s"; "≥"; $limit) ),
  ratio($all; "STOR 1 GiB with ledger and quota, CPU s/GiB"; "berth-quota"; "berth-bare"; {scenario: "stor", tag: "ledger"}; "cpu_s_per_gib"; "≤"; 1.03),
  ratio($all; "4 KiB files, durable, 8 sessions beside 1, files/s"; "berth-durable"; "berth-durable"; {scenario: "small", tag: "durability", sessions: 8}; "up_files_per_s"; "≥"; 4; {scenario: "small", tag: "durability", sessions: 1}; "up_files_per_s"),
  fixed($all; "login beside the hash, 1 session, µs"; "berth"; {scenario: "login", sessions: 1}; "p50_us"; "≤"; 150),
  fixed($all; "TLS logins, 32 sessions, a second"; "berths"; {scenario: "login", sessions: 32}; "logins_per_s"; "≥"; 1000),
  fixed($all; "10,000 idle sessions, private KiB each"; "berth"; {scenario: "idle", sessions: 10000}; "private_kib_per_session"; "≤"; 4),
  fixed($all; "1,000 idle sessions, PSS in all, MiB"; "berth"; {scenario: "idle", sessions: 1000}; "pss_total_mib"; "≤"; 16),
  ( ("LIST", "MLSD") as $v | {scenario: "list", verb: $v, tag: null} as $w
    | ratio($all; "\($v) of 100,000 names, s"; "berth"; "vsftpd"; $w; "list_seconds"; "≤"; 0.6; {scenario: "list", verb: "LIST", tag: null}; "list_seconds"),
      fixed($all; "\($v) of 100,000 names, first byte, ms"; "berth"; $w; "ttfb_ms"; "≤"; 5) ),
  # constant memory: the peak grows by less than the heap that the runtime fills before it first collects, twice over
  ( pick($all; "berth"; {scenario: "list", verb: "LIST", tag: null}; "hwm_mib") as $a
    | pick($all; "berth"; {scenario: "list", tag: "small"}; "hwm_mib") as $b
    | if ($a | length) == 0 or ($b | length) == 0 then empty
      else (($a | median) - ($b | median)) as $x
      | "| LIST of 100,000 names, peak memory, MiB | \($a | shown) | 100 names \($b | shown) | +\($x | short) | ≤ +8 | \(good("≤"; $x; 8)) |" end ),
  ratio($all; "mixed, 64 sessions, operations/s"; "berth"; "vsftpd"; {scenario: "mixed"}; "ops_per_s"; "≥"; 1.3),
  ratio($all; "mixed, 64 sessions, p99 µs"; "berth"; "vsftpd"; {scenario: "mixed"}; "p99_us"; "≤"; 1),
  ratio($all; "daemon, exec to 220, ms"; "berth"; "vsftpd"; {scenario: "coldstart", kind: "daemon"}; "start_ms"; "≤"; 1.5),
  ratio($all; "socket activation, connect to 220, ms"; "berth"; "vsftpd"; {scenario: "coldstart", kind: "activated"}; "start_ms"; "≤"; 1.5),
  fixed($all; "binary, KiB"; "berth"; {scenario: "coldstart", kind: "daemon"}; "binary_kib"; "≤"; 12288),
  fixed($all; "RSS after start, KiB"; "berth"; {scenario: "coldstart", kind: "daemon"}; "rss_kib"; "≤"; 15360)
'

# every scenario and setting, with the figures that say something about it
# shellcheck disable=SC2016
JQ_MEDIANS='
{ retr: ["mb_per_s", "cpu_s_per_gib"], stor: ["mb_per_s", "cpu_s_per_gib"],
  small: ["up_files_per_s", "down_files_per_s", "up_cpu_us_per_file", "down_cpu_us_per_file"],
  login: ["logins_per_s", "p50_us", "p99_us"],
  idle: ["private_kib_per_session", "pss_kib_per_session", "pss_total_mib", "open_seconds", "noop_p50_us", "noop_p99_us"],
  list: ["list_seconds", "ttfb_ms", "cpu_s_per_list", "hwm_mib"],
  mixed: ["ops_per_s", "p50_us", "p99_us", "cpu_us_per_op", "rss_mib"],
  coldstart: ["start_ms", "binary_kib", "rss_kib", "pss_kib"],
  sink: ["sendfile_down_mb_per_s", "sendfile_down_cpu_s_per_gib"] } as $columns
| map(select(.error == null) | .group = ([.scenario, (select(.tls) | "TLS"), .verb, .tag, .kind, (.sessions | at)] | map(strings) | join(", ")))
| group_by(.group)[]
| $columns[.[0].scenario] as $c
| "", "#### \(.[0].group)", "", "| | n | \($c | join(" | ")) |", "| --- | --- |\($c | map(" --- |") | join(""))",
  (group_by(.label)[] | . as $runs | "| \(.[0].label) | \(length) | \([$c[] as $m | [$runs[][$m] | numbers] | shown] | join(" | ")) |")
'

# report PHASE...: the budgets that the results speak about, then every median.
report() {
  local files=() p
  for p in "$@"; do [ -s "$D/results/$p.jsonl" ] && files+=("$D/results/$p.jsonl"); done
  [ ${#files[@]} -gt 0 ] || fail "no results: bench.sh run first"
  machine
  printf '\n### Budgets\n\n'
  jq -rs "$JQ_COMMON$JQ_BUDGETS" "${files[@]}"
  jq -rs '.[] | (.error // .note | strings) as $why | "\nFailed: \(.label) \(.scenario), \(.sessions) sessions: \($why)"' "${files[@]}"
  printf '\n### Medians (least–most)\n'
  jq -rs "$JQ_COMMON$JQ_MEDIANS" "${files[@]}"
}

case ${1:-} in
setup) setup ;;
run)
  [ -n "${2:-}" ] || fail "run what? all, or one of: $PHASES"
  [ -d "$D/results" ] || setup
  trap stop_all EXIT
  trap 'exit 130' INT TERM
  for p in $([ "$2" = all ] && echo "$PHASES" || echo "$2"); do
    case " $PHASES " in *" $p "*) run_phase "$p" "${3:-3}" ;; *) fail "no phase $p: one of $PHASES" ;; esac
  done
  ;;
report)
  shift
  # shellcheck disable=SC2086 # a list of phases
  report ${@:-$PHASES}
  ;;
clean) clean ;;
*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$SELF" ;;
esac
