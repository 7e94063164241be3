// doctor_system.go is what berth doctor asks the machine: its units, whose ports are
// whose, the kernel, limits, clock and log. It is apart from doctor_box.go, which
// looks at berth's own files.

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Descriptors: a control and a data connection for each session, and what the daemon
	// itself has open, with the files and homes of what runs just now; and each counted home.
	sessionDescriptors = 2
	spareDescriptors   = 128
	// sessionMemory is what a session takes that moves data under TLS: two connections
	// with records of 16 KiB each way, and their stacks.
	sessionMemory = 128 << 10
	// doctorDescriptors bounds the descriptors of other programs that are looked through
	// for whose a port is.
	doctorDescriptors = 200_000

	clockUnsynced = 0x40 // STA_UNSYNC, adjtimex(2)
	clockError    = 5    // TIME_ERROR
)

// --- units ---

// socketUnit is the unit that opens a listener.
func socketUnit(kind string) string {
	if kind == "control" {
		return "berth.socket"
	}
	return "berth-" + kind + ".socket"
}

// loadUnits asks systemd of berth's units.
func (d *doctor) loadUnits() {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return // sd_booted(3)
	}
	out, _ := d.program("systemctl", "show", "--no-pager", "berth.service", "berth.socket", "berth-tls.socket", "berth-datagram.socket",
		"berth-local.socket", "berth-http.socket", "berth-runner.socket")
	d.units = map[string]map[string]string{}
	for _, block := range splitText(out, "\n\n") {
		unit := map[string]string{}
		for _, line := range splitText(block, "\n") {
			key, value, _ := cutText(strings.TrimSpace(line), "=")
			unit[key] = strings.TrimSpace(unit[key] + " " + value) // Listen= comes more than once
		}
		if state := unit["LoadState"]; state == "loaded" {
			d.units[unit["Id"]] = unit
		}
	}
}

// unit is what a unit has for a property.
//
//go:noinline
func (d *doctor) unit(name, property string) string { return d.units[name][property] }

//go:noinline
func (d *doctor) active(name string) bool { return isText(d.unit(name, "ActiveState"), "active") }

func (d *doctor) checkUnits() {
	if d.units["berth.service"] == nil {
		d.say(levelOK, "units|no berth.service of systemd here")
		return
	}
	if isText(d.unit("berth.service", "ActiveState"), "failed") {
		d.say(levelFail, "units.failed|berth.service has failed: $1|journalctl -u berth -e|berth check$c|^", d.unit("berth.service", "Result"))
	}
	if atoi(d.unit("berth.service", "NRestarts")) > 0 {
		d.say(levelWarn, "units.restarts|berth.service ended by itself and was started again: $1 times|journalctl -u berth -e", d.unit("berth.service", "NRestarts"))
	}
	sockets := false
	for name := range d.units {
		if isText(d.unit(name, "NeedDaemonReload"), "yes") {
			d.say(levelWarn, "units.reload|$1 has changed on the disk, and systemd has not read it|systemctl daemon-reload|^", name)
		}
		if more := d.unit(name, "DropInPaths"); more != "" {
			d.say(levelOK, "units.dropin|$1 is changed by $2", name, more)
		}
		switch {
		case isText(name, "berth.service"):
		case d.active(name):
			sockets = sockets || name == "berth.socket"
			d.say(levelOK, "units.socket|$1 is open: $2", name, d.unit(name, "Listen"))
		case isText(d.unit(name, "UnitFileState"), "enabled"):
			d.say(levelWarn, "units.socket|$1 is enabled and not open|systemctl start $1", name)
		}
	}
	state := d.unit("berth.service", "UnitFileState")
	if !isText(state, "enabled") && !sockets {
		d.say(levelWarn, "units.enabled|berth.service is $1: it does not start with the machine|systemctl enable --now berth", state)
	} else {
		d.say(levelOK, "units.enabled|berth.service is $1, $2", state, d.unit("berth.service", "ActiveState"))
	}
}

