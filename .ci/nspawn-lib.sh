# shellcheck shell=bash
# shellcheck disable=SC2034 # NSPAWN_BOOT_MS and the like are for who sources this
# Boots a real systemd in a throwaway Debian 12, for the checks that need one. To be sourced by bash
# scripts that run under set -euo pipefail, as root:
#
#   . .ci/nspawn-lib.sh
#   nspawn_enter "$@"           first of all: starts the script again with mounts of its own
#   nspawn_root                 the Debian root; made once and kept, some 45 s without it
#   nspawn_boot [ARG...]        boots a copy of it; ARGs go to systemd-nspawn, --bind-ro=DIR:DIR mostly
#   inside CMD...               runs CMD in it, as root; exit status and standard streams are CMD's
#   outside CMD...              runs CMD of this machine in its network, which is a loopback alone
#   nspawn_reboot               systemctl reboot; what was written to disk is still there
#   nspawn_halt                 shuts it down; fails if that had to be by force
#
# Call nspawn_halt from the trap, too: it does nothing when nothing runs. One machine at a time for each
# script; scripts may run at the same time.
#   NSPAWN_ROOT      the root, not to be written to
#   NSPAWN_LEADER    process 1 of the machine, as this machine numbers it; /proc/$NSPAWN_LEADER/root/ has
#                    the files
#   NSPAWN_BOOT_MS   how long the boot took
#   BERTH_CI_MIRROR  where debootstrap gets Debian from; its own default if unset
#
# What is written in the machine is in memory, and gone with the script however that ends. Memory, task
# and CPU limits of units hold only where this machine has cgroup v2 controllers to give away.
# Packages: debootstrap systemd-container util-linux procps

NSPAWN_SUITE=bookworm # systemd 252, the oldest that berth's units are for
# procps and iproute2 are for the checks; adduser is what maintainer scripts may expect of Debian.
NSPAWN_PACKAGES=systemd,systemd-sysv,dbus,procps,iproute2,adduser
NSPAWN_BUILD_LIMIT=560   # seconds; 45 on an idle machine
NSPAWN_BOOT_LIMIT=60     # seconds; 0.4 on an idle machine
NSPAWN_HALT_LIMIT=20     # seconds; 0.1
NSPAWN_DISK=1g           # of memory, at most, for what a machine writes

NSPAWN_PID='' NSPAWN_LEADER='' NSPAWN_BOOT_MS='' NSPAWN_DIR='' NSPAWN_ARGS=()

# nspawn_enter starts the script again in a mount namespace, which takes all mounts away with the last
# process in it: a script that is killed leaves none behind.
nspawn_enter() {
	local c missing=''
	if [ "$(id -u)" != 0 ]; then
		echo "this boots a machine: run it as root" >&2
		exit 2
	fi
	for c in debootstrap systemd-nspawn nsenter unshare setpriv flock; do
		command -v "$c" >/dev/null || missing+=" $c"
	done
	if [ -n "$missing" ]; then
		echo "missing:$missing; apt-get install --no-install-recommends debootstrap systemd-container util-linux" >&2
		exit 2
	fi
	if [ "${NSPAWN_ENTERED:-}" != "$$" ]; then
		NSPAWN_ENTERED=$$ exec unshare --mount --propagation slave -- "$BASH" "$0" "$@"
	fi
}