// --- the daemon ---

func (d *doctor) checkDaemon() {
	p := &d.daemon
	switch {
	case p.pid != 0:
		d.say(levelOK, "daemon|berth runs as process $1 of $2", itoa(p.pid), p.name)
	case d.active("berth.socket"):
		d.say(levelOK, "daemon|no daemon runs now; systemd starts it with the first connection")
		return
	case d.units["berth.service"] != nil:
		d.say(levelNote, "daemon|no daemon runs|^")
		return
	default:
		d.say(levelNote, "daemon|no daemon runs with this configuration, or none that can be seen|berth serve$c")
		return
	}
	exe, err := os.Readlink(p.proc("exe"))
	if exe, gone := strings.CutSuffix(exe, " (deleted)"); gone {
		d.say(levelWarn, "daemon.version|$1 was replaced since the daemon was started from it|^", exe)
	}
	d.unseen("daemon.version", "the program that runs", err)
	if !d.readPage(true) {
		return
	}
	own, _ := buildVersion()
	if !hasText(d.page, `version="`+own+`"`) {
		d.say(levelWarn, "daemon.version|the daemon is another version than this program, $1|^", own)
	}
	if d.metric("berth_config_reload_success") == 0 {
		d.say(levelFail, "daemon.reload|the last reload was refused: the daemon runs with the configuration from before|berth check$c|berth reload$c")
	}
	at := d.metric("berth_config_reload_timestamp_seconds")
	if st, err := os.Stat(d.path); err == nil && at > 0 && float64(st.ModTime().UnixMilli()) > at*1000+1 {
		d.say(levelWarn, "daemon.reload|$1 has changed since the daemon read it|berth reload$c", d.path)
	}
}

// readPage gets the daemon's metrics: as Prometheus does, or, where that takes a password,
// by the local socket. The first time it says how, and why they do not come.
func (d *doctor) readPage(first bool) bool {
	if d.daemon.pid == 0 {
		return false
	}
	tell := d.say
	if !first {
		tell = func(level, string, ...string) {}
	}
	args := []string{"", "", "", ""}
	switch {
	case d.wrong.has("listen.http"):
	case len(d.cfg.Listen.HTTP) == 0:
		tell(levelNote, "daemon.http|listen.http is empty: there are no metrics, and berth health cannot ask|@listen.http = [\"127.0.0.1:9621\"]")
	default:
		address := d.cfg.Listen.HTTP[0]
		host, port, _ := net.SplitHostPort(address)
		if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
			address = joinHostPort("127.0.0.1", port)
		}
		url, path := "http://"+address, "/metrics"
		if d.cfg.HTTP.TLS {
			url = "https://" + address
		}
		open := len(d.cfg.HTTP.Users) == 0
		if !open {
			path = "/healthz"
		}
		status, page, err := d.fetchPage(address, path, d.cfg.HTTP.TLS)
		args[0], args[1] = url+path, itoa(status)
		switch {
		case err != nil:
			tell(levelFail, "daemon.http|the daemon does not answer on listen.http: $1|^", err.Error())
		case status != httpOK:
			tell(levelWarn, "daemon.http|$1 answers $2|curl -ki $1", args...)
		default:
			tell(levelOK, "daemon.http|$1 answers", args...)
			if open {
				d.page = "\n" + page
				return true
			}
		}
	}
	err := d.askMetrics()
	if err != nil {
		args[2] = err.Error()
		what := "daemon.local|what only the daemon knows is not looked at: $3"
		switch {
		case len(d.cfg.Listen.Local) == 0:
			what += "|@listen.local = [\"/run/berth/berth.sock\"]"
		case os.Geteuid() != 0:
			what += "|sudo berth doctor$c"
		default:
			what += "|^"
		}
		tell(levelNote, what, args...)
	}
	return err == nil
}

// askMetrics gets the metrics by the local socket.
func (d *doctor) askMetrics() error {
	if len(d.cfg.Listen.Local) == 0 {
		return newError("listen.local is empty")
	}
	link, err := dialDaemon(d.cfg.Listen.Local[0])
	if err != nil {
		return err
	}
	defer link.close()
	defer context.AfterFunc(d.ctx, link.close)()
	var page builder
	page.WriteByte('\n')
	_, err = link.ask(map[string]any{"do": "metrics"}, func(line []byte) error {
		if page.Len() > doctorOutput {
			return newError("the metrics have no end")
		}
		page.WriteString(string(line))
		return nil
	})
	if err == nil {
		d.page = page.String()
	}
	return err
}

// --- ports ---

// A portTable is who listens where.
type portTable struct {
	listens []listening
	owners  map[string][]int // processes by what their descriptor is; nil: not looked at
}

type listening struct {
	udp   bool
	at    netip.AddrPort
	uid   int
	inode string
}

// readPorts reads proc_net(5)'s tables, of the daemon's network if that is another one.
func (d *doctor) readPorts() *portTable {
	if d.ports != nil {
		return d.ports
	}
	t := &portTable{}
	d.ports = t
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		table := ""
		if d.daemon.pid != 0 {
			table = fileText(d.daemon.proc("net/" + name))
		}
		if table == "" {
			table = fileText("/proc/net/" + name)
		}
		t.read(table, name[0] == 'u')
	}
	return t
}

// read takes what listens in one table.
func (t *portTable) read(table string, udp bool) {
	state := "0A" // TCP_LISTEN
	if udp {
		state = "07" // TCP_CLOSE: bound, and connected to nobody
	}
	for _, line := range splitText(table, "\n") {
		if f := strings.Fields(line); len(f) > 9 && f[3] == state {
			if at, ok := kernelAddress(f[1]); ok {
				t.listens = append(t.listens, listening{udp, at, atoi(f[7]), "socket:[" + f[9] + "]"})
			}
		}
	}
}

// kernelAddress reads 0100007F:084B: words in this machine's order, and the port.
func kernelAddress(s string) (netip.AddrPort, bool) {
	host, port, _ := cutText(s, ":")
	raw, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	if runtime.GOARCH != "s390x" && runtime.GOARCH != "ppc64" && runtime.GOARCH != "mips" && runtime.GOARCH != "mips64" {
		for i := 0; i < len(raw); i += 4 {
			slices.Reverse(raw[i : i+4])
		}
	}
	a, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// find is what listens at an address, or at one that leaves no room for it.
func (t *portTable) find(udp bool, at netip.AddrPort) (all []listening) {
	for _, k := range t.listens {
		if k.udp == udp && k.at.Port() == at.Port() && (k.at.Addr() == at.Addr() || k.at.Addr().IsUnspecified() || at.Addr().IsUnspecified()) {
			all = append(all, k)
		}
	}
	return all
}

// whose is the processes that have a socket.
func (t *portTable) whose(inode string) []int {
	if t.owners == nil {
		t.owners = map[string][]int{}
		left := doctorDescriptors
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			fds, _ := namesIn(dir + "/fd")
			if left -= len(fds); left < 0 {
				break
			}
			for _, fd := range fds {
				if link, _ := os.Readlink(dir + "/fd/" + fd); beginsWith(link, "socket:") {
					t.owners[link] = append(t.owners[link], atoi(filepath.Base(dir)))
				}
			}
		}
	}
	return t.owners[inode]
}

// processName is a process as people know it, and the command that ends it for good.
func processName(pid int) (name, end string) {
	dir := "/proc/" + itoa(pid) + "/"
	end = "kill " + itoa(pid)
	for _, line := range splitText(fileText(dir+"cgroup"), "\n") {
		if base := filepath.Base(strings.TrimSpace(line)); strings.HasSuffix(base, ".service") {
			end = "systemctl disable --now " + base
		}
	}
	return fileText(dir+"comm") + ", process " + itoa(pid), end
}