# nspawn_root makes the root aside and renames it, under a lock that whoever uses the root shares: no one
# ever boots half a root, and none is replaced under a machine that runs.
nspawn_root() {
	local cache stamp new unit
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/berth-ci
	NSPAWN_ROOT=$cache/debian-$NSPAWN_SUITE
	stamp="$NSPAWN_SUITE $NSPAWN_PACKAGES 1" # count up when what is done below changes
	mkdir -p "$cache"
	exec {nspawn_lock}>"$NSPAWN_ROOT.lock"
	flock -w "$NSPAWN_BUILD_LIMIT" -s "$nspawn_lock"
	if [ "$(cat "$NSPAWN_ROOT/.berth-ci" 2>/dev/null)" = "$stamp" ]; then
		return 0
	fi
	flock -w "$NSPAWN_BUILD_LIMIT" -x "$nspawn_lock"
	if [ "$(cat "$NSPAWN_ROOT/.berth-ci" 2>/dev/null)" != "$stamp" ]; then
		rm -rf "$NSPAWN_ROOT".new.* # of one who was killed: we have the lock
		new=$(mktemp -d "$NSPAWN_ROOT.new.XXXXXX")
		echo "making $NSPAWN_ROOT"
		if ! timeout "$NSPAWN_BUILD_LIMIT" debootstrap --variant=minbase --include="$NSPAWN_PACKAGES" "$NSPAWN_SUITE" "$new" ${BERTH_CI_MIRROR:+"$BERTH_CI_MIRROR"} >"$NSPAWN_ROOT.log" 2>&1; then
			tail -n 20 "$NSPAWN_ROOT.log"
			rm -rf "$new"
			return 1
		fi
		rm -f "$new"/var/cache/apt/archives/*.deb "$new/etc/resolv.conf"
		chmod 755 "$new"
		# An id, or the first boot would be the one that applies presets; a name that is not this machine's.
		tr -d - </proc/sys/kernel/random/uuid >"$new/etc/machine-id"
		echo box >"$new/etc/hostname"
		# These would want the network in the middle of a check, or only cost time.
		for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-timesyncd.service; do
			ln -sf /dev/null "$new/etc/systemd/system/$unit"
		done
		echo "$stamp" >"$new/.berth-ci"
		rm -rf "$NSPAWN_ROOT"
		mv -T "$new" "$NSPAWN_ROOT"
	fi
	flock -w "$NSPAWN_BUILD_LIMIT" -s "$nspawn_lock"
}

# nspawn_cgroups moves the calling shell into cgroups of its own: what nspawn starts stays below them,
# and two machines that shared theirs would end each other's processes.
nspawn_cgroups() {
	local h
	for h in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
		if [ -w "$h/cgroup.procs" ]; then
			mkdir -p "$h/berth-ci-$$"
			echo "$BASHPID" >"$h/berth-ci-$$/cgroup.procs" || true # not every hierarchy lets processes in
		fi
	done
}

nspawn_boot() {
	NSPAWN_DIR=$(mktemp -d)
	mount -t tmpfs -o "mode=755,size=$NSPAWN_DISK" tmpfs "$NSPAWN_DIR"
	mkdir "$NSPAWN_DIR"/{upper,work,root}
	# A layer of ours and not --volatile=overlay: that one is gone after a reboot.
	mount -t overlay -o "lowerdir=$NSPAWN_ROOT,upperdir=$NSPAWN_DIR/upper,workdir=$NSPAWN_DIR/work" overlay "$NSPAWN_DIR/root"
	NSPAWN_ARGS=("$@")
	nspawn_start
}

nspawn_start() {
	local started state='' end word
	started=$(date +%s%N) end=$((SECONDS + NSPAWN_BOOT_LIMIT)) NSPAWN_LEADER=''
	(
		nspawn_cgroups
		# It ends with this script, and the machine with it.
		exec setpriv --pdeathsig KILL setsid systemd-nspawn -q -D "$NSPAWN_DIR/root" --register=no --keep-unit --boot --console=pipe \
			--private-network --link-journal=no --resolv-conf=off --timezone=off --hostname=box --system-call-filter="landlock_create_ruleset landlock_add_rule landlock_restrict_self" "${NSPAWN_ARGS[@]}"
	) </dev/null >"$NSPAWN_DIR/nspawn.log" 2>&1 &
	NSPAWN_PID=$!
	while [ $SECONDS -lt $end ]; do
		if ! kill -0 "$NSPAWN_PID" 2>/dev/null; then
			echo "systemd-nspawn ended:"
			cat "$NSPAWN_DIR/nspawn.log"
			return 1
		fi
		if [ -z "$NSPAWN_LEADER" ]; then
			# The first child is one that only prepares. Entering its namespaces would be asking this machine.
			for word in $(cat "/proc/$NSPAWN_PID/task/$NSPAWN_PID/children" 2>/dev/null || true); do
				case $(grep -s ^NSpid: "/proc/$word/status" || true) in *[[:space:]]1) NSPAWN_LEADER=$word ;; esac
			done
		else
			state=$(inside timeout 20 systemctl is-system-running 2>/dev/null || true)
			case $state in running | degraded) break ;; esac
		fi
		sleep 0.05
	done
	NSPAWN_BOOT_MS=$((($(date +%s%N) - started) / 1000000))
	if [ "$state" != running ]; then
		echo "the machine is not running, but \"$state\":"
		[ -z "$NSPAWN_LEADER" ] || inside timeout 20 systemctl --failed --no-legend || true
		cat "$NSPAWN_DIR/nspawn.log"
		return 1
	fi
}

inside() {
	nsenter -t "$NSPAWN_LEADER" -m -u -i -n -p -C -- /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
		DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER='' SYSTEMD_COLORS=0 "$@"
}

outside() {
	nsenter -t "$NSPAWN_LEADER" -n -- "$@"
}

# nspawn_wait waits for systemd-nspawn to end and gives its exit status: that of the machine, 133 for a
# reboot. Whoever is not gone in time is killed, which is 137.
nspawn_wait() {
	local status=0 end=$((SECONDS + NSPAWN_HALT_LIMIT))
	while kill -0 "$NSPAWN_PID" 2>/dev/null && [ $SECONDS -lt $end ]; do
		sleep 0.05
	done
	if kill -0 "$NSPAWN_PID" 2>/dev/null; then
		echo "the machine did not end within $NSPAWN_HALT_LIMIT s; it was killed"
		kill -KILL "$NSPAWN_PID" ${NSPAWN_LEADER:+"$NSPAWN_LEADER"} 2>/dev/null || true
	fi
	wait "$NSPAWN_PID" || status=$?
	NSPAWN_PID='' NSPAWN_LEADER=''
	return $status
}

nspawn_reboot() {
	local status=0
	inside systemctl reboot
	nspawn_wait || status=$?
	if [ $status -ne 133 ]; then
		echo "systemd-nspawn ended with $status and not with 133, for a reboot"
		return 1
	fi
	nspawn_start
}

nspawn_halt() {
	local status=0 h
	if [ -n "$NSPAWN_PID" ]; then
		# To process 1 itself: nspawn's own way waits for ever when the machine did not take the signal. One
		# that has not come up need not be asked.
		kill -s RTMIN+3 "${NSPAWN_LEADER:-$NSPAWN_PID}" 2>/dev/null || true
		nspawn_wait || status=$?
	fi
	if [ -n "$NSPAWN_DIR" ]; then
		umount "$NSPAWN_DIR/root" 2>/dev/null || umount -l "$NSPAWN_DIR/root" || true
		umount "$NSPAWN_DIR" 2>/dev/null || umount -l "$NSPAWN_DIR" || true
		rmdir "$NSPAWN_DIR" || true
		NSPAWN_DIR=''
	fi
	for h in systemd unified .; do
		if [ -d "/sys/fs/cgroup/$h/berth-ci-$$" ]; then
			find "/sys/fs/cgroup/$h/berth-ci-$$" -depth -type d -exec rmdir {} + 2>/dev/null || true # empty ones only
		fi
	done
	return $status
}