// checkPorts looks at each address of [listen].
func (d *doctor) checkPorts() {
	if local := d.cfg.Listen.Local; d.daemon.pid != 0 && len(local) > 0 && d.answers("unix", local[0]+lateSuffix) == nil {
		d.say(levelNote, "port|the daemon ends when running transfers are done, and takes nobody new|berth who$c")
		return
	}
	var own []netip.Addr
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	for _, kind := range socketKinds() {
		if d.wrong.has(kind.key()) {
			continue
		}
		for _, text := range kind.addrs(&d.cfg.Listen) {
			host, port, _ := splitListen(text)
			a, err := netip.ParseAddr(host)
			if err != nil {
				a = netip.IPv6Unspecified() // a name: which address it is does not matter here
			}
			switch {
			case beginsWith(kind.network, "unix"):
				d.checkLocal(kind, text)
			case port == 0:
				d.say(levelOK, "port|$1: $2 takes any free port", kind.key(), text)
			case !a.IsUnspecified() && !a.IsLoopback() && !slices.Contains(own, a.WithZone("")):
				d.say(levelFail, "port|this machine does not have the address of $1, $2|@$1 = [\"[::]:$3\"]", kind.key(), text, itoa(port))
			default:
				d.checkPort(kind, text, netip.AddrPortFrom(a, uint16(port)))
			}
		}
	}
}

func (d *doctor) checkPort(kind socketKind, text string, at netip.AddrPort) {
	t := d.readPorts()
	pid := d.daemon.pid
	unit := socketUnit(kind.name)
	given := d.active(unit)
	found := t.find(kind.network == "udp", at)
	next := at
	for next.Port() == at.Port() || next.Port() < minDataPort || len(t.find(kind.network == "udp", next)) > 0 {
		next = netip.AddrPortFrom(at.Addr(), max(next.Port()+1, minDataPort))
	}
	var pids []int
	uids := -1
	for _, k := range found {
		pids = append(pids, t.whose(k.inode)...)
		uids = k.uid
	}
	other := 0
	for _, p := range pids {
		if p != 1 && p != pid {
			other = p
		}
	}
	low := atoi(fileText("/proc/sys/net/ipv4/ip_unprivileged_port_start"))
	args := []string{text, kind.key(), next.String(), unit, d.unit(unit, "Listen"), d.daemon.name, "", ""}
	l, what := levelOK, ""
	switch {
	case len(found) == 0 && given:
		l, what = levelNote, "$2 is $1, and $4 listens elsewhere: $5|systemctl edit $4"
	case len(found) == 0 && pid != 0:
		l, what = levelFail, "the daemon runs, and does not listen on $1 as $2 says|^"
	case len(found) == 0 && int(at.Port()) < low && d.daemon.uid != 0 && !hasText(d.unit("berth.service", "AmbientCapabilities"), "cap_net_bind_service"):
		l, what = levelFail, "$1: $6 may not listen there for $2, as on every port below 1024|+AmbientCapabilities=CAP_NET_BIND_SERVICE|+CapabilityBoundingSet=CAP_NET_BIND_SERVICE|^"
	case len(found) == 0:
		what = "$1 is free for $2"
	case pid != 0 && slices.Contains(pids, pid):
		what = "$1: berth listens there ($2)"
	case len(pids) == 0 && pid != 0 && uids == d.daemon.uid:
		what = "$1: a program of the daemon's user listens there ($2)"
	case len(pids) == 0:
		d.unseen("port", "who listens on "+text, fs.ErrPermission)
		return
	case other == 0 && given:
		what = "$1: systemd listens there for berth ($4)"
	case other == 0:
		l, what = levelFail, "$1 is taken by a socket of systemd's that is not berth's, and $2 wants it|@$2 = [\"$3\"]|or systemctl list-sockets, and: systemctl disable --now NAME.socket"
	default:
		args[6], args[7] = processName(other)
		l, what = levelFail, "$1 is taken by $7, and $2 wants it|@$2 = [\"$3\"]|or: $8"
	}
	d.say(l, "port|"+what, args...)
}

// checkLocal looks at a unix socket.
func (d *doctor) checkLocal(kind socketKind, path string) {
	if d.daemon.pid == 0 && d.active(socketUnit(kind.name)) { // a knock would start it
		d.say(levelOK, "port|$1: systemd listens there for berth ($2)", path, socketUnit(kind.name))
		return
	}
	err := d.answers(kind.network, path)
	st, gone := os.Stat(path)
	switch {
	case err == nil && (d.daemon.pid != 0 || d.units[socketUnit(kind.name)] != nil):
		d.say(levelOK, "port|$1 answers", path)
	case err == nil:
		d.say(levelFail, "port|another program answers on $1|@$2 = [\"/run/berth/other.sock\"]", path, kind.key())
	case d.unseen("port", path, err):
	case gone == nil && st.Mode()&fs.ModeSocket == 0:
		d.say(levelFail, "port|$1 is no socket, and in the way of one|rm %1", path)
	case d.daemon.pid != 0:
		d.say(levelFail, "port|the daemon runs, and does not listen on $1 as $2 says|^", path, kind.key())
	case d.units["berth.service"] != nil || d.reaches("port", "", filepath.Dir(path), mayWrite): // a unit has RuntimeDirectory=
		d.say(levelOK, "port|$1 is free for $2", path, kind.key())
	}
}

// --- passive ports ---

func (d *doctor) checkPassive() {
	p := d.cfg.Passive
	if p.Address != "" {
		a, err := netip.ParseAddr(p.Address)
		ctx, cancel := context.WithTimeout(d.ctx, doctorWait)
		as, lookup := net.DefaultResolver.LookupNetIP(ctx, "ip4", p.Address)
		cancel()
		switch {
		case err == nil && !a.Unmap().Is4():
			d.say(levelWarn, "passive.address|passive.address is $1, and PASV has no room for IPv6: it has no effect|@passive.address = \"203.0.113.7\"", p.Address)
		case lookup != nil:
			d.say(levelFail, "passive.address|passive.address is $1, which has no IPv4 address, so PASV is refused: $2|@passive.address = \"203.0.113.7\"", p.Address, lookup.Error())
		default:
			d.say(levelOK, "passive.address|PASV tells $1", as[0].Unmap().String())
		}
	}
	n := p.Ports.count()
	if n == 0 {
		d.say(levelNote, "passive.range|passive.ports is empty: any port may be used, and a firewall cannot let them through|@passive.ports = \"50000-50999\"")
		return
	}
	low, high := int(p.Ports.Low), int(p.Ports.High)
	for _, kind := range socketKinds() {
		for _, text := range kind.addrs(&d.cfg.Listen) {
			if _, port, _ := splitListen(text); kind.network == "tcp" && port >= low && port <= high {
				d.say(levelWarn, "passive.listen|$1 of $2 is within the passive ports, $3|@$2 = [\"[::]:2121\"]", text, kind.key(), p.Ports.String())
			}
		}
	}
	t := d.readPorts()
	taken, busy, free := 0, "", 50000
	for _, k := range t.listens {
		port := int(k.at.Port())
		if k.udp {
			continue
		}
		if port >= free && port < free+n && port+n < 65536 {
			free = port + 1
		}
		if port < low || port > high {
			continue
		}
		pids := t.whose(k.inode)
		if slices.Contains(pids, d.daemon.pid) || len(pids) == 0 && d.daemon.pid != 0 && k.uid == d.daemon.uid {
			continue
		}
		taken++
		busy = itoa(port)
		if len(pids) > 0 {
			name, _ := processName(pids[0])
			busy += " by " + name
		}
	}
	args := []string{p.Ports.String(), busy, itoa(taken), portRange{uint16(free), uint16(min(free+n-1, 65535))}.String(),
		itoa(n), itoa(d.cfg.Limits.Sessions), "", "", ""}
	switch {
	case taken >= n:
		d.say(levelFail, "passive.taken|all passive ports $1 are taken, as $2|@passive.ports = \"$4\"", args...)
	case taken > n/4:
		d.say(levelWarn, "passive.taken|$3 of $5 passive ports $1 are taken, as $2|@passive.ports = \"$4\"", args...)
	case taken > 0:
		d.say(levelNote, "passive.taken|$3 of $5 passive ports $1 are taken, and passed over: $2|@passive.ports = \"$4\"", args...)
	default:
		d.say(levelOK, "passive.taken|no other program listens on the passive ports $1", args...)
	}
	if n < d.cfg.Limits.Sessions {
		d.say(levelNote, "passive.size|$5 passive ports for $6 sessions: when many begin a transfer at once some wait for a port|@passive.ports = \"50000-50999\"", args...)
	}
	if f := strings.Fields(fileText("/proc/sys/net/ipv4/ip_local_port_range")); len(f) == 2 && low <= atoi(f[1]) && high >= atoi(f[0]) {
		reserved := fileText("/proc/sys/net/ipv4/ip_local_reserved_ports")
		args[6], args[7], args[8] = f[0], f[1], strings.TrimLeft(reserved+","+args[0], ",")
		if coversPorts(reserved, max(low, atoi(f[0])), min(high, atoi(f[1]))) {
			d.say(levelOK, "passive.local_range|the kernel keeps the passive ports free of outgoing connections")
		} else {
			d.say(levelNote, "passive.local_range|the kernel takes ports of outgoing connections from $7-$8, which the passive ports $1 overlap: now and then one is busy, and passed over|*net.ipv4.ip_local_reserved_ports = $9", args...)
		}
	}
}

// coversPorts tells whether a list as 1,5-9, in order, has all ports of a range.
func coversPorts(list string, low, high int) bool {
	for _, word := range splitText(list, ",") {
		a, b, two := cutText(word, "-")
		if !two {
			b = a
		}
		if atoi(a) <= low && low <= atoi(b) {
			low = atoi(b) + 1
		}
	}
	return low > high
}

// --- commands and kernel ---

const landlockLine = "lsm=landlock,yama   on the kernel's command line, with Linux 5.13 or later"

func (d *doctor) checkCommands() {
	e := d.cfg.Exec
	state := sandboxState(e)
	wanted := false
	for _, u := range d.users {
		wanted = wanted || u.Shell || len(u.Commands) > 0 || u.OnUpload != ""
	}
	path, isRunner := cutPrefix(e.Runner, commandRunnerScheme)
	switch {
	case d.hidden:
		d.say(levelOK, "sandbox|commands would run with $1", state)
	case !wanted:
		d.say(levelOK, "sandbox|no user may run commands; they would run with $1", state)
	case isRunner:
		// As in checkLocal.
		if d.active("berth-runner.socket") {
			d.say(levelOK, "runner|systemd listens on $1 for the runner", path)
		} else if err := d.answers("unix", path); err != nil {
			d.say(levelFail, "runner|commands run in the runner, which does not listen on $1: $2|systemctl enable --now berth-runner.socket", path, err.Error())
		} else {
			d.say(levelOK, "runner|the runner listens on $1", path)
		}
	case sandboxProblem(e.Sandbox) != nil:
		d.say(levelFail, "sandbox|commands are refused: they would run with $1|@exec.sandbox = \"best-effort\"", state)
	case e.Sandbox == "off":
		d.say(levelWarn, "sandbox|commands run with $1|@exec.sandbox = \"landlock\"", state)
	case landlockABI() == 0:
		d.say(levelWarn, "sandbox|commands run with $1|"+landlockLine, state)
	default:
		d.say(levelOK, "sandbox|commands run with $1", state)
	}
}

func (d *doctor) checkKernel() {
	d.say(levelOK, "kernel|Linux $1, $2", fileText("/proc/sys/kernel/osrelease"), runtime.GOARCH)
	if abi := landlockABI(); abi == 0 {
		d.say(levelNote, "kernel.landlock|no Landlock: commands of users are refused, or run with less around them|"+landlockLine)
	} else {
		d.say(levelOK, "kernel.landlock|Landlock, ABI $1", itoa(abi))
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	if fd, err := unix.Openat2(unix.AT_FDCWD, ".", &how); err != nil {
		d.say(levelNote, "kernel.openat2|no openat2 ($1): homes are as closed, and slower to walk|apt-get install linux-image-amd64   or another kernel of 5.6 or later", err.Error())
	} else {
		unix.Close(fd)
		d.say(levelOK, "kernel.openat2|openat2")
	}
	if filterArches(runtime.GOARCH) == nil || !seccompThere() {
		d.say(levelNote, "kernel.seccomp|no seccomp: the sandbox of commands has no filter of system calls|CONFIG_SECCOMP_FILTER=y   in the kernel's configuration")
	} else {
		d.say(levelOK, "kernel.seccomp|seccomp")
	}
	var seen []uint64
	if d.cfg == nil || d.wrong.has("server") {
		return
	}
	for _, dir := range append([]string{d.cfg.Server.StateDir}, d.homes()...) {
		var st unix.Stat_t
		if unix.Stat(dir, &st) == nil && !slices.Contains(seen, uint64(st.Dev)) {
			seen = append(seen, uint64(st.Dev))
			d.checkFileSystem(dir)
		}
	}
}

func (d *doctor) homes() (all []string) {
	for _, u := range d.users {
		all = append(all, u.Home)
	}
	return all
}

// checkFileSystem asks what a disk can do that berth uses where it is there.
func (d *doctor) checkFileSystem(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		d.unseen("disk", dir, err)
		return
	}
	defer f.Close()
	var st unix.Statfs_t
	unix.Fstatfs(int(f.Fd()), &st)
	switch int64(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		d.say(levelNote, "disk.remote|$1 is on a network's file system: if another machine writes there too, its quotas have to be used|berth user set NAME --quota filesystem$c", dir)
	case unix.MSDOS_SUPER_MAGIC:
		d.say(levelWarn, "disk.fat|$1 is on a FAT file system, which knows no owners and loses files with the power|mkfs.ext4   on that disk, after a copy of what is on it", dir)
	}
	if err := f.Sync(); err != nil && d.cfg.Transfer.Durable {
		d.say(levelWarn, "disk.fsync|$1: directories cannot be synced ($2), so a new name may be lost with the power|@transfer.durable = false", dir, err.Error())
	}
	if _, err := unix.Fgetxattr(int(f.Fd()), partialXattr, nil); errors.Is(err, unix.ENOTSUP) {
		d.say(levelNote, "disk.xattr|$1: no extended attributes: digests are not kept, and a partial upload cannot be told from a whole one|mount -o remount,user_xattr %1", dir)
	} else {
		d.say(levelOK, "disk.xattr|$1: extended attributes, and directories that can be synced", dir)
	}
}

// --- limits ---

func (d *doctor) checkLimits() {
	sessions := d.cfg.Limits.Sessions
	need := sessions*sessionDescriptors + spareDescriptors + len(d.users) + min(d.cfg.Passive.Ports.count(), sharedRange)
	have, whose := 0, "the daemon"
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil {
		have = int(min(r.Cur, 1<<30))
	}
	if limit := d.unit("berth.service", "LimitNOFILE"); d.daemon.pid != 0 {
		_, rest, _ := cutText(fileText(d.daemon.proc("limits")), "Max open files")
		if f := strings.Fields(rest); len(f) > 0 {
			have = atoi(f[0])
		} else {
			have = 0
		}
	} else if limit != "" {
		whose, have = "berth.service", atoi(limit)
	} else {
		whose = "a daemon started from here"
	}
	args := []string{whose, itoa(have), itoa(sessions), itoa(need), itoa(max(65536, need)),
		itoa(max(1, sessions-(need-have+1)/sessionDescriptors)), "", "", "", ""}
	switch {
	case have == 0:
		d.unseen("limits.nofile", "the daemon's limit of descriptors", fs.ErrPermission)
	case have < need:
		how := "+LimitNOFILE=$5"
		if d.units["berth.service"] == nil {
			how = "ulimit -n $5   before:"
		}
		d.say(levelWarn, "limits.nofile|$1 may have $2 descriptors open, and $3 sessions may need $4|"+how+"|^|or: @limits.sessions = $6", args...)
	default:
		d.say(levelOK, "limits.nofile|$1 may have $2 descriptors open, and $3 sessions need up to $4", args...)
	}
	f := strings.Fields(fileText("/proc/meminfo"))
	if len(f) > 1 && f[0] == "MemTotal:" {
		memory, most := int64(atoi(f[1]))<<10, int64(sessions)*sessionMemory
		args[6], args[7], args[8] = humanBytes(most), humanBytes(memory), strconv.FormatInt(max(1, memory/2/sessionMemory), 10)
		if most > memory/2 {
			d.say(levelWarn, "limits.memory|$3 sessions that all move data may take $7 of $8 of memory|@limits.sessions = $9", args...)
		} else {
			d.say(levelOK, "limits.memory|$3 sessions that all move data take up to $7 of $8 of memory", args...)
		}
	}
	args[9] = itoa(d.cfg.Listen.Backlog)
	if most := fileText("/proc/sys/net/core/somaxconn"); most != "" && d.cfg.Listen.Backlog > atoi(most) {
		d.say(levelNote, "limits.backlog|listen.backlog is $2, and the kernel lets $1 connections wait|*net.core.somaxconn = $2", most, args[9])
	}
}

// --- clock and log ---

func (d *doctor) checkClock() {
	now := time.Now()
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	l, what := levelOK, "the clock is synchronised"
	switch {
	case now.Before(tlsEpoch()):
		l, what = levelFail, "the clock is wrong: certificates are not valid yet|timedatectl set-ntp true"
	case err != nil:
		l, what = levelNote, "whether the clock is synchronised is not looked at, as the kernel does not say|timedatectl"
	case state == clockError || tx.Status&clockUnsynced != 0:
		l, what = levelWarn, "the clock is not synchronised with any other|timedatectl set-ntp true"
	}
	d.say(l, "clock|it is $1 here; "+what, now.Format("2006-01-02 15:04:05 MST"))
}

func (d *doctor) checkLog() {
	if d.cfg != nil && d.cfg.Log.Transfers != "" && !d.wrong.has("log") {
		if file := d.cfg.Log.Transfers; d.reaches("log.transfers", "", filepath.Dir(file), mayWrite) {
			d.say(levelOK, "log.transfers|the transfer log is $1", file)
		}
	}
	err := d.answers("unixgram", "/run/systemd/journal/socket")
	_, kept := os.Stat("/var/log/journal")
	switch {
	case err != nil && d.units == nil:
		d.say(levelOK, "log.journal|no journal here; the log is what the daemon writes to standard error")
	case err != nil:
		d.say(levelFail, "log.journal|journald does not listen: $1|systemctl restart systemd-journald", err.Error())
	case kept != nil:
		d.say(levelNote, "log.journal|the journal is in memory: what it says is gone after a restart of the machine|mkdir -p /var/log/journal && systemctl restart systemd-journald")
	default:
		d.say(levelOK, "log.journal|the journal is there, and kept on the disk")
	}
}
